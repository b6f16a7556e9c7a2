"""Conjugate integrators: Euler or Adams-Bashforth steps of a diffusion seen through a linear map A_t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.polynomial import Chebyshev

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import ADAMS_BASHFORTH, Transfer, combine
from pndm_fast.plan.matrix2 import Coefficient, coefficient, matrix
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import I2, PSLD, Array, expm, inverse
from pndm_fast.plan.quadrature import against, lagrange
from pndm_fast.plan.row import SLOT, STATE
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_order
from pndm_fast.solvers.phase.program import Program, check_rank, nodes
from pndm_fast.solvers.phase.splitting import MOST_B
from pndm_fast.solvers.registry import solver

WEIGHTS = ("deis", "pndm")
FRAMES = ("L", "R")
MOST_ORDER = 4
_DEGREE = 128  # of the polynomial for an angle over the whole grid: down to t = 1e-5 1e-13, at gamma = 0 6e-8


@solver("conjugate", order=1, spacing="trailing", space="both")
def conjugate(
    schedule: Schedule | PSLD,
    times: Sequence[float],
    *,
    B: Coefficient = 0.0,
    order: int = 1,
    weights: str = "deis",
    frame: str | None = None,
    denoise: str | None = None,
    prediction: str = "eps",
) -> Plan:
    """Conjugate integrators of the probability flow. Pandey et al. 2023, arXiv:2310.07894.

    With A_t = exp int (B - F), d(A_t z)/dt = A_t (B z - G G^T S_t eps / 2), where score = S_t eps. From t to u = t - h,
    z_u = exp((B - F) h) (I - h B) z_t + sum_j W_j eps_j, W_j = int_u^t exp((B - F)(r - u)) G G^T S_r l_j(r) dr / 2,
    with l_0 = 1 at order 1. B = 0 is the exponential integrator, on variance-preserving schedules DDIM; B = lam I and
    B = lam [[1, 1], [1, 1]] are the paper's two lambda-DDIMs (which it numbers I and which II is not known here).

    Args:
        B: a number, for lam I, or in phase space a 2x2 matrix, per unit of the process's clock, or of a whole schedule.
        order: network calls combined, 1 to 4; the order of the method where B is 0, which else makes it 1.
        weights: deis, l_j the Lagrange polynomials of the past times (Zhang & Chen 2023, arXiv:2204.13902); or pndm,
            the integers (55, -59, 37, -9)/24 of arXiv:2202.09778 times the whole integral.
        frame: in phase space, what is taken for a polynomial of time: L, the network's eps; or R, the default, gDDIM's
            R_t^T L_t^-T eps with dR/dt = (F + G G^T Sigma^-1 / 2) R (Zhang et al. 2022, arXiv:2206.05564), which varies
            less, and whose first order is gDDIM itself.
        denoise: in phase space, the drift of the last step to t = 0, ode, the default, or sde.

    Raises:
        ValueError: times not decreasing, an unknown choice, B beyond [-100, 100], or a matrix, a frame or denoise on a
            schedule of numbers.
    """
    B = coefficient(B)
    choose("weights", weights, WEIGHTS)
    choose("frame", frame or "R", FRAMES)
    check_order(order, MOST_ORDER)
    if not np.all(np.abs(B) <= MOST_B):
        raise ValueError(f"B must be in [-{MOST_B:g}, {MOST_B:g}], got {B}")
    if isinstance(schedule, PSLD):
        return _in_phase_space(schedule, times, matrix(B), order, weights, frame or "R", denoise or "ode", prediction)
    for name, given in (("frame", frame), ("denoise", denoise)):
        if given is not None:
            raise ValueError(f"{name} must go with a PSLD, got {given!r} outside phase space")
    if isinstance(B, tuple):
        raise ValueError(f"B must be a number outside phase space, got {B}")
    return _preserving("conjugate", schedule, times, B, order, weights, prediction)


@solver("lambda-ddim", order=1, spacing="trailing")
def lambda_ddim(schedule: Schedule, times: Sequence[float], *, lam: float = 0.5, prediction: str = "eps") -> Plan:
    """lambda-DDIM for variance-preserving networks: `conjugate` with B = lam. Pandey et al. 2023, arXiv:2310.07894.

    x_s = (A_t/A_s) (1 - lam h) x_t + (1/A_s) int_t^s exp(lam r) d rho(r) eps with A_t = exp(lam t)/alpha_t, h = t - s
    in units of the whole schedule, rho = sigma/alpha. lam = 0 is DDIM.

    Raises:
        ValueError: times not decreasing, a schedule that is not variance-preserving, lam outside [-100, 100].
    """
    if not -MOST_B <= lam <= MOST_B:
        raise ValueError(f"lam must be in [-{MOST_B:g}, {MOST_B:g}], got {lam:g}")
    return _preserving("lambda-ddim", schedule, times, lam, 1, "deis", prediction)


def _preserving(
    name: str, schedule: Schedule, times: Sequence[float], B: float, order: int, weights: str, prediction: str
) -> Plan:
    rows = PlanBuilder(name, schedule, times, prediction)
    if schedule.scale != "vp":
        where = ", which but for B = 0, deis, has no limit at alpha = 0" if schedule.scale == "flow" else ""
        raise ValueError(f"schedule must be variance-preserving for {name}{where}, got {schedule.name}")
    length = schedule.last - schedule.first

    def rho(r: Array) -> Array:
        return np.asarray(schedule.sigma(r) / schedule.alpha(r))

    for i, (t, s) in enumerate(pairwise(rows.times)):
        past = [rows.times[i - j] for j in range(min(order, i + 1))]
        h = (t - s) / length
        phi = Transfer(rows.level(t), rows.level(s))  # which refuses alpha = 0, where rho is infinite
        if weights == "pndm":
            whole = against(rho, past[:1], t, s, schedule.first, B / length)[0]
            gains = [float(weight) * whole for weight in ADAMS_BASHFORTH[len(past)]]
        else:
            gains = against(rho, past, t, s, schedule.first, B / length)
        history = combine(gains, [SLOT[(i - j) % order] for j in range(len(past))])
        scale = phi.scale * math.exp(B * h) * (1 - B * h)
        rows.call(t, i % order, scale * STATE + rows.level(s).alpha * history, s)
    return rows.plan()


def _in_phase_space(
    process: PSLD,
    times: Sequence[float],
    B: Array,
    order: int,
    weights: str,
    frame: str,
    denoise: str,
    prediction: str,
) -> Plan:
    program = Program("conjugate", process, times, prediction)
    flow = _Flow(program, B, frame)
    for i, (t, _) in enumerate(program.steps()):
        count = min(order, i + 1)
        program.call(t, i % order)
        weighted = flow.whole(i, count) if weights == "pndm" else flow.lagrange(i, count)
        program.apply(flow.states[i], {(i - j) % order: matrix for j, matrix in enumerate(weighted)})
    return program.plan(denoise)


class _Flow:
    """Coefficients of every step, in units of the process's clock.

    Attributes:
        states: [N, 2, 2], what a step takes of z.
        gains: [N, n, 2, 2], exp((B - F)(r - u)) G G^T S_r dr / 2 at the nodes r of each step's integral.
    """

    def __init__(self, program: Program, B: Array, frame: str) -> None:
        process, times = program.process, np.array([*(t for t, _ in program.steps()), program.end])
        self.process, self.ends = process, process.unit(times)
        starts, h = self.ends[1:], self.ends[:-1] - self.ends[1:]
        self.nodes, measure = nodes(starts, self.ends[:-1])
        self.states = expm(B - process.F, h) @ (I2 - h[:, None, None] * B)
        spread = expm(B - process.F, self.nodes - starts[:, None])
        with np.errstate(all="ignore"):
            scores = process.score(process.time_at(self.nodes))
        check_rank(times[1:], scores)
        self.gains = measure[..., None, None] / 2 * (spread @ process.GG @ scores)
        # R = L rotation(angle): R differs from L by a rotation, for both are roots of Sigma
        angle = _angle(process, self.ends) if frame == "R" else np.zeros_like
        self.angles, self.past = angle(self.nodes), angle(self.ends)

    def lagrange(self, i: int, count: int) -> list[Array]:
        """W_j of step i, newest first: the polynomials of its `count` past times."""
        polynomials = lagrange(self.ends[i - count + 1 : i + 1][::-1].tolist(), self.nodes[i])
        return [self._turned(i, j, polynomial) for j, polynomial in enumerate(polynomials)]

    def whole(self, i: int, count: int) -> list[Array]:
        """Adams-Bashforth weights times the integral over the step."""
        even = np.ones_like(self.nodes[i])
        return [float(weight) * self._turned(i, j, even) for j, weight in enumerate(ADAMS_BASHFORTH[count])]

    def _turned(self, i: int, j: int, polynomial: Array) -> Array:
        turns = rotation(self.angles[i] - self.past[i - j])
        return np.asarray(np.einsum("n,nab,nbc->ac", polynomial, self.gains[i], turns))


class _Angle(Protocol):
    def __call__(self, r: Array) -> Array: ...


def _angle(process: PSLD, ends: Array) -> _Angle:
    """theta(r) with R = L rotation(theta), but for a constant that no coefficient depends on."""

    def turning(v: Array) -> Array:
        # L^-1 dL/dr is triangular like L: in the other corner, rotation' rotation^T is L^-1 M L
        t = process.time_at(v * v)
        L = process.cholesky(t)
        turned = inverse(L) @ (process.F + process.GG @ inverse(process.covariance(t)) / 2) @ L
        return np.asarray(2 * v * (-turned[..., 0, 1] if process.factor == "lower" else turned[..., 1, 0]))

    if ends[-1] == ends[0]:  # no step
        return lambda r: np.zeros_like(r)
    # in sqrt(r) it is smooth
    theta = Chebyshev.interpolate(turning, _DEGREE, np.sqrt([ends[-1], ends[0]])).integ()
    return lambda r: np.asarray(theta(np.sqrt(r)))


def rotation(angle: Array) -> Array:
    """[..., 2, 2]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
