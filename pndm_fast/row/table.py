"""How a plan's rows stand in device memory: one line of numbers a row, then a halt row, then how it starts.

A line is `COEFFICIENTS` numbers and then the row's coefficients, each a matrix of components x components
numbers, row by row: components is 1, or 2 in phase space. `kernels/apply_row.py` takes its columns from here; those of
`csrc/row/row.h` are compared by `tests/test_csrc.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pndm_fast.plan.matrix2 import stacked
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import SAME_X, SAME_Y, WIDTH_FORM
from pndm_fast.row.noise import FIRST_ROW

HALT, T, SLOT, CLAMP, GUIDANCE, NOISE, WRITE_X, WRITE_Y = range(8)
COEFFICIENTS = 8
IN_SCALE, P, Q, P2, Q2, X = range(COEFFICIENTS, COEFFICIENTS + 6)
Y = X + WIDTH_FORM
P0, ENTRY_SIGMA, ENTRY_ALPHA, A0, C0 = range(COEFFICIENTS, COEFFICIENTS + 5)  # of the line of a plan's start
WIDTHS = {1: 32, 2: 128}  # one 128-byte line in float32, or four; what is not used is zero


def column(first: int, components: int) -> int:
    """Where a coefficient begins, given its column in a line of one component."""
    return COEFFICIENTS + (first - COEFFICIENTS) * components * components


def components_of(table: Tensor) -> int:
    """1, or 2 where a table's coefficients are 2x2 matrices."""
    return next(components for components, width in WIDTHS.items() if width == table.shape[1])


@dataclass(frozen=True)
class Table:
    """The lines of one or more plans, one after another, on the host.

    Attributes:
        data: float32 (float64 for exact runs) [rows, WIDTHS[components]].
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


def lines(plan: Plan, components: int = 1) -> np.ndarray:
    """The plan as float64 [nfe + 2, WIDTHS[components]].

    The halt row keeps the last time, for a network still called beside it.
    """
    out = np.zeros((plan.nfe + 2, WIDTHS[components]))
    matrices = out[:, COEFFICIENTS : COEFFICIENTS + (Y + WIDTH_FORM - COEFFICIENTS) * components * components].reshape(
        plan.nfe + 2, -1, components**2
    )
    for i, row in enumerate(plan.rows):
        line = out[i]
        line[[T, SLOT, CLAMP, GUIDANCE]] = row.t, row.slot, row.store.clamp, row.guidance
        line[NOISE] = i + FIRST_ROW if row.noisy else 0
        line[WRITE_X], line[WRITE_Y] = row.x != SAME_X, row.y != SAME_Y
        matrices[i] = stacked((row.in_scale, *row.store[:4], *row.x, *row.y), components).reshape(-1, components**2)
    out[-2, [HALT, T]] = 1.0, plan.rows[-1].t
    matrices[-2, 0] = matrices[-3, 0]
    out[-1, HALT] = 1.0
    (p0, a0, c0), entry = plan.prologue, plan.entry
    matrices[-1, :5] = stacked((p0, entry.sigma, entry.alpha, a0, c0), components).reshape(-1, components**2)
    return out


def build(plans: Sequence[Plan], dtype: torch.dtype) -> Table:
    """The plans' lines in the order given."""
    components = max(plan.components for plan in plans)
    parts = [lines(plan, components) for plan in plans]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    first = tuple([end - len(part) for end, part in zip(ends, parts, strict=True)])
    data = torch.as_tensor(np.concatenate(parts), dtype=dtype, device="cpu")
    return Table(
        data, ends[-1], WIDTHS[components], first, tuple([end - 1 for end in ends]), max(plan.n_slots for plan in plans)
    )
