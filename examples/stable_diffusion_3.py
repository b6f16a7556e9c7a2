"""Stable Diffusion 3 on its flow schedule: its own Euler steps, and DPM-Solver++ in half as many calls."""

import diffusers
import torch
from tiny_pipelines import stable_diffusion_3, tell

from pndm_fast.integrations.diffusers import PlanScheduler, accelerate


def main() -> dict[str, torch.Tensor]:
    """Latents, by how they were drawn: the first three are the same."""
    pipe, call = stable_diffusion_3()  # yours: StableDiffusion3Pipeline.from_pretrained(...), {"prompt": ...}
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    def draw(pipe, steps):
        return pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **call).images

    drawn = {"diffusers": draw(pipe, 28), "one call": draw(accelerate(pipe), 28)}
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler)
    drawn["plan"] = draw(pipe, 28)
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler, solver="dpmpp-2m", spacing="trailing")
    return drawn | {"dpmpp-2m": draw(accelerate(pipe), 14)}


if __name__ == "__main__":
    tell(main())
