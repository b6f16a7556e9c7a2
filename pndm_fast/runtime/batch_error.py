"""Whether what a network says of a sample depends on the samples beside it: measured, for nothing promises it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pndm_fast.loop.evaluation import Output


def batch_error(first_output: Callable[[int], Output], sizes: Iterable[int], alone: bool) -> float | None:
    """The largest difference between outputs for one sample, relative to the largest number among them.

    Its batches are copies of it, so that the place in a batch counts too.

    Args:
        first_output: size -> outputs for a batch of so many copies.
        alone: whether one sample by itself is a batch that the network will meet.

    Returns:
        0.0 where all have the same values; infinity where one has NaN, or infinity, and another a number; None where
        the network takes no batch of one, or there is nothing to compare.
    """
    sizes = sorted(set(sizes) | ({1} if alone else set()))
    if sizes == [1]:
        return None
    wanted: list[Tensor] = []
    worst = 0.0
    for size in sizes:
        try:
            outputs = [out for out in first_output(size) if out is not None]
        except Exception:
            if size == 1:  # a network of fixed size: no request of one will meet it alone either
                return None
            raise
        copies = [out.reshape(-1, size, *out.shape[1:]) for out in outputs]
        wanted = wanted or [out[:, :1] for out in copies]
        for out, one in zip(copies, wanted, strict=True):
            worst = max(worst, _relative(out.double(), one.double()))
    return worst


def _relative(out: Tensor, one: Tensor) -> float:
    same = (out == one) | (out.isnan() & one.isnan())
    difference = float(torch.where(same, 0.0, (out - one).abs()).max())
    relative = difference / float(one.abs().max()) if difference and one.any() else difference and math.inf
    return math.inf if math.isnan(relative) else relative
