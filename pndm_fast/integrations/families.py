"""The pipelines of diffusers whose loop is known, and what each does in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pndm_fast.loop.guidance import Guidance
from pndm_fast.plan.checks import shown

Arguments = Mapping[str, Any]


def unguided(pipe: Any, arguments: Arguments) -> Guidance | None:
    """No second evaluation."""
    return None


def classifier_free(pipe: Any, arguments: Arguments) -> Guidance | None:
    """As the pipeline's own properties say in a call."""
    if not pipe.do_classifier_free_guidance:
        return None
    return Guidance(pipe.guidance_scale, rescale=getattr(pipe, "guidance_rescale", None) or 0.0)


@dataclass(frozen=True)
class Family:
    """What a pipeline's loop does between two steps, as data.

    Attributes:
        networks: the pipeline's attributes that are called in the loop.
        sample, time: what these call their first two arguments.
        per_sample: their arguments with one entry for each sample; all others are the same for all.
        guidance: (pipeline, arguments of the call) -> its guidance, None without.
        cond_first: whether of a batch for guidance the first half is the conditional one.
        doubled: whether the scheduler steps both halves of that batch, which are alike.
        told: what is done to the time before it is told.
        channels: the dimension of the network's input that may hold more than the samples, behind them.
        known: whether `prepare_latents` and `prepare_mask_latents` give parts of the samples, put back after each step
            where the network takes no more than those.
        refused: arguments of the call, with the value at which they do nothing and why no other can be had.
    """

    networks: tuple[str, ...] = ("unet",)
    sample: str = "sample"
    time: str = "timestep"
    per_sample: frozenset[str] = frozenset()
    guidance: Callable[[Any, Arguments], Guidance | None] = unguided
    cond_first: bool = False
    doubled: bool = False
    told: Callable[[Tensor], Tensor] | None = None
    channels: int = 1
    known: bool = False
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    def check(self, arguments: Arguments) -> None:
        """Refuse a call for what its loop would do besides.

        Raises:
            ValueError: naming the argument.
        """
        for name, (idle, why) in self.refused.items():
            value = arguments.get(name, idle)
            if value is not idle and not (isinstance(value, (bool, int, float, str)) and value == idle):
                raise ValueError(f"{name} must be {idle!r} in an accelerated pipeline, got {shown(value)}: {why}")


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

FAMILIES: dict[str, Family] = {
    "DDPMPipeline": _PIXELS,
    "DDIMPipeline": _PIXELS,
    "StableDiffusionPipeline": _DIFFUSION,
    "StableDiffusionImg2ImgPipeline": _DIFFUSION,
    "StableDiffusionInpaintPipeline": _INPAINT,
    "LatentConsistencyModelPipeline": _DIFFUSION,
    "LatentConsistencyModelImg2ImgPipeline": _DIFFUSION,
    "StableDiffusionXLPipeline": _DIFFUSION,
    "StableDiffusionXLImg2ImgPipeline": _DIFFUSION,
    "StableDiffusionXLInpaintPipeline": _INPAINT,
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
