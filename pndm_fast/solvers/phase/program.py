"""What the phase-space solvers build their plans with: sub-updates, rows from one network call to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pndm_fast.plan.checks import choose
from pndm_fast.plan.grids import check_times
from pndm_fast.plan.levels import Levels, PhaseLevel
from pndm_fast.plan.matrix2 import Coefficient, Matrix, coefficient, product
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import I2, PSLD, Array, cholesky
from pndm_fast.plan.row import MAX_SLOTS, OutputMap, Prologue, Row
from pndm_fast.solvers.registry import SOLVER_INFO, Solver, solver

DENOISE = ("ode", "sde")
POSITION, MOMENTUM = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])  # rows of a matrix that act on one of them
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def phase_solver(name: str, *, calls: int = 1, stochastic: bool = False) -> Callable[[Solver], Solver]:
    """Register a first-order solver with so many network calls a step; a last step to t = 0 makes one."""
    return solver(
        name,
        order=1,
        calls_per_step=calls,
        extra_calls=1 - calls,
        final_calls=calls - 1,
        spacing="quadratic",
        stochastic=stochastic,
        space="phase",
    )


class _Moment(NamedTuple):
    level: PhaseLevel
    score: Array
    preview: tuple[Coefficient, Coefficient]


def _moments(process: PSLD, times: Sequence[float]) -> dict[float, _Moment]:
    """What rows need of the process at each time.

    Raises:
        ValueError: naming the time whose covariance has no Cholesky factor.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # at t = 0 there is no score, and none is asked for
        noise, scores = process.cholesky(times), process.score(times)
    if times[-1] == 0:  # the data themselves
        noise[-1] = replace(process, jitter=0.0).cholesky(0.0)
    check_rank(times, noise)
    check_rank(times[:-1] if times[-1] == 0 else times, scores)
    levels = zip(map(as_matrix, process.transition(times)), map(as_matrix, noise), strict=True)
    estimates = zip(*(map(as_matrix, stack) for stack in process.data(times)), strict=True)
    columns = zip(levels, scores, estimates, strict=True)
    return {t: _Moment(PhaseLevel(*level), *rest) for t, (level, *rest) in zip(times, columns, strict=True)}


def check_rank(times: ArrayLike, matrices: Array) -> None:
    """Refuse matrices [n, ..., 2, 2] of n times that a covariance without a Cholesky factor has made not finite.

    Raises:
        ValueError: naming the first such time.
    """
    for t, own in zip(np.asarray(times), matrices, strict=False):
        if not np.isfinite(own).all():
            raise ValueError(f"jitter must be larger where times are as small as {t:g}")


class Program:
    """A solver's sub-updates in order; those between two network calls become one row.

    Time runs in units of the process's clock, `unit(t)`, in which F and G G^T are constant: t itself for constant beta.
    Sub-updates before the first call are the prologue's. Several noises of one row become one with the sum of their
    covariances.
    """

    def __init__(self, name: str, process: PSLD, times: Sequence[float], prediction: str) -> None:
        if not isinstance(process, PSLD):
            raise TypeError(f"schedule must be a PSLD for {name}, got {type(process).__name__}")
        if prediction != "eps":
            raise ValueError(f"prediction must be 'eps' for {name}, got {prediction!r}: see PSLD's preconditioning")
        self.name, self.process, self.prediction = name, process, prediction
        self.times = check_times(process, times, SOLVER_INFO[name].min_steps, name)
        self.end = self.times[-1] or self.times[-2]  # of the steps
        self._moments = _moments(process, self.times)
        self._rows: list[Row] = []
        self._called: tuple[float, int] | None = None  # time and slot of the call whose row is under way
        self._prologue = Prologue()
        self._begin()

    def _begin(self) -> None:
        self._state, self._eps = I2, np.zeros((MAX_SLOTS, 2, 2))
        self._noises: list[Array] = []

    def steps(self) -> Iterator[tuple[float, float]]:
        """The grid's steps t -> u; a last one to t = 0 is left to `plan`."""
        yield from pairwise(self.times[: -1 if self.times[-1] == 0 else None])

    def span(self, t: float, u: float) -> float:
        """From t down to u, in units of the clock."""
        return float(self.process.unit(t) - self.process.unit(u))

    def score(self, t: float) -> Array:
        """The matrix that makes a score of eps, at a time of the grid."""
        return self._moments[t].score

    def call(self, t: float, slot: int = 0) -> None:
        """Evaluate the network at the state as it is now; it is told t. Its eps goes to that slot."""
        self._end(t)
        self._called = t, slot

    def apply(self, state: Array, eps: Array | dict[int, Array] | None = None, noise: Array | None = None) -> None:
        """z <- state z + eps[slot] eps_slot + noise n; a lone eps is of the last call."""
        self._state = state @ self._state
        self._eps = state @ self._eps
        self._noises = [state @ own for own in self._noises]
        if eps is not None:
            assert self._called is not None, "a sub-update reads eps before the first call"
            for slot, matrix in eps.items() if isinstance(eps, dict) else [(self._called[1], eps)]:
                self._eps[slot] += matrix
        if noise is not None:
            self._noises.append(noise)

    def _end(self, to: float) -> None:
        """Close the row under way, whose state is seen next, or left, at time `to`."""
        noise = self._noises[0] if self._noises else np.zeros((2, 2))
        if len(self._noises) > 1:
            noise = cholesky(sum(own @ own.T for own in self._noises))  # type: ignore[arg-type]
        if self._called is None:
            scale = np.sqrt(self.process.stationary)
            self._prologue = Prologue(coefficient(scale), coefficient(self._state), coefficient(noise))
        else:
            self._rows.append(self._row(*self._called, noise, to))
        self._begin()

    def _row(self, t: float, slot: int, noise: Array, to: float) -> Row:
        here = self._moments[t]
        anchor = self._rows[-1].levels.x if self._rows else here.level
        store, in_scale = self._network(t)
        return Row(
            t=self.process.time_scale * t,
            slot=slot,
            y=(0.0, *map(as_matrix, (self._state, *self._eps, noise))),
            levels=Levels(here.level, anchor, self._moments[to].level),
            store=store,
            preview=here.preview,
            in_scale=in_scale,
        )

    def _network(self, t: float) -> tuple[OutputMap, Coefficient]:
        """The store map to eps, -L^T (skip z + out network), and the scale of the network's input."""
        network = self.process.preconditioning
        if network is None:
            return OutputMap(), 1.0
        skip, out, into = (_answer(name, part, t) for name, part in zip(network._fields, network, strict=True))
        minus = as_matrix(-self.process.cholesky(t).T)
        return OutputMap(p=product(minus, skip), q=product(minus, out)), into

    def plan(self, denoise: str) -> Plan:
        """The plan; a grid that ends at t = 0 ends with one Euler step of the reverse ODE, or of the SDE without noise.

        z <- z + h (-F z + k G G^T s), h the last step, k = 1/2 for ode and 1 for sde: the authors' denoising step.
        """
        choose("denoise", denoise, DENOISE)
        if self.times[-1] == 0:
            t, part = self.times[-2], 0.5 if denoise == "ode" else 1.0
            h = self.span(t, 0.0)
            self.call(t)
            self.apply(I2 - h * self.process.F, h * part * self.process.GG @ self.score(t))
        self._end(self.times[-1])
        return Plan(tuple(self._rows), self.name, len(self.times) - 1, self.prediction, self._prologue)


def _answer(name: str, part: Callable[[float], ArrayLike], t: float) -> Matrix:
    """What a function of a `Preconditioning` gives at t."""
    value = np.asarray(part(t), np.float64)
    if value.shape != (2, 2) or not np.isfinite(value).all():
        raise ValueError(f"preconditioning.{name} must return a finite 2x2 matrix, got {value.tolist()} at t = {t:g}")
    return as_matrix(value)


def as_matrix(matrix: Array) -> Matrix:
    """As tuples of numbers."""
    (a, b), (c, d) = matrix.tolist()
    return (a, b), (c, d)


def nodes(u: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
    """Nodes and weights [..., n] of integrals from u to t; sqrt(r) is the variable, in which L_r^-T is smooth."""
    low, high = np.sqrt(u)[..., None], np.sqrt(t)[..., None]
    v = (low + high) / 2 + (high - low) / 2 * _NODES
    return v * v, _WEIGHTS * v * (high - low)
