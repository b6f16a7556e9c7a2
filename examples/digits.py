"""The packaged MNIST network in diffusers' own U-Net and pipeline, which then draws a digit."""

import sys

import diffusers
import torch

from pndm_fast import demo
from pndm_fast.integrations.diffusers import PlanScheduler, accelerate


def pipeline(digit: int) -> diffusers.DDPMPipeline:
    """A pipeline that draws that digit: `pipe(batch_size=4, num_inference_steps=20)`."""
    packaged = demo.mnist_unet()
    network = diffusers.UNet2DModel.from_config(packaged.config.to_dict())
    network.load_state_dict(packaged.state_dict())  # whose names are the same

    def labelled(network, arguments, keywords):
        label = torch.full((len(arguments[0]),), digit)  # DDPMPipeline itself gives none
        return arguments, {"class_labels": label, **keywords}

    network.eval().requires_grad_(False).register_forward_pre_hook(labelled, with_kwargs=True)
    scheduler = PlanScheduler.from_config(diffusers.DDPMScheduler(clip_sample=False), solver="auto")
    return accelerate(diffusers.DDPMPipeline(network, scheduler))


if __name__ == "__main__":
    pipe = pipeline(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
    image = pipe(num_inference_steps=20, generator=torch.Generator().manual_seed(0), output_type="np").images[0]
    for line in image[::2, :, 0]:
        print("".join(" .:*#"[min(4, int(5 * value))] for value in line))
