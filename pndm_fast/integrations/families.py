"""The pipelines of diffusers whose loop is known, and what each does in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pndm_fast.integrations.family import Family, classifier_free
from pndm_fast.integrations.transformer_families import TRANSFORMERS

_CALLBACK = {
    name: (None, "it is deprecated by diffusers: callback_on_step_end is called after each step")
    for name in ("callback", "callback_steps")
}
_PIXELS = Family()
_DIFFUSION = Family(
    per_sample=frozenset({"encoder_hidden_states", "timestep_cond", "added_cond_kwargs"}),
    guidance=classifier_free,
    refused=_CALLBACK,
)
_INPAINT = replace(_DIFFUSION, known=True)
_CONSISTENCY = replace(_DIFFUSION, denoised=True)

FAMILIES: dict[str, Family] = {
    "DDPMPipeline": _PIXELS,
    "DDIMPipeline": _PIXELS,
    "StableDiffusionPipeline": _DIFFUSION,
    "StableDiffusionImg2ImgPipeline": _DIFFUSION,
    "StableDiffusionInpaintPipeline": _INPAINT,
    "LatentConsistencyModelPipeline": _CONSISTENCY,
    "LatentConsistencyModelImg2ImgPipeline": _CONSISTENCY,
    "StableDiffusionXLPipeline": _DIFFUSION,
    "StableDiffusionXLImg2ImgPipeline": _DIFFUSION,
    "StableDiffusionXLInpaintPipeline": _INPAINT,
    **TRANSFORMERS,
}


def family_of(pipe: Any) -> Family:
    """Of the class of diffusers whose `__call__` a pipeline has.

    Raises:
        TypeError: none that is known.
    """
    kind: Any = getattr(type(pipe), "_accelerated", type(pipe))
    known = [base for base in kind.__mro__ if base.__name__ in FAMILIES and base.__module__.startswith("diffusers.")]
    if known and kind.__call__ is known[0].__call__:
        return FAMILIES[known[0].__name__]
    name, why = kind.__name__, "its loop is not known"
    if known:
        why = "it has a __call__ of its own"
    elif "ControlNet" in name or "Adapter" in name:
        why = "in its loop a second network is called, whose outputs are the first one's conditioning"
    raise TypeError(f"pipe must be one of {', '.join(FAMILIES)}, got {name}: {why}")
