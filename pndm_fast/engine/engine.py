"""`Engine`: requests join a running batch and leave it, and each gets the bytes that it would get alone."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pndm_fast.engine.alone import Alone
from pndm_fast.engine.group import Group
from pndm_fast.engine.member import Member
from pndm_fast.engine.policy import Policy, Waiting, admitted
from pndm_fast.loop import lanes
from pndm_fast.loop.call import Call, resolve
from pndm_fast.loop.checks import check_sizes
from pndm_fast.loop.evaluation import Evaluation
from pndm_fast.loop.network import Identity
from pndm_fast.loop.positions import Kind, Positions
from pndm_fast.loop.request import Request, check_request
from pndm_fast.loop.results import Cancelled, NonFiniteError, Result
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.workspace import BufferSpec, Workspace
from pndm_fast.plan.checks import choose
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.row.device import Fetched, fetch
from pndm_fast.row.table import layout_for
from pndm_fast.runtime.cuda import cuda_of
from pndm_fast.runtime.executor import Executor, Held, Pace, hold, report_of, take_executor
from pndm_fast.runtime.sampler import Sampler

IDLE = 8  # groups without a request that keep their buffers
MODES = ("auto", "replay", "eager")


class QueueFull(RuntimeError):
    """A request was refused: as many as `max_queue` allows are waiting."""


class Finished(NamedTuple):
    """A request that is no longer in the engine.

    Attributes:
        id: that `add` gave it.
        result: what `Sampler.run` would return; error: what it would raise. One of them is None.
    """

    id: int
    result: Result | None
    error: BaseException | None


class Landing(NamedTuple):
    """A request whose samples may still be on their way."""

    member: Member
    samples: Tensor
    numbers: Fetched


class Engine:
    """A network that many requests share: each call of it carries samples of several, at rows of their own plans.

    Args:
        model, plan, device, dtype, time_dtype, backend, memory_format, fixed_batch: of `Sampler`.
        shape: (capacity, *sample shape): how many samples may be under way, and be in one call of the network.
        graph: auto, replay or eager.
        buckets: batch sizes of network calls; default powers of two up to the capacity, or `fixed_batch`.
        max_queue: how many requests may wait; None for any number.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Sequence[Callable[..., Any]],
        plan: Plan | None = None,
        *,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        time_dtype: torch.dtype | None = None,
        backend: str = "auto",
        graph: str = "auto",
        memory_format: torch.memory_format | None = None,
        fixed_batch: int | None = None,
        buckets: Iterable[int] | None = None,
        max_queue: int | None = None,
    ) -> None:
        choose("graph", graph, MODES)
        self._sampler = Sampler(
            model,
            plan,
            shape=shape,
            device=device,
            dtype=dtype,
            time_dtype=time_dtype,
            backend=backend,
            graph=graph,
            memory_format=memory_format,
            fixed_batch=fixed_batch,
        )
        self.max_queue = None if max_queue is None else check_sizes("max_queue", [max_queue])[0]
        self.buckets = self._check_buckets(buckets)
        self._lock = threading.Lock()
        self._line: list[Member] = []
        self._known: dict[int, Member] = {}
        self._running: list[Member] = []
        self._landing: deque[Landing] = deque()
        self._over: list[Finished] = []
        self._groups: OrderedDict[Hashable, Group | Alone] = OrderedDict()
        self._costs: dict[Kind, dict[int, float]] = {}
        self._pace = Pace(self._sampler.device)
        self._next = 0
        self._cancelling = False
        self.counts: Counter[str] = Counter()

    @property
    def capacity(self) -> int:
        """How many samples may be under way."""
        return self._sampler.shape[0]

    def _check_buckets(self, buckets: Iterable[int] | None) -> tuple[int, ...]:
        fixed, capacity = self._sampler.fixed_batch, self.capacity
        if fixed is not None:
            if buckets is not None and list(buckets) != [fixed]:
                raise ValueError(f"buckets must be [{fixed}], the engine's fixed_batch, got {list(buckets)}")
            return (fixed,)
        if buckets is None:
            return tuple(sorted({*[1 << k for k in range(capacity.bit_length())], capacity}))
        sizes = sorted(set(check_sizes("buckets", buckets)))
        if sizes[-1] != capacity:
            raise ValueError(f"buckets must end with the capacity, {capacity}, got {sizes}")
        return tuple(sizes)

    def add(self, request: Request, *, priority: int = 0) -> int:
        """Put a request in line. Any thread may. Its tensors must stay as they are until it has finished.

        Args:
            priority: larger ones go first, of equal ones the earlier.

        Returns:
            What `Finished` and `cancel` know it by.

        Raises:
            TypeError, ValueError: naming the argument; nothing is in line then.
            QueueFull: too many wait.
        """
        if not is_integer(priority):
            raise TypeError(f"priority must be an integer, got {priority!r}")
        sampler = self._sampler
        sampler._look_at_modes()
        with sampler._modes():
            call = resolve(check_request(request), sampler._setup)
            if call.batch > self.capacity:
                raise ValueError(
                    f"a request must have at most as many samples as the engine has lanes, {self.capacity}, got "
                    f"{call.batch}"
                )
            evaluations = sampler._evaluations(call)
            keys = {kind: self._key(call, kind, evaluations[kind]) for kind, _ in call.segments}
            if None in keys.values():  # for all of its rows
                call = call.padded(sampler.fixed_batch or call.batch)
                evaluations = sampler._evaluations(call)
                keys = dict.fromkeys(keys, call)
            sampler._table(call.distinct, call.state_dtype)
        with self._lock:
            if self.max_queue is not None and len(self._line) >= self.max_queue:
                raise QueueFull(f"{len(self._line)} requests wait, and max_queue is {self.max_queue}")
            member = Member(self._next, request, call, evaluations, keys, int(priority))
            self._next += 1
            self._known[member.number] = member
            self._line.append(member)
            self._line.sort(key=lambda one: one.order)
        return member.number

    def cancel(self, number: int) -> bool:
        """End a request: the next `step` gives it back with `Cancelled`. Any thread may. False where it has ended."""
        with self._lock:
            member = self._known.get(number)
            if member is None:
                return False
            member.cancelled = self._cancelling = True
            return True

    def _key(self, call: Call, kind: Kind, evaluation: Evaluation) -> Hashable:
        """What samples of one batch have in common; None where no other request's can be beside them."""
        if call.noise is not None:
            return None
        captured = self._sampler.graph != "eager" and cuda_of(call.device) is not None
        try:
            form = lanes.form(evaluation.marked, by_row=call.by_row is not None, lists=not captured)
        except lanes.NoLanes:
            return None
        how = kind, Identity(evaluation.weaker.network), evaluation.rescale, evaluation.split_reason is None
        batched = call.guidance.calls == "batched"
        return how, batched, form, call.state_dtype, layout_for(call.distinct).width

    def step(self) -> list[Finished]:
        """One row of the requests in the group of the first one; what has finished since the last time."""
        with self._sampler._modes():
            self._cancel()
            self._admit()
            if self._running:
                self._row()
            self._land()
        over, self._over = self._over, []
        return over

    def _row(self) -> None:
        first = self._running[0]
        group = self._groups[first.key]
        count, calls = group.lanes, group.calls
        try:
            left = group.row()
        except BaseException:
            self._end([member for member in self._running if member.error is not None])
            raise
        self._pace.tick()
        self.counts.update(rows=1, network_calls=calls, lane_rows=count)
        if left:
            self._end(left)

    def _end(self, left: list[Member]) -> None:
        for member in left:
            if member.error is not None:
                self._finish(member, None, member.error)
            elif member.over:
                self._running.remove(member)
                self._arrive(member)
            else:
                member.next_segment()
                self._place(member, len(member.live()))

    def _cancel(self) -> None:
        """Take out what is to end before its next row."""
        waiting = [member for member in self._line if member.cancel_asked()]
        running = [member for member in self._running if member.cancelled] if self._cancelling else []
        self._cancelling = False
        for member in waiting:
            with self._lock:
                self._line.remove(member)
            self._finish(member, None, Cancelled(-1, None, None))
        for member in running:
            self._groups[member.key].drop(member)
            self._finish(member, None, member.error)

    def _admit(self) -> None:
        with self._lock:
            line = list(self._line)
        if not line:
            return
        waiting = [Waiting(member.call.real, member.key) for member in line]
        running = {key: group.lanes for key, group in self._groups.items()}
        allowed = {one.group: self._policy(member).lanes() for one, member in zip(waiting, line, strict=True)}
        free = self.capacity - sum([len(member.live()) for member in self._running])
        begin = [line[place] for place in admitted(waiting, running, allowed, free)]
        if not begin:
            return
        with self._lock:
            self._line = [member for member in self._line if member not in begin]
        coming = Counter[Hashable]()
        for member in begin:
            coming[member.key] += member.call.real
        for member in begin:
            self._running.append(member)
            self._place(member, coming[member.key])
            coming[member.key] -= member.call.real
        self._running.sort(key=lambda one: one.order)

    def _policy(self, member: Member) -> Policy:
        known = self._groups.get(member.key)
        if isinstance(known, Group):
            return known.policy
        costs = self._costs.get(member.kind, {})
        return Policy({size: costs.get(size) for size in self.buckets})

    def _place(self, member: Member, coming: int) -> None:
        """Into the group of its next rows."""
        segment = self._segment(member.call, member.evaluations, member.kind, member.left, member.positions)
        segment = segment._replace(snapshot=member.snapshot)
        try:
            group = self._group(member)
            group.join(member, segment, coming)
        except Exception as error:
            member.error = error
            self._groups[member.key].leave(member)
            self._finish(member, None, error)

    def _group(self, member: Member) -> Group | Alone:
        key = member.key
        if key not in self._groups:
            self._groups[key] = Alone(self._executor) if key is member.call else self._new(member)
        self._groups.move_to_end(key)
        idle = [other for other, group in self._groups.items() if not group.lanes and other != key]
        for other in idle[: max(len(idle) - IDLE, 0)]:
            del self._groups[other]
        return self._groups[key]

    def _new(self, member: Member) -> Group:
        call, kind, left, at = member.call, member.kind, member.left, tuple(member.positions.at)

        def example(batch: int) -> Segment:
            some = call.resized(batch)
            positions = Positions(some.plans, [*at[:batch], *at[:1] * (batch - len(at))])
            return self._segment(some, self._sampler._evaluations(some), kind, left, positions)

        return Group(self, self._policy(member), example)

    def _segment(
        self, call: Call, evaluations: dict[Kind, Evaluation], kind: Kind, count: int, positions: Positions
    ) -> Segment:
        return self._sampler._segment(call, evaluations[kind], positions, kind, count, None)

    def _arrive(self, member: Member) -> None:
        """Its last row was launched: read what becomes of it, without waiting."""
        workspace = member.ran[-1].workspace
        samples = member.samples(workspace.registers.n, workspace.registers.channels)
        self._landing.append(Landing(member, samples, fetch(*[raw for _, _, raw in member.marks], samples.sum())))

    def _land(self) -> None:
        """Give out what has arrived; where nothing else is to be done, wait for it."""
        while self._landing and (self._landing[0].numbers.ready() or not (self._running or self._over)):
            member, samples, numbers = self._landing.popleft()
            *marks, _ = numbers()
            bad = () if member.request.on_nan == "ignore" else member.bad(marks, samples)
            seconds = time.perf_counter() - (member.began or 0.0)
            report = report_of(self._sampler.cache, member.ran, seconds, self._sampler.batch_error)
            error = NonFiniteError(bad, samples, report) if bad and member.request.on_nan == "raise" else None
            if bad:
                samples[[b.sample for b in bad]] = float("nan")
            self._finish(member, Result(samples, report, bad), error)

    def _finish(self, member: Member, result: Result | None, error: BaseException | None) -> None:
        if member in self._running:
            self._running.remove(member)
        with self._lock:
            del self._known[member.number]
        self._over.append(Finished(member.number, None if error is not None else result, error))

    # what groups ask for

    def _executor(self, segment: Segment, positions: Positions) -> AbstractContextManager[Executor]:
        sampler = self._sampler
        return take_executor(sampler.cache, segment, positions, sampler.graph, self.capacity)

    def hold(self, segment: Segment, rows: int) -> Held:
        """Buffers that stay."""
        return hold(self._sampler.cache, segment, rows, self._sampler.graph)

    def take(self, spec: BufferSpec) -> Workspace:
        """Buffers for a time."""
        return Workspace(spec)

    def give(self, workspace: Workspace) -> None:
        """They are free again."""

    @property
    def running(self) -> int:
        """Requests with samples under way."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def idle(self) -> bool:
        """Whether no request is in the engine, and none to be given back."""
        return not self._known and not self._over
