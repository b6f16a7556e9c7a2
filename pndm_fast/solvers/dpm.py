"""DPM-Solver and DPM-Solver++: exponential integrators in lam = log(alpha / sigma)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import Transfer, ancestral
from pndm_fast.plan.grids import with_log_snr
from pndm_fast.plan.plan import MAX_ROWS, Plan
from pndm_fast.plan.quadrature import moment
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE, Form
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_eta
from pndm_fast.solvers.registry import solver

TYPES = ("midpoint", "heun")


class Exponential(PlanBuilder):
    """Rows of exponential integrators: exact in the linear part, polynomial in lam in the network's part.

    With x_0 ("data prediction") x_s = (sigma_s/sigma_t) x_t + alpha_s h int_0^1 exp(-h (1 - u)) x_0(u) du, u from 0
    at lam_t to 1 at lam_s, h = lam_s - lam_t. With eps ("noise prediction") the same holds after alpha <-> sigma and
    lam -> -lam. With eta > 0 the noise decays faster, h (1 + eta) in place of h, and is renewed.
    """

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        times: Sequence[float],
        prediction: str,
        kind: str = "x0",
        solver_type: str = "midpoint",
        eta: float = 0.0,
    ) -> None:
        choose("solver_type", solver_type, TYPES)
        if not 0 <= eta < math.inf:
            raise ValueError(f"eta must be 0 or positive, got {eta}")
        super().__init__(name, schedule, times, prediction, kind)
        self.midpoint, self.eta = solver_type == "midpoint", eta

    def step(self, t: float, s: float, base: Form, terms: Sequence[tuple[float, int, Form]]) -> Form:
        """The state at s from `base` at t and the network's part, sum of coefficient u^power form.

        Power 0 alone may reach lam = infinity.
        """
        source, target = self.level(t), self.level(s)
        h = (self.lam(s) - self.lam(t)) * (1 + self.eta) * (1 if self.kind == "x0" else -1)
        phi = Transfer(source, target, self.kind)
        decay = math.exp(-self.eta * (self.lam(s) - self.lam(t))) if self.eta and target.sigma else 1.0
        gain = target.alpha if self.kind == "x0" else target.sigma
        total = decay * phi.scale * base
        for coefficient, power, form in terms:
            if power == 0:  # phi's own coefficient is alpha_s (1 - exp(-h)), finite at either end
                first = phi.slot if decay == 1 else target.alpha - decay * phi.scale * source.alpha
                total = total + coefficient * first * form
            else:
                total = total + coefficient * gain * h * moment(h, power) * form
        if self.eta and target.sigma:
            total = total + target.sigma * math.sqrt(-math.expm1(-2 * self.eta * (self.lam(s) - self.lam(t)))) * NOISE
        return total

    def second(self, t: float, s: float, base: Form, at: float, now: Form, then: Form, exact: bool = False) -> Form:
        """Second order from two values of the network's part: `now` at t and `then` at another time.

        `exact` weighs the slope in lam exactly whatever the solver_type.
        """
        r = (self.lam(t) - self.lam(at)) / (self.lam(s) - self.lam(t))
        slope = (now - then) / r
        half = [(0.5, 0, slope)] if self.midpoint and not exact else [(1.0, 1, slope)]
        return self.step(t, s, base, [(1.0, 0, now), *half])

    def third(
        self, t: float, s: float, base: Form, nodes: Sequence[float], forms: Sequence[Form], curved: float
    ) -> Form:
        """Third order from the network's part at t and at two other times; `curved` scales the second derivative."""
        h = self.lam(s) - self.lam(t)
        u0, u1 = ((self.lam(node) - self.lam(t)) / h for node in nodes)
        d0, d1 = (forms[1] - forms[0]) / u0, (forms[2] - forms[0]) / u1
        slope = d0 if math.isinf(u1) else (u1 * d0 - u0 * d1) / (u1 - u0)
        curve = 0 * d0 if math.isinf(u1) else (d1 - d0) / (u1 - u0)
        return self.step(t, s, base, [(1.0, 0, forms[0]), (1.0, 1, slope), (curved, 2, curve)])


def multistep(rows: Exponential, orders: Sequence[int], curved: float) -> Plan:
    """One call a step, the history in place of stages; `orders` of the steps, `curved` as in `Exponential.third`."""
    width = max(orders)
    for i, (t, s) in enumerate(pairwise(rows.times)):
        past = [SLOT[(i - j) % width] for j in range(orders[i])]
        if rows.by_data(t, i % width, s):
            continue
        if len(past) == 1:
            y = rows.step(t, s, STATE, [(1.0, 0, past[0])])
        elif len(past) == 2:
            y = rows.second(t, s, STATE, rows.times[i - 1], past[0], past[1])
        else:
            y = rows.third(t, s, STATE, (rows.times[i - 1], rows.times[i - 2]), past, curved)
        rows.call(t, i % width, y, s)
    return rows.plan()


def _multistep(rows: Exponential, order: int, lower_order_final: bool | None, curved: float) -> Plan:
    return multistep(rows, [rows.order_at(i, order, lower_order_final) for i in range(rows.steps)], curved)


def group_sizes(rows: Exponential, order: int) -> list[int]:
    """How many steps each group of a singlestep plan has: `order`, then what is left, and 1 for a step to sigma = 0."""
    blind = rows.level(rows.times[0]).alpha == 0  # lam is infinite: no stage divides the first step
    last = int(rows.level(rows.times[-1]).sigma == 0 and rows.steps > blind)
    full, rest = divmod(rows.steps - blind - last, order)
    return [1] * blind + [order] * full + [rest] * (rest > 0) + [1] * last


def singlestep(rows: Exponential, sizes: Sequence[int], halved: bool = False) -> Plan:
    """Groups of steps: from the anchor at a group's start to each of its times, of order 1, 2, 3.

    The stages stand on the grid, so n steps are n network calls.

    Args:
        halved: a third-order group's second stage weighs its slope by half, as DPM-Solver-2's end; else exactly.
    """
    i = 0
    for size in sizes:
        a = rows.times[i]
        for j in range(size):
            t, s = rows.times[i + j], rows.times[i + j + 1]
            if rows.by_data(t, 0, s):  # a group of its own
                continue
            base, x = (STATE, STATE) if j == 0 else (ANCHOR, ANCHOR)
            if j == 0:
                y = rows.step(a, s, base, [(1.0, 0, SLOT[0])])
            elif j == 1:
                y = rows.second(a, s, base, t, SLOT[0], SLOT[1], exact=size == 3 and not halved)
            else:
                y = _third_stage(rows, a, s, (t, rows.times[i + 1]), base)
            rows.call(t, j, y, s, x=x, ends=j == size - 1)
        i += size
    return rows.plan()


def _check_multistep(multistep: bool, lower_order_final: bool | None, exact: bool = False) -> None:
    if not multistep and lower_order_final is not None:
        raise ValueError(f"lower_order_final must be None without multistep=True, got {lower_order_final!r}")
    if not multistep and exact:
        raise ValueError(f"exact must be False without multistep=True, got {exact!r}")


def _third_stage(rows: Exponential, a: float, s: float, stages: tuple[float, float], base: Form) -> Form:
    if not rows.midpoint:
        return rows.third(a, s, base, stages, (SLOT[0], SLOT[2], SLOT[1]), 1.0)
    r = (rows.lam(stages[0]) - rows.lam(a)) / (rows.lam(s) - rows.lam(a))  # the last stage alone, as in the paper
    return rows.step(a, s, base, [(1.0, 0, SLOT[0]), (1.0, 1, (SLOT[2] - SLOT[0]) / r)])


@solver("dpm-solver-1", order=1, spacing="trailing")
def dpm_solver_1(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """DPM-Solver-1, which is DDIM. Lu et al. 2022, arXiv:2206.00927.

    x_s = (alpha_s/alpha_t) x_t - sigma_s (exp(h) - 1) eps, h = lam_s - lam_t.

    Raises:
        ValueError: times not decreasing.
    """
    return _multistep(Exponential("dpm-solver-1", schedule, times, prediction, "eps"), 1, False, 0.5)


@solver("dpm-solver-2", order=2, spacing="trailing")
def dpm_solver_2(
    schedule: Schedule,
    times: Sequence[float],
    *,
    multistep: bool = False,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver-2. Lu et al. 2022, arXiv:2206.00927, algorithm 1 (singlestep); multistep as in its released code.

    x_s = (alpha_s/alpha_t) x_t - sigma_s (exp(h) - 1) (eps_t + (eps_r - eps_t) / (2 r)), r in (0, 1) the stage's place.
    The stages stand on the grid, two steps a group: n steps are n network calls. On a log-SNR grid r is 1/2.

    Args:
        multistep: take eps_r from the step before (r < 0) in place of a stage.
        solver_type: midpoint, as above; heun weighs the slope in lam exactly.
        lower_order_final: of multistep: end on lower orders; default where there are fewer than 15 steps.

    Raises:
        ValueError: times not decreasing, unknown solver_type, an option of multistep without it.
    """
    _check_multistep(multistep, lower_order_final)
    rows = Exponential("dpm-solver-2", schedule, times, prediction, "eps", solver_type)
    return _multistep(rows, 2, lower_order_final, 0.5) if multistep else singlestep(rows, group_sizes(rows, 2))


@solver("dpm-solver-3", order=3, spacing="trailing")
def dpm_solver_3(
    schedule: Schedule,
    times: Sequence[float],
    *,
    multistep: bool = False,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    exact: bool = False,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver-3. Lu et al. 2022, arXiv:2206.00927, algorithm 2 (singlestep); multistep as in its released code.

    Three steps a group, from t to s with stages at r_1 h and r_2 h on the grid (on a log-SNR grid 1/3 and 2/3):
    u_1 as DPM-Solver-1; u_2 = (alpha/alpha_t) x - sigma (exp(r_2 h) - 1) eps_t
    - sigma (r_2/r_1) ((exp(r_2 h) - 1)/(r_2 h) - 1) (eps_1 - eps_t); and
    x_s = (alpha_s/alpha_t) x - sigma_s (exp(h) - 1) eps_t - (sigma_s/r_2) ((exp(h) - 1)/h - 1) (eps_2 - eps_t).
    The last groups are shorter: DPM-Solver-2 and DPM-Solver-1.

    Args:
        multistep: take the past two steps in place of stages.
        solver_type: midpoint, as above; heun ends with the second derivative of both stages too.
        lower_order_final: of multistep: end on lower orders; default where there are fewer than 15 steps.
        exact: of multistep: see `dpmpp_3m`.

    Raises:
        ValueError: times not decreasing, unknown solver_type, an option of multistep without it.
    """
    _check_multistep(multistep, lower_order_final, exact)
    rows = Exponential("dpm-solver-3", schedule, times, prediction, "eps", solver_type)
    if not multistep:
        return singlestep(rows, group_sizes(rows, 3))
    return _multistep(rows, 3, lower_order_final, 1.0 if exact else 0.5)


@solver("dpmpp-2s", order=2, spacing="trailing", stores="x0")
def dpmpp_2s(
    schedule: Schedule, times: Sequence[float], *, solver_type: str = "midpoint", prediction: str = "eps"
) -> Plan:
    """DPM-Solver++(2S). Lu et al. 2022, arXiv:2211.01095, algorithm 1.

    x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - exp(-h)) (D_t + (D_r - D_t) / (2 r)), D the network's x_0, r the stage's
    place. The stages stand on the grid, two steps a group: n steps are n network calls.

    Raises:
        ValueError: times not decreasing, unknown solver_type.
    """
    rows = Exponential("dpmpp-2s", schedule, times, prediction, "x0", solver_type)
    return singlestep(rows, group_sizes(rows, 2))


@solver("dpmpp-2m", order=2, spacing="trailing", stores="x0")
def dpmpp_2m(
    schedule: Schedule,
    times: Sequence[float],
    *,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver++(2M). Lu et al. 2022, arXiv:2211.01095, algorithm 2.

    x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - exp(-h)) ((1 + 1/(2 r)) D_t - 1/(2 r) D_-1), r = h_-1 / h.

    Args:
        solver_type: midpoint, as above; heun weighs the slope in lam exactly.
        lower_order_final: end on lower orders; default where there are fewer than 15 steps.

    Raises:
        ValueError: times not decreasing, unknown solver_type.
    """
    rows = Exponential("dpmpp-2m", schedule, times, prediction, "x0", solver_type)
    return _multistep(rows, 2, lower_order_final, 0.5)


@solver("dpmpp-3m", order=2, spacing="trailing", stores="x0")
def dpmpp_3m(
    schedule: Schedule,
    times: Sequence[float],
    *,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    exact: bool = False,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver++(3M), the multistep third-order method of arXiv:2211.01095's released code (Lu et al. 2022).

    x_s = (sigma_s/sigma_t) x_t + alpha_s h (phi_1 D + phi_2 D' + w phi_3 D''), the derivatives by u, from three values,
    phi_k = int_0^1 exp(-h (1 - u)) u^(k - 1) / (k - 1)! du. The released code has w = 1/2, which leaves it second
    order; it is what every library runs.

    Args:
        solver_type: of the second-order rows at the start and the end.
        lower_order_final: end on lower orders; default where there are fewer than 15 steps.
        exact: w = 1, third order.

    Raises:
        ValueError: times not decreasing, unknown solver_type.
    """
    rows = Exponential("dpmpp-3m", schedule, times, prediction, "x0", solver_type)
    return _multistep(rows, 3, lower_order_final, 1.0 if exact else 0.5)


@solver("dpmpp-2m-sde", order=2, spacing="trailing", stores="x0", stochastic=True)
def dpmpp_2m_sde(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    prediction: str = "eps",
) -> Plan:
    """SDE-DPM-Solver++(2M). Lu et al. 2022, arXiv:2211.01095.

    x_s = (sigma_s/sigma_t) exp(-eta h) x_t + alpha_s (1 - exp(-(1 + eta) h)) (D + (D - D_-1) / (2 r))
    + sigma_s sqrt(1 - exp(-2 eta h)) z. The paper's is eta = 1; eta = 0 is DPM-Solver++(2M), others are k-diffusion's.

    Raises:
        ValueError: times not decreasing, unknown solver_type, negative eta.
    """
    rows = Exponential("dpmpp-2m-sde", schedule, times, prediction, "x0", solver_type, eta)
    return _multistep(rows, 2, lower_order_final, 0.5)


@solver("dpmpp-3m-sde", order=2, spacing="trailing", stores="x0", stochastic=True)
def dpmpp_3m_sde(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    exact: bool = False,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver++(3M) with the noise of `dpmpp_2m_sde`. After Lu et al. 2022, arXiv:2211.01095.

    As `dpmpp_3m` with (1 + eta) h in place of h inside the phi functions. k-diffusion's has solver_type="heun".

    Raises:
        ValueError: times not decreasing, unknown solver_type, negative eta.
    """
    rows = Exponential("dpmpp-3m-sde", schedule, times, prediction, "x0", solver_type, eta)
    return _multistep(rows, 3, lower_order_final, 1.0 if exact else 0.5)


@solver(
    "dpmpp-sde", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras", inner_steps=MAX_ROWS,
    stores="x0", stochastic=True,
)  # fmt: skip
def dpmpp_sde(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    r: float = 0.5,
    one_path: bool = True,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver++(2S) with ancestral noise at the stage and at the end: k-diffusion's. After arXiv:2211.01095.

    Both moves go to a reduced level by x_0 (at the end (1 - 1/(2r)) D_t + 1/(2r) D_r) and are completed by noise, as
    `ddim` with eta. The stage is at lam_t + r h, or at the nearest whole time inside the step, with that one's r.
    2 n - 1 network calls; the step to sigma = 0 is of order 1. A flow's first time is `noisiest`, where there is a lam.

    Args:
        one_path: both noises belong to one Brownian path in sigma/alpha, which the last state's variance needs to be of
            second order (the stage's noise is read back from the stage); else they are independent.

    Raises:
        ValueError: times not decreasing, eta outside [0, 1], r outside (0, 1).
    """
    check_eta(eta)
    if not 0 < r < 1:
        raise ValueError(f"r must be in (0, 1), got {r}")
    rows = PlanBuilder("dpmpp-sde", schedule, with_log_snr(schedule, times, "dpmpp-sde"), prediction, "x0")

    def move(t: float, s: float, base: Form, data: Form) -> tuple[Form, float]:
        reduced, tau = ancestral(rows.level(t), rows.level(s), eta)
        return Transfer(rows.level(t), reduced, "x0")(base, data), tau

    for t, s in pairwise(rows.times):
        if rows.level(s).sigma == 0:
            rows.call(t, 0, move(t, s, STATE, SLOT[0])[0], s)
            continue
        rows.check_data(t)
        middle, part = rows.between(t, s, r)
        stage, tau = move(t, middle, STATE, SLOT[0])
        rows.call(t, 0, stage + tau * NOISE, middle, x=STATE, ends=False)
        weight = 1 / (2 * part)
        end, more = move(t, s, ANCHOR, (1 - weight) * SLOT[0] + weight * SLOT[1])
        noise = more * NOISE
        if one_path and tau > 0:
            places = [rows.level(time).sigma / rows.level(time).alpha for time in (t, middle, s)]
            share = (places[0] - places[1]) / (places[0] - places[2])
            past = STATE - move(t, middle, ANCHOR, SLOT[0])[0]  # tau times the stage's noise
            noise = more / tau * math.sqrt(share) * past + more * math.sqrt(1 - share) * NOISE
        rows.call(middle, 1, end + noise, s)
    return rows.plan()
