"""Multistep solvers of the reverse stochastic equation: ER-SDE and SA-Solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from pndm_fast.plan.checks import choose
from pndm_fast.plan.curves import Array
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.quadrature import exponential, integral_of
from pndm_fast.plan.row import NOISE, SLOT, STATE, Form
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_at_least_0, check_order
from pndm_fast.solvers.dpm import Exponential
from pndm_fast.solvers.registry import solver

INTEGRALS = ("exact", "sum")
SUM_POINTS = 200  # of ComfyUI's left Riemann sum
MOST_VALUES = 6  # of a polynomial of SA-Solver
Scaler = Callable[[Array], Array]


def _er_scaler(rho: Array) -> Array:
    """The authors' choice of arXiv:2309.06169, called ER SDE 5."""
    return np.asarray(rho * (np.exp(rho**0.3) + 10))


@solver("er-sde", order=2, spacing="karras", stores="x0", stochastic=True)
def er_sde(
    schedule: Schedule,
    times: Sequence[float],
    *,
    order: int = 3,
    eta: float | None = None,
    integral: str = "exact",
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """ER-SDE-Solver. Cui et al. 2023, arXiv:2309.06169, algorithms 1 to 3, in rho = sigma/alpha.

    r = f(rho_s)/f(rho_t), d = rho_s - rho_t, x_s = (alpha_s/alpha_t) r x + alpha_s ((1 - r) D + (d + f(rho_s) I_0) D'
    + (d^2/2 + f(rho_s) I_1) D'') + alpha_s sqrt(rho_s^2 - r^2 rho_t^2) z, I_k = int (u - rho_t)^k/f(u) du from rho_s to
    rho_t, D' = (D - D_-1)/(rho_t - rho_-1), D'' = (D' - D'_-1)/((rho_t - rho_-2)/2): the differences stay one-sided, so
    that it is of order 2 where eta = 0. The step to sigma = 0 is of order 1.

    Args:
        order: past values used, 1 to 3.
        eta: None has the authors' f(rho) = rho (exp(rho^0.3) + 10); a number rho^(1 + eta), of which 0 is the
            probability flow and 1 the usual reverse equation.
        integral: exact, by quadrature; sum, by the 200 left rectangles of ComfyUI's code.
        noise_scale: multiplies the noise alone.

    Raises:
        ValueError: times not decreasing, order outside 1..3, eta or noise_scale negative, unknown integral.
    """
    check_order(order, 3)
    choose("integral", integral, INTEGRALS)
    check_at_least_0(noise_scale=noise_scale, **({} if eta is None else {"eta": eta}))
    scaler = _er_scaler if eta is None else lambda rho: rho ** (1 + eta)
    rows = PlanBuilder("er-sde", schedule, times, prediction, "x0")
    rho = [at.sigma / at.alpha if at.alpha else math.inf for at in map(rows.level, rows.times)]
    for i, (t, s) in enumerate(pairwise(rows.times)):
        target = rows.level(s)
        if target.sigma == 0:
            rows.call(t, i % 3, rows.transfer(t, s)(STATE, SLOT[i % 3]), s)
            continue
        k = min(order, i + 1, sum(map(math.isfinite, rho[: i + 1])) or 1)
        ratio, keep = _er_ratio(scaler, rho[i], rho[i + 1]), 0.0
        data = (1 - ratio) * SLOT[i % 3]
        if math.isfinite(rho[i]):
            keep = ratio * rows.level(s).alpha / rows.level(t).alpha
            data = data + _er_slopes(scaler, rho[max(0, i - 2) : i + 2], i, k, integral)
        noise = math.sqrt(max(0.0, rho[i + 1] ** 2 - (ratio * rho[i]) ** 2 if ratio else rho[i + 1] ** 2))
        rows.call(t, i % 3, keep * STATE + target.alpha * (data + noise_scale * noise * NOISE), s)
    return rows.plan()


def _er_ratio(scaler: Scaler, high: float, low: float) -> float:
    """f(low) / f(high), which is 0 from infinity: all that is left there is noise."""
    return float(scaler(np.array(low)) / scaler(np.array(high))) if math.isfinite(high) else 0.0


def _er_slopes(scaler: Scaler, rho: Sequence[float], i: int, k: int, integral: str) -> Form:
    """The terms of D' and D'' of call i, of the last values of rho up to the step's end."""
    *past, high, low = rho
    change, scale = low - high, float(scaler(np.array(low)))

    def part(power: int) -> float:
        def value(u: Array) -> Array:
            return np.asarray((u - high) ** power / scaler(u))

        if integral == "exact":
            return integral_of(value, low, high)
        width = (high - low) / SUM_POINTS
        return float(np.sum(value(np.linspace(low, high, SUM_POINTS, endpoint=False))) * width)

    if k == 1:
        return 0 * STATE
    slope = (SLOT[i % 3] - SLOT[(i - 1) % 3]) / (high - past[-1])
    total = (change + scale * part(0)) * slope
    if k == 2:
        return total
    before = (SLOT[(i - 1) % 3] - SLOT[(i - 2) % 3]) / (past[-1] - past[-2])
    return total + (change**2 / 2 + scale * part(1)) * (slope - before) / ((high - past[-2]) / 2)


@solver("sa-solver", order=4, spacing="karras", stores="x0", stochastic=True)
def sa_solver(
    schedule: Schedule,
    times: Sequence[float],
    *,
    tau: float = 1.0,
    tau_min: float = 0.0,
    tau_max: float = math.inf,
    order: int = 3,
    corrector_order: int = 4,
    lower_order_final: bool | None = None,
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """SA-Solver. Xue et al. 2023, arXiv:2309.05019, algorithm 1, x_0 prediction; stochastic Adams methods.

    k = 1 + tau^2, b_j = alpha_s int k exp(k (lam - lam_s)) l_j(lam) dlam over the step, l_j Lagrange's polynomials;
    predictor x_s = (sigma_s/sigma_t) exp(-tau^2 h) x + sum_j b_j D_j + sigma_s sqrt(1 - exp(-2 tau^2 h)) z, corrector
    the same step, with the same z, through the value at s too: x_s + sum_j (b^c_j - b^p_j) D_j, in the row of the next
    step. n network calls; the step to sigma = 0 is of order 1.

    Args:
        tau, tau_min, tau_max: the noise of steps whose end has tau_min <= sigma/alpha <= tau_max; 0 in the others. The
            paper's tau(t) is so piecewise constant; peers have it between two fractions of the times.
        order, corrector_order: values in the polynomials, 1 to 6, the corrector's the new one included; 0 is
            without corrector.
        lower_order_final: end on lower orders; default where there are fewer than 15 steps.
        noise_scale: multiplies the noise alone.

    Raises:
        ValueError: times not decreasing, an order outside its range, a negative option, tau_min above tau_max.
    """
    rows = _Adams("sa-solver", schedule, times, prediction)
    rows.set(tau, tau_min, tau_max, order, corrector_order, lower_order_final, noise_scale)
    return rows.run(pece=False)


@solver("sa-solver-pece", order=4, calls_per_step=2, extra_calls=-1, spacing="karras", stores="x0", stochastic=True)
def sa_solver_pece(
    schedule: Schedule,
    times: Sequence[float],
    *,
    tau: float = 1.0,
    tau_min: float = 0.0,
    tau_max: float = math.inf,
    order: int = 3,
    corrector_order: int = 4,
    lower_order_final: bool | None = None,
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """`sa_solver` that evaluates again after each correction: predict, evaluate, correct, evaluate. arXiv:2309.05019.

    The value at the corrected state takes the other's place in later polynomials. 2 n - 1 network calls.

    Args:
        tau, tau_min, tau_max, order, lower_order_final, noise_scale: as `sa_solver` has them.
        corrector_order: 1 to 6.

    Raises:
        ValueError: as of `sa_solver`, and a corrector_order of 0.
    """
    if corrector_order == 0:
        raise ValueError("corrector_order must be 1 to 6 for sa-solver-pece, got 0")
    rows = _Adams("sa-solver-pece", schedule, times, prediction)
    rows.set(tau, tau_min, tau_max, order, corrector_order, lower_order_final, noise_scale)
    return rows.run(pece=True)


class _Adams(Exponential):
    """Rows of stochastic Adams methods: `Exponential`'s first-order step, its eta = tau^2, and polynomials in lam."""

    def set(
        self, tau: float, low: float, high: float, predictor: int, corrector: int, lower: bool | None, noise: float
    ) -> None:
        """The options, checked."""
        check_at_least_0(tau=tau, tau_min=low, noise_scale=noise)
        if not low <= high:
            raise ValueError(f"tau_max must be at least tau_min, got {high} and {low}")
        for name, value, least in (("order", predictor, 1), ("corrector_order", corrector, 0)):
            if not least <= value <= MOST_VALUES:
                raise ValueError(f"{name} must be {least} to {MOST_VALUES}, got {value!r}")
        self.tau, self.low, self.high, self.noise = tau, low, high, noise
        self.predictor, self.corrector, self.lower = predictor, corrector, lower

    def run(self, pece: bool) -> Plan:
        """All rows, with or without a second evaluation."""
        width = max(self.predictor + (self.corrector > 0), self.corrector)  # a correction takes back old values
        seen = 0  # values of the last predictor
        for i, (t, s) in enumerate(pairwise(self.times)):
            slots = [SLOT[(i - j) % width] for j in range(min(i + 1, width))]
            state = STATE
            if self.corrector and i and math.isfinite(self.lam(self.times[i - 1])):
                k = min(self.order_at(i - 1, self.corrector, self.lower) + 1, self._finite(i, self.corrector))
                state = STATE + self._weighed(i, 0, k, slots) - self._weighed(i, 1, seen, slots[1:])
            if pece and i:
                self.call(t, i % width, state, t, ends=False)
                state = STATE
            seen = min(self.order_at(i, self.predictor, self.lower), self._finite(i, self.predictor))
            self.eta = self._rate(s)
            y = self.step(t, s, state, [(1.0, 0, slots[0])])
            y[-1] *= self.noise
            if self.level(s).sigma and seen > 1:
                y = y + self._weighed(i + 1, 1, seen, slots)
            self.call(t, i % width, y, s)
        return self.plan()

    def _finite(self, i: int, most: int) -> int:
        """How many of the values from i back stand at a finite lam, at least 1."""
        return max(1, sum(math.isfinite(self.lam(t)) for t in self.times[max(0, i - most + 1) : i + 1]))

    def _rate(self, s: float) -> float:
        at = self.level(s)
        inside = at.alpha > 0 and self.low <= at.sigma / at.alpha <= self.high
        return self.tau**2 if inside else 0.0

    def _weighed(self, end: int, newest: int, k: int, slots: Sequence[Form]) -> Form:
        """sum_j b_j (D_j - D) of the step to `end`, D its first value, through k values from `end - newest` back."""
        lam = [self.lam(self.times[j]) for j in (end - 1, end)]
        rate = 1 + self._rate(self.times[end])
        nodes = [rate * (self.lam(self.times[end - newest - j]) - lam[1]) for j in range(k)]
        weights = exponential(nodes, rate * (lam[0] - lam[1]), 0.0)
        first = slots[1 - newest]
        alpha = self.level(self.times[end]).alpha
        return sum((alpha * w * (form - first) for w, form in zip(weights, slots[:k], strict=True)), 0 * STATE)
