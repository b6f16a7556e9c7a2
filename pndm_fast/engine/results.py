"""What an engine gives back, and counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pndm_fast.loop.checks import check_sizes
from pndm_fast.loop.results import Result


class QueueFull(RuntimeError):
    """A request was refused, for as many as `max_queue` allows are waiting."""


class Finished(NamedTuple):
    """A request that is no longer in the engine.

    Attributes:
        id: that `add` gave it.
        result: what `Sampler.run` would return; error: what it would raise. One of them is None.
    """

    id: int
    result: Result | None
    error: BaseException | None


@dataclass
class Stats:
    """What an engine has done so far.

    Attributes:
        rows: batches that were one row further.
        network_calls: two a row where guidance takes two.
        lane_rows: rows of samples; places: of the batches that they were in, those of nobody included.
        finished, failed, cancelled: requests.
    """

    rows: int = 0
    network_calls: int = 0
    lane_rows: int = 0
    places: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def occupancy(self) -> float:
        """Of the network's places the fraction that was somebody's."""
        return self.lane_rows / self.places if self.places else 0.0


def check_buckets(buckets: Iterable[int] | None, capacity: int, fixed: int | None) -> tuple[int, ...]:
    """Increasing batch sizes that hold any number of lanes.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    own = (fixed,) if fixed is not None else tuple(sorted({*[1 << k for k in range(capacity.bit_length())], capacity}))
    if fixed is not None and capacity > fixed:
        raise ValueError(f"shape must have at most fixed_batch = {fixed} samples, got {capacity}")
    if buckets is None:
        return own
    sizes = tuple(sorted(set(check_sizes("buckets", buckets))))
    if fixed is not None and sizes != own:
        raise ValueError(f"buckets must be [{fixed}], the engine's fixed_batch, got {list(sizes)}")
    if fixed is None and sizes[-1] != capacity:
        raise ValueError(f"buckets must end with the capacity, {capacity}, got {list(sizes)}")
    return sizes
