"""A table run with gradients: the same sums that rows do, each as one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pndm_fast.tuning.parameters import Coefficients

Network = Callable[[Tensor, Tensor, int], Tensor]  # (input, told time, row) -> prediction in the state's dtype


class _Combination(torch.autograd.Function):
    """sum_k coefficients[k] tensors[k], with coefficients on the host; nothing but its arguments is kept."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, *tensors)
        values = coefficients.tolist()
        total: Tensor = tensors[0] * values[0]
        for value, tensor in zip(values[1:], tensors[1:], strict=True):
            total.add_(tensor, alpha=value)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, *tensors = ctx.saved_tensors
        of_coefficients = None
        if ctx.needs_input_grad[0]:
            flat = grad.reshape(-1)
            dots = torch.stack([torch.dot(flat, tensor.reshape(-1)) for tensor in tensors])  # one copy to the host
            of_coefficients = dots.to(coefficients.device, coefficients.dtype)
        needed = ctx.needs_input_grad[1:]
        values = coefficients.tolist()
        return of_coefficients, *[grad * c if need else None for c, need in zip(values, needed, strict=True)]


def combined(coefficients: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """sum_k coefficients[k] tensors[k]."""
    total: Tensor = _Combination.apply(coefficients, *tensors)
    return total


def rollout(
    network: Network, numbers: Coefficients, noise: Tensor, *, recompute: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The end, and the start x with the estimates D_0 ... D_{N-1}.

    Args:
        noise: standard normals [B, *shape], in the state's dtype.
        recompute: call the network once more in the backward pass, and keep nothing of its inside until then: memory
            of one call in place of N, a third more time.
    """
    basis = [combined(numbers.p0.reshape(1), [noise])]
    y = basis[0]
    for n in range(len(numbers.times)):
        seen = combined(numbers.in_scale[n : n + 1], [y]) if bool(numbers.in_scale[n] != 1) else y
        told = numbers.told[n]
        kept = recompute and torch.is_grad_enabled()
        out = checkpoint(network, seen, told, n, use_reentrant=False) if kept else network(seen, told, n)
        basis.append(combined(numbers.store[n], [y, out]))
        y = combined(torch.cat([numbers.a[n + 1 : n + 2], numbers.b[n + 1, : n + 1]]), basis)
    return y, basis
