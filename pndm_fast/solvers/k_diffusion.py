"""What k-diffusion and ComfyUI brought: midpoints in log sigma, DPM-fast, exponential Adams steps, and ancestral."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pndm_fast.plan.coefficients import Transfer, ancestral, combine, log_snr
from pndm_fast.plan.grids import fast_groups, with_log_snr
from pndm_fast.plan.levels import Level
from pndm_fast.plan.plan import MAX_ROWS, Plan
from pndm_fast.plan.quadrature import moment
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE, Form
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_ancestral
from pndm_fast.solvers.dpm import Exponential, multistep
from pndm_fast.solvers.exponential_rk import phi, step, three_stages, two_stages
from pndm_fast.solvers.heun import Churn, End, check_churn, churned
from pndm_fast.solvers.registry import solver


@solver("dpm-2", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras", inner_steps=MAX_ROWS)
def dpm_2(
    schedule: Schedule,
    times: Sequence[float],
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver-2 as k-diffusion has it: the midpoint in log rho, rho = sigma/alpha. After arXiv:2206.00927.

    To rho_m = sqrt(rho_t rho_s) by the slope at t, then from x to rho_s by the slope there; on flow schedules by
    dx/dt = flow and the geometric mean of sigma. Of whole times the nearest, and the slope at the middle follows from
    both. 2 n - 1 network calls; the step to sigma = 0 is Euler's.

    Args:
        churn, churn_min, churn_max, churn_noise: noise before each step, as `edm` has it.

    Raises:
        ValueError: times not decreasing, a negative option, churn_min above churn_max.
    """
    return _midpoint("dpm-2", schedule, times, check_churn(churn, churn_min, churn_max, churn_noise), prediction)


@solver(
    "dpm-2-ancestral", order=2, calls_per_step=2, extra_calls=-1, final_calls=1, spacing="karras",
    inner_steps=MAX_ROWS, stochastic=True,
)  # fmt: skip
def dpm_2_ancestral(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    split: str = "posterior",
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """`dpm_2` to the level that ancestral noise completes: k-diffusion's. After arXiv:2206.00927.

    The middle is that of rho_t and the reduced rho of `euler_ancestral`. 2 n - 1 network calls; the step to sigma = 0
    is Euler's. On flow, noise by the posterior's split begins at `noisiest`: of alpha = 0 it keeps nothing.

    Args:
        eta, split, noise_scale: as `euler_ancestral` has them; eta at most 1.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 on other schedules, eta outside [0, 1], noise_scale
            negative, split="flow" on another schedule.
    """
    check_ancestral(schedule, eta, noise_scale, split)
    return _midpoint("dpm-2-ancestral", schedule, times, Churn(), prediction, eta, split, noise_scale)


def _midpoint(
    name: str,
    schedule: Schedule,
    times: Sequence[float],
    churn: Churn,
    prediction: str,
    eta: float = 0.0,
    split: str = "posterior",
    noise_scale: float = 1.0,
) -> Plan:
    if eta > 0 and split == "posterior":
        times = with_log_snr(schedule, times, name)
    rows = PlanBuilder(name, schedule, times, prediction)

    def one(t: float, s: float, to: float, end: End) -> None:
        reduced, tau = ancestral(rows.level(t), rows.level(s), eta, split)
        whole = Transfer(rows.level(t), reduced, rows.kind)
        if rows.level(s).sigma == 0:
            rows.call(t, 0, end(whole(STATE, SLOT[0])), to)
            return
        if reduced.sigma == 0:  # the posterior of alpha = 0 keeps nothing of the state
            rows.check_data(t)
        start, low = math.log(rows.place(rows.level(t))), math.log(rows.place(reduced))
        place = math.exp((start + low) / 2)
        lam = -math.log(place) if rows.kind == "eps" else math.log((1 - place) / place)
        middle = rows.stage(t, s, lam)
        part = (math.log(rows.place(rows.level(middle))) - start) / (low - start) if rows.whole else 0.5
        rows.call(t, 0, rows.transfer(t, middle)(STATE, SLOT[0]), middle, x=STATE, ends=False)
        slope = combine([1 - 1 / (2 * part), 1 / (2 * part)], SLOT[:2])
        rows.call(middle, 1, end(whole(ANCHOR, slope) + noise_scale * tau * NOISE), to)

    return churned(rows, churn, one)


def _one_stage(parts: Sequence[float], h: float) -> list[list[float]]:
    return [[phi(1, h)]]


_GROUPS = {1: _one_stage, 2: two_stages("midpoint"), 3: three_stages}


@solver("dpm-fast", order=2, spacing="dpm-fast")
def dpm_fast(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 0.0,
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """DPM-Solver-fast. Lu et al. 2022, arXiv:2206.00927, section 3.4, as k-diffusion runs it, with its ancestral eta.

    Groups of steps by DPM-Solver-3, the last ones by DPM-Solver-2 and 1: of n calls above sigma = 0, n = 3 k: k - 1
    threes, a two and a one; else threes and the rest. The stages stand on the grid, n steps are n network calls; the
    spacing "dpm-fast", its default on every schedule, gives each group the same length in lam, its stages at thirds or
    the half. The step to sigma = 0 is of order 1; final="min" has none, as in
    k-diffusion.

    Args:
        eta: a group goes to the reduced level of `euler_ancestral`, its stages at the same parts of the way in lam, and
            is completed by noise. At most 1.
        noise_scale: multiplies the noise alone.

    Raises:
        ValueError: times not decreasing, or from alpha = 0 (a flow's from `noisiest`),
            eta outside [0, 1], noise_scale negative.
    """
    check_ancestral(schedule, eta, noise_scale)
    rows = PlanBuilder("dpm-fast", schedule, with_log_snr(schedule, times, "dpm-fast"), prediction, "eps")
    last, i = int(rows.level(rows.times[-1]).sigma == 0), 0
    for size in [*fast_groups(rows.steps - last), *[1] * last]:
        t, *inner, s = rows.times[i : i + size + 1]
        i += size
        rows.check_data(t)
        if rows.level(s).sigma == 0:
            rows.call(t, 0, rows.transfer(t, s)(STATE, SLOT[0]), s)
            continue
        parts = [(rows.lam(time) - rows.lam(t)) / (rows.lam(s) - rows.lam(t)) for time in inner]
        reduced, tau = ancestral(rows.level(t), rows.level(s), eta)
        places = [rows.toward(t, s, reduced, c) for c in parts] if eta else list(zip(inner, parts, strict=True))
        step(rows, t, s, places, _GROUPS[size], end=(reduced, noise_scale * tau))
    return rows.plan()


@solver("res-2m", order=2, spacing="karras", stores="x0")
def res_2m(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """RES of two past values, the exponential Adams-Bashforth method of order 2. Zhang et al. 2023, arXiv:2308.02157.

    x_s = (sigma_s/sigma_t) x + alpha_s h ((phi_1 - phi_2/c) D_t + (phi_2/c) D_-1), c = (lam_-1 - lam_t)/h: ComfyUI's
    res_multistep, and `dpmpp_2m` with its slope weighed exactly. RES4LYF's res_2m begins with steps of two stages and
    goes back to them where h >= 1. The first step, and that to sigma = 0, is of order 1.

    Raises:
        ValueError: times not decreasing.
    """
    rows = Exponential("res-2m", schedule, times, prediction, "x0", "heun")
    return multistep(rows, [rows.order_at(i, 2) for i in range(rows.steps)], 1.0)


@solver("res-3m", order=3, spacing="karras", stores="x0")
def res_3m(schedule: Schedule, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """RES of three past values, the exponential Adams-Bashforth method of order 3. After arXiv:2308.02157.

    x_s = (sigma_s/sigma_t) x + alpha_s h (phi_1 D + phi_2 D' + phi_3 D''), the derivatives of the polynomial in lam
    through three values: `dpmpp_3m` exact. RES4LYF's res_3m takes b_2 = g b_3 of `res_3s` at past nodes, with c_3^3 in
    g, which is of order 2. The first steps are of order 1 and 2, that to sigma = 0 of order 1.

    Raises:
        ValueError: times not decreasing.
    """
    rows = Exponential("res-3m", schedule, times, prediction, "x0", "heun")
    return multistep(rows, [rows.order_at(i, 3) for i in range(rows.steps)], 1.0)


@solver("res-multistep-ancestral", order=2, spacing="karras", stores="x0", stochastic=True)
def res_multistep_ancestral(
    schedule: Schedule,
    times: Sequence[float],
    *,
    eta: float = 1.0,
    split: str = "posterior",
    noise_scale: float = 1.0,
    prediction: str = "eps",
) -> Plan:
    """`res_2m` to the level that ancestral noise completes: ComfyUI's. After arXiv:2308.02157.

    As `res_2m` with h to the reduced level of `euler_ancestral`, and c = (lam_-1 - lam_d)/h, where lam_d is the reduced
    level that the step before went to. eta = 0 is `res_2m`.

    Args:
        eta, split, noise_scale: as `euler_ancestral` has them.

    Raises:
        ValueError: times not decreasing, eta or noise_scale negative, split="flow" on another schedule.
    """
    check_ancestral(schedule, eta, noise_scale, split, above_1=True)
    rows = PlanBuilder("res-multistep-ancestral", schedule, times, prediction, "x0")
    past: tuple[float, Level] | None = None
    for i, (t, s) in enumerate(pairwise(rows.times)):
        reduced, tau = ancestral(rows.level(t), rows.level(s), eta, split)
        y = Transfer(rows.level(t), reduced, "x0")(STATE, SLOT[i % 2])
        if past is not None and reduced.sigma > 0:
            y = y + _slope(rows, t, reduced, past, SLOT[i % 2] - SLOT[(i - 1) % 2])
        rows.call(t, i % 2, y + noise_scale * tau * NOISE, s)
        past = (rows.lam(t), reduced)
    return rows.plan()


def _slope(rows: PlanBuilder, t: float, end: Level, past: tuple[float, Level], change: Form) -> Form:
    """alpha_s h phi_2(-h) times the slope of x_0 in units of h."""
    h, before = log_snr(end) - rows.lam(t), log_snr(past[1]) - past[0]
    return end.alpha * h * moment(h, 1) * h / before * change
