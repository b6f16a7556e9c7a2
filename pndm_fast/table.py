"""How a plan's rows stand in device memory: one line of `WIDTH` numbers a row, a halt row last.

`kernels/apply_row.py` takes its columns from here; those of `csrc/row.h` are compared by `tests/test_csrc.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pndm_fast.cuda import upload
from pndm_fast.noise import FIRST_ROW
from pndm_fast.plan import ANCHOR, STATE, WIDTH_FORM, Plan

HALT, T, IN_SCALE, SLOT, P, Q, P2, Q2, CLAMP, GUIDANCE, NOISE, WRITE_X, WRITE_Y = range(13)
X = 13
Y = X + WIDTH_FORM
WIDTH = 32  # one 128-byte line in float32; the last number is spare


@dataclass(frozen=True)
class Table:
    """The rows of one or more plans, one after another, each ending in its halt row.

    Attributes:
        data: float32 (float64 for exact runs) [rows, WIDTH].
        start: for each plan, the index of its first row.
        slots: registers for past outputs that the rows need.
    """

    data: Tensor
    start: tuple[int, ...]
    slots: int


def lines(plan: Plan) -> np.ndarray:
    """The plan as float64 [nfe + 1, WIDTH]; the halt row keeps the last time, for a network still called beside it."""
    out = np.zeros((plan.nfe + 1, WIDTH))
    for i, row in enumerate(plan.rows):
        line = out[i]
        line[[T, IN_SCALE, SLOT, GUIDANCE]] = row.t, row.in_scale, row.slot, row.guidance
        line[[P, Q, P2, Q2, CLAMP]] = row.store
        line[NOISE] = i + FIRST_ROW if row.noisy else 0
        line[WRITE_X], line[WRITE_Y] = row.x != tuple(ANCHOR), row.y != tuple(STATE)
        line[X : X + WIDTH_FORM], line[Y : Y + WIDTH_FORM] = row.x, row.y
    out[-1, [HALT, T, IN_SCALE]] = 1.0, plan.rows[-1].t, plan.rows[-1].in_scale
    return out


def build(plans: Sequence[Plan], dtype: torch.dtype, device: torch.device) -> Table:
    """Put the plans' rows into device memory, in the order given."""
    blocks = [lines(plan) for plan in plans]
    start = np.cumsum([0, *(len(block) for block in blocks[:-1])])
    data = upload(np.concatenate(blocks), device, dtype)
    return Table(data, tuple(int(s) for s in start), max(plan.n_slots for plan in plans))
