"""Phase Space Langevin Diffusion: a linear SDE of position and momentum whose moments are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pndm_fast.plan.checks import choose

Array = NDArray[np.float64]
FACTORS = ("lower", "upper")
I2 = np.eye(2)
_SERIES = 1e-14  # below it cosh(r) and sinh(r)/r are their first two terms
_MOST = 1e30  # of an estimate of x_0 from the prior, which float32 rows must hold


def expm(matrix: Array, t: ArrayLike = 1.0) -> Array:
    """exp(matrix t) of one real 2x2 matrix at times of any shape [...]: [..., 2, 2].

    With tau half the trace, K the rest of the matrix and r^2 = -det K: exp(tau t) (cosh(r t) I + sinh(r t)/r K).
    """
    t = np.asarray(t, np.float64)
    (a, b), (c, d) = matrix.tolist()
    tau, half = (a + d) / 2, (a - d) / 2
    rest, square = np.array([[half, b], [c, -half]]), half * half + b * c
    root, angle = math.sqrt(abs(square)), math.sqrt(abs(square)) * t
    near = square * t * t
    even = np.cosh(angle) if square > 0 else np.cos(angle)
    odd = (np.sinh(angle) if square > 0 else np.sin(angle)) / (root or 1.0)
    small = np.abs(near) < _SERIES
    even, odd = np.where(small, 1 + near / 2, even), np.where(small, t * (1 + near / 6), odd)
    grown = np.exp(tau * t)
    return np.asarray((grown * even)[..., None, None] * I2 + (grown * odd)[..., None, None] * rest)


class Preconditioning(NamedTuple):
    """A network that gives a part of the score: score = skip(t) z + out(t) network(into(t) z, time).

    Functions of times [...] that return matrices [..., 2, 2]. `PSLD.preconditioned` has a choice of them; that of
    arXiv:2310.07894 is not known here.
    """

    skip: Callable[[ArrayLike], Array]
    out: Callable[[ArrayLike], Array]
    into: Callable[[ArrayLike], Array]


@dataclass(frozen=True, repr=False)
class PSLD:
    """Phase Space Langevin Diffusion. Pandey & Mandt 2023, arXiv:2303.01748.

    dz = F z dt + G dw of z = [position, momentum], 0 <= t <= 1, F = beta(t)/2 [[-gamma, 1/M], [-1, -nu]] and
    G G^T = beta(t) diag(gamma, M nu), every entry times the identity. The data is the position at t = 0; the momentum
    there is N(0, kappa M). At gamma = 0 this is critically damped Langevin diffusion (Dockhorn et al. 2022,
    arXiv:2112.07068, whose nu is M nu and whose beta is beta/2), and the score of the position is not used.

    Args:
        gamma: friction of the position; nu: of the momentum.
        M: mass; default that of critical damping, 1/M = (gamma - nu)^2/4.
        beta: a number, or (beta_0, beta_1) for beta_0 + t (beta_1 - beta_0).
        kappa: variance of the first momentum in units of M (the paper's gamma).
        jitter: added to the variances of position and momentum, as in the authors' code.
        factor: L with L L^T = Sigma_t, in which the network's eps is measured: lower or upper triangular.
        time_scale: the network is told time_scale t.
        preconditioning: what the network gives in place of eps; its output is converted to eps, then combined, so that
            every integrator takes the same steps with it.

    Raises:
        ValueError: naming the argument.
    """

    gamma: float = 0.01
    nu: float = 4.01
    M: float | None = None
    beta: float | tuple[float, float] = 8.0
    kappa: float = 0.04
    jitter: float = 1e-9
    factor: str = "lower"
    time_scale: float = 1.0
    preconditioning: Preconditioning | None = None

    def __post_init__(self) -> None:
        for name in ("gamma", "nu", "kappa", "jitter", "time_scale"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)!r}")
        if self.nu == 0 or self.time_scale == 0:
            raise ValueError(f"nu and time_scale must be positive, got {self.nu:g} and {self.time_scale:g}")
        if self.M is None and self.gamma == self.nu:
            raise ValueError("M must be given where gamma equals nu: critical damping has none")
        if self.M is not None and not (_is_number(self.M) and self.M > 0):
            raise ValueError(f"M must be positive, got {self.M!r}")
        several = bool(np.iterable(self.beta))
        ends: tuple[Any, ...] = tuple(self.beta) if several else (self.beta,)  # type: ignore[arg-type]
        if (several and len(ends) != 2) or not all(_is_number(one) and one > 0 for one in ends):
            raise ValueError(f"beta must be a positive number, or two, got {self.beta!r}")
        object.__setattr__(self, "beta", tuple(map(float, ends)) if several else float(ends[0]))
        choose("factor", self.factor, FACTORS)
        if self.preconditioning is not None and not isinstance(self.preconditioning, Preconditioning):
            raise TypeError(f"preconditioning must be a Preconditioning, got {self.preconditioning!r}")
        for name, part in zip(Preconditioning._fields, self.preconditioning or (), strict=False):
            if not callable(part):
                raise TypeError(f"preconditioning.{name} must be a function of the time, got {part!r}")
        with np.errstate(all="ignore"):
            away = np.abs(inverse(self.transition(1.0))).max()
        if not away < _MOST:
            raise ValueError(f"beta must leave more of the data at t = 1 than 1 part in {_MOST:g}, got {self.beta!r}")

    def __repr__(self) -> str:
        """Of the defaults gamma and nu alone; a preconditioning, functions, by its name."""
        told = {f.name: getattr(self, f.name) for f in fields(self)[:-1]}
        own = [f"{name}={v!r}" for name, v in told.items() if name in ("gamma", "nu") or v != getattr(PSLD, name)]
        return f"PSLD({', '.join([*own, *(['preconditioning=...'] if self.preconditioning else [])])})"

    first, last, floor, discrete, spacing = 0.0, 1.0, 1e-3, False, "quadratic"  # as a Schedule's

    def inside(self, t: ArrayLike) -> Array:
        """The times as an array.

        Raises:
            ValueError: one is outside [0, 1].
        """
        time = np.asarray(t, np.float64)
        outside = time[~((time >= self.first) & (time <= self.last))]
        if outside.size:
            raise ValueError(f"times must be in [0, 1], got {outside.flat[0]:g}")
        return time

    @property
    def name(self) -> str:
        return f"psld(gamma={self.gamma:g}, nu={self.nu:g})"

    @property
    def mass(self) -> float:
        """M."""
        return 4 / (self.gamma - self.nu) ** 2 if self.M is None else float(self.M)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """beta at t = 0 and t = 1."""
        first, last = np.broadcast_to(np.asarray(self.beta, np.float64), 2).tolist()
        return first, last

    def clock(self, t: ArrayLike) -> Array:
        """int_0^t beta."""
        first, last = self.ends
        t = np.asarray(t, np.float64)
        return np.asarray(first * t + (last - first) * t * t / 2)

    @cached_property
    def duration(self) -> float:
        """clock(1)."""
        return float(self.clock(1.0))

    def unit(self, t: ArrayLike) -> Array:
        """clock(t) / clock(1): the time in which F and G G^T are constant; t itself where beta is."""
        return np.asarray(self.clock(t) / self.duration)

    def time_at(self, unit: ArrayLike) -> Array:
        """The inverse of `unit`."""
        first, last = self.ends
        whole = np.asarray(unit, np.float64) * self.duration
        return np.asarray(2 * whole / (first + np.sqrt(first * first + 2 * (last - first) * whole)))

    @cached_property
    def F(self) -> Array:
        """The drift per unit of `unit(t)`: clock(1)/2 [[-gamma, 1/M], [-1, -nu]]."""
        return np.asarray(self.duration / 2 * np.array([[-self.gamma, 1 / self.mass], [-1.0, -self.nu]]))

    @cached_property
    def GG(self) -> Array:
        """G G^T per unit of `unit(t)`: clock(1) diag(gamma, M nu)."""
        return np.asarray(self.duration * np.diag([self.gamma, self.mass * self.nu]))

    @cached_property
    def stationary(self) -> Array:
        """The prior's covariance, diag(1, M): what the SDE leaves as it is."""
        return np.diag([1.0, self.mass])

    def transition(self, t: ArrayLike, s: ArrayLike = 0.0) -> Array:
        """Psi with E[z_t | z_s] = Psi z_s, exp(int_s^t F), for either order of the times: [..., 2, 2]."""
        return expm(self.F, self.unit(t) - (self.unit(s) if np.any(s) else 0.0))

    def covariance(self, t: ArrayLike, xx0: float = 0.0, mm0: float | None = None) -> Array:
        """Sigma_t, [..., 2, 2], of diag(xx0, mm0) at t = 0: Psi diag(xx0, mm0) Psi^T + S - Psi S Psi^T, and jitter.

        The defaults, xx0 = 0 and mm0 = kappa M, give the noise of hybrid score matching, eps's.
        """
        mm0 = self.kappa * self.mass if mm0 is None else mm0
        psi = self.transition(t)
        gain = psi @ (np.diag([xx0, mm0]) - self.stationary) @ np.swapaxes(psi, -1, -2)
        return np.asarray(gain + self.stationary + self.jitter * I2)

    def cholesky(self, t: ArrayLike) -> Array:
        """L_t, [..., 2, 2], triangular with L L^T = Sigma_t."""
        return cholesky(self.covariance(t), self.factor)

    def whole_score(self, t: ArrayLike) -> Array:
        """The matrix with score = matrix eps, -L^-T: [..., 2, 2]."""
        return np.asarray(-np.swapaxes(inverse(self.cholesky(t)), -1, -2))

    def score(self, t: ArrayLike) -> Array:
        """`whole_score`, but at gamma = 0 its row of the position, which G has no use for, is 0."""
        whole = self.whole_score(t)
        return whole * np.array([[0.0], [1.0]]) if self.gamma == 0 else whole

    def _check_plain(self) -> None:
        if self.preconditioning is not None:
            raise ValueError("preconditioning must be None, got one already: combine them in a Preconditioning")

    def preconditioned(self, deviation: float) -> PSLD:
        """The same process for a network with EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, table 1).

        There in phase space: with V_t the covariance at t of data N(0, deviation^2), the network sees z at unit
        covariance, chol(V)^-1 z; -V^-1 z is the score of such data; and what the network's first half adds is the
        estimate of x_0, in units of its posterior deviation. The second half has no weight, for x_0 tells the rest.
        Near the prior, where an error of the score would grow most on the way, almost nothing is left to it.

        Raises:
            ValueError: deviation is not positive, or there is a preconditioning already.
        """
        self._check_plain()
        if not (_is_number(deviation) and deviation > 0):
            raise ValueError(f"deviation must be positive, got {deviation!r}")
        variance = float(deviation) ** 2

        def whole(t: ArrayLike) -> Array:
            return self.covariance(t, xx0=variance)

        def out(t: ArrayLike) -> Array:
            mean = self.transition(t) * np.array([1.0, 0.0])  # of [x_0, 0]
            pull = inverse(self.covariance(t)) @ mean
            precision = (np.swapaxes(mean, -1, -2) @ pull)[..., :1, :1] + 1 / variance
            return np.asarray(pull / np.sqrt(precision))

        network = Preconditioning(lambda t: -inverse(whole(t)), out, lambda t: inverse(cholesky(whole(t))))
        return replace(self, preconditioning=network)

    def momentum_only(self) -> PSLD:
        """The same process for a network that knows eps of the momentum alone: at gamma = 0, see `MomentumOnly`.

        Without noise of its own the position is Psi_xx x_0 + l_11 e_x, and m = Psi_mx x_0 + l_21 e_x + l_22 e_m: two
        equations for x_0 and e_x, linear in z and e_m, which hold for the conditional means too.

        Raises:
            ValueError: gamma is not 0, the factor is upper, or there is a preconditioning already.
        """
        self._check_plain()
        if self.gamma != 0 or self.factor != "lower":
            raise ValueError(f"momentum_only must have gamma = 0 and a lower factor, got {self.name}, {self.factor}")

        def solved(t: ArrayLike) -> tuple[Array, Array]:
            """(a, b) with eps = a z + b [., e_m]."""
            psi, L = self.transition(t), self.cholesky(t)
            row = inverse(np.stack([psi[..., 0], L[..., 0]], -1))[..., 1, :]
            on_z, on_eps = np.zeros_like(psi), np.zeros_like(psi)
            on_z[..., 0, :] = row
            on_eps[..., 0, 1], on_eps[..., 1, 1] = -row[..., 1] * L[..., 1, 1], 1.0
            return on_z, on_eps

        def same(t: ArrayLike) -> Array:
            return np.broadcast_to(I2, (*np.shape(t), 2, 2))

        skip, out = (lambda t, part=part: self.whole_score(t) @ solved(t)[part] for part in range(2))
        return replace(self, preconditioning=Preconditioning(skip, out, same))

    def data(self, t: ArrayLike) -> tuple[Array, Array]:
        """(a, b) with [x_0, m_0] = a z + b eps: Psi^-1 (z - L eps). Its first row is the estimate of the data."""
        back = inverse(self.transition(t))
        return back, -back @ self.cholesky(t)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def inverse(matrix: Array) -> Array:
    """Of [..., 2, 2], by the adjugate; numpy's would lose half the digits of a nearly singular one's ratio."""
    (a, b), (c, d) = matrix[..., 0, :].T, matrix[..., 1, :].T
    return np.asarray(np.array([[d, -b], [-c, a]]) / (a * d - b * c)).T.swapaxes(-1, -2)


def cholesky(covariance: Array, factor: str = "lower") -> Array:
    """L of a covariance [..., 2, 2] with L L^T equal to it, lower or upper triangular; a variance may be 0."""
    xx, xm, mm = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    zero = np.zeros_like(xx)
    own = np.sqrt(mm if factor == "upper" else xx)
    corner = np.divide(xm, own, out=np.zeros_like(own), where=own > 0)
    if factor == "upper":
        rows = [[np.sqrt(xx - corner**2), corner], [zero, own]]
    else:
        rows = [[own, zero], [corner, np.sqrt(mm - corner**2)]]
    return np.stack([np.stack(row, -1) for row in rows], -2)
