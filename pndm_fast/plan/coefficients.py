"""The two halves of a solver: the transfer part and the gradient part, over slots that hold eps, x_0 or flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from pndm_fast.plan import matrix2
from pndm_fast.plan.checks import choose
from pndm_fast.plan.levels import Level
from pndm_fast.plan.row import PREDICTIONS, Form, OutputMap
from pndm_fast.plan.schedule import Schedule

# Adams-Bashforth weights, newest first: the gradient part (55, -59, 37, -9)/24 and its lower orders.
ADAMS_BASHFORTH: dict[int, tuple[Fraction, ...]] = {
    1: (Fraction(1),),
    2: (Fraction(3, 2), Fraction(-1, 2)),
    3: (Fraction(23, 12), Fraction(-16, 12), Fraction(5, 12)),
    4: (Fraction(55, 24), Fraction(-59, 24), Fraction(37, 24), Fraction(-9, 24)),
}


def combine(weights: Sequence[Fraction | float], forms: Sequence[Form]) -> Form:
    """sum_j weights[j] forms[j]."""
    total = float(weights[0]) * forms[0]
    for w, form in zip(weights[1:], forms[1:], strict=True):
        total = total + float(w) * form
    return total


def level(schedule: Schedule, t: float) -> Level:
    """(alpha_t, sigma_t)."""
    return Level(float(schedule.alpha(t)), float(schedule.sigma(t)))


def log_snr(at: Level) -> float:
    """lam = log(alpha / sigma), infinite at either end."""
    if at.sigma == 0:
        return math.inf
    return math.log(at.alpha / at.sigma) if at.alpha > 0 else -math.inf


class Transfer:
    """The transfer part phi from one noise level to another. PNDM, Liu et al. 2022, arXiv:2202.09778, eq. 9.

    phi(x, eps) = alpha_s/alpha_t x + (sigma_s - alpha_s/alpha_t sigma_t) eps maps alpha_t x_0 + sigma_t eps to
    alpha_s x_0 + sigma_s eps exactly. For alpha^2 + sigma^2 = 1 the paper writes the second coefficient as
    -(alpha_s^2 - alpha_t^2) / (alpha_t (alpha_t sigma_s + alpha_s sigma_t)); this form holds for any levels.
    The same line in other words: with x_0 in place of eps, sigma_s/sigma_t x + (alpha_s - alpha_t sigma_s/sigma_t) x_0;
    with flow = eps - x_0, m_s/m_t x + (sigma_s - m_s/m_t sigma_t) flow, m = alpha + sigma.
    """

    def __init__(self, source: Level, target: Level, kind: str = "eps") -> None:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = source, target
        if kind == "eps" and alpha_t == 0:
            raise ValueError("times must start where alpha > 0 for a solver that combines eps, got alpha = 0")
        if kind == "eps":
            self.scale = alpha_s / alpha_t
            self.slot = (alpha_t * sigma_s - alpha_s * sigma_t) / alpha_t
        elif kind == "x0":
            self.scale = sigma_s / sigma_t
            self.slot = (sigma_t * alpha_s - sigma_s * alpha_t) / sigma_t
        else:
            self.scale = (alpha_s + sigma_s) / (alpha_t + sigma_t)
            self.slot = (alpha_t * sigma_s - alpha_s * sigma_t) / (alpha_t + sigma_t)

    def __call__(self, x: Form, slot: Form) -> Form:
        """phi of two linear forms."""
        return self.scale * x + self.slot * slot


SPLITS = ("posterior", "flow")


def ancestral(source: Level, target: Level, eta: float, split: str = "posterior") -> tuple[Level, float]:
    """A deterministic step's end and the noise tau that completes it to the target.

    posterior: tau = eta (sigma_s/sigma_t) sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2), at most sigma_s; eta = 1 is
    the posterior's. flow: of flow schedules, to sigma_d = sigma_s (1 + eta (sigma_s/sigma_t - 1)), at least 0, then
    scaled by alpha_s / (1 - sigma_d): the "RF" ancestral steps of ComfyUI and LTX. Both keep every marginal.
    """
    if split == "flow":
        down = max(0.0, target.sigma * (1 + eta * (target.sigma / source.sigma - 1)))
        reduced = Level(target.alpha, target.alpha * down / (1 - down))
        return reduced, math.sqrt(max(0.0, target.sigma**2 - reduced.sigma**2))
    added = source.sigma**2 - (source.alpha / target.alpha * target.sigma) ** 2  # 1 - alpha_t^2/alpha_s^2 on VP
    tau = min(eta * target.sigma / source.sigma * math.sqrt(max(0.0, added)), target.sigma)
    ratio = eta * source.alpha * target.sigma / (target.alpha * source.sigma)
    kept = (1 - eta) * (1 + eta) + ratio * ratio  # of sigma_s^2, without cancellation where little is left
    return Level(target.alpha, target.sigma * math.sqrt(max(0.0, kept))), tau


def to_store(kind: str, prediction: str, at: Level, sigma_data: float = 0.5) -> OutputMap:
    """The store map from what the network predicts at a level to what the slots hold: eps, x0 or flow.

    v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D); flow = eps - x_0
    (Liu et al. 2022, arXiv:2209.03003); x_0 = (x - sigma eps) / alpha; edm: F of x_0 = c_skip x + c_out F
    (Karras et al. 2022, arXiv:2206.00364, table 1).

    Raises:
        ValueError: unknown prediction, or one that says nothing of what is asked at this level.
    """
    choose("prediction", prediction, PREDICTIONS)
    if prediction == kind:
        return OutputMap()
    if prediction == "eps" and at.alpha == 0:
        raise ValueError("prediction must be v, x0 or flow where alpha = 0 (zero terminal SNR), got 'eps'")
    if kind == "eps" and at.sigma == 0 and prediction == "x0":
        raise ValueError("prediction 'x0' gives no eps where sigma = 0")
    if prediction == "edm" and at.alpha != 1:
        raise ValueError(f"prediction 'edm' must be on Schedule.edm, where alpha is 1, got alpha = {at.alpha:g}")
    return _MAPS[kind](prediction, at, sigma_data)


def _to_eps(prediction: str, at: Level, data: float) -> OutputMap:
    alpha, sigma = at
    if prediction == "v":
        norm = alpha * alpha + sigma * sigma
        return OutputMap(p=sigma / norm, q=alpha / norm)
    if prediction == "flow":
        return OutputMap(p=1 / (alpha + sigma), q=alpha / (alpha + sigma))
    if prediction == "edm":
        norm = sigma * sigma + data * data
        return OutputMap(p=sigma / norm, q=-data / math.sqrt(norm))
    return OutputMap(p=1 / sigma, q=-alpha / sigma)


def _to_x0(prediction: str, at: Level, data: float) -> OutputMap:
    alpha, sigma = at
    if prediction == "v":
        norm = alpha * alpha + sigma * sigma
        return OutputMap(p=alpha / norm, q=-sigma / norm)
    if prediction == "flow":
        return OutputMap(p=1 / (alpha + sigma), q=-sigma / (alpha + sigma))
    if prediction == "edm":
        norm = sigma * sigma + data * data
        return OutputMap(p=data * data / norm, q=sigma * data / math.sqrt(norm))
    return OutputMap(p=1 / alpha, q=-sigma / alpha)


def _to_flow(prediction: str, at: Level, data: float) -> OutputMap:
    alpha, sigma = at
    if prediction == "v":
        norm = alpha * alpha + sigma * sigma
        return OutputMap(p=(sigma - alpha) / norm, q=(alpha + sigma) / norm)
    if prediction == "eps":
        return OutputMap(p=-1 / alpha, q=(alpha + sigma) / alpha)
    if prediction == "edm":
        eps, x0 = _to_eps(prediction, at, data), _to_x0(prediction, at, data)
        minus_p, minus_q = (matrix2.product(-1.0, c) for c in x0[:2])
        return OutputMap(p=matrix2.total(eps.p, minus_p), q=matrix2.total(eps.q, minus_q))
    if sigma == 0:
        raise ValueError("prediction 'x0' gives no flow where sigma = 0")
    return OutputMap(p=1 / sigma, q=-(alpha + sigma) / sigma)


_MAPS = {"eps": _to_eps, "x0": _to_x0, "flow": _to_flow}


def preview(kind: str, at: Level) -> tuple[float, float]:
    """x_0 from y and the slot."""
    if kind == "x0":
        return 0.0, 1.0
    if kind == "flow":
        return 1 / (at.alpha + at.sigma), -at.sigma / (at.alpha + at.sigma)
    return 1 / at.alpha, -at.sigma / at.alpha


def network_input(prediction: str, t: float, at: Level, sigma_data: float) -> tuple[float, float]:
    """(time, in_scale): what the network is told and by what the state is multiplied for it.

    c_noise = log(sigma) / 4 and c_in = 1 / sqrt(sigma^2 + sigma_data^2) for the raw network of arXiv:2206.00364,
    table 1; the time itself and 1 otherwise.
    """
    if prediction != "edm":
        return t, 1.0
    return math.log(at.sigma) / 4, 1 / math.sqrt(at.sigma**2 + sigma_data**2)
