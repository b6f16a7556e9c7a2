"""Coefficients of a plan: a number, or a 2x2 matrix that acts on position and momentum. A number c stands for c I."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pndm_fast.plan.numbers import is_number

Matrix = tuple[tuple[float, float], tuple[float, float]]
Coefficient = float | Matrix


def coefficient(value: Any) -> Coefficient:
    """A number as it is; two rows of two numbers as a matrix, or as c where they are c I.

    Raises:
        ValueError: anything else.
    """
    if is_number(value):
        return float(value)
    try:
        (a, b), (c, d) = value
    except (TypeError, ValueError):
        a = b = c = d = None
    if not all(map(is_number, (a, b, c, d))):
        raise ValueError(f"a coefficient must be a number or two rows of two, got {value!r}")
    (a, b), (c, d) = (float(a), float(b)), (float(c), float(d))
    return a if b == c == 0 and a == d else ((a, b), (c, d))


def text(value: Coefficient) -> str:
    """To six digits."""
    return "[" + "; ".join(f"{a:.6g} {b:.6g}" for a, b in value) + "]" if isinstance(value, tuple) else f"{value:.6g}"


def matrix(value: Coefficient) -> NDArray[np.float64]:
    """[2, 2]."""
    return np.asarray(stacked([value], 2)[0])


def stacked(values: Iterable[Coefficient], components: int) -> NDArray[np.float64]:
    """[n, components, components]; at one component they are numbers."""
    if components == 1:
        return np.array([[[value]] for value in values])
    return np.array([value if isinstance(value, tuple) else ((value, 0.0), (0.0, value)) for value in values])


def numbers(values: Iterable[Coefficient]) -> Iterator[float]:
    """The entries of all, one after another."""
    for value in values:
        if isinstance(value, tuple):
            yield from (*value[0], *value[1])
        else:
            yield value


def components(values: Iterable[Coefficient]) -> int:
    """2 where one of them is a matrix, else 1."""
    return 2 if any(isinstance(value, tuple) for value in values) else 1


def product(a: Coefficient, b: Coefficient) -> Coefficient:
    """a b."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        return coefficient(matrix(a) @ matrix(b))
    return a * b


def total(a: Coefficient, b: Coefficient) -> Coefficient:
    """a + b."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        return coefficient(matrix(a) + matrix(b))
    return a + b


def solve(a: Coefficient, b: Coefficient) -> Coefficient:
    """a^-1 b."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        return coefficient(np.linalg.solve(matrix(a), matrix(b)))
    return b / a
