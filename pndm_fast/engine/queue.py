"""The line of those who wait, and what calls of the network cost: no tensors and no clock."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pndm_fast.engine.errors import QueueFull
from pndm_fast.engine.ticket import Ticket

KEPT = 0.9  # of a cost's mean, at each further call: the last ten or so tell
QUICKER = 0.5  # the same where the call was quicker: a slow one, as first calls are, is soon forgotten


@dataclass(eq=False)
class Job:
    """A ticket that is not done, on its way.

    Attributes:
        taken: what the engine is to run; None once it has it.
        submitted: by the clock; until: its deadline.
        reader: the stream on which its results will be read.
        id: the engine's, None before it has it.
        began: rows that the engine had run before its first; None before it has begun.
    """

    ticket: Ticket
    taken: Any
    submitted: float
    until: float = math.inf
    reader: Any = None
    id: int | None = None
    began: int | None = None


class Queue:
    """Those that wait, by priority and then by arrival. Whoever calls holds its owner's lock.

    Args:
        bound: how many may wait, None for as many as come.
    """

    def __init__(self, bound: int | None) -> None:
        self.bound = bound
        self._count = 0
        self._places: dict[Job, tuple[int, int]] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Job]:
        """From the first in line on."""
        return iter(sorted(self._places, key=self._places.__getitem__))

    def check(self, idle: int) -> None:
        """Whether one more may wait, where so many lanes are idle.

        Raises:
            QueueFull: as many do as may.
        """
        if self.bound is not None and len(self) >= self.bound + idle:
            raise QueueFull(len(self), self.bound)

    def add(self, job: Job) -> None:
        """To the end of its priority's part of the line."""
        self._places[job] = (-job.ticket.priority, self._count)
        self._count += 1

    def remove(self, job: Job) -> None:
        """It has begun, or is done."""
        self._places.pop(job, None)

    def position(self, job: Job) -> int | None:
        """How many stand before it, None where it does not wait."""
        place = self._places.get(job)
        return None if place is None else sum(other < place for other in self._places.values())

    def ahead(self, priority: int) -> list[Ticket]:
        """Who would stand before a newcomer of that priority, from the first in line on."""
        return [job.ticket for job in self if job.ticket.priority >= priority]


class Costs:
    """What a call of the network takes, in seconds, by the number of lanes that it ran: as it has been of late.

    Args:
        known: as was measured before; of `Engine.prepare`.
    """

    def __init__(self, known: Mapping[int, float]) -> None:
        self._known = dict(known)
        self.forget()

    def add(self, lanes: int, seconds: float) -> None:
        """One call."""
        known = self._seconds.get(lanes, seconds)
        kept = QUICKER if seconds < known else KEPT
        self._seconds[lanes] = kept * known + (1 - kept) * seconds

    def forget(self) -> None:
        """Back to what was measured before."""
        self._seconds = dict(self._known)

    def of(self, lanes: int) -> float:
        """Of a call with so many lanes; of the nearest number that was met; 0 where nothing is known."""
        if not self._seconds:
            return 0.0
        return self._seconds[min(self._seconds, key=lambda met: (abs(met - lanes), met))]

    def least(self) -> float:
        """Of the quickest call; 0 where nothing is known."""
        return min(self._seconds.values(), default=0.0)
