"""How a request that was submitted, or was to be, can fail beside what `Sampler` raises."""

from __future__ import annotations


class QueueFull(Exception):
    """`Worker.submit` was refused: as many requests wait as may.

    Attributes:
        length: of the queue; bound: what it may be.
    """

    def __init__(self, length: int, bound: int) -> None:
        super().__init__(length, bound)  # what pickle makes another one from
        self.length, self.bound = length, bound

    def __str__(self) -> str:
        return f"{self.length} requests are waiting, and max_queue is {self.bound}"


class DeadlineMissed(Exception):
    """A request cannot be done, or was not, by its deadline.

    Attributes:
        deadline: in seconds from when it was submitted.
        needed: seconds that it would have taken from then on, as predicted; None where the deadline has passed.
        done: rows that were run of its `rows`.
    """

    def __init__(self, deadline: float, needed: float | None, done: int, rows: int) -> None:
        super().__init__(deadline, needed, done, rows)
        self.deadline, self.needed, self.done, self.rows = deadline, needed, done, rows

    def __str__(self) -> str:
        run = f"{self.done} of {self.rows} rows run"
        if self.needed is None:
            return f"the deadline of {self.deadline:g} s has passed, {run}"
        return f"the deadline of {self.deadline:g} s cannot be met: it takes about {self.needed:.3g} s, {run}"


class EngineDown(RuntimeError):
    """A worker's thread has ended by an exception, its `__cause__`: nothing can be submitted any more."""
