"""NVTX ranges for Nsight, in the domain `pndm_fast`: off until asked for, and never inside a captured region."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

DOMAIN = "pndm_fast"
_OFF = contextlib.nullcontext()
_users = 0


@contextlib.contextmanager
def nvtx_ranges() -> Iterator[None]:
    """While this is entered, calls mark what they do: capture, begin, rows, network, row, finish.

    Needs the package `nvtx` (`pip install pndm_fast[profile]`).

    Raises:
        ImportError: it is not installed.
    """
    global _users
    try:
        import nvtx  # noqa: F401
    except ImportError as error:
        raise ImportError("nvtx_ranges needs nvtx: pip install 'pndm_fast[profile]'") from error

    _users += 1
    try:
        yield
    finally:
        _users -= 1


def marked(name: str) -> contextlib.AbstractContextManager[object]:
    """A range of that name, where ranges are on."""
    if not _users:
        return _OFF
    import nvtx

    return nvtx.annotate(name, domain=DOMAIN)  # type: ignore[no-any-return]


def marking(name: str, function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """The function inside a range of that name, where ranges are on; else itself, at no cost."""
    if not _users:
        return function

    def marked_function(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        with marked(name):
            return function(*args, **kwargs)

    return marked_function
