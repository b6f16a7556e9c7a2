"""`torch.ops.pndm_fast.apply_row`: the row operation as a torch operator, for code under torch.compile.

`Sampler` calls the same functions directly: an operator costs several times what a small row does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pndm_fast.row.backends import choose_backend
from pndm_fast.row.registers import FLOATS, Registers
from pndm_fast.row.table import WIDTHS

_CHANGED = ("x", "y", "slots", "row", "t", "net_in", "first_bad", "active", "done")


@torch.library.custom_op("pndm_fast::apply_row", mutates_args=_CHANGED)
def _operator(
    x: Tensor,
    y: Tensor,
    slots: Tensor,
    row: Tensor,
    t: Tensor,
    net_in: Tensor | None,
    seeds: Tensor,
    first_bad: Tensor,
    active: Tensor,
    done: Tensor,
    n: int,
    channels: int,
    table: Tensor,
    out: Tensor,
    uncond: Tensor | None,
    z: Tensor | None,
) -> None:
    registers = Registers(x, y, slots, row, t, net_in, seeds, first_bad, active, done, n, channels)
    _check(registers, table, out, uncond, z)
    choose_backend("auto", x.device, x.dtype).apply_row(registers, table, out, uncond, z)


@_operator.register_fake
def _(*_args: object) -> None:
    return None


def apply_row(
    registers: Registers, table: Tensor, out: Tensor, uncond: Tensor | None = None, z: Tensor | None = None
) -> None:
    """Execute each sample's row in place; see `pndm_fast.row.reference.apply_row` for what that is.

    C++ on the CPU, Triton on CUDA, the reference for float64. Traceable by torch.compile without a graph break.

    Raises:
        ValueError: a tensor's shape, dtype, device or layout is not what `Registers` says, naming it.
    """
    r = registers
    _operator(
        r.x, r.y, r.slots, r.row, r.t, r.net_in, r.seeds, r.first_bad, r.active, r.done, r.n, r.channels,
        table, out, uncond, z,
    )  # fmt: skip


def _check(r: Registers, table: Tensor, out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
    batch, state, integer = r.row.shape[0], (torch.float32, torch.float64), (torch.int32,)
    stride = r.y.shape[-1]
    slots, halves, rows = r.slots.shape[0], r.cfg_copies, table.shape[0]
    width = table.shape[-1] if table.shape[-1] in WIDTHS.values() else WIDTHS[1]
    wanted: list[tuple[str, Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]] = [
        ("y", r.y, (batch, stride), state),
        ("x", r.x, (batch, stride), (r.y.dtype,)),
        ("slots", r.slots, (slots, batch, stride), (*FLOATS, r.y.dtype)),
        ("row", r.row, (batch,), integer),
        ("t", r.t, (halves * batch,), (torch.float32, torch.int64, r.y.dtype)),
        ("net_in", r.net_in, (halves * batch, r.n), (*FLOATS, r.y.dtype)),
        ("seeds", r.seeds, (batch,), (torch.int64,)),
        ("first_bad", r.first_bad, (batch,), integer),
        ("active", r.active, (1,), integer),
        ("done", r.done, (batch,), integer),
        ("table", table, (rows, width), (r.y.dtype,)),
        ("out", out, (batch, r.n), (*FLOATS, r.y.dtype)),
        ("uncond", uncond, (batch, r.n), (out.dtype,)),
        ("z", z, (batch, r.n), (r.y.dtype,)),
    ]
    if not 1 <= r.n <= stride:
        raise ValueError(f"apply_row: n must be in [1, {stride}], got {r.n}")
    if r.channels < 1 or r.n % r.channels:
        raise ValueError(f"apply_row: channels must divide n = {r.n}, got {r.channels}")
    if width != WIDTHS[1] and (r.n % 2 or r.channels > 1):
        raise ValueError(f"apply_row: a table of blocks must have an even n and channels 1, got {r.n} and {r.channels}")
    for name, tensor, shape, dtypes in wanted:
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"apply_row: {name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype not in dtypes:
            raise ValueError(f"apply_row: {name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
        if not tensor.is_contiguous():
            raise ValueError(f"apply_row: {name} must be contiguous, got strides {tuple(tensor.stride())}")
        if tensor.device != r.y.device:
            raise ValueError(f"apply_row: {name} must be on {r.y.device}, got {tensor.device}")
