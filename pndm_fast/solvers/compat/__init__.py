"""Plans that reproduce another library's scheduler to rounding, its quirks included.

`SCHEDULERS` has a function for each of diffusers 0.42's scheduler classes, whose arguments are its configuration's
names; `COMPAT` has our solvers' names for them, some of the configuration then given by the name.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.compat import multistep, pndm, schedulers
from pndm_fast.solvers.registry import Solver

SCHEDULERS: dict[str, Solver] = {
    "PNDMScheduler": pndm.pndm,
    "DDIMScheduler": pndm.ddim,
    "DDIMInverseScheduler": pndm.ddim_inverse,
    "DDPMScheduler": schedulers.ddpm,
    "LCMScheduler": schedulers.lcm,
    "DPMSolverMultistepScheduler": multistep.dpm_multistep,
    "DPMSolverSinglestepScheduler": multistep.dpm_singlestep,
    "DEISMultistepScheduler": multistep.deis,
    "UniPCMultistepScheduler": multistep.unipc,
    "EulerDiscreteScheduler": schedulers.euler,
    "EulerAncestralDiscreteScheduler": schedulers.euler_ancestral,
    "HeunDiscreteScheduler": schedulers.heun,
    "LMSDiscreteScheduler": schedulers.lms,
    "DPMSolverSDEScheduler": schedulers.dpm_sde,
    "KDPM2DiscreteScheduler": schedulers.kdpm2,
    "KDPM2AncestralDiscreteScheduler": schedulers.kdpm2_ancestral,
    "TCDScheduler": schedulers.tcd,
    "FlowMatchEulerDiscreteScheduler": schedulers.flow_euler,
    "FlowMatchHeunDiscreteScheduler": schedulers.flow_heun,
}


def _named(function: Solver, without: tuple[str, ...] = (), final: str = "zero", **given: Any) -> Solver:
    """A scheduler's function with part of its configuration given.

    That and `without` are no options of it; `final` is its default of final_sigmas_type.
    """

    @functools.wraps(function)
    def build(schedule: Schedule, steps: int, **options: Any) -> Plan:
        if final != "zero":
            options = {"final_sigmas_type": final, **options}
        return function(schedule, steps, **given, **options)

    signature = inspect.signature(function)
    left = [p for p in signature.parameters.values() if p.name not in (*given, *without)]
    left = [p.replace(default=final) if p.name == "final_sigmas_type" else p for p in left]
    build.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
    return build


def _either(discrete: Solver, flow: Solver) -> Solver:
    """One function on discrete schedules and another on flow ones, with the options of both."""

    @functools.wraps(discrete)
    def build(schedule: Schedule, steps: int, **options: Any) -> Plan:
        chosen = flow if schedule.scale == "flow" else discrete
        known = inspect.signature(chosen).parameters
        for option, value in options.items():
            if option not in known:
                where = f"compat='diffusers' on {schedule.name}"
                raise ValueError(f"{option} cannot go with {where}, got {value!r}")
        return chosen(schedule, steps, **options)

    parameters = dict(inspect.signature(flow).parameters) | dict(inspect.signature(discrete).parameters)
    build.__annotations__ = flow.__annotations__ | discrete.__annotations__
    build.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    return build


_FIRST_ORDER = ("solver_type", "lower_order_final", "euler_at_final")
_noise = functools.partial(
    _named, multistep.dpm_multistep, final="sigma_min", algorithm_type=multistep.NOISE_PREDICTION
)

COMPAT: dict[str, dict[str, Solver]] = {
    "diffusers": {
        "plms": _named(pndm.pndm, skip_prk_steps=True),
        "f-pndm": _named(pndm.pndm, skip_prk_steps=False),
        "ddim": pndm.ddim,
        "ddim-inverse": pndm.ddim_inverse,
        "ddpm": schedulers.ddpm,
        "lcm": schedulers.lcm,
        "dpm-solver-1": _noise(without=_FIRST_ORDER, solver_order=1),
        "dpm-solver-2": _noise(solver_order=2),
        "dpm-solver-3": _noise(solver_order=3),
        "dpmpp-2m": _named(multistep.dpm_multistep, algorithm_type=multistep.DATA_PREDICTION, solver_order=2),
        "dpmpp-3m": _named(multistep.dpm_multistep, algorithm_type=multistep.DATA_PREDICTION, solver_order=3),
        "dpmpp-2m-sde": _named(multistep.dpm_multistep, algorithm_type=multistep.SDE, solver_order=2),
        "dpmpp-2s": _named(multistep.dpm_singlestep, algorithm_type=multistep.DATA_PREDICTION, solver_order=2),
        "deis": multistep.deis,
        "unipc": multistep.unipc,
        "euler": _either(schedulers.euler, schedulers.flow_euler),
        "euler-ancestral": schedulers.euler_ancestral,
        "heun": _either(schedulers.heun, schedulers.flow_heun),
        "lms": schedulers.lms,
        "dpmpp-sde": schedulers.dpm_sde,
        "dpm-2": schedulers.kdpm2,
        "dpm-2-ancestral": schedulers.kdpm2_ancestral,
        "tcd": schedulers.tcd,
    }
}
