"""How a plan's rows stand in device memory: one line of numbers a row, then a halt row, then how it starts.

A line is `COEFFICIENTS` numbers and then the row's coefficients, each a matrix of components x components
numbers, row by row: components is 1, or 2 in phase space. Plans of few slots have short lines (`LAYOUTS`). The Triton
kernels take columns from here; those of `csrc/row/row.h` are compared by `tests/test_csrc.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pndm_fast.plan.matrix2 import Coefficient, stacked
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import MAX_SLOTS, PHASE_SLOTS, SAME_X, SAME_Y
from pndm_fast.row.noise import FIRST_ROW

HALT, T, SLOT, CLAMP, GUIDANCE, NOISE, WRITE_X, WRITE_Y = range(8)
COEFFICIENTS = 8
IN_SCALE, P, Q, P2, Q2, X = range(COEFFICIENTS, COEFFICIENTS + 6)
P0, ENTRY_SIGMA, ENTRY_ALPHA, A0, C0 = range(COEFFICIENTS, COEFFICIENTS + 5)  # of the line of a plan's start


@dataclass(frozen=True)
class Layout:
    """What stands where in the lines of a table. Columns are those of a line of one component, see `column`.

    Attributes:
        width: numbers of a line; whole 128-byte lines in float32, and what is not used is zero.
        components: of a sample.
        slots: that there are coefficients for.
        second: the column that holds 1 + the slot of the unconditional output, 0 for none; None where none is kept.
    """

    width: int
    components: int
    slots: int
    second: int | None = None

    @property
    def operands(self) -> int:
        """Of X and of Y: x, y, the slots and z."""
        return 3 + self.slots

    @property
    def y(self) -> int:
        """Where Y begins."""
        return X + self.operands

    @property
    def end(self) -> int:
        """Behind Y."""
        return self.y + self.operands

    def holds(self, plan: Plan) -> bool:
        """Whether its lines have room for all of a plan's rows."""
        fits = plan.components <= self.components and plan.n_slots <= self.slots
        return fits and (self.second is not None or not plan.keeps_uncond)

    def column(self, first: int) -> int:
        """Where a coefficient, a matrix of components x components numbers, begins."""
        return COEFFICIENTS + (first - COEFFICIENTS) * self.components**2


NARROW, WIDE, PHASE = Layout(32, 1, PHASE_SLOTS), Layout(64, 1, MAX_SLOTS, second=63), Layout(128, 2, PHASE_SLOTS)
LAYOUTS = {layout.width: layout for layout in (NARROW, WIDE, PHASE)}


def layout_of(table: Tensor) -> Layout:
    """Of a table [rows, width]."""
    return LAYOUTS[table.shape[1]]


def layout_for(plans: Sequence[Plan]) -> Layout:
    """The narrowest that holds all of these plans' rows.

    Raises:
        ValueError: none does.
    """
    for layout in LAYOUTS.values():
        if all(layout.holds(plan) for plan in plans):
            return layout
    raise ValueError(
        f"plans of one batch with a phase-space one must have at most {PHASE.slots} slots and keep no unconditional "
        f"output, got {', '.join(sorted({plan.solver for plan in plans}))}"
    )


@dataclass(frozen=True)
class Table:
    """The lines of one or more plans, one after another, on the host.

    Attributes:
        data: float32 (float64 for exact runs) [rows, width] in one of `LAYOUTS`.
        rows: lines in all; width: numbers of a line.
        first: for each plan, the index of its first row; start: of the line that says how it starts.
        slots: registers for past outputs that the rows need.
    """

    data: Tensor
    rows: int
    width: int
    first: tuple[int, ...]
    start: tuple[int, ...]
    slots: int

    @property
    def flat(self) -> np.ndarray:
        """All lines' numbers, one after another."""
        flat: np.ndarray = self.data.numpy().reshape(-1)
        return flat


def lines(plan: Plan, layout: Layout = NARROW) -> np.ndarray:
    """The plan as float64 [nfe + 2, layout.width].

    The halt row keeps the last time, for a network still called beside it.

    Raises:
        ValueError: the layout has no room for it.
    """
    if not layout.holds(plan):
        raise ValueError(f"layout must hold {plan.solver}'s rows, got one of {layout.slots} slots")
    out, k = np.zeros((plan.nfe + 2, layout.width)), layout.components
    matrices = out[:, COEFFICIENTS : layout.column(layout.end)].reshape(plan.nfe + 2, -1, k * k)

    def form(coefficients: Sequence[Coefficient]) -> Sequence[Coefficient]:
        return [*coefficients[: 2 + layout.slots], coefficients[-1]]

    for i, row in enumerate(plan.rows):
        line = out[i]
        line[[T, SLOT, CLAMP, GUIDANCE]] = row.t, row.slot, row.store.clamp, row.guidance
        line[NOISE] = i + FIRST_ROW if row.noisy else 0
        line[WRITE_X], line[WRITE_Y] = row.x != SAME_X, row.y != SAME_Y
        matrices[i] = stacked((row.in_scale, *row.store[:4], *form(row.x), *form(row.y)), k).reshape(-1, k * k)
        if row.second is not None and layout.second is not None:
            line[layout.second] = 1 + row.second
    out[-2, [HALT, T]] = 1.0, plan.rows[-1].t
    matrices[-2, 0] = matrices[-3, 0]
    out[-1, HALT] = 1.0
    (p0, a0, c0), entry = plan.prologue, plan.entry
    matrices[-1, :5] = stacked((p0, entry.sigma, entry.alpha, a0, c0), k).reshape(-1, k * k)
    return out


def build(plans: Sequence[Plan], dtype: torch.dtype) -> Table:
    """The plans' lines in the order given."""
    layout = layout_for(plans)
    parts = [lines(plan, layout) for plan in plans]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    first = tuple([end - len(part) for end, part in zip(ends, parts, strict=True)])
    data = torch.as_tensor(np.concatenate(parts), dtype=dtype, device="cpu")
    start = tuple([end - 1 for end in ends])
    return Table(data, ends[-1], layout.width, first, start, max(plan.n_slots for plan in plans))
