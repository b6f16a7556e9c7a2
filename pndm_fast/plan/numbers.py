"""What counts as a number in an argument: no bool, no text, no array."""

from __future__ import annotations

import numbers
import operator
from typing import Any


def is_integer(value: object) -> bool:
    """Whether value is one integer: Python's, NumPy's or torch's, but no bool and no array."""
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether value is one real number."""
    if type(value) is float:  # most are, and the general question is slow
        return True
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def plain(values: Any) -> Any:
    """An array's or a tensor's numbers, as lists, or one number; anything else as it is."""
    return values.tolist() if hasattr(values, "tolist") else values
