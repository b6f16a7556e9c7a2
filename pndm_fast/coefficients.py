"""The two halves of a pseudo numerical method: the transfer part and the gradient part."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pndm_fast.plan import PREDICTIONS, Form, Level, Store
from pndm_fast.schedule import Schedule

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


class Transfer:
    """The transfer part phi from one noise level to another. PNDM, Liu et al. 2022, arXiv:2202.09778, eq. 9.

    phi(x, eps) = alpha_s/alpha_t x + (sigma_s - alpha_s/alpha_t sigma_t) eps maps alpha_t x_0 + sigma_t eps to
    alpha_s x_0 + sigma_s eps exactly. For alpha^2 + sigma^2 = 1 the paper writes the second coefficient as
    -(alpha_s^2 - alpha_t^2) / (alpha_t (alpha_t sigma_s + alpha_s sigma_t)); this form holds for any levels.
    """

    def __init__(self, source: Level, target: Level) -> None:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = source, target
        self.scale = alpha_s / alpha_t
        self.eps = (alpha_t * sigma_s - alpha_s * sigma_t) / alpha_t

    def __call__(self, x: Form, eps: Form) -> Form:
        """phi(x, eps) of two linear forms."""
        return self.scale * x + self.eps * eps


def to_eps(prediction: str, at: Level) -> Store:
    """The store map that turns the network's prediction at a level into eps.

    v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D); flow = eps - x_0
    (Liu et al. 2022, arXiv:2209.03003); x_0 = (x - sigma eps) / alpha.

    Raises:
        ValueError: unknown prediction, or eps asked from x_0 where sigma = 0.
    """
    alpha, sigma = at
    if prediction == "eps":
        return Store()
    if prediction == "v":
        norm = alpha * alpha + sigma * sigma
        return Store(p=sigma / norm, q=alpha / norm)
    if prediction == "flow":
        return Store(p=1 / (alpha + sigma), q=alpha / (alpha + sigma))
    if prediction == "x0":
        if sigma == 0:
            raise ValueError("prediction 'x0' gives no eps where sigma = 0")
        return Store(p=1 / sigma, q=-alpha / sigma)
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")


def clipped(store: Store, at: Level, bound: float) -> Store:
    """A store map to eps with its x_0 estimate clamped to [-bound, bound] on the way.

    x_0 = (y - sigma eps) / alpha with eps = p y + q out, then eps = (y - alpha clamp(x_0)) / sigma.
    """
    alpha, sigma = at
    return Store((1 - sigma * store.p) / alpha, -sigma * store.q / alpha, 1 / sigma, -alpha / sigma, bound)


def preview_of_eps(at: Level) -> tuple[float, float]:
    """x_0 = y / alpha - sigma / alpha eps."""
    return 1 / at.alpha, -at.sigma / at.alpha
