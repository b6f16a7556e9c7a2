"""Heun's method and EDM's stochastic sampler, in the variable in which noiseless paths are straight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pndm_fast.plan.coefficients import combine
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE, Form, Prologue
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder
from pndm_fast.solvers.registry import solver

MOST_CHURN = math.sqrt(2) - 1
End = Callable[[Form], Form]


@dataclass(frozen=True)
class Churn:
    """Noise added before a call: rho -> (1 + gamma) rho, rho = sigma/alpha."""

    churn: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def time(self, rows: PlanBuilder, t: float) -> float:
        """The time that a step from t starts at after its noise."""
        at = rows.level(t)
        if self.churn == 0 or at.sigma == 0 or at.alpha == 0 or not self.low <= at.sigma / at.alpha <= self.high:
            return t
        gamma = min(self.churn / rows.steps, MOST_CHURN)
        hat = max(t, float(rows.schedule.time_at(rows.lam(t) - math.log1p(gamma))))
        return float(round(hat)) if rows.whole else hat

    def move(self, rows: PlanBuilder, t: float, hat: float) -> tuple[float, float]:
        """(scale, noise): the state at t, as the state at hat."""
        source, target = rows.level(t), rows.level(hat)
        if t == hat:
            return 1.0, 0.0
        scale = target.alpha / source.alpha
        return scale, self.noise * math.sqrt(max(0.0, target.sigma**2 - (scale * source.sigma) ** 2))


def check_churn(churn: float, churn_min: float, churn_max: float, churn_noise: float) -> Churn:
    """The four options as a `Churn`.

    Raises:
        ValueError: a negative one, churn_min above churn_max.
    """
    for name, value in (("churn", churn), ("churn_min", churn_min), ("churn_max", churn_max)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or positive, got {value}")
    if churn_min > churn_max:
        raise ValueError(f"churn_min must be at most churn_max, got {churn_min} and {churn_max}")
    if not 0 < churn_noise < math.inf:
        raise ValueError(f"churn_noise must be positive, got {churn_noise}")
    return Churn(churn, churn_min, churn_max, churn_noise)


def churned(rows: PlanBuilder, churn: Churn, step: Callable[[float, float, float, End], None]) -> Plan:
    """The rows of `step` from each time after its noise: (its time, the step's end, that after the next noise, noise).

    The noise of a step stands in the last row of the step before, whose z it is; that of the first in the prologue.
    """
    hats = [churn.time(rows, t) for t in rows.times]
    first = Prologue(rows.prologue.p0, *churn.move(rows, rows.times[0], hats[0]))
    rows.start_at(hats[0])
    rows.prologue = first
    for i, (t, s) in enumerate(zip(hats, rows.times[1:], strict=False)):
        to = s if i == rows.steps - 1 else hats[i + 1]
        scale, noise = churn.move(rows, s, to)

        def end(form: Form, scale: float = scale, noise: float = noise) -> Form:
            return scale * form + noise * NOISE

        step(t, s, to, end)
    return rows.plan()


@solver("heun", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras")
def heun(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """Heun's method for d(x/alpha)/d(sigma/alpha) = eps. Karras et al. 2022, arXiv:2206.00364, algorithm 1.

    An Euler step, then again with the mean of both slopes; the step to sigma = 0 is Euler's. 2 n - 1 network calls. On
    flow schedules dx/dt = flow takes the place: the flow-matching Heun method.

    Raises:
        ValueError: times not decreasing.
    """
    return _heun("heun", schedule, times, Churn(), prediction)


@solver("edm", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras", stochastic=True)
def edm(
    schedule: Schedule,
    times: Sequence[float],
    *,
    churn: float = 40.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """EDM's stochastic sampler. Karras et al. 2022, arXiv:2206.00364, algorithm 2.

    Before a step rho becomes rho_hat = (1 + gamma) rho by fresh noise, gamma = min(churn / n, sqrt(2) - 1) where
    churn_min <= rho <= churn_max; then Heun's step from there. On a schedule that ends, no further than its end, and of
    whole times to the nearest. The noise of a step stands in the last row of the step before, whose z it is, and that
    of the first in the prologue: no row is called at a level that its own noise has yet to reach.

    Args:
        churn, churn_min, churn_max, churn_noise: the paper's S_churn, S_tmin, S_tmax and S_noise. A churn of 40 is the
            authors' for ImageNet-64, with 0.05, 50 and 1.003; their script's default is 0, which is `heun`.

    Raises:
        ValueError: times not decreasing, a negative option, churn_min above churn_max.
    """
    return _heun("edm", schedule, times, check_churn(churn, churn_min, churn_max, churn_noise), prediction)


def _heun(name: str, schedule: Schedule, times: Sequence[float], churn: Churn, prediction: str) -> Plan:
    rows = PlanBuilder(name, schedule, times, prediction)

    def step(t: float, s: float, to: float, end: End) -> None:
        phi = rows.transfer(t, s)
        if rows.level(s).sigma == 0:
            rows.call(t, 0, end(phi(STATE, SLOT[0])), to)
            return
        rows.call(t, 0, phi(STATE, SLOT[0]), s, x=STATE, ends=False)
        rows.call(s, 1, end(phi(ANCHOR, (SLOT[0] + SLOT[1]) / 2)), to)

    return churned(rows, churn, step)


@solver("heunpp2", order=1, min_steps=2, calls_per_step=3, extra_calls=-3, spacing="karras")
def heunpp2(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """Heun++ of three slopes, ComfyUI's and stable-diffusion-webui's. After arXiv:2206.00364, algorithm 1.

    From t to s Euler's steps to s and on to the next time u, then the slopes by their noise: w_1 e_t + w_2 e_s + w_3
    e_u, w_2 = rho_s/(3 rho_0), w_3 = rho_u/(3 rho_0), w_1 = 1 - w_2 - w_3, rho_0 the first, rho = sigma/alpha (on flow
    schedules sigma). The step before the last has w_2 = rho_s/(2 rho_0) alone, the last is Euler's. The weights tend to
    Euler's, not to Heun's: of first order. 3 n - 3 network calls.

    Raises:
        ValueError: times not decreasing, fewer than two steps.
    """
    rows = PlanBuilder("heunpp2", schedule, times, prediction)
    rho = [rows.place(rows.level(t)) for t in rows.times]
    for i, (t, s) in enumerate(pairwise(rows.times)):
        phi, more = rows.transfer(t, s), min(2, rows.steps - 1 - i)
        if more == 0:
            rows.call(t, 0, phi(STATE, SLOT[0]), s)
            continue
        ahead = rows.times[i + 1 : i + 1 + more]
        rows.call(t, 0, phi(STATE, SLOT[0]), s, x=STATE, ends=False)
        if more == 2:
            rows.call(s, 1, rows.transfer(*ahead)(STATE, SLOT[1]), ahead[1], ends=False)
        weights = [rho[i + 1 + j] / ((more + 1) * rho[0]) for j in range(more)]
        slope = combine([1 - sum(weights), *weights], SLOT[: more + 1])
        rows.call(ahead[-1], more, phi(ANCHOR, slope), s)
    return rows.plan()
