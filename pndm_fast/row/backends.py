"""The three `apply_row`s behind one face. A backend asked for by name works or says why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from pndm_fast.row import cpp, reference
from pndm_fast.row.layout import flatten
from pndm_fast.row.noise import normals
from pndm_fast.row.registers import Registers

BACKENDS = ("auto", "cpp", "triton", "reference")

ApplyRow = Callable[[Registers, Tensor, Tensor, Tensor | None, Tensor | None], None]
"""apply_row(registers, table, out, uncond, z): one row for each sample; tensors [B, n] in physical order."""

Step = Callable[[Tensor, Tensor | None, Tensor | None], None]
"""step(out, uncond, z) on bound buffers: outputs as the network returns them, [uncond; cond] where H = 2."""


class BoundRow(NamedTuple):
    """The row operation on one set of buffers.

    Attributes:
        step: one row.
        begin: begin(rows, active, scale) sets counters, rows and times, and with a scale draws x and y from the seeds;
            None where that is left to tensor operations.
    """

    step: Step
    begin: Callable[[Sequence[int], int, float | None], None] | None = None


@dataclass(frozen=True)
class Backend:
    """One implementation of the row operation.

    Attributes:
        name: cpp, triton or reference.
        apply_row: the operation on tensors.
        normals: standard normals [B, n] of a noise index, in the registers' layout.
        bind: bind(registers, table, dtype of the outputs) is the operation on one set of buffers, which the caller
            keeps alive: the form for the loop, which checks nothing twice.
        begins: whether its bound rows have `begin`.
        capturable: whether it reads nothing on the host, so that a graph may hold it.
    """

    name: str
    apply_row: ApplyRow
    normals: Callable[[Registers, int], Tensor]
    bind: Callable[[Registers, Tensor, torch.dtype], BoundRow]
    begins: bool = False
    capturable: bool = True


def _bind(apply_row: ApplyRow, r: Registers, table: Tensor, _: torch.dtype) -> BoundRow:
    ours = {tensor.untyped_storage().data_ptr() for tensor in r.tensors() if tensor is not None}

    def flat(out: Tensor) -> Tensor:
        if out.untyped_storage().data_ptr() in ours:  # the network answered in our own memory: take a copy
            out = out.clone()
        return flatten(out, r.channels)

    def step(out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
        first = flat(out)
        second = None if uncond is None else flat(uncond)
        if r.cfg_copies == 2:
            second, first = first[: r.batch], first[r.batch :]
        apply_row(r, table, first, second, z)

    return BoundRow(step)


@cache
def _cpp() -> Backend:
    try:
        cpp.share_threads()
    except ImportError as error:
        raise ValueError(f"backend 'cpp' must have the built extension, pip install .: {error}") from error
    return Backend(
        "cpp", cpp.apply_row, cpp.normals, lambda r, table, dtype: BoundRow(*cpp.bind(r, table, dtype)), begins=True
    )


@cache
def _reference() -> Backend:
    def fill(r: Registers, index: int) -> Tensor:
        return normals(r.seeds, index, r.n, r.channels)

    return Backend("reference", reference.apply_row, fill, partial(_bind, reference.apply_row), capturable=False)


@cache
def _triton() -> Backend:
    import pndm_fast.kernels as kernels

    def fill(r: Registers, index: int) -> Tensor:
        noise: Tensor = kernels.normals(r.seeds, index, r.n, r.y.shape[1], r.channels)
        return noise[:, : r.n]

    return Backend("triton", kernels.apply_row, fill, partial(_bind, kernels.apply_row))


def choose_backend(name: str, device: torch.device, state: torch.dtype) -> Backend:
    """The backend of that name; "auto" is the fast one for the device, the reference for float64.

    Raises:
        ValueError: unknown name, or one that cannot run there, with the reason.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "auto":
        name = {"cpu": "cpp", "cuda": "triton"}.get(device.type, "reference")
        name = "reference" if state is torch.float64 else name
    if name == "reference":
        return _reference()
    if state is torch.float64:
        raise ValueError(f"backend must be 'reference' for a float64 state, got {name!r}")
    if name == "cpp":
        if device.type != "cpu":
            raise ValueError(f"backend 'cpp' must have tensors on the CPU, got {device}")
        return _cpp()
    _check_triton(device)
    return _triton()


def _check_triton(device: torch.device) -> None:
    try:
        import triton
    except ImportError as error:
        raise ValueError(f"backend 'triton' must have Triton installed: {error}") from error
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(f"backend 'triton' must have tensors on a CUDA device, or TRITON_INTERPRET=1, got {device}")
