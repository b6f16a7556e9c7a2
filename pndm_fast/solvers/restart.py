"""Samplers whose noise goes up again: Restart sampling, and AlphaFold 3's steps that add noise and then go too far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pndm_fast.plan.checks import shown
from pndm_fast.plan.grids import KARRAS_RHO, with_log_snr
from pndm_fast.plan.numbers import is_integer, is_number, plain
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_at_least_0
from pndm_fast.solvers.heun import Churn, End, churned
from pndm_fast.solvers.registry import solver

Restarts = tuple[tuple[int, int, float, float], ...]
ONCE: Restarts = ((10, 1, 0.1, 2.0),)  # web UIs' for 20 to 35 steps
MOST_POINTS = 10_000


@solver(
    "restart", order=2, min_steps=2, calls_per_step=2, extra_calls=17, final_calls=1, spacing="karras",
    stochastic=True, calls_by="restarts",
)  # fmt: skip
def restart(
    schedule: Schedule,
    times: Sequence[float],
    *,
    restarts: Restarts = ONCE,
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """Restart sampling. Xu et al. 2023, arXiv:2306.14878, algorithm 1, with Heun's steps as its authors have it.

    `heun` on the grid; when it stands at rho = sigma/alpha of an interval's low end, K times noise to the high end,
    x_up = (alpha_up/alpha) x + sqrt(sigma_up^2 - (alpha_up/alpha)^2 sigma^2) z, and Heun's steps down again, on Karras'
    grid of N points with exponent 7. The noise stands in the row before it. 2 n - 1 network calls and 2 K (N - 1) more
    for each interval.

    Args:
        restarts: (N, K, low, high) of each interval, in sigma/alpha; low is taken for the nearest level of the grid
            that is below high and above 0, a high beyond the schedule's end for that. () is `heun`. The paper's for
            ImageNet-64: (3, 1, 19.35, 40.79), (4, 1, 1.09, 1.92), (4, 5, 0.59, 1.09), (4, 5, 0.30, 0.59),
            (6, 6, 0.06, 0.30).
        noise_scale: multiplies the noise alone; the authors' is 1.003 on EDM's networks.

    Raises:
        TypeError, ValueError: times not decreasing, restarts of another form, an interval that no level of the grid
            is in, whole times that leave no room, noise_scale negative.
    """
    check_at_least_0(noise_scale=noise_scale)
    intervals = _check_restarts(restarts)
    rows = PlanBuilder("restart", schedule, times, prediction)
    loops: dict[int, list[list[float]]] = {}
    for interval in intervals:
        i, down = _loop(rows, interval)
        loops.setdefault(i, []).extend([down] * interval[1])
    path = [rows.times[0]]
    for i, time in enumerate(rows.times[1:], 1):
        path += [time, *(t for down in loops.get(i, []) for t in down)]
    for i, (t, s) in enumerate(pairwise(path)):
        if t < s:  # noise, which stands in the row before
            continue
        up = path[i + 2] if i + 2 < len(path) and path[i + 2] > s else s
        scale, noise = Churn(noise=noise_scale).move(rows, s, up)
        phi = rows.transfer(t, s)
        if rows.level(s).sigma == 0:
            rows.call(t, 0, phi(STATE, SLOT[0]), s)
            continue
        rows.call(t, 0, phi(STATE, SLOT[0]), s, x=STATE, ends=False)
        y = phi(ANCHOR, (SLOT[0] + SLOT[1]) / 2)
        rows.call(s, 1, scale * y + noise * NOISE, up)
    return rows.plan()


def _check_restarts(restarts: Any) -> Restarts:
    """The intervals as numbers."""
    restarts = plain(restarts)
    if isinstance(restarts, str) or not isinstance(restarts, Sequence):
        raise TypeError(f"restarts must be (N, K, low, high) of each interval, got {shown(restarts)}")
    for one in restarts:
        four = isinstance(one, Sequence) and len(one) == 4 and not isinstance(one, str)
        if not four or not all(map(is_integer, one[:2])) or not all(map(is_number, one[2:])):
            raise TypeError(f"restarts must be (N, K, low, high) of each interval, got {shown(one)} among them")
        points, count, low, high = one
        if not (points >= 2 and count >= 0 and 0 <= low < high < math.inf):
            raise ValueError(f"restarts must have N of at least 2, K of at least 0 and low < high, got {shown(one)}")
    if sum(one[0] * one[1] for one in restarts) > MOST_POINTS:
        raise ValueError(f"restarts must have at most {MOST_POINTS} points together, got {shown(restarts)}")
    return tuple((int(n), int(k), float(low), float(high)) for n, k, low, high in restarts)


def _loop(rows: PlanBuilder, interval: tuple[int, int, float, float]) -> tuple[int, list[float]]:
    """Where in the grid an interval begins, and the times of one way down, from its high end to there."""
    points, _, low, high = interval
    if rows.schedule.scale != "sigma":  # no further than the schedule's end
        high = min(high, math.exp(-float(rows.schedule.lam(rows.schedule.last))))
    levels = {i: math.exp(-rows.lam(t)) for i, t in enumerate(rows.times) if i and rows.level(t).sigma > 0}
    inside = [i for i, rho in levels.items() if rho < high]
    if not inside:
        raise ValueError(f"restarts must have a level of the grid above 0 and below {high:g}, got none")
    i = min(inside, key=lambda k: abs(levels[k] - low))
    roots = np.linspace(high ** (1 / KARRAS_RHO), levels[i] ** (1 / KARRAS_RHO), points)
    down = [float(t) for t in rows.schedule.time_at(-KARRAS_RHO * np.log(roots[:-1]))]
    down = [*(map(round, down) if rows.whole else down), rows.times[i]]
    if not all(t > s for t, s in pairwise(down)):
        raise ValueError(
            f"integer_times must leave a whole time for each of a restart's {points} points, got {down[0]:g} to "
            f"{down[-1]:g}"
        )
    return i, [float(t) for t in down]


@dataclass(frozen=True)
class _Above(Churn):
    """gamma in full before steps to a level above `low`."""

    def time(self, rows: PlanBuilder, t: float) -> float:
        after = rows.times.index(t) + 1
        if self.churn == 0 or after == len(rows.times) or rows.level(t).alpha == 0:
            return t
        at = rows.level(rows.times[after])
        if not at.sigma / at.alpha > self.low:
            return t
        hat = max(t, float(rows.schedule.time_at(rows.lam(t) - math.log1p(self.churn))))
        return float(round(hat)) if rows.whole else hat


@solver("alphafold-3", order=1, spacing="karras", stochastic=True)
def alphafold_3(
    schedule: Schedule,
    times: Sequence[float],
    *,
    gamma: float = 0.8,
    gamma_min: float = 1.0,
    step_scale: float = 1.5,
    noise_scale: float = 1.003,
    prediction: str = "eps",
) -> Plan:
    """AlphaFold 3's sampler, without its random rotations. Abramson et al. 2024, Nature 630, supplement, algorithm 18.

    After arXiv:2206.00364, algorithm 2, in Euler's steps: from rho by noise to rho_hat = (1 + gamma) rho where the
    step's end is above gamma_min, rho = sigma/alpha, then
    x_s/alpha_s = x_hat/alpha_hat + step_scale (rho_s - rho_hat) e. Boltz's and Protenix's too. Its grid is
    Schedule.edm(16 * 4e-4, 16 * 160, 16) with spacing="karras" and final="min", in 200 steps. On a schedule that ends,
    no further than its end. With a step_scale above 1 the spread of samples is less than the data's.

    Args:
        gamma, gamma_min: the paper's gamma_0 and gamma_min; unlike `edm`'s churn, no number of steps divides it.
        step_scale: eta, what a step's length is multiplied by; 1 and gamma = 0 are `euler`.
        noise_scale: lambda, what the noise is multiplied by.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`), a negative option.
    """
    check_at_least_0(gamma=gamma, gamma_min=gamma_min, step_scale=step_scale, noise_scale=noise_scale)
    rows = PlanBuilder("alphafold-3", schedule, with_log_snr(schedule, times, "alphafold-3"), prediction, "eps")

    def step(t: float, s: float, to: float, end: End) -> None:
        rows.check_data(t)
        source, target = rows.level(t), rows.level(s)
        straight = target.alpha / source.alpha * STATE
        y = straight + step_scale * (rows.transfer(t, s)(STATE, SLOT[0]) - straight)
        rows.call(t, 0, end(y), to)

    return churned(rows, _Above(gamma, gamma_min, noise=noise_scale), step)
