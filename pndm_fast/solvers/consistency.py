"""Few-step sampling of distilled networks: consistency models and trajectory consistency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pndm_fast.plan.coefficients import Transfer
from pndm_fast.plan.levels import Level
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import NOISE, SLOT, STATE, OutputMap
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_eta
from pndm_fast.solvers.registry import solver


@solver("consistency", order=0, spacing="karras", stores="x0", stochastic=True)
def consistency(
    schedule: Schedule, times: Sequence[float], *, time_scale: float = 1000.0, prediction: str = "eps"
) -> Plan:
    """Multistep consistency sampling. Song et al. 2023, arXiv:2303.01469, algorithm 1.

    x_s = alpha_s (f + sqrt(rho_s^2 - rho_0^2) z), rho = sigma/alpha, rho_0 at the schedule's floor, where f leaves the
    state; the step to sigma = 0 is f itself. f is the network's x_0, but with prediction="edm" the consistency model's
    own, appendix C: f = c_skip x + c_out F(c_in x, time_scale log(t) / 4), c_skip = d^2/((t - rho_0)^2 + d^2), c_out =
    d (t - rho_0)/sqrt(t^2 + d^2), c_in = 1/sqrt(t^2 + d^2), d the schedule's sigma_data. Only for distilled networks.

    Args:
        time_scale: of prediction="edm", what multiplies the network's time log(t) / 4; released networks have 1000.

    Raises:
        ValueError: times not decreasing, time_scale not positive, prediction="edm" on another schedule than EDM's.
    """
    if not 0 < time_scale < math.inf:
        raise ValueError(f"time_scale must be positive, got {time_scale}")
    rows = PlanBuilder("consistency", schedule, times, prediction, kind="x0")
    floor = math.exp(-float(schedule.lam(schedule.floor)))
    for t, s in pairwise(rows.times):
        store, time = None, None
        if prediction == "edm":
            rows.store(t)  # which refuses a schedule that is not EDM's
            data = schedule.sigma_data
            norm, step = math.hypot(t, data), t - floor
            store = OutputMap(data**2 / (step * step + data**2), data * step / norm)
            time = time_scale * math.log(t) / 4
        target = rows.level(s)
        noise = math.sqrt(max(0.0, target.sigma**2 - (target.alpha * floor) ** 2))
        rows.call(t, 0, target.alpha * SLOT[0] + noise * NOISE, s, store=store, model_time=time)
    return rows.plan()


@solver("tcd", order=1, spacing="trailing", stores="x0", stochastic=True)
def tcd(schedule: Schedule, times: Sequence[float], *, eta: float = 0.3, prediction: str = "eps") -> Plan:
    """Trajectory consistency distillation's strategic stochastic sampling. Zheng et al. 2024, arXiv:2402.19159, alg. 4.

    To the time m = (1 - eta) s, then with noise back to s: x_m = alpha_m x_0 + sigma_m eps of the network,
    x_s = (alpha_s/alpha_m) x_m + sqrt(sigma_s^2 - (alpha_s/alpha_m)^2 sigma_m^2) z. Of whole times m is rounded down.
    eta = 0 is DDIM; eta = 1 goes to the first training time, or to x_0 on continuous schedules, and noises it anew:
    multistep consistency sampling of flow, v and TrigFlow networks, as for sCM (arXiv:2410.11081). With eta above 0 it
    is for distilled networks: more steps of another do not come near its law.

    Args:
        eta: the paper's gamma.

    Raises:
        ValueError: times not decreasing, eta outside [0, 1].
    """
    check_eta(eta)
    rows = PlanBuilder("tcd", schedule, times, prediction, kind="x0")
    for t, s in pairwise(rows.times):
        target = rows.level(s)
        m = s if s <= 0 else max((1 - eta) * s, schedule.first)
        clean = rows.level(float(math.floor(m)) if rows.whole else m)
        back = target.alpha / clean.alpha
        reduced = Level(target.alpha, back * clean.sigma)
        tau = math.sqrt(max(0.0, target.sigma**2 - reduced.sigma**2))
        rows.call(t, 0, Transfer(rows.level(t), reduced, "x0")(STATE, SLOT[0]) + tau * NOISE, s)
    return rows.plan()
