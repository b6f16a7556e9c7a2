"""How far a call has come, on stderr: a bar in a terminal, else lines of plain text."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

MOST = 60.0  # seconds from one line to the next, where a tenth takes longer


def progress_bar(
    show: bool, text: str, total: int, unit: str = "network calls"
) -> AbstractContextManager[Callable[[], None]]:
    """Yields a function to call after each of `total` network calls, or other units; where `show`, it tells of them.

    A terminal gets a bar, which needs rich; log files, notebooks and a terminal without rich get a line each tenth of
    the way, and at least one a minute, without control characters.
    """
    if not show or sys.stderr is None:
        return _HIDDEN
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with contextlib.suppress(ImportError):
            return _bar(text, total)
    return contextlib.nullcontext(progress_lines(text, total, unit))


_HIDDEN = contextlib.nullcontext(lambda: None)


def _bar(text: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()

    @contextlib.contextmanager
    def drawn() -> Iterator[Callable[[], None]]:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(text, total=total)
            yield lambda: bar.advance(task)

    return drawn()


def progress_lines(text: str, total: int, unit: str = "network calls") -> Callable[[], None]:
    """What `progress_bar` gives, in lines wherever they go: several calls may tell of themselves at once."""
    began = told = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if done * 10 // total == (done - 1) * 10 // total and now - told < MOST:
            return
        told, spent = now, now - began
        left = f"{spent:.1f} s" if done == total else f"{spent * (total - done) / done:.0f} s left"
        with contextlib.suppress(OSError, ValueError):  # who reads the lines may be gone, which ends no call
            print(f"{text}: {done} of {total} {unit} ({100 * done // total} %), {left}", file=sys.stderr)

    return advance
