"""The three `apply_row`s behind one face. A backend asked for by name works or says why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pndm_fast.row import cpp, reference
from pndm_fast.row.layout import flatten
from pndm_fast.row.reference import Sources
from pndm_fast.row.registers import Registers

BACKENDS = ("auto", "cpp", "triton", "reference")

ApplyRow = Callable[[Registers, Tensor, Tensor, Tensor | None, Tensor | None], None]
"""apply_row(registers, table, out, uncond, z): one row for each sample; tensors [B, n] in physical order."""

Step = Callable[[Tensor, Tensor | None, Tensor | None], None]
"""step(out, uncond, z) on bound buffers: outputs as the network returns them, [uncond; cond] where H = 2."""


Begin = Callable[[Tensor, Sources], None]
"""begin(lines, sources) on bound buffers: the state and the network's input before the first row."""


class BoundRow(NamedTuple):
    """What is done on one set of buffers.

    Attributes:
        step: one row.
        begin: what comes before the first.
    """

    step: Step
    begin: Begin


@dataclass(frozen=True)
class Backend:
    """One implementation of the row operation.

    Attributes:
        name: cpp, triton or reference.
        apply_row: the operation on tensors.
        begin: `reference.begin`.
        bind: bind(registers, table, dtype of the outputs) is both on one set of buffers, which the caller keeps alive:
            the form for the loop, which checks nothing twice.
        capturable: whether it reads nothing on the host, so that a graph may hold it.
    """

    name: str
    apply_row: ApplyRow
    begin: Callable[[Registers, Tensor, Tensor, Sources], None]
    bind: Callable[[Registers, Tensor, torch.dtype], BoundRow]
    capturable: bool = True


def _bind(apply_row: ApplyRow, begin: Any, r: Registers, table: Tensor, _: torch.dtype) -> BoundRow:
    ours = {tensor.untyped_storage().data_ptr() for tensor in r.tensors() if tensor is not None}

    def apart(tensor: Tensor) -> Tensor:  # a network may answer in our own memory
        return tensor.clone() if tensor.untyped_storage().data_ptr() in ours else tensor

    def step(out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
        first = flatten(apart(out), r.channels)
        second = None if uncond is None else flatten(apart(uncond), r.channels)
        if r.cfg_copies == 2:
            second, first = first[: r.batch], first[r.batch :]
        apply_row(r, table, first, second, z)

    def start(lines: Tensor, sources: Sources) -> None:
        begin(r, table, lines, Sources(*[None if source is None else apart(source) for source in sources]))

    return BoundRow(step, start)


@cache
def _cpp() -> Backend:
    try:
        cpp.share_threads()
    except ImportError as error:
        raise ValueError(f"backend 'cpp' must have the built extension, pip install .: {error}") from error
    return Backend("cpp", cpp.apply_row, cpp.begin, lambda r, table, dtype: BoundRow(*cpp.bind(r, table, dtype)))


@cache
def _reference() -> Backend:
    both = reference.apply_row, reference.begin
    return Backend("reference", *both, partial(_bind, *both), capturable=False)


@cache
def _triton() -> Backend:
    import pndm_fast.kernels as kernels

    both = kernels.apply_row, kernels.begin
    return Backend("triton", *both, partial(_bind, *both))


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
