"""Time grids: where along a schedule a solver stops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pndm_fast.schedule import Schedule

SPACINGS = ("leading", "trailing", "linspace")


def make_grid(schedule: Schedule, steps: int, spacing: str) -> tuple[float, ...]:
    """`steps` time points and the end, decreasing: n + 1 times.

    leading: t_i = (i T) // steps for i = steps - 1, ..., 0, then -1: the grid of PNDM (arXiv:2202.09778) and DDIM
    (arXiv:2010.02502). trailing: t_i = T (1 - i / steps) - 1: equal steps from the noisiest time to the end.
    linspace: equal steps from T - 1 to 0, then one to -1. On a continuous schedule, leading drops the first 1/steps,
    and linspace is trailing.

    Raises:
        ValueError: unknown spacing, or steps outside [1, T] (leading) or below 1.
    """
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    count = schedule.last - schedule.first
    most = int(count) if schedule.discrete and spacing in ("leading", "linspace") else 100_000
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be in [1, {most}] for {spacing} spacing on {schedule.name}, got {steps}")
    if spacing == "leading":
        if not schedule.discrete:
            return tuple(float(schedule.first + count * i / (steps + 1)) for i in range(steps, -1, -1))
        return (*(float(i * int(count) // steps) for i in range(steps - 1, -1, -1)), -1.0)
    if spacing == "trailing" or (spacing == "linspace" and not schedule.discrete):
        return (*(float(schedule.last - count * i / steps) for i in range(steps)), float(schedule.first))
    if spacing == "linspace":
        return (*np.linspace(schedule.last, 0.0, steps).tolist(), -1.0)
    raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")


def snap(times: Sequence[float]) -> tuple[float, ...]:
    """The times rounded to integers, for networks with one embedding per training time.

    Raises:
        ValueError: two times fall on one integer.
    """
    snapped = [float(np.rint(t)) for t in times]
    distinct = len(set(snapped))
    if distinct < len(snapped):
        raise ValueError(f"integer_times: {len(snapped) - 1} steps need as many integers, at most {distinct - 1} fit")
    return tuple(snapped)


def check_times(schedule: Schedule, times: Sequence[float], fewest: int, solver: str) -> tuple[float, ...]:
    """The times as floats, decreasing and inside the schedule, with at least `fewest` steps.

    Raises:
        ValueError: naming the first pair that does not decrease, the time outside, or the fewest steps.
    """
    values = tuple(float(t) for t in times)
    for i, (t, s) in enumerate(zip(values, values[1:], strict=False)):
        if not t > s:
            raise ValueError(f"times must decrease, got {t:g} then {s:g} at index {i + 1}")
    for t in values:
        if not schedule.first <= t <= schedule.last:
            raise ValueError(f"times must be in [{schedule.first:g}, {schedule.last:g}], got {t:g}")
    if len(values) < fewest + 1:
        raise ValueError(f"steps must be at least {fewest} for {solver}, got {len(values) - 1}")
    return values
