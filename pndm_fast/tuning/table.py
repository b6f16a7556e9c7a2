"""A plan without its old states: every state a combination of the start and of the estimates of x_0 so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pndm_fast.plan.coefficients import level, network_input, to_store
from pndm_fast.plan.levels import Level, Levels
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, SAME_X, SLOT, Form, Prologue, Row
from pndm_fast.plan.schedule import Schedule

Array = NDArray[np.float64]
SOLVER = "tuned"


@dataclass(frozen=True, eq=False)
class Table:
    """y_n = a[n] x + sum_{j < n} b[n, j] D_j, with x = p0 noise and D_j the estimate of x_0 at y_j.

    Every linear multistep plan is one. With coefficients of its own for each step it is a bespoke non-stationary solver
    (Shaul et al. 2024, arXiv:2403.01329).

    Attributes:
        times: where the states stand on the schedule, [N]; told: what the network is told there.
        a: [N + 1], a[0] = 1; b: [N + 1, N], whose row 0 is 0.
    """

    times: Array
    told: Array
    p0: float
    a: Array
    b: Array

    @property
    def nfe(self) -> int:
        """N."""
        return len(self.times)


def table_of(plan: Plan, schedule: Schedule) -> Table:
    """The table of a plan, its registers eliminated exactly.

    Slots hold s y + r D whatever they are kept as, for out = (D - P y) / Q where D = P y + Q out.

    Raises:
        ValueError: the plan draws noise, clips, or keeps more than one output a row.
    """
    if plan.components > 1 or any(plan.noisy) or plan.keeps_uncond or plan.prologue.c0 != 0 or _clips(plan):
        raise ValueError(f"a plan to start from must be without noise and clipping, got {plan.solver}")
    n = plan.nfe
    basis = np.eye(1 + n)
    x = y = basis[0]
    slots: dict[int, Array] = {}
    states = [y]
    for i, row in enumerate(plan):
        big_p, big_q, *_ = map(_number, to_store("x0", plan.prediction, row.levels.call.position, schedule.sigma_data))
        p, q, p2, q2, _ = map(_number, row.store)
        share = q2 * q / big_q
        slots[row.slot] = (p2 + q2 * p - share * big_p) * y + share * basis[1 + i]
        operands = [x, y, *[slots.get(k, np.zeros(1 + n)) for k in range(len(row.x) - 3)]]
        x, y = (sum(_number(c) * o for c, o in zip(form, operands, strict=False)) for form in (row.x, row.y))
        states.append(np.asarray(y))
    both = np.stack(states)
    return Table(_times(plan, schedule), np.array(plan.times), _number(plan.prologue.p0) * _number(plan.prologue.a0),
                 both[:, 0], both[:, 1:])  # fmt: skip


def _clips(plan: Plan) -> bool:
    return any(row.store.clamp < math.inf for row in plan)


def _number(coefficient: object) -> float:
    assert isinstance(coefficient, (int, float))
    return float(coefficient)


def _times(plan: Plan, schedule: Schedule) -> Array:
    """Where the calls stand, which may be elsewhere than what the network is told."""
    found = []
    for row in plan:
        here = row.levels.call.position
        same = plan.prediction != "edm" and schedule.first <= row.t <= schedule.last and level(schedule, row.t) == here
        lam = math.log(here.alpha / here.sigma) if here.alpha > 0 else -math.inf
        found.append(row.t if same else float(schedule.time_at(lam)))
    return np.array(found)


def plan_of(table: Table, schedule: Schedule, prediction: str) -> Plan:
    """The table as rows: x is never rewritten, slot j holds D_j, and row n's y is y_{n + 1}."""
    levels = [level(schedule, float(t)) for t in table.times]
    end = level(schedule, schedule.first)
    rows = []
    for n, at in enumerate(levels):
        y: Form = table.a[n + 1] * ANCHOR
        for j in range(n + 1):
            y = y + table.b[n + 1, j] * SLOT[j]
        after = end if n + 1 == table.nfe else levels[n + 1]
        rows.append(_row(table, n, y, Levels(at, levels[0], after), prediction, schedule))
    return Plan(tuple(rows), SOLVER, table.nfe, prediction, Prologue(p0=table.p0))


def _row(table: Table, n: int, y: Form, levels: Levels, prediction: str, schedule: Schedule) -> Row:
    at = levels.call
    assert isinstance(at, Level)
    return Row(
        t=float(table.told[n]),
        slot=n,
        x=SAME_X,
        y=tuple(y.tolist()),
        levels=levels,
        store=to_store("x0", prediction, at, schedule.sigma_data),
        preview=(0.0, 1.0),
        in_scale=network_input(prediction, float(table.times[n]), at, schedule.sigma_data)[1],
    )


def with_last_row(table: Table, weights: Array) -> Table:
    """The same but for its last state, to which `weights` [1 + N] on x and the estimates are added."""
    a, b = table.a.copy(), table.b.copy()
    a[-1] += weights[0]
    b[-1] += weights[1:]
    return replace(table, a=a, b=b)
