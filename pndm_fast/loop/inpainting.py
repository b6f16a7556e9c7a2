"""Inpainting: the part of a sample that is known follows its own path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pndm_fast.plan.levels import AnyLevel
from pndm_fast.row.layout import scaled_each


@dataclass(frozen=True)
class Known:
    """What components of the samples are to be.

    After every row x_t = alpha_t known + sigma_t noise where the mask is 0, with the noise that the trajectory started
    from: the replacement of Song et al. 2021, arXiv:2011.13456, section 5, without resampling.

    Attributes:
        values: [B, *shape]; mask: bool, the same shape, True where a sample is drawn.
    """

    values: Tensor
    mask: Tensor

    def put(self, y: Tensor, noise: Tensor, levels: list[AnyLevel]) -> None:
        """Write into states y, each at its level."""
        mean = scaled_each(self.values.flatten(1), [level.alpha for level in levels])
        path = mean + scaled_each(noise.flatten(1), [level.sigma for level in levels])
        y.copy_(torch.where(self.mask, y, path.view(y.shape)))


def known_of(values: Tensor, mask: object, device: torch.device) -> Known:
    """With the mask, checked: it may have any shape that the samples' can be broadcast from.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    if mask.device != device:
        raise ValueError(f"mask must be on {device}, got {mask.device}")
    try:
        whole = mask.expand(values.shape)
    except RuntimeError as error:
        raise ValueError(f"mask must fit {tuple(values.shape)}, got {tuple(mask.shape)}") from error
    if not bool(((whole == 0) | (whole == 1)).all()):
        raise ValueError("mask must be 1 where the samples are drawn and 0 where they are known, got other values")
    return Known(values, whole.bool())
