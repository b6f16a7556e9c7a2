"""`apply_row` in plain torch, any float dtype: the oracle that the C++ and Triton versions must equal.

Every operation is one IEEE operation in the order written here and none is fused, so float32 results are the
same bits in all three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pndm_fast import table as columns
from pndm_fast.noise import normals
from pndm_fast.plan import MAX_SLOTS
from pndm_fast.registers import Registers


def apply_row(
    registers: Registers, table: Tensor, out: Tensor, uncond: Tensor | None = None, z: Tensor | None = None
) -> None:
    """Execute each sample's row of the table in place; `pndm_fast.plan.Row` says what a row is.

    Samples at a halt row are left alone. The others store their slot, update x and y, advance `row`, and get the next
    network input in_scale y and time; `active` falls by one for each sample whose next row halts.

    Args:
        registers: the trajectory's memory, changed in place.
        table: [rows, table.WIDTH] in the state's dtype.
        out: the network's (conditional) output [B, n], in the physical order of the registers.
        uncond: its unconditional output, for guidance.
        z: standard normals [B, n] in place of Philox.
    """
    rows = registers.row.clone()  # a sample that advances must not be taken up again
    for index in sorted(set(rows.tolist())):
        line = table[index].tolist()
        if line[columns.HALT]:
            continue
        members = (rows == index).nonzero()[:, 0]
        _apply(registers, line, members, out, uncond, z)
        _advance(registers, table, index, members)


def _apply(r: Registers, line: list[float], b: Tensor, out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
    dtype, n = r.x.dtype, r.n
    e = out[b].to(dtype)
    if uncond is not None and line[columns.GUIDANCE] != 1:  # at scale 1 a sample owes nothing to the other half
        u = uncond[b].to(dtype)
        e = (e - u) * line[columns.GUIDANCE] + u
    bad = b[~e.isfinite().all(dim=1)]
    r.first_bad[bad] = r.first_bad[bad].minimum(r.row[bad])

    x, y = r.x[b, :n], r.y[b, :n]
    r.slots[int(line[columns.SLOT]), b, :n] = _store(line, y, e).to(r.slots.dtype)
    operands = [x, y, *(r.slots[k, b, :n] if k < len(r.slots) else x for k in range(MAX_SLOTS))]
    if line[columns.NOISE]:
        noise = normals(r.seeds[b], int(line[columns.NOISE]), n, r.channels) if z is None else z[b]
        operands.append(noise.to(dtype))
    if line[columns.WRITE_X]:
        r.x[b, :n] = _combine(line[columns.X :], operands)
    if line[columns.WRITE_Y]:
        r.y[b, :n] = _combine(line[columns.Y :], operands)


def _store(line: list[float], y: Tensor, e: Tensor) -> Tensor:
    value = e * line[columns.Q]
    if line[columns.P]:
        value = y * line[columns.P] + value
    value = value.clamp(-line[columns.CLAMP], line[columns.CLAMP]) * line[columns.Q2]
    return y * line[columns.P2] + value if line[columns.P2] else value


def _combine(coefficients: list[float], operands: list[Tensor]) -> Tensor:
    total = torch.zeros_like(operands[0])
    for c, operand in zip(coefficients, operands, strict=False):
        if c:  # an operand that is not used may hold anything
            total = total + operand.to(total.dtype) * c
    return total


def _advance(r: Registers, table: Tensor, index: int, b: Tensor) -> None:
    following = table[index + 1].tolist()
    r.row[b] = index + 1
    r.active.sub_(len(b) * int(following[columns.HALT]))
    copies = torch.cat([b + half * r.batch for half in range(r.halves)])
    r.t[copies] = torch.tensor(following[columns.T], dtype=torch.float64, device=b.device).to(r.t.dtype)
    if r.net_in is not None:
        scaled = r.y[b, : r.n] * following[columns.IN_SCALE]
        r.net_in[copies] = scaled.repeat(r.halves, 1).to(r.net_in.dtype)
