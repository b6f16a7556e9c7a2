"""The halves of a phase-space sample, and a network that knows only one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop.network import Wrapped


def position(samples: Tensor) -> Tensor:
    """The first half, which is the data at t = 0: [B, C, ...] of [B, 2 C, ...], a view."""
    return _halves(samples)[0]


def momentum(samples: Tensor) -> Tensor:
    """The second half: [B, C, ...] of [B, 2 C, ...], a view."""
    return _halves(samples)[1]


def _halves(samples: Tensor) -> tuple[Tensor, ...]:
    if not isinstance(samples, Tensor) or samples.dim() < 2 or samples.shape[1] % 2:
        got = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"samples must be a tensor (batch, positions and momenta, ...), even in its second, got {got}")
    return samples.chunk(2, dim=1)


class MomentumOnly(Wrapped):
    """A network that predicts eps of the momentum alone, [B, C, ...] from [B, 2 C, ...], with 0 for the position's.

    That is all that there is to know at gamma = 0 (Dockhorn et al. 2022, arXiv:2112.07068). Its plans are made on
    `PSLD(gamma=0, ...).momentum_only()`, which puts in the position's; others, which store the zeros, are refused. A
    traced one, or one inside a wrapper of your own, is not recognized: `momentum_only = True` on the wrapper says it.
    """

    momentum_only = True

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """[0, eps], [B, 2 C, ...]."""
        out = self.ask(x, t, cond)
        return torch.cat([torch.zeros_like(out), out], dim=1)
