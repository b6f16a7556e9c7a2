"""Tolerances that follow from dtype and size, not from the processor that the test was written on.

Processors, batch sizes, layouts, threads and compilers choose the order of a network's sums. Elementwise arithmetic, as
of the tests' pointwise networks, has no such freedom: it may be compared bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def of_network(network: nn.Module, out: Tensor) -> float:
    """How far two evaluations of a network may lie apart where only the order of its sums differs.

    A sum of n products of random signs rounds by eps sqrt(n / 8) of its own size. Layers add their squares, since the
    norms between them neither damp nor amplify: eps sqrt(N / 8) for N, the fan-ins' sum. Two evaluations differ by
    sqrt(2) of it, and the largest of a million normal differences is 5 deviations: 2.5 eps sqrt(N), of the output's
    root mean square.
    """
    return 2.5 * torch.finfo(out.dtype).eps * math.sqrt(_fan_ins(network)) * _size(out)


def of_low_precision(network: nn.Module, out: Tensor) -> float:
    """How far an evaluation in out's dtype, float16 or bfloat16, may lie from one in float32.

    Kernels accumulate in float32; what rounds is each weight and each layer's result, by eps / sqrt(12) of its size
    each. L layers add their squares: eps sqrt(L / 6). 5 deviations as above, of the output's root mean square.
    """
    layers = sum(weight.ndim > 1 for weight in network.parameters())
    return 5 * torch.finfo(out.dtype).eps * math.sqrt(layers / 6) * _size(out)


def of_samples(draw: Callable[[Any], Tensor], network: nn.Module, eps: float = torch.finfo(torch.float32).eps) -> float:
    """How far two runs of a plan may lie apart where the network's evaluations do so by `of_network`.

    Rows and the calls between them grow an error; by how much is measured in float64: `draw(network)` of outputs that
    are off by 1e-6 of their size, at random. Evaluations differ by eps sqrt(N) / 2 of it; four times that.

    Args:
        eps: of the coarsest dtype on the way.
    """
    exact = copy.deepcopy(network).double()
    growth = float((draw(_Nudged(exact)) - draw(exact)).abs().max()) / _NUDGE
    return 4 * growth * eps * math.sqrt(_fan_ins(network)) / 2


_NUDGE = 1e-6


class _Nudged(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.generator = network, torch.Generator().manual_seed(0)
        self.eval()

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out = self.network(x, t, **cond)
        return out + _NUDGE * _size(out) * torch.randn(out.shape, generator=self.generator, dtype=out.dtype)


def _fan_ins(network: nn.Module) -> int:
    return max(1, sum(weight[0].numel() for weight in network.parameters() if weight.ndim > 1))


def _size(out: Tensor) -> float:
    return float(out.detach().double().square().mean().sqrt())
