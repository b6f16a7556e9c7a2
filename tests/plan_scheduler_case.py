"""A `PlanScheduler` that is ready for a loop."""

import torch

from pndm_fast.integrations.diffusers import PlanScheduler

DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SOLVERS = ("dpmpp-2m", "unipc", "heun", "f-pndm", "euler-ancestral", "ddpm", "deis", "s-pndm", "dpmpp-3m-sde")
SAMPLE = torch.linspace(-1, 1, 96).view(2, 3, 4, 4)


def ready(config=DDIM, solver=None, steps=6, **options):
    scheduler = PlanScheduler.from_config(config, solver, **options)
    scheduler.set_timesteps(steps)
    return scheduler
