"""Samples of any requests that call a network in one way, at rows of their own plans: one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pndm_fast.engine.lines import Lines
from pndm_fast.engine.member import NOWHERE, Member, states_of
from pndm_fast.engine.policy import Policy
from pndm_fast.engine.resident import Resident, conditioning_of
from pndm_fast.loop.evaluation import Evaluation
from pndm_fast.loop.run import following
from pndm_fast.loop.segment import Segment, room
from pndm_fast.loop.workspace import BufferSpec, Workspace
from pndm_fast.row.device import upload
from pndm_fast.row.registers import NEVER
from pndm_fast.runtime.executor import Held

LEAST_ROWS = 1024  # of the table; a full one is replaced by one of twice as many


class Source(Protocol):
    """What a group asks of its engine."""

    def hold(self, segment: Segment, rows: int) -> Held: ...
    def take(self, spec: BufferSpec) -> Workspace: ...
    def give(self, workspace: Workspace) -> None: ...


class Group:
    """Lanes.

    Args:
        example: (batch) -> a segment of its kind, for making buffers of that batch.

    Attributes:
        members: requests with samples here; ran: rows so far.
    """

    def __init__(self, source: Source, policy: Policy, example: Callable[[int], Segment]) -> None:
        self._source, self.policy, self._example = source, policy, example
        self._residents: dict[int, Resident] = {}
        self._resident: Resident | None = None
        self._owners: list[tuple[Member, int]] = []
        self.lines = Lines(LEAST_ROWS)
        self.members: list[Member] = []
        self._watched: list[Member] = []
        self._lent: list[Member] = []
        self.ran, self._due = 0, -1
        self._last: Resident
        self._fitted = 0

    @property
    def lanes(self) -> int:
        """Samples under way."""
        return len(self._owners)

    @property
    def held(self) -> int:
        """Sizes that there are buffers for."""
        return len(self._residents)

    @property
    def places(self) -> int:
        """Of a network call, those of idle lanes included."""
        return self._last.batch

    @property
    def calls(self) -> int:
        """Network calls of a row."""
        return self._last.evaluation.calls

    @property
    def resident(self) -> Resident:
        """The buffers in use."""
        assert self._resident is not None
        return self._resident

    def prepared(self, batch: int) -> Resident:
        """Buffers for that batch, made where there are none yet."""
        found = self._residents.get(batch)
        if found is not None and found.held.stale():
            found = None
        if found is None:
            segment = self._example(batch)
            if room(segment.table.rows, LEAST_ROWS) > self.lines.rows:
                self.lines.rows = room(segment.table.rows, LEAST_ROWS)
            found = self._residents[batch] = Resident(self._source.hold(segment, self.lines.rows))
        return found

    def fit(self, lanes: int) -> None:
        """Go on in buffers of the size for so many lanes."""
        old = self._resident
        if lanes == self._fitted and old is not None:
            return
        batch = self.policy.bucket(lanes)
        if old is not None and old.batch == batch and self._residents.get(batch) is old:
            self._fitted = lanes
            return
        self._resident = new = self.prepared(batch)
        for member, b in self._owners:
            self._write(member, b)
        if old is not None and self._owners and not new.take_over(len(self._owners), old):
            for member in self.members:
                self._condition(member)
        new.free(len(self._owners), new.batch)
        if old is not None:
            old.free(0, old.batch)
        self._fitted = lanes

    def _write(self, member: Member, sample: int) -> None:
        assert member.segment is not None
        entry = member.entries[sample]
        which = member.call.plan_of[sample]
        table = member.segment.table
        self.resident.write(entry, table, table.first[which])

    def _evaluation(self, member: Member) -> Evaluation:
        """As this batch takes it."""
        own, reason = member.segments[member.kind].evaluation, self.resident.evaluation.split_reason
        return own.split(member.call, reason) if reason and own.split_reason is None else own

    def _condition(self, member: Member) -> None:
        values = conditioning_of(self._evaluation(member), member.call.batch)
        for b, lane in enumerate(member.lanes):
            if lane != NOWHERE:
                self.resident.condition(lane, *values[b])

    def join(self, member: Member, segment: Segment, coming: int) -> None:
        """Begin a request's segment here.

        Args:
            coming: samples that join now, with those of this request.

        Raises:
            ValueError: its conditioning of this row cannot be had, or a graph cannot.
        """
        live = member.live()
        if self._resident is not None and self._resident.held.stale():
            self._residents.pop(self._resident.batch, None)
            self._fitted = 0
        self.fit(len(self._owners) + coming)
        member.segment = segment = segment._replace(evaluation=self._evaluation(member))
        own = self._begun(member, segment)
        values = conditioning_of(segment.evaluation, member.call.batch)
        self._take_lines(member, live)
        self._set_rows(member, segment, own, live)
        for b in live:
            lane = member.lanes[b] = len(self._owners)
            self._owners.append((member, b))
            self._write(member, b)
            self.resident.put(lane, own, b, *values[b])
        self._add(member, own)

    def _begun(self, member: Member, segment: Segment) -> Workspace:
        spec = self.resident.workspace.spec
        table = room(segment.table.rows), spec.table[1]
        own = self._source.take(spec._replace(batch=member.call.batch, table=table))
        segment.begin(own)
        if segment.snapshot is not None:
            own.registers.first_bad.fill_(NEVER)  # the group before has told
        return own

    def _set_rows(self, member: Member, segment: Segment, own: Workspace, live: list[int]) -> None:
        """From lines of the request's own table to the group's."""
        row = own.registers.row
        if len(member.call.distinct) == 1:
            row.add_(member.entries[live[0]].base - segment.table.first[0])
            return
        numbers = [0] * member.call.batch
        for b in live:
            numbers[b] = member.entries[b].base + member.positions.at[b]
        row.copy_(upload(numbers, own.spec.device, row.dtype))

    def _take_lines(self, member: Member, samples: list[int]) -> None:
        for b in samples:
            entry = self.lines.take(member.call.plans[b])
            while entry is None:
                self.lines.rows *= 2
                self._residents.clear()
                self._fitted = 0
                self.fit(self.resident.batch)
                entry = self.lines.take(member.call.plans[b])
            member.entries[b] = entry

    def _add(self, member: Member, own: Workspace) -> None:
        if member.changes:
            member.own = own
        else:
            self._source.give(own)
        self.members.append(member)
        if member.watched:
            self._watched.append(member)
        executor = self.resident.held.executor
        launches = (member.left,) if executor.graph != "eager" else ()
        assert member.segment is not None
        member.ran.append(executor._replace(segment=member.segment, launches=launches))
        member.begin(self.ran)
        if member.look is not None:
            self.watch(member)
        self._schedule()

    def watch(self, member: Member) -> None:
        """Its `look` is to see the next row: for that it has buffers of its own, as those whose states change have."""
        if member in self._lent or member not in self.members:  # its last row was run
            return
        self._lent.append(member)
        member.sync(self.ran)
        try:
            if member.own is None:
                member.own = own = self._source.take(self.resident.workspace.spec._replace(batch=member.call.batch))
                if member.final is not None:
                    own.registers.y.copy_(member.final)  # of samples that have ended
                self._gather(member, own)
        except Exception as error:  # no memory: it ends with its next row
            member.error = error
        if member not in self._watched:
            self._watched.append(member)

    def _give_back(self) -> None:
        for member in self._lent:
            if member.own is not None and not member.changes:
                self._source.give(member.own)
                member.own = None
            if not member.watched and member in self._watched:
                self._watched.remove(member)
        self._lent.clear()

    def _schedule(self) -> None:
        self._due = min([member.due for member in self.members], default=-1)

    def row(self) -> list[Member]:
        """Execute one row of all; who then is no more here: at an end, at a row of another kind, or for an error."""
        self._last = self.resident
        try:
            self.fit(len(self._owners))
            follows = [(member, self._before(member)) for member in self._watched]
            self._last = self.resident
            self._last.held.executor.rows(1)
        except BaseException as error:  # Ctrl-C too: the engine hands it on, once all are accounted for
            return self._fail(error)
        self.ran += 1
        left = [member for member, follow in follows if not self._after(member, follow)]
        if self._lent:
            self._give_back()
        if self.ran == self._due:
            left += self._ends()
        return left

    def _fail(self, error: BaseException) -> list[Member]:
        """End all requests here. Their buffers may be half written, and are made anew."""
        self._residents.clear()
        self._resident = None
        left = list(self.members)
        for member in left:
            member.error = error
            self.leave(member)
        return left

    def _before(self, member: Member) -> Callable[[], bool] | None:
        if member.own is None or member.segment is None or member.error is not None:
            return None
        try:
            return following(member.segment, member.own, member.positions, member.on_step())
        except Exception as error:  # no memory: the row is for the others
            member.error = error
            return None

    def _after(self, member: Member, follow: Callable[[], bool] | None) -> bool:
        """What is done between rows; whether the request goes on."""
        if member.error is not None:
            self.leave(member)
            return False
        try:
            if follow is not None and member.own is not None:
                self._gather(member, member.own)
                member.sync(self.ran)
                if follow():
                    self._scatter(member, member.own)
            else:
                member.sync(self.ran)
            if member.advance is not None:
                member.advance()
            if member.call.by_row is not None and not member.over:
                member.call.by_row.go(member.positions.run)
                if member.left:
                    self._condition(member)
        except BaseException as error:
            member.error = error
        if member.error is not None:
            self.leave(member)
        return member.error is None

    def _gather(self, member: Member, own: Workspace) -> None:
        for b, lane in enumerate(member.lanes):
            if lane != NOWHERE:
                own.put(b, self.resident.workspace, lane)

    def _scatter(self, member: Member, own: Workspace) -> None:
        for b, lane in enumerate(member.lanes):
            if lane != NOWHERE:
                self.resident.workspace.put(lane, own, b)

    def _ends(self) -> list[Member]:
        """Let go of samples at their last row, and of requests at their segment's."""
        left = []
        for member in [member for member in self.members if member.due == self.ran]:
            try:
                goes_on = self._end(member)
            except BaseException as error:
                member.error, goes_on = error, False
            if not goes_on:
                self.leave(member)
                left.append(member)
        self._schedule()
        return left

    def _end(self, member: Member) -> bool:
        """A sample's last row was run, or a segment's; whether the request goes on here."""
        member.sync(self.ran)
        self._end_samples(member)
        if member.left and not member.over:
            member.go_on()
            return True
        if not member.over:
            self._snap(member)
        return False

    def _end_samples(self, member: Member) -> None:
        live = set(member.live())
        ended = [b for b, lane in enumerate(member.lanes) if lane != NOWHERE and b not in live]
        if ended:
            r, places = self.resident.workspace.registers, [member.lanes[b] for b in ended]
            if len(ended) == 1:
                which = slice(places[0], places[0] + 1)
                states, first_bad = r.y[which].clone(), r.first_bad[which].clone()
            else:
                index = upload(places, r.y.device)
                states, first_bad = r.y[index], r.first_bad[index]
            member.keep(ended, states)
            member.mark(ended, first_bad)
            self._vacate(member, ended)

    def _snap(self, member: Member) -> None:
        """Take along what the next segment begins with."""
        own = member.own or self._source.take(self.resident.workspace.spec._replace(batch=member.call.batch))
        self._gather(member, own)
        member.snapshot = own.snapshot()
        here = [b for b, lane in enumerate(member.lanes) if lane != NOWHERE]
        member.mark(here, member.snapshot.first_bad[upload(here, own.spec.device)])
        self._source.give(own)
        member.own = None

    def drop(self, member: Member) -> None:
        """End a request where it is."""
        member.sync(self.ran)
        try:
            member.cancel(states_of(member, self.resident.workspace))
        except Exception as error:  # no memory
            member.error = error
        self.leave(member)

    def leave(self, member: Member) -> None:
        """Free a request's lanes."""
        if member not in self.members:
            return
        self._vacate(member, [b for b, lane in enumerate(member.lanes) if lane != NOWHERE])
        self.members.remove(member)
        for watched in (self._watched, self._lent):
            if member in watched:
                watched.remove(member)
        if member.own is not None:
            self._source.give(member.own)
            member.own = None
        self._schedule()

    def _vacate(self, member: Member, samples: list[int]) -> None:
        """The last lanes move into theirs."""
        before = len(self._owners)
        for b in samples:
            lane, last = member.lanes[b], len(self._owners) - 1
            if lane != last:
                other, its = self._owners[lane] = self._owners[last]
                other.lanes[its] = lane
                if self._resident is not None:
                    self.resident.move(lane, last)
            self._owners.pop()
            member.lanes[b] = NOWHERE
            self.lines.give(member.entries[b])
        if self._resident is not None and samples:
            self.resident.free(len(self._owners), before)
