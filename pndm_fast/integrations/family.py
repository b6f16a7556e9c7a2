"""What a pipeline's loop does between two steps, as data, and what several pipelines have in common of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pndm_fast.loop.guidance import Guidance
from pndm_fast.plan.checks import shown
from pndm_fast.plan.plan import Plan

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
        networks: the pipeline's attributes that are called in the loop, of which any but one may be missing.
        models: (pipeline, arguments of the call) -> which of them each step calls; None for the first.
        sample, time: what these call their first two arguments.
        per_sample: their arguments with one entry for each sample; all others are the same for all.
        guidance: (pipeline, arguments of the call) -> its guidance, None without.
        cond_first: whether of a batch for guidance the first half is the conditional one.
        doubled: whether the scheduler steps both halves of that batch, which are alike.
        told: what is done to the time before it is told.
        channels: the dimension of the network's input that may hold more than the samples, behind them.
        answered: whether the network answers for what stands behind the samples too.
        in_place: whether `prepare_latents` gives data and a mask too, which stand in the network's input alone.
        known: whether `prepare_latents` and `prepare_mask_latents` give parts of the samples, put back after each step
            where the network takes no more than those.
        denoised: whether what is shown is not the sample after the last step, but what was denoised in it.
        refused: arguments of the call, with the value at which they do nothing and why no other can be had.
        check_plan: refuses a plan that does not go with the loop.
    """

    networks: tuple[str, ...] = ("unet",)
    models: Callable[[Any, Arguments], Sequence[int]] | None = None
    sample: str = "sample"
    time: str = "timestep"
    per_sample: frozenset[str] = frozenset()
    guidance: Callable[[Any, Arguments], Guidance | None] = unguided
    cond_first: bool = False
    doubled: bool = False
    told: Callable[[Tensor], Tensor] | None = None
    channels: int = 1
    answered: bool = False
    in_place: bool = False
    known: bool = False
    denoised: bool = False
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    check_plan: Callable[[Plan], None] | None = None

    def check(self, arguments: Arguments) -> None:
        """Refuse a call for what its loop would do besides.

        Raises:
            ValueError: naming the argument.
        """
        for name, (idle, why) in self.refused.items():
            value = arguments.get(name, idle)
            if value is not idle and not (isinstance(value, (bool, int, float, str)) and value == idle):
                raise ValueError(f"{name} must be {idle!r} in an accelerated pipeline, got {shown(value)}: {why}")
