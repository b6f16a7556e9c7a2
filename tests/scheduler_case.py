"""diffusers' schedulers and their plain loop, for `PlanScheduler` and `plan_like` to be compared with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNDM": ("PNDM", {}),
    "PLMS": ("PNDM", {"skip_prk_steps": True, "steps_offset": 1}),
    "DDIM": ("DDIM", {"clip_sample": False}),
    "DDPM": ("DDPM", {}),
    "LCM": ("LCM", {}),
    "LCM clipped": ("LCM", {"clip_sample": True, "clip_sample_range": 0.5}),
    "2M Karras": ("DPMSolverMultistep", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    "3M": ("DPMSolverMultistep", {"solver_order": 3, "timestep_spacing": "trailing"}),
    "2M SDE": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "2M flow": ("DPMSolverMultistep", FLOW),
    "2S": ("DPMSolverSinglestep", {"lower_order_final": True}),
    "DEIS": ("DEISMultistep", {}),
    "UniPC": ("UniPCMultistep", {}),
    "UniPC flow": ("UniPCMultistep", FLOW),
    "Euler": ("EulerDiscrete", {}),
    "Euler leading": ("EulerDiscrete", {"timestep_spacing": "leading"}),
    "Euler a": ("EulerAncestralDiscrete", {}),
    "Heun": ("HeunDiscrete", {}),
    "Heun clipped": ("HeunDiscrete", {"clip_sample": True}),
    "LMS": ("LMSDiscrete", {}),
    "KDPM2": ("KDPM2Discrete", {"use_karras_sigmas": True}),
    "KDPM2 a": ("KDPM2AncestralDiscrete", {}),
    "TCD": ("TCD", {}),
    "flow Euler": ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    "flow Heun": ("FlowMatchHeunDiscrete", {"shift": 3.0}),
}


def scheduler_of(case: str) -> Any:
    kind, config = LOOPS[case]
    return getattr(diffusers, f"{kind}Scheduler")(**config)


def loop(
    scheduler: Any,
    network: Callable[..., torch.Tensor],
    steps: int | None,
    *,
    grid: dict[str, Any] | None = None,
    begin: int = 0,
    seed: int = 3,
    shape: tuple[int, ...] = (2, 3, 4, 4),
    dtype: torch.dtype = torch.float32,
    states: list[torch.Tensor] | None = None,
    outputs: list[Any] | None = None,
    **call: Any,
) -> torch.Tensor:
    """What a pipeline does: from noise, or with `begin` from noised data at a later time. `states` takes all,
    `outputs` what step returned.

    `grid` is what set_timesteps is given in place of a number of steps.
    """
    scheduler.set_timesteps(**(grid or {"num_inference_steps": steps}))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if begin:
        noised = scheduler.add_noise if hasattr(scheduler, "add_noise") else None
        data, at = torch.linspace(-1, 1, noise.numel()).view(shape), timesteps[:1].repeat(shape[0])
        x = noised(data, noise, at) if noised else scheduler.scale_noise(data, at, noise)
    else:
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    x = x.to(dtype)
    takes = inspect.signature(scheduler.step).parameters
    call |= {"generator": generator} if "generator" in takes else {}
    for t in timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = network(seen, t.reshape(1).expand(shape[0]))
        made = scheduler.step(out, t, x, **call)
        x = made.prev_sample
        if outputs is not None:
            outputs.append(made)
        if states is not None:
            states.append(x)
    return x
