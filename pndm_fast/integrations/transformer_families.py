"""The pipelines around transformers: DiT, PixArt, Stable Diffusion 3, FLUX and Wan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pndm_fast.integrations.family import Arguments, Family, classifier_free, unguided
from pndm_fast.loop.guidance import Guidance
from pndm_fast.plan.plan import Plan


def _above_one(pipe: Any, arguments: Arguments) -> Guidance | None:
    """As pipelines do that hold no scale."""
    scale = arguments["guidance_scale"]
    return Guidance(scale) if scale > 1 else None


def _unscaled(plan: Plan) -> None:
    """DiT's loop hands what was scaled for the network on to the next step.

    Raises:
        ValueError: the scheduler scales.
    """
    if not plan.unscaled:
        raise ValueError(
            f"scheduler must leave the network's input as it is in a DiTPipeline, got {plan.solver}: the pipeline's "
            "steps go on from the scaled input"
        )


def _several_steps(plan: Plan) -> None:
    """PixArt-alpha's loop takes of a single step not the sample, but what a scheduler returns second.

    Raises:
        ValueError: that is not the sample without noise.
    """
    if len(plan) == 1 and not plan.solver.startswith("lcm"):
        raise ValueError(
            "num_inference_steps must be 2 or more in an accelerated PixArtAlphaPipeline, got 1: of a single step the "
            "pipeline takes the second thing that a scheduler returns, known of LCMScheduler alone"
        )


def _true(pipe: Any, arguments: Arguments) -> Guidance | None:
    """FLUX is guided where there is something to be guided from; its guidance_scale is told to the network."""
    embeddings = arguments["negative_prompt_embeds"], arguments["negative_pooled_prompt_embeds"]
    against = arguments["negative_prompt"] is not None or not any(one is None for one in embeddings)
    scale = arguments["true_cfg_scale"]
    return Guidance(scale) if scale > 1 and against else None


def _below_boundary(pipe: Any, arguments: Arguments) -> Sequence[int]:
    """Wan's second network takes the rows below the boundary."""
    times = pipe.scheduler.timesteps
    if pipe.config.boundary_ratio is None:
        return [0] * len(times)
    high = times >= pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    return [1 - int(one) for one in high.tolist()]


def _by_network(pipe: Any, arguments: Arguments) -> Guidance | None:
    """Wan's networks have a scale each; the first one's says whether there is guidance."""
    if not pipe.do_classifier_free_guidance:
        return None
    scale, second = arguments["guidance_scale"], arguments["guidance_scale_2"]
    if second is None or second == scale:
        return Guidance(scale)
    return Guidance([second if low else scale for low in _below_boundary(pipe, arguments)])


_TOKENS = Family(networks=("transformer",), sample="hidden_states")
_DIT = replace(
    _TOKENS,
    per_sample=frozenset({"class_labels"}),
    guidance=_above_one,
    cond_first=True,
    doubled=True,
    check_plan=_unscaled,
)
_PIXART = replace(
    _TOKENS,
    per_sample=frozenset({"encoder_hidden_states", "encoder_attention_mask", "added_cond_kwargs"}),
    guidance=_above_one,
    check_plan=_several_steps,
)
_SD3 = replace(
    _TOKENS,
    per_sample=frozenset({"encoder_hidden_states", "pooled_projections", "joint_attention_kwargs"}),
    guidance=classifier_free,
    refused={"skip_guidance_layers": (None, "guidance by skipped layers is a third evaluation of the network")},
)
_FLUX = replace(
    _TOKENS,
    per_sample=frozenset({"encoder_hidden_states", "pooled_projections", "guidance", "joint_attention_kwargs"}),
    guidance=_true,
    told=lambda t: t / 1000,
    channels=2,
)
_WAN = replace(
    _TOKENS,
    networks=("transformer", "transformer_2"),
    per_sample=frozenset({"encoder_hidden_states", "encoder_hidden_states_image"}),
    guidance=_by_network,
    models=_below_boundary,
)

TRANSFORMERS: dict[str, Family] = {
    "DiTPipeline": _DIT,
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": replace(_PIXART, check_plan=None),
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": replace(_SD3, known=True),
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": replace(_FLUX, known=True),
    "FluxFillPipeline": replace(_FLUX, guidance=unguided),
    "FluxKontextPipeline": replace(_FLUX, channels=1, answered=True),
    "FluxControlPipeline": replace(_FLUX, guidance=unguided),
    "WanPipeline": _WAN,
    "WanVideoToVideoPipeline": replace(_WAN, guidance=classifier_free, models=None),
    "WanImageToVideoPipeline": replace(_WAN, in_place=True),
}
