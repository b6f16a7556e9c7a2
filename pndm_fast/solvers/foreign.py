"""What diffusers' scheduler classes have: defaults, options that no plan does, and which have no plan here, and why."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from pndm_fast.plan.names import REASONS
from pndm_fast.plan.plan import Plan
from pndm_fast.solvers.compat import SCHEDULERS

# classes that do what another does, for one sample
SAME_AS = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}

_TOKENS = "its samples are tokens, and a plan's are numbers"
_EDM = "its networks are EDM's: make_plan({}, Schedule.edm(), prediction='edm') is its like"

REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "make_plan('consistency', Schedule.edm(), prediction='edm') steps so",
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
    "KarrasVeScheduler": "it is make_plan('edm', Schedule.edm())",
    "LTXEulerAncestralRFScheduler": "make_plan('euler-ancestral', Schedule.flow(...), split='flow') steps so",
    "MiniMaxH3Scheduler": "its times run the other way; make_plan('euler', Schedule.flow(...)) steps so",
    "PiflowScheduler": "its steps integrate a policy inside one output",
    "RFD4ProteinaScheduler": "its samples have two parts with two schedules",
    "RePaintScheduler": "its steps go back to more noise; Inpaint is for masks",
    "SASolverScheduler": "its weights of order 2 are its own, its tau a function: make_plan('sa-solver') is its like",
    "SCMScheduler": "make_plan('tcd', Schedule.trigflow(), prediction='v', eta=1.0) steps so",
    "ScoreSdeVeScheduler": "its corrector measures the norm of each output",
    "ScoreSdeVpScheduler": "its steps take the score of a continuous time",
    "UnCLIPScheduler": "its variance is learned",
}
REASONS.update(REFUSED)


# what diffusers' classes take a word of another class for
WORDS: dict[str, dict[str, dict[str, str]]] = {
    "DPMSolverMultistepScheduler": {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
    },
    "UniPCMultistepScheduler": {"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")},
}
WORDS["DPMSolverSinglestepScheduler"] = WORDS["DPMSolverMultistepScheduler"]
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_LATENT_BETAS = {**BETAS, "beta_start": 0.00085, "beta_end": 0.012}
BETAS_OF = {  # where a class has other defaults, or a schedule that we have and no solver
    "HeunDiscreteScheduler": _LATENT_BETAS,
    "DPMSolverSDEScheduler": _LATENT_BETAS,
    "KDPM2DiscreteScheduler": _LATENT_BETAS,
    "KDPM2AncestralDiscreteScheduler": _LATENT_BETAS,
    "LCMScheduler": {**_LATENT_BETAS, "beta_schedule": "scaled_linear"},
    "TCDScheduler": {**_LATENT_BETAS, "beta_schedule": "scaled_linear"},
    "SASolverScheduler": BETAS,
}
CLIPS_ALL = ("DDPMScheduler", "LCMScheduler", "HeunDiscreteScheduler")  # whose step follows the clamped x_0 alone
CLIP_DEFAULT = ("DDIMScheduler", "DDIMInverseScheduler", "DDPMScheduler")  # of the others it is False

STEP_ETA = {"TCDScheduler": 0.3}  # where step's default is not 0

_MULTISTEP = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")
FLOWS = (*_MULTISTEP, "DEISMultistepScheduler", "UniPCMultistepScheduler")  # which have use_flow_sigmas
_RANGE = ("UniPCMultistepScheduler", "EulerDiscreteScheduler")
ZERO_SNR = (
    *("DDIMScheduler", "DDIMInverseScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler", _MULTISTEP[0]),
)
# options that a plan can have at one value alone: that value, the classes that have them, and why
FIXED: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "thresholding": (
        False,
        (*FLOWS, "DDIMScheduler", "DDPMScheduler", "LCMScheduler"),
        "a quantile of each sample is in no plan, Thresholded goes around a network",
    ),
    "use_lu_lambdas": (False, _MULTISTEP[:1], "that grid is diffusers' own"),
    "lambda_min_clipped": (-math.inf, _MULTISTEP, "no plan's grid is cut so"),
    "interpolation_type": ("linear", _RANGE[1:], "its log_linear sigmas are told times of another grid"),
    "timestep_type": ("discrete", _RANGE[1:], "it is for EDM's networks, Schedule.edm"),
    "sigma_min": (None, _RANGE, "make_plan takes sigmas"),
    "sigma_max": (None, _RANGE, "make_plan takes sigmas"),
    "invert_sigmas": (False, ("FlowMatchEulerDiscreteScheduler",), "its times run the other way"),
    "stochastic_sampling": (
        False,
        ("FlowMatchEulerDiscreteScheduler",),
        "make_plan('lcm', Schedule.flow()) is its like",
    ),
    "noise_sampler_seed": (None, ("DPMSolverSDEScheduler",), "a plan's noise comes from seeds or a generator"),
    "solver_p": (None, _RANGE[:1], "a plan has one solver"),
    "disable_corrector": ([], _RANGE[:1], "a plan corrects each step"),
}


def step_eta(settings: Mapping[str, Any], given: float | None) -> float:
    """The eta of a loop whose steps are given that one, by the settings of a `PlanScheduler`."""
    own = STEP_ETA.get(settings["like"], 0.0) if settings["solver"] is None else 0.0
    return own if given is None else given


def drawn(config: Mapping[str, Any], plan: Plan, eta: float) -> tuple[bool, ...]:
    """Of which rows a `PlanScheduler` draws normals: as the class that it stands for, also where that adds none."""
    settings, sde = config["_plan"], str(config.get("algorithm_type", "")).startswith("sde-")
    like = settings["like"] if settings["solver"] is None else None
    if like == "DDPMScheduler":
        return tuple(t > 0 for t in plan.times)
    each = like == "EulerAncestralDiscreteScheduler" or (like == "DDIMScheduler" and eta > 0)
    return (True,) * plan.nfe if each or (like in _MULTISTEP and sde) else plan.noisy


def other_class(name: str) -> str:
    """Why a plan like that class cannot be had, in words."""
    head = f"_class_name must be a scheduler that a plan stands for, got {name!r}"
    if name in REFUSED:
        return f"{head}: {REFUSED[name]}"
    near = difflib.get_close_matches(name, SCHEDULERS, n=1, cutoff=0.85)
    return f"{head}{f'; did you mean {near[0]!r}?' if near else ': no class of diffusers 0.42 is called so'}"
