"""Grids by the names that other programs have for them, and published tables of noise levels."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, get_type_hints

import numpy as np

from pndm_fast.plan.checks import check_type, choose, shown
from pndm_fast.plan.curves import Array
from pndm_fast.plan.grids import FINALS, SPACINGS, _shifted, times_of
from pndm_fast.plan.hints import refuse_unknown
from pndm_fast.plan.names import HERE
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.schedule import Schedule

TRAINING_TIMES = 1000  # of a continuous schedule, where a grid counts them
_ROUNDING = 1e-12  # of a level by its formula
NAMED: dict[str, Callable[..., Any]] = {}
TABLES: dict[str, tuple[tuple[float, ...], str]] = {
    # Sabour et al. 2024, arXiv:2404.14507, as its authors released them: sigma / alpha of ten steps
    "ays-sd1": ((14.6146, 6.4746, 3.8637, 2.6947, 1.8842, 1.3944, 0.9643, 0.6524, 0.3977, 0.1515, 0.0292), "noise"),
    "ays-sdxl": ((14.6146, 6.3184, 3.7682, 2.1811, 1.3405, 0.8621, 0.5551, 0.3799, 0.2332, 0.1114, 0.0292), "noise"),
    "ays-svd": ((700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002), "noise"),
    # Pei et al. 2025, arXiv:2503.21774 (optimal stepsize), as released: sigma of a flow, ten and twenty steps
    "oss-flux": ((0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001), "flow"),
    "oss-wan": (
        (1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96, 0.946, 0.927, 0.902,
         0.864, 0.776, 0.539, 0.208, 0.001),
        "flow",
    ),
}  # fmt: skip
GITS = {  # Chen et al. 2024, arXiv:2405.11326, for Stable Diffusion, as released: t in [0, 1]
    4: (1.0, 0.6837, 0.3673, 0.1176, 0.001),
    5: (1.0, 0.7669, 0.4839, 0.2341, 0.0676, 0.001),
    6: (1.0, 0.7836, 0.5504, 0.3340, 0.1508, 0.0343, 0.001),
    7: (1.0, 0.8502, 0.6004, 0.4006, 0.2175, 0.0843, 0.0176, 0.001),
    8: (1.0, 0.8502, 0.6504, 0.4672, 0.3007, 0.1675, 0.0676, 0.0176, 0.001),
}

FEW: dict[str, tuple[str, dict[int, tuple[float, ...]]]] = {  # what distilled networks are called at, as released
    # Yin et al. 2024, arXiv:2405.14867 (DMD2), for SDXL, to be run by "lcm": its training times
    "dmd2-sdxl": ("training", {1: (399,), 4: (999, 749, 499, 249)}),
    # Ren et al. 2024, arXiv:2404.13686 (Hyper-SD), of one step; more are on "trailing"
    "hyper-sdxl": ("training", {1: (800,)}),
    # fal's FLUX.2-dev-Turbo, by "euler": sigma of a flow, as its card has them
    "flux2-turbo": ("flow", {8: (1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031)}),
    # Lightricks' distilled LTX-Video and LTX-2: the whole, and the second stage, which starts from a noised image
    "ltx-distilled": (
        "flow",
        {8: (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875), 3: (0.909375, 0.725, 0.421875)},
    ),
    # FastVideo's FastWan, by "lcm": times of 1000, distilled as in arXiv:2405.14867
    "fastwan": ("flow", {3: (1.0, 0.757, 0.522)}),
}


def named_grid(name: str, schedule: Schedule, steps: int, final: str = "zero", **options: Any) -> tuple[float, ...]:
    """The n + 1 decreasing times of a named grid, for `make_plan(times=...)`.

    Args:
        name: one of `NAMED`; `make_plan(spacing=...)` takes it too, with its default options.
        final: zero ends at sigma = 0; min at the grid's own last level, where it has one.
        options: keyword arguments of the grid's function, which says what it is.

    Raises:
        TypeError, ValueError: naming the argument; a schedule that the grid is not for, or as many steps as it has not.
    """
    choose("spacing", name, NAMED)
    choose("final", final, FINALS)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a Schedule for {name}, got {shown(schedule)}")
    if not is_integer(steps):
        raise TypeError(f"steps must be an integer, got {shown(steps)}")
    if not 1 <= steps <= 100_000:
        raise ValueError(f"steps must be in [1, 100000] for {name}, got {steps}")
    function = NAMED[name]
    own = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    refuse_unknown(name, own, options)
    for option, value in options.items():
        check_type(option, value, get_type_hints(function)[option])
    times = tuple(float(t) for t in function(schedule, int(steps), final, **options))
    if len(times) != steps + 1 or not all(t > s for t, s in pairwise(times)):
        count = len(set(times)) - 1
        raise ValueError(f"steps must be as many as {name} has on {schedule.name}, got {steps}: it makes {count}")
    return times


def _grid(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        NAMED[name] = function
        return function

    return register


def _least(schedule: Schedule) -> float:
    """The time of the least level that the network knows: of a flow after its shift."""
    if schedule.scale == "flow":
        return float(_shifted(schedule, np.array(schedule.last / TRAINING_TIMES)))
    return schedule.floor


def _ends(schedule: Schedule) -> tuple[float, float]:
    """The least and the largest level that the network knows: sigma / alpha, or a flow's sigma after its shift."""
    if schedule.scale == "flow":
        return _least(schedule) / schedule.last, 1.0
    if schedule.alpha(schedule.last) == 0:
        raise ValueError(f"schedule must start at alpha > 0 for a grid in sigma / alpha, got {schedule.name}")
    return math.exp(-float(schedule.lam(schedule.floor))), math.exp(-float(schedule.lam(schedule.last)))


def _spaced(schedule: Schedule, steps: int, final: str, levels: Callable[[Array, float, float], Array]) -> list[float]:
    """The times of levels(u, least, largest) at equal steps of u from 0 to 1, then the end."""
    low, high = _ends(schedule)
    found = np.array(levels(np.linspace(0.0, 1.0, steps + (final == "min")), low, high))
    return _with_end(schedule, found, final)


def _with_end(schedule: Schedule, levels: Array, final: str) -> list[float]:
    low, high = _ends(schedule)
    # a flow's level short of 1 has a log-SNR, that of 1 none: the ends must be these, rounding aside
    times = np.array(times_of(schedule, np.clip(levels, 0.0, high).tolist()))
    times[np.isclose(levels, high, rtol=_ROUNDING, atol=0)] = schedule.last
    times[np.isclose(levels, low, rtol=_ROUNDING, atol=0)] = _least(schedule)
    return [*times.tolist(), schedule.first] if final == "zero" else times.tolist()


def _training(schedule: Schedule, k: Array) -> Array:
    """The times of training levels, counted from 0, the least noisy; of continuous schedules 1000.

    A flow's are even before its shift, EDM's in log sigma, as ComfyUI has them.
    """
    if schedule.discrete:
        return np.asarray(schedule.first + 1 + k)
    if schedule.scale == "sigma":
        low, high = math.log(schedule.floor), math.log(schedule.last)
        return np.exp(low + (high - low) * k / (TRAINING_TIMES - 1))
    return _shifted(schedule, np.asarray(schedule.first + (schedule.last - schedule.first) * (k + 1) / TRAINING_TIMES))


def _count(schedule: Schedule) -> int:
    return int(schedule.last - schedule.first) if schedule.discrete else TRAINING_TIMES


def _even(schedule: Schedule, points: int) -> Array:
    """As many times, even in what the network is told; a flow's then shifted, down to its least level."""
    if schedule.discrete:
        return np.linspace(schedule.last, schedule.first + 1, points)
    if schedule.scale == "sigma":
        return np.exp(np.linspace(math.log(schedule.last), math.log(schedule.floor), points))
    low = schedule.last * _ends(schedule)[0] if schedule.scale == "flow" else schedule.floor
    return _shifted(schedule, np.linspace(schedule.last, low, points))


def _only_zero(name: str, final: str) -> None:
    if final != "zero":
        raise ValueError(f"final must be 'zero' for {name}, which has no other end, got {final!r}")


@_grid("karras")
def karras(schedule: Schedule, steps: int, final: str, *, rho: float = 7.0) -> list[float]:
    """Equal steps of sigma^(1/rho). Karras et al. 2022, arXiv:2206.00364, eq. 5; of a flow's sigma too."""
    _check_positive("rho", rho)

    def levels(u: Array, low: float, high: float) -> Array:  # in units of the largest, so that no power overflows
        return np.asarray(np.maximum(high * (1 - u + (low / high) ** (1 / rho) * u) ** rho, low))

    return _spaced(schedule, steps, final, levels)


@_grid("polyexponential")
def polyexponential(schedule: Schedule, steps: int, final: str, *, rho: float = 1.0) -> list[float]:
    """log sigma = log sigma_min + (1 - u)^rho log(sigma_max / sigma_min), k-diffusion's; rho = 1 is exponential."""
    _check_positive("rho", rho)
    return _spaced(schedule, steps, final, lambda u, low, high: low * (high / low) ** ((1 - u) ** rho))


@_grid("kl-optimal")
def kl_optimal(schedule: Schedule, steps: int, final: str) -> list[float]:
    """Equal steps of arctan(sigma). Sabour et al. 2024, arXiv:2404.14507."""
    return _spaced(schedule, steps, final, lambda u, low, high: np.tan((1 - u) * math.atan(high) + u * math.atan(low)))


@_grid("laplace")
def laplace(schedule: Schedule, steps: int, final: str, *, mu: float = 0.0, beta: float = 0.5) -> list[float]:
    """Quantiles of a Laplace distribution of log sigma. Hang et al. 2024, arXiv:2407.03297.

    log sigma = mu - beta sign(1/2 - u) log(1 - 2 |1/2 - u| + 1e-5), between the schedule's ends, as ComfyUI has it; not
    of flows, where half of it is beyond 1.
    """
    _check_positive("beta", beta)
    if not math.isfinite(mu):
        raise ValueError(f"mu must be finite, got {mu}")
    _check_no_flow("laplace", schedule)

    def levels(u: Array, low: float, high: float) -> Array:
        log = mu - beta * np.sign(0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-5)
        return np.asarray(np.exp(np.clip(log, math.log(low), math.log(high))))

    return _spaced(schedule, steps, final, levels)


@_grid("linear-quadratic")
def linear_quadratic(
    schedule: Schedule, steps: int, final: str, *, threshold: float = 0.025, linear_steps: int | None = None
) -> list[float]:
    """Of 1 - sigma / sigma_max: so many equal steps to `threshold`, default half of them, then quadratic to 1. Mochi's.

    q(i) = a i^2 + b i + a m^2, m linear steps, a = (m - threshold n)/(m (n - m)^2), b = threshold/m - 2 a m: so that
    value and slope go on at i = m.
    """
    _only_zero("linear-quadratic", final)
    linear = steps // 2 if linear_steps is None else linear_steps
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be in (0, 1), got {threshold}")
    if steps == 1:
        return _with_end(schedule, np.array([_ends(schedule)[1]]), final)
    if not 1 <= linear < steps:
        raise ValueError(f"linear_steps must be in [1, {steps}), got {linear}")
    a = (linear - threshold * steps) / (linear * (steps - linear) ** 2)
    b = threshold / linear - 2 * a * linear
    i = np.arange(steps)
    done = np.where(i < linear, i * threshold / linear, a * i**2 + b * i + a * linear**2)
    return _with_end(schedule, _ends(schedule)[1] * (1 - done), final)


@_grid("bong-tangent")
def bong_tangent(schedule: Schedule, steps: int, final: str, *, pivot: float = 0.6, slope: float = 0.2) -> list[float]:
    """Two arctangents of a flow's sigma that meet at 1/2, of RES4LYF.

    Of N = n + 2 points p = int(pivot N), those before p and those from it each follow arctan(-s (i - p)),
    s = slope 40 / N, stretched to go from 1 to 1/2 and from 1/2 to 0; the doubled one is dropped.
    """
    _only_zero("bong-tangent", final)
    _check_flow("bong-tangent", schedule)
    _check_positive("slope", slope)
    points = steps + 2
    turn = int(points * pivot)
    if not 0 < pivot < 1 or not 2 <= turn <= points - 2:
        raise ValueError(f"pivot must leave two of {points} points at either side, got {pivot}")

    def part(first: int, last: int, start: float, end: float) -> Array:
        curve = np.arctan(-slope * 40 / points * (np.arange(first, last + 1) - turn))
        return np.asarray(end + (start - end) * (curve - curve[-1]) / (curve[0] - curve[-1]))

    levels = [*part(0, turn - 1, 1.0, 0.5)[:-1], *part(turn, points - 1, 0.5, 0.0)]
    return list(times_of(schedule, [1.0, *levels[1:-1], 0.0]))


@_grid("sgm-uniform")
def sgm_uniform(schedule: Schedule, steps: int, final: str) -> list[float]:
    """Even in what the network is told, the last of n + 1 points left out for sigma = 0. Stability's, as in ComfyUI."""
    times = _even(schedule, steps + 1).tolist()
    return [*times[:-1], schedule.first] if final == "zero" else times


@_grid("normal")
def normal(schedule: Schedule, steps: int, final: str) -> list[float]:
    """Even in what the network is told, down to its least noisy time. ComfyUI's."""
    times = _even(schedule, steps + (final == "min")).tolist()
    return [*times, schedule.first] if final == "zero" else times


@_grid("simple")
def simple(schedule: Schedule, steps: int, final: str) -> list[float]:
    """The training levels T - 1 - int(i T / n). ComfyUI's."""
    _only_zero("simple", final)
    count = _count(schedule)
    back = np.array([int(i * (count / steps)) for i in range(steps)])
    return [*_training(schedule, count - 1 - back).tolist(), schedule.first]


@_grid("ddim-uniform")
def ddim_uniform(schedule: Schedule, steps: int, final: str) -> list[float]:
    """The training levels 1, 1 + T // n, ... ComfyUI's; refused where they are not n."""
    _only_zero("ddim-uniform", final)
    count = _count(schedule)
    kept = np.arange(1.0, count, max(count // steps, 1))[::-1]
    return [*_training(schedule, kept).tolist(), schedule.first]


@_grid("beta57")
def beta57(schedule: Schedule, steps: int, final: str, *, a: float = 0.5, b: float = 0.7) -> list[float]:
    """Training levels at quantiles of Beta(a, b), whole. Lee et al. 2024, arXiv:2407.12173; 0.5, 0.7 are RES4LYF's.

    Level rint((T - 1) q(1 - i / n)); ComfyUI's beta is a = b = 0.6 and leaves out what is doubled, here refused.
    """
    _only_zero("beta57", final)
    _check_positive("a", a)
    _check_positive("b", b)
    quantiles = _beta_quantiles(1 - np.arange(steps) / steps, a, b)
    return [*_training(schedule, np.rint(quantiles * (_count(schedule) - 1))).tolist(), schedule.first]


def _beta_quantiles(p: Array, a: float, b: float) -> Array:
    """Where the distribution function of Beta(a, b) is p, by bisection."""
    whole = math.gamma(a) * math.gamma(b) / math.gamma(a + b)
    n = np.arange(80)

    def below(x: Array, a: float, b: float) -> Array:
        """int_0^x r^(a - 1) (1 - r)^(b - 1) dr = x^a sum_n ((1 - b)_n / n!) x^n / (a + n), x at most 1/2."""
        series = np.cumprod(np.concatenate([[1.0], 1 - b / n[1:]])) / (a + n)
        return np.asarray(x**a * (series * x[..., None] ** n).sum(-1) / whole)

    def mass(x: Array) -> Array:
        return np.where(x <= 0.5, below(np.minimum(x, 0.5), a, b), 1 - below(np.minimum(1 - x, 0.5), b, a))

    low, high = np.zeros_like(p), np.ones_like(p)
    for _ in range(70):
        middle = (low + high) / 2
        under = mass(middle) < p
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return np.where(p >= 1, 1.0, (low + high) / 2)


def _table(name: str) -> None:
    @_grid(name)
    def table(schedule: Schedule, steps: int, final: str) -> list[float]:
        levels, kind = TABLES[name]
        if kind == "flow":
            _check_flow(name, schedule)
        else:
            _check_no_flow(name, schedule)
        spread = _log_linear(levels, steps + 1)
        times = list(times_of(schedule, spread[:-1] if final == "zero" else spread))
        return [*times, schedule.first] if final == "zero" else times


def _log_linear(levels: Sequence[float], points: int) -> list[float]:
    """A table of levels at as many points, log sigma linear in between."""
    if points == len(levels):
        return list(levels)
    places = np.linspace(0.0, 1.0, points), np.linspace(0.0, 1.0, len(levels))
    return [float(v) for v in np.exp(np.interp(*places, np.log(levels)))]


for _name in TABLES:
    _table(_name)


@_grid("gits-sd")
def gits_sd(schedule: Schedule, steps: int, final: str) -> list[float]:
    """Tables of 4 to 8 steps for Stable Diffusion, in t = (time + 1) / T. Chen et al. 2024, arXiv:2405.11326 (GITS)."""
    if not schedule.discrete or schedule.scale != "vp":
        raise ValueError(f"schedule must have training times for gits-sd, got {schedule.name}")
    if steps not in GITS:
        raise ValueError(f"steps must be in [4, 8] for gits-sd, got {steps}")
    count = schedule.last - schedule.first
    times = [max(schedule.first + 1, schedule.first + count * t) for t in GITS[steps]]
    return [*times[:-1], schedule.first] if final == "zero" else times


def _few(name: str) -> None:
    @_grid(name)
    def few(schedule: Schedule, steps: int, final: str) -> list[float]:
        kind, tables = FEW[name]
        _only_zero(name, final)
        if kind == "flow":
            _check_flow(name, schedule)
        elif not schedule.discrete or schedule.scale != "vp":
            raise ValueError(f"schedule must have training times for {name}, got {schedule.name}")
        if steps not in tables:
            raise ValueError(f"steps must be {' or '.join(map(str, tables))} for {name}, got {steps}")
        times = times_of(schedule, tables[steps]) if kind == "flow" else tables[steps]
        return [*times, schedule.first]

    few.__doc__ = f"The published calls of a distilled network: {' or '.join(map(str, FEW[name][1]))} steps."


for _name in FEW:
    _few(_name)


OTHER_SPACINGS = tuple(name for name in NAMED if name not in SPACINGS)
HERE["spacing"].update(OTHER_SPACINGS)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive, got {value}")


def _check_no_flow(name: str, schedule: Schedule) -> None:
    if schedule.scale == "flow":
        raise ValueError(f"schedule must have levels sigma / alpha for {name}, got {schedule.name}")


def _check_flow(name: str, schedule: Schedule) -> None:
    if schedule.scale != "flow":
        raise ValueError(f"schedule must be a flow for {name}, got {schedule.name}")
