"""A-FloPS, which is no plan: its coefficient depends on the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

import pndm_fast as pf


def aflops(
    network: Callable[[Tensor, Tensor], Tensor],
    schedule: pf.Schedule,
    times: Sequence[float],
    noise: Tensor,
    *,
    guard: float = 1.0,
) -> Tensor:
    """A-FloPS, arXiv:2509.00036. No plan: its coefficient depends on the samples.

    Second order in flow coordinates, the linear part of the velocity taken exactly.

    z = x / (alpha + sigma) and T = alpha / (alpha + sigma) make the path a flow, dz/dT = v = x_0 - eps. Each sample's
    v = c z + r, c = <v - v', z - z'> / (|z - z'|^2 + 1e-8) with ' the step before, r linear in T:
    z <- exp(c d) z + d phi_1(c d) r + d^2 phi_2(c d) (r - r') / (T - T'), d the step. Euler (which is DDIM) at first.

    Args:
        network: eps of x at times [B].
        guard: samples with |c d| above it take c = 0, which is Adams-Bashforth of order 2; 0 is that everywhere.
    """
    x, past = noise.double(), None
    for t, s in pairwise(times):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        eps = network(x.float(), torch.full((len(x),), t)).double()
        z, at = x / (alpha + sigma), alpha / (alpha + sigma)
        v = (x - sigma * eps) / alpha - eps
        after = float(schedule.alpha(s)), float(schedule.sigma(s))
        d = after[0] / sum(after) - at
        if past is None:
            z_after = z + d * v
        else:
            z_after = _second(z, v, at, past, d, guard)
        past, x = (z, v, at), sum(after) * z_after
    return x.float()


def _second(z: Tensor, v: Tensor, at: float, past: tuple[Tensor, Tensor, float], d: float, guard: float) -> Tensor:
    z_past, v_past, before = past
    moved = (z - z_past).flatten(1)
    c = ((v - v_past).flatten(1) * moved).sum(1) / (moved.square().sum(1) + 1e-8)
    c = torch.where((c * d).abs() <= guard, c, 0.0).view(-1, *[1] * (z.dim() - 1))
    r, r_past = v - c * z, v_past - c * z_past
    u = c * d
    small = u.abs() < 1e-4
    safe = torch.where(small, 1.0, u)
    phi_1 = torch.where(small, 1 + u / 2, torch.expm1(safe) / safe)
    phi_2 = torch.where(small, 0.5 + u / 6, (torch.expm1(safe) - safe) / safe**2)
    return torch.exp(u) * z + d * phi_1 * r + d * d * phi_2 * (r - r_past) / (at - before)
