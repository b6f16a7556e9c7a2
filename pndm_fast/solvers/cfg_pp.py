"""CFG++: the guided estimate of x_0, noised again by the unconditional eps, in rows with a guidance of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import Transfer, ancestral, log_snr
from pndm_fast.plan.grids import with_log_snr
from pndm_fast.plan.levels import Level
from pndm_fast.plan.plan import MAX_ROWS, Plan
from pndm_fast.plan.quadrature import moment
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_ancestral
from pndm_fast.solvers.registry import solver

RULES = ("paper", "comfyui")


@solver("euler-cfg-pp", order=1, spacing="karras", stores="x0")
def euler_cfg_pp(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """DDIM with CFG++. Chung et al. 2024, arXiv:2406.08070, algorithm 2.

    x_s = alpha_s D_g + (sigma_s/sigma_t)(x - alpha_t D_u), D_g = D_u + w (D_c - D_u). It is DDIM's step, linear in D,
    at the guidance w alpha_s/(alpha_s - alpha_t sigma_s/sigma_t): a row's guidance_factor. w of a call is the paper's
    lambda, about 0 to 1, and ComfyUI's cfg; guided at w = 1 too. Where both outputs are one, it is DDIM.

    Raises:
        ValueError: times not decreasing.
    """
    return _first_order("euler-cfg-pp", schedule, times, 0.0, 0.0, prediction)


@solver("euler-ancestral-cfg-pp", order=1, spacing="karras", stores="x0", stochastic=True)
def euler_ancestral_cfg_pp(
    schedule: Schedule, times: Sequence[float], *, eta: float = 1.0, noise_scale: float = 1.0, prediction: str = "eps"
) -> Plan:
    """`euler_ancestral` with CFG++, as ComfyUI has it: `euler_cfg_pp` to rho_down, then noise. After arXiv:2406.08070.

    Raises:
        ValueError: times not decreasing, eta or noise_scale negative.
    """
    check_ancestral(schedule, eta, noise_scale, above_1=True)
    return _first_order("euler-ancestral-cfg-pp", schedule, times, eta, noise_scale, prediction)


def _first_order(
    name: str, schedule: Schedule, times: Sequence[float], eta: float, noise_scale: float, prediction: str
) -> Plan:
    rows = PlanBuilder(name, schedule, times, prediction, "x0")
    for t, s in pairwise(rows.times):
        reduced, tau = ancestral(rows.level(t), rows.level(s), eta)
        phi = Transfer(rows.level(t), reduced, "x0")
        y = phi(STATE, SLOT[0]) + noise_scale * tau * NOISE
        rows.call(t, 0, y, s, guidance_factor=reduced.alpha / phi.slot)
    return rows.plan()


@solver("dpmpp-2m-cfg-pp", order=2, spacing="karras", stores="x0")
def dpmpp_2m_cfg_pp(
    schedule: Schedule, times: Sequence[float], *, rule: str = "paper", prediction: str = "eps"
) -> Plan:
    """DPM-Solver++(2M) with CFG++. Chung et al. 2024, arXiv:2406.08070, appendix on DPM-Solver++.

    x_s = alpha_s D_g + (sigma_s/sigma_t)(x - alpha_t D_u) + alpha_s (1 - exp(-h))/(2 r) (E - D_u,-1), r = h_-1/h,
    D_g = D_u + w (D_c - D_u). The unconditional output is kept in slots of its own. The first step and that to
    sigma = 0 are of order 1.

    Args:
        rule: paper has E = D_u, the slope of one network; comfyui has E = D_g, as its dpmpp_2m_cfg_pp.

    Raises:
        ValueError: times not decreasing, unknown rule.
    """
    choose("rule", rule, RULES)
    rows = PlanBuilder("dpmpp-2m-cfg-pp", schedule, times, prediction, "x0")
    for i, (t, s) in enumerate(pairwise(rows.times)):
        guided, uncond, past = SLOT[0], SLOT[1 + i % 2], SLOT[2 - i % 2]
        source, target = rows.level(t), rows.level(s)
        ratio = target.sigma / source.sigma
        y = ratio * STATE + target.alpha * guided - ratio * source.alpha * uncond
        if rows.order_at(i, 2) == 2 and math.isfinite(before := rows.lam(t) - rows.lam(rows.times[i - 1])):
            weight = rows.transfer(t, s)(0 * STATE, SLOT[0])[2] * (rows.lam(s) - rows.lam(t)) / (2 * before)
            y = y + weight * ((uncond if rule == "paper" else guided) - past)
        rows.call(t, 0, y, s, second=1 + i % 2)
    return rows.plan()


@solver("res-multistep-cfg-pp", order=2, spacing="karras", stores="x0")
def res_multistep_cfg_pp(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """`res_2m` with CFG++, ComfyUI's: the step from x + alpha_t (D_g - D_u) by D_u. After arXiv:2406.08070, 2308.02157.

    x_s = (sigma_s/sigma_t) (x + alpha_t (D_g - D_u)) + alpha_s h ((phi_1 - phi_2/c) D_u + (phi_2/c) D_u,-1), with h, c
    and phi of `res_2m`. So the guidance of a step shrinks with its noise, where that of the first step and of the one
    to sigma = 0, which are `euler_cfg_pp`'s, is alpha_s (D_g - D_u).

    Raises:
        ValueError: times not decreasing.
    """
    return _res("res-multistep-cfg-pp", schedule, times, 0.0, 0.0, prediction)


@solver("res-multistep-ancestral-cfg-pp", order=2, spacing="karras", stores="x0", stochastic=True)
def res_multistep_ancestral_cfg_pp(
    schedule: Schedule, times: Sequence[float], *, eta: float = 1.0, noise_scale: float = 1.0, prediction: str = "eps"
) -> Plan:
    """`res_multistep_cfg_pp` to the level that ancestral noise completes, ComfyUI's. After arXiv:2406.08070.

    h and c are those of `res_multistep_ancestral`, with the posterior's split.

    Raises:
        ValueError: times not decreasing, eta or noise_scale negative.
    """
    check_ancestral(schedule, eta, noise_scale, above_1=True)
    return _res("res-multistep-ancestral-cfg-pp", schedule, times, eta, noise_scale, prediction)


def _res(
    name: str, schedule: Schedule, times: Sequence[float], eta: float, noise_scale: float, prediction: str
) -> Plan:
    rows = PlanBuilder(name, schedule, times, prediction, "x0")
    past: tuple[float, Level] | None = None
    for i, (t, s) in enumerate(pairwise(rows.times)):
        guided, uncond, old = SLOT[0], SLOT[1 + i % 2], SLOT[2 - i % 2]
        source, (end, tau) = rows.level(t), ancestral(rows.level(t), rows.level(s), eta)
        ratio = end.sigma / source.sigma
        y = ratio * (STATE - source.alpha * uncond)
        if past is None or end.sigma == 0:
            y = y + end.alpha * guided
        else:
            h, before = log_snr(end) - rows.lam(t), log_snr(past[1]) - past[0]
            y = y + ratio * source.alpha * (guided - uncond) + end.alpha * uncond
            if math.isfinite(before):
                y = y + end.alpha * h * moment(h, 1) * h / before * (uncond - old)
        rows.call(t, 0, y + noise_scale * tau * NOISE, s, second=1 + i % 2)
        past = (rows.lam(t), end)
    return rows.plan()


@solver("gradient-estimation-cfg-pp", order=1, spacing="karras")
def gradient_estimation_cfg_pp(
    schedule: Schedule, times: Sequence[float], *, gamma: float = 2.0, prediction: str = "eps"
) -> Plan:
    """`gradient_estimation` with CFG++, ComfyUI's. After arXiv:2406.08070, 2306.04848.

    x_s = alpha_s D_g + sigma_s e_u, `euler_cfg_pp`'s step, and then (gamma - 1)(e_u - e_u,-1) of unconditional slopes
    as `gradient_estimation` has it: of dx/dt = flow on flow schedules, where ComfyUI's x_s is D_g + sigma_s flow_u. The
    first step and that to sigma = 0 have no such term.

    Raises:
        ValueError: times not decreasing, gamma not finite.
    """
    if not math.isfinite(gamma):
        raise ValueError(f"gamma must be finite, got {gamma}")
    rows = PlanBuilder("gradient-estimation-cfg-pp", schedule, times, prediction)
    for i, (t, s) in enumerate(pairwise(rows.times)):
        guided, uncond, past = SLOT[0], SLOT[1 + i % 2], SLOT[2 - i % 2]
        phi, (_, of_slot) = rows.transfer(t, s), rows.preview(t)
        y = phi(STATE, uncond) + rows.level(s).alpha * of_slot * (guided - uncond)
        if i > 0 and rows.level(s).sigma > 0:
            y = y + (gamma - 1) * phi(0 * STATE, uncond - past)
        rows.call(t, 0, y, s, second=1 + i % 2)
    return rows.plan()


@solver(
    "dpmpp-2s-ancestral-cfg-pp", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras",
    inner_steps=MAX_ROWS, stores="x0", stochastic=True,
)  # fmt: skip
def dpmpp_2s_ancestral_cfg_pp(
    schedule: Schedule,
    times: Sequence[float],
    *,
    rule: str = "paper",
    eta: float = 1.0,
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """`dpmpp_2s_ancestral` with CFG++, the authors'. Chung et al. 2024, arXiv:2406.08070, and its released code.

    The stage at half the way in lam goes by D_u alone; then x_s = alpha_s E_g + (sigma_s/sigma_t) (x - alpha_t E_u)
    and noise, E = (1 - 1/(2 r)) D + D_2/(2 r), which is the stage's D_2 at r = 1/2, of both outputs. 2 n - 1 network
    calls, each with both; the step to sigma = 0 is D_g.

    Args:
        rule: comfyui is its dpmpp_2s_ancestral_cfg_pp: the stage starts at x + alpha_t (D_g - D_u) and goes by D_g,
            x_s = (sigma_s/sigma_t) (x + alpha_t (D_g - E_u)) + alpha_s (1 - exp(-h)) E_g.
        eta, noise_scale: as `euler_ancestral` has them; eta at most 1.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`), unknown rule, eta outside
            [0, 1], noise_scale negative.
    """
    choose("rule", rule, RULES)
    check_ancestral(schedule, eta, noise_scale)
    name = "dpmpp-2s-ancestral-cfg-pp"
    rows = PlanBuilder(name, schedule, with_log_snr(schedule, times, name), prediction, "x0")
    guided, uncond, inner, inner_uncond = SLOT[:4]
    for t, s in pairwise(rows.times):
        if rows.level(s).sigma == 0:
            rows.call(t, 0, rows.level(s).alpha * guided, s, second=1)
            continue
        rows.check_data(t)
        source, (end, tau) = rows.level(t), ancestral(rows.level(t), rows.level(s), eta)
        middle, part = rows.toward(t, s, end)
        first, whole = rows.transfer(t, middle), Transfer(source, end, "x0")
        last = 1 / (2 * part)
        mixed, mixed_uncond = (
            (1 - last) * one + last * other for one, other in ((guided, inner), (uncond, inner_uncond))
        )
        push = source.alpha * (guided - uncond)
        stage = first(STATE, uncond) if rule == "paper" else first(STATE + push, guided)
        lead = end.alpha * mixed if rule == "paper" else whole(source.alpha * guided, mixed)
        y = lead + end.sigma / source.sigma * (ANCHOR - source.alpha * mixed_uncond)
        rows.call(t, 0, stage, middle, x=STATE, ends=False, second=1)
        rows.call(middle, 2, y + noise_scale * tau * NOISE, s, second=3)
    return rows.plan()
