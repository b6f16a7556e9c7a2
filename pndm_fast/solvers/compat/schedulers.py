"""diffusers 0.42's schedulers as our solvers on their grids: each function is a grid and a choice of options.

Keyword arguments are their configuration's names and defaults, but `spacing` is timestep_spacing and `sigma_spacing`
names the one use_..._sigmas that is set. Clipping and thresholding are off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pndm_fast import solvers
from pndm_fast.plan.checks import choose
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.compat.grids import check_steps, make, model_times, plan_on

Compatible = Callable[..., Plan]
FINAL = {"zero": "zero", "sigma_min": "min"}


def _lower(lower_order_final: bool) -> bool | None:
    return None if lower_order_final else False  # None: where there are fewer than 15 steps


def multistep(name: str, solver: Compatible) -> Compatible:
    """DPMSolverMultistepScheduler; the name says algorithm_type and solver_order."""
    options: dict[str, Any] = {"multistep": True} if name in ("dpm-solver-2", "dpm-solver-3") else {}
    typed = name not in ("dpm-solver-1",)

    def build(
        schedule: Schedule,
        steps: int,
        *,
        spacing: str = "linspace",
        steps_offset: int = 0,
        sigma_spacing: str | None = None,
        final_sigmas_type: str = "zero",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        prediction: str = "eps",
    ) -> Plan:
        final = FINAL[choose("final_sigmas_type", final_sigmas_type, FINAL)]
        grid = make(schedule, steps, spacing, steps_offset, sigma_spacing, final, extra=True)
        more: dict[str, Any] = (
            {"solver_type": solver_type, "lower_order_final": _lower(lower_order_final)} if typed else {}
        )
        return plan_on(solver, grid, prediction, **options, **more)

    return build


def singlestep(solver: Compatible) -> Compatible:
    """DPMSolverSinglestepScheduler with lower_order_final; the name says algorithm_type and solver_order."""

    def build(
        schedule: Schedule,
        steps: int,
        *,
        sigma_spacing: str | None = None,
        final_sigmas_type: str = "zero",
        solver_type: str = "midpoint",
        prediction: str = "eps",
    ) -> Plan:
        final = FINAL[choose("final_sigmas_type", final_sigmas_type, FINAL)]
        grid = make(schedule, steps, "linspace", 0, sigma_spacing, final, extra=True)
        return plan_on(solver, grid, prediction, solver_type=solver_type)

    return build


def deis(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    steps_offset: int = 0,
    sigma_spacing: str | None = None,
    solver_order: int = 2,
    lower_order_final: bool = True,
    prediction: str = "eps",
) -> Plan:
    """DEISMultistepScheduler: logrho, ending at alpha-bar[0]; with sigma_spacing a last step of zero length."""
    grid = make(schedule, steps, spacing, steps_offset, sigma_spacing, "last" if sigma_spacing else "min", extra=True)
    lower = _lower(lower_order_final)
    return plan_on(solvers.deis, grid, prediction, order=solver_order, variable="log_rho", lower_order_final=lower)


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
    prediction: str = "eps",
) -> Plan:
    """UniPCMultistepScheduler."""
    final = FINAL[choose("final_sigmas_type", final_sigmas_type, FINAL)]
    final = "last" if final == "min" and sigma_spacing else final
    grid = make(schedule, steps, spacing, steps_offset, sigma_spacing, final, extra=True)
    kind = "x0" if predict_x0 else "eps"
    options: dict[str, Any] = {"variant": solver_type, "predict": kind, "lower_order_final": lower_order_final}
    return plan_on(solvers.unipc, grid, prediction, order=solver_order, **options)


def sigma(solver: Compatible, **options: Any) -> Compatible:
    """EulerDiscrete, EulerAncestralDiscrete, HeunDiscrete, LMSDiscrete and DPMSolverSDE: n points, then sigma = 0.

    The start is sigma_max z in unscaled data, but for leading, where it is the normal that we start from.
    """

    def build(
        schedule: Schedule,
        steps: int,
        *,
        spacing: str = "linspace",
        steps_offset: int = 0,
        sigma_spacing: str | None = None,
        prediction: str = "eps",
    ) -> Plan:
        grid = make(schedule, steps, spacing, steps_offset, sigma_spacing, "zero", extra=False)
        return plan_on(solver, grid, prediction, sigma_prior=spacing != "leading", **options)

    return build


def ddpm(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    variance_type: str = "fixed_small",
    prediction: str = "eps",
) -> Plan:
    """DDPMScheduler with clip_sample=False."""
    choose("variance_type", variance_type, ("fixed_small", "fixed_large"))
    times = model_times(schedule, steps, spacing, steps_offset, False).round()
    return solvers.ddpm(schedule, [*times, -1.0], variance=variance_type[6:], prediction=prediction)


def ddim_inverse(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    prediction: str = "eps",
) -> Plan:
    """DDIMInverseScheduler with clip_sample=False and set_alpha_to_one."""
    choose("spacing", spacing, ("leading", "trailing"), " for ddim-inverse")
    times = model_times(schedule, steps, spacing, steps_offset, False)
    end = max(times[-1] - (int(schedule.last) + 1) // len(times), -1.0)  # of the state before the first call
    return solvers.ddim_inverse(schedule, [*times, end], prediction=prediction)


def lcm(
    schedule: Schedule,
    steps: int,
    *,
    original_inference_steps: int = 50,
    timestep_scaling: float = 10.0,
    prediction: str = "eps",
) -> Plan:
    """LCMScheduler with clip_sample=False; n of the original_inference_steps times."""
    count, length = check_steps(schedule, steps), int(schedule.last) + 1
    if not count <= original_inference_steps <= length:
        raise ValueError(
            f"original_inference_steps must be in [{count}, {length}] for {count} steps, got {original_inference_steps}"
        )
    origin = np.arange(1, original_inference_steps + 1)[::-1] * (length // original_inference_steps) - 1
    places = np.floor(np.linspace(0, len(origin), num=count, endpoint=False)).astype(np.int64)
    return solvers.lcm(schedule, [*origin[places], -1.0], time_scale=timestep_scaling, prediction=prediction)
