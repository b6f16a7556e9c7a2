"""The rivals of a fitted plan: named solvers, their options and grids, and which of them is best on a few pairs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from pndm_fast.loop.checks import FEW_ALPHA
from pndm_fast.plan.agree import departure
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.warn import Notice
from pndm_fast.solvers.auto import AUTO
from pndm_fast.solvers.make import make_plan
from pndm_fast.tuning.table import table_of

SOLVERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ddim", {}),
    ("deis", {"order": 2}),
    ("deis", {"order": 3}),
    ("dpmpp-2m", {}),
    ("dpmpp-3m", {}),
    ("gradient-estimation", {}),
    ("ipndm", {"order": 2}),
    ("ipndm", {}),
    ("lms", {"order": 3}),
    ("sa-solver", {"tau": 0.0}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("unipc", {"order": 3, "variant": "bh1"}),
)
SPACINGS = ("leading", "trailing", "beta", "logsnr", "karras", "ays-sd1")
LAST = 0.05  # sigma / alpha of the last call, besides the schedule's own end: what few calls on a noise grid want
FIRST, MOST = (2, 4), 64  # pairs that all rivals are run on, of few and of many, and the last of them at most
FINAL = 4  # rivals that are run on all of these pairs

Error = Callable[[Plan, range], float]  # of a plan's samples on these pairs


def finalists(schedule: Schedule, prediction: str, nfe: int) -> dict[str, Plan]:
    """Every plan of that many calls that a solver gives on a grid, by what makes it; those that no grid allows are not.

    They are tables without noise whose times decrease, one call a step. Grids that begin where much of the data is
    left, of which a sampler warns, are none.
    """
    found = _made(schedule, prediction, nfe, AUTO, {})
    for (solver, options), spacing in product(SOLVERS, SPACINGS):
        found |= _made(schedule, prediction, nfe, solver, {**options, "spacing": spacing})
        if spacing in ("logsnr", "karras") and schedule.alpha(schedule.last) > 0:
            last = _time(schedule)
            found |= _made(schedule, prediction, nfe, solver, {**options, "spacing": spacing, "t_min": last})
    return found


def _time(schedule: Schedule) -> float:
    return round(max(float(schedule.time_at(-math.log(LAST))), schedule.floor), 6)


def _made(schedule: Schedule, prediction: str, nfe: int, solver: str, options: dict[str, Any]) -> dict[str, Plan]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # of plans that diverge: they lose here
            plan = make_plan(solver, schedule, nfe=nfe, prediction=prediction, **options)
    except ValueError:  # no such grid on this schedule, or fewer steps than the solver needs
        return {}
    start = plan.start.position
    if start.alpha > FEW_ALPHA * math.hypot(*start):
        return {}
    words = " ".join([plan.solver if solver == AUTO else solver, *[f"{k}={v}" for k, v in options.items()]])
    return {f"auto: {words}" if solver == AUTO else words: plan}


def rounds(plans: int, pairs: int) -> list[tuple[int, range]]:
    """How many plans are run on which pairs, round by round: a quarter as many on four times the pairs, down to one.

    Successive halving, by quarters (Jamieson & Talwalkar 2016, arXiv:1502.07943). No plan is run twice on a pair: 105
    plans are 604 samples with up to 512 pairs, and 1080 with 1024 or more.
    """
    last = min(MOST, pairs)
    found, start, stop = [], 0, min(max(FIRST[0], min(FIRST[1], pairs // 256)), last)
    while plans > 1 and start < last:
        few = plans <= FINAL  # the last ones are told apart by all that there are
        stop = last if few else stop
        found.append((plans, range(start, stop)))
        plans, start, stop = (1 if few else -(-plans // 4)), stop, min(4 * stop, last)
    return found


def best(plans: dict[str, Plan], error: Error, pairs: int) -> tuple[str, Plan]:
    """The name and the plan of the lowest mean error over the first training pairs, by `rounds`.

    Args:
        error: the sum over pairs.
    """
    sums = dict.fromkeys(plans, 0.0)
    left = list(plans)
    for count, part in rounds(len(plans), pairs):
        left = left[:count]
        for name in left:
            sums[name] += _finite(error(plans[name], part))
        left.sort(key=lambda name: sums[name])
    return left[0], plans[left[0]]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def check_process(what: str, plan: Plan, schedule: Schedule, prediction: str) -> None:
    """Refuse a plan that is for another prediction or schedule than the fit.

    Raises:
        ValueError: naming the argument that the plan came as.
    """
    if plan.prediction != prediction:
        raise ValueError(f"{what} must be for prediction {prediction!r}, got {plan.prediction!r}")
    away = departure(plan, schedule)
    if away is not None:
        raise ValueError(f"{what} must be on the fit's schedule, {schedule.name}, got {away}")


def given(plans: Sequence[Plan], schedule: Schedule, prediction: str, nfe: int) -> dict[str, Plan]:
    """Rivals of the caller's, by what they are.

    Raises:
        ValueError: one makes another number of calls, is for another prediction or schedule, or is no table whose
            times decrease.
    """
    for plan in plans:
        if plan.nfe != nfe:
            raise ValueError(f"rivals must be plans of {nfe} calls, got one of {plan.nfe}")
        check_process("rivals", plan, schedule, prediction)
        times = table_of(plan, schedule).times
        if not (times[1:] < times[:-1]).all():
            raise ValueError(f"rivals must make one call a step, at decreasing times, got {plan.solver}")
    return {f"rival {i}: {plan.solver}": replace(plan, fitted=None) for i, plan in enumerate(plans)}
