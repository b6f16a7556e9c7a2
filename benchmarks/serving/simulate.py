"""Queues in front of a network whose calls cost what is known: what each way of batching makes of the same arrivals.

No network and no clock: a call of B samples takes cost(B), nothing else takes time. So this is what a way of batching
can do at best, and what a measurement is compared with. The engine's way asks its own `policy`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from serving.load import Arrival

from pndm_fast.engine.policy import Policy, Waiting, admitted

Costs = Mapping[tuple[bool, int], float]  # of a row, by whether it has guidance and how many samples


@dataclass
class Trace:
    """What came of the arrivals.

    Attributes:
        done: when each ended, in the order of arrivals.
        rows: of the network; samples: their batches' sum, those that nobody asked for included.
        busy: time in network calls.
    """

    done: list[float]
    rows: int = 0
    samples: int = 0
    busy: float = 0.0

    def call(self, size: int, cost: float, times: int = 1) -> float:
        """So many calls of the network; how long they take."""
        self.rows += times
        self.samples += times * size
        self.busy += times * cost
        return times * cost


Way = Callable[[Sequence[Arrival], Costs], Trace]


def static(most: int, alike: bool = False) -> Way:
    """Batches of those that wait, at most so many: all stay to the end of the longest, and nobody joins meanwhile.

    `static(1)` is one after the other.

    Args:
        alike: only requests of equal settings go together; else only those of one form.
    """

    def way(asked: Sequence[Arrival], costs: Costs) -> Trace:
        trace, line, now, coming = Trace([math.nan] * len(asked)), deque[int](), 0.0, 0
        while coming < len(asked) or line:
            if not line:
                now = max(now, asked[coming].at)
            while coming < len(asked) and asked[coming].at <= now:
                line.append(coming)
                coming += 1
            batch = take(line, lambda i: key_of(asked[i], alike), most)
            form, rows = asked[batch[0]].form, max(asked[i].rows for i in batch)
            now += trace.call(len(batch), costs[form, len(batch)], rows)
            for i in batch:
                trace.done[i] = now
        return trace

    return way


def key_of(one: Arrival, alike: bool) -> object:
    """What requests of one static batch have in common."""
    return one.setting if alike else one.form


def take(line: deque[int], key: Callable[[int], object], most: int) -> list[int]:
    """The first in line, and those behind it that are like it."""
    wanted, taken, left = key(line[0]), list[int](), list[int]()
    while line and len(taken) < most:
        one = line.popleft()
        (taken if key(one) == wanted else left).append(one)
    line.extendleft(reversed(left))
    return taken


def engine(buckets: Sequence[int]) -> Way:
    """Requests join a running batch and leave it, as `pf.Engine` has it once `prepare` has measured these buckets."""

    def way(asked: Sequence[Arrival], costs: Costs) -> Trace:
        policies = {form: Policy({size: costs[form, size] for size in buckets}) for form in {form for form, _ in costs}}
        trace, line, now, coming = Trace([math.nan] * len(asked)), list[int](), 0.0, 0
        groups: dict[bool, dict[int, int]] = {form: {} for form in policies}  # rows left of arrivals
        while coming < len(asked) or line or any(groups.values()):
            if not line and not any(groups.values()):
                now = max(now, asked[coming].at)
            while coming < len(asked) and asked[coming].at <= now:
                line.append(coming)
                coming += 1
            line = _admit(line, asked, groups, policies)
            form = min((form for form in groups if groups[form]), key=lambda form: min(groups[form]))  # first in line
            group, size = groups[form], policies[form].bucket(len(groups[form]))
            now += trace.call(size, costs[form, size])
            for i in list(group):
                group[i] -= 1
                if not group[i]:
                    del group[i]
                    trace.done[i] = now
        return trace

    return way


def _admit(
    line: list[int], asked: Sequence[Arrival], groups: dict[bool, dict[int, int]], policies: Mapping[bool, Policy]
) -> list[int]:
    """Who begins now; the rest of the line."""
    running = {form: len(group) for form, group in groups.items()}
    waiting = [Waiting(1, asked[i].form) for i in line]
    free = next(iter(policies.values())).buckets[-1] - sum(running.values())
    begin = set(admitted(waiting, running, {form: policy.lanes() for form, policy in policies.items()}, free))
    for place in begin:
        groups[asked[line[place]].form][line[place]] = asked[line[place]].rows
    return [i for place, i in enumerate(line) if place not in begin]


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a part q of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(q * len(ordered) - 1e-9) - 1, 0)]


def latencies(asked: Sequence[Arrival], done: Sequence[float]) -> list[float]:
    """From arriving to being done."""
    return [end - one.at for one, end in zip(asked, done, strict=True)]


def highest_rate(p99: Callable[[float], float], limit: float, low: float, high: float, rounds: int = 12) -> float:
    """The highest arrival rate at which the 99th percentile of latency keeps to the limit, by bisection."""
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if p99(middle) <= limit else (low, middle)
    return low
