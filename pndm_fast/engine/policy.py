"""Who runs, and beside how many: numbers alone, so that a simulation decides as the engine does."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

NEAR = 0.97  # of the best throughput: more lanes for less than that are but longer waits


def sizes_to(capacity: int, captured: bool) -> tuple[int, ...]:
    """Batch sizes up to the capacity, from which no number of lanes is far: a call of a larger size does idle work.

    Args:
        captured: whether each has a graph, and so memory, of its own: then powers of two, else at most 1/8 apart.
    """
    sizes = [1]
    while sizes[-1] < capacity:
        sizes.append(min(capacity, sizes[-1] + (sizes[-1] if captured else max(1, sizes[-1] // 8))))
    return tuple(sizes)


class Waiting(NamedTuple):
    """A request in line.

    Attributes:
        lanes: it takes, all or none.
        group: that it begins in.
    """

    lanes: int
    group: Hashable


class Policy:
    """How many samples one call of a network takes.

    Args:
        costs: seconds of a call by batch size, as they were measured; None where a size was not.
    """

    def __init__(self, costs: Mapping[int, float | None]) -> None:
        self.costs = dict(sorted(costs.items()))
        self.buckets = tuple(self.costs)

    def lanes(self) -> int:
        """How many to run at most: the smallest batch size whose throughput is near the best one."""
        rates = {size: size / cost for size, cost in self.costs.items() if cost}
        if len(rates) < len(self.costs):
            return self.buckets[-1]
        best = max(rates.values())
        return min(size for size, rate in rates.items() if rate >= NEAR * best)

    def bucket(self, lanes: int) -> int:
        """The smallest size that holds so many lanes."""
        return next(size for size in self.buckets if size >= lanes)

    def seconds(self, rows: int, lanes: int) -> float | None:
        """How long so many calls take, None where that was not measured."""
        cost = self.costs[self.bucket(lanes)]
        return None if cost is None else rows * cost

    def seconds_left(self, lanes: int, rows: int, before: Iterable[tuple[int, int]] = ()) -> float | None:
        """How long a request for so many samples and rows takes, None where costs were not measured.

        All batches are taken to be as full as they should be, and all requests to be of one group.

        Args:
            before: (samples, rows to come) of those that run or wait before it.
        """
        most = self.lanes()
        return self.seconds(foreseen(most, before, lanes, rows)[1], most)


def foreseen(most: int, before: Iterable[tuple[int, int]], lanes: int, rows: int) -> tuple[int, int]:
    """After how many rows a request for so many samples begins and ends, where `most` run together.

    Args:
        before: (samples, rows to come) of those that run or wait before it.
    """
    ends, begin, end = [0] * most, 0, 0  # ends: when lanes are free
    for count, more in (*before, (lanes, rows)):
        taken = [heapq.heappop(ends) for _ in range(min(count, most))]
        begin = max(begin, taken[-1])
        end = begin + more
        for _ in taken:
            heapq.heappush(ends, end)
    return begin, end


def admitted(
    line: Iterable[Waiting], running: Mapping[Hashable, int], allowed: Mapping[Hashable, int], free: int
) -> list[int]:
    """Which requests in line begin now, by their places in it.

    A group that has enough to do takes no more, unless it has nothing; who waits for that keeps free lanes, and later
    ones of other groups may begin on the others. Who waits for lanes has all later ones wait: large ones are not
    overtaken for ever.

    Args:
        running: lanes of each group; allowed: how many it should have at most; free: lanes that nobody has.
    """
    lanes, closed, begin = dict(running), set(), []
    for place, (count, group) in enumerate(line):
        if count > free:
            break
        free -= count
        has = lanes.get(group, 0)
        if group in closed or (has and has + count > allowed[group]):
            closed.add(group)
            continue
        lanes[group] = has + count
        begin.append(place)
    return begin
