"""A plan in other coordinates of its state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pndm_fast.plan.levels import AnyLevel, Level
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import Row


def unscaled(plan: Plan) -> Plan:
    """The same plan on x / alpha = x_0 + (sigma/alpha) eps, which the network sees times alpha.

    With X = x / alpha_x and Y = y / alpha_y a row y_s <- a x + b y + c . slots + d z is
    Y_s <- (alpha_x a X + alpha_y b Y + c . slots + d z) / alpha_s, and a slot takes alpha_y Y for y.

    Raises:
        ValueError: alpha = 0 at a level, or the plan is of position and momentum.
    """
    if plan.components > 1 or any(_alpha(level) == 0 for row in plan for level in row.levels):
        raise ValueError(f"plan must be of numbers, with alpha > 0 throughout, got {plan.solver}")
    rows, anchor = [], plan.start
    for row in plan:
        rows.append(_unscaled(row, anchor))
        anchor = row.levels.x
    p0, a0, c0 = np.array(plan.prologue) / [_alpha(plan.start), 1.0, _alpha(plan.start)]
    return replace(plan, rows=tuple(rows), prologue=type(plan.prologue)(float(p0), float(a0), float(c0)))


def _alpha(level: AnyLevel) -> float:
    return level.position.alpha


def _unscaled(row: Row, anchor: AnyLevel) -> Row:
    here, x, y = (_alpha(level) for level in row.levels)
    scales = np.array([_alpha(anchor), here, *[1.0] * (len(row.y) - 2)])
    (p, q, p2, q2, clamp), levels = row.store, [level.position for level in row.levels]
    return replace(
        row,
        x=tuple((np.array(row.x) * scales / x).tolist()),
        y=tuple((np.array(row.y) * scales / y).tolist()),
        store=type(row.store)(p * here, q, p2 * here, q2, clamp),  # type: ignore[operator]
        preview=(row.preview[0] * here, row.preview[1]),  # type: ignore[operator]
        in_scale=row.in_scale * here,  # type: ignore[operator]
        levels=type(row.levels)(*[Level(1.0, sigma / alpha) for alpha, sigma in levels]),
    )
