"""A request that no other can share a batch with: rows of its own, as `Sampler` runs them, one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from pndm_fast.engine.member import Member
from pndm_fast.loop.positions import Positions
from pndm_fast.loop.run import following, samples_of
from pndm_fast.loop.segment import Segment
from pndm_fast.runtime.executor import Executor

Take = Callable[[Segment, Positions], AbstractContextManager[Executor]]


class Alone:
    """A group of one request, whose samples that have ended stay beside the others until the last one ends.

    Args:
        take: an executor of a segment.

    Attributes:
        calls: of the network, in a row; places: in each of them; ran: rows that its request does not know of, none.
    """

    held = 0  # sizes that there are buffers for

    def __init__(self, take: Take) -> None:
        self._take = take
        self._stack = contextlib.ExitStack()
        self._executor: Executor | None = None
        self.calls = self.places = self.ran = 0
        self.members: list[Member] = []

    @property
    def lanes(self) -> int:
        """Samples under way."""
        return sum([member.call.real for member in self.members])

    def join(self, member: Member, segment: Segment, coming: int) -> None:
        """Begin a segment."""
        self.members.append(member)
        self._executor = self._stack.enter_context(self._take(segment, member.positions))
        member.ran.append(self._executor)
        self.calls, self.places = self._executor.segment.evaluation.calls, member.call.batch
        member.begin(0)

    def watch(self, member: Member) -> None:
        """Its `look` is to see the next row, as each is seen here."""

    def row(self) -> list[Member]:
        """Execute one row; the request, where it is no more here."""
        (member,), executor = self.members, self._executor
        assert executor is not None
        try:
            self._row(member, executor)
        except BaseException as error:
            member.error = error
            self.leave(member)
        if member.error is None and not member.left:
            self._end(member, executor)
        return [] if member in self.members else [member]

    def _row(self, member: Member, executor: Executor) -> None:
        call, positions = member.call, member.positions
        follow = following(executor.segment, executor.workspace, positions, member.on_step())
        executor.rows(1)
        positions.advance(1)
        member.left -= 1
        follow()
        if member.advance is not None:
            member.advance()
        if call.by_row is not None and not member.over:
            call.by_row.go(positions.run)

    def _end(self, member: Member, executor: Executor) -> None:
        r, real = executor.workspace.registers, member.call.real
        if member.over:
            member.final = r.y[:real].clone()
            member.marks = [(list(range(real)), executor.segment.first_rows()[:real], r.first_bad[:real].clone())]
        else:
            member.snapshot = executor.workspace.snapshot()
        self.leave(member)

    def drop(self, member: Member) -> None:
        """End a request where it is."""
        try:
            states = None if self._executor is None else samples_of(self._executor.segment, self._executor.workspace)
            member.cancel(states)
        except Exception as error:  # no memory
            member.error = error
        self.leave(member)

    def leave(self, member: Member) -> None:
        """Give back what its rows are run by."""
        if member in self.members:
            self.members.remove(member)
        self._executor = None
        self._stack.close()
