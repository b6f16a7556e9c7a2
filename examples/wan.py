"""Wan's video pipeline: UniPC on a flow schedule, another shift, and its loop as one call."""

import torch
from tiny_pipelines import tell, wan

from pndm_fast.integrations.diffusers import PlanScheduler, accelerate


def main() -> dict[str, torch.Tensor]:
    """Latents of a video, by how they were drawn: the first three are the same."""
    pipe, call = wan()  # yours: WanPipeline.from_pretrained(...), {"prompt": ...}
    pipe.set_progress_bar_config(disable=True)

    def draw(pipe):
        return pipe(num_inference_steps=10, generator=torch.Generator().manual_seed(0), **call).frames

    drawn = {"diffusers": draw(pipe), "one call": draw(accelerate(pipe))}
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler)
    drawn["plan"] = draw(pipe)
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler, flow_shift=5.0)
    return drawn | {"shift 5": draw(accelerate(pipe))}


if __name__ == "__main__":
    tell(main())
