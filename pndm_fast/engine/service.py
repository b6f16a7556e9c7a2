"""What a worker's thread and those who submit to it share, and the thread's loop."""

from __future__ import annotations

import atexit
import contextlib
import functools
import heapq
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from pndm_fast.engine.errors import DeadlineMissed, EngineDown, QueueFull
from pndm_fast.engine.metrics import Metrics
from pndm_fast.engine.policy import foreseen
from pndm_fast.engine.queue import Costs, Job, Queue
from pndm_fast.engine.stream import Stream
from pndm_fast.engine.ticket import Preview, Ticket
from pndm_fast.loop.call import Call
from pndm_fast.loop.request import Request
from pndm_fast.loop.results import Cancelled, Result, Step

OPEN, CLOSING, CLOSED, DOWN = "open", "closing", "closed", "down"
FRESH = 1.0  # seconds without a request after which calls count as unknown: else one slow call could have all refused
_ALL: weakref.WeakSet[Service] = weakref.WeakSet()


class Ended(Protocol):
    """What an engine says of a request that has ended."""

    @property
    def id(self) -> int: ...
    @property
    def result(self) -> Result | None: ...
    @property
    def error(self) -> BaseException | None: ...


class Taken(Protocol):
    """A request that an engine has checked."""

    @property
    def call(self) -> Call: ...


class Stats(Protocol):
    """What an engine has done so far, as `engine.Stats` has it."""

    rows: int
    network_calls: int
    lane_rows: int


class Lanes(Protocol):
    """What is asked of an engine: `Engine`. All but `checked` and `together` is for one thread."""

    on_begin: Callable[[int], None] | None
    max_queue: int | None

    @property
    def capacity(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def idle(self) -> bool: ...
    @property
    def stats(self) -> Stats: ...
    @property
    def costs(self) -> Mapping[int, float]: ...
    def checked(self, request: Request, priority: int) -> Any: ...
    def together(self, taken: Any) -> int: ...
    def enter(self, taken: Any) -> int: ...
    def step(self) -> Sequence[Ended]: ...
    def cancel(self, number: int) -> bool: ...
    def done(self, number: int) -> int: ...
    def watch(self, number: int, look: Callable[[Step], None]) -> None: ...


class Service:
    """Jobs on their way through an engine, and the thread that has it; `_own` begins what is the thread's alone."""

    def __init__(self, engine: Lanes, bound: int | None) -> None:
        self._engine, self._state, self._process = engine, OPEN, os.getpid()
        self._cause: BaseException | None = None
        self._changed = threading.Condition()
        self._queue, self._metrics, self._costs = Queue(bound), Metrics(engine.capacity), Costs(engine.costs)
        self._jobs: dict[Ticket, Job] = {}  # all that are not done
        self._running: set[Job] = set()
        self._watched: set[Job] = set()
        self._inbox: list[Job] = []
        self._gone: list[Job] = []  # done, which the engine does not know yet
        self._own_jobs: dict[int, Job] = {}
        self._own_clock: list[tuple[float, int]] = []
        self._stream = Stream(engine.device)
        self._own_began = 0.0  # when the last step did
        engine.on_begin = self._own_begin
        self._thread = threading.Thread(target=self._run, name="pndm_fast worker", daemon=True)
        _ALL.add(self)
        self._thread.start()

    # for those who submit

    def submit(self, owner: object, request: Request, priority: int, deadline: float | None, late: str) -> Ticket:
        """See `Worker.submit`."""
        now = time.monotonic()
        with self._taking():  # what is refused in any case costs little
            self._queue.check(self._idle(self._metrics.lanes))
        try:
            taken = self._engine.checked(request, priority)
        except Exception:
            with self._changed:
                self._metrics.refused["invalid"] += 1
            raise
        ticket = Ticket(self, owner, taken.call.nfe, taken.call.real, priority, deadline, late)
        job = Job(ticket, taken, now, math.inf if deadline is None else now + deadline, self._stream.callers())
        with self._taking():
            self._queue.check(self._idle(self._engine.together(taken)))
            if deadline is not None and late == "refuse":
                needed = time.monotonic() - now + self._predicted(ticket, taken)
                if needed > deadline:
                    raise DeadlineMissed(deadline, needed, 0, ticket.rows)
            self._metrics.submitted += 1
            self._queue.add(job)
            self._jobs[ticket] = job
            self._inbox.append(job)
            self._changed.notify_all()
        return ticket

    @contextlib.contextmanager
    def _taking(self) -> Iterator[None]:
        """With the lock, while requests are taken; refusals are counted.

        Raises:
            RuntimeError: they are not taken any more.
        """
        self.check_process()
        with self._changed:
            try:
                if self._state == DOWN:
                    raise EngineDown(f"the engine is down: {_words(self._cause)}") from self._cause
                if self._state != OPEN:
                    raise RuntimeError("the worker is closed: nothing can be submitted any more")
                yield
            except Exception as error:
                reasons = {QueueFull: "queue_full", DeadlineMissed: "deadline", EngineDown: "down"}
                self._metrics.refused[reasons.get(type(error), "closed")] += 1
                raise

    def _predicted(self, ticket: Ticket, taken: Any) -> float:
        """Seconds until it would be done: 0 where no call's cost is known."""
        if not self._jobs and time.monotonic() - self._own_began > FRESH:
            self._costs.forget()
        rows, most = self._metrics.iterations, self._engine.together(taken)
        running = [(job.ticket.lanes, max(job.ticket.rows - rows + (job.began or 0), 1)) for job in self._running]
        before = [*running, *[(one.lanes, one.rows) for one in self._queue.ahead(ticket.priority)]]
        together = max(min(most, ticket.lanes + sum(lanes for lanes, _ in before)), ticket.lanes)
        return foreseen(most, before, ticket.lanes, ticket.rows)[1] * self._costs.of(together)

    def _idle(self, lanes: int) -> int:
        """How many of so many nobody has: as many requests begin at once, and do not count as waiting."""
        return max(lanes - sum(job.ticket.lanes for job in self._running), 0)

    def position(self, ticket: Ticket) -> int | None:
        """How many are before it in line."""
        self.check_process()
        with self._changed:
            job = self._jobs.get(ticket)
            return None if job is None else self._queue.position(job)

    def dropped(self, ticket: Ticket) -> None:
        """A ticket was cancelled."""
        self.check_process()
        with self._changed:
            job = self._jobs.get(ticket)
            if job is not None:
                self._forget(job, "cancelled")
                self._gone.append(job)
                self._changed.notify_all()

    def watched(self, ticket: Ticket) -> None:
        """Somebody waits for a preview of it."""
        self.check_process()
        with self._changed:
            if ticket in self._jobs:
                self._watched.add(self._jobs[ticket])

    def numbers(self) -> dict[str, Any]:
        """See `Worker.metrics`."""
        self.check_process()
        with self._changed:
            return self._metrics.numbers(len(self._queue), len(self._running))

    def drain(self, timeout: float | None) -> bool:
        """Wait until all are done. Whether they are."""
        self.check_process()
        if threading.current_thread() is self._thread:
            raise RuntimeError("drain must not be called by a callback: the worker's thread would wait for itself")
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def close(self, cancel: bool) -> None:
        """Take nothing more, and end the thread when all are done: at once where they are cancelled."""
        if os.getpid() != self._process:
            return
        with self._changed:
            if self._state == OPEN:
                self._state = CLOSING
            self._changed.notify_all()
        with contextlib.ExitStack() as stack:  # all of them, though a callback raises
            for ticket in reversed(list(self._jobs) if cancel else []):
                stack.callback(ticket.cancel)

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread's end. Whether it has ended; one that asks for itself does not wait."""
        if os.getpid() != self._process:
            return True
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def check_process(self) -> None:
        """Whether the thread is in this process."""
        if os.getpid() != self._process:
            raise RuntimeError("a worker must be used in the process that made it: this one was forked from it")

    # the thread

    def _run(self) -> None:
        try:
            with torch.no_grad(), self._stream.current():
                while self._turn():
                    pass
            state, cause = CLOSED, None
        except BaseException as error:  # of the network, or ours: nobody may wait for what never comes
            state, cause = DOWN, error
        with self._changed:
            self._state, self._cause = state, cause
        for job in list(self._jobs.values()):
            with contextlib.suppress(BaseException):  # of a callback: the others wait for theirs
                self._end(job, None, cause, "failed")
        self._engine.on_begin = None
        for held in (self._own_jobs, self._own_clock, self._inbox, self._gone):
            held.clear()

    def _turn(self) -> bool:
        """What was submitted and dropped since, and a call of the network. False at the end."""
        with self._changed:
            while not (self._inbox or self._gone) and self._engine.idle:
                if self._state != OPEN and not self._jobs:
                    return False
                self._changed.wait()
            inbox, self._inbox = self._inbox, []
            gone, self._gone = self._gone, []
        for job in inbox:
            self._own_add(job)
        for job in gone:
            self._own_drop(job)
        self._own_look_at_clock()
        if not self._engine.idle:
            self._own_step()
        return True

    def _own_add(self, job: Job) -> None:
        if job.ticket.done():
            return
        taken, job.taken = job.taken, None
        job.id = self._engine.enter(taken)
        self._own_jobs[job.id] = job
        if job.ticket.deadline is not None:
            if len(self._own_clock) > 2 * len(self._own_jobs) + 64:  # most of them are done
                self._own_clock = [one for one in self._own_clock if one[1] in self._own_jobs]
                heapq.heapify(self._own_clock)
            self._own_wake(job)

    def _own_drop(self, job: Job) -> None:
        if job.id is not None and self._own_jobs.pop(job.id, None) is not None:
            self._engine.cancel(job.id)

    def _own_latest(self, job: Job) -> float:
        """When its fate is decided: its end is due, or before it has begun, its beginning."""
        return job.until - (job.ticket.rows * self._costs.least() if job.began is None else 0.0)

    def _own_wake(self, job: Job) -> None:
        assert job.id is not None
        heapq.heappush(self._own_clock, (self._own_latest(job), job.id))

    def _own_look_at_clock(self) -> None:
        while self._own_clock and self._own_clock[0][0] <= time.monotonic():
            job = self._own_jobs.get(heapq.heappop(self._own_clock)[1])
            if job is None or job.ticket.done() or (job.began is not None and job.ticket.late == "refuse"):
                continue
            if self._own_latest(job) > time.monotonic():  # it has begun since, or calls are quicker
                self._own_wake(job)
            else:
                self._own_miss(job)

    def _own_miss(self, job: Job) -> None:
        assert job.id is not None and job.ticket.deadline is not None
        now, rows = time.monotonic(), job.ticket.rows
        needed = now - job.submitted + rows * self._costs.least() if now < job.until else None
        error = DeadlineMissed(job.ticket.deadline, needed, self._engine.done(job.id), rows)
        self._own_drop(job)
        self._end(job, None, error, "missed")

    def _own_step(self) -> None:
        """One call of the network, and what came of it."""
        self._own_watch()
        stats = self._engine.stats
        rows, calls, lanes, self._own_began = stats.rows, stats.network_calls, stats.lane_rows, time.monotonic()
        ended = self._engine.step()
        seconds = time.monotonic() - self._own_began
        if stats.rows > rows:
            with self._changed:
                self._metrics.called(stats.lane_rows - lanes, stats.network_calls - calls, seconds)
                self._costs.add(stats.lane_rows - lanes, seconds)
        for one in ended:
            self._own_end(one)
            if isinstance(one.error, torch.AcceleratorError):  # the device answers nothing more
                raise one.error

    def _own_begin(self, number: int) -> None:
        """The engine begins a request."""
        job = self._own_jobs.get(number)
        if job is None:
            return
        with self._changed:
            self._queue.remove(job)
            job.began = self._metrics.iterations
            job.ticket.begin()
            self._metrics.wait.add(self._own_began - job.submitted)
            if job.ticket in self._jobs:
                self._running.add(job)

    def _own_watch(self) -> None:
        """Have the next row seen of those of which somebody waits for a preview that it may give."""
        if not self._watched:
            return
        with self._changed:
            self._watched = {job for job in self._watched if job.ticket.asked()}
            watched = list(self._watched)
        for job in watched:
            if job.id in self._own_jobs and job.ticket.asked(self._engine.done(job.id) + 1):
                self._engine.watch(job.id, functools.partial(self._own_show, job))

    def _own_show(self, job: Job, step: Step) -> None:
        x0 = step.x0
        self._stream.finish()
        self._stream.keep(x0, job.reader)
        job.ticket.show(Preview(step.index, step.nfe, x0))

    def _own_end(self, ended: Ended) -> None:
        if (job := self._own_jobs.pop(ended.id, None)) is None:  # it was cancelled
            return
        if ended.result is not None:
            self._stream.keep(ended.result.samples, job.reader)
        how = "cancelled" if isinstance(ended.error, Cancelled) else "failed" if ended.error else "finished"
        self._end(job, ended.result, ended.error, how)

    def _end(self, job: Job, result: Result | None, error: BaseException | None, how: str) -> None:
        ended = True  # where a callback raises, too
        try:
            ended = job.ticket.end(result, error)
        finally:
            if ended:
                with self._changed:
                    self._forget(job, how)

    def _forget(self, job: Job, how: str) -> None:
        """It is done, in this way."""
        if self._jobs.pop(job.ticket, None) is None:
            return
        self._running.discard(job)
        self._watched.discard(job)
        self._queue.remove(job)
        now = time.monotonic()
        self._metrics.ended[how] += 1
        if how == "finished":
            self._metrics.finished(job.ticket.priority, now - job.submitted, late=now > job.until)
        if not self._jobs:
            self._changed.notify_all()


def _words(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@atexit.register
def _leave() -> None:
    """Before the interpreter ends, while the threads can still end: daemons are stopped in the middle of a call."""
    with contextlib.ExitStack() as stack:  # of all, though a callback raises
        for service in list(_ALL):
            stack.callback(service.join, None)
            stack.callback(service.close, cancel=True)
