"""Noise schedules in float64: x_t = alpha_t x_0 + sigma_t eps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A variance-preserving schedule, alpha^2 + sigma^2 = 1, given by log alpha-bar as a function of time.

    Discrete schedules interpolate log alpha-bar linearly between the training times; t = -1 is alpha-bar = 1 (a
    network at integer t was trained at alpha_bar[t]). The continuous VP schedule has its closed form. `time` is the
    exact inverse, so a time and its coefficients never disagree.

    Attributes:
        first: the time of alpha-bar = 1: -1 for discrete schedules, 0 for continuous ones.
        last: the noisiest time: T - 1, or 1.
        discrete: whether times count training steps.
    """

    name: str
    first: float
    last: float
    discrete: bool
    _nodes: Array  # log alpha-bar at first, first + 1, ..., last; or (beta_min, beta_max)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def _value(self) -> tuple[bool, bytes]:
        return self.discrete, self._nodes.tobytes()

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """beta linear in t. Ho et al. 2020, arXiv:2006.11239, section 4."""
        return cls.from_betas(_betas("linear", T, beta_start, beta_end), name="linear")

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
        """sqrt(beta) linear in t: latent diffusion. Rombach et al. 2022, arXiv:2112.10752, released configuration."""
        return cls.from_betas(_betas("scaled_linear", T, beta_start, beta_end), name="scaled-linear")

    @classmethod
    def cosine(cls, T: int = 1000) -> Schedule:
        """beta_i = min(.999, 1 - f((i + 1)/T) / f(i/T)), f(u) = cos^2(pi/2 (u + .008)/1.008).

        Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
        """
        _check_length(T)
        u = np.arange(T + 1) / T
        f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls.from_betas(np.minimum(0.999, 1 - f[1:] / f[:-1]), name="cosine")

    @classmethod
    def from_betas(cls, betas: ArrayLike, *, name: str = "betas") -> Schedule:
        """alpha_bar[t] = prod_{i <= t} (1 - beta_i)."""
        values = _vector("betas", betas)
        _check_inside("betas", values)
        return cls.from_alphas_cumprod(np.cumprod(1 - values), name=name)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike, *, name: str = "alphas_cumprod") -> Schedule:
        """alpha_bar[t] = alpha_t^2, decreasing, one value for each training time."""
        values = _vector("alphas_cumprod", alphas_cumprod)
        _check_inside("alphas_cumprod", values)
        rising = np.flatnonzero(np.diff(values) >= 0)
        if rising.size:
            i = int(rising[0])
            raise ValueError(f"alphas_cumprod must decrease, got {values[i]} then {values[i + 1]} at index {i + 1}")
        nodes = np.log(np.concatenate([[1.0], values]))
        return cls(name, -1.0, float(len(values) - 1), True, nodes)

    @classmethod
    def vp(cls, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
        """log alpha-bar(t) = -(beta_min t + (beta_max - beta_min) t^2 / 2), t in [0, 1].

        Song et al. 2021, arXiv:2011.13456, eq. 33.
        """
        if not 0 < beta_min <= beta_max < np.inf:
            raise ValueError(f"beta_min and beta_max must be 0 < beta_min <= beta_max, got {beta_min}, {beta_max}")
        return cls("vp", 0.0, 1.0, False, np.array([beta_min, beta_max], dtype=np.float64))

    def log_alpha_bar(self, t: ArrayLike) -> Any:
        """log alpha_t^2, float64. Times outside [first, last] are an error."""
        time = np.asarray(t, dtype=np.float64)
        if not np.all((time >= self.first) & (time <= self.last)):
            raise ValueError(f"times must be in [{self.first:g}, {self.last:g}], got {t!r}")
        if self.discrete:
            return np.interp(time - self.first, np.arange(len(self._nodes)), self._nodes)
        low, high = self._nodes
        return -(low * time + (high - low) * time * time / 2)

    def alpha(self, t: ArrayLike) -> Any:
        """alpha_t, float64."""
        return np.exp(self.log_alpha_bar(t) / 2)

    def sigma(self, t: ArrayLike) -> Any:
        """sigma_t = sqrt(1 - alpha_t^2), float64, without cancellation near t = first."""
        return np.sqrt(-np.expm1(self.log_alpha_bar(t)))

    def lam(self, t: ArrayLike) -> Any:
        """log(alpha_t / sigma_t), float64; infinite where sigma = 0."""
        with np.errstate(divide="ignore"):
            return self.log_alpha_bar(t) / 2 - np.log(self.sigma(t))

    def log_alpha_slope(self, t: float) -> float:
        """d log alpha / dt at t; of a discrete schedule, on the interval that ends at t."""
        if self.discrete:
            i = max(int(np.ceil(t - self.first)), 1)
            return float(self._nodes[i] - self._nodes[i - 1]) / 2
        low, high = self._nodes
        return float(-(low + (high - low) * t) / 2)

    def time(self, log_alpha_bar: ArrayLike) -> Any:
        """The time at which log alpha-bar has the given value: the inverse of `log_alpha_bar`."""
        value = -np.asarray(log_alpha_bar, dtype=np.float64)
        if not np.all((value >= 0) & (value <= -self.log_alpha_bar(self.last))):
            raise ValueError(f"log alpha-bar must be in [{self.log_alpha_bar(self.last)}, 0], got {log_alpha_bar!r}")
        if self.discrete:
            return np.interp(value, -self._nodes, np.arange(len(self._nodes))) + self.first
        low, high = self._nodes
        return 2 * value / (low + np.sqrt(low * low + 2 * (high - low) * value))


def _check_length(T: int) -> None:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or not 1 <= T <= 10**6:
        raise ValueError(f"T must be an integer in [1, 1000000], got {T!r}")


def _betas(kind: str, T: int, start: float, end: float) -> Array:
    _check_length(T)
    if not 0 < start <= end < 1:
        raise ValueError(f"beta_start and beta_end must be 0 < beta_start <= beta_end < 1, got {start}, {end}")
    if kind == "linear":
        return np.linspace(start, end, T)
    return np.linspace(np.sqrt(start), np.sqrt(end), T) ** 2


def _vector(name: str, values: ArrayLike | Sequence[float]) -> Array:
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().numpy()
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a sequence of numbers, got {type(values).__name__}") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {array.shape}")
    return array


def _check_inside(name: str, values: Array) -> None:
    bad = np.flatnonzero(~((values > 0) & (values < 1)))
    if bad.size:
        raise ValueError(f"{name} must be in (0, 1), got {values[bad[0]]} at index {bad[0]}")
