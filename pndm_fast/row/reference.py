"""`apply_row` in plain torch, any float dtype: the oracle that the C++ and Triton versions must equal.

Every operation is one IEEE operation in the order written here and none is fused, so float32 results are the
same bits in all three.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pndm_fast.row import table as columns
from pndm_fast.row.noise import INITIAL, PROLOGUE, normals
from pndm_fast.row.registers import Registers


def apply_row(
    registers: Registers, table: Tensor, out: Tensor, uncond: Tensor | None = None, z: Tensor | None = None
) -> None:
    """Execute each sample's row of the table in place; `pndm_fast.plan.row.Row` says what a row is.

    Samples at a halt row are left alone. The others store their slot, update x and y, advance `row`, and get the next
    network input in_scale y and time; `active` falls by one for each sample whose next row halts.

    Args:
        registers: the trajectory's memory, changed in place.
        table: [rows, width] in the state's dtype, in one of `table.LAYOUTS`; at 2 components a sample's n elements
            are position, then momentum.
        out: the network's (conditional) output [B, n], in the physical order of the registers.
        uncond: its unconditional output, for guidance; rows that keep it in a second slot need it.
        z: standard normals [B, n] in place of Philox.
    """
    rows = registers.row.clone()  # a sample that advances must not be taken up again
    for index in sorted(set(rows.tolist())):
        line = table[index].tolist()
        if line[columns.HALT]:
            continue
        members = (rows == index).nonzero()[:, 0]
        _apply(registers, _Line(line, columns.layout_of(table)), members, out, uncond, z)
        _advance(registers, table, index, members)


class Sources(NamedTuple):
    """What samples start from where that is not the seeds: tensors [B, n] in the state's dtype and physical order.

    Attributes:
        noise: in place of the seeds' initial normals.
        state: in place of that noise at its level.
        image: data, noised to the plan's first level.
        z: in place of the prologue's own normals.
    """

    noise: Tensor | None = None
    state: Tensor | None = None
    image: Tensor | None = None
    z: Tensor | None = None


SEEDS_ALONE = Sources()


def begin(registers: Registers, table: Tensor, lines: Tensor, sources: Sources) -> None:
    """Write x, y and the network's first input: x = y = a0 (p0 noise) + c0 z, see `pndm_fast.plan.row.Prologue`.

    With an image alpha image + sigma noise of `Plan.entry` stands for p0 noise. The input is scaled for each sample's
    next row.

    Args:
        registers: with seeds and rows.
        lines: int32 [B], the table's line of each sample's start.
    """
    r = registers
    pairs = list(zip(lines.tolist(), r.row.tolist(), strict=True))
    for at, row in sorted(set(pairs)):
        b = torch.tensor([k for k, pair in enumerate(pairs) if pair == (at, row)], device=r.y.device)
        line, following = (_Line(table[k].tolist(), columns.layout_of(table)) for k in (at, row))
        r.x[b, : r.n] = r.y[b, : r.n] = _start(r, line, b, sources)
        _feed(r, following, b)


def _start(r: Registers, line: _Line, b: Tensor, sources: Sources) -> Tensor:
    def normal(given: Tensor | None, index: int) -> Tensor:
        drawn = normals(r.seeds[b], index, r.n, r.channels) if given is None else given[b]
        return drawn.to(r.y.dtype)

    if sources.state is not None:
        y = sources.state[b]
    else:
        level = columns.P0 if sources.image is None else columns.ENTRY_SIGMA
        y = _scaled(normal(sources.noise, INITIAL), line.at(level))
    if sources.image is not None:
        y = _added(y, sources.image[b], line.at(columns.ENTRY_ALPHA))
    y = _scaled(y, line.at(columns.A0))
    c0 = line.at(columns.C0)
    return _added(y, normal(sources.z, PROLOGUE), c0) if any(map(any, c0)) else y


class _Line:
    """A row's coefficients: at(first)[i][j] is what component i of the result takes of component j of an operand."""

    def __init__(self, numbers: list[float], layout: columns.Layout) -> None:
        self.numbers, self.layout, self.components = numbers, layout, layout.components

    def __getitem__(self, column: int) -> float:
        return self.numbers[column]

    def at(self, first: int) -> list[list[float]]:
        begin, k = self.layout.column(first), self.components
        return [self.numbers[begin + i * k : begin + (i + 1) * k] for i in range(k)]


def _apply(r: Registers, line: _Line, b: Tensor, out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
    dtype, n = r.x.dtype, r.n
    e, x, y = out[b].to(dtype), r.x[b, :n], r.y[b, :n]
    second = int(line[line.layout.second]) if line.layout.second else 0
    finite = e.isfinite().all(dim=1)
    if second and uncond is None:
        raise ValueError("apply_row: uncond must be given for a row that keeps it, got None")
    if uncond is not None and (line[columns.GUIDANCE] != 1 or second):  # else a sample owes nothing to `uncond`
        u = uncond[b].to(dtype)
        e = e if line[columns.GUIDANCE] == 1 else (e - u) * line[columns.GUIDANCE] + u
        finite = e.isfinite().all(dim=1)
        if second:
            finite = finite & u.isfinite().all(dim=1)
            r.slots[second - 1, b, :n] = _store(line, y, u).to(r.slots.dtype)
    bad = b[~finite]
    r.first_bad[bad] = r.first_bad[bad].minimum(r.row[bad])

    r.slots[int(line[columns.SLOT]), b, :n] = _store(line, y, e).to(r.slots.dtype)
    operands = [x, y, *(r.slots[k, b, :n] if k < len(r.slots) else x for k in range(line.layout.slots))]
    if line[columns.NOISE]:
        noise = normals(r.seeds[b], int(line[columns.NOISE]), n, r.channels) if z is None else z[b]
        operands.append(noise.to(dtype))
    if line[columns.WRITE_X]:
        r.x[b, :n] = _combine(line, columns.X, operands)
    if line[columns.WRITE_Y]:
        r.y[b, :n] = _combine(line, line.layout.y, operands)


def _store(line: _Line, y: Tensor, e: Tensor) -> Tensor:
    value = _added(_scaled(e, line.at(columns.Q)), y, line.at(columns.P))
    value = _scaled(value.clamp(-line[columns.CLAMP], line[columns.CLAMP]), line.at(columns.Q2))
    return _added(value, y, line.at(columns.P2))


def _scaled(values: Tensor, matrix: list[list[float]]) -> Tensor:
    """matrix values: of each component its own first, then what it takes of the other."""
    operand = values.chunk(len(matrix), dim=1)
    result = [component * matrix[i][i] for i, component in enumerate(operand)]
    return torch.cat([_with_others(component, i, operand, matrix) for i, component in enumerate(result)], dim=1)


def _added(total: Tensor, values: Tensor, matrix: list[list[float]]) -> Tensor:
    """total + matrix values, in the same order."""
    operand, result = values.chunk(len(matrix), dim=1), []
    for i, component in enumerate(total.chunk(len(matrix), dim=1)):
        own = operand[i] * matrix[i][i] + component if matrix[i][i] else component
        result.append(_with_others(own, i, operand, matrix))
    return torch.cat(result, dim=1)


def _with_others(total: Tensor, i: int, operand: tuple[Tensor, ...], matrix: list[list[float]]) -> Tensor:
    for j, component in enumerate(operand):
        if j != i and matrix[i][j]:
            total = component * matrix[i][j] + total
    return total


def _combine(line: _Line, first: int, operands: list[Tensor]) -> Tensor:
    forms = [line.at(first + k) for k in range(len(operands))]
    split = [operand.chunk(line.components, dim=1) for operand in operands]
    totals = []
    for i in range(line.components):
        total = torch.zeros_like(split[0][0])
        for form, operand in zip(forms, split, strict=True):
            for c, component in zip(form[i], operand, strict=True):
                if c:  # an operand that is not used may hold anything
                    total = total + component.to(total.dtype) * c
        totals.append(total)
    return torch.cat(totals, dim=1)


def _advance(r: Registers, table: Tensor, index: int, b: Tensor) -> None:
    following = _Line(table[index + 1].tolist(), columns.layout_of(table))
    r.row[b] = index + 1
    r.active.sub_(len(b) * int(following[columns.HALT]))
    r.t[_copies(r, b)] = torch.tensor(following[columns.T], dtype=torch.float64, device=b.device).to(r.t.dtype)
    _feed(r, following, b)


def _feed(r: Registers, line: _Line, b: Tensor) -> None:
    """The network's input for that line."""
    if r.net_in is not None:
        scaled = _scaled(r.y[b, : r.n], line.at(columns.IN_SCALE))
        r.net_in[_copies(r, b)] = scaled.repeat(r.cfg_copies, 1).to(r.net_in.dtype)


def _copies(r: Registers, b: Tensor) -> Tensor:
    return torch.cat([b + copy * r.batch for copy in range(r.cfg_copies)])
