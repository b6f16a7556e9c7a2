"""diffusers' scheduler classes that no plan here stands for, and why."""

from __future__ import annotations

import difflib

from pndm_fast.solvers.compat import SCHEDULERS

# classes that do what another does, for one sample
SAME_AS = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}

_TOKENS = "its samples are tokens, and a plan's are numbers"
_EDM = "its networks are EDM's: make_plan({}, Schedule.edm(), prediction='edm') is its like"
_MISSING = "no solver here is its equal yet"

REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "its network is called in consistency models' own scaling",
    "ConsistencyDecoderScheduler": "its step is the decoder's own",
    "CogVideoXDDIMScheduler": "its schedule is shifted in its own way: Schedule.from_alphas_cumprod takes that",
    "CogVideoXDPMScheduler": "its step takes the x_0 of the call before as an argument",
    "CosineDPMSolverMultistepScheduler": _EDM.format("'dpmpp-2m-sde'"),
    "DDPMWuerstchenScheduler": "its network is told a ratio of its own; make_plan('ddpm') steps so",
    "DPMSolverMultistepInverseScheduler": "its steps run from data to noise; make_plan('ddim-inverse') does",
    "EDMDPMSolverMultistepScheduler": _EDM.format("'dpmpp-2m'"),
    "EDMEulerScheduler": _EDM.format("'euler'"),
    "FlowMapEulerDiscreteScheduler": "its network is told two times",
    "FlowMatchLCMScheduler": "it is make_plan('lcm', Schedule.flow(...)), but for its resized stages",
    "HeliosDMDScheduler": "its samples change their size between stages",
    "HeliosScheduler": "its samples change their size between stages",
    "IPNDMScheduler": "its network is told times of a schedule of its own; make_plan('ipndm') is the solver",
    "KDPM2AncestralDiscreteScheduler": _MISSING,
    "KDPM2DiscreteScheduler": "it is make_plan('dpm-solver-2', multistep=False) on the same sigmas",
    "KarrasVeScheduler": "it is make_plan('edm', Schedule.edm())",
    "LTXEulerAncestralRFScheduler": _MISSING,
    "MiniMaxH3Scheduler": "its times run the other way; make_plan('euler', Schedule.flow(...)) steps so",
    "PiflowScheduler": "its steps integrate a policy inside one output",
    "RFD4ProteinaScheduler": "its samples have two parts with two schedules",
    "RePaintScheduler": "its steps go back to more noise; Inpaint is for masks",
    "SASolverScheduler": _MISSING,
    "SCMScheduler": "its prediction, TrigFlow's, has none here yet",
    "ScoreSdeVeScheduler": "its corrector measures the norm of each output",
    "ScoreSdeVpScheduler": "its steps take the score of a continuous time",
    "TCDScheduler": _MISSING,
    "UnCLIPScheduler": "its variance is learned",
}


def other_class(name: str) -> str:
    """Why a plan like that class cannot be had, in words."""
    head = f"_class_name must be a scheduler that a plan stands for, got {name!r}"
    if name in REFUSED:
        return f"{head}: {REFUSED[name]}"
    near = difflib.get_close_matches(name, SCHEDULERS, n=1, cutoff=0.85)
    return f"{head}{f'; did you mean {near[0]!r}?' if near else ': no class of diffusers 0.42 is called so'}"
