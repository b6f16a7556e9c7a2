"""`Worker`: a thread that has an engine to itself, and tickets for requests that come from any other."""

from __future__ import annotations

import math
import weakref
from types import TracebackType
from typing import Any

from pndm_fast.engine.service import Lanes, Service
from pndm_fast.engine.ticket import Ticket
from pndm_fast.loop.checks import check_sizes
from pndm_fast.loop.request import Request, check_request
from pndm_fast.plan.checks import check_type, choose, shown
from pndm_fast.plan.hints import in_words
from pndm_fast.plan.numbers import is_number

LATE = ("refuse", "end")


@in_words("Worker")
class Worker:
    """A thread that runs an engine's requests, which any thread submits.

    `with pf.Worker(engine) as worker: worker.submit(request).result()`. Until its end the engine is the thread's own:
    nobody else may call it. The thread has a stream of its own, and no autocast. Requests are checked, and their
    tensors copied to the device, by who submits them; what they call (`on_step`, `cond` of a row) the thread calls, as
    it does tickets' callbacks. A process that is forked has no such thread, and says so. When the interpreter ends,
    what still waits or runs is cancelled; so it is when the block is left by an exception. Without one the block is
    left when all are done.

    Args:
        engine: an idle one without a max_queue of its own, best prepared.
        max_queue: how many requests may wait beside those that idle lanes take up at once; None for any number.
    """

    def __init__(self, engine: Lanes, *, max_queue: int | None = 1024) -> None:
        bound = None if max_queue is None else check_sizes("max_queue", [max_queue])[0]
        if not isinstance(getattr(engine, "idle", None), bool):
            raise TypeError(f"engine must be an Engine, got {type(engine).__name__}")
        if not engine.idle:
            raise ValueError("engine must be idle, got one that has requests")
        if engine.on_begin is not None:
            raise ValueError("engine must have no other worker and no on_begin, got one that has")
        if engine.max_queue is not None:
            raise ValueError(f"max_queue must be the worker's, got an engine with max_queue={engine.max_queue}")
        self._service = Service(engine, bound)
        weakref.finalize(self, self._service.close, cancel=True).atexit = False  # tickets that are not done hold it

    def submit(
        self, request: Request, *, priority: int = 0, deadline: float | None = None, late: str = "refuse"
    ) -> Ticket:
        """Put a request into the queue.

        Args:
            priority: the higher is run first; equals in order of arrival.
            deadline: seconds from now until which it is to be done.
            late: what becomes of one that cannot be. `refuse`: it is not begun; here already where what is before it
                takes too long, as calls of the network have taken of late. Once begun it is run to its end. `end`: it
                is taken in any case, and ended where its time is over, or would be before it is done.

        Raises:
            TypeError, ValueError: naming the argument, as `Sampler` would.
            QueueFull: max_queue requests wait.
            DeadlineMissed: late is `refuse`, and it would be.
            EngineDown: an exception has ended the thread, its cause. RuntimeError: it is closed, or another process's.
        """
        check_type("priority", priority, int)
        choose("late", late, LATE)
        if deadline is not None:
            if not is_number(deadline):
                raise TypeError(f"deadline must be a number of seconds, got {shown(deadline)}")
            if not 0 < deadline < math.inf:
                raise ValueError(f"deadline must be positive seconds, got {deadline}")
        return self._service.submit(self, check_request(request), int(priority), deadline, late)

    def metrics(self) -> dict[str, Any]:
        """What has come of requests so far: plain numbers, times in seconds.

        queue, running: how many requests wait, and are under way. lanes: samples that may be. submitted: taken into
        the queue; finished, failed, cancelled, missed (deadlines): how they ended; late: finished after their
        deadlines. refused: how many were not taken, by reason. calls: of the network, but for those before a size's
        first row; rows: of samples, summed; busy_seconds: what both took; rows_per_second: of the last ten seconds;
        occupancy: the part of lanes that calls had samples in. wait: from submitting to beginning; latency: to the
        result, by priority: count, sum, quantiles and buckets, pairs of a time and how many did not exceed it.
        """
        return self._service.numbers()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything that was submitted is done. False where the time is over before.

        Raises:
            RuntimeError: called by the worker's own thread, as callbacks are.
        """
        return self._service.drain(timeout)

    def close(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take nothing more, and end the thread: when all are done, or at once by cancelling them.

        Args:
            timeout: how long to wait for that; the thread ends in any case.

        Returns:
            Whether it has ended.
        """
        self._service.close(cancel)
        return self._service.join(timeout)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(cancel=kind is not None)
