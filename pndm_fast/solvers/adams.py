"""Adams-Bashforth methods with weights from true step sizes, each naming its variable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import combine
from pndm_fast.plan.curves import Array
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.quadrature import against, exponential, integral
from pndm_fast.plan.row import SLOT, STATE
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_order
from pndm_fast.solvers.registry import solver

VARIABLES = ("t", "rho", "log_rho")
Weights = Callable[[int, int], list[float]]  # of step i, for its k newest slopes or fewer


def _straight(rows: PlanBuilder, order: int, weights_of: Weights) -> Plan:
    """x_s = m_s (x_t / m_t + sum_j w_j slope_j), the w_j adding up to the change of the path's variable."""
    for i, (t, s) in enumerate(pairwise(rows.times)):
        if rows.by_data(t, i % order, s):
            continue
        k = min(order, rows.history(i))
        target = rows.level(s)
        measure = target.alpha if rows.kind == "eps" else target.alpha + target.sigma
        phi = rows.transfer(t, s)
        weights = weights_of(i, k)
        history = [SLOT[(i - j) % order] for j in range(len(weights))]
        y = phi(STATE, 0 * STATE) + measure * combine(weights, history)
        rows.call(t, i % order, y, s)
    return rows.plan()


@solver("ipndm-v", order=2, spacing="trailing")
def ipndm_v(schedule: Schedule, times: Sequence[float], *, order: int = 4, prediction: str = "eps") -> Plan:
    """iPNDM with the Adams-Bashforth weights of the true step sizes in t. After arXiv:2204.13902, Zhang & Chen 2023.

    phi with gradient part sum_j w_j e_j, w_j = int_t^s l_j(r) dr / (s - t), l_j the Lagrange polynomials of the past
    times. On uniform times these are iPNDM's integers; on flow schedules it is Adams-Bashforth for dx/dt = flow.

    Raises:
        ValueError: order outside 1..4, times not decreasing.
    """
    check_order(order, 4)
    rows = PlanBuilder("ipndm-v", schedule, times, prediction)
    for i, (t, s) in enumerate(pairwise(rows.times)):
        k = min(order, i + 1)
        weights = [w / (s - t) for w in integral([rows.times[i - j] for j in range(k)], t, s)]
        gradient = combine(weights, [SLOT[(i - j) % order] for j in range(k)])
        rows.call(t, i % order, rows.transfer(t, s)(STATE, gradient), s)
    return rows.plan()


@solver("lms", order=4, spacing="karras")
def lms(schedule: Schedule, times: Sequence[float], *, order: int = 4, prediction: str = "eps") -> Plan:
    """Linear multistep: Adams-Bashforth for d(x/alpha)/d rho = eps, polynomial in rho = sigma/alpha.

    x_s/alpha_s = x_t/alpha_t + sum_j eps_j int l_j(rho) d rho. Katherine Crowson's k-diffusion; the rho-AB form of
    arXiv:2204.13902 (Zhang & Chen 2023). On flow schedules: for dx/dt = flow, polynomial in t.

    Raises:
        ValueError: order outside 1..4, times not decreasing.
    """
    check_order(order, 4)
    rows = PlanBuilder("lms", schedule, times, prediction)
    places = [rows.place(rows.level(t)) for t in rows.times]
    return _straight(rows, order, lambda i, k: integral([places[i - j] for j in range(k)], places[i], places[i + 1]))


@solver("deis", order=3, spacing="trailing")
def deis(
    schedule: Schedule,
    times: Sequence[float],
    *,
    order: int = 3,
    variable: str = "t",
    lower_order_final: bool | None = None,
    prediction: str = "eps",
) -> Plan:
    """DEIS, the Adams-Bashforth forms tAB and rhoAB. Zhang & Chen 2023, arXiv:2204.13902.

    x_s/alpha_s = x_t/alpha_t + sum_j eps_j int l_j(variable) d rho, rho = sigma/alpha. log_rho is what diffusers runs.
    From alpha = 0 the first step is by x_0, and its call no part of the history.

    Args:
        order: past values used, 1 to 4; k is the paper's AB(k - 1), 1 is DDIM, 4 its tAB3.
        variable: t, rho or log_rho, in which eps is a polynomial. (The paper's rhoRK are `rk` on the same schedule.)
        lower_order_final: of log_rho: end on lower orders; default where there are fewer than 15 steps. There a step to
            sigma = 0 is of order 1.

    Raises:
        ValueError: unknown variable, order outside 1..4, times not decreasing, lower_order_final of another variable.
    """
    check_order(order, 4)
    choose("variable", variable, VARIABLES)
    if lower_order_final is not None and variable != "log_rho":
        raise ValueError(f"lower_order_final must be None unless variable='log_rho', got {lower_order_final!r}")
    rows = PlanBuilder("deis", schedule, times, prediction, "eps")

    def rho(t: Array) -> Array:
        value: Array = schedule.sigma(t) / schedule.alpha(t)
        return value

    def weights(i: int, k: int) -> list[float]:
        past, t, s = [rows.times[i - j] for j in range(k)], rows.times[i], rows.times[i + 1]
        if variable == "t":
            return against(rho, past, t, s, schedule.first)
        places = [rows.place(rows.level(time)) for time in (*past, s)]
        if variable == "rho":
            return integral(places[:-1], places[0], places[-1])
        if places[-1] == 0:
            return [-places[0]]
        k = rows.order_at(i, order, lower_order_final)
        return exponential([math.log(p) for p in places[:k]], math.log(places[0]), math.log(places[-1]))

    return _straight(rows, order, weights)


@solver("gradient-estimation", order=1, spacing="karras")
def gradient_estimation(
    schedule: Schedule, times: Sequence[float], *, gamma: float = 2.0, prediction: str = "eps"
) -> Plan:
    """Gradient estimation. Permenter & Yuan 2023, arXiv:2306.04848, algorithm 2.

    phi with gradient part gamma e + (1 - gamma) e_-1, and e alone in the first step and that to sigma = 0; on flow
    schedules dx/dt in place of e. gamma = 1 is DDIM, 3/2 the Adams-Bashforth method of uniform steps.

    Raises:
        ValueError: times not decreasing, gamma not finite.
    """
    if not math.isfinite(gamma):
        raise ValueError(f"gamma must be finite, got {gamma}")
    rows = PlanBuilder("gradient-estimation", schedule, times, prediction)
    for i, (t, s) in enumerate(pairwise(rows.times)):
        now, past = SLOT[i % 2], SLOT[(i - 1) % 2]
        slope = now if i == 0 or rows.level(s).sigma == 0 else gamma * now + (1 - gamma) * past
        rows.call(t, i % 2, rows.transfer(t, s)(STATE, slope), s)
    return rows.plan()
