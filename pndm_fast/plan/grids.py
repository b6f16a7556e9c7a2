"""Time grids: where along a schedule a solver stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pndm_fast.plan.checks import check_type, choose, shown
from pndm_fast.plan.curves import Array
from pndm_fast.plan.names import HERE
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.row import LARGEST
from pndm_fast.plan.schedule import Schedule

PHASE_SPACINGS = ("uniform", "quadratic")
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "logsnr", "karras", "exponential", "beta", "dpm-fast")
_IN_LAM = ("logsnr", "dpm-fast")
_IN_NOISE = (*_IN_LAM, "karras", "exponential")
FINALS = ("zero", "min")
KARRAS_RHO = 7.0
BETA = 0.6  # both parameters of the Beta distribution
SHORT = 1e-4  # of the flow from noise to data that grids in log-SNR leave out before the shift, as ComfyUI has it
CLOSEST = 1e-6  # of a flow's time to its last, for log-SNRs to have digits
SAME = 1e-6  # relative difference of numbers that are equal but for float32's rounding, some operations of it
HERE["spacing"].update(SPACINGS)


def make_grid(
    schedule: Schedule | PSLD, steps: int, spacing: str, final: str = "zero", t_min: float | None = None
) -> tuple[float, ...]:
    """`steps` time points and the end, decreasing: n + 1 times.

    leading: t_i = (i T) // steps for i = steps - 1, ..., 0, then -1: the grid of PNDM (arXiv:2202.09778) and DDIM
    (arXiv:2010.02502); on a continuous schedule the first 1/(steps + 1) is dropped. trailing: equal steps from the
    noisiest time to the end. The others put `steps` points from the noisiest time to `t_min`, then step to the end:
    linspace: equal steps of t (on a continuous schedule: trailing); quadratic: of sqrt(t); logsnr, exponential: of
    lam = log(alpha / sigma); dpm-fast: of lam from group to group of `fast_groups`, and inside each; karras: of
    (sigma / alpha)^(1/7) (arXiv:2206.00364, eq. 5); beta: quantiles of Beta(0.6, 0.6) in t (arXiv:2407.12173).

    On flow, grids in t are spread before the schedule's shift. karras and exponential are grids of sigma itself, as
    every library has them there, from 1; those in lam begin at `noisiest`, for sigma = 1 has no log-SNR. The shift then
    moves their ends alone. trailing and linspace take t_min there too: 1 - sigma is scaled so that the last call is at
    t_min, which diffusers calls shift_terminal.

    In phase space (arXiv:2303.01748) `steps` points t_min + (1 - t_min) u,
    uniform, or with u^2 in place of u, quadratic, for equal steps of u from 1 to 0; then 0.

    Args:
        final: zero ends at sigma = 0; min ends at `t_min`, and all n + 1 points are spaced.
        t_min: the smallest time at which linspace to beta call the network, default `schedule.floor`, of karras,
            exponential and logsnr on flow that one shifted; None elsewhere, but for trailing on flow.

    Raises:
        TypeError, ValueError: unknown spacing or final, or steps or t_min that do not fit.
    """
    if not is_integer(steps):
        raise TypeError(f"steps must be an integer, got {shown(steps)}")
    choose("spacing", spacing, PHASE_SPACINGS if isinstance(schedule, PSLD) else SPACINGS)
    choose("final", final, FINALS)
    if t_min is not None:
        check_type("t_min", t_min, float)
    if isinstance(schedule, PSLD):
        return _phase(schedule, steps, spacing, final, t_min)
    count = schedule.last - schedule.first
    most = int(count) if schedule.discrete and spacing in ("leading", "linspace") else 100_000
    most -= final == "min" and schedule.discrete and spacing == "leading"
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be in [1, {most}] for {spacing} spacing on {schedule.name}, got {steps}")
    whole = spacing == "trailing" or (spacing == "linspace" and not schedule.discrete)
    stretch = t_min is not None and schedule.scale == "flow"
    unused = spacing == "leading" or (whole and final == "zero" and not stretch)
    low = _lowest(schedule, spacing, final, t_min, unused=unused)
    if spacing == "leading":
        return _leading(schedule, int(steps), final)
    if final == "min":
        return tuple(_spread(schedule, steps + 1, "linspace" if whole else spacing, low))
    if whole:
        times = _shifted(schedule, np.array([schedule.last - count * i / steps for i in range(steps)]))
        return (*(_stretched(times, low) if stretch else times).tolist(), float(schedule.first))
    return (*_spread(schedule, steps, spacing, low), float(schedule.first))


def _phase(process: PSLD, steps: int, spacing: str, final: str, t_min: float | None) -> tuple[float, ...]:
    low = process.floor if t_min is None else float(t_min)
    if not 0 < low < 1:
        raise ValueError(f"t_min must be in (0, 1), got {low:g}")
    if not 1 <= steps <= 100_000:
        raise ValueError(f"steps must be in [1, 100000] for {spacing} spacing on {process.name}, got {steps}")
    u = np.linspace(1.0, 0.0, steps + (final == "min"))
    times = low + (1 - low) * (u if spacing == "uniform" else u * u)
    return (*times.tolist(), *([0.0] if final == "zero" else []))


def _lowest(schedule: Schedule, spacing: str, final: str, t_min: float | None, *, unused: bool) -> float:
    """t_min, checked, or its default."""
    if unused:
        if t_min is not None:
            raise ValueError(f"t_min must be None for {spacing} spacing with final={final!r}, got {t_min:g}")
        return schedule.floor
    low, first = schedule.floor if t_min is None else float(t_min), schedule.first
    if t_min is None and spacing in _IN_NOISE:
        low = float(_shifted(schedule, np.array(low)))
    if not first <= low < schedule.last:
        raise ValueError(f"t_min must be in [{first:g}, {schedule.last:g}), got {low:g}")
    if low == first and final == "zero":
        raise ValueError(f"t_min must be later than {first:g} for {spacing} spacing, got {low:g}")
    return low


def _leading(schedule: Schedule, steps: int, final: str) -> tuple[float, ...]:
    count = schedule.last - schedule.first
    if not schedule.discrete:
        even = np.array([schedule.first + count * i / (steps + 1) for i in range(steps, 0, -1)])
        times = _shifted(schedule, even).tolist()
        end = min(schedule.floor, (schedule.first + times[-1]) / 2) if final == "min" else schedule.first
        return (*times, float(end))
    first = int(schedule.first)
    if final == "min":
        return tuple(float(first + 1 + i * int(count) // (steps + 1)) for i in range(steps, -1, -1))
    return (*(float(first + 1 + i * int(count) // steps) for i in range(steps - 1, -1, -1)), float(first))


def _shifted(schedule: Schedule, t: Array) -> Array:
    """Times spread by the schedule's shift; none where shift is 1."""
    if schedule.shift == 1:
        return t
    u = t / schedule.last
    return schedule.last * (u / (u + (1 - u) / schedule.shift))  # 1 at u = 1 whatever the rounding, and never more


def _stretched(times: Array, low: float) -> Array:
    """The times of a flow, T - t scaled so that the last is `low`: the first, T, stays."""
    if len(times) < 2:
        raise ValueError(f"t_min must be None for a grid of one point, got {low:g}")
    rest = times[0] - times
    stretched: Array = times[0] - rest * ((times[0] - low) / rest[-1])
    stretched[-1] = low  # rounding aside, it is
    return stretched


def noisiest(schedule: Schedule) -> float:
    """The last time; of a flow, where alpha = 0 then, the shifted 1 - 1e-4: the noisiest that has a log-SNR."""
    if schedule.scale != "flow":
        return schedule.last
    return float(_shifted(schedule, np.array(schedule.last * (1 - SHORT))))


def with_log_snr(schedule: Schedule, times: Sequence[float], solver: str) -> Sequence[float]:
    """The times, where they begin at a flow's alpha = 0 from `noisiest` on, or if the second is before that, between.

    Raises:
        TypeError, ValueError: no numbers, or the second is but for rounding the first.
    """
    if not isinstance(schedule, Schedule) or schedule.scale != "flow":  # what is no schedule is refused later
        return times
    values, start = numbers_of("times", times), noisiest(schedule)
    if values[0] != schedule.last:
        return values
    if len(values) > 1 and values[1] >= start:
        start = (schedule.last + values[1]) / 2
        if values[1] > schedule.last * (1 - CLOSEST):
            raise ValueError(
                f"times must be below {schedule.last * (1 - CLOSEST):g} after the first for {solver}, which begins "
                f"between since alpha = 0 has no log-SNR, got {values[1]:.9g}"
            )
    return (start, *values[1:])


def _unshifted(schedule: Schedule, t: float) -> float:
    """The time that `_shifted` takes to t."""
    if schedule.shift == 1:
        return t
    u = t / schedule.last
    return schedule.last * (u / (u + (1 - u) * schedule.shift))


def _spread(schedule: Schedule, points: int, spacing: str, low: float) -> list[float]:
    """`points` times from the noisiest to `low`, both included; one point is the noisiest."""
    fractions = np.linspace(0.0, 1.0, points)
    times = (_spread_noise if spacing in _IN_NOISE else _spread_times)(schedule, fractions, spacing, low)
    times[-1] = low  # rounding aside, they are
    times[0] = noisiest(schedule) if spacing in _IN_LAM else schedule.last
    return [float(t) for t in times]


def _spread_times(schedule: Schedule, fractions: Array, spacing: str, low: float) -> Array:
    high, first, low = schedule.last, schedule.first, _unshifted(schedule, low)
    if spacing == "beta":
        times = low + (high - low) * beta_quantiles(1 - fractions)
    elif spacing == "quadratic":
        times = first + (np.sqrt(high - first) * (1 - fractions) + np.sqrt(low - first) * fractions) ** 2
    else:
        times = np.linspace(high, low, len(fractions))
    return _shifted(schedule, times)


def _spread_noise(schedule: Schedule, fractions: Array, spacing: str, low: float) -> Array:
    high, first, flow = noisiest(schedule), schedule.first, schedule.scale == "flow"
    if schedule.alpha(high) == 0:
        raise ValueError(f"spacing must be uniform in t where the schedule starts at alpha = 0, got {shown(spacing)}")
    start, end = float(schedule.lam(high)), float(schedule.lam(low))
    if end == np.inf:
        raise ValueError(f"t_min must be later than {first:g} for {spacing} spacing, got {low:g}")
    if flow and spacing not in _IN_LAM:  # the same curves, with log sigma in place of -lam
        start, end = 0.0, -math.log(low / schedule.last)
    if spacing == "karras":
        roots = np.exp(-start / KARRAS_RHO) * (1 - fractions) + np.exp(-end / KARRAS_RHO) * fractions
        lam = -KARRAS_RHO * np.log(roots)
    elif spacing == "dpm-fast":
        sizes = fast_groups(len(fractions) - 1)
        parts = [k + j / size for k, size in enumerate(sizes) for j in range(size)]
        lam = start + (end - start) * np.array([*parts, len(sizes)]) / max(len(sizes), 1)
    else:
        lam = start + (end - start) * fractions
    return np.array(schedule.last * np.exp(-lam) if flow and spacing not in _IN_LAM else schedule.time_at(lam))


def fast_groups(steps: int) -> list[int]:
    """How many steps each group of DPM-Solver-fast has: threes, then what is left. arXiv:2206.00927, section 3.4."""
    if steps < 1:
        return []
    return [3] * (steps // 3 - 1) + [2, 1] if steps % 3 == 0 else [3] * (steps // 3) + [steps % 3]


def beta_quantiles(p: Array) -> Array:
    """Of Beta(a, a), a = 0.6: below the median Newton's method for u = x^a, in which the distribution is almost linear.

    int_0^x (r (1 - r))^(a - 1) dr = x^a sum_n ((1 - a)_n / n!) x^n / (a + n).
    """
    n = np.arange(64)
    series = np.cumprod(np.concatenate([[1.0], 1 - BETA / n[1:]])) / (BETA + n)

    def mass(u: Array) -> Array:
        return np.asarray(u * (series * u[..., None] ** (n / BETA)).sum(-1))

    p = np.asarray(p, dtype=np.float64)
    wanted = np.minimum(p, 1 - p) * 2 * mass(np.array(0.5**BETA))
    u = BETA * wanted
    for _ in range(8):
        u = u - (mass(u) - wanted) * BETA * (1 - u ** (1 / BETA)) ** (1 - BETA)
    x = u ** (1 / BETA)
    return np.where(p > 0.5, 1 - x, x)


def times_of(schedule: Schedule | PSLD, sigmas: Sequence[float]) -> tuple[float, ...]:
    """The times of noise levels sigma / alpha; of sigma itself on flow schedules.

    Raises:
        ValueError, TypeError: not decreasing numbers from the schedule's noisiest to 0.
    """
    if isinstance(schedule, PSLD):
        raise ValueError(f"sigmas cannot go with {schedule.name}, whose noise is no number: give times")
    values = np.asarray(numbers_of("sigmas", sigmas))
    for i, (high, low) in enumerate(pairwise(values.tolist())):
        if high <= low:
            raise ValueError(f"sigmas must decrease, got {high:g} then {low:g} at index {i + 1}")
    with np.errstate(divide="ignore"):
        least, most = (float(np.exp(-schedule.lam(t))) for t in (schedule.first, schedule.last))
        if schedule.scale != "vp":  # any noise may be added to unscaled data
            least, most = 0.0, {"flow": 1.0, "sigma": LARGEST}[schedule.scale]
        inside = np.clip(values, least, most)
        for value, nearest in zip(values.tolist(), inside.tolist(), strict=True):
            if not (value == nearest or _rounded(value, nearest)):
                got = f"{value:g}{_excess(value, nearest)}"
                raise ValueError(f"sigmas must be in [{least:g}, {most:g}] on {schedule.name}, got {got}")
        times = inside * schedule.last if schedule.scale == "flow" else schedule.time_at(-np.log(inside))
    return from_last(schedule, times.tolist())


def from_last(schedule: Schedule | PSLD, times: Sequence[float]) -> tuple[float, ...]:
    """The times, where the first is the schedule's last but for rounding, from that one: it may be all noise.

    Just short of alpha = 0, rounding decides what solvers in eps or log-SNR make of a sample. Above, printed digits are
    rounding too; below, they may be another time.
    """
    first, last = times[0], schedule.last
    if isinstance(schedule, PSLD) or schedule.scale == "sigma":
        return tuple(times)
    short = min(SAME * abs(last), 0.5) if schedule.discrete else SAME * last
    return (last, *times[1:]) if last - first <= short and (first < last or _rounded(first, last)) else tuple(times)


def _rounded(value: float, wanted: float) -> bool:
    """Whether value is the wanted one to float32's rounding, or to that of four printed digits or more."""
    near = SAME * abs(wanted)
    return any(abs(value - float(f"{wanted:.{digits}g}")) <= near for digits in (4, 5, 6, 7, 17))


def _excess(value: float, nearest: float) -> str:
    if not 0 < nearest < math.inf or not math.isfinite(value):
        return ""
    percent = 100 * abs(value / nearest - 1)
    return f", {percent:{'.2g' if percent < 10 else '.0f'}} % {'above' if value > nearest else 'below'}"


def numbers_of(what: str, values: Sequence[float]) -> tuple[float, ...]:
    """Floats, at least one.

    Raises:
        TypeError, ValueError: naming the one that is no number, or none at all.
    """
    if hasattr(values, "tolist"):  # an array or a tensor, of any dtype and on any device
        try:
            values = values.tolist()
        except RuntimeError as error:
            raise TypeError(f"{what} must be a decreasing sequence of numbers, got no values: {error}") from error
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{what} must be a decreasing sequence of numbers, got {shown(values)}")
    numbers = []
    for i, value in enumerate(values):
        if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__") and not hasattr(value, "__index__"):
            raise TypeError(f"{what} must be a decreasing sequence of numbers, got {shown(value)} at index {i}")
        try:
            numbers.append(float(value))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # of arrays, and of large integers
            raise TypeError(
                f"{what} must be a decreasing sequence of numbers, got {shown(value)} at index {i}"
            ) from error
    if not numbers:
        raise ValueError(f"{what} must be a decreasing sequence of numbers, got none")
    return tuple(numbers)


def check_levels(schedule: Schedule | PSLD, times: Sequence[float]) -> None:
    """Refuse two times of one noise level: no solver moves between them, and slopes through both are none.

    Raises:
        ValueError: naming them. `Schedule.from_levels` may have such, and so may times that differ by rounding.
    """
    values = np.asarray(times)
    if isinstance(schedule, PSLD) or not (np.diff(values) < 0).all():  # these are refused by who steps through them
        return
    same = np.flatnonzero(~(np.diff(schedule.lam(values)) > 0))
    if same.size:
        i = int(same[0])
        raise ValueError(
            f"times must be at falling noise levels, got one level at {times[i]!r} and {times[i + 1]!r}, index {i + 1}"
        )


class WholeTimes(tuple[float, ...]):
    """A grid of whole times, for networks with one embedding per training time.

    Solvers that call the network between two times of the grid do that at a whole time too: `PlanBuilder.inside`.
    """


def snap(times: Sequence[float], inner: int = 0) -> WholeTimes:
    """The times rounded to integers.

    Args:
        inner: so many of the first steps must have an integer inside.

    Raises:
        ValueError: naming the two times that leave none.
    """
    given = numbers_of("times", times)
    whole = WholeTimes(float(np.rint(t)) + 0.0 for t in given)  # -0.0 is 0.0
    for i, (t, s) in enumerate(pairwise(whole)):
        if t == s:
            raise ValueError(
                f"integer_times must round the times to different ones, got {given[i]:g}, {given[i + 1]:g}"
            )
        if t - s == 1 and i < inner:
            raise ValueError(f"integer_times must leave a whole time inside step {i}, got {t:g} then {s:g}")
    return whole


def check_times(schedule: Schedule | PSLD, times: Sequence[float], min_steps: int, solver: str) -> tuple[float, ...]:
    """The times as floats, decreasing and inside the schedule, with at least `min_steps` steps.

    Raises:
        TypeError, ValueError: naming what is no number, the first pair that does not decrease, the time outside, or
            the fewest steps.
    """
    values = numbers_of("times", times)
    for i, (t, s) in enumerate(zip(values, values[1:], strict=False)):
        if not t > s:
            raise ValueError(f"times must decrease, got {t:g} then {s:g} at index {i + 1}")
    schedule.inside(values)
    if len(values) < min_steps + 1:
        raise ValueError(f"steps must be at least {min_steps} for {solver}, got {len(values) - 1}")
    return WholeTimes(values) if isinstance(times, WholeTimes) else values
