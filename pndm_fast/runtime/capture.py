"""One capture at a time, and what must wait for its end: the destruction of graphs that nobody uses any more."""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from pndm_fast.runtime.cuda import Event


class CannotCapture(Exception):
    """Why a network or a request runs eagerly.

    Attributes:
        tries: how many failures in a row, each at a request of its own, make it final; infinity: it may always pass.
    """

    def __init__(self, reason: str, tries: float = 1) -> None:
        super().__init__(reason)
        self.tries = tries


class _Captures:
    """Who captures at present, and graphs that are to be destroyed, each with the event that ends its work."""

    lock = threading.Lock()
    owner: int | None = None
    retired: deque[tuple[Event, list[Any]]] = deque()
    leaving = False  # the process ends: there is no later


_CAPTURES = _Captures()


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """A process captures one graph at a time.

    Raises:
        CannotCapture: this thread is capturing already: a network that samples.
    """
    if _CAPTURES.owner == threading.get_ident():
        raise CannotCapture("a network that samples cannot be captured")
    try:
        with _CAPTURES.lock:
            _CAPTURES.owner = threading.get_ident()
            try:
                _release(wait=True)  # a capture waits for the device in any case, and may need their memory
                yield
            finally:
                _CAPTURES.owner = None
    finally:
        release()


def retire(end: Event, held: list[Any]) -> None:
    """Have [executable graph, what torch captured, their buffers] destroyed, in that order, once `end` has happened."""
    _CAPTURES.retired.append((end, held))
    release(wait=_CAPTURES.leaving)


def release(wait: bool = False) -> None:
    """Destroy retired graphs whose work is over, or wait for it.

    During a capture, which an event's query or freed memory could break, they are left for its end, or for a later call
    where it is somebody else's.
    """
    if not _CAPTURES.retired or _others_capture() or not _CAPTURES.lock.acquire(blocking=False):
        return
    try:
        _release(wait)
    finally:
        _CAPTURES.lock.release()


def _others_capture() -> bool:
    ready: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return ready and torch.cuda.is_current_stream_capturing()


def _release(wait: bool) -> None:
    for _ in range(len(_CAPTURES.retired)):
        end, held = _CAPTURES.retired.popleft()
        over = True
        try:
            if wait:
                end.synchronize()
            else:
                over = end.query()
        finally:  # where that fails, the device has failed: nothing runs any more
            if over:
                _destroy(held)
            else:
                _CAPTURES.retired.append((end, held))


def _destroy(held: list[Any]) -> None:
    iteration, captured, buffers = held
    held.clear()
    try:
        if iteration is not None:
            iteration.close()
    finally:
        del iteration
        captured.reset()
        del buffers


@atexit.register
def _leave() -> None:  # finalizers may be called before or after this
    _CAPTURES.leaving = True
    release(wait=True)


@contextlib.contextmanager
def no_autocast_cache(device: torch.device) -> Iterator[None]:
    """Weights cast by autocast belong into the graph: cached ones are freed when autocast ends."""
    before = torch.is_autocast_cache_enabled()
    if not (before and torch.is_autocast_enabled(device.type)):
        yield
        return
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
