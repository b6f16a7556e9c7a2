"""What ends the command from outside: Ctrl-C and SIGTERM. Exit codes are the shell's: 128 and the signal's number."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM: what is finished is kept, as at Ctrl-C."""


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Where nothing is to be kept: a signal ends the process in one line.

    An exception would not do: C code that imports turns KeyboardInterrupt into errors of its own.
    """
    with _handled(_end):
        yield


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Where work is to be kept, or files are open: Ctrl-C raises KeyboardInterrupt, SIGTERM `Terminated`."""
    with _handled(_raise):
        yield


def forget() -> None:
    """All is done: from here on a signal ends the process as if Python were not there."""
    for number in STOPS if _here() else ():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """With this handler for both signals; one that is ignored, as nohup's and a background job's, stays so."""
    old = {number: signal.getsignal(number) for number in STOPS} if _here() else {}
    try:
        for number, before in old.items():
            if before is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def _here() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end(number: int, frame: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"error: {word_of(128 + number)}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: Any) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def word_of(code: int) -> str:
    """What an exit code of these says."""
    return "interrupted" if code == INTERRUPTED else "terminated"
