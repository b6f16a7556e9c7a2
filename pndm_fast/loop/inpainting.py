"""Inpainting: the part of a sample that is known follows its own path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pndm_fast.plan.levels import AnyLevel
from pndm_fast.row.device import upload
from pndm_fast.row.layout import scaled_each


@dataclass(frozen=True)
class Known:
    """What components of the samples are to be.

    After every row x_t = alpha_t known + sigma_t noise where the mask is 0, with the noise that the trajectory started
    from: the replacement of Song et al. 2021, arXiv:2011.13456, section 5, without resampling. Where the mask is m in
    (0, 1) so it is until the fraction 1 - m of the rows has been run: differential diffusion (Levin & Fried 2023,
    arXiv:2306.00950), whose nested masks are m >= 1 - (rows run) / (rows).

    Attributes:
        values: [B, *shape]; mask: the same shape; bool, True where a sample is drawn, or grey, in [0, 1].
    """

    values: Tensor
    mask: Tensor

    @property
    def grey(self) -> bool:
        """Whether the mask has values between 0 and 1."""
        return self.mask.dtype is not torch.bool

    def put(self, y: Tensor, noise: Tensor, levels: list[AnyLevel], left: list[float]) -> None:
        """Write into states y, each at its level; `left` is the fraction of a sample's rows that is to come."""
        mean = scaled_each(self.values.flatten(1), [level.alpha for level in levels])
        path = mean + scaled_each(noise.flatten(1), [level.sigma for level in levels])
        y.copy_(torch.where(self._drawn(left), y, path.view(y.shape)))

    def _drawn(self, left: list[float]) -> Tensor:
        if not self.grey:
            return self.mask
        # rounded as the mask is, so that a mask of 0.7 is drawn after 3 of 10 rows in float32 too
        least = upload(left, self.mask.device, self.mask.dtype).view(-1, *[1] * (self.mask.dim() - 1))
        return (self.mask >= least) & (self.mask > 0)


def known_of(values: Tensor, mask: object, device: torch.device) -> Known:
    """With the mask, checked: it may have any shape that the samples' can be broadcast from.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    if mask.device != device:
        raise ValueError(f"mask must be on {device}, got {mask.device}")
    if mask.is_complex():
        raise TypeError(f"mask must be of real numbers, got {mask.dtype}")
    try:
        whole = mask.detach().expand(values.shape)
    except RuntimeError as error:
        raise ValueError(f"mask must fit {tuple(values.shape)}, got {tuple(mask.shape)}") from error
    outside = mask[~((mask >= 0) & (mask <= 1))]
    if outside.numel():
        raise ValueError(
            f"mask must be in [0, 1], 0 where the samples are known and 1 where they are drawn, got {outside[0].item()}"
        )
    if bool(((mask == 0) | (mask == 1)).all()):
        return Known(values, whole.bool())
    return Known(values, whole if mask.dtype is torch.float64 else whole.float())
