"""The three `apply_row`s behind one face. A backend asked for by name works or says why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pndm_fast.row import reference
from pndm_fast.row.layout import flatten
from pndm_fast.row.noise import normals
from pndm_fast.row.registers import Registers
from pndm_fast.row.threads import share_threads

BACKENDS = ("auto", "cpp", "triton", "reference")

ApplyRow = Callable[[Registers, Tensor, Tensor, Tensor | None, Tensor | None], None]
"""apply_row(registers, table, out, uncond, z): one row for each sample; tensors [B, n] in physical order."""

BoundRow = Callable[[Tensor, Tensor | None, Tensor | None], None]
"""step(out, uncond, z) on bound buffers: outputs as the network returns them, [uncond; cond] where H = 2."""


def _step_of_tensors(apply_row: ApplyRow, registers: Registers, table: Tensor, _: torch.dtype) -> BoundRow:
    r = registers
    ours = {tensor.untyped_storage().data_ptr() for tensor in vars(r).values() if isinstance(tensor, Tensor)}

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

    return step


def _step_of_pointers(_: ApplyRow, registers: Registers, table: Tensor, out_dtype: torch.dtype) -> BoundRow:
    run = _cpp_run(registers, table, out_dtype)
    half = 0 if registers.cfg_copies == 1 else registers.batch * registers.n * out_dtype.itemsize

    def step(out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
        first, second = out.data_ptr(), 0 if uncond is None else uncond.data_ptr()
        if half:
            first, second = first + half, first
        if not run(first, second, 0 if z is None else z.data_ptr()):
            # the network answered in our own memory: take a copy
            step(out.clone(), None if uncond is None else uncond.clone(), z)

    return step


@dataclass(frozen=True)
class Backend:
    """One implementation of the row operation.

    Attributes:
        name: cpp, triton or reference.
        apply_row: the operation on tensors.
        normals: standard normals [B, n] of a noise index, in the registers' layout.
        binder: makes of `apply_row` the form for the loop, which checks nothing twice.
        capturable: whether it reads nothing on the host, so that a graph may hold it.
    """

    name: str
    apply_row: ApplyRow
    normals: Callable[[Registers, int], Tensor]
    binder: Callable[[ApplyRow, Registers, Tensor, torch.dtype], BoundRow] = _step_of_tensors
    capturable: bool = True

    def bind(self, registers: Registers, table: Tensor, out_dtype: torch.dtype) -> BoundRow:
        """The row operation on one set of buffers, which the caller keeps alive."""
        return self.binder(self.apply_row, registers, table, out_dtype)


def _cpp_run(registers: Registers, table: Tensor, out_dtype: torch.dtype) -> Callable[[int, int, int], bool]:
    from pndm_fast import _C

    def name(dtype: torch.dtype) -> str:
        return str(dtype).removeprefix("torch.")

    r = registers
    return _C.RowOp(
        x=r.x.data_ptr(),
        y=r.y.data_ptr(),
        slots=r.slots.data_ptr(),
        row=r.row.data_ptr(),
        t=r.t.data_ptr(),
        net_in=0 if r.net_in is None else r.net_in.data_ptr(),
        seeds=r.seeds.data_ptr(),
        first_bad=r.first_bad.data_ptr(),
        active=r.active.data_ptr(),
        table=table.data_ptr(),
        batch=r.batch,
        n=r.n,
        stride=r.y.shape[1],
        n_slots=r.slots.shape[0],
        table_rows=table.shape[0],
        table_width=table.shape[1],
        channels=r.channels,
        cfg_copies=r.cfg_copies,
        out_dtype=name(out_dtype),
        slot_dtype=name(r.slots.dtype),
        net_dtype=name(torch.float32 if r.net_in is None else r.net_in.dtype),
        time_dtype=name(r.t.dtype),
        threads=torch.get_num_threads(),
    )


def _cpp() -> Backend:
    try:
        from pndm_fast import _C
    except ImportError as error:
        raise ValueError(f"backend 'cpp' must have the built extension, pip install .: {error}") from error
    share_threads()

    def apply_row(r: Registers, table: Tensor, out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
        run = _cpp_run(r, table, out.dtype)
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in (out, uncond, z))
        if not run(*pointers):
            apply_row(r, table, out.clone(), None if uncond is None else uncond.clone(), z)

    def fill(r: Registers, index: int) -> Tensor:
        noise = torch.empty(r.batch, r.n, dtype=torch.float32)
        _C.normals(noise.data_ptr(), r.seeds.data_ptr(), r.batch, index, r.n, r.n, r.channels)
        return noise

    return Backend("cpp", apply_row, fill, _step_of_pointers)


def _reference() -> Backend:
    def fill(r: Registers, index: int) -> Tensor:
        return normals(r.seeds, index, r.n, r.channels)

    return Backend("reference", reference.apply_row, fill, capturable=False)


def _triton() -> Backend:
    import pndm_fast.kernels as kernels

    def fill(r: Registers, index: int) -> Tensor:
        noise: Tensor = kernels.normals(r.seeds, index, r.n, r.y.shape[1], r.channels)
        return noise[:, : r.n]

    return Backend("triton", kernels.apply_row, fill)


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
