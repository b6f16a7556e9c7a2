"""diffusers' pipelines around tiny random networks, made in code: nothing is downloaded.

Text is given as embeddings, so that no encoder is needed. Networks of the pixel pipelines predict x_0, whose images are
not cut off; those of latent diffusion v, whose latents stay as large as the noise.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch

LATENT_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNENCODED = {"text_encoder": None, "tokenizer": None}
SIZE = {"height": 8, "width": 8}


def run(pipeline: Any, scheduler: Any, *, steps: int = 5, seed: int = 1, **call: Any) -> torch.Tensor:
    """What a pipeline makes with that scheduler."""
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **call)
    return torch.as_tensor(made.frames if hasattr(made, "frames") else made.images)


def tell(drawn: dict[str, torch.Tensor]) -> None:
    """Print how far each is from the first, relatively."""
    first = next(iter(drawn.values()))
    for name, made in drawn.items():
        print(f"{name}: {(made - first).norm() / first.norm():.1e}")


def _random(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _seeded(make: Any, **config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**config).eval()


def _vae(channels: int) -> Any:
    return _seeded(
        diffusers.AutoencoderKL, block_out_channels=(8,), latent_channels=channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), shift_factor=0.1,
    )  # fmt: skip


@cache
def pixels() -> Any:
    """A UNet2DModel."""
    return _seeded(
        diffusers.UNet2DModel, sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip


@cache
def stable_diffusion(kind: str = "", channels: int = 4) -> tuple[Any, dict[str, Any]]:
    """StableDiffusion...Pipeline with the arguments of a call: "", "Img2Img" or "Inpaint" (of 4 or 9 channels)."""
    unet = _seeded(
        diffusers.UNet2DConditionModel, sample_size=8, in_channels=channels, block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    made = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(
        vae=_vae(4), unet=unet, scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1), **UNENCODED,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    call: dict[str, Any] = {"prompt_embeds": _random((1, 5, 8)), "negative_prompt_embeds": _random((1, 5, 8), 1)}
    call["output_type"] = "latent"
    return made, call | _images(kind)


def _images(kind: str) -> dict[str, Any]:
    """What a pipeline of that kind is given besides its text."""
    image = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(2))
    if kind == "":
        return {**SIZE}
    if kind == "Img2Img":
        return {"image": image, "strength": 0.6}
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    return SIZE | {"image": image, "mask_image": mask, "strength": 0.8}


@cache
def consistency() -> tuple[Any, dict[str, Any]]:
    """LatentConsistencyModelPipeline, whose network is told the guidance."""
    unet = _seeded(
        diffusers.UNet2DConditionModel, sample_size=8, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4, time_cond_proj_dim=32,
    )  # fmt: skip
    pipeline = diffusers.LatentConsistencyModelPipeline(
        vae=_vae(4), unet=unet, scheduler=diffusers.LCMScheduler(), **UNENCODED,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipeline, {"prompt_embeds": _random((1, 5, 8)), "output_type": "latent"} | SIZE


@cache
def stable_diffusion_xl(kind: str = "", channels: int = 4) -> tuple[Any, dict[str, Any]]:
    """StableDiffusionXL...Pipeline, as `stable_diffusion`."""
    unet = _seeded(
        diffusers.UNet2DConditionModel, sample_size=8, in_channels=channels, block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    )  # fmt: skip
    pipeline = getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")(
        vae=_vae(4), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), **UNENCODED,
        text_encoder_2=None, tokenizer_2=None, add_watermarker=False,
    )  # fmt: skip
    embeddings = {"prompt_embeds": _random((1, 5, 8)), "pooled_prompt_embeds": _random((1, 16), 1)}
    negative = {f"negative_{name}": -value for name, value in embeddings.items()}
    return pipeline, embeddings | negative | _images(kind) | {"output_type": "latent"}


@cache
def dit() -> tuple[Any, dict[str, Any]]:
    network = _seeded(
        diffusers.DiTTransformer2DModel, sample_size=4, num_layers=1, patch_size=2, attention_head_dim=4,
        num_attention_heads=2, in_channels=4, out_channels=8, attention_bias=True, norm_type="ada_norm_zero",
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_elementwise_affine=False,
    )  # fmt: skip
    pipeline = diffusers.DiTPipeline(network, _vae(4), diffusers.DDIMScheduler(clip_sample=False))
    return pipeline, {"class_labels": [1, 2], "output_type": "np"}


@cache
def stable_diffusion_3() -> tuple[Any, dict[str, Any]]:
    network = _seeded(
        diffusers.SD3Transformer2DModel, sample_size=8, patch_size=1, in_channels=4, num_layers=1,
        attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
        pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=network, vae=_vae(4), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **UNENCODED,
        text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    embeddings = {"prompt_embeds": _random((1, 5, 32)), "pooled_prompt_embeds": _random((1, 16), 1)}
    negative = {f"negative_{name}": -value for name, value in embeddings.items()}
    return pipeline, embeddings | negative | SIZE | {"output_type": "latent"}


@cache
def flux() -> tuple[Any, dict[str, Any]]:
    network = _seeded(
        diffusers.FluxTransformer2DModel, patch_size=1, in_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    pipeline = diffusers.FluxPipeline(
        transformer=network, vae=_vae(1), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **UNENCODED,
        text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    embeddings = {"prompt_embeds": _random((1, 5, 32)), "pooled_prompt_embeds": _random((1, 32), 1)}
    return pipeline, embeddings | SIZE | {"output_type": "latent"}


@cache
def wan() -> tuple[Any, dict[str, Any]]:
    network = _seeded(
        diffusers.WanTransformer3DModel, patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12,
        in_channels=16, out_channels=16, text_dim=32, freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLWan, base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    flow = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    pipeline = diffusers.WanPipeline(transformer=network, vae=vae, scheduler=flow, **UNENCODED)
    call = {"prompt_embeds": _random((1, 5, 32)), "negative_prompt_embeds": _random((1, 5, 32), 1)}
    return pipeline, call | {"height": 16, "width": 16, "num_frames": 5, "output_type": "latent"}
