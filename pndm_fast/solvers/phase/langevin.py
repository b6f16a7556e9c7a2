"""Integrators of the reverse-time SDE of phase-space Langevin diffusion, and Euler's method for its flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pndm_fast.plan.checks import choose
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import I2, PSLD, Array, cholesky, expm
from pndm_fast.solvers.phase.program import MOMENTUM, POSITION, Program, phase_solver
from pndm_fast.solvers.phase.splitting import SCORE_TIMES, partial_flow

SEQUENCES = ("OBA", "BAO")


@phase_solver("em", stochastic=True)
def em(schedule: PSLD, times: Sequence[float], *, denoise: str = "sde", prediction: str = "eps") -> Plan:
    """Euler-Maruyama for the reverse SDE of PSLD. Pandey & Mandt 2023, arXiv:2303.01748.

    z <- z + h (-F z + G G^T s(z, t)) + sqrt(h) G n.

    Raises:
        ValueError: times not decreasing.
    """
    program = Program("em", schedule, times, prediction)
    for t, u in program.steps():
        h = program.span(t, u)
        program.call(t)
        program.apply(I2 - h * schedule.F, h * schedule.GG @ program.score(t), np.sqrt(h * schedule.GG))
    return program.plan(denoise)


def euler(schedule: PSLD, times: Sequence[float], *, prediction: str = "eps") -> Plan:
    """z <- z + h (-F z + G G^T s(z, t) / 2): `solvers.euler` in phase space."""
    program = Program("euler", schedule, times, prediction)
    for t, u in program.steps():
        h = program.span(t, u)
        program.call(t)
        program.apply(I2 - h * schedule.F, h / 2 * schedule.GG @ program.score(t))
    return program.plan("ode")


@phase_solver("sscs", stochastic=True)
def sscs(schedule: PSLD, times: Sequence[float], *, denoise: str = "sde", prediction: str = "eps") -> Plan:
    """Symmetric splitting sampler of CLD, for PSLD. Dockhorn et al. 2022, arXiv:2112.07068; arXiv:2303.01748.

    Half a step of dz = beta/2 [[-gamma, -1/M], [1, -nu]] z ds + G dw, exactly; z <- z + h G G^T (s(z, t) +
    diag(1, 1/M) z); the other half. Halves that meet share a row, and a noise of both their covariances.

    Raises:
        ValueError: times not decreasing.
    """
    program = Program("sscs", schedule, times, prediction)
    mirror = np.array([[1.0, -1.0], [-1.0, 1.0]])
    rest, S = schedule.F * mirror, schedule.stationary
    for t, u in program.steps():
        h = program.span(t, u)
        half = expm(rest, h / 2)
        noise = cholesky(S - half @ S @ half.T + schedule.jitter * I2)
        program.apply(half, noise=noise)
        program.call(t)
        pull = schedule.GG / S.diagonal()[:, None]
        program.apply(I2 + h * pull, h * schedule.GG @ program.score(t))
        program.apply(half, noise=noise)
    return program.plan(denoise)


@phase_solver("noba", calls=2, stochastic=True)
def noba(
    schedule: PSLD,
    times: Sequence[float],
    *,
    sequence: str = "OBA",
    score_time: str = "start",
    lam_s: float | None = None,
    denoise: str = "sde",
    prediction: str = "eps",
) -> Plan:
    """Naive splitting of the reverse SDE into O, B and A, each of B and A with a score of its own. arXiv:2310.07894.

    O: x <- exp(-h beta gamma/2) x + sqrt(1 - exp(-h beta gamma)) n_x and m <- exp(-h beta nu/2) m +
    sqrt(M (1 - exp(-h beta nu))) n_m, exactly; B: m <- m + h beta/2 (x + 2 nu m + 2 M nu s_m); A: x <- x + h beta/2
    (2 gamma x - m/M + 2 gamma s_x).

    Sure is that O, B and A add up to the reverse SDE: in any order they are a first-order integrator of it, as are all
    that follow here. That these are the paper's own three is a reading: of it, and of its shorter form (2402.07211),
    abstracts and reviews were at hand, no formula; for the same reason sequence, score_time and lam_s
    are arguments.

    Args:
        sequence: OBA or BAO.
        score_time: the time that the network is told, start or end of the step.
        lam_s: x's noise in O gets the variance 1 - exp(-lam_s beta gamma (t + u)/2) instead. Doubtful: without the
            step's length h in it this is no integrator of the SDE any more.

    Raises:
        ValueError: times not decreasing, or an unknown choice.
    """
    _check_sequence(sequence)
    return _split("noba", schedule, times, sequence, score_time, lam_s, denoise, prediction, again=True)


@phase_solver("roba", stochastic=True)
def roba(
    schedule: PSLD,
    times: Sequence[float],
    *,
    sequence: str = "OBA",
    score_time: str = "start",
    lam_s: float | None = None,
    denoise: str = "sde",
    prediction: str = "eps",
) -> Plan:
    """Reduced splitting: noba with one score for B and A. arXiv:2310.07894.

    A reading of the paper, as noba's, whose arguments these are.

    Raises:
        ValueError: times not decreasing, or an unknown choice.
    """
    _check_sequence(sequence)
    return _split("roba", schedule, times, sequence, score_time, lam_s, denoise, prediction)


@phase_solver("coba", stochastic=True)
def coba(
    schedule: PSLD, times: Sequence[float], *, lam: float = 0.0, denoise: str = "sde", prediction: str = "eps"
) -> Plan:
    """Conjugate splitting: roba whose B and A are conjugate Euler steps, as in cse. arXiv:2310.07894.

    A reading of the paper, whose definition was not at hand.

    Raises:
        ValueError: times not decreasing.
    """
    return _split("coba", schedule, times, "OBA", "start", None, denoise, prediction, lam=lam)


@phase_solver("obab", calls=2, stochastic=True)
def obab(schedule: PSLD, times: Sequence[float], *, denoise: str = "sde", prediction: str = "eps") -> Plan:
    """Reduced O, B/2, A, B/2: one score for B and A at t, another for the last B at the step's end. arXiv:2310.07894.

    A reading of the paper, as noba's.

    Raises:
        ValueError: times not decreasing.
    """
    return _split("obab", schedule, times, "OBAB", "start", None, denoise, prediction)


@phase_solver("nobab", calls=3, stochastic=True)
def nobab(schedule: PSLD, times: Sequence[float], *, denoise: str = "sde", prediction: str = "eps") -> Plan:
    """Naive O, B/2, A, B/2: a score for each, the last at the step's end. arXiv:2310.07894.

    A reading of the paper, as noba's.

    Raises:
        ValueError: times not decreasing.
    """
    return _split("nobab", schedule, times, "OBAB", "start", None, denoise, prediction, again=True)


def _check_sequence(sequence: str) -> None:
    choose("sequence", sequence, SEQUENCES)


def _split(
    name: str,
    process: PSLD,
    times: Sequence[float],
    sequence: str,
    score_time: str,
    lam_s: float | None,
    denoise: str,
    prediction: str,
    *,
    again: bool = False,
    lam: float | None = None,
) -> Plan:
    choose("score_time", score_time, SCORE_TIMES)
    if lam_s is not None and not 0 <= lam_s < np.inf:
        raise ValueError(f"lam_s must be a finite number of at least 0, got {lam_s:g}")
    program = Program(name, process, times, prediction)
    for t, u in program.steps():
        asked, middle = t if score_time == "start" else u, (t + u) / 2
        called = False
        for i, part in enumerate(sequence):
            if part == "O":
                program.apply(*_friction(program, t, u, lam_s))
                continue
            halved, closing = sequence.count("B") > 1 and part == "B", part == "B" and "A" in sequence[:i]
            model_time = u if closing else asked
            if again or closing or not called:
                program.call(model_time)
                called = True
            span = (middle, u) if closing else (t, middle if halved else u)
            program.apply(*_kick(program, part, model_time, *span, lam))
    return program.plan(denoise)


def _friction(program: Program, t: float, u: float, lam_s: float | None) -> tuple[Array, None, Array]:
    """O, an Ornstein-Uhlenbeck process of each coordinate, solved exactly: (state, no eps, noise)."""
    process, h = program.process, program.span(t, u)
    rates = -2 * process.F.diagonal()  # clock(1) (gamma, nu)
    variances = -np.expm1(-h * rates)
    if lam_s is not None:
        variances[0] = -np.expm1(-lam_s * rates[0] * float(process.unit(t) + process.unit(u)) / 2)
    return np.diag(np.exp(-h * rates / 2)), None, np.sqrt(np.diag(variances) @ process.stationary)


def _kick(program: Program, part: str, model_time: float, t: float, u: float, lam: float | None) -> tuple[Array, Array]:
    """B or A: one row of the reverse drift with twice the friction's pull back and the whole score."""
    rows = MOMENTUM if part == "B" else POSITION
    F = program.process.F
    doubled = F + np.diag(F.diagonal())
    return partial_flow(program, rows @ doubled, rows @ program.process.GG, rows, model_time, t, u, lam)
