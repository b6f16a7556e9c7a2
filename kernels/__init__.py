"""Triton kernels of pndm_fast: a trajectory's start and each row of its plan, in one pass each."""

if __name__ != "pndm_fast.kernels":  # a well-known distribution is named `kernels`
    raise ImportError("the Triton kernels of pndm_fast are imported as pndm_fast.kernels, not as a top-level package")

from pndm_fast.kernels.apply_row import apply_row
from pndm_fast.kernels.begin import begin

__all__ = ["apply_row", "begin"]
