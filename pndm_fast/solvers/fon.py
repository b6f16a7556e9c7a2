"""FON: the classical fourth-order methods that PNDM is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pndm_fast.plan.coefficients import Transfer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, Form, OutputMap
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder
from pndm_fast.solvers.pndm import START_STEPS, adams_bashforth, runge_kutta
from pndm_fast.solvers.registry import solver


class _Classical(PlanBuilder):
    """Rows under the classical transfer x + (t - s) g; the slots hold g, the derivative against time.

    g = (phi(x, eps; t -> t - delta) - x) / delta, or its limit for delta = 0: -(d log alpha / dt) (x - eps / sigma).
    """

    def __init__(
        self, name: str, schedule: Schedule, times: Sequence[float], prediction: str, delta: float | None
    ) -> None:
        if schedule.scale != "vp":
            where = ", whose stages keep the state of a start at alpha = 0" if schedule.scale == "flow" else ""
            raise ValueError(f"schedule must be variance-preserving for {name}{where}, got {schedule.name}")
        super().__init__(name, schedule, times, prediction)
        self.delta = float(schedule.discrete) if delta is None else check_delta(delta)

    def transfer(self, t: float, s: float) -> Callable[[Form, Form], Form]:
        return lambda x, g: x + (t - s) * g

    def derivative(self, t: float) -> tuple[float, float]:
        """(a, b) with g = a x + b eps."""
        self.check_data(t)
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


def check_delta(delta: float | None) -> float:
    """Refuse a step of the difference quotient that is none."""
    if delta is not None and not 0 <= delta < math.inf:
        raise ValueError(f"delta must be 0 or a positive time, got {delta}")
    return float(delta or 0.0)


@solver("fon-rk4", order=4, stores="dx/dt", min_steps=4, extra_calls=9, inner_steps=START_STEPS)
def fon_rk4(
    schedule: Schedule,
    times: Sequence[float],
    *,
    delta: float | None = None,
    prediction: str = "eps",
) -> Plan:
    """The classical fourth-order method: Runge-Kutta for three steps, then Adams-Bashforth, on dx/dt. n + 9 calls.

    The classical transfer x + (t - s) g in place of phi, g = (phi(x, e; t -> t - delta) - x) / delta. On flow schedules
    phi is that transfer, with g = -flow whatever delta: there this is `f_pndm`.

    Args:
        delta: step of the difference quotient, in units of time; 0 is the derivative itself. Default: one training
            step, as in arXiv:2202.09778; 0 on a continuous schedule.

    Raises:
        ValueError: fewer than 4 steps, times not decreasing, negative delta.
    """
    rows: PlanBuilder
    if isinstance(schedule, Schedule) and schedule.scale == "flow":
        check_delta(delta)
        rows = PlanBuilder("fon-rk4", schedule, times, prediction)
    else:
        rows = _Classical("fon-rk4", schedule, times, prediction, delta)
    runge_kutta(rows)
    adams_bashforth(rows, order=4, first=3)
    return rows.plan()


@solver("fon", order=2, stores="dx/dt", min_steps=4, extra_calls=9, inner_steps=START_STEPS)
def fon(
    schedule: Schedule,
    times: Sequence[float],
    *,
    delta: float | None = None,
    prediction: str = "eps",
) -> Plan:
    """FON as the authors of arXiv:2202.09778 (Liu et al. 2022) run it in their released code. n + 9 network calls.

    As `fon_rk4`, but each Runge-Kutta stage takes only eps at the stage's point: x and t in its derivative stay at the
    step's start. That makes the start second order; `fon_rk4` is the textbook method.

    Raises:
        ValueError: fewer than 4 steps, times not decreasing, negative delta.
    """
    rows = _Classical("fon", schedule, times, prediction, delta)

    def stage(t: float, eps: Form) -> Form:
        a, b = rows.derivative(t)
        return a * ANCHOR + b * eps

    runge_kutta(rows, stage, kind="eps")
    adams_bashforth(rows, order=4, first=3)
    return rows.plan()
