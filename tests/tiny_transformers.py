"""More of diffusers' pipelines around tiny random transformers, in the manner of `tiny_pipelines`."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import diffusers
import tiny_pipelines as tiny
import torch
import transformers
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection


def _seeded(make: Any, seed: int = 0, **config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(**config).eval()


def settings(pipeline: Any) -> dict[str, Any]:
    """What Wan's pipelines are made with besides their parts."""
    return {name: pipeline.config[name] for name in ("boundary_ratio", "expand_timesteps") if name in pipeline.config}


def _image(size: int) -> torch.Tensor:
    return torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(2))


@cache
def pixart(kind: str = "Alpha", variance: bool = True, size: int = 8) -> tuple[Any, dict[str, Any]]:
    """PixArt...Pipeline, "Alpha" or "Sigma"; a sample size of 128 is told the resolution too."""
    network = _seeded(
        diffusers.PixArtTransformer2DModel, sample_size=size, num_layers=1, patch_size=2, attention_head_dim=8,
        num_attention_heads=3, in_channels=4, out_channels=8 if variance else 4, cross_attention_dim=24,
        caption_channels=8, norm_elementwise_affine=False, norm_type="ada_norm_single",
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler()
    made = getattr(diffusers, f"PixArt{kind}Pipeline")(
        transformer=network, vae=tiny._vae(4), scheduler=scheduler, **tiny.UNENCODED
    )
    mask = torch.ones(1, 5)
    call = {"prompt_embeds": tiny._random((1, 5, 8)), "prompt_attention_mask": mask, "use_resolution_binning": False}
    cut = mask.clone()
    cut[:, 3:] = 0
    negative = {"negative_prompt_embeds": tiny._random((1, 5, 8), 1), "negative_prompt_attention_mask": cut}
    # without these names PixArt-alpha looks for a text to encode
    return made, call | negative | tiny.SIZE | {"negative_prompt": None, "output_type": "latent"}


def _filled() -> dict[str, Any]:
    """An image, and a mask that leaves half of it."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    return {"image": _image(8), "mask_image": mask}


@cache
def stable_diffusion_3(kind: str, channels: int = 16) -> tuple[Any, dict[str, Any]]:
    """StableDiffusion3...Pipeline, "Img2Img" or "Inpaint" (of 16 or 33 channels)."""
    pipeline, call = tiny.stable_diffusion_3()
    parts = dict(pipeline.components)
    if kind == "Inpaint":
        config = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith("_")}
        config |= {"in_channels": channels, "out_channels": 16}
        parts |= {"transformer": _seeded(diffusers.SD3Transformer2DModel, **config), "vae": tiny._vae(16)}
    made = getattr(diffusers, f"StableDiffusion3{kind}Pipeline")(**parts)
    return made, call | ({"image": _image(8)} if kind == "Img2Img" else _filled()) | {"strength": 0.6}


@cache
def stable_diffusion_3_with_image() -> tuple[Any, dict[str, Any]]:
    """StableDiffusion3Pipeline with an adapter of random weights that embeddings of images are given to."""
    pipeline, call = tiny.stable_diffusion_3()
    network = copy.deepcopy(pipeline.transformer)
    network.image_proj = _seeded(
        IPAdapterTimeImageProjection, embed_dim=6, output_dim=12, hidden_dim=16, depth=1, dim_head=4, heads=4,
        num_queries=3, timestep_in_dim=16,
    )  # fmt: skip
    sizes = {"hidden_size": 32, "ip_hidden_states_dim": 12, "head_dim": 8, "timesteps_emb_dim": 16}
    network.transformer_blocks[0].attn.set_processor(_seeded(SD3IPAdapterJointAttnProcessor2_0, **sizes))
    made = diffusers.StableDiffusion3Pipeline(**{**pipeline.components, "transformer": network})
    return made, call | {"ip_adapter_image_embeds": tiny._random((2, 5, 6), 4)}


@cache
def flux(kind: str = "", negative: bool = True) -> tuple[Any, dict[str, Any]]:
    """Flux...Pipeline, "", "Img2Img", "Inpaint" or "Kontext", mostly guided by what is said against too."""
    pipeline, call = tiny.flux()
    if negative:
        embeddings = {"negative_prompt_embeds": (1, 5, 32), "negative_pooled_prompt_embeds": (1, 32)}
        call = call | {name: tiny._random(shape, 2) for name, shape in embeddings.items()} | {"true_cfg_scale": 3.0}
    if kind == "":
        return pipeline, call
    parts = {
        name: part for name, part in pipeline.components.items() if name not in ("image_encoder", "feature_extractor")
    }
    images: dict[str, Any] = {"image": _image(8)} if kind != "Inpaint" else _filled()
    images |= {"width": 16, "max_area": 128, "_auto_resize": False} if kind == "Kontext" else {"strength": 0.6}
    made = {**parts, "image_encoder": None, "feature_extractor": None} if kind == "Kontext" else parts
    return getattr(diffusers, f"Flux{kind}Pipeline")(**made), call | images


@cache
def flux_behind(kind: str) -> tuple[Any, dict[str, Any]]:
    """Flux...Pipeline of a network that sees an image behind the samples, "Fill" or "Control"."""
    pipeline, call = tiny.flux()
    packed = {"Fill": 2 * 4 + 4, "Control": 2 * 4}[kind]  # tokens hold 2 x 2 elements
    config = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith("_")}
    network = _seeded(diffusers.FluxTransformer2DModel, **config | {"in_channels": packed, "out_channels": 4})
    made = getattr(diffusers, f"Flux{kind}Pipeline")(
        transformer=network, vae=pipeline.vae, scheduler=pipeline.scheduler, **tiny.UNENCODED,
        text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    if kind == "Control":
        return made, call | {"control_image": _image(8)}
    return made, call | _filled()


@cache
def flux_with_image() -> tuple[Any, dict[str, Any]]:
    """FluxPipeline with an adapter of random weights that embeddings of images are given to."""
    pipeline, call = flux()
    network, draw = copy.deepcopy(pipeline.transformer), torch.Generator().manual_seed(5)
    keys = {f"0.to_{kind}_ip.weight": torch.randn(32, 32, generator=draw) for kind in "kv"}
    keys |= {f"0.to_{kind}_ip.bias": torch.randn(32, generator=draw) for kind in "kv"}
    image = {"proj.weight": torch.randn(4 * 32, 6, generator=draw), "proj.bias": torch.zeros(4 * 32)}
    image |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    network._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": keys}], low_cpu_mem_usage=False)
    made = diffusers.FluxPipeline(**{**pipeline.components, "transformer": network})
    names = ("ip_adapter_image_embeds", "negative_ip_adapter_image_embeds")
    return made, call | {name: [torch.randn(1, 1, 6, generator=draw)] for name in names}


def _wan_network(seed: int, **config: Any) -> Any:
    return _seeded(
        diffusers.WanTransformer3DModel, seed, patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12,
        out_channels=16, text_dim=32, freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32, **config,
    )  # fmt: skip


@cache
def wan(*, two: bool = False, expand: bool = False) -> tuple[Any, dict[str, Any]]:
    """WanPipeline: of two networks, or told a time for each token."""
    pipeline, call = tiny.wan()
    parts = {**pipeline.components, "transformer": _wan_network(0, in_channels=16)}
    if two:
        parts["transformer_2"] = _wan_network(1, in_channels=16)
    return diffusers.WanPipeline(**parts, boundary_ratio=0.8 if two else None, expand_timesteps=expand), call


@cache
def wan_from_image(*, two: bool = False, expand: bool = False) -> tuple[Any, dict[str, Any]]:
    """WanImageToVideoPipeline: what is known stands in more channels, or in the place of the first frame."""
    pipeline, call = tiny.wan()
    channels = 16 if expand else 16 + 4 + 16
    images = {} if expand or two else {"image_dim": 8, "added_kv_proj_dim": 24}
    parts = {**pipeline.components, "transformer": _wan_network(0, in_channels=channels, **images)}
    if two:
        parts["transformer_2"] = _wan_network(1, in_channels=channels)
    seen = _image_encoder() if images else {"image_encoder": None, "image_processor": None}
    made = diffusers.WanImageToVideoPipeline(
        **parts, **seen, boundary_ratio=0.8 if two else None, expand_timesteps=expand
    )
    return made, call | {"image": _image(16)}


@cache
def wan_from_video() -> tuple[Any, dict[str, Any]]:
    """WanVideoToVideoPipeline."""
    pipeline, call = tiny.wan()
    parts = {name: part for name, part in pipeline.components.items() if name != "transformer_2"}
    video = torch.rand((1, 5, 3, 16, 16), generator=torch.Generator().manual_seed(2))
    kept = {name: value for name, value in call.items() if name != "num_frames"}
    return diffusers.WanVideoToVideoPipeline(**parts), kept | {"video": video, "strength": 0.6}


def _image_encoder() -> dict[str, Any]:
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=4, patch_size=2
    )
    sizes = {"size": {"shortest_edge": 4}, "crop_size": {"height": 4, "width": 4}, "do_rescale": False}
    encoder = _seeded(lambda: transformers.CLIPVisionModel(config))
    return {"image_encoder": encoder, "image_processor": transformers.CLIPImageProcessor(**sizes)}
