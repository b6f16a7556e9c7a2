"""Splitting integrators of the probability flow: position and momentum in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pndm_fast.plan.checks import choose
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import I2, PSLD, Array, expm
from pndm_fast.solvers.phase.program import MOMENTUM, POSITION, Program, nodes, phase_solver

SCORE_TIMES = ("start", "end")
MOST_B = 100.0  # exp(B) is beyond float32 from 88 on


@phase_solver("nse", calls=2)
def nse(schedule: PSLD, times: Sequence[float], *, denoise: str = "ode", prediction: str = "eps") -> Plan:
    """Naive symplectic Euler: the momentum, then the position with a score of its own. arXiv:2310.07894.

    m <- m + h beta/2 (x + nu m + M nu s_m(x, m; t)); x <- x + h beta/2 (gamma x - m/M + gamma s_x(x, m; t)), where the
    second line sees the new m.

    Sure is that the lines add up to the probability flow, so that this and what follows here are first-order
    integrators of it. That they are the paper's is a reading: its abstract and reviews were at hand, no formula.

    Raises:
        ValueError: times not decreasing.
    """
    return _euler("nse", schedule, times, denoise, prediction, again=True)


@phase_solver("rse")
def rse(schedule: PSLD, times: Sequence[float], *, denoise: str = "ode", prediction: str = "eps") -> Plan:
    """Reduced symplectic Euler: nse with the first score for both lines. arXiv:2310.07894.

    A reading of the paper, as nse's.

    Raises:
        ValueError: times not decreasing.
    """
    return _euler("rse", schedule, times, denoise, prediction)


@phase_solver("cse")
def cse(
    schedule: PSLD, times: Sequence[float], *, lam: float = 0.0, denoise: str = "ode", prediction: str = "eps"
) -> Plan:
    """Conjugate symplectic Euler: rse whose two sub-flows are conjugate Euler steps. arXiv:2310.07894.

    Each takes its row of F, and B = lam in that row's place. This is a reading of the paper, whose definition was not
    at hand.

    Raises:
        ValueError: times not decreasing.
    """
    return _euler("cse", schedule, times, denoise, prediction, lam=lam)


@phase_solver("nvv", calls=3)
def nvv(
    schedule: PSLD, times: Sequence[float], *, last: str = "start", denoise: str = "ode", prediction: str = "eps"
) -> Plan:
    """Naive velocity Verlet: half a step of the momentum, the position, the other half, each with its score.

    arXiv:2310.07894, a reading as nse's.

    Args:
        last: the time of the last half's score, start or end of the step.

    Raises:
        ValueError: times not decreasing, or another `last`.
    """
    return _verlet("nvv", schedule, times, denoise, prediction, last=last, again=True)


@phase_solver("rvv", calls=2)
def rvv(
    schedule: PSLD, times: Sequence[float], *, last: str = "end", denoise: str = "ode", prediction: str = "eps"
) -> Plan:
    """Reduced velocity Verlet: nvv with the first score for the position too. arXiv:2310.07894.

    A reading of the paper, as nse's.

    Args:
        last: the time of the last half's score, start or end of the step.

    Raises:
        ValueError: times not decreasing, or another `last`.
    """
    return _verlet("rvv", schedule, times, denoise, prediction, last=last)


@phase_solver("cvv", calls=2)
def cvv(
    schedule: PSLD,
    times: Sequence[float],
    *,
    lam: float = 0.0,
    last: str = "end",
    denoise: str = "ode",
    prediction: str = "eps",
) -> Plan:
    """Conjugate velocity Verlet: rvv whose three sub-flows are conjugate Euler steps, as in cse. arXiv:2310.07894.

    A reading of the paper, whose definition was not at hand.

    Args:
        last: the time of the last half's score, start or end of the step.

    Raises:
        ValueError: times not decreasing, or another `last`.
    """
    return _verlet("cvv", schedule, times, denoise, prediction, last=last, lam=lam)


def _euler(
    name: str,
    process: PSLD,
    times: Sequence[float],
    denoise: str,
    prediction: str,
    *,
    again: bool = False,
    lam: float | None = None,
) -> Plan:
    program = Program(name, process, times, prediction)
    for t, u in program.steps():
        program.call(t)
        program.apply(*sub_flow(program, MOMENTUM, t, t, u, lam))
        if again:
            program.call(t)
        program.apply(*sub_flow(program, POSITION, t, t, u, lam))
    return program.plan(denoise)


def _verlet(
    name: str,
    process: PSLD,
    times: Sequence[float],
    denoise: str,
    prediction: str,
    *,
    last: str,
    again: bool = False,
    lam: float | None = None,
) -> Plan:
    choose("last", last, SCORE_TIMES)
    program = Program(name, process, times, prediction)
    for t, u in program.steps():
        middle, model_time = (t + u) / 2, t if last == "start" else u
        program.call(t)
        program.apply(*sub_flow(program, MOMENTUM, t, t, middle, lam))
        if again:
            program.call(t)
        program.apply(*sub_flow(program, POSITION, t, t, u, lam))
        program.call(model_time)
        program.apply(*sub_flow(program, MOMENTUM, model_time, middle, u, lam))
    return program.plan(denoise)


def sub_flow(
    program: Program, rows: Array, model_time: float, t: float, u: float, lam: float | None = None
) -> tuple[Array, Array]:
    """(state, eps) of the flow's given rows from t to u: Euler with the score at `model_time`, or conjugate."""
    process = program.process
    return partial_flow(program, rows @ process.F, rows @ process.GG / 2, rows, model_time, t, u, lam)


def partial_flow(
    program: Program, drift: Array, gain: Array, rows: Array, model_time: float, t: float, u: float, lam: float | None
) -> tuple[Array, Array]:
    """The same of dz/dt = drift z - gain score; at a number lam through A_t = exp((lam rows - drift) t)."""
    h, process = program.span(t, u), program.process
    if lam is None:
        return I2 - h * drift, h * gain @ program.score(model_time)
    if not -MOST_B <= lam <= MOST_B:
        raise ValueError(f"lam must be in [-{MOST_B:g}, {MOST_B:g}], got {lam:g}")
    B, start = lam * rows, float(process.unit(u))
    K = B - drift

    r, measure = nodes(start, process.unit(t))
    carried = expm(K, np.append(r - start, h))
    inner = carried[:-1] @ gain @ process.score(process.time_at(r))
    return carried[-1] @ (I2 - h * B), np.tensordot(measure, inner, 1)
