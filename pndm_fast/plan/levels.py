"""How much data and how much noise a state holds."""

from __future__ import annotations

import math
from typing import NamedTuple

from pndm_fast.plan.matrix2 import Matrix


class Level(NamedTuple):
    """x_t = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float

    @property
    def position(self) -> Level:
        """Itself."""
        return self


class PhaseLevel(NamedTuple):
    """[position, momentum] at t = alpha [x_0, 0] + sigma eps, with matrices alpha = Psi_t and sigma = L_t."""

    alpha: Matrix
    sigma: Matrix

    @property
    def position(self) -> Level:
        """The level of the position alone."""
        return Level(self.alpha[0][0], math.hypot(*self.sigma[0]))


AnyLevel = Level | PhaseLevel


class Levels(NamedTuple):
    """Noise levels that a row declares: of y at the call, of x and of y after the row."""

    call: AnyLevel
    x: AnyLevel
    y: AnyLevel
