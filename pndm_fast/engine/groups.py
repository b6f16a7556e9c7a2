"""The groups of an engine, and what they take from its sampler: evaluations, segments, buffers, graphs, costs."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

from pndm_fast.engine.alone import Alone
from pndm_fast.engine.group import Group
from pndm_fast.engine.member import Member
from pndm_fast.engine.policy import Policy
from pndm_fast.engine.resident import Resident
from pndm_fast.loop import lanes
from pndm_fast.loop.call import SEEDS, Call
from pndm_fast.loop.evaluation import Evaluation, evaluation_of
from pndm_fast.loop.network import Identity
from pndm_fast.loop.positions import Kind, Positions
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.workspace import BufferSpec, Workspace
from pndm_fast.row.table import layout_for
from pndm_fast.runtime import executor
from pndm_fast.runtime.executor import Executor, Held, captures, idle_workspaces, take_executor
from pndm_fast.runtime.graphs import KEPT
from pndm_fast.runtime.sampler import Sampler

# buffers, or graphs with a network's activations, that groups without a request keep, besides those that were prepared
IDLE = KEPT
MEASURED = 0.005  # seconds that a measurement takes at least; the best of `BLOCKS`
BLOCKS = 3


class Plot(NamedTuple):
    """How a call is to be run: what of it depends on the engine alone.

    Attributes:
        segments: of its kinds of rows, without their place; keys: the groups of these.
        alone: why no other request's samples can be beside its own, None where they can.
    """

    call: Call
    segments: dict[Kind, Segment]
    keys: dict[Kind, Hashable]
    alone: str | None


class Key:
    """What samples of one batch have in common. Its hash is asked for often, and walks over a tree."""

    def __init__(self, kind: Kind, *parts: Hashable) -> None:
        self.kind, self._parts = kind, (kind, *parts)
        self._hash = hash(self._parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Key) and self._parts == other._parts)


class Groups:
    """Those with requests, and the last ones without.

    Args:
        buckets: batch sizes of network calls.
    """

    def __init__(self, sampler: Sampler, buckets: tuple[int, ...]) -> None:
        self._sampler, self._machine, self.buckets = sampler, sampler.machine, buckets
        self._groups: OrderedDict[Hashable, Group | Alone] = OrderedDict()
        self._prepared: set[Hashable] = set()
        self._costs: dict[Kind, dict[int, float]] = {}

    def plot(self, call: Call) -> Plot:
        """Where a call's rows belong.

        Raises:
            ValueError: guidance in one call was asked for and cannot be.
        """
        evaluations = self._machine.evaluations(call)
        try:
            keys: dict[Kind, Hashable] = {kind: self._key(call, kind, one) for kind, one in evaluations.items()}
            alone = None
        except lanes.NoLanes as reason:  # for all of its rows
            alone = str(reason)
            call = call.padded(self._sampler.fixed_batch or call.batch)
            evaluations = self._machine.evaluations(call)
            keys = dict.fromkeys(evaluations, call)
        segments = {kind: self._segment(call, one, kind, call.positions(), 0) for kind, one in evaluations.items()}
        return Plot(call, segments, keys, alone)

    def _key(self, call: Call, kind: Kind, evaluation: Evaluation) -> Key:
        """What samples of one batch have in common.

        Raises:
            NoLanes: no other request's can be beside them.
        """
        if call.noise is not None:
            raise lanes.NoLanes("a noise_sampler")
        lists = not captures(self._sampler.graph, call.device)
        form = lanes.form(evaluation.marked, by_row=call.by_row is not None, lists=lists)
        how = Identity(evaluation.weaker.network), evaluation.rescale, evaluation.split_reason is None
        batched = call.guidance.calls == "batched"  # such a one may fail where others go on with two calls
        return Key(kind, *how, batched, form, call.state_dtype, layout_for(call.distinct).width)

    def lanes(self) -> dict[Hashable, int]:
        """Samples under way in each."""
        return {key: group.lanes for key, group in self._groups.items()}

    def policy(self, member: Member) -> Policy:
        """Of the group in which a request's next rows are."""
        return self.policy_of(member.key, member.kind)

    def policy_of(self, key: Hashable, kind: Kind) -> Policy:
        """Of a group, whether it is there or not."""
        known = self._groups.get(key)
        return known.policy if isinstance(known, Group) else self._policy(kind)

    @property
    def costs(self) -> dict[int, float]:
        """Seconds of a call by batch size, of the dearest kind."""
        measured = [item for known in self._costs.values() for item in known.items()]
        return {size: max(cost for other, cost in measured if other == size) for size, _ in measured}

    def _policy(self, kind: Kind) -> Policy:
        costs = self._costs.get(kind, {})
        return Policy({size: costs.get(size) for size in self.buckets})

    def of(self, member: Member) -> Group | Alone:
        """Where a request goes next."""
        found = self._groups.get(member.key)
        if found is None:
            alone = member.key is member.call
            found = Alone(self._take_executor) if alone else self._new(member.call, member.kind, member)
            self._groups[member.key] = found
            self._drop_idle()
        self._groups.move_to_end(member.key)
        member.group = found
        return found

    def ended(self, member: Member) -> None:
        """A request is over: what was its own goes."""
        if member.key is member.call:
            self._groups.pop(member.key, None)

    def _drop_idle(self) -> None:
        """But for the newest, which is last: those that were used last keep theirs."""
        kept = 0
        for key, group in list(reversed(self._groups.items()))[1:]:
            if group.lanes or key in self._prepared:
                continue
            kept += group.held
            if kept > IDLE:
                del self._groups[key]

    def _new(self, call: Call, kind: Kind, member: Member | None = None) -> Group:
        positions, left = self._start_of(call, kind) if member is None else (member.positions, member.left)
        at = tuple(positions.at)
        call = replace(call, origin=SEEDS)  # what it starts from is not to be kept

        def example(batch: int) -> Segment:
            some = call.resized(batch)
            here = Positions(some.plans, [*at[:batch], *at[:1] * (batch - len(at))])
            return self._segment(some, evaluation_of(some, kind, self._machine.setup.networks), kind, here, left)

        return Group(self, self._policy(kind), example)

    def _start_of(self, call: Call, kind: Kind) -> tuple[Positions, int]:
        positions = call.positions()
        for other, count in call.segments:
            if other == kind:
                return positions, count
            positions.advance(count)
        raise AssertionError("a call has rows of each of its kinds")

    def _segment(self, call: Call, evaluation: Evaluation, kind: Kind, positions: Positions, count: int) -> Segment:
        return self._machine.segment(call, evaluation, positions, kind, count)

    def prepare(self, call: Call, sizes: Sequence[int]) -> None:
        """Make buffers, or graphs, for an example and these batch sizes, and measure what their calls cost.

        Raises:
            ValueError: nothing can be beside it in a batch.
        """
        plot = self.plot(call)
        if plot.alone is not None:
            raise ValueError(f"example must be a request that others can share a batch with, got {plot.alone}")
        for kind, key in plot.keys.items():
            group = self._groups.get(key)
            if not isinstance(group, Group):
                group = self._groups[key] = self._new(plot.call, kind)
            self._prepared.add(key)
            costs = self._costs.setdefault(kind, {})
            for size in reversed(sizes):  # the largest first: what it takes, smaller ones may find free again
                costs[size] = self._cost(group.prepared(size))
            for other, one in self._groups.items():
                if isinstance(one, Group) and isinstance(other, Key) and other.kind == kind:
                    one.policy = self._policy(kind)

    def _cost(self, resident: Resident) -> float:
        """Seconds of a network call, with lanes that stand at a halt row."""
        rows, cuda = resident.held.executor.rows, executor.cuda_of(self._sampler.device)

        def timed(count: int) -> float:
            began = perf_counter()
            rows(count)
            if cuda is not None:
                event = cuda.event()
                event.record()
                event.synchronize()
            return (perf_counter() - began) / count

        timed(1)
        count = max(1, math.ceil(MEASURED / timed(1)))
        return min([timed(count) for _ in range(BLOCKS)])

    # what a group asks for

    def hold(self, segment: Segment, rows: int) -> Held:
        """Buffers that stay, with what runs their rows."""
        return executor.hold(self._sampler.cache, segment, rows, self._sampler.graph)

    def take(self, spec: BufferSpec) -> Workspace:
        """Buffers for a time."""
        idle = self._idle(spec)
        return idle.pop() if idle else Workspace(spec)

    def give(self, workspace: Workspace) -> None:
        """They are free again."""
        self._idle(workspace.spec).append(workspace)

    def _idle(self, spec: BufferSpec) -> deque[Workspace]:
        return idle_workspaces(self._sampler.cache, spec)

    def _take_executor(self, segment: Segment, positions: Positions) -> AbstractContextManager[Executor]:
        sampler = self._sampler
        return take_executor(sampler.cache, segment, positions, sampler.graph, self.buckets[-1])
