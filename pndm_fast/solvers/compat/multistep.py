"""diffusers' schedulers that step in log-SNR: the DPM-Solvers, DEIS and UniPC.

Keyword arguments are their configuration's names and defaults, but `spacing` is timestep_spacing and `sigma_spacing`
names the one use_..._sigmas that is set; on `Schedule.flow` it is use_flow_sigmas with flow_shift = shift. Clipping and
thresholding are off. These quirks are common to them: the network is told whole times, cut or rounded in float32; a
grid of sigmas or of flow may end on a step of zero length; and where the first time stands twice they fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from pndm_fast import solvers
from pndm_fast.plan.checks import choose
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import FEW_STEPS
from pndm_fast.solvers.compat.grids import (
    BEFORE_ONE,
    FINALS,
    Grid,
    check_flow,
    flow_grid,
    given_sigmas,
    make,
    plan_on,
    shifted,
    stretched,
)
from pndm_fast.solvers.dpm import Exponential, multistep, singlestep

NOISE_PREDICTION, DATA_PREDICTION, SDE = "dpmsolver", "dpmsolver++", "sde-dpmsolver++"
ALGORITHMS = (NOISE_PREDICTION, DATA_PREDICTION, SDE)


def _check_order(order: int, most: int = 3, where: str = "") -> None:
    if not 1 <= order <= most:
        raise ValueError(f"solver_order must be 1 to {most}{where}, got {order}")


def _check_prediction(prediction: str, schedule: Schedule, data: bool, scheduler: str) -> None:
    """On flow levels diffusers' v is another, and those that combine eps take no flow."""
    flow = ("eps", "x0", "flow") if data else ("eps", "x0")
    where = f" for diffusers' {scheduler} on {schedule.name}"
    choose("prediction", prediction, flow if schedule.scale == "flow" else ("eps", "x0", "v"), where)


def _grid(
    schedule: Schedule,
    steps: int,
    spacing: str,
    steps_offset: int,
    sigma_spacing: str | None,
    final: str,
    scheduler: str,
    zero_snr: bool = False,
    terminal: float | None = None,
    least_lam: float = -math.inf,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
) -> Grid:
    """A grid of training times or of sigmas; on flow schedules of flow sigmas, shifted `sigmas` where those are given.

    Raises:
        ValueError: no grid of the scheduler's.
    """
    if schedule.scale != "flow":
        if terminal is not None:
            raise ValueError(f"shift_terminal must be None on {schedule.name}, got {terminal}")
        if sigmas is not None:
            where = f"{schedule.name}, for diffusers' {scheduler} takes them on flow alone"
            raise ValueError(f"sigmas must be None on {where}, got {sigmas!r}")
        return make(
            schedule, steps, spacing, steps_offset, sigma_spacing, final, extra=True, scheduler=scheduler,
            zero_snr=zero_snr, least_lam=least_lam, timesteps=timesteps,
        )  # fmt: skip
    for name, given, own in (
        ("spacing", spacing, "linspace"),
        ("steps_offset", steps_offset, 0),
        ("lambda_min_clipped", least_lam, -math.inf),
        ("timesteps", timesteps, None),
    ):
        if given != own:
            raise ValueError(f"{name} must be {own!r} on flow, whose grid has none, got {given!r}")
    if sigma_spacing is not None:
        raise ValueError(f"sigma_spacing must be None on flow, whose grid is its own, got {sigma_spacing!r}")
    count, length, shift = check_flow(schedule, steps, scheduler)
    if scheduler == "UniPCMultistep":
        points = np.linspace(1, 1 / length, count + 1)[:-1] if sigmas is None else given_sigmas(sigmas, count)
        levels = stretched(shifted(points, shift), terminal)
        levels[0] -= BEFORE_ONE if abs(levels[0] - 1) < BEFORE_ONE else 0
    else:
        levels = np.flip(shifted(1.0 - np.linspace(1, 1 / length, count + 1), shift))[:-1]
        if final == "sigma_min":
            raise ValueError("final_sigmas_type must be 'zero' on flow, where there are no betas, got 'sigma_min'")
    return flow_grid(levels, 0.0 if final == "zero" else float(levels[-1]), length, scheduler, cut=True)


def _solver(name: str, kind: str, build: Callable[[Exponential], Plan], **options: Any) -> Callable[..., Plan]:
    """A solver on a grid of levels that combines eps or x_0."""
    return lambda levels, times, prediction: build(Exponential(name, levels, times, prediction, kind, **options))


def _check_algorithm(algorithm_type: str, solver_order: int, final: str) -> str:
    """What the algorithm combines.

    Raises:
        ValueError: an algorithm, or an order or an end of it, that diffusers has not or has wrong.
    """
    choose("algorithm_type", algorithm_type, ALGORITHMS)
    choose("final_sigmas_type", final, FINALS)
    most = 2 if algorithm_type == SDE else 3
    _check_order(solver_order, most, f" for {SDE}, whose third order has a wrong sign" if most == 2 else "")
    if algorithm_type == NOISE_PREDICTION and final == "zero":
        raise ValueError("final_sigmas_type must be 'sigma_min' for algorithm_type='dpmsolver', got 'zero'")
    return "eps" if algorithm_type == NOISE_PREDICTION else "x0"


def dpm_multistep(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    final_sigmas_type: str = "zero",
    algorithm_type: str = DATA_PREDICTION,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    lambda_min_clipped: float = -math.inf,
    timesteps: Sequence[float] | None = None,
    begin: int = 0,
    prediction: str = "eps",
) -> Plan:
    """DPMSolverMultistepScheduler; sigma_spacing="lu" is use_lu_lambdas.

    Its quirks: the last steps are of lower order where there are fewer than 15, or the last alone where it goes to
    sigma = 0; the third order's second derivative has half its weight; karras times are not rounded on
    squaredcos_cap_v2, only cut; alpha-bar = 2^-24 at zero terminal SNR.

    Raises:
        ValueError: what diffusers refuses or fails at, by name.
    """
    kind = _check_algorithm(algorithm_type, solver_order, final_sigmas_type)
    _check_prediction(prediction, schedule, kind == "x0", "DPMSolverMultistep")
    name = f"dpm-solver-{solver_order}" if kind == "eps" else f"dpmpp-{max(solver_order, 2)}m"
    grid = _grid(
        schedule, steps, spacing, steps_offset, sigma_spacing, final_sigmas_type, "DPMSolverMultistep",
        zero_snr=True, least_lam=lambda_min_clipped, timesteps=timesteps,
    )  # fmt: skip
    count = len(grid.model_time)
    lower = lower_order_final and count < FEW_STEPS
    low = euler_at_final or lower
    if grid.rests and not low and min(solver_order, count) > (1 if solver_type == "heun" else 2):
        raise ValueError(
            "euler_at_final must be True where the last sigma stands twice, at which diffusers' is no number, got False"
        )

    def build(rows: Exponential) -> Plan:
        orders = [rows.order_at(i, solver_order, lower) for i in range(rows.steps)]
        return multistep(rows, [*orders[:-1], 1] if euler_at_final else orders, 0.5)

    noise = {"eta": 1.0} if algorithm_type == SDE else {}
    solver = _solver(f"{name}-sde" if noise else name, kind, build, solver_type=solver_type, **noise)
    return plan_on(solver, grid, prediction, begin=begin)


def dpm_singlestep(
    schedule: Schedule,
    steps: int,
    *,
    sigma_spacing: str | None = None,
    final_sigmas_type: str = "zero",
    algorithm_type: str = DATA_PREDICTION,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
    lambda_min_clipped: float = -math.inf,
    timesteps: Sequence[float] | None = None,
    prediction: str = "eps",
) -> Plan:
    """DPMSolverSinglestepScheduler.

    Its quirks: where solver_order does not divide n, or the end is sigma = 0, lower_order_final is on, whatever is
    said, and an even n then ends on two steps of order 1; the second stage of the third order weighs its slope by
    half, where arXiv:2206.00927, algorithm 2, has its integral.

    Raises:
        ValueError: what diffusers refuses or fails at, by name.
    """
    kind = _check_algorithm(algorithm_type, solver_order, final_sigmas_type)
    _check_prediction(prediction, schedule, kind == "x0", "DPMSolverSinglestep")
    grid = _grid(
        schedule, steps, "linspace", 0, sigma_spacing, final_sigmas_type, "DPMSolverSinglestep",
        least_lam=lambda_min_clipped, timesteps=timesteps,
    )  # fmt: skip
    sizes = _groups(len(grid.model_time), solver_order, lower_order_final, final_sigmas_type == "zero")
    build = partial(singlestep, sizes=sizes, halved=True)
    name = f"dpm-solver-{solver_order}" if kind == "eps" else "dpmpp-2s"
    eta = 1.0 if algorithm_type == SDE else 0.0
    return plan_on(_solver(name, kind, build, solver_type=solver_type, eta=eta), grid, prediction)


def _groups(steps: int, order: int, lower: bool, to_zero: bool) -> list[int]:
    """How many steps each group has: `get_order_list` as runs of 1, 2, ..."""
    full, rest = divmod(steps, order)
    if order == 1 or not (lower or rest or to_zero):
        return [order] * full
    if rest:
        sizes = [order] * full + [rest]
    else:
        sizes = [order] * (full - 1) + ([2, 1] if order == 3 else [1, 1])
    return [*sizes[:-1], 1, 1] if to_zero and sizes[-1] == 2 else sizes


def deis(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    solver_order: int = 2,
    lower_order_final: bool = True,
    begin: int = 0,
    prediction: str = "eps",
) -> Plan:
    """DEISMultistepScheduler: logrho, eps a polynomial in log(sigma / alpha).

    Its quirks: it ends at alpha-bar[0], and with sigma_spacing or on flow on a step of zero length.

    Raises:
        ValueError: what diffusers refuses or fails at, by name.
    """
    _check_order(solver_order)
    _check_prediction(prediction, schedule, True, "DEISMultistep")
    final = "sigma_min" if schedule.scale != "flow" and sigma_spacing is None else "last"
    grid = _grid(schedule, steps, spacing, steps_offset, sigma_spacing, final, "DEISMultistep")
    lower = lower_order_final and len(grid.model_time) < FEW_STEPS

    def build(rows: Exponential) -> Plan:
        return multistep(rows, [rows.order_at(i, solver_order, lower) for i in range(rows.steps)], 1.0)

    return plan_on(_solver("deis", "eps", build, solver_type="heun"), grid, prediction, begin=begin)


def unipc(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    final_sigmas_type: str = "zero",
    solver_order: int = 2,
    solver_type: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    shift_terminal: float | None = None,
    sigmas: Sequence[float] | None = None,
    begin: int = 0,
    prediction: str = "eps",
) -> Plan:
    """UniPCMultistepScheduler.

    Its quirks: lower_order_final at any number of steps; alpha-bar = 2^-24 at zero terminal SNR; sigma_min is, with
    sigma_spacing or on flow, the last sigma again; a first flow sigma of 1 is 1 - 1e-6. A step to sigma = 0 is a number
    there for bh2 on x_0 with lower_order_final alone.

    Raises:
        ValueError: what diffusers refuses or fails at, by name.
    """
    choose("final_sigmas_type", final_sigmas_type, FINALS)
    choose("solver_type", solver_type, ("bh1", "bh2"))
    _check_order(solver_order)
    _check_prediction(prediction, schedule, predict_x0, "UniPCMultistep")
    final = final_sigmas_type
    if final == "sigma_min" and (sigma_spacing is not None or schedule.scale == "flow"):
        final = "last"
    grid = _grid(
        schedule, steps, spacing, steps_offset, sigma_spacing, final, "UniPCMultistep", True, shift_terminal,
        sigmas=sigmas,
    )  # fmt: skip
    last = min(solver_order, len(grid.model_time))  # the order of the last step without lower_order_final
    _check_end(grid, last, solver_type, predict_x0, lower_order_final)
    kind = "x0" if predict_x0 else "eps"
    options: dict[str, Any] = {"variant": solver_type, "predict": kind, "lower_order_final": lower_order_final}
    return plan_on(solvers.unipc, grid, prediction, begin=begin, order=solver_order, **options)


def _check_end(grid: Grid, order: int, solver_type: str, predict_x0: bool, lower_order_final: bool) -> None:
    """Refuse the ends at which diffusers' UniPC is not a number."""
    if grid.sigma[-1] == 0:
        where = "where final_sigmas_type='zero', at which diffusers' is no number"
        if solver_type == "bh1":
            raise ValueError(f"solver_type must be 'bh2' {where}, got 'bh1'")
        if not predict_x0:
            raise ValueError(f"predict_x0 must be True {where}, got False")
        if not lower_order_final and order > 1:
            raise ValueError(f"lower_order_final must be True {where}, got False")
    elif grid.rests and not lower_order_final and order > 2:
        raise ValueError("lower_order_final must be True where the last sigma stands twice, got False")
