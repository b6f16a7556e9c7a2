"""A progress bar over rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager


def progress_bar(show: bool, text: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """Yields a function to call after each of `total` pieces of work; it draws a bar where `show` asks for one."""
    return _bar(text, total) if show else _HIDDEN


_HIDDEN = contextlib.nullcontext(lambda: None)


@contextlib.contextmanager
def _bar(text: str, total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)
