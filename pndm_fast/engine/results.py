"""What an engine takes, gives back, and counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pndm_fast.engine.groups import Plot
from pndm_fast.engine.member import Member
from pndm_fast.engine.policy import sizes_to
from pndm_fast.loop.call import Call
from pndm_fast.loop.checks import check_sizes
from pndm_fast.loop.request import Request
from pndm_fast.loop.results import NonFiniteError, Result
from pndm_fast.row.device import Fetched, fetch
from pndm_fast.runtime import executor
from pndm_fast.runtime.cuda import Event
from pndm_fast.runtime.executor import captures, report_of
from pndm_fast.runtime.machine import Machine
from pndm_fast.runtime.sampler import Sampler


class OneAtATime:
    """A block that nobody may enter while somebody is in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            rule = "by one thread at a time, and not by what it calls itself"
            raise RuntimeError(f"step and prepare of an engine must be called {rule}")

    def __exit__(self, *error: object) -> None:
        self._lock.release()


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
        network_calls: for rows: two where guidance takes two. Those before a size's first row are not among them.
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

    def ran(self, lanes: int, calls: int, places: int) -> None:
        """One more batch was a row further."""
        self.rows += 1
        self.network_calls += calls
        self.lane_rows += lanes
        self.places += places

    @property
    def occupancy(self) -> float:
        """Of the network's places the fraction that was somebody's."""
        return self.lane_rows / self.places if self.places else 0.0


class Landing(NamedTuple):
    """A request whose last row was launched.

    Attributes:
        numbers: `Member.bad`'s, on their way.
    """

    member: Member
    samples: Tensor
    numbers: Fetched

    @classmethod
    def of(cls, member: Member) -> Landing:
        """Begin to read what becomes of it."""
        r = member.ran[-1].workspace.registers
        samples = member.samples(r.n, r.channels)
        return cls(member, samples, fetch(*[raw for _, _, raw in member.marks], samples.sum()))

    def concluded(self, sampler: Sampler) -> tuple[Result, NonFiniteError | None]:
        """What it came to, as `Sampler.run` says it; waits for the numbers."""
        member, samples, numbers = self
        bad = () if member.request.on_nan == "ignore" else member.bad(numbers(), samples)
        seconds = time.perf_counter() - (member.began or 0.0)
        report = report_of(sampler.cache, member.ran, seconds, sampler.batch_error)
        error = NonFiniteError(bad, samples, report) if bad and member.request.on_nan == "raise" else None
        if bad and error is None:
            samples[[b.sample for b in bad]] = float("nan")
        return Result(samples, report, bad), error


class Checked(NamedTuple):
    """A request that may get in line.

    Attributes:
        arrived: when its tensors are on the device.
    """

    request: Request
    plot: Plot
    priority: int
    arrived: Event | None

    @classmethod
    def of(cls, request: Request, plot: Plot, priority: int) -> Checked:
        """What was launched so far on the caller's stream brings its tensors."""
        cuda = executor.cuda_of(plot.call.device)
        arrived = None if cuda is None else cuda.event()
        if arrived is not None:
            arrived.record()
        return cls(request, plot, priority, arrived)

    @property
    def call(self) -> Call:
        """As it was understood."""
        return self.plot.call


def refuse_memory(machine: Machine) -> None:
    """Of networks that remember calls.

    Raises:
        ValueError: one does.
    """
    if machine.remembers():
        raise ValueError("model must not remember calls, which are of many requests, got one whose cache is enabled")


def check_buckets(buckets: Iterable[int] | None, capacity: int, sampler: Sampler) -> tuple[int, ...]:
    """Increasing batch sizes that hold any number of lanes.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    fixed = sampler.fixed_batch
    own = sizes_to(capacity, captures(sampler.graph, sampler.device)) if fixed is None else (fixed,)
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
