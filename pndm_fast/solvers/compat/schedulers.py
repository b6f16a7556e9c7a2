"""diffusers' schedulers of one state: Euler's, Heun's and their like in sigma, DDPM, LCM and flow matching.

Keyword arguments are their configuration's names and defaults, but `spacing` is timestep_spacing and `sigma_spacing`
names the one use_..._sigmas that is set. Clipping and thresholding are off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from pndm_fast import solvers
from pndm_fast.plan.checks import choose
from pndm_fast.plan.grids import WholeTimes
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import NOISE, SLOT, STATE
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.warn import warn
from pndm_fast.solvers.builder import PlanBuilder
from pndm_fast.solvers.compat.grids import (
    FINALS,
    Training,
    check_flow,
    check_steps,
    flow_grid,
    given_flow_times,
    given_sigmas,
    given_times,
    make,
    model_times,
    of_sigmas,
    plan_on,
    shifted,
    spread,
    stretched,
    told,
)
from pndm_fast.solvers.registry import Solver

ALL = ("eps", "x0", "v")
FOR = " for compat='diffusers'"
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


def _sigma(
    solver: Solver,
    scheduler: str,
    predictions: tuple[str, ...],
    schedule: Schedule,
    steps: int,
    spacing: str,
    steps_offset: int,
    prediction: str,
    sigma_spacing: str | None = None,
    final: str = "zero",
    zero_snr: bool = False,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    **options: bool,
) -> Plan:
    """n points, then the end. The start is sigma_max z in unscaled data, but for leading the normal itself."""
    choose("prediction", prediction, predictions, f" for diffusers' {scheduler}")
    choose("final_sigmas_type", final, FINALS)
    if sigmas is None:
        grid = make(
            schedule, steps, spacing, steps_offset, sigma_spacing, final, extra=False, scheduler=scheduler,
            zero_snr=zero_snr, timesteps=timesteps,
        )  # fmt: skip
    elif timesteps is None:
        grid = of_sigmas(schedule, sigmas, scheduler, zero_snr)
    else:
        raise ValueError("timesteps and sigmas exclude each other: give one of them")
    return plan_on(solver, grid, prediction, sigma_prior=spacing != "leading", unscaled=True, **options)


def euler(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    final_sigmas_type: str = "zero",
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    prediction: str = "eps",
) -> Plan:
    """EulerDiscreteScheduler without churn, interpolation_type linear, timestep_type discrete.

    `timesteps` stand for the grid by spacing; `sigmas`, n + 1 with the end, for all of it, sigma_spacing too.

    Its quirks: alpha-bar = 2^-24 at zero terminal SNR; with final_sigmas_type="sigma_min" a last call that changes
    nothing, where the grid's last time is 0.
    """
    return _sigma(
        solvers.euler, "EulerDiscrete", ALL, schedule, steps, spacing, steps_offset, prediction, sigma_spacing,
        final_sigmas_type, zero_snr=True, timesteps=timesteps, sigmas=sigmas,
    )  # fmt: skip


def euler_ancestral(
    schedule: Schedule, steps: int, *, spacing: str = "linspace", steps_offset: int = 0, prediction: str = "eps"
) -> Plan:
    """EulerAncestralDiscreteScheduler. It has no "sample" prediction; alpha-bar = 2^-24 at zero terminal SNR."""
    return _sigma(
        solvers.euler_ancestral, "EulerAncestralDiscrete", ("eps", "v"), schedule, steps, spacing, steps_offset,
        prediction, zero_snr=True,
    )  # fmt: skip


def heun(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    timesteps: Sequence[float] | None = None,
    prediction: str = "eps",
) -> Plan:
    """HeunDiscreteScheduler. It has no zero terminal SNR."""
    return _sigma(
        solvers.heun, "HeunDiscrete", ALL, schedule, steps, spacing, steps_offset, prediction, sigma_spacing,
        timesteps=timesteps,
    )  # fmt: skip


def lms(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    prediction: str = "eps",
) -> Plan:
    """LMSDiscreteScheduler of order 4, the default of its `step`. It has no zero terminal SNR."""
    return _sigma(solvers.lms, "LMSDiscrete", ALL, schedule, steps, spacing, steps_offset, prediction, sigma_spacing)


def dpm_sde(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    prediction: str = "eps",
) -> Plan:
    """DPMSolverSDEScheduler, both noises of a step independent. It has no "sample" prediction and no zero terminal SNR.

    Its noises are increments of a Brownian tree, scaled to unit variance: independent normals.
    """
    return _sigma(
        solvers.dpmpp_sde, "DPMSolverSDE", ("eps", "v"), schedule, steps, spacing, steps_offset, prediction,
        sigma_spacing, one_path=False,
    )  # fmt: skip


def kdpm2(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    prediction: str = "eps",
) -> Plan:
    """KDPM2DiscreteScheduler. It has no "sample" prediction and no zero terminal SNR; karras' times are rounded."""
    return _sigma(
        solvers.dpm_2, "KDPM2Discrete", ("eps", "v"), schedule, steps, spacing, steps_offset, prediction, sigma_spacing
    )


def kdpm2_ancestral(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    prediction: str = "eps",
) -> Plan:
    """KDPM2AncestralDiscreteScheduler, as `kdpm2`.

    The middle of a step to a level and to its reduced level's is that level itself. Its quirk: the network is told the
    time of it that the table of log sigma has, not the grid's.
    """
    plan = _sigma(
        solvers.dpm_2_ancestral, "KDPM2AncestralDiscrete", ("eps", "v"), schedule, steps, spacing, steps_offset,
        prediction, sigma_spacing,
    )  # fmt: skip
    table = Training.of(schedule, "KDPM2AncestralDiscrete", False).rho
    rows = [
        row if i % 2 == 0 else replace(row, t=float(told(np.array([sigma / alpha]), table)[0]))
        for i, row in enumerate(plan.rows)
        for alpha, sigma in [row.levels.call.position]
    ]
    return replace(plan, rows=tuple(rows))


def ddpm(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    variance_type: str = "fixed_small",
    timesteps: Sequence[float] | None = None,
    prediction: str = "eps",
) -> Plan:
    """DDPMScheduler with clip_sample=False; `timesteps` in place of a grid by spacing.

    Its quirk: with fixed_large the last step adds noise too, unless it is from t = 0; the least variance, 1e-20, that
    the others add there is left out. fixed_large_log is no number, and learned variances are of another network.

    Raises:
        ValueError: a variance_type of those, steps, spacing or offset that leave no grid.
    """
    choose("prediction", prediction, ALL, FOR)
    choose("variance_type", variance_type, VARIANCES, " (a learned one is no plan's, and fixed_large_log is no number)")
    if timesteps is None:
        times = model_times(schedule, steps, spacing, steps_offset, False).round()
    else:
        times = given_times(timesteps, schedule, None, cut=True)
    variance = "large" if variance_type == "fixed_large" else "small"
    plan = solvers.ddpm(schedule, [*times, -1.0], variance=variance, prediction=prediction)
    if variance == "large" and times[-1] > 0:
        *rows, last = plan.rows
        plan = replace(plan, rows=(*rows, replace(last, y=(*last.y[:-1], last.levels.call.position.sigma))))
    return replace(plan, solver="ddpm (diffusers)")


def lcm(
    schedule: Schedule,
    steps: int,
    *,
    original_inference_steps: int = 50,
    timestep_scaling: float = 10.0,
    timesteps: Sequence[float] | None = None,
    prediction: str = "eps",
) -> Plan:
    """LCMScheduler with clip_sample=False; n of the original_inference_steps times, or `timesteps`.

    Raises:
        ValueError: fewer original steps than steps, or more than training times.
    """
    choose("prediction", prediction, ALL, FOR)
    if not 0 < timestep_scaling < math.inf:
        raise ValueError(f"timestep_scaling must be positive, got {timestep_scaling}")
    times = _distilled(schedule, steps, original_inference_steps, timesteps)
    plan = solvers.lcm(schedule, [*times, -1.0], time_scale=timestep_scaling, prediction=prediction)
    return replace(plan, solver="lcm (diffusers)")


def tcd(
    schedule: Schedule,
    steps: int,
    *,
    original_inference_steps: int = 50,
    eta: float = 0.3,
    timesteps: Sequence[float] | None = None,
    prediction: str = "eps",
) -> Plan:
    """TCDScheduler, whose grid is LCMScheduler's; eta is what is given with each call, by most pipelines 0.

    Its quirk: it ends at the first training time, t = 0, with that time's noise. Clipping and thresholding are in its
    configuration and not in its step.

    Raises:
        ValueError: fewer original steps than steps, or more than training times, eta outside [0, 1].
    """
    choose("prediction", prediction, ALL, FOR)
    times = _distilled(schedule, steps, original_inference_steps, timesteps)
    plan = solvers.tcd(schedule, WholeTimes([*times, 0.0]), eta=eta, prediction=prediction)
    return replace(plan, solver="tcd (diffusers)")


def _distilled(
    schedule: Schedule, steps: int, original_inference_steps: int, timesteps: Sequence[float] | None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """n of the times that a network was distilled at, or those given.

    Raises:
        ValueError: fewer original steps than steps, or more than training times.
    """
    count, length = check_steps(schedule, steps), int(schedule.last) + 1
    if timesteps is None and not count <= original_inference_steps <= length:
        raise ValueError(
            f"original_inference_steps must be in [{count}, {length}] for {count} steps, got {original_inference_steps}"
        )
    if timesteps is not None:
        if not original_inference_steps <= length:
            raise ValueError(f"original_inference_steps must be at most {length}, got {original_inference_steps}")
        return given_times(timesteps, schedule, None, cut=True)
    origin = np.arange(1, original_inference_steps + 1)[::-1] * (length // original_inference_steps) - 1.0
    return np.asarray(origin[np.floor(np.linspace(0, len(origin), num=count, endpoint=False)).astype(np.int64)])


def flow_euler(
    schedule: Schedule,
    steps: int,
    *,
    sigma_spacing: str | None = None,
    shift_terminal: float | None = None,
    use_dynamic_shifting: bool = False,
    stochastic_sampling: bool = False,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    prediction: str = "flow",
) -> Plan:
    """FlowMatchEulerDiscreteScheduler without invert_sigmas; `Schedule.flow(shift, T)`.

    Its quirk: the least sigma is shifted twice, for the constructor has shifted it. With use_dynamic_shifting, where
    shift is exp(mu), it is shifted once. `sigmas` are those of n calls before the shift, in place of a uniform grid.
    `timesteps` are told as they are; where there are no sigmas theirs, t / T, are shifted.

    Warns:
        UserWarning: the sigmas of `timesteps` are not the ones that go with them.

    Raises:
        ValueError: another prediction than "flow", steps, sigma_spacing or shift_terminal that leave no grid.
    """
    choose("prediction", prediction, ("flow",), " for diffusers' FlowMatchEulerDiscrete")
    count, length, shift = check_flow(schedule, steps, "FlowMatchEulerDiscrete")
    times = None if timesteps is None else given_flow_times(timesteps, count, length)
    if sigmas is not None:
        levels = shifted(given_sigmas(sigmas, count), shift)
    elif times is not None:
        levels = shifted(times / length, shift)
    else:
        levels = _twice_shifted(count, length, 1.0 if use_dynamic_shifting else shift, shift)
    levels = stretched(levels, shift_terminal)
    if sigma_spacing is not None:
        levels = spread(sigma_spacing, levels, count)
    if times is not None and sigmas is None and not np.allclose(levels * length, times, rtol=1e-6):
        warn("timesteps are told as they are, but the sigmas that they stand for are shifted: sigmas= gives those")
    grid = flow_grid(levels, 0.0, length, "FlowMatchEulerDiscrete", cut=False, times=times)
    return plan_on(_noised_anew if stochastic_sampling else solvers.euler, grid, prediction)


def _noised_anew(schedule: Schedule, times: Sequence[float], *, prediction: str) -> Plan:
    """stochastic_sampling: alpha_s x_0 + sigma_s z."""
    rows = PlanBuilder("euler", schedule, times, prediction)
    for t, s in pairwise(rows.times):
        end, x0 = rows.level(s), STATE - rows.level(t).sigma * SLOT[0]
        rows.call(t, 0, end.alpha * x0 + end.sigma * NOISE, s)
    return rows.plan()


def flow_heun(schedule: Schedule, steps: int, *, prediction: str = "flow") -> Plan:
    """FlowMatchHeunDiscreteScheduler without churn; `Schedule.flow(shift, T)`. The least sigma is shifted twice.

    Raises:
        ValueError: another prediction than "flow", or steps that leave no grid.
    """
    choose("prediction", prediction, ("flow",), " for diffusers' FlowMatchHeunDiscrete")
    count, length, shift = check_flow(schedule, steps, "FlowMatchHeunDiscrete")
    grid = flow_grid(_twice_shifted(count, length, shift, shift), 0.0, length, "FlowMatchHeunDiscrete", cut=False)
    return plan_on(solvers.heun, grid, prediction)


def _twice_shifted(steps: int, length: int, first: float, second: float) -> np.ndarray:
    """n points from 1 to the least sigma, which is shifted by `first`, all shifted by `second`."""
    least = shifted(np.array(1 / length), first)
    return shifted(np.linspace(1.0, float(least), steps), second)
