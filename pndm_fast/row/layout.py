"""Dense memory layouts: contiguous, or channels-last with C channels; and coefficients on samples in either."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pndm_fast.plan.matrix2 import Coefficient, components, stacked
from pndm_fast.row.device import upload


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


@functools.cache
def name_of(dtype: torch.dtype) -> str:
    """As in numpy: float32."""
    return str(dtype).removeprefix("torch.")


def elements(shape: tuple[int, ...]) -> int:
    """n."""
    return math.prod(shape)


def scaled(values: Tensor, coefficient: Coefficient) -> Tensor:
    """coefficient values, of [B, n]; a matrix acts on the two components of the n."""
    if not isinstance(coefficient, tuple):
        return values if coefficient == 1.0 else values * coefficient
    position, momentum = values.chunk(2, dim=1)
    return torch.cat([position * on_position + momentum * on_momentum for on_position, on_momentum in coefficient], 1)


def scaled_each(values: Tensor, coefficients: Sequence[Coefficient]) -> Tensor:
    """The same with a coefficient for each sample."""
    count = components(coefficients)
    matrices = upload(stacked(coefficients, count), values.device, values.dtype)
    split = values.chunk(count, dim=1)
    rows = [[component * matrices[:, i, j, None] for j, component in enumerate(split)] for i in range(count)]
    return torch.cat([functools.reduce(torch.add, terms) for terms in rows], dim=1)
