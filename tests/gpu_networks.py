"""Networks for the tests that need a GPU; `DEVICE` is theirs."""

from __future__ import annotations

from typing import Any

import torch
from drawing import Reporting
from torch import Tensor, nn

import pndm_fast as pf

DEVICE = "cuda"
SHAPE = (3, 8, 8)
MODES = ("while", "replay")


def pointwise(x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
    """Each sample by itself, element by element: the same bits in every batch and on every device."""
    out = x * 0.5 + (t * 0.001).view(-1, *[1] * (x.dim() - 1))
    return out if shift is None else out + shift.view(-1, *[1] * (x.dim() - 1))


class Conv(nn.Module):
    """Two convolutions, with the time and an optional condition between."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(SHAPE[0], width, 3, padding=1)
        self.last = nn.Conv2d(width, SHAPE[0], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        h = self.first(x) + (t * 1e-3).to(x.dtype).view(-1, 1, 1, 1)
        if shift is not None:
            h = h + shift.to(x.dtype).view(-1, 1, 1, 1)
        return self.last(torch.tanh(h))


class Noisy(nn.Module):
    """Draws from torch's generator."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * 0.5 + 0.01 * torch.randn_like(x)


def conv(dtype: torch.dtype = torch.float32, seed: int = 0) -> Conv:
    """Seeded, ready for sampling."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Conv().to(DEVICE, dtype).eval().requires_grad_(False)


def sampler(
    model: Any, graph: str, solver: str = "f-pndm", *, steps: int = 6, batch: int = 3, **options: Any
) -> Reporting:
    """On the GPU, with a plan of few steps."""
    options = {"shape": (batch, *SHAPE), "device": DEVICE} | options
    return Reporting(model, pf.make_plan(solver, steps=steps), graph=graph, **options)
