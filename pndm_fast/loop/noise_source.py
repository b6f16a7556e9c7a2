"""Standard normals that the caller brings in place of Philox."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pndm_fast.loop.positions import Positions
from pndm_fast.row.noise import FIRST_ROW


class NoiseSource:
    """A request's `noise_sampler`, whose answers are checked.

    Args:
        sampler: index -> [real, *shape].
        real: samples that were asked for.
        batch: with those that were added, whose noise is zero; default `real`.
    """

    def __init__(
        self,
        sampler: Callable[[int], Tensor],
        shape: tuple[int, ...],
        real: int,
        device: torch.device,
        dtype: torch.dtype,
        batch: int | None = None,
    ) -> None:
        self._sampler, self._shape, self._real, self._device, self._dtype = sampler, shape, real, device, dtype
        self._batch = real if batch is None else batch
        self._start: dict[int, Tensor] = {}  # before the first row: asked for once, however often a call begins

    def resized(self, real: int, batch: int) -> NoiseSource:
        """The same for another batch."""
        return NoiseSource(self._sampler, self._shape, real, self._device, self._dtype, batch)

    def __call__(self, index: int) -> Tensor:
        """The normal of that index, [batch, *shape] in the state's dtype.

        Raises:
            TypeError, ValueError: not a finite tensor of the samples' shape.
        """
        if index in self._start:
            return self._start[index]
        value, shape = self._sampler(index), (self._real, *self._shape)
        if not isinstance(value, Tensor):
            raise TypeError(f"noise_sampler({index}) must return a tensor, got {type(value).__name__}")
        if tuple(value.shape) != shape:
            raise ValueError(f"noise_sampler({index}) must have shape {shape}, got {tuple(value.shape)}")
        value = value.to(device=self._device, dtype=self._dtype)
        if not bool(value.isfinite().all()):
            raise ValueError(f"noise_sampler({index}) must be finite, got NaN or infinity")
        if self._batch > self._real:
            value = torch.cat([value, value.new_zeros(self._batch - self._real, *self._shape)])
        if index < FIRST_ROW:
            self._start[index] = value
        return value

    def of_rows(self, positions: Positions) -> Tensor | None:
        """z of each sample's next row, None where none of them reads it."""
        indices = _noise_indices(positions)
        asked = sorted({index for index in indices if index})
        if not asked:
            return None
        found = {index: self(index) for index in asked}
        if len(asked) == 1:
            return found[asked[0]]
        first = found[asked[0]]
        return torch.stack([found[index][b] if index else first[b] for b, index in enumerate(indices)])


def _noise_indices(positions: Positions) -> Sequence[int]:
    """The noise index of each sample's next row, 0 where it reads none."""
    return [
        i + FIRST_ROW if i < plan.nfe and plan.noisy[i] else 0
        for plan, i in zip(positions.plans, positions.at, strict=True)
    ]
