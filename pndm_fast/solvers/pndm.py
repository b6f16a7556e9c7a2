"""The PNDM family: solvers of a transfer part (how a state and an eps move from t to s) and a gradient part.

The gradient part says which combination of eps goes in. PNDM, Liu et al. 2022, arXiv:2202.09778.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from pndm_fast.plan.coefficients import ADAMS_BASHFORTH, combine
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, SLOT, STATE, Form
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_order
from pndm_fast.solvers.registry import solver

START_STEPS = 3  # of the Runge-Kutta start
STAGE_SLOTS = 3, 4, 5  # of its calls that the history leaves out
BEGIN, MIDDLE, END = range(3)  # of a step


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


def runge_kutta(rows: PlanBuilder, stage: Callable[[float, Form], Form] | None = None, kind: str | None = None) -> None:
    """The first three steps, four calls each; only the first call of a step enters the history.

    Args:
        stage: the gradient part of a later call, from the step's time and the call's slot; default the slot itself.
        kind: what the slots of those calls hold.
    """
    for i, (t, s) in enumerate(pairwise(rows.times[: START_STEPS + 1])):
        places = t, rows.inside(t, s, (t + s) / 2), s
        read = [SLOT[i], *(SLOT[k] if stage is None else stage(t, SLOT[k]) for k in STAGE_SLOTS)]
        for called, slot, base, gradient, to in start_stages(i, read, (t - places[MIDDLE]) / (t - s)):
            y = rows.transfer(t, places[to])(base, gradient)
            own = None if slot == i else kind
            rows.call(places[called], slot, y, places[to], x=base, kind=own, ends=called == END)


class Stage(NamedTuple):
    """A call of the Runge-Kutta start: where it is made and to where it moves `base` along `gradient`."""

    called: int
    slot: int
    base: Form
    gradient: Form
    to: int


def runge_kutta_weights(c: float) -> tuple[float, float, float, float]:
    """(1, 2, 2, 1)/6 where the stages between are at the middle, c = 1/2.

    Elsewhere, as where the middle is no whole time, the weights of the same stages that leave order 3: of Butcher's
    conditions sum b = 1, sum b c = 1/2, sum b c^2 = 1/3 and sum b a c = 1/6, for nodes 0, c, c, 1.
    """
    last = 1 / 2 - 1 / (6 * (1 - c))
    third = (1 / 6 - last * c) / c**2
    second = 1 / (6 * c * (1 - c)) - third
    return 1 - second - third - last, second, third, last


def start_stages(i: int, read: Sequence[Form], place: float = 0.5) -> tuple[Stage, ...]:
    """The four calls of step i, with gradient part (e_1 + 2 e_2 + 2 e_3 + e_4)/6 at last; `read` has e_1 to e_4.

    `place` is where in the step the two calls between stand: `runge_kutta_weights`.
    """
    e1, e2, e3, e4 = read
    mean = combine(runge_kutta_weights(place), (e1, e2, e3, e4))
    first, second, third = STAGE_SLOTS
    return (
        Stage(BEGIN, i, STATE, e1, MIDDLE),
        Stage(MIDDLE, first, ANCHOR, e2, MIDDLE),
        Stage(MIDDLE, second, ANCHOR, e3, END),
        Stage(END, third, ANCHOR, mean, END),
    )


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


@solver("f-pndm", order=2, min_steps=4, extra_calls=9, inner_steps=START_STEPS)
def f_pndm(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """F-PNDM. Liu et al. 2022, arXiv:2202.09778: phi with Runge-Kutta thrice, then (55, -59, 37, -9)/24.

    n + 9 network calls. The weights are the paper's integers on every grid, its short last step included; but where the
    middle of a Runge-Kutta step is no whole time and must be, `runge_kutta_weights` at the whole one below.

    Raises:
        ValueError: fewer than 4 steps, times not decreasing.
    """
    rows = PlanBuilder("f-pndm", schedule, times, prediction)
    runge_kutta(rows)
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
    check_order(order, 4)
    rows = PlanBuilder("ipndm", schedule, times, prediction)
    adams_bashforth(rows, order)
    return rows.plan()
