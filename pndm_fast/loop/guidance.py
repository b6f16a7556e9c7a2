"""What guidance asks for, and the one rule of rescaling, which is not linear and so no part of a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop.network import check_model
from pndm_fast.plan.checks import shown
from pndm_fast.plan.hints import in_words
from pndm_fast.plan.numbers import is_number
from pndm_fast.plan.plan import check_interval

CALLS = ("auto", "batched", "separate")


# what a scale, a rescaling and an interval are called elsewhere
_SCALE = dict.fromkeys(("guidance", "guidance_scale", "cfg", "cfg_scale", "cond_scale", "true_cfg_scale", "w"), "scale")
_REST = {"guidance_rescale": "rescale", "phi": "rescale", "cfg_interval": "interval", "guidance_interval": "interval"}


@in_words("Guidance", **_SCALE, **_REST)
@dataclass(frozen=True, eq=False)
class Guidance:
    """Classifier-free guidance: out = uncond + scale (cond - uncond). Ho & Salimans 2022, arXiv:2207.12598, eq. 6.

    Args:
        scale: one number, or one for each row; None is the plan's own.
        interval: (low, high) in sigma/alpha: the scale holds for rows called within, see `Plan.with_guidance`; the
            others have scale 1, which mostly takes one evaluation.
        rescale: phi in [0, 1] of result = phi out std(cond) / std(out) + (1 - phi) out, std over a sample's elements.
            Lin et al. 2023, arXiv:2305.08891, eq. 14 to 16. It costs a pass of its own; scale 1 is left alone.
            Not for plans that keep unconditional outputs or multiply the scale.
        weaker: another, weaker network for the second evaluation (autoguidance, Karras et al. 2024, arXiv:2406.02507),
            called with the request's uncond, or with cond where that is not given.
        calls: batched is one network call on [uncond; cond], separate two; auto batches what can be.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    scale: float | Sequence[float] | None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    weaker: Callable[..., Any] | None = None
    calls: str = "auto"

    def __post_init__(self) -> None:
        if self.scale is not None:
            object.__setattr__(self, "scale", _checked_scale(self.scale))
        elif self.interval is not None:
            raise ValueError("interval must come with scale, the guidance inside it")
        if self.interval is not None:
            object.__setattr__(self, "interval", check_interval(self.interval))
        if not is_number(self.rescale) or not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be a number in [0, 1], got {shown(self.rescale)}")
        object.__setattr__(self, "rescale", float(self.rescale))
        if self.weaker is not None:
            check_model(self.weaker, "weaker")
        if self.calls not in CALLS:
            raise ValueError(f"calls must be one of {', '.join(CALLS)}, got {shown(self.calls)}")
        if self.calls == "batched" and self.weaker is not None:
            raise ValueError("calls must be separate or auto with a weaker network, which is called by itself")


def _checked_scale(scale: Any) -> float | tuple[float, ...]:
    """A finite scale, or one for each row."""
    if hasattr(scale, "tolist"):
        scale = scale.tolist()
    several = isinstance(scale, Sequence) and not isinstance(scale, str)
    for g in scale if several else (scale,):
        if isinstance(g, (bool, str)) or not hasattr(g, "__float__"):
            raise TypeError(f"guidance must be a number or one for each row, got {shown(g)}")
        if not math.isfinite(g):
            raise ValueError(f"guidance must be finite, got {g}")
    return tuple(map(float, scale)) if several else float(scale)


def rescaled(out: Tensor, uncond: Tensor, scale: Tensor, phi: float) -> Tensor:
    """The guided output with its deviation taken back to the conditional one's, for scales [B]; at scale 1 out itself.

    Of a constant output, which has no deviation, the guided one stays.
    """
    exact = torch.float64 if out.dtype is torch.float64 else torch.float32
    cond, without = out.to(exact), uncond.to(exact)
    per_sample = (-1, *[1] * (out.dim() - 1))
    scale = scale.to(exact).view(per_sample)
    guided = (cond - without) * scale + without
    deviation, wanted = (_deviations(values.flatten(1)).view(per_sample) for values in (guided, cond))
    factor = torch.where(deviation > 0, wanted / deviation, 1.0)
    result = guided * (factor * phi + (1 - phi))
    return torch.where(scale == 1, cond, result).to(out.dtype)


def _deviations(values: Tensor) -> Tensor:
    """Of each row of [B, n], as `torch.std` has it, whose bits depend on B: a reduction is split by its whole shape."""
    n = values.shape[1]
    away = values - (_sums(values) / n)[:, None]
    return (_sums(away * away) / (n - 1)).sqrt()


def _sums(values: Tensor) -> Tensor:
    """Of each row: the second half added to the first, again and again, an order that n alone decides."""
    while (n := values.shape[1]) > 1:
        half = n // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        values = torch.cat([folded, values[:, -1:]], 1) if n % 2 else folded
    return values[:, 0]
