"""FLUX, whose pipeline shifts its sigmas by the image's size; and the report of the one call that its loop becomes."""

import diffusers
import torch
from tiny_pipelines import flux, tell

from pndm_fast.integrations.diffusers import PlanScheduler, accelerate


def main() -> dict[str, torch.Tensor]:
    """Latents, by how they were drawn: all are the same."""
    pipe, call = flux()  # yours: FluxPipeline.from_pretrained(...), {"prompt": ...}
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)

    def draw(pipe):
        return pipe(num_inference_steps=20, generator=torch.Generator().manual_seed(0), **call).images

    fast = accelerate(pipe)
    drawn = {"diffusers": draw(pipe), "one call": draw(fast)}
    assert fast.report.nfe == 20  # and seconds, backend, layout, memory, how a GPU was driven
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler)
    return drawn | {"plan": draw(pipe)}


if __name__ == "__main__":
    tell(main())
