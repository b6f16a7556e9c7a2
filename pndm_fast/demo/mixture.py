"""A Gaussian mixture as a diffusion model: its eps is known in closed form, so samplers can be measured exactly."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

Prediction = Literal["eps", "x0", "v", "flow"]


class AlphaSigma(Protocol):
    """What is needed of a schedule: x_t = alpha(t) x_0 + sigma(t) eps, in float64."""

    def alpha(self, t: Any, /) -> Any: ...

    def sigma(self, t: Any, /) -> Any: ...


class GaussianMixture:
    """Exact prediction for x_0 ~ sum_k w_k N(mu_k, diag(v_k)).

    x_t ~ sum_k w_k N(m_k, diag(s_k)) with m_k = alpha mu_k and s_k = alpha^2 v_k + sigma^2. By Tweedie's formula
    (Efron 2011, doi:10.1198/jasa.2011.tm11181), with r_k(x) the posterior weight of component k,

        eps = sigma sum_k r_k (x - m_k) / s_k,    x0 = sum_k r_k (mu_k + alpha v_k (x - m_k) / s_k),

    v = alpha eps - sigma x0, flow = eps - x0. The times are read on the host, so a CUDA graph cannot capture it.

    Args:
        schedule: has `alpha(t)` and `sigma(t)` in float64 for a numpy array of times.
        means: [K, d].
        variances: positive; a number, [K] or [K, d].
        weights: positive, [K], divided by their sum; None is equal weights.
        prediction: what a call returns.
    """

    def __init__(
        self, schedule: AlphaSigma, means: Any, variances: Any, weights: Any = None, *, prediction: Prediction = "eps"
    ) -> None:
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {get_args(Prediction)}, got {prediction!r}")
        if not (hasattr(schedule, "alpha") and hasattr(schedule, "sigma")):
            raise TypeError(f"schedule must have alpha and sigma, got {type(schedule).__name__}")
        self.schedule = schedule
        self.prediction = prediction
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise ValueError(f"means must be [K, d], got shape {list(self.means.shape)}")
        n, d = self.means.shape
        self.variances = _variances(variances, n, d)
        self.weights = torch.as_tensor([1.0] * n if weights is None else weights, dtype=torch.float64)
        if self.weights.shape != (n,) or not bool((self.weights > 0).all()):
            raise ValueError(f"weights must be {n} positive numbers, got {weights}")
        self.weights = self.weights / self.weights.sum()

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The prediction at x: [B, d] (or any shape of d numbers a sample) and t: scalar or [B]; float64 inside."""
        n, d = self.means.shape
        if x.numel() != len(x) * d:
            raise ValueError(f"x must have {d} numbers a sample, got shape {list(x.shape)}")
        alpha, sigma = self._levels(t, x)
        mu, v, w = (p.to(x.device) for p in (self.means, self.variances, self.weights))
        s = alpha**2 * v + sigma**2  # [B, K, d]
        delta = x.double().reshape(-1, 1, d) - alpha * mu
        log_r = w.log() - 0.5 * (delta**2 / s + s.log()).sum(2)
        r = torch.softmax(log_r, dim=1)[:, :, None]
        eps = (r * sigma * delta / s).sum(1)
        x0 = (r * (mu + alpha * v * delta / s)).sum(1)
        return self._convert(eps, x0, alpha[:, 0], sigma[:, 0]).reshape(x.shape).to(x.dtype)

    def _levels(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma: [B or 1, 1, 1] in float64 on the device of x."""
        times = np.asarray(t.detach().cpu().double() if isinstance(t, Tensor) else t, dtype=np.float64).reshape(-1)
        if len(times) not in (1, len(x)):
            raise ValueError(f"t must be a scalar or one time for each of {len(x)} samples, got {len(times)} times")
        alpha, sigma = (torch.as_tensor(np.asarray(f(times))) for f in (self.schedule.alpha, self.schedule.sigma))
        return alpha.to(x.device).reshape(-1, 1, 1), sigma.to(x.device).reshape(-1, 1, 1)

    def _convert(self, eps: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        match self.prediction:
            case "eps":
                return eps
            case "x0":
                return x0
            case "v":
                return alpha * eps - sigma * x0
            case "flow":
                return eps - x0

    def sample_data(self, n: int, seed: int = 0) -> Tensor:
        """n independent draws of x_0: [n, d] in float64 on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.variances[k].sqrt() * z


def _variances(variances: Any, n: int, d: int) -> Tensor:
    v = torch.as_tensor(variances, dtype=torch.float64)
    if v.ndim == 1:
        v = v[:, None]
    if v.ndim > 2 or any(size not in (1, full) for size, full in zip(v.shape, (n, d), strict=False)):
        raise ValueError(f"variances must be a number, [{n}] or [{n}, {d}], got shape {list(v.shape)}")
    if not bool((v > 0).all()):
        raise ValueError(f"variances must be positive, got {v.min():g}")
    return v.expand(n, d)


def gaussian_mixture(
    schedule: AlphaSigma,
    means: Any = None,
    variances: Any = None,
    weights: Any = None,
    *,
    prediction: Prediction = "eps",
) -> GaussianMixture:
    """A `GaussianMixture`; without means, five equal components of deviation 0.1 on the unit circle, d = 2.

    Component k of the five sits at angle 90 + 72 k degrees, the first at the top. Variances default to 0.01.
    """
    if means is None:
        angles = [math.pi / 2 + 2 * math.pi * k / 5 for k in range(5)]
        means = [[math.cos(angle), math.sin(angle)] for angle in angles]
    return GaussianMixture(schedule, means, 0.01 if variances is None else variances, weights, prediction=prediction)
