"""How a plan's rows stand in device memory: one line of numbers a row, a halt row last.

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
from pndm_fast.row.device import upload
from pndm_fast.row.noise import FIRST_ROW

HALT, T, SLOT, CLAMP, GUIDANCE, NOISE, WRITE_X, WRITE_Y = range(8)
COEFFICIENTS = 8
IN_SCALE, P, Q, P2, Q2, X = range(COEFFICIENTS, COEFFICIENTS + 6)
Y = X + WIDTH_FORM
WIDTHS = {1: 32, 2: 128}  # one 128-byte line in float32, or four; what is not used is zero


def column(first: int, components: int) -> int:
    """Where a coefficient begins, given its column in a line of one component."""
    return COEFFICIENTS + (first - COEFFICIENTS) * components * components


def components_of(table: Tensor) -> int:
    """1, or 2 where a table's coefficients are 2x2 matrices."""
    return next(components for components, width in WIDTHS.items() if width == table.shape[1])


@dataclass(frozen=True)
class Table:
    """The rows of one or more plans, one after another, each ending in its halt row.

    Attributes:
        data: float32 (float64 for exact runs) [rows, WIDTHS[components]].
        start: for each plan, the index of its first row.
        slots: registers for past outputs that the rows need.
    """

    data: Tensor
    start: tuple[int, ...]
    slots: int


def lines(plan: Plan, components: int = 1) -> np.ndarray:
    """The plan as float64 [nfe + 1, WIDTHS[components]].

    The halt row keeps the last time, for a network still called beside it.
    """
    out = np.zeros((plan.nfe + 1, WIDTHS[components]))
    matrices = out[:, COEFFICIENTS : COEFFICIENTS + (Y + WIDTH_FORM - COEFFICIENTS) * components * components].reshape(
        plan.nfe + 1, -1, components**2
    )
    for i, row in enumerate(plan.rows):
        line = out[i]
        line[[T, SLOT, CLAMP, GUIDANCE]] = row.t, row.slot, row.store.clamp, row.guidance
        line[NOISE] = i + FIRST_ROW if row.noisy else 0
        line[WRITE_X], line[WRITE_Y] = row.x != SAME_X, row.y != SAME_Y
        matrices[i] = stacked((row.in_scale, *row.store[:4], *row.x, *row.y), components).reshape(-1, components**2)
    out[-1, [HALT, T]] = 1.0, plan.rows[-1].t
    matrices[-1, 0] = matrices[-2, 0]
    return out


def build(plans: Sequence[Plan], dtype: torch.dtype, device: torch.device) -> Table:
    """Put the plans' rows into device memory, in the order given."""
    components = max(plan.components for plan in plans)
    parts = [lines(plan, components) for plan in plans]
    start = np.cumsum([0, *(len(part) for part in parts[:-1])])
    data = upload(np.concatenate(parts), device, dtype)
    return Table(data, tuple(int(s) for s in start), max(plan.n_slots for plan in plans))
