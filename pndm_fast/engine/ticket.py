"""`Ticket`: what `Worker.submit` gives for a request, a future of its result that can be awaited too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pndm_fast.loop.checks import check_sizes
from pndm_fast.loop.results import Result


@dataclass(frozen=True, eq=False)
class Preview:
    """How far a request has come.

    Attributes:
        index: its last row that was run, from 0; nfe: rows of its longest plan.
        x0: the network's estimate of x_0 there, [B, *shape].
    """

    index: int
    nfe: int
    x0: Tensor


class Keeper(Protocol):
    """Who holds tickets until they are done: a worker."""

    def dropped(self, ticket: Ticket) -> None: ...
    def watched(self, ticket: Ticket) -> None: ...
    def position(self, ticket: Ticket) -> int | None: ...


class Ticket(Future[Result]):
    """A request's `Result` to come: a `concurrent.futures.Future`, and `await ticket` in any event loop of asyncio.

    `cancel()` ends the request whether it waits or runs, and `result()` then raises `CancelledError`, as it does for
    whoever is cancelled while awaiting it, which cancels the request too. (A `pf.Cancel` in the request ends it with
    `pf.Cancelled`, which has what was computed.) An error is what `Sampler.run` would raise, or `DeadlineMissed`.

    Attributes:
        rows: network calls of its longest plan; lanes: samples.
        priority, deadline, late: as submitted.
    """

    def __init__(
        self, keeper: Keeper, owner: object, rows: int, lanes: int, priority: int, deadline: float | None, late: str
    ) -> None:
        super().__init__()
        self.rows, self.lanes, self.priority, self.deadline, self.late = rows, lanes, priority, deadline, late
        self._keeper, self._owner = keeper, owner  # which lives as long as somebody has a ticket
        self._process = os.getpid()
        self._lock = threading.RLock()  # a signal handler may call `cancel` while this thread has it
        self._begun = self._cancelling = False
        self._asking: list[Previews] = []

    @property
    def position(self) -> int | None:
        """How many requests are before it in the queue; None once it has begun, or is done."""
        return self._keeper.position(self)

    def running(self) -> bool:
        """Whether it has begun, and is not done."""
        return self._begun and not self.done()

    def cancel(self) -> bool:
        """End the request. False where it was done before."""
        with self._lock:
            first, self._cancelling = not self._cancelling, True
        cancelled = True  # where a callback raises, too
        try:
            cancelled = super().cancel()
        finally:
            if cancelled and first:
                self.set_running_or_notify_cancel()  # tells those in `concurrent.futures.wait`, once
                self._keeper.dropped(self)
                self._silence()
        return cancelled

    def result(self, timeout: float | None = None) -> Result:
        """The result, or what the request ended in; waits for it.

        Raises:
            TimeoutError, CancelledError: as a future's; RuntimeError: in another process, where nothing comes.
        """
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the request ended in instead of a result, None where it has one; waits for it."""
        self._check_process()
        return super().exception(timeout)

    def __await__(self) -> Generator[Any, None, Result]:
        self._check_process()
        return asyncio.wrap_future(self).__await__()

    def previews(self, every: int = 1) -> Previews:
        """Estimates of x_0 meanwhile, to be iterated over with `async for` or `for`, until the request is done.

        One is made only when it is asked for, after a row that is the `every`-th since the last or a later one: who
        asks seldom gets the newest then, who never asks costs nothing. The iteration ends with the request, whatever
        its end; the last row's estimate need not come.

        Raises:
            TypeError, ValueError: every is no positive integer.
        """
        return Previews(self, check_sizes("every", [every])[0])

    def _check_process(self) -> None:
        if os.getpid() != self._process and not self.done():
            raise RuntimeError("a ticket's result comes in the process that submitted it: this one was forked from it")

    # for the worker

    def begin(self) -> None:
        """It has left the queue."""
        self._begun = True

    def end(self, result: Result | None, error: BaseException | None) -> bool:
        """Give it its result or error. False where it was cancelled before."""
        ended = True  # where a callback raises, too
        try:
            if error is None:
                assert result is not None
                self.set_result(result)
            else:
                self.set_exception(error)
        except InvalidStateError:
            ended = False
        finally:
            if ended:
                self._silence()
        return ended

    def asked(self, done: int = sys.maxsize) -> bool:
        """Whether somebody waits for a preview, one that may be made after so many rows."""
        with self._lock:
            return any(one.due <= done for one in self._asking)

    def show(self, preview: Preview) -> None:
        """Give it to those who wait for one."""
        with self._lock:
            given = [one for one in self._asking if one.due <= preview.index + 1]
            self._asking = [one for one in self._asking if one.due > preview.index + 1]
        for one in given:
            one.give(preview)

    def ask(self, previews: Previews) -> bool:
        """Wait for a preview. False where none will come."""
        with self._lock:
            if self.done():
                return False
            if previews not in self._asking:  # as one is that was cancelled while it waited
                self._asking.append(previews)
        self._keeper.watched(self)
        return True

    def _silence(self) -> None:
        with self._lock:
            asking, self._asking = self._asking, []
        for one in asking:
            one.give(None)


class Previews(AsyncIterator[Preview], Iterator[Preview]):
    """What `Ticket.previews` gives: an iterator for one consumer.

    Attributes:
        due: rows after which the next one may be made.
    """

    def __init__(self, ticket: Ticket, every: int) -> None:
        self._ticket, self._every, self.due = ticket, every, every
        self._next: Future[Preview | None] | None = None

    def __next__(self) -> Preview:
        preview = self._asked().result()
        if preview is None:
            raise StopIteration
        return preview

    async def __anext__(self) -> Preview:
        preview = await asyncio.wrap_future(self._asked())
        if preview is None:
            raise StopAsyncIteration
        return preview

    def _asked(self) -> Future[Preview | None]:
        if self._next is None or self._next.done():
            self._next = Future()
            if not self._ticket.ask(self):
                self._next.set_result(None)
        return self._next

    def give(self, preview: Preview | None) -> None:
        """The answer: None at the end."""
        assert self._next is not None
        if preview is not None:
            self.due = (preview.index + 1) // self._every * self._every + self._every
        with contextlib.suppress(InvalidStateError):  # who waited for it was cancelled
            self._next.set_result(preview)
