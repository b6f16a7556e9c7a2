"""Whether a schedule, or a plan, gives a network what it was trained on: at each time the same data and noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pndm_fast.plan import matrix2
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.schedule import Schedule

Array = NDArray[np.float64]

NEAR = 0.02  # of a schedule's span: told times may be rounded, or fitted (LD3, arXiv:2405.15506)
_SLACK = 0.1  # of what the entries change by within NEAR: in phase space they need not be monotone there
_TIMES = 65


def same_levels(schedule: Schedule | PSLD, own: Schedule | PSLD) -> bool:
    """Whether both have the same levels at the times that both have; their names, grids and lengths may differ."""
    if schedule is own or isinstance(schedule, PSLD) != isinstance(own, PSLD):
        return schedule is own
    scale, own_scale = (float(getattr(one, "time_scale", 1.0)) for one in (schedule, own))
    first, last = max(schedule.first, own.first), min(schedule.last * scale, own.last * own_scale)
    told = np.linspace(first, last, _TIMES)
    low, high = _around(own, False, told / own_scale)
    return bool(_inside(_seen(schedule, False, told / scale), low, high).all())


def departure(plan: Plan, own: Schedule | PSLD) -> str | None:
    """What the first row that is not on the network's own schedule does, None where all are.

    The network sees in_scale (alpha x_0 + sigma eps), in phase space with matrices: that must be what the schedule has
    at the time told, or, of numbers, between the times of the rows before and after. (Inversion, and some of
    diffusers' grids, tell the time of a neighbor.)
    """
    if (plan.components > 1) != isinstance(own, PSLD):
        return f"a plan whose states have {'two parts' if plan.components > 1 else 'one part'}"
    edm = plan.prediction == "edm"
    if edm and isinstance(own, Schedule) and own.scale != "sigma":
        return "a plan for EDM's raw network, which is told log(sigma) / 4"
    told = np.array(plan.times)
    times = np.exp(4 * told) if edm else told / getattr(own, "time_scale", 1.0)
    low, high = _around(own, edm, times)
    if plan.components == 1:
        start = [own.first if times[-1] > times[0] else times[0]]
        before = _around(own, edm, np.concatenate([start, times[:-1]]))
        after = _around(own, edm, np.concatenate([times[1:], times[-1:]]))
        low, high = np.min([low, before[0], after[0]], 0), np.max([high, before[1], after[1]], 0)
    shown = np.array([[matrix2.product(row.in_scale, part) for part in row.levels.call] for row in plan.rows])
    off = np.flatnonzero(~_inside(shown, low, high))
    if not off.size:
        return None
    alpha, sigma = plan.rows[off[0]].levels.call.position
    return f"a plan whose row {off[0]} tells it t = {told[off[0]]:.6g} at alpha = {alpha:.4g}, sigma = {sigma:.4g}"


def _around(schedule: Schedule | PSLD, edm: bool, times: Array) -> tuple[Array, Array]:
    """The least and the most of each entry a little before, at, and a little after each time."""
    unbounded = isinstance(schedule, Schedule) and schedule.scale == "sigma"
    width: Any = NEAR * (np.abs(times) if unbounded else schedule.last - schedule.first)
    last = np.inf if unbounded else schedule.last
    seen = [_seen(schedule, edm, np.clip(times + d * width, schedule.first, last)) for d in (-1, 0, 1)]
    return np.min(seen, 0), np.max(seen, 0)


def _inside(shown: Array, low: Array, high: Array) -> Any:
    """Whether all entries of each time are, [n]."""
    slack = _SLACK * (high - low) + 1e-6
    return ((shown >= low - slack) & (shown <= high + slack)).reshape(len(shown), -1).all(1)


def _seen(schedule: Schedule | PSLD, edm: bool, times: Array) -> Array:
    """What the network sees of x_0 and of eps: [n, 2], in phase space [n, 2, 2, 2]."""
    if isinstance(schedule, PSLD):
        both = np.stack([schedule.transition(times), schedule.cholesky(times)], 1)
        network = schedule.preconditioning
        return both if network is None else np.asarray(network.into(times))[:, None] @ both
    both = np.stack([schedule.alpha(times), schedule.sigma(times)], 1)
    return both / np.hypot(both[:, 1:], schedule.sigma_data) if edm else both
