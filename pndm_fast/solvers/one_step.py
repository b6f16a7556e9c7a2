"""One-step solvers: DDIM, DDPM and their relatives, each a single transfer a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import Transfer, ancestral
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.row import NOISE, SLOT, STATE
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_ancestral, check_eta
from pndm_fast.solvers.heun import Churn, End, check_churn, churned
from pndm_fast.solvers.phase.langevin import euler as phase_euler
from pndm_fast.solvers.registry import solver

TRAINING_TIMES = 1000  # that lcm's time_scale is meant for


@solver("ddpm", order=1, stochastic=True)
def ddpm(
    schedule: Schedule,
    times: Sequence[float],
    *,
    variance: str = "small",
    prediction: str = "eps",
) -> Plan:
    """DDPM ancestral sampling on any grid. Ho et al. 2020, arXiv:2006.11239, eq. 6, 7 and section 3.2.

    mean as DDIM's at eta = 1; variance small: (sigma_s^2/sigma_t^2) (1 - alpha_t^2/alpha_s^2), the posterior's;
    large: 1 - alpha_t^2/alpha_s^2. The step to sigma = 0 adds no noise.

    Raises:
        ValueError: unknown variance, times not decreasing.
    """
    choose("variance", variance, ("small", "large"))
    plan = _one_step("ddpm", schedule, times, 1.0, prediction)
    if variance == "small":
        return plan
    rows = []
    for row in plan.rows:
        (alpha, sigma), _, (alpha_s, sigma_s) = (level.position for level in row.levels)
        large = math.sqrt(max(0.0, sigma**2 - (alpha / alpha_s * sigma_s) ** 2)) if sigma_s > 0 else 0.0
        rows.append(replace(row, y=(*row.y[:-1], large)))
    return replace(plan, rows=tuple(rows))


@solver("ddim", order=1)
def ddim(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 0.0,
    prediction: str = "eps",
) -> Plan:
    """DDIM. Song et al. 2021, arXiv:2010.02502, eq. 12 and 16; phi with gradient part e.

    x_s = alpha_s/alpha_t (x_t - sigma_t e) + sqrt(sigma_s^2 - tau^2) e + tau z,
    tau = eta (sigma_s/sigma_t) sqrt(1 - alpha_t^2/alpha_s^2).

    Args:
        times: decreasing, length n + 1, in the units of `schedule`; n network calls.
        eta: 0 is deterministic, 1 is DDPM.

    Raises:
        ValueError: times not decreasing, eta outside [0, 1].
    """
    check_eta(eta)
    return _one_step("ddim", schedule, times, eta, prediction)


@solver("euler", order=1, spacing="karras", space="both")
def euler(
    schedule: Schedule | PSLD,
    times: Sequence[float],
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """Euler's method for d(x/alpha)/d(sigma/alpha) = eps. Karras et al. 2022, arXiv:2206.00364, eq. 1 with Euler.

    The same step as DDIM's, for both are exact on straight paths; on flow schedules it is x + (s - t) flow, the
    flow-matching Euler step (Liu et al. 2022, arXiv:2209.03003). Only the usual grid differs. In phase space it is
    Euler's method for z itself: z + h (-F z + G G^T s / 2).

    Args:
        churn, churn_min, churn_max, churn_noise: noise before each step, as `edm` has it; of numbers alone.

    Raises:
        ValueError: times not decreasing, a negative option, churn in phase space.
    """
    noise = check_churn(churn, churn_min, churn_max, churn_noise)
    if isinstance(schedule, PSLD):
        if noise != Churn():
            raise ValueError(f"churn must be left out for euler on {schedule.name}, got churn={churn}")
        return phase_euler(schedule, times, prediction=prediction)
    if churn == 0:
        return _one_step("euler", schedule, times, 0.0, prediction)
    rows = PlanBuilder("euler", schedule, times, prediction)

    def step(t: float, s: float, to: float, end: End) -> None:
        kind = _seen(rows, t)
        rows.call(t, 0, end(Transfer(rows.level(t), rows.level(s), kind)(STATE, SLOT[0])), to, kind=kind)

    return churned(rows, noise, step)


@solver("euler-ancestral", order=1, spacing="karras", stochastic=True)
def euler_ancestral(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    split: str = "posterior",
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """Ancestral steps of Euler's method (k-diffusion's): to rho_down, then noise rho_up, rho = sigma/alpha.

    rho_up = eta rho_s sqrt(1 - rho_s^2/rho_t^2), at most rho_s, rho_down^2 = rho_s^2 - rho_up^2. For rho these are the
    posterior's numbers, so the step is DDIM's with that eta (Song et al. 2021, arXiv:2010.02502, eq. 16), at eta = 1
    DDPM's.

    Args:
        eta: above 1 there is more noise than the posterior's, up to a step to the data and all of it anew.
        split: posterior, as above; flow, on flow schedules, the split that ComfyUI and LTX take there:
            sigma_d = sigma_s (1 + eta (sigma_s/sigma_t - 1)), then scaled by (1 - sigma_s)/(1 - sigma_d).
        noise_scale: multiplies the noise alone, k-diffusion's s_noise.

    Raises:
        ValueError: times not decreasing, eta or noise_scale negative, split="flow" on another schedule.
    """
    check_ancestral(schedule, eta, noise_scale, split, above_1=True)
    return _one_step("euler-ancestral", schedule, times, eta, prediction, split, noise_scale)


def _seen(rows: PlanBuilder, t: float) -> str:
    """What the slot of a call at t can hold: at alpha = 0 eps is y itself and says nothing of x_0."""
    return "x0" if rows.level(t).alpha == 0 and rows.kind == "eps" else rows.kind


def _one_step(
    name: str,
    schedule: Schedule,
    times: Sequence[float],
    eta: float,
    prediction: str,
    split: str = "posterior",
    noise_scale: float = 1.0,
) -> Plan:
    rows = PlanBuilder(name, schedule, times, prediction)
    for t, s in pairwise(rows.times):
        # the deterministic part stops at the level that tau z completes to sigma_s
        reduced, tau = ancestral(rows.level(t), rows.level(s), eta, split)
        kind = _seen(rows, t)
        phi = Transfer(rows.level(t), reduced, kind)
        rows.call(t, 0, phi(STATE, SLOT[0]) + noise_scale * tau * NOISE, s, kind=kind)
    return rows.plan()


@solver("lcm", order=0, spacing="trailing", stores="x0", stochastic=True)
def lcm(
    schedule: Schedule,
    times: Sequence[float],
    *,
    time_scale: float = 10.0,
    sigma_data: float = 0.5,
    prediction: str = "eps",
) -> Plan:
    """Multistep consistency sampling of latent consistency models. Luo et al. 2023, arXiv:2310.04378.

    f = c_skip x + c_out x_0, c_skip = d^2/(u^2 + d^2), c_out = u/sqrt(u^2 + d^2), u = time_scale t, d = sigma_data;
    x_s = alpha_s f + sigma_s z. Only for networks distilled to it; the last step is f itself. t counts training times:
    those of a discrete schedule, and 1000 over the whole of a continuous one.

    Raises:
        ValueError: times not decreasing, time_scale or sigma_data not positive, a schedule without training times.
    """
    for name, value in (("time_scale", time_scale), ("sigma_data", sigma_data)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    if schedule.scale == "sigma":
        raise ValueError(f"schedule must have training times for lcm, got {schedule.name}")
    per_time = time_scale if schedule.discrete else time_scale * TRAINING_TIMES / schedule.last
    rows = PlanBuilder("lcm", schedule, times, prediction, kind="x0")
    for t, s in pairwise(rows.times):
        u = per_time * (t - max(schedule.first, 0.0))
        skip, out = sigma_data**2 / (u * u + sigma_data**2), u / math.hypot(u, sigma_data)
        target = rows.level(s)
        rows.call(t, 0, target.alpha * (skip * STATE + out * SLOT[0]) + target.sigma * NOISE, s)
    return rows.plan()


@solver("ddim-inverse", order=1, spacing="leading", inverts=True)
def ddim_inverse(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """DDIM run backwards, from data to the noise that gives it. After Song et al. 2021, arXiv:2010.02502, section 4.3.

    x_t = phi(x_s, e; s -> t), e = network(x_s, t): the paper reverses the flow of its eq. 14, which leaves open at
    which end of a step the network stands. Here it sees the cleaner state and is told the time t of the noisy end, as
    in diffusers; guided-diffusion tells it s. Either undoes DDIM's step to first order. `times` decrease as everywhere;
    the plan runs them from the last to the first.

    Raises:
        ValueError: times not decreasing.
    """
    if prediction == "edm":  # it has no c_noise for sigma = 0
        raise ValueError("prediction must be eps, v, x0 or flow for ddim-inverse, got 'edm'")
    rows = PlanBuilder("ddim-inverse", schedule, times, prediction)
    rows.start_at(rows.times[-1])
    for s, t in pairwise(rows.times[::-1]):
        rows.call(s, 0, rows.transfer(s, t)(STATE, SLOT[0]), t, model_time=t)
    return rows.plan()
