"""Losses of samples against a teacher's, one number an image, and what they say of two plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pndm_fast.plan.checks import choose, shown

Loss = Callable[[Tensor, Tensor], Tensor]  # (samples, ends) [B, *shape] -> [B]

RESAMPLES = 2000
WITHIN = 0.95


def rms(samples: Tensor, ends: Tensor) -> Tensor:
    """Root mean square over a sample's elements; images that are far off count by their distance, not its square."""
    return ((samples - ends) ** 2).flatten(1).mean(1).add(1e-24).sqrt()


def l1(samples: Tensor, ends: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (samples - ends).abs().flatten(1).mean(1)


LOSSES: dict[str, Loss] = {"rms": rms, "l1": l1}


def loss_of(loss: str | Loss) -> tuple[str, Loss]:
    """Its name and what computes it.

    Raises:
        TypeError, ValueError: neither a known word nor callable.
    """
    if isinstance(loss, str):
        return loss, LOSSES[choose("loss", loss, LOSSES)]
    if not callable(loss):
        raise TypeError(f"loss must be a word or callable as loss(samples, ends), got {shown(loss)}")

    def checked(samples: Tensor, ends: Tensor) -> Tensor:
        values = loss(samples, ends)
        if not isinstance(values, Tensor) or values.shape != (len(samples),):
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"loss must return one number for each of the {len(samples)} samples, got {got}")
        return values

    known = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{known.__module__}.{known.__qualname__}", checked


def compared(fitted: Tensor, named: Tensor, seed: int) -> dict[str, Any]:
    """Means of two plans' losses on the same images, and their ratio with its bootstrap interval.

    The images are drawn anew, both plans' losses of each together (Efron 1979, doi:10.1214/aos/1176344552); the
    interval holds the middle 95 % of the ratios.
    """
    n = len(fitted)
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    a, b = fitted.double().cpu(), named.double().cpu()
    ratios = a[drawn].mean(1) / b[drawn].mean(1)
    edge = (1 - WITHIN) / 2
    low, high = torch.quantile(ratios, torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return {
        "pairs": n,
        "fitted": {"mean": float(a.mean()), "median": float(a.median())},
        "named": {"mean": float(b.mean()), "median": float(b.median())},
        "ratio": float(a.mean() / b.mean()),
        "interval": [low, high],
    }
