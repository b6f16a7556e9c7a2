"""A whole call of an accelerated pipeline against the pipeline's own, the same scheduler in both."""

from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from speed.harness import Side, Target, contest

from pndm_fast.integrations.diffusers import accelerate

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations
BOUND = Target(1.02, at_most=True)
STEPS = 20
SCHEDULERS = {
    "euler": ("EulerDiscrete", {}),
    "2m": ("DPMSolverMultistep", {}),
    "unipc": ("UniPCMultistep", {}),
    "euler-a": ("EulerAncestralDiscrete", {}),
}


def scheduler_of(name):
    kind, config = SCHEDULERS[name]
    return getattr(diffusers, f"{kind}Scheduler")(**config)


def stable_diffusion(width, side):
    """Random networks without encoders, and a call for latents, guided."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=side, block_out_channels=(width, 2 * width), layers_per_block=1, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, norm_num_groups=4,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=scheduler_of("euler"), text_encoder=None, tokenizer=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(1, 16, 32), "negative_prompt_embeds": torch.randn(1, 16, 32)}
    return pipeline, {**text, "height": side, "width": side, "output_type": "latent"}


NETWORKS = {"tiny": (8, 8), "mid": (64, 16)}  # width and side: about 3 and 12 ms a call


def pixels(width, side):
    """A network of images."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=side, block_out_channels=(width, 2 * width), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()), {"output_type": "np"}


TRANSFORMERS = {"tiny": (2, 2, 8), "mid": (3, 4, 16)}  # layers, heads and side: about 3 and 10 ms a call


def flux(layers, heads, side):
    """A random network without encoders, told its guidance, and a call for latents."""
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=layers, num_single_layers=layers, attention_head_dim=32,
        num_attention_heads=heads, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[8, 12, 12],
        guidance_embeds=True,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline = diffusers.FluxPipeline(
        transformer=network, vae=vae, scheduler=scheduler, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(1, 16, 32), "pooled_prompt_embeds": torch.randn(1, 32)}
    return pipeline, {**text, "height": side, "width": side, "output_type": "latent"}


def on_a_new_stack(run):
    """In a thread of its own.

    CPython keeps frames in chunks of 16 KiB. A network whose inner calls cross a border between two again and again
    takes a third longer, and where borders lie the caller's depth decides: ours is 25 frames deeper in the network.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def duel(benchmark, rounds, pipeline, call):
    """Equal images first."""
    steps = 3 if benchmark.disabled else STEPS
    pipeline.set_progress_bar_config(disable=True)
    fast = accelerate(pipeline)

    def image(pipe):
        drawn = pipe(**call, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
        return torch.as_tensor(drawn.images)

    def side(pipe):
        return Side(lambda calls: on_a_new_stack(lambda: image(pipe)), most=1)

    want = image(pipeline)
    assert (image(fast) - want).abs().max() < 1e-4 * want.abs().max()
    contest(benchmark, side(fast), {"pipeline": side(pipeline)}, BOUND, rounds=rounds, steps=steps)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_stable_diffusion(benchmark, rounds, one_thread, network, scheduler):
    """Guided, without a bar or a callback."""
    pipeline, call = stable_diffusion(*NETWORKS[network])
    pipeline.scheduler = scheduler_of(scheduler)
    duel(benchmark, rounds, pipeline, call)


def test_with_a_callback(benchmark, rounds, one_thread):
    """Which is shown each state."""
    pipeline, call = stable_diffusion(*NETWORKS["tiny"])
    duel(benchmark, rounds, pipeline, call | {"callback_on_step_end": lambda pipe, i, t, tensors: tensors})


@pytest.mark.parametrize("network", NETWORKS)
def test_pixels(benchmark, rounds, one_thread, network):
    """With noise in each step."""
    duel(benchmark, rounds, *pixels(*NETWORKS[network]))


@pytest.mark.parametrize("network", TRANSFORMERS)
def test_flux(benchmark, rounds, one_thread, network):
    """One evaluation a step, of the scheduler whose steps cost the least."""
    duel(benchmark, rounds, *flux(*TRANSFORMERS[network]))
