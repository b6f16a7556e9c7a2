"""Queues in front of a network whose calls cost what is known: what each way of batching makes of the same arrivals.

No network and no clock: a call of B samples takes cost(B), nothing else takes time. So this is what a way of batching
can do at best, and what a measurement is compared with.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serving.load import Arrival

Cost = Callable[[int], float]


@dataclass
class Trace:
    """What came of the arrivals.

    Attributes:
        done: when each ended, in the order of arrivals.
        calls: of the network; samples: their batches' sum, those that nobody asked for included.
        busy: time in network calls.
    """

    done: list[float]
    calls: int = 0
    samples: int = 0
    busy: float = 0.0

    def call(self, size: int, seconds: float) -> None:
        self.calls += 1
        self.samples += size
        self.busy += seconds


Way = Callable[[Sequence[Arrival], Cost], Trace]


def static(most: int, alike: bool = False) -> Way:
    """Batches of those that wait, at most so many: all stay to the end of the longest, and nobody joins meanwhile.

    `static(1)` is one after the other.

    Args:
        alike: only requests of equal settings go together; else only those of one form.
    """

    def way(asked: Sequence[Arrival], cost: Cost) -> Trace:
        trace, queue, now, coming = Trace([math.nan] * len(asked)), deque[int](), 0.0, 0
        while coming < len(asked) or queue:
            if not queue:
                now = max(now, asked[coming].at)
            while coming < len(asked) and asked[coming].at <= now:
                queue.append(coming)
                coming += 1
            batch = take(queue, lambda i: asked[i].setting if alike else asked[i].form, most)
            rows = max(asked[i].rows for i in batch)
            began = now
            for _ in range(rows):
                trace.call(len(batch), cost(len(batch)))
            now = began + rows * cost(len(batch))
            for i in batch:
                trace.done[i] = now
        return trace

    return way


def take(queue: deque[int], key: Callable[[int], object], most: int) -> list[int]:
    """The first in line, and those behind it that are like it."""
    wanted, taken, left = key(queue[0]), [], []
    while queue and len(taken) < most:
        one = queue.popleft()
        (taken if key(one) == wanted else left).append(one)
    queue.extendleft(reversed(left))
    return taken


@dataclass
class _Lanes:
    """Requests under way: (arrival, rows left) by form."""

    under_way: dict[bool, dict[int, int]] = field(default_factory=lambda: {False: {}, True: {}})

    def __len__(self) -> int:
        return sum(map(len, self.under_way.values()))


def engine(
    capacity: int, buckets: Sequence[int], lanes: Callable[[bool], int] | None = None, best: bool = False
) -> Way:
    """Requests join and leave a running batch; the group of the first in line runs.

    Args:
        capacity: lanes of a group.
        buckets: batches that the network is called with.
        lanes: how many may run in a group of that form, default all.
        best: each call is of the bucket that does most lanes for its cost, and the youngest lanes may stand still;
            else of the smallest one that has room for all.
    """

    def way(asked: Sequence[Arrival], cost: Cost) -> Trace:
        trace, queue, now, coming, running = Trace([math.nan] * len(asked)), deque[int](), 0.0, 0, _Lanes()
        while coming < len(asked) or queue or len(running):
            if not queue and not len(running):
                now = max(now, asked[coming].at)
            while coming < len(asked) and asked[coming].at <= now:
                queue.append(coming)
                coming += 1
            _admit(queue, asked, running, lambda form: capacity if lanes is None else lanes(form))
            form = min((i, form) for form, group in running.under_way.items() for i in group)[1]
            group = running.under_way[form]
            size = next(bucket for bucket in buckets if bucket >= len(group))
            if best:
                size = max(buckets, key=lambda bucket: (min(bucket, len(group)) / cost(bucket), bucket))
            spent = cost(size)
            trace.call(size, spent)
            now += spent
            for i in sorted(group)[:size]:
                group[i] -= 1
                if not group[i]:
                    del group[i]
                    trace.done[i] = now
        return trace

    return way


def _admit(queue: deque[int], asked: Sequence[Arrival], running: _Lanes, lanes: Callable[[bool], int]) -> None:
    """In the order of the line, each where its group has a lane; nobody passes another of its own group."""
    left = []
    while queue:
        one = queue.popleft()
        group = running.under_way[asked[one].form]
        if len(group) < lanes(asked[one].form):
            group[one] = asked[one].rows
        else:
            left.append(one)
    queue.extend(left)


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a part q of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(q * len(ordered)) - 1, 0)]


def latencies(asked: Sequence[Arrival], trace: Trace) -> list[float]:
    return [done - one.at for one, done in zip(asked, trace.done, strict=True)]


def highest_rate(p99: Callable[[float], float], limit: float, low: float, high: float, rounds: int = 12) -> float:
    """The highest arrival rate at which the 99th percentile of latency keeps to the limit, by bisection."""
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if p99(middle) <= limit else (low, middle)
    return low
