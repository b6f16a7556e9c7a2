"""The memory that one trajectory works in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # what a network may take and return
NEVER = 2**31 - 1  # first_bad of a sample that stayed finite
ALIGN = 16  # elements: rows of our buffers start on vector boundaries, so that no backend needs a scalar path


@dataclass(frozen=True)
class Registers:
    """Buffers of a batch of B samples with n elements each; H is 2 under guidance, else 1.

    Sample b's elements lie at [b, :n] in the physical order of the network's output; rows are `stride` apart, n rounded
    up to `ALIGN`. `net_in` is None where y itself is what the network reads.

    Attributes:
        x: anchor, [B, stride], float32 (float64 for exact runs).
        y: state, the same.
        slots: past converted outputs, [S, B, stride].
        row: the table row that each sample executes next, int32 [B].
        t: the network's time input, [H B].
        net_in: the network's input, [H B, n] in its dtype: (uncond, cond) cfg_copies hold the same values.
        seeds: the bits of 64-bit seeds, int64 [B].
        first_bad: the table row at which a sample's output was first not finite, else NEVER; int32 [B].
        active: how many samples have not reached their halt row; int32 [1].
        done: the row protocol's tickets, zero between launches; int32 [B].
        n: elements per sample.
        channels: C where samples are stored channels-last [n / C, C], else 1.
    """

    x: Tensor
    y: Tensor
    slots: Tensor
    row: Tensor
    t: Tensor
    net_in: Tensor | None
    seeds: Tensor
    first_bad: Tensor
    active: Tensor
    done: Tensor
    n: int
    channels: int = 1

    @property
    def batch(self) -> int:
        """B."""
        return self.row.shape[0]

    @property
    def cfg_copies(self) -> int:
        """H: copies of the network input that a call sees."""
        return self.t.shape[0] // self.batch


def allocate(
    batch: int,
    n: int,
    slots: int,
    *,
    device: torch.device,
    state: torch.dtype = torch.float32,
    slot: torch.dtype = torch.float32,
    time: torch.dtype = torch.float32,
    network: torch.dtype | None = None,
    cfg_copies: int = 1,
    channels: int = 1,
) -> Registers:
    """Uninitialized registers; `network` is the dtype of a separate network input, None for none."""
    stride = math.ceil(n / ALIGN) * ALIGN

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return Registers(
        x=empty(batch, stride, dtype=state),
        y=empty(batch, stride, dtype=state),
        slots=empty(slots, batch, stride, dtype=slot),
        row=empty(batch, dtype=torch.int32),
        t=empty(cfg_copies * batch, dtype=time),
        net_in=None if network is None else empty(cfg_copies * batch, n, dtype=network),
        seeds=empty(batch, dtype=torch.int64),
        first_bad=empty(batch, dtype=torch.int32),
        active=empty(1, dtype=torch.int32),
        done=torch.zeros(batch, dtype=torch.int32, device=device),
        n=n,
        channels=channels,
    )
