"""CFG++: the guided estimate of x_0, noised again by the unconditional eps, in rows with a guidance of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import Transfer, ancestral
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import NOISE, SLOT, STATE
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
