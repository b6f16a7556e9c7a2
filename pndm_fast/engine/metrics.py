"""What a worker counts: plain numbers in bounded memory."""

from __future__ import annotations

import bisect
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

CLASSES = 16  # priorities whose latencies are told apart; those that come later are together
PER_DECADE = 16  # bounds: a quantile is 7 % off at most
EDGES = tuple([10 ** (k / PER_DECADE) for k in range(-4 * PER_DECADE, 4 * PER_DECADE + 1)])  # 0.1 ms to 10,000 s
QUANTILES = (0.5, 0.9, 0.99)
WINDOW = 10.0  # seconds over which a rate is taken
OTHERS = "other"
ENDS = ("finished", "failed", "cancelled", "missed")
REFUSALS = ("queue_full", "deadline", "invalid", "closed", "down")


class Times:
    """How often times came, by powers of ten's sixteenths."""

    def __init__(self) -> None:
        self.count, self.sum = 0, 0.0
        self.counts = [0] * (len(EDGES) + 1)  # up to each edge, and above the last

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.sum += seconds
        self.counts[bisect.bisect_left(EDGES, seconds)] += 1

    def quantile(self, q: float) -> float:
        """The upper edge that at least a part q of the times does not exceed; NaN of none, infinity above the last."""
        left = q * self.count
        for edge, count in zip((*EDGES, float("inf")), self.counts, strict=True):
            left -= count
            if count and left <= 1e-9:
                return edge
        return float("nan")

    def numbers(self) -> dict[str, Any]:
        """count, sum, quantiles and how many did not exceed each edge, in seconds."""
        upto, buckets = 0, []
        for edge, count in zip(EDGES, self.counts, strict=False):
            upto += count
            buckets.append((edge, upto))
        quantiles = {q: self.quantile(q) for q in QUANTILES}
        return {"count": self.count, "sum": self.sum, "quantiles": quantiles, "buckets": buckets}


class Rate:
    """A sum over the last seconds, by tenths of the window.

    Args:
        clock: seconds, growing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._bins: deque[tuple[int, float]] = deque(maxlen=11)

    def add(self, amount: float) -> None:
        """It happened now."""
        now = int(self._clock() / WINDOW * 10)
        if self._bins and self._bins[-1][0] == now:
            amount += self._bins.pop()[1]
        self._bins.append((now, amount))

    def per_second(self) -> float:
        """Over the window, or since the beginning where that is nearer."""
        now = self._clock()
        seconds = min(WINDOW, now - self._began)
        since = int((now - WINDOW) / WINDOW * 10)
        return sum(amount for bin, amount in self._bins if bin > since) / seconds if seconds > 0 else 0.0


class Metrics:
    """Whoever calls holds its owner's lock.

    Args:
        lanes: that there are.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.submitted = self.iterations = self.calls = self.rows = self.late = 0
        self.busy = 0.0
        self.refused: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.wait = Times()
        self._latency: dict[str, Times] = {}
        self._recent = Rate()

    def called(self, lanes: int, calls: int, seconds: float) -> None:
        """A row of so many lanes was run, by so many calls of the network."""
        self.iterations += 1
        self.calls += calls
        self.rows += lanes
        self.busy += seconds
        self._recent.add(lanes)

    def finished(self, priority: int, seconds: float, late: bool) -> None:
        """A request has its result, so long after it was submitted."""
        self.late += late
        name = str(priority)
        if name not in self._latency and len(self._latency) >= CLASSES:
            name = OTHERS
        self._latency.setdefault(name, Times()).add(seconds)

    def numbers(self, queue: int, running: int) -> dict[str, Any]:
        """What `Worker.metrics` documents."""
        return {
            "queue": queue,
            "running": running,
            "lanes": self.lanes,
            "submitted": self.submitted,
            **{end: self.ended[end] for end in ENDS},
            "late": self.late,
            "refused": {reason: self.refused[reason] for reason in REFUSALS},
            "rows": self.rows,
            "calls": self.calls,
            "busy_seconds": self.busy,
            "rows_per_second": self._recent.per_second(),
            "occupancy": self.rows / (self.iterations * self.lanes) if self.iterations else 0.0,
            "wait": self.wait.numbers(),
            "latency": {name: times.numbers() for name, times in self._latency.items()},
        }
