"""Dense memory layouts: contiguous, or channels-last with C channels."""

from __future__ import annotations

import math

from torch import Tensor


def channels_of(tensor: Tensor) -> int | None:
    """1 for a contiguous [B, ...], C for a channels-last [B, C, ...], None for anything else."""
    if tensor.is_contiguous():
        return 1
    if tensor.dim() > 2 and tensor.movedim(1, -1).is_contiguous():
        return tensor.shape[1]
    return None


def flatten(tensor: Tensor, channels: int) -> Tensor:
    """[B, ...] -> [B, n] in physical order; a view where the tensor already has that layout."""
    return (tensor if channels == 1 else tensor.movedim(1, -1)).reshape(tensor.shape[0], -1)


def unflatten(flat: Tensor, shape: tuple[int, ...], channels: int) -> Tensor:
    """View [B, n] in physical order as [B, *shape]; flat must be dense."""
    if channels == 1:
        return flat.view(flat.shape[0], *shape)
    return flat.view(flat.shape[0], *shape[1:], shape[0]).movedim(-1, 1)


def describe(tensor: Tensor) -> str:
    """A layout in words, for messages."""
    channels = channels_of(tensor)
    names = {None: f"strides {tuple(tensor.stride())}", 1: "contiguous"}
    return names.get(channels, "channels_last")


def elements(shape: tuple[int, ...]) -> int:
    """n."""
    return math.prod(shape)
