"""Exponential Runge-Kutta methods in lam = log(alpha / sigma): RES, SEEDS, exponential Heun, their noises chained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import ancestral, combine, log_snr
from pndm_fast.plan.grids import with_log_snr
from pndm_fast.plan.levels import Level
from pndm_fast.plan.plan import MAX_ROWS, Plan
from pndm_fast.plan.quadrature import moment
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE, Form
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_ancestral, check_at_least_0
from pndm_fast.solvers.dpm import TYPES, Exponential, group_sizes, singlestep
from pndm_fast.solvers.registry import solver

# of a step of length h with stages at these parts of it: the rows a_i of every later stage, and last b
Weights = Callable[[Sequence[float], float], list[list[float]]]


def phi(k: int, h: float) -> float:
    """phi_k(-h) = int_0^1 exp(-h (1 - u)) u^(k - 1) / (k - 1)! du, k from 1 on."""
    return moment(h, k - 1) / math.factorial(k - 1)


def step(
    rows: PlanBuilder,
    t: float,
    s: float,
    places: Sequence[tuple[float, float]],
    weights: Weights,
    eta: float = 0.0,
    end: tuple[Level, float] | None = None,
) -> None:
    """The calls of one step from t to s: at t and at each of `places`, of which it takes the time and the part of h.

    Stage i stands at lam_t + c_i h, h = lam_s - lam_t, and with h' = (1 + eta) h
    y_i = (sigma_i/sigma_t) exp(-eta c_i h) x + alpha_i h' sum_j a_ij(h') D_j + sigma_i n_i, D the network's x_0; the
    noises n_i are one path: n_i = exp(-eta (c_i - c_j) h) n_j + sqrt(1 - exp(-2 eta (c_i - c_j) h)) z, j the stage
    before, whose n is read back from its state. With eps in place of x_0, alpha <-> sigma and h -> -h, without noise.

    Args:
        end: a level short of s that the step goes to, and the noise that completes it: of ancestral steps.
    """
    target, tau = (rows.level(s), 0.0) if end is None else end
    source = rows.level(t)
    h = log_snr(target) - rows.lam(t)
    parts = [0.0, *(part for _, part in places), 1.0]
    times = [t, *(time for time, _ in places), s]
    signed = h * (1 + eta) if rows.kind == "x0" else -h
    table = weights(parts[1:-1], signed)
    before: Form | None = None
    for i, row in enumerate(table):
        last = i == len(table) - 1
        at = target if last else rows.level(times[i + 1])
        gain, kept = (at.alpha, at.sigma / source.sigma) if rows.kind == "x0" else (at.sigma, at.alpha / source.alpha)
        mean = kept * math.exp(-eta * parts[i + 1] * h) * ANCHOR + gain * signed * combine(row, SLOT[: i + 1])
        y = mean + mean[0] * (STATE - ANCHOR) if i == 0 else mean  # the anchor is what the network sees there
        if eta:
            gap = eta * (parts[i + 1] - parts[i]) * h
            if before is not None:
                y = y + at.sigma / rows.level(times[i]).sigma * math.exp(-gap) * (STATE - before)
            y = y + at.sigma * math.sqrt(-math.expm1(-2 * gap)) * NOISE
        before = mean
        y = y + tau * NOISE if last and tau else y
        rows.call(times[i], i, y, times[i + 1], x=STATE if i == 0 and not last else ANCHOR, ends=last)


def first_order(rows: PlanBuilder, t: float, s: float) -> None:
    """The one call of a step to sigma = 0: the estimate of x_0 itself."""
    rows.call(t, 0, rows.transfer(t, s)(STATE, SLOT[0]), s)


def two_stages(solver_type: str) -> Weights:
    """c_2 = r: a_21 = r phi_1(r h), b_2 = phi_1(h)/(2 r) (midpoint) or phi_2(h)/r (heun), b_1 = phi_1(h) - b_2."""

    def weights(parts: Sequence[float], h: float) -> list[list[float]]:
        (r,) = parts
        second = phi(1, h) / (2 * r) if solver_type == "midpoint" else phi(2, h) / r
        return [[r * phi(1, r * h)], [phi(1, h) - second, second]]

    return weights


def three_stages(parts: Sequence[float], h: float) -> list[list[float]]:
    """a_32 = (c_3^2/c_2) phi_2(c_3 h), b_3 = phi_2(h)/c_3, b_2 = 0: DPM-Solver-3, and SEEDS-3 with noise."""
    c2, c3 = parts
    inner, last = c3 * c3 / c2 * phi(2, c3 * h), phi(2, h) / c3
    return [[c2 * phi(1, c2 * h)], [c3 * phi(1, c3 * h) - inner, inner], [phi(1, h) - last, 0.0, last]]


def res_three_stages(parts: Sequence[float], h: float) -> list[list[float]]:
    """a_32 = g c_2 phi_2(c_2 h) + (c_3^2/c_2) phi_2(c_3 h), b_3 = phi_2(h)/(g c_2 + c_3), b_2 = g b_3."""
    c2, c3 = parts
    g = (3 * c3 * c3 - 2 * c3) / (c2 * (2 - 3 * c2))
    inner = g * c2 * phi(2, c2 * h) + c3 * c3 / c2 * phi(2, c3 * h)
    last = phi(2, h) / (g * c2 + c3)
    return [[c2 * phi(1, c2 * h)], [c3 * phi(1, c3 * h) - inner, inner], [phi(1, h) - (1 + g) * last, g * last, last]]


def _stages(
    name: str,
    schedule: Schedule,
    times: Sequence[float],
    prediction: str,
    nodes: Sequence[float],
    weights: Weights,
    eta: float = 0.0,
) -> Plan:
    """One step after another, with stages at these parts of it, in lam. A flow's first time is `noisiest`."""
    rows = PlanBuilder(name, schedule, with_log_snr(schedule, times, name), prediction, "x0")
    for t, s in pairwise(rows.times):
        if rows.level(s).sigma == 0:
            first_order(rows, t, s)
            continue
        rows.check_data(t)
        step(rows, t, s, [(s, 1.0) if c == 1 else rows.between(t, s, c) for c in nodes], weights, eta)
    return rows.plan()


def _check_part(name: str, value: float, low: float = 0.0) -> None:
    if not low < value <= 1:
        raise ValueError(f"{name} must be in ({low:g}, 1], got {value}")


@solver(
    "res-2s", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras", inner_steps=MAX_ROWS,
    stores="x0",
)  # fmt: skip
def res_2s(schedule: Schedule, times: Sequence[float], *, c2: float = 0.5, prediction: str = "eps") -> Plan:
    """RES of two stages, the exponential Runge-Kutta method of order 2. Zhang et al. 2023, arXiv:2308.02157.

    y_2 = (sigma_2/sigma_t) x + alpha_2 c_2 h phi_1(c_2 h) D_t at lam_t + c_2 h, and
    x_s = (sigma_s/sigma_t) x + alpha_s h ((phi_1 - phi_2/c_2) D_t + (phi_2/c_2) D_2), phi_k = phi_k(-h) there.
    2 n - 1 network calls; the step to sigma = 0 is of order 1.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`), c2 outside (0, 1].
    """
    _check_part("c2", c2)
    return _stages("res-2s", schedule, times, prediction, [c2], two_stages("heun"))


@solver(
    "res-3s", order=3, calls_per_step=3, extra_calls=-2, final_calls=2, spacing="karras", inner_steps=MAX_ROWS,
    stores="x0",
)  # fmt: skip
def res_3s(
    schedule: Schedule, times: Sequence[float], *, c2: float = 0.5, c3: float = 1.0, prediction: str = "eps"
) -> Plan:
    """RES of three stages, an exponential Runge-Kutta method of order 3. Zhang et al. 2023, arXiv:2308.02157.

    b_3 = phi_2(h)/(g c_2 + c_3), b_2 = g b_3, a_32 = g c_2 phi_2(c_2 h) + (c_3^2/c_2) phi_2(c_3 h), the others so that
    rows add up to c phi_1(c h). Order 3 asks for 2 (g c_2 + c_3) = 3 (g c_2^2 + c_3^2), which is
    g = (3 c_3^2 - 2 c_3)/(c_2 (2 - 3 c_2)); with c_3^3 in its place, as RES4LYF has it, the order is 3 where c_3 = 1.
    3 n - 2 network calls; the step to sigma = 0 is of order 1.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`),
            c2 outside (0, 1] or 2/3, c3 not in (c2, 1].
    """
    _check_part("c2", c2)
    _check_part("c3", c3, c2)
    if abs(3 * c2 - 2) < 1e-6:
        raise ValueError(f"c2 must be other than 2/3 for res-3s, got {c2}")
    return _stages("res-3s", schedule, times, prediction, [c2, c3], res_three_stages)


@solver(
    "seeds-2", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras", inner_steps=MAX_ROWS,
    stores="x0", stochastic=True,
)  # fmt: skip
def seeds_2(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    r: float = 0.5,
    solver_type: str = "midpoint",
    prediction: str = "eps",
) -> Plan:
    """SEEDS-2. Gonzalez et al. 2023, arXiv:2305.14267, with x_0; eta as in ComfyUI, where the paper's is 1.

    Two exponential stages of length (1 + eta) h with noise of rate eta at each, one path: `exponential_rk.step`.
    b_2 = phi_1/(2 r), b_1 = phi_1 - b_2. 2 n - 1 network calls; the step to sigma = 0 is of order 1.

    Args:
        r: the stage's place in lam.
        solver_type: midpoint, as above; heun has b_2 = phi_2/r (ComfyUI's phi_1 and phi_2).

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`),
            eta negative, r outside (0, 1], unknown solver_type.
    """
    check_at_least_0(eta=eta)
    _check_part("r", r)
    choose("solver_type", solver_type, TYPES)
    return _stages("seeds-2", schedule, times, prediction, [r], two_stages(solver_type), eta)


@solver(
    "seeds-3", order=3, calls_per_step=3, extra_calls=-2, final_calls=2, spacing="karras", inner_steps=MAX_ROWS,
    stores="x0", stochastic=True,
)  # fmt: skip
def seeds_3(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    r1: float = 1 / 3,
    r2: float = 2 / 3,
    prediction: str = "eps",
) -> Plan:
    """SEEDS-3. Gonzalez et al. 2023, arXiv:2305.14267, with x_0; eta as in ComfyUI, where the paper's is 1.

    Three exponential stages of length (1 + eta) h with noise of rate eta at each, one path: `exponential_rk.step`.
    a_32 = (r_2^2/r_1) phi_2(r_2 h), b_3 = phi_2(h)/r_2, b_2 = 0. 3 n - 2 network calls; the step to sigma = 0 is of
    order 1.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`),
            eta negative, not 0 < r1 < r2 <= 1.
    """
    check_at_least_0(eta=eta)
    _check_part("r1", r1)
    _check_part("r2", r2, r1)
    return _stages("seeds-3", schedule, times, prediction, [r1, r2], three_stages, eta)


@solver("exp-heun-2-x0", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras", stores="x0")
def exp_heun_2_x0(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """Exponential Heun method: `seeds_2` with eta = 0, its stage at the step's end, phi_2. After arXiv:2305.14267.

    x_s = (sigma_s/sigma_t) x + alpha_s h ((phi_1 - phi_2) D_t + phi_2 D_s), which is `res_2s` at c2 = 1. 2 n - 1
    network calls; the step to sigma = 0 is of order 1.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`).
    """
    return _stages("exp-heun-2-x0", schedule, times, prediction, [1.0], two_stages("heun"))


@solver(
    "exp-heun-2-x0-sde", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras", stores="x0",
    stochastic=True,
)  # fmt: skip
def exp_heun_2_x0_sde(schedule: Schedule, times: Sequence[float], *, eta: float = 1.0, prediction: str = "eps") -> Plan:
    """Exponential Heun method with noise: `seeds_2`, its stage at the step's end, phi_2. After arXiv:2305.14267.

    The stage's noise is the step's. 2 n - 1 network calls; the step to sigma = 0 is of order 1.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`), eta negative.
    """
    check_at_least_0(eta=eta)
    return _stages("exp-heun-2-x0-sde", schedule, times, prediction, [1.0], two_stages("heun"), eta)


@solver(
    "dpmpp-2s-ancestral", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras",
    inner_steps=MAX_ROWS, stores="x0", stochastic=True,
)  # fmt: skip
def dpmpp_2s_ancestral(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    split: str = "posterior",
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver++(2S) to the level that ancestral noise completes: k-diffusion's. After arXiv:2211.01095.

    The stage at half the way in lam to the reduced level of `euler_ancestral`, then from x to that level by its x_0
    alone, then noise. 2 n - 1 network calls; the step to sigma = 0 is of order 1.

    Args:
        eta, split, noise_scale: as `euler_ancestral` has them; eta at most 1.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`), eta outside [0, 1],
            split="flow" on another schedule.
    """
    check_ancestral(schedule, eta, noise_scale, split)
    times = with_log_snr(schedule, times, "dpmpp-2s-ancestral")
    rows = PlanBuilder("dpmpp-2s-ancestral", schedule, times, prediction, "x0")
    for t, s in pairwise(rows.times):
        if rows.level(s).sigma == 0:
            first_order(rows, t, s)
            continue
        rows.check_data(t)
        reduced, tau = ancestral(rows.level(t), rows.level(s), eta, split)
        middle = rows.toward(t, s, reduced)
        step(rows, t, s, [middle], two_stages("midpoint"), end=(reduced, noise_scale * tau))
    return rows.plan()


@solver("dpmpp-3s", order=3, spacing="trailing", stores="x0")
def dpmpp_3s(
    schedule: Schedule, times: Sequence[float], *, solver_type: str = "midpoint", prediction: str = "eps"
) -> Plan:
    """DPM-Solver++(3S), singlestep of order 3. Lu et al. 2022, arXiv:2211.01095, and its released code.

    `dpm_solver_3` with x_0 in place of eps: three steps a group, u_2 = (sigma/sigma_t) x + alpha r_2 h (phi_1 D_t +
    (r_2/r_1) phi_2 (D_1 - D_t)), x_s = (sigma_s/sigma_t) x + alpha_s h (phi_1 D_t + phi_2 (D_2 - D_t)/r_2). The stages
    stand on the grid, n steps are n network calls; the last groups are shorter: DPM-Solver++(2S) and (1).

    Args:
        solver_type: midpoint, as above; heun ends with the second derivative of both stages too.

    Raises:
        ValueError: times not decreasing, unknown solver_type.
    """
    rows = Exponential("dpmpp-3s", schedule, times, prediction, "x0", solver_type)
    return singlestep(rows, group_sizes(rows, 3))
