"""The PNDM family: solvers of a transfer part (how a state and an eps move from t to s) and a gradient part.

The gradient part says which combination of eps goes in. PNDM, Liu et al. 2022, arXiv:2202.09778.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pndm_fast.plan.coefficients import ADAMS_BASHFORTH, combine
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, SLOT, STATE
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder
from pndm_fast.solvers.registry import solver


def adams_bashforth(rows: PlanBuilder, order: int, first: int = 0) -> None:
    """Gradient part (55, -59, 37, -9)/24, of lower order while the history is short; step i keeps slot i % order."""
    for i, (t, s) in enumerate(pairwise(rows.times)):
        if i >= first:
            k = min(order, i + 1)
            gradient = combine(ADAMS_BASHFORTH[k], [SLOT[(i - j) % order] for j in range(k)])
            rows.call(t, i % order, rows.transfer(t, s)(STATE, gradient), s)


def improved_euler(rows: PlanBuilder) -> None:
    """First step with gradient part (e_1 + e_2)/2; only e_1 enters the history."""
    t, s = rows.times[:2]
    phi = rows.transfer(t, s)
    rows.call(t, 0, phi(STATE, SLOT[0]), s, x=STATE, ends=False)
    rows.call(s, 1, phi(ANCHOR, (SLOT[0] + SLOT[1]) / 2), s)


def runge_kutta(rows: PlanBuilder, steps: int, integer_times: bool) -> None:
    """First steps with gradient part (e_1 + 2 e_2 + 2 e_3 + e_4)/6; only e_1 enters the history."""
    for i, (t, s) in enumerate(pairwise(rows.times[: steps + 1])):
        middle = middle_of(t, s, integer_times)
        half, whole = rows.transfer(t, middle), rows.transfer(t, s)
        e1, e2, e3, e4 = SLOT[i], *SLOT[3:6]
        rows.call(t, i, half(STATE, e1), middle, x=STATE, ends=False)
        rows.call(middle, 3, half(ANCHOR, e2), middle, ends=False)
        rows.call(middle, 4, whole(ANCHOR, e3), s, ends=False)
        rows.call(s, 5, whole(ANCHOR, combine((1 / 6, 1 / 3, 1 / 3, 1 / 6), (e1, e2, e3, e4))), s)


def middle_of(t: float, s: float, integer_times: bool) -> float:
    return float(math.floor((t + s) / 2)) if integer_times else (t + s) / 2


@solver("s-pndm", order=2, min_steps=2, extra_calls=1)
def s_pndm(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """S-PNDM. Liu et al. 2022, arXiv:2202.09778: phi with improved Euler once, then (3, -1)/2.

    n + 1 network calls, second order. The weights are the paper's integers on every grid.

    Raises:
        ValueError: fewer than 2 steps, times not decreasing.
    """
    rows = PlanBuilder("s-pndm", schedule, times, prediction)
    improved_euler(rows)
    adams_bashforth(rows, order=2, first=1)
    return rows.plan()


@solver("f-pndm", order=2, min_steps=4, extra_calls=9)
def f_pndm(schedule: Schedule, times: Sequence[float], *, integer_times: bool = False, prediction: str = "eps") -> Plan:
    """F-PNDM. Liu et al. 2022, arXiv:2202.09778: phi with Runge-Kutta thrice, then (55, -59, 37, -9)/24.

    n + 9 network calls. The weights are the paper's integers on every grid, its short last step included.

    Args:
        integer_times: round the Runge-Kutta stages' times down to integers.

    Raises:
        ValueError: fewer than 4 steps, times not decreasing.
    """
    rows = PlanBuilder("f-pndm", schedule, times, prediction)
    runge_kutta(rows, 3, integer_times)
    adams_bashforth(rows, order=4, first=3)
    return rows.plan()


@solver("plms", order=2, min_steps=2, extra_calls=1)
def plms(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """PLMS, the latent-diffusion form of PNDM (Rombach et al. 2022, arXiv:2112.10752, released sampler).

    phi with improved Euler once, then (3, -1)/2, (23, -16, 5)/12 and (55, -59, 37, -9)/24. n + 1 network calls.

    Raises:
        ValueError: fewer than 2 steps, times not decreasing.
    """
    rows = PlanBuilder("plms", schedule, times, prediction)
    improved_euler(rows)
    adams_bashforth(rows, order=4, first=1)
    return rows.plan()


@solver("ipndm", order=2)
def ipndm(schedule: Schedule, times: Sequence[float], *, order: int = 4, prediction: str = "eps") -> Plan:
    """iPNDM. Zhang & Chen 2023, arXiv:2204.13902: F-PNDM started with lower orders in place of Runge-Kutta.

    phi with 1, (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24. n network calls.

    Raises:
        ValueError: order outside 1..4, times not decreasing.
    """
    if order not in ADAMS_BASHFORTH:
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order!r}")
    rows = PlanBuilder("ipndm", schedule, times, prediction)
    adams_bashforth(rows, order)
    return rows.plan()
