"""Whether a network works in channels-last memory: what the caller says, else what its weights do."""

from __future__ import annotations

from typing import Any

import torch

from pndm_fast.loop.tensors import tensors_in

# by the number of dimensions of a batch
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def check_memory_format(asked: Any, shape: tuple[int, ...]) -> torch.memory_format | None:
    """None, or a format that a batch of that shape can have.

    Raises:
        TypeError, ValueError: anything else.
    """
    if asked is None:
        return None
    if not isinstance(asked, torch.memory_format):
        raise TypeError(f"memory_format must be a torch.memory_format, got {asked!r}")
    possible = [torch.contiguous_format, CHANNELS_LAST.get(len(shape))]
    if asked not in possible:
        names = " or ".join(str(one) for one in possible if one is not None)
        raise ValueError(f"memory_format must be {names} for shape {shape}, got {asked}")
    return asked


def channels_for(model: Any, asked: torch.memory_format | None, shape: tuple[int, ...]) -> int:
    """C where a network's inputs [B, *shape] are to be channels-last, else 1.

    That is what was asked for; else where convolution weights lie so, as `model.to(memory_format=...)` leaves them.
    """
    if asked is None:
        last = CHANNELS_LAST.get(1 + len(shape))
        return shape[0] if last is not None and _weights_lie(model, last) else 1
    return 1 if asked is torch.contiguous_format else shape[0]


def _weights_lie(model: Any, last: torch.memory_format) -> bool:
    return any(
        w.dim() == (4 if last is torch.channels_last else 5)
        and w.layout is torch.strided
        and not w.is_contiguous()
        and w.is_contiguous(memory_format=last)
        for w in tensors_in(model, "parameters")
    )
