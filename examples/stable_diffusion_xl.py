"""Stable Diffusion XL with noise from one generator for each image, by a pipeline's loop and by one call."""

import diffusers
import torch
from tiny_pipelines import stable_diffusion_xl, tell

from pndm_fast.integrations.diffusers import PlanScheduler, accelerate


def main() -> dict[str, torch.Tensor]:
    """Latents of two images, by how they were drawn: all are the same, and so is each image alone."""
    pipe, call = stable_diffusion_xl()  # yours: StableDiffusionXLPipeline.from_pretrained(...), {"prompt": ...}
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)

    def draw(pipe, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = {"num_images_per_prompt": len(seeds), "generator": generators}
        return pipe(num_inference_steps=20, guidance_scale=5.0, guidance_rescale=0.7, **images, **call).images

    fast = accelerate(pipe)
    drawn = {"diffusers": draw(pipe, [1, 2]), "one call": draw(fast, [1, 2])}
    drawn["one by one"] = torch.cat([draw(fast, [1]), draw(fast, [2])])
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler)
    return drawn | {"plan": draw(pipe, [1, 2])}


if __name__ == "__main__":
    tell(main())
