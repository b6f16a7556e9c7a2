"""The golden phase-space numbers (tests/golden/README.md) and the exact mixture behind them as a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import cholesky, expm
from torch import Tensor

from pndm_fast.phase_space import PSLD
from pndm_fast.plan.plan import Plan

DATA = np.load(Path(__file__).parent / "golden" / "psld.npz")
START = torch.from_numpy(DATA["z_init"])  # [16, 2, 4]
T_MIN = 1e-3
PROCESSES = {
    "default": PSLD(),
    "cld": PSLD(gamma=0.0, nu=4.0),
    "overdamped": PSLD(gamma=0.3, nu=2.5, M=2.0, beta=5.0, kappa=0.2),
    "oscillating": PSLD(gamma=0.02, nu=1.2, M=0.15, beta=3.0, kappa=0.5),
    "linear beta": PSLD(gamma=0.05, nu=3.0, beta=(0.1, 20.0), kappa=0.1),
    "upper": PSLD(gamma=0.02, nu=4.02, factor="upper"),
}


def act(block: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A 2x2 block on samples [B, 2, d]."""
    return np.einsum("ij,bjd->bid", block, z)


def relative(got, wanted) -> float:
    got, wanted = np.asarray(got), np.asarray(wanted)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


class Mixture:
    """x_0 ~ sum_k w_k N(mu_k, v_k I), m_0 ~ N(0, kappa M), called as a network for eps = -L^T score: [B, 2, d]."""

    def __init__(self, process: PSLD, means=None, variances=None, weights=None) -> None:
        given = ("mix_mu", means), ("mix_var", variances), ("mix_w", weights)
        self.means, self.variances, self.weights = (np.asarray(DATA[k] if v is None else v, float) for k, v in given)
        self.process, self.level = process, functools.cache(self._level)

    def _level(self, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Means [K, 2, d], covariances of (x_i, m_i) [K, 2, 2], their inverses and logs of weight / normalization."""
        covariance = np.array([self.process.covariance(t, xx0=v) for v in self.variances])
        mean = self.process.transition(t)[:, 0][None, :, None] * self.means[:, None]
        logs = np.log(self.weights) - self.means.shape[1] / 2 * np.log(np.linalg.det(covariance))
        return mean, covariance, np.linalg.inv(covariance), logs

    def score(self, z: np.ndarray, t: float) -> np.ndarray:
        mean, _, inverse, logs = self.level(t)
        away = z[:, None] - mean
        pull = -np.einsum("kij,bkjd->bkid", inverse, away)
        logs = logs + (pull * away).sum((2, 3)) / 2
        share = np.exp(logs - logs.max(1, keepdims=True))
        return np.einsum("bk,bkid->bid", share / share.sum(1, keepdims=True), pull)

    def eps(self, z: np.ndarray, t: float) -> np.ndarray:
        return act(-self.process.cholesky(t).T, self.score(z, t))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        time = float(t[0]) / self.process.time_scale
        return torch.from_numpy(self.eps(x.double().numpy(), time)).to(x.dtype)

    def moments(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and covariance [d, d] of the position at t."""
        mean, covariance, _, _ = self.level(t)
        centers, share = mean[:, 0], self.weights / self.weights.sum()
        away = centers - share @ centers
        spread = np.einsum("k,k,ij->ij", share, covariance[:, 0, 0], np.eye(len(away[0])))
        return share @ centers, spread + np.einsum("k,ki,kj->ij", share, away, away)


def smooth(x: Tensor, t: Tensor) -> Tensor:
    """A nonlinear network that is no one's eps."""
    z, time = x.double().numpy(), t.double().numpy()[:, None, None]
    return torch.from_numpy(np.tanh(0.7 * z[:, ::-1] - 0.4 * z) + 0.3 * np.cos(2 * time + z)).to(x.dtype)


def spread(power: int, steps: int, low: float = T_MIN) -> np.ndarray:
    """n + 1 times from 1 to `low`, uniform (power 1) or quadratic (2)."""
    return low + (1 - low) * np.linspace(1, 0, steps + 1) ** power


def one_a_step(plan: Plan, calls: int, noise: np.ndarray) -> Callable[[int], Tensor]:
    """What the engine asks for, of noise[i] for step i of `calls` rows: drawn by its last row, or before its first."""
    before = bool(plan.prologue.c0)
    return lambda i: torch.from_numpy(noise[0 if i == 1 else (i - 2) // calls + before])


def two_a_step(process: PSLD, times: Sequence[float], noise: np.ndarray) -> Callable[[int], Tensor]:
    """The same for sscs, whose halves of step i draw noise[2 i] and noise[2 i + 1].

    Two that meet between calls, C1 n1 + C2 n2, are one of the sum of their covariances.
    """
    halves = [half_of_sscs(process, t, u) for t, u in zip(times, times[1:], strict=False)]

    def of_row(i: int) -> Tensor:
        if i == 1:
            return torch.from_numpy(noise[0])
        if i - 1 == len(halves):
            return torch.from_numpy(noise[2 * i - 3])
        (_, first), (onward, second) = halves[i - 2], halves[i - 1]
        first = onward @ first
        whole = cholesky(first @ first.T + second @ second.T, lower=True)
        both = act(first, noise[2 * i - 3]) + act(second, noise[2 * i - 2])
        return torch.from_numpy(act(np.linalg.inv(whole), both))

    return of_row


def half_of_sscs(process: PSLD, t: float, u: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean map and noise factor of half a step of beta/2 [[-gamma, -1/M], [1, -nu]]; the authors' jitter included."""
    h, S = float(process.clock(t) - process.clock(u)), np.diag([1, process.mass])
    mean = expm(h / 4 * np.array([[-process.gamma, -1 / process.mass], [1, -process.nu]]))
    return mean, cholesky(S - mean @ S @ mean.T + process.jitter * np.eye(2), lower=True)
