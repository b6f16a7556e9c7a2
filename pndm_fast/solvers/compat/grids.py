"""diffusers' grids: the time that the network is told and the level, (alpha, sigma), that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from pndm_fast.plan.checks import choose
from pndm_fast.plan.curves import Array
from pndm_fast.plan.grids import KARRAS_RHO, beta_quantiles, numbers_of
from pndm_fast.plan.levels import Level
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import LEAST_ALPHA_BAR, Schedule

SPACINGS = ("leading", "linspace", "trailing")
SIGMA_SPACINGS = ("karras", "exponential", "beta")
LU = "lu"  # use_lu_lambdas, which one scheduler has: exponential sigmas, but with karras' times
FINALS = ("zero", "sigma_min")
MOST_FLOW_STEPS = 10_000
BEFORE_ONE = 1e-6  # what UniPC takes off a first flow sigma of 1


class Grid(NamedTuple):
    """The network's n times, n + 1 levels, and the network's times at midpoints in lam; flow: alpha + sigma = 1."""

    model_time: Array
    alpha: Array
    sigma: Array
    middles: Array
    flow: bool = False

    @property
    def rests(self) -> bool:
        """Whether the last step goes nowhere."""
        return bool(self.sigma[-1] == self.sigma[-2])

    def after(self, steps: int) -> Grid:
        """What is left of it after its first steps."""
        model_time, alpha, sigma, middles = (values[steps:] for values in self[:4])
        return Grid(model_time, alpha, sigma, middles, self.flow)


@dataclass(frozen=True)
class Training:
    """sigma / alpha at the training times, in float64; and as diffusers has it, from betas in float32.

    The levels of a plan are the exact ones. diffusers cuts or rounds the times of karras, exponential and beta grids to
    integers, and on which side of an integer they fall hangs on its float32.
    """

    rho: Array
    stored: np.ndarray[Any, np.dtype[np.float32]]

    @classmethod
    def of(cls, schedule: Schedule, scheduler: str, zero_snr: bool) -> Training:
        """Of a discrete schedule; where alpha ends at 0, as the schedulers of `zero_snr` have it.

        Raises:
            ValueError: alpha ends at 0, and the scheduler has no stand-in for that.
        """
        bar = np.asarray(schedule.alpha(np.arange(schedule.last + 1)) ** 2)
        betas = (1 - bar / np.concatenate([[1.0], bar[:-1]])).astype(np.float32)
        stored = np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)
        if bar[-1] == 0:
            if not zero_snr:
                raise ValueError(f"schedule must end at alpha > 0 for diffusers' {scheduler}, got {schedule.name}")
            bar[-1] = stored[-1] = LEAST_ALPHA_BAR
        return cls(np.sqrt((1 - bar) / bar), ((1 - stored) / stored) ** np.float32(0.5))

    def whole(self, sigmas: str, steps: int, rounded: bool) -> Array:
        """The integers that diffusers makes of the times of a grid of sigmas."""
        ends = self.stored[[-1, 0]]
        wide = np.asarray(np.log(ends) if sigmas == LU else ends, dtype=np.float64)
        wide = np.exp(wide) if sigmas == LU else wide
        times = told(spread(sigmas, wide, steps), self.stored)
        return np.trunc(times.round() if rounded else times)

    def fractional(self, sigmas: str, between: Array) -> Array:
        """The times of a grid of sigmas between those of two times; at zero terminal SNR float32 decides here too."""
        table = self.rho if self.rho[-1] > self.rho[-2] else self.stored
        ends = np.interp(between[[0, -1]], np.arange(len(table)), table)
        return told(spread(sigmas, ends, len(between)), table)


def told(levels: Array, table: np.ndarray[Any, Any]) -> Array:
    """diffusers' times of noise levels: log sigma interpolated in a table, in that one's type.

    The table need not rise: at zero terminal SNR its last sigma is below the one before. An entry counts from the last
    on.
    """
    log, logs = np.log(np.maximum(levels, 1e-10)), np.log(table)
    below = logs[::-1, None] <= log
    low = np.where(below.any(0), len(logs) - 1 - below.argmax(0), 0).clip(max=len(logs) - 2)
    share = np.clip((logs[low] - log) / (logs[low] - logs[low + 1]), 0, 1)
    return np.asarray((1 - share) * low + share * (low + 1))


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


def model_times(
    schedule: Schedule, steps: Any, spacing: str, offset: int, extra: bool, last: int | None = None
) -> Array:
    """Decreasing. `extra`: the multistep schedulers lay n + 1 points and drop the last; the others lay n.

    `last` is how many of the training times are used, the noisiest left out.

    Raises:
        ValueError: steps, spacing or offset that leave no such grid.
    """
    steps, length = check_steps(schedule, steps), int(schedule.last) + 1
    used = length if last is None else last
    where = f" (sigma_spacing={spacing!r} is an option)" if spacing in SIGMA_SPACINGS else ""
    choose("spacing", spacing, SPACINGS, where)
    if not 0 <= offset < length:
        raise ValueError(f"steps_offset must be in [0, {length}), got {offset}")
    times: Array
    if spacing == "linspace":
        times = np.linspace(0, used - 1, steps + extra)[::-1][:steps]
        times = times.round() if extra else times
    elif spacing == "leading":
        times = np.arange(steps + extra, dtype=np.float64)[::-1][:steps] * (used // (steps + extra)) + offset
    else:
        times = np.arange(used, 0, -length / steps).round() - 1
    if len(times) != steps or times[-1] < 0:
        raise ValueError(f"steps must be a number whose trailing grid has as many points, got {steps}")
    if times[0] >= length:
        raise ValueError(f"steps_offset must keep times below {length}, got {times[0]:g}")
    if not (np.diff(times) < 0).all():
        raise ValueError(f"steps must leave {spacing} times apart, got {steps} of {used} training times")
    return np.asarray(times, dtype=np.float64)


def spread(sigmas: str, rho: Array, steps: int) -> Array:
    """Noise levels between the first and the last of rho: karras, exponential or beta."""
    choose("sigma_spacing", sigmas, (*SIGMA_SPACINGS, LU))
    high, low = float(rho[0]), float(rho[-1])
    ramp = np.linspace(0, 1, steps)
    if sigmas == "karras":
        first, last = high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO)
        levels = (first + ramp * (last - first)) ** KARRAS_RHO
    elif sigmas in ("exponential", LU):
        levels = np.exp(np.linspace(np.log(high), np.log(low), steps))
    else:
        levels = low + beta_quantiles(1 - ramp) * (high - low)
    return np.asarray(levels)


def make(
    schedule: Schedule,
    steps: Any,
    spacing: str,
    steps_offset: int,
    sigmas: str | None,
    final: str,
    *,
    extra: bool,
    scheduler: str,
    zero_snr: bool = False,
    least_lam: float = -np.inf,
    timesteps: Sequence[float] | None = None,
) -> Grid:
    """`final`: zero; sigma_min (alpha-bar[0]); last (the last level again). `least_lam` cuts the training times;
    `timesteps` stand for spacing and offset.

    Raises:
        ValueError: steps, spacing, offset, sigmas or final that leave no grid, or one on which diffusers fails.
    """
    choose("final_sigmas_type", final, (*FINALS, "last"))
    if timesteps is None:
        check_steps(schedule, steps)
    if sigmas is not None:
        choose("sigma_spacing", sigmas, (*SIGMA_SPACINGS, *([LU] if scheduler == "DPMSolverMultistep" else [])))
        if schedule.last < 1:
            raise ValueError(f"sigma_spacing must be None where there is one training time, got {sigmas!r}")
    training = Training.of(schedule, scheduler, zero_snr)
    if timesteps is None:
        used = int((-np.log(training.stored) >= least_lam).sum())
        model_time = model_times(schedule, steps, spacing, steps_offset, extra, used)
    else:
        model_time = given_times(timesteps, schedule, sigmas, cut=extra)
    steps = len(model_time)
    rho, every = training.rho, np.arange(len(training.rho))
    levels = np.interp(model_time, every, rho)
    if sigmas is not None:
        between = rho[[-1, 0]] if extra else levels[[0, -1]]
        levels = spread(sigmas, between, steps)
        levels[0], levels[-1] = between if steps > 1 else between[:1].repeat(2)  # but for rounding, they are
        cosine = Schedule.cosine(len(rho))
        cut = scheduler == "DPMSolverMultistep" and schedule in (cosine, cosine.zero_terminal_snr())
        rounded = sigmas in ("karras", LU) and not cut
        if extra:
            model_time = check_first(training.whole(sigmas, steps, rounded), scheduler)
        else:
            model_time = training.fractional(sigmas, model_time)
            model_time = model_time.round() if sigmas == "karras" and scheduler.startswith("KDPM2") else model_time
    end = {"zero": 0.0, "sigma_min": rho[0], "last": levels[-1]}[final]
    middles = told(np.sqrt(levels[:-1] * levels[1:]), rho)
    alpha = 1 / np.sqrt(1 + np.append(levels, end) ** 2)
    return Grid(model_time, alpha, np.append(levels, end) * alpha, middles)


def check_first(times: Array, scheduler: str) -> Array:
    """The times.

    Raises:
        ValueError: the first stands twice: diffusers then begins at the second, and runs out of levels.
    """
    if len(times) > 1 and times[0] == times[1]:
        raise ValueError(
            f"steps must leave the first two times apart for diffusers' {scheduler}, which fails where they are equal: "
            f"got {len(times)}, both at {times[0]:g}"
        )
    return times


def check_flow(schedule: Schedule, steps: Any, scheduler: str) -> tuple[int, int, float]:
    """(steps, T, shift) of a flow schedule.

    Raises:
        ValueError: T counts no training times, or steps is no number of them.
    """
    count = int(schedule.last)
    if count != schedule.last or count < 2:
        raise ValueError(
            f"schedule must be Schedule.flow(shift, T) with T training times, as 1000, for diffusers' {scheduler}, "
            f"got T = {schedule.last:g}"
        )
    if not is_integer(steps) or not 1 <= steps <= MOST_FLOW_STEPS:
        raise ValueError(f"steps must be an integer in [1, {MOST_FLOW_STEPS}] for compat='diffusers', got {steps!r}")
    return int(steps), count, schedule.shift


def shifted(sigmas: Array, shift: float) -> Array:
    """shift u / (1 + (shift - 1) u). Esser et al. 2024, arXiv:2403.03206, eq. 23."""
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas))


def stretched(sigmas: Array, terminal: float | None) -> Array:
    """1 - sigma scaled so that sigma ends at `terminal`.

    Raises:
        ValueError: it is not in (0, 1), or one point begins and ends the grid.
    """
    if terminal is None:
        return sigmas
    if not 0 < terminal < 1:
        raise ValueError(f"shift_terminal must be in (0, 1), got {terminal}")
    if sigmas[-1] >= 1:
        raise ValueError(f"shift_terminal must be None for a grid of one point, got {terminal}")
    return np.asarray(1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - terminal)))


def of_sigmas(schedule: Schedule, sigmas: Sequence[float], scheduler: str, zero_snr: bool) -> Grid:
    """A grid of sigma / alpha, the end among them, whose network is told their times.

    Raises:
        TypeError, ValueError: no numbers, fewer than two, or not decreasing to an end of 0 or more.
    """
    levels = np.array(numbers_of("sigmas", sigmas))
    if not (len(levels) > 1 and levels[-1] >= 0 and np.isfinite(levels[0]) and (np.diff(levels) < 0).all()):
        raise ValueError(f"sigmas must decrease to the end, 0 or more, n + 1 for n steps, got {levels.tolist()}")
    check_steps(schedule, len(levels) - 1)
    table = Training.of(schedule, scheduler, zero_snr).rho
    alpha = 1 / np.sqrt(1 + levels**2)
    return Grid(told(levels[:-1], table), alpha, levels * alpha, told(np.sqrt(levels[:-2] * levels[1:-1]), table))


def given_times(timesteps: Sequence[float], schedule: Schedule, sigmas: str | None, *, cut: bool = False) -> Array:
    """The network's times, decreasing, in place of a grid; `cut`: as integers, as most of diffusers' have them.

    Raises:
        TypeError, ValueError: anything else, or a grid of sigmas, which has times of its own.
    """
    times = np.array(numbers_of("timesteps", timesteps))
    times = np.trunc(times) if cut else times
    check_steps(schedule, len(times))
    if sigmas is not None:
        raise ValueError(f"timesteps cannot go with sigma_spacing={sigmas!r}, whose grid is its own")
    if not (0 <= times[-1] and times[0] <= schedule.last and (np.diff(times) < 0).all()):
        raise ValueError(f"timesteps must decrease within [0, {schedule.last:g}], got {times.tolist()}")
    return times


def given_sigmas(sigmas: Sequence[float], steps: int) -> Array:
    """The flow sigmas of n calls, before any shift: at most 1, decreasing, the end left out.

    Raises:
        TypeError, ValueError: anything else.
    """
    points = np.array(numbers_of("sigmas", sigmas))
    if len(points) != steps:
        raise ValueError(f"sigmas must be as many as steps, {steps}, got {len(points)}")
    if not (1 >= points[0] and points[-1] > 0 and (np.diff(points) < 0).all()):
        raise ValueError(f"sigmas must decrease from at most 1 to above 0, the end left out, got {points.tolist()}")
    return points


def given_flow_times(timesteps: Sequence[float], steps: int, length: int) -> Array:
    """The times that a flow network is told, decreasing from at most T, the end left out.

    Raises:
        TypeError, ValueError: anything else.
    """
    times = np.array(numbers_of("timesteps", timesteps))
    if len(times) != steps:
        raise ValueError(f"timesteps must be as many as steps, {steps}, got {len(times)}")
    if not (length >= times[0] and times[-1] > 0 and (np.diff(times) < 0).all()):
        raise ValueError(f"timesteps must decrease from at most {length} to above 0, got {times.tolist()}")
    return times


def flow_grid(sigmas: Array, end: float, length: int, scheduler: str, *, cut: bool, times: Array | None = None) -> Grid:
    """A grid of flow sigmas, whose network is told `times`, or sigma T; `cut`: as an integer."""
    times = sigmas * length if times is None else times
    times = check_first(np.trunc(times), scheduler) if cut else times
    levels = np.append(sigmas, end)
    return Grid(times, 1 - levels, levels, times[:0], True)


@dataclass(frozen=True, eq=False)
class _FlowLevels:
    """The curve of a flow schedule that is a list of levels, noisiest first: level i of n + 1 is at time n - i."""

    alphas: Array
    sigmas: Array

    scale = "flow"

    def _at(self, values: Array, t: Array) -> Any:
        return values[len(values) - 1 - np.asarray(t).astype(np.int64)]

    def log_alpha_bar(self, t: Array) -> Any:
        with np.errstate(divide="ignore"):
            return 2 * np.log(self._at(self.alphas, t))

    def sigma(self, t: Array) -> Any:
        return self._at(self.sigmas, t)

    def time(self, lam: Array) -> Any:
        raise NotImplementedError("levels alone have no times between them")

    def slope(self, t: float) -> float:
        raise NotImplementedError("levels alone have no slope")


def plan_on(
    solver: Callable[..., Plan],
    grid: Grid,
    prediction: str,
    *,
    sigma_prior: bool = False,
    unscaled: bool = False,
    begin: int = 0,
    **options: Any,
) -> Plan:
    """A solver's plan on a grid of levels, whose network is told the grid's times.

    Args:
        begin: of how many of its steps the grid is cut first, as diffusers' set_begin_index does.
        sigma_prior: the start is sigma_max z in unscaled data, which is sigma_T z here; else the normal itself.
        unscaled: the last state is x_0 + (sigma/alpha) eps.
    """
    grid = grid.after(begin)
    steps = len(grid.model_time)
    if grid.flow:
        curve = _FlowLevels(grid.alpha, grid.sigma)
        levels = Schedule("flow levels", 0.0, float(steps), 1.0, False, curve)
    else:
        levels = Schedule.from_levels(grid.alpha, grid.sigma)
    plan = solver(levels, np.arange(steps, -1, -1.0), prediction=prediction, **options)
    rows = []
    for row in plan.rows:
        place = steps - row.t
        i = int(place)
        rows.append(replace(row, t=float(grid.model_time[i] if place == i else grid.middles[i])))
    if unscaled and grid.sigma[-1] > 0:
        end = Level(1.0, float(grid.sigma[-1] / grid.alpha[-1]))
        y = tuple(c / float(grid.alpha[-1]) for c in np.array(rows[-1].y))
        rows[-1] = replace(rows[-1], y=y, levels=rows[-1].levels._replace(y=end))
    prior = plan.prologue._replace(p0=float(grid.sigma[0]) if sigma_prior else 1.0)
    return replace(plan, rows=tuple(rows), solver=f"{plan.solver} (diffusers)", prologue=prior)
