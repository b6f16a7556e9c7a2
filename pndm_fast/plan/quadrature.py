"""Integrals of interpolating polynomials: where the weights of multistep methods come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pndm_fast.plan.curves import Array

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
_UNIT, _UNIT_WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


def lagrange(nodes: Sequence[float], at: Array) -> Array:
    """[len(nodes), len(at)]: the polynomials that are 1 at one node and 0 at the others."""
    return np.array(
        [np.prod([(at - m) / (n - m) for m in nodes if m != n] + [np.ones_like(at)], axis=0) for n in nodes]
    )


def integral(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """int_start^end l_j, exactly: the variable-step Adams-Bashforth weights, in units of the variable."""
    at = start + (end - start) * _UNIT
    return [float(w) for w in lagrange(nodes, at) @ _UNIT_WEIGHTS * (end - start)]


def integral_of(value: Callable[[Array], Array], low: float, high: float) -> float:
    """int_low^high value(u) du, 0 < low, by Gauss's rule in log u: of what has its scale in u itself."""
    ratio = np.log(high / low)
    u = np.asarray(low * np.exp(ratio * _UNIT), dtype=np.float64)
    return float(_UNIT_WEIGHTS @ (value(u) * u) * ratio)


def exponential(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """int l_j(v) d exp(v) from start to end."""
    at = start + (end - start) * _UNIT
    return [float(w) for w in lagrange(nodes, at) @ (np.exp(at) * _UNIT_WEIGHTS) * (end - start)]


def moment(h: float, power: int) -> float:
    """int_0^1 exp(-h (1 - u)) u^power du for either sign of h: the phi functions, without cancellation."""
    if power == 0:
        return float(-np.expm1(-h) / h) if h else 1.0
    return float(_UNIT_WEIGHTS @ (np.exp(-h * (1 - _UNIT)) * _UNIT**power))


def against(
    rho: Callable[[Array], Array], nodes: Sequence[float], start: float, end: float, origin: float, rate: float = 0.0
) -> list[float]:
    """int exp(rate (t - end)) l_j(t) d rho(t) from start to end, by parts: at rate 0 they add up to the change of rho.

    `origin` is where rho behaves like a square root: sqrt(t - origin) is the variable, in which it is smooth.
    """
    low, high = np.sqrt(end - origin), np.sqrt(start - origin)
    w = low + (high - low) * _UNIT
    t = np.clip(origin + w * w, end, start)
    ends = rho(np.array([start, end]))
    inner = (rho(t) - ends[0]) * 2 * w * _UNIT_WEIGHTS * (high - low)
    weights = lagrange(nodes, np.array([end]))[:, 0] * (ends[1] - ends[0])
    slopes = _slopes(nodes, t)
    if rate:
        slopes, inner = slopes + rate * lagrange(nodes, t), inner * np.exp(rate * (t - end))
    return [float(w) for w in weights + slopes @ inner]


def _slopes(nodes: Sequence[float], at: Array) -> Array:
    """The derivatives of the `lagrange` polynomials."""
    rows = []
    for n in nodes:
        others = [m for m in nodes if m != n]
        parts = [
            np.prod([(at - m) / (n - m) for m in others if m != k] + [np.full_like(at, 1 / (n - k))], axis=0)
            for k in others
        ]
        rows.append(np.sum(parts, axis=0) if parts else np.zeros_like(at))
    return np.array(rows)
