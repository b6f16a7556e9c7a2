"""Noise against time: the curves that a `Schedule` is made of, each with its exact inverse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pndm_fast.plan.checks import choose

Array = NDArray[np.float64]
INTERPOLATIONS = ("log_abar", "sigma", "log_sigma")


class Curve(Protocol):
    """alpha and sigma against time, and the time of a log-SNR lam = log(alpha / sigma)."""

    scale: str  # vp: alpha^2 + sigma^2 = 1; sigma: alpha = 1; flow: alpha + sigma = 1

    def log_alpha_bar(self, t: Array) -> Any:
        """log alpha_t^2."""

    def sigma(self, t: Array) -> Any:
        """sigma_t, without cancellation near zero."""

    def time(self, lam: Array) -> Any:
        """The time at which log(alpha / sigma) is lam."""

    def slope(self, t: float) -> float:
        """d log alpha / dt."""


class _Preserving(ABC):
    """alpha^2 + sigma^2 = 1, given by log alpha-bar."""

    scale = "vp"

    @abstractmethod
    def log_alpha_bar(self, t: Array) -> Any:
        """At a time."""

    def sigma(self, t: Array) -> Any:
        return np.sqrt(-np.expm1(self.log_alpha_bar(t)))

    @abstractmethod
    def inverse(self, log_alpha_bar: Array) -> Any:
        """The time of a log alpha-bar."""

    def time(self, lam: Array) -> Any:
        return self.inverse(-np.logaddexp(0.0, -2 * lam))


@dataclass(frozen=True)
class LinearBeta(_Preserving):
    """log alpha-bar = -(low t + (high - low) t^2 / 2), from the last time at which it is 0 on: `start`."""

    low: float
    high: float

    @property
    def start(self) -> float:
        """0, or where low is negative -2 low / (high - low): before it alpha would be above 1."""
        return -2 * self.low / (self.high - self.low) if self.low < 0 else 0.0

    def log_alpha_bar(self, t: Array) -> Any:
        return -np.maximum(t * (self.low + (self.high - self.low) * t / 2), 0.0)

    def inverse(self, log_alpha_bar: Array) -> Any:
        value, steep = -log_alpha_bar, self.high - self.low
        root = np.sqrt(self.low * self.low + 2 * steep * value)
        # one root of the quadratic equation in its two forms, each without cancellation
        return (root - self.low) / steep if self.low <= 0 else 2 * value / (self.low + root)

    def slope(self, t: float) -> float:
        return -(self.low + (self.high - self.low) * t) / 2


@dataclass(frozen=True)
class Trigonometric(_Preserving):
    """alpha = cos t, sigma = sin t, alpha = 0 at pi/2."""

    def log_alpha_bar(self, t: Array) -> Any:
        with np.errstate(divide="ignore"):
            return 2 * np.log(np.where(t >= np.pi / 2, 0.0, np.cos(t)))[()]

    def sigma(self, t: Array) -> Any:
        return np.sin(t)

    def inverse(self, log_alpha_bar: Array) -> Any:
        return np.arctan2(np.sqrt(-np.expm1(log_alpha_bar)), np.exp(log_alpha_bar / 2))

    def time(self, lam: Array) -> Any:
        return np.arctan(np.exp(-lam))

    def slope(self, t: float) -> float:
        return float(-np.tan(t))


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Nodes(_Preserving):
    """log alpha-bar at first, first + 1, ...; between them one quantity is linear in time.

    log_abar: log alpha-bar; sigma, log_sigma: rho = sigma / alpha, or its logarithm. Where a logarithm is infinite at
    one end (rho = 0, or alpha-bar = 0 at zero terminal SNR), its exponential is linear instead.
    """

    first: float
    values: Array
    interp: str = "log_abar"

    def __post_init__(self) -> None:
        choose("interp", self.interp, INTERPOLATIONS)
        if self.interp != "log_abar" and not np.isfinite(self.values).all():
            raise ValueError(f"interp must be 'log_abar' where alpha reaches 0, got {self.interp!r}")
        own = np.array(self.values)
        own.setflags(write=False)  # plans are remembered by it
        object.__setattr__(self, "values", own)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nodes) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def _value(self) -> tuple[Any, ...]:
        return self.interp, self.first, self.values.tobytes()

    def _to(self, log_alpha_bar: Any) -> Any:
        """The interpolated quantity, increasing in time."""
        with np.errstate(divide="ignore", over="ignore"):
            if self.interp == "log_abar":
                return -log_alpha_bar
            rho = np.sqrt(np.expm1(-log_alpha_bar))
            return rho if self.interp == "sigma" else np.log(rho)

    def _from(self, value: Any) -> Any:
        if self.interp == "log_abar":
            return -value
        return -np.log1p(value * value) if self.interp == "sigma" else -np.logaddexp(0.0, 2 * value)

    def log_alpha_bar(self, t: Array) -> Any:
        place = np.asarray(t - self.first)
        low = np.clip(np.floor(place).astype(np.int64), 0, len(self.values) - 2)
        fraction = place - low
        a, b = self._to(self.values[low]), self._to(self.values[low + 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = self._from(a + (b - a) * fraction)
            inside = np.where(np.isinf(b), self._from(a - np.log1p(-fraction)), inside)
            inside = np.where(np.isinf(a), self._from(b + np.log(fraction)), inside)
        exact = np.where(fraction == 0, self.values[low], self.values[low + 1])
        return np.where((fraction == 0) | (fraction == 1), exact, inside)[()]

    def inverse(self, log_alpha_bar: Array) -> Any:
        value = np.asarray(self._to(log_alpha_bar))
        nodes = self._to(self.values)
        low = np.clip(np.searchsorted(nodes, value, side="right") - 1, 0, len(nodes) - 2)
        a, b = nodes[low], nodes[low + 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = (value - a) / (b - a)
            fraction = np.where(np.isinf(b), np.where(np.isinf(value), 1.0, -np.expm1(a - value)), fraction)
            fraction = np.where(np.isinf(a), np.exp(value - b), fraction)
        return (self.first + low + fraction)[()]

    def slope(self, t: float) -> float:
        """On the interval that ends at t."""
        i = max(int(np.ceil(t - self.first)), 1)
        a, b = self._to(self.values[i - 1 : i + 1])
        if self.interp == "log_abar":
            return float(a - b) / 2
        rho2 = float(np.expm1(-self.log_alpha_bar(np.float64(t))))  # type: ignore[arg-type]
        change = float(b - a) * (np.sqrt(rho2) if self.interp == "sigma" else rho2)  # rho d rho / dt
        return -change / (1 + rho2)


@dataclass(frozen=True)
class Sigma:
    """alpha = 1, sigma = t."""

    scale = "sigma"

    def log_alpha_bar(self, t: Array) -> Any:
        return 0.0 * t

    def sigma(self, t: Array) -> Any:
        return t

    def time(self, lam: Array) -> Any:
        return np.exp(-lam)

    def slope(self, t: float) -> float:
        return 0.0


@dataclass(frozen=True)
class Flow:
    """sigma = t / length, alpha = 1 - sigma."""

    length: float

    scale = "flow"

    def log_alpha_bar(self, t: Array) -> Any:
        with np.errstate(divide="ignore"):
            return 2 * np.log1p(-t / self.length)

    def sigma(self, t: Array) -> Any:
        return t / self.length

    def time(self, lam: Array) -> Any:
        return self.length * np.exp(-np.logaddexp(0.0, lam))

    def slope(self, t: float) -> float:
        return -1 / (self.length - t)
