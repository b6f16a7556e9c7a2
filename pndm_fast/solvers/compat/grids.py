"""diffusers' grids: the time that the network is told and the sigma / alpha that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pndm_fast.plan.checks import choose
from pndm_fast.plan.curves import Array
from pndm_fast.plan.grids import KARRAS_RHO, beta_quantiles
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import Schedule

SPACINGS = ("leading", "linspace", "trailing")
LEAST_ALPHA_BAR = 2.0**-24  # diffusers' stand-in for alpha = 0


class Grid(NamedTuple):
    """The network's n times, n + 1 values of sigma / alpha, and the network's times at midpoints in lam."""

    model_time: Array
    rho: Array
    middles: Array


def training_rho(schedule: Schedule) -> Array:
    """sigma / alpha at the training times."""
    bar = np.maximum(schedule.alpha(np.arange(schedule.last + 1)) ** 2, LEAST_ALPHA_BAR)
    return np.asarray(np.sqrt((1 - bar) / bar))


def check_steps(schedule: Schedule, steps: Any) -> int:
    """A number of steps that the schedule's training times allow.

    Raises:
        ValueError: it has none, or fewer.
    """
    if not schedule.discrete:
        raise ValueError(f"compat='diffusers' must have a discrete schedule, got {schedule.name}")
    length = int(schedule.last) + 1
    if not is_integer(steps) or not 1 <= steps <= length:
        raise ValueError(f"steps must be an integer in [1, {length}] for compat='diffusers', got {steps!r}")
    return int(steps)


def model_times(schedule: Schedule, steps: Any, spacing: str, offset: int, extra: bool) -> Array:
    """Decreasing. `extra`: the multistep schedulers lay n + 1 points and drop the last; the others lay n.

    Raises:
        ValueError: steps, spacing or offset that leave no such grid.
    """
    steps, length = check_steps(schedule, steps), int(schedule.last) + 1
    choose("spacing", spacing, SPACINGS)
    if not 0 <= offset < length:
        raise ValueError(f"steps_offset must be in [0, {length}), got {offset}")
    times: Array
    if spacing == "linspace":
        times = np.linspace(0, length - 1, steps + extra)[::-1][:steps]
        times = times.round() if extra else times
    elif spacing == "leading":
        times = np.arange(steps + extra, dtype=np.float64)[::-1][:steps] * (length // (steps + extra)) + offset
    else:
        times = np.arange(length, 0, -length / steps).round() - 1
    if len(times) != steps or times[-1] < 0:
        raise ValueError(f"steps must be a number whose trailing grid has as many points, got {steps}")
    if times[0] >= length:
        raise ValueError(f"steps_offset must keep times below {length}, got {times[0]:g}")
    return np.asarray(times, dtype=np.float64)


def spread(sigmas: str, rho: Array, steps: int) -> Array:
    """Noise levels between the first and the last of rho: karras, exponential or beta."""
    choose("sigma_spacing", sigmas, ("karras", "exponential", "beta"))
    ramp = np.linspace(0, 1, steps)
    if sigmas == "karras":
        low, high = rho[-1] ** (1 / KARRAS_RHO), rho[0] ** (1 / KARRAS_RHO)
        return np.asarray((high + ramp * (low - high)) ** KARRAS_RHO)
    if sigmas == "exponential":
        return np.asarray(np.exp(np.log(rho[0]) + ramp * (np.log(rho[-1]) - np.log(rho[0]))))
    return np.asarray(rho[-1] + beta_quantiles(1 - ramp) * (rho[0] - rho[-1]))


def make(
    schedule: Schedule,
    steps: Any,
    spacing: str,
    steps_offset: int,
    sigmas: str | None,
    final: str,
    *,
    extra: bool,
) -> Grid:
    """`final`: zero; min (alpha-bar[0]); last (the last level again)."""
    model_time = model_times(schedule, steps, spacing, steps_offset, extra)
    steps, rho = len(model_time), training_rho(schedule)
    every = np.arange(len(rho))
    levels = np.interp(model_time, every, rho)
    if sigmas is not None:
        levels = spread(sigmas, rho[::-1] if extra else levels, steps)
        model_time = np.interp(np.log(levels), np.log(rho), every)
        model_time = (model_time.round() if sigmas == "karras" else np.trunc(model_time)) if extra else model_time
    end = {"zero": 0.0, "min": rho[0], "last": levels[-1]}[final]
    middles = np.interp((np.log(levels[:-1]) + np.log(levels[1:])) / 2, np.log(rho), every)
    return Grid(model_time, np.append(levels, end), middles)


def plan_on(
    solver: Callable[..., Plan], grid: Grid, prediction: str, *, sigma_prior: bool = False, **options: Any
) -> Plan:
    """A solver's plan on a grid of levels, whose network is told the grid's times.

    Args:
        sigma_prior: the start is sigma_max z in unscaled data, which is sigma_T z here.
    """
    alpha = 1 / np.sqrt(1 + grid.rho**2)
    levels = Schedule.from_levels(alpha, grid.rho * alpha)
    steps = len(grid.model_time)
    plan = solver(levels, np.arange(steps, -1, -1.0), prediction=prediction, **options)
    rows = []
    for row in plan.rows:
        place = steps - row.t
        i = int(place)
        rows.append(replace(row, t=float(grid.model_time[i] if place == i else grid.middles[i])))
    prior = plan.prologue._replace(p0=float(grid.rho[0] * alpha[0])) if sigma_prior else plan.prologue
    return replace(plan, rows=tuple(rows), solver=f"{plan.solver} (diffusers)", prologue=prior)
