"""A request that an engine has taken on: how far it is, and where its samples are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from pndm_fast.engine.lines import Entry
from pndm_fast.loop.call import Call
from pndm_fast.loop.positions import Kind
from pndm_fast.loop.request import Request
from pndm_fast.loop.results import BadSample, Cancelled, Step
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.workspace import Workspace
from pndm_fast.row.device import upload
from pndm_fast.row.layout import unflatten
from pndm_fast.row.registers import NEVER, Registers
from pndm_fast.runtime.cuda import Event
from pndm_fast.runtime.executor import Executor

NOWHERE = -1  # the lane of a sample that is not in one


class Member:
    """One request under way, or in line.

    Attributes:
        number: how the caller knows it; order: smaller ones go first.
        segments: its kinds of rows; keys: the group of each kind.
        group: where its samples are.
        segment: of its rows, the one that is under way or comes next; snapshot: of what was before it.
        left: rows to the segment's end; due: when its group will have run as many rows as bring it to a next end.
        lanes: of its samples; entries: their plans' lines.
        own: buffers of its own batch, kept in step with its lanes where something is done to states between rows.
        final: states of samples that have ended, [B, stride]; marks: (samples, lines of their plans, first_bad).
        error: why it ends before its rows do; cancelled: whether it was asked to.
        arrived: when its tensors are there; began: when it did; advance: tells of a row; look: sees the next one.
        ran: by what its segments were run.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        call: Call,
        segments: dict[Kind, Segment],
        keys: dict[Kind, Hashable],
        priority: int,
        arrived: Event | None = None,
    ) -> None:
        self.number, self.request, self.call, self.segments, self.keys = number, request, call, segments, keys
        self.order, self.arrived = (-priority, number), arrived
        self.positions = call.positions()
        self._kinds = iter(call.segments)
        self.kind, self.left = next(self._kinds)
        self.group: Any = None
        self.segment: Segment | None = None
        self.snapshot: Registers | None = None
        self.due = self._since = 0
        self.lanes, self.entries = [NOWHERE] * call.batch, dict[int, Entry]()
        self.own: Workspace | None = None
        self.final: Tensor | None = None
        self.marks: list[tuple[list[int], list[int], Tensor]] = []
        self.error: BaseException | None = None
        self.cancelled = False
        self.ran: list[Executor] = []
        self.began: float | None = None
        self.advance: Callable[[], None] | None = None
        self.look: Callable[[Step], None] | None = None

    @property
    def key(self) -> Hashable:
        """Of the group in which its next rows are."""
        return self.keys[self.kind]

    @property
    def over(self) -> bool:
        """Whether all of its rows were run."""
        return self.positions.run >= self.call.nfe

    @property
    def waits(self) -> bool:
        """Whether it is in line."""
        return self.group is None

    @property
    def rows_left(self) -> int:
        """Network calls to come."""
        done = 0 if self.group is None or self.over else self.group.ran - self._since
        return self.call.nfe - self.positions.run - done

    @property
    def changes(self) -> bool:
        """Whether something may be done to its states between rows."""
        return self.request.on_step is not None or self.call.origin.known is not None

    @property
    def watched(self) -> bool:
        """Whether something is to be done after each of its rows."""
        call, request = self.call, self.request
        return self.changes or call.by_row is not None or request.progress

    def on_step(self) -> Callable[[Step], Any] | None:
        """What sees its next row."""
        (look, self.look), own = (self.look, None), self.request.on_step
        if look is None:
            return own

        def both(step: Step) -> Any:
            look(step)
            return None if own is None else own(step)

        return both

    def live(self) -> list[int]:
        """Samples that have rows to come."""
        return [b for b, (plan, i) in enumerate(zip(self.call.plans, self.positions.at, strict=True)) if i < plan.nfe]

    def begin(self, ran: int) -> None:
        """Its samples are in lanes of a group that has run so many rows."""
        self.began = self.began or time.perf_counter()
        self._since = ran
        self._wait()

    def _wait(self) -> None:
        at = self.positions.at
        self.due = self._since + min([self.left, *[self.call.plans[b].nfe - at[b] for b in self.live()]])

    def sync(self, ran: int) -> None:
        """So many rows were run by its group."""
        count = ran - self._since
        if count:
            self.positions.advance(count)
            self.left -= count
            self._since = ran

    def go_on(self) -> None:
        """To the next end of a sample, or to that of the segment."""
        if self.left:
            self._wait()

    def next_segment(self) -> None:
        """The rows that call the network in another way."""
        self.kind, self.left = next(self._kinds)

    def next_rows(self) -> Segment:
        """The segment that is under way or comes next, from here on."""
        segment = self.segments[self.kind]
        return segment._replace(at=tuple(self.positions.at), length=self.left, snapshot=self.snapshot)

    def cancel_asked(self) -> bool:
        """Whether somebody wants its end."""
        return self.cancelled or (self.request.cancel is not None and self.request.cancel.is_set())

    def cancel(self, samples: Tensor | None) -> None:
        """End after the rows that were run."""
        self.error = Cancelled(self.positions.run - 1, samples, None)

    def mark(self, samples: list[int], first_bad: Tensor) -> None:
        """These leave their group: from where on they were not finite."""
        self.marks.append((samples, [self.entries[b].base for b in samples], first_bad))

    def keep(self, samples: list[int], states: Tensor) -> None:
        """Last states [count, stride] of samples that have ended."""
        if len(samples) == self.call.batch:
            self.final = states
            return
        if self.final is None:
            self.final = states.new_zeros(self.call.batch, states.shape[1])
        self.final.index_copy_(0, upload(samples, states.device), states)

    def samples(self, n: int, channels: int) -> Tensor:
        """All last states, [B, *shape]."""
        assert self.final is not None
        return unflatten(self.final[:, :n].contiguous(), self.call.shape, channels).contiguous()

    def bad(self, numbers: list[Any], samples: Tensor) -> tuple[BadSample, ...]:
        """Which samples are not finite, at the first row of which that was said, or the last where the state alone is.

        Args:
            numbers: those of `marks`, and the sum of all samples, which is finite where each of its terms is.
        """
        *marks, total = numbers
        real, plans = self.call.real, self.call.plans
        first = [NEVER] * real
        for (places, bases, _), found in zip(self.marks, marks, strict=True):
            for b, base, row in zip(places, bases, found, strict=True):
                first[b] = min(first[b], NEVER if row == NEVER else row - base)
        if math.isfinite(total) and min(first) == NEVER:
            return ()
        finite = samples.flatten(1).isfinite().all(1).tolist()
        rows = [first[b] if finite[b] else min(first[b], plans[b].nfe - 1) for b in range(real)]
        return tuple([BadSample(b, row, plans[b].times[row]) for b, row in enumerate(rows) if row != NEVER])


def states_of(member: Member, workspace: Workspace) -> Tensor:
    """As they are now, [B, *shape]: of samples that have ended their last."""
    r = workspace.registers
    lanes = [(b, lane) for b, lane in enumerate(member.lanes) if lane != NOWHERE]
    states = r.y.new_zeros(member.call.batch, r.n) if member.final is None else member.final[:, : r.n].clone()
    if lanes:
        samples, places = (upload(each, r.y.device) for each in zip(*lanes, strict=True))
        states.index_copy_(0, samples, r.y[places, : r.n])
    return unflatten(states, member.call.shape, r.channels).contiguous()
