"""FON: the classical fourth-order methods that PNDM is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from pndm_fast.plan.coefficients import Transfer, combine
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, SLOT, STATE, Form, OutputMap
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder
from pndm_fast.solvers.pndm import adams_bashforth, middle_of, runge_kutta
from pndm_fast.solvers.registry import solver


class _Classical(PlanBuilder):
    """PlanBuilder under the classical transfer x + (t - s) g; the slots hold g, the derivative against time.

    g = (phi(x, eps; t -> t - delta) - x) / delta, or its limit for delta = 0: -(d log alpha / dt) (x - eps / sigma).
    """

    def __init__(
        self, name: str, schedule: Schedule, times: Sequence[float], prediction: str, delta: float | None
    ) -> None:
        if schedule.scale != "vp":
            raise ValueError(f"schedule must be variance-preserving for {name}, got {schedule.name}")
        super().__init__(name, schedule, times, prediction)
        self.delta = float(schedule.discrete) if delta is None else float(delta)
        if not 0 <= self.delta < math.inf:
            raise ValueError(f"delta must be 0 or a positive time, got {delta}")

    def transfer(self, t: float, s: float) -> Callable[[Form, Form], Form]:
        return lambda x, g: x + (t - s) * g

    def derivative(self, t: float) -> tuple[float, float]:
        """(a, b) with g = a x + b eps."""
        if self.delta == 0:
            slope = self.schedule.log_alpha_slope(t)
            return -slope, slope / self.level(t).sigma
        if t - self.delta < self.schedule.first:
            first = self.schedule.first
            raise ValueError(f"delta must keep t - delta at {first:g} or later, got {self.delta:g} at t = {t:g}")
        phi = Transfer(self.level(t), self.level(t - self.delta))
        return (phi.scale - 1) / self.delta, phi.slot / self.delta

    def store(self, t: float, kind: str | None = None) -> OutputMap:
        store = super().store(t)
        if kind == "eps":
            return store
        a, b = self.derivative(t)
        return store._replace(p2=a, q2=b)

    def preview(self, t: float, kind: str | None = None) -> tuple[float, float]:
        on_y, on_eps = super().preview(t)
        if kind == "eps":
            return on_y, on_eps
        a, b = self.derivative(t)
        return on_y - on_eps * a / b, on_eps / b


@solver("fon-rk4", order=4, stores="dx/dt", min_steps=4, extra_calls=9)
def fon_rk4(
    schedule: Schedule,
    times: Sequence[float],
    *,
    delta: float | None = None,
    integer_times: bool = False,
    prediction: str = "eps",
) -> Plan:
    """The classical fourth-order method: Runge-Kutta for three steps, then Adams-Bashforth, on dx/dt. n + 9 calls.

    The classical transfer x + (t - s) g in place of phi, g = (phi(x, e; t -> t - delta) - x) / delta.

    Args:
        delta: step of the difference quotient, in units of time; 0 is the derivative itself. Default: one training
            step, as in arXiv:2202.09778; 0 on a continuous schedule.

    Raises:
        ValueError: fewer than 4 steps, times not decreasing, negative delta.
    """
    rows = _Classical("fon-rk4", schedule, times, prediction, delta)
    runge_kutta(rows, 3, integer_times)
    adams_bashforth(rows, order=4, first=3)
    return rows.plan()


@solver("fon", order=2, stores="dx/dt", min_steps=4, extra_calls=9)
def fon(
    schedule: Schedule,
    times: Sequence[float],
    *,
    delta: float | None = None,
    integer_times: bool = False,
    prediction: str = "eps",
) -> Plan:
    """FON as the authors of arXiv:2202.09778 (Liu et al. 2022) run it in their released code. n + 9 network calls.

    As `fon_rk4`, but each Runge-Kutta stage takes only eps at the stage's point: x and t in its derivative stay at the
    step's start. That makes the start second order; `fon_rk4` is the textbook method.

    Raises:
        ValueError: fewer than 4 steps, times not decreasing, negative delta.
    """
    rows = _Classical("fon", schedule, times, prediction, delta)
    for i, (t, s) in enumerate(pairwise(rows.times[:4])):
        middle = middle_of(t, s, integer_times)
        a, b = rows.derivative(t)
        g1 = SLOT[i]
        g2, g3, g4 = (a * ANCHOR + b * SLOT[k] for k in (3, 4, 5))
        half, whole = rows.transfer(t, middle), rows.transfer(t, s)

        def stage(time: float, slot: int, y: Form, to: float, ends: bool = False) -> None:
            rows.call(time, slot, y, to, ends=ends, kind="eps")

        rows.call(t, i, half(STATE, g1), middle, x=STATE, ends=False)
        stage(middle, 3, half(ANCHOR, g2), middle)
        stage(middle, 4, whole(ANCHOR, g3), s)
        stage(s, 5, whole(ANCHOR, combine((1 / 6, 1 / 3, 1 / 3, 1 / 6), (g1, g2, g3, g4))), s, ends=True)
    adams_bashforth(rows, order=4, first=3)
    return rows.plan()
