"""Stable Diffusion by the plan of its own scheduler, by another solver, and with its loop as one call."""

import diffusers
import torch
from tiny_pipelines import stable_diffusion, tell

from pndm_fast.integrations.diffusers import PlanScheduler, accelerate


def main() -> dict[str, torch.Tensor]:
    """Latents, by how they were drawn: the first three are the same."""
    pipe, call = stable_diffusion()  # yours: StableDiffusionPipeline.from_pretrained(...), {"prompt": ...}
    pipe.set_progress_bar_config(disable=True)

    def draw(pipe):
        return pipe(num_inference_steps=20, generator=torch.Generator().manual_seed(0), **call).images

    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    drawn = {"diffusers": draw(pipe), "one call": draw(accelerate(pipe))}
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler)
    drawn["plan"] = draw(pipe)
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler, solver="unipc", spacing="logsnr", order=3)
    return drawn | {"unipc": draw(accelerate(pipe))}


if __name__ == "__main__":
    tell(main())
