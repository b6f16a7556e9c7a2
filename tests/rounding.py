"""Tolerances that follow from dtype and size, not from the processor that the test was written on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def of_network(network: nn.Module, out: Tensor) -> float:
    """How far two evaluations of a network may lie apart where only the order of its sums differs.

    Processors, batch sizes and layouts choose that order. A sum of n products of random signs rounds by eps sqrt(n / 8)
    of its own size. Layers add their squares, since the norms between them neither damp nor amplify: eps sqrt(N / 8)
    for N, the fan-ins' sum. Two evaluations differ by sqrt(2) of it, and the largest of a million normal differences
    is 5 deviations: 2.5 eps sqrt(N), of the output's root mean square.
    """
    fan_ins = sum(weight[0].numel() for weight in network.parameters() if weight.ndim > 1)
    eps = torch.finfo(out.dtype).eps
    return 2.5 * eps * math.sqrt(fan_ins) * float(out.double().square().mean().sqrt())
