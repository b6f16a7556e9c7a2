"""Coefficients in words, for `print(plan)`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pndm_fast.plan import matrix2
from pndm_fast.plan.matrix2 import Coefficient
from pndm_fast.plan.row import OutputMap, Row


def form_text(form: Sequence[Coefficient], names: Sequence[str]) -> str:
    """The sum of the operands of those names."""
    return _terms(form, names) or "0"


def _terms(coefficients: Sequence[Coefficient], names: Sequence[str]) -> str:
    return " ".join(f"{_coefficient(c)} {name}" for c, name in zip(coefficients, names, strict=True) if c)


def _coefficient(c: Coefficient) -> str:
    return f"+{matrix2.text(c)}" if isinstance(c, tuple) else f"{c:+.6g}"


def guidance_text(row: Row) -> str:
    """What a guided row does with its outputs; of others nothing."""
    text = "" if row.guidance == row.guidance_factor == 1.0 else f";  guidance {row.guidance:.6g}"
    if row.guidance_factor != 1.0:
        text += f" = {row.guidance_factor:.6g} scale"
    return text if row.second is None else f"{text};  s{row.second} <- the same of uncond"


def store_text(store: OutputMap) -> str:
    """What goes into the slot."""
    inner = _terms(store[:2], ("y", "out"))
    if math.isfinite(store.clamp):
        inner = f"clamp({inner}, {store.clamp:g})"
    if (store.p2, store.q2) == (0.0, 1.0):
        return inner
    return f"{_coefficient(store.p2)} y {_coefficient(store.q2)} ({inner})"
