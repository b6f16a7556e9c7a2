"""Counter-based standard normals: Philox4x32-10 and Box-Muller, the same bits on every backend.

This file is the reference; `csrc/row/philox.h` and `kernels/philox.py` follow it operation by operation.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from pndm_fast.plan.checks import shown
from pndm_fast.plan.numbers import is_integer

TAG = 0x504E444D  # the fourth counter word, ours alone: no other user of Philox draws this stream
SAMPLING_STREAM = 0
INITIAL, PROLOGUE, FIRST_ROW = 0, 1, 2  # noise indices: x_T, the prologue's z, then one per row

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# Minimax fits in float32: log1p(f) = f - f^2/2 + f^3 LOG(f) on [sqrt(1/2) - 1, sqrt(2) - 1] (6e-9),
# sin(pi r) = r SIN(r^2) and cos(pi r) = 1 + r^2 COS(r^2) on |r| <= 1/4 (3e-9, 6e-11). Lowest degree first.
LOG = (
    0.3333333134651184,
    -0.250008225440979,
    0.20001226663589478,
    -0.16623356938362122,
    0.14201761782169342,
    -0.131601944565773,
    0.12761549651622772,
    -0.07634429633617401,
)
SIN = (3.1415927410125732, -5.167707443237305, 2.549759864807129, -0.5889958143234253)
COS = (-4.934802055358887, 4.0587077140808105, -1.3350498676300049, 0.23135781288146973)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # the high part has 9 bits, so that exponent * high is exact
_SQRT_HALF_BITS = 0x3F3504F3


def seed_tensor(seeds: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """64-bit seeds as the int64 tensor [B] of the same bits.

    Raises:
        TypeError: a seed is not an integer.
        ValueError: a seed is negative or not below 2^64.
    """
    values = []
    for i, seed in enumerate(seeds):
        if not is_integer(seed):
            raise TypeError(f"seeds must be integers, got {shown(seed)} at position {i}")
        value = operator.index(seed)
        if not 0 <= value < 2**64:
            raise ValueError(f"seeds must be in [0, 2^64), got {value} at position {i}")
        values.append(value - 2**64 if value >= 2**63 else value)
    return torch.tensor(values, dtype=torch.int64, device=device)


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.

    Words are int64 tensors with values in [0, 2^32); the int64 product wraps, its 64 bits are still right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def _log(u: Tensor) -> Tensor:
    bits = u.view(torch.int32)
    exponent = bits - _SQRT_HALF_BITS >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    e = exponent.to(torch.float32)
    square = f * f
    tail = _horner(LOG, f) * (square * f) + e * LN2_LOW
    tail = tail - square * 0.5
    return (f + tail) + e * LN2_HIGH


def _box_muller(k1: Tensor, k2: Tensor) -> tuple[Tensor, Tensor]:
    """R cos(pi a), R sin(pi a) with R = sqrt(-2 log u); u in (0, 1], a in [-1, 1] from 32 random bits each.

    Every operation is one IEEE float32 operation, none fused: that makes the bits the same everywhere.
    """
    u = k1.to(torch.float32) * 2.0**-32 + 2.0**-33
    a = torch.where(k2 >= 2**31, k2 - 2**32, k2).to(torch.float32) * 2.0**-31
    # torch.sqrt of float32 may go through a vector library that is one ulp off; through float64 it is the rounded root
    radius = torch.sqrt((_log(u) * -2.0).double()).to(torch.float32)
    quarter = torch.floor(a * 2.0 + 0.5)
    r = a - quarter * 0.5  # exact, |r| <= 1/4
    square = r * r
    sine = _horner(SIN, square) * r
    cosine = _horner(COS, square) * square + 1.0
    q = quarter.to(torch.int32)
    odd = (q & 1) != 0
    cos_a = torch.where(odd, sine, cosine)
    sin_a = torch.where(odd, cosine, sine)
    cos_a = torch.where((q + 1 & 2) != 0, -cos_a, cos_a)
    sin_a = torch.where((q & 2) != 0, -sin_a, sin_a)
    return radius * cos_a, radius * sin_a


def normals(seeds: Tensor, index: int, n: int, channels: int = 1) -> Tensor:
    """Standard normals, float32 [B, n], that depend only on (seed, noise index, logical element).

    Element e of a sample comes from Philox with key = the 64-bit seed and counter = (e // 4, index, stream, TAG);
    the four words of a counter give elements 4j..4j+3 = (R1 cos, R1 sin, R2 cos, R2 sin). Box & Muller 1958.

    Args:
        seeds: int64 [B], the seeds' bits.
        index: which normal of the trajectory: 0 is x_T, 1 the prologue's, i + 2 row i's.
        n: elements per sample.
        channels: C where a sample is stored channels-last as [n / C, C]; elements are numbered as in [C, n / C].
    """
    j = torch.arange((n + 3) // 4, device=seeds.device)
    key = (seeds[:, None] & _MASK, seeds[:, None] >> 32 & _MASK)
    words = philox((j, torch.full_like(j, index), torch.full_like(j, SAMPLING_STREAM), torch.full_like(j, TAG)), key)
    first, second = _box_muller(words[0], words[1]), _box_muller(words[2], words[3])
    flat = torch.stack((*first, *second), dim=-1).flatten(1)[:, :n]
    if channels > 1:
        flat = flat.view(len(seeds), channels, n // channels).transpose(1, 2)
    return flat.reshape(len(seeds), n).contiguous()
