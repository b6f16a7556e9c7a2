"""Solvers: functions from a schedule and decreasing times to a `Plan`.

A pseudo numerical method is a transfer part (how a state and an eps move from t to s) with a gradient part (which
combination of eps goes in). PNDM, Liu et al. 2022, arXiv:2202.09778.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pndm_fast.coefficients import ADAMS_BASHFORTH, Transfer, clipped, combine, level, preview_of_eps, to_eps
from pndm_fast.grids import check_times
from pndm_fast.plan import ANCHOR, NOISE, SLOT, STATE, Form, Level, Levels, Plan, Row, Store
from pndm_fast.schedule import Schedule

Solver = Callable[..., Plan]
SOLVERS: dict[str, Solver] = {}


@dataclass(frozen=True)
class Facts:
    """What a caller may want to know of a solver before building its plan.

    Attributes:
        fewest: the smallest number of steps.
        extra_calls: network calls beyond one per step.
        spacing: the grid of its paper.
    """

    fewest: int
    extra_calls: int
    spacing: str = "leading"


FACTS: dict[str, Facts] = {}


def _solver(name: str, *, fewest: int = 1, extra_calls: int = 0) -> Callable[[Solver], Solver]:
    def register(function: Solver) -> Solver:
        SOLVERS[name], FACTS[name] = function, Facts(fewest, extra_calls)
        return function

    return register


class _Pseudo:
    """Rows under the pseudo transfer phi; the slots hold eps."""

    def __init__(self, name: str, schedule: Schedule, times: Sequence[float], prediction: str) -> None:
        self.name, self.schedule, self.prediction = name, schedule, prediction
        self.times = check_times(schedule, times, FACTS[name].fewest, name)
        self.rows: list[Row] = []
        self._levels: dict[float, Level] = {}
        self._anchor = self.level(self.times[0])

    def level(self, t: float) -> Level:
        if t not in self._levels:
            self._levels[t] = level(self.schedule, t)
        return self._levels[t]

    def transfer(self, t: float, s: float) -> Callable[[Form, Form], Form]:
        return Transfer(self.level(t), self.level(s))

    def store(self, t: float) -> Store:
        return to_eps(self.prediction, self.level(t))

    def preview(self, t: float) -> tuple[float, float]:
        """x_0 from the y and the slot of a call at t."""
        return preview_of_eps(self.level(t))

    def call(
        self,
        t: float,
        slot: int,
        y: Form,
        to: float,
        *,
        x: Form = ANCHOR,
        store: Store | None = None,
        ends: bool = True,
    ) -> None:
        """One row: the network is called at t, then y is at `to`. An x other than ANCHOR keeps the state at t."""
        if x is not ANCHOR:
            self._anchor = self.level(t)
        self.rows.append(
            Row(
                t=t,
                slot=slot,
                x=tuple(x),
                y=tuple(y),
                levels=Levels(self.level(t), self._anchor, self.level(to)),
                store=self.store(t) if store is None else store,
                preview=self.preview(t) if store is None else preview_of_eps(self.level(t)),
                ends_step=ends,
            )
        )

    def plan(self) -> Plan:
        return Plan(tuple(self.rows), self.name, len(self.times) - 1, self.prediction)


class _Classical(_Pseudo):
    """Rows under the classical transfer x + (t - s) g; the slots hold g, the derivative against time.

    g = (phi(x, eps; t -> t - delta) - x) / delta, or its limit for delta = 0: -(d log alpha / dt) (x - eps / sigma).
    """

    def __init__(
        self, name: str, schedule: Schedule, times: Sequence[float], prediction: str, delta: float | None
    ) -> None:
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
        return (phi.scale - 1) / self.delta, phi.eps / self.delta

    def store(self, t: float) -> Store:
        a, b = self.derivative(t)
        return super().store(t)._replace(p2=a, q2=b)

    def preview(self, t: float) -> tuple[float, float]:
        (a, b), (on_y, on_eps) = self.derivative(t), super().preview(t)
        return on_y - on_eps * a / b, on_eps / b


def _adams_bashforth(rows: _Pseudo, order: int, first: int = 0) -> None:
    """Gradient part (55, -59, 37, -9)/24, of lower order while the history is short; step i keeps slot i % order."""
    for i, (t, s) in enumerate(pairwise(rows.times)):
        if i >= first:
            k = min(order, i + 1)
            gradient = combine(ADAMS_BASHFORTH[k], [SLOT[(i - j) % order] for j in range(k)])
            rows.call(t, i % order, rows.transfer(t, s)(STATE, gradient), s)


def _improved_euler(rows: _Pseudo) -> None:
    """First step with gradient part (e_1 + e_2)/2; only e_1 enters the history."""
    t, s = rows.times[:2]
    phi = rows.transfer(t, s)
    rows.call(t, 0, phi(STATE, SLOT[0]), s, x=STATE, ends=False)
    rows.call(s, 1, phi(ANCHOR, (SLOT[0] + SLOT[1]) / 2), s)


def _runge_kutta(rows: _Pseudo, steps: int, integer_times: bool) -> None:
    """First steps with gradient part (e_1 + 2 e_2 + 2 e_3 + e_4)/6; only e_1 enters the history."""
    for i, (t, s) in enumerate(pairwise(rows.times[: steps + 1])):
        middle = _middle(t, s, integer_times)
        half, whole = rows.transfer(t, middle), rows.transfer(t, s)
        e1, e2, e3, e4 = SLOT[i], *SLOT[3:6]
        rows.call(t, i, half(STATE, e1), middle, x=STATE, ends=False)
        rows.call(middle, 3, half(ANCHOR, e2), middle, ends=False)
        rows.call(middle, 4, whole(ANCHOR, e3), s, ends=False)
        rows.call(s, 5, whole(ANCHOR, combine((1 / 6, 1 / 3, 1 / 3, 1 / 6), (e1, e2, e3, e4))), s)


def _middle(t: float, s: float, integer_times: bool) -> float:
    return float(math.floor((t + s) / 2)) if integer_times else (t + s) / 2


@_solver("ddim")
def ddim(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 0.0,
    clip: float | None = None,
    prediction: str = "eps",
) -> Plan:
    """DDIM. Song et al. 2021, arXiv:2010.02502, eq. 12 and 16; phi with gradient part e.

    x_s = alpha_s/alpha_t (x_t - sigma_t e) + sqrt(sigma_s^2 - tau^2) e + tau z,
    tau = eta (sigma_s/sigma_t) sqrt(1 - alpha_t^2/alpha_s^2).

    Args:
        times: decreasing, length n + 1, in the units of `schedule`; n network calls.
        eta: 0 is deterministic, 1 is DDPM.
        clip: clamp the x_0 estimate to [-clip, clip].

    Raises:
        ValueError: times not decreasing, eta outside [0, 1], clip not positive.
    """
    return _ancestral("ddim", schedule, times, eta, clip, prediction)


@_solver("ddpm")
def ddpm(
    schedule: Schedule,
    times: Sequence[float],
    *,
    variance: str = "small",
    clip: float | None = None,
    prediction: str = "eps",
) -> Plan:
    """DDPM ancestral sampling on any grid. Ho et al. 2020, arXiv:2006.11239, eq. 6, 7 and section 3.2.

    mean as DDIM's at eta = 1; variance small: (sigma_s^2/sigma_t^2) (1 - alpha_t^2/alpha_s^2), the posterior's;
    large: 1 - alpha_t^2/alpha_s^2. The step to sigma = 0 adds no noise.

    Raises:
        ValueError: unknown variance, times not decreasing, clip not positive.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance must be 'small' or 'large', got {variance!r}")
    plan = _ancestral("ddpm", schedule, times, 1.0, clip, prediction)
    if variance == "small":
        return plan
    rows = []
    for row in plan.rows:
        (alpha, sigma), _, (alpha_s, sigma_s) = row.levels
        large = math.sqrt(max(0.0, sigma**2 - (alpha / alpha_s * sigma_s) ** 2)) if sigma_s > 0 else 0.0
        rows.append(replace(row, y=(*row.y[:-1], large)))
    return replace(plan, rows=tuple(rows))


def _ancestral(
    name: str, schedule: Schedule, times: Sequence[float], eta: float, clip: float | None, prediction: str
) -> Plan:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip must be positive, got {clip}")
    rows = _Pseudo(name, schedule, times, prediction)
    for t, s in pairwise(rows.times):
        source, target = rows.level(t), rows.level(s)
        added = source.sigma**2 - (source.alpha / target.alpha * target.sigma) ** 2  # 1 - alpha_t^2/alpha_s^2 on VP
        tau = eta * target.sigma / source.sigma * math.sqrt(max(0.0, added))
        # the deterministic part stops at the level that tau z completes to sigma_s
        phi = Transfer(source, Level(target.alpha, math.sqrt(max(0.0, target.sigma**2 - tau**2))))
        store = rows.store(t) if clip is None else clipped(rows.store(t), source, clip)
        rows.call(t, 0, phi(STATE, SLOT[0]) + tau * NOISE, s, store=store)
    return rows.plan()


@_solver("s-pndm", fewest=2, extra_calls=1)
def s_pndm(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """S-PNDM. Liu et al. 2022, arXiv:2202.09778: phi with improved Euler once, then (3, -1)/2.

    n + 1 network calls, second order. The weights are the paper's integers on every grid.

    Raises:
        ValueError: fewer than 2 steps, times not decreasing.
    """
    rows = _Pseudo("s-pndm", schedule, times, prediction)
    _improved_euler(rows)
    _adams_bashforth(rows, order=2, first=1)
    return rows.plan()


@_solver("f-pndm", fewest=4, extra_calls=9)
def f_pndm(schedule: Schedule, times: Sequence[float], *, integer_times: bool = False, prediction: str = "eps") -> Plan:
    """F-PNDM. Liu et al. 2022, arXiv:2202.09778: phi with Runge-Kutta thrice, then (55, -59, 37, -9)/24.

    n + 9 network calls. The weights are the paper's integers on every grid, its short last step included.

    Args:
        integer_times: round the Runge-Kutta stages' times down to integers.

    Raises:
        ValueError: fewer than 4 steps, times not decreasing.
    """
    rows = _Pseudo("f-pndm", schedule, times, prediction)
    _runge_kutta(rows, 3, integer_times)
    _adams_bashforth(rows, order=4, first=3)
    return rows.plan()


@_solver("plms", fewest=2, extra_calls=1)
def plms(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """PLMS, the latent-diffusion form of PNDM (Rombach et al. 2022, arXiv:2112.10752, released sampler).

    phi with improved Euler once, then (3, -1)/2, (23, -16, 5)/12 and (55, -59, 37, -9)/24. n + 1 network calls.

    Raises:
        ValueError: fewer than 2 steps, times not decreasing.
    """
    rows = _Pseudo("plms", schedule, times, prediction)
    _improved_euler(rows)
    _adams_bashforth(rows, order=4, first=1)
    return rows.plan()


@_solver("ipndm")
def ipndm(schedule: Schedule, times: Sequence[float], *, order: int = 4, prediction: str = "eps") -> Plan:
    """iPNDM. Zhang & Chen 2023, arXiv:2204.13902: F-PNDM started with lower orders in place of Runge-Kutta.

    phi with 1, (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24. n network calls.

    Raises:
        ValueError: order outside 1..4, times not decreasing.
    """
    if order not in ADAMS_BASHFORTH:
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order!r}")
    rows = _Pseudo("ipndm", schedule, times, prediction)
    _adams_bashforth(rows, order)
    return rows.plan()


@_solver("fon-rk4", fewest=4, extra_calls=9)
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
    _runge_kutta(rows, 3, integer_times)
    _adams_bashforth(rows, order=4, first=3)
    return rows.plan()


@_solver("fon", fewest=4, extra_calls=9)
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
        middle = _middle(t, s, integer_times)
        a, b = rows.derivative(t)
        g1 = SLOT[i]
        g2, g3, g4 = (a * ANCHOR + b * SLOT[k] for k in (3, 4, 5))
        half, whole = rows.transfer(t, middle), rows.transfer(t, s)

        def stage(time: float, slot: int, y: Form, to: float, ends: bool = False) -> None:
            rows.call(time, slot, y, to, ends=ends, store=to_eps(prediction, rows.level(time)))

        rows.call(t, i, half(STATE, g1), middle, x=STATE, ends=False)
        stage(middle, 3, half(ANCHOR, g2), middle)
        stage(middle, 4, whole(ANCHOR, g3), s)
        stage(s, 5, whole(ANCHOR, combine((1 / 6, 1 / 3, 1 / 3, 1 / 6), (g1, g2, g3, g4))), s, ends=True)
    _adams_bashforth(rows, order=4, first=3)
    return rows.plan()
