"""Triton kernels of pndm_fast: a row of a plan in one pass, and its standard normals."""

if __name__ != "pndm_fast.kernels":  # a well-known distribution is named `kernels`
    raise ImportError("the Triton kernels of pndm_fast are imported as pndm_fast.kernels, not as a top-level package")

from pndm_fast.kernels.apply_row import apply_row, normals

__all__ = ["apply_row", "normals"]
