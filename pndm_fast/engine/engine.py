"""`Engine`: requests join a running batch and leave it, and each gets the bytes that it would get alone."""

from __future__ import annotations

import bisect
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from pndm_fast.engine.errors import QueueFull
from pndm_fast.engine.groups import Groups
from pndm_fast.engine.member import Member
from pndm_fast.engine.policy import Waiting, admitted
from pndm_fast.engine.results import Checked, Finished, Landing, OneAtATime, Stats, check_buckets, refuse_memory
from pndm_fast.loop.call import resolve
from pndm_fast.loop.checks import check_shape, check_sizes
from pndm_fast.loop.request import Request, check_request
from pndm_fast.loop.results import Cancel, Cancelled, Result, Step
from pndm_fast.plan.checks import choose, shown
from pndm_fast.plan.hints import in_words
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.runtime.progress import progress_lines
from pndm_fast.runtime.sampler import Sampler
from pndm_fast.runtime.watched import Pace


@in_words("Engine")
class Engine:
    """A network that many requests share: each call of it carries samples of several, at rows of their own plans.

    `add` and `cancel` may be called by any thread, all else by one at a time. A request's result has the bytes that
    `Sampler` gives, where what the network says of a sample does not depend on those beside it, or with `fixed_batch`,
    where calls of that size treat all places alike: `prepare` measures both as `batch_error`. Requests whose
    conditioning has another form, or shares other values, are in batches of their own; so is one with a
    `noise_sampler`.

    The first row of a batch size that was not prepared is preceded by one more call of the network, which tells of its
    outputs. Where the network raises, all requests in that batch end with its error, for nobody knows whose it is, and
    the engine goes on with the others. A request's tensors must stay as they are until it has ended, and the network's
    weights while it runs; graphs of weights that were replaced are made anew when the next request joins.

    Args:
        model, plan, device, dtype, time_dtype, backend, memory_format, fixed_batch: of `Sampler`.
        shape: (capacity, *sample shape): how many samples may be under way, and so in one call of the network; default
            one of the shape in model.config. A request with one seed is for one sample.
        graph: `replay` (network and row as one graph, launched for each row), `eager`, or `auto`, which is `replay`
            where that can be had on a CUDA device.
        buckets: batch sizes of network calls, the last one the capacity; default `fixed_batch`, else powers of two
            where graphs are captured, and elsewhere sizes at most 1/8 apart.
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
        choose("graph", graph, ("auto", "replay", "eager"))
        whole = None if shape is None else check_shape(shape)
        self._capacity = 1 if whole is None else whole[0]
        self._sampler = Sampler(
            model,
            plan,
            shape=None if whole is None else (1, *whole[1:]),
            device=device,
            dtype=dtype,
            time_dtype=time_dtype,
            backend=backend,
            graph=graph,
            memory_format=memory_format,
            fixed_batch=fixed_batch,
        )
        self.max_queue = None if max_queue is None else check_sizes("max_queue", [max_queue])[0]
        self._groups = Groups(self._sampler, check_buckets(buckets, self.capacity, self._sampler))
        self._lock = threading.Lock()  # of the line, of the requests that are known, and of the flags
        self._line: list[Member] = []
        self._known: dict[int, Member] = {}
        self._changed = self._cancelling = False  # whether one may begin, or end
        self._cancels: dict[int, Cancel] = {}
        self._next = 0
        self._running: list[Member] = []
        self._landing: deque[Landing] = deque()
        self._over: list[Finished] = []
        self._entered = OneAtATime()
        self._stops: BaseException | None = None  # what the step under way is to raise
        self._pace = Pace(self._sampler.device)
        self.stats = Stats()
        self.on_begin: Callable[[int], None] | None = None  # told the number of each that leaves the line to run

    @property
    def device(self) -> torch.device:
        """Where the network, and so everything, is."""
        return self._sampler.device

    @property
    def costs(self) -> dict[int, float]:
        """Seconds of a network call by batch size, as `prepare` has measured: of rows of the dearest kind."""
        return self._groups.costs

    @property
    def capacity(self) -> int:
        """How many samples may be under way."""
        return self._capacity

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes of network calls."""
        return self._groups.buckets

    @property
    def batch_error(self) -> float | None:
        """`Report.batch_error`, once `prepare` has measured it."""
        return self._sampler.batch_error

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
        """Whether no request is in the engine, and none is to be given back."""
        return not self._known and not self._over

    def __repr__(self) -> str:
        return f"<Engine of {self._sampler!r}: {self.running} requests running, {self.waiting} waiting>"

    def add(self, request: Request, *, priority: int = 0) -> int:
        """Put a request in line. All that can be refused is refused here, in the caller's thread.

        Args:
            priority: larger ones go first, of equal ones the earlier.

        Returns:
            What `Finished` and `cancel` know it by.

        Raises:
            TypeError, ValueError: naming the argument.
            QueueFull: too many wait.
        """
        return self.enter(self.checked(request, priority))

    def checked(self, request: Request, priority: int) -> Checked:
        """The first half of `add`: all that can be refused but for the line's length."""
        if not is_integer(priority):
            raise TypeError(f"priority must be an integer, got {shown(priority)}")
        machine = self._sampler.machine
        refuse_memory(machine)
        machine.warn_of_new_training()
        with machine.modes():
            call = resolve(check_request(request), machine.setup)
            if call.batch > self.capacity:
                rule = f"at most as many samples as the engine has lanes, {self.capacity}"
                raise ValueError(f"a request must have {rule}, got {call.batch}")
            return Checked.of(request, self._groups.plot(call), int(priority))

    def enter(self, checked: Checked) -> int:
        """The second half: a place in line."""
        request, plot, priority, arrived = checked
        with self._lock:
            if self.max_queue is not None and len(self._line) >= self.max_queue:
                raise QueueFull(len(self._line), self.max_queue)
            member = Member(self._next, request, plot.call, plot.segments, plot.keys, priority, arrived)
            self._next += 1
            self._known[member.number] = member
            if request.cancel is not None:
                self._cancels[member.number] = request.cancel
            bisect.insort(self._line, member, key=lambda one: one.order)
            self._changed = True
        return member.number

    def together(self, checked: Checked) -> int:
        """How many samples are to run beside one another where a request begins, at most."""
        kind = checked.call.segments[0][0]
        return self._groups.policy_of(checked.plot.keys[kind], kind).lanes()

    def done(self, number: int) -> int:
        """How many of a request's rows were run; 0 where it waits, or is not here."""
        member = self._known.get(number)
        return 0 if member is None or member.group is None else member.call.nfe - member.rows_left

    def watch(self, number: int, look: Callable[[Step], None]) -> None:
        """Show a request's next row to `look`, once, as `on_step` would see it. Nothing where it is not here."""
        member = self._known.get(number)
        if member is not None:
            member.look = look
            if member.group is not None:
                member.group.watch(member)

    def cancel(self, number: int) -> bool:
        """End a request: `step` gives it back with `Cancelled`, or as it is after its last row. Whether it was here."""
        member = self._known.get(number)  # no lock: a signal handler may call this while its thread has it
        if member is None:
            return False
        member.cancelled = self._cancelling = True  # in this order: `_take_out` reads them in the other
        return True

    def prepare(self, example: Request | None = None, buckets: Iterable[int] | None = None) -> None:
        """Make everything for these batch sizes now, and measure what a call of each costs.

        From then on as many samples share a call as gain by it, down to one: where a call for two takes as long as two
        calls, requests run one after another. It also measures reports' `batch_error`.

        Args:
            example: of later requests: values do not matter, forms do, and where there is guidance.
            buckets: some of the engine's; default all.

        Raises:
            TypeError, ValueError: naming the argument.
            RuntimeError: requests are running.
        """
        sizes = list(self.buckets) if buckets is None else sorted(set(check_sizes("buckets", buckets)))
        if not set(sizes) <= set(self.buckets):
            raise ValueError(f"buckets must be some of {list(self.buckets)}, the engine's own, got {sizes}")
        if self._running:
            raise RuntimeError(f"prepare must be called while no request is running, got {self.running}")
        machine = self._sampler.machine
        refuse_memory(machine)
        asked = Request() if example is None else check_request(example, "example")
        with self._entered, machine.modes():
            call = resolve(replace(asked, noise_sampler=None), machine.setup, example=True)
            self._groups.prepare(call, sizes)
            self._sampler.batch_error = machine.batch_error(call, self.buckets)

    def step(self) -> list[Finished]:
        """One row for all samples in the batch of the first request; which requests have ended since the last time.

        Where there is no row to run, it waits for results that are on their way.

        Raises:
            RuntimeError: it runs already: in another thread, or one of its own callbacks calls it.
        """
        with self._entered, self._sampler.machine.modes():
            if self._cancelling or any([cancel.is_set() for cancel in list(self._cancels.values())]):
                self._take_out()
            if self._changed:
                self._admit()
            if self._running and self._stops is None:
                self._row()
            if self._landing:
                self._land()
        if self._stops is not None:
            error, self._stops = self._stops, None
            raise error
        over, self._over = self._over, []
        return over

    def _row(self) -> None:
        group = self._running[0].group
        lanes = group.lanes
        left = group.row()
        self._pace.tick()
        self.stats.ran(lanes, group.calls, group.places)
        if left:
            self._end(left)

    def _end(self, left: list[Member]) -> None:
        """Requests that have left their groups: done with, or on their way to another."""
        self._changed = True
        for member in left:
            if member.error is not None:
                self._fail(member, member.error)
            elif member.over:
                self._arrive(member)
            else:
                member.next_segment()
                self._place(member, len(member.live()))

    def _fail(self, member: Member, error: BaseException) -> None:
        self._finish(member, None, error)
        self._stops = self._stops if isinstance(error, Exception) else error  # Ctrl-C, once all are accounted for

    def _take_out(self) -> None:
        """Requests that are to end before their next row."""
        with self._lock:
            self._cancelling = False
            asked = [member for member in self._line if member.cancel_asked()]
            self._line = [member for member in self._line if member not in asked]
            running = [member for member in self._running if member.cancel_asked()]
        for member in asked:
            self._finish(member, None, Cancelled(-1, None, None))
        for member in running:
            member.group.drop(member)
            self._finish(member, None, member.error)

    def _admit(self) -> None:
        """Those in line that may begin now, begin."""
        allowed = dict[Hashable, int]()

        def line() -> Iterator[Waiting]:
            for member in self._line:
                if member.key not in allowed:
                    allowed[member.key] = self._groups.policy(member).lanes()
                yield Waiting(member.call.real, member.key)

        with self._lock:
            self._changed = False
            under_way = self._groups.lanes()
            places = admitted(line(), under_way, allowed, self.capacity - sum(under_way.values()))
            begin = [self._line[place] for place in places]
            for place in reversed(places):
                del self._line[place]
        coming = Counter[Hashable]()
        self._running = sorted([*self._running, *begin], key=lambda one: one.order)
        for member in begin:
            coming[member.key] += member.call.real
            if self.on_begin is not None:
                self.on_begin(member.number)
        for member in begin:
            if member.request.progress:
                member.advance = progress_lines(member.call.plans[0].solver, member.call.nfe)
            if member.arrived is not None:
                member.arrived.wait()
            self._place(member, coming[member.key])
            coming[member.key] -= member.call.real

    def _place(self, member: Member, coming: int) -> None:
        """Into the group of its next rows."""
        group = self._groups.of(member)
        try:
            group.join(member, member.next_rows(), coming)
        except BaseException as error:
            group.leave(member)
            self._fail(member, error)

    def _arrive(self, member: Member) -> None:
        """Its last row was launched: begin to read what becomes of it."""
        try:
            landing = Landing.of(member)
        except Exception as error:
            self._finish(member, None, error)
        else:
            self._running.remove(member)
            self._cancels.pop(member.number, None)
            self._landing.append(landing)

    def _land(self) -> None:
        """Give out what has arrived."""
        while self._landing and (self._landing[0].numbers.ready() or not (self._running or self._over)):
            landing = self._landing.popleft()
            self._finish(landing.member, *landing.concluded(self._sampler))

    def _finish(self, member: Member, result: Result | None, error: BaseException | None) -> None:
        if member in self._running:
            self._running.remove(member)
        self._groups.ended(member)
        with self._lock:
            del self._known[member.number]
            self._cancels.pop(member.number, None)
            self._changed = True
        if isinstance(error, Cancelled):
            self.stats.cancelled += 1
        elif error is not None:
            self.stats.failed += 1
        else:
            self.stats.finished += 1
        self._over.append(Finished(member.number, None if error is not None else result, error))

    def seconds_left(self, number: int) -> float | None:
        """How long a request will take from now on, as costs that were measured predict; None where none were.

        `Policy.seconds_left` says how; a request that runs already is not held up.
        """
        with self._lock:
            member = self._known.get(number)
            if member is None:
                return 0.0
            others = (*self._running, *self._line) if member.waits else ()
            before = [(one.call.real, one.rows_left) for one in others if one.order < member.order]
        return self._groups.policy(member).seconds_left(member.call.real, member.rows_left, before)

    def report(self) -> dict[str, float]:
        """`stats` and what is in the engine now, as plain numbers."""
        now = {"running": self.running, "waiting": self.waiting, "lanes": sum(self._groups.lanes().values())}
        return {**asdict(self.stats), "occupancy": self.stats.occupancy, **now}
