"""Methods that take a record's fields in place of the record: arguments are declared, and documented, once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

Fields = ParamSpec("Fields")
Self = TypeVar("Self")
Record = TypeVar("Record")
Returned = TypeVar("Returned")


def with_fields_of(
    record: Callable[Fields, Record],
) -> Callable[[Callable[[Self, Record], Returned]], Callable[Concatenate[Self, Fields], Returned]]:
    """A method of a record that takes the record's fields in its place: they are declared, and documented, there."""

    def decorate(method: Callable[[Self, Record], Returned]) -> Callable[Concatenate[Self, Fields], Returned]:
        @functools.wraps(method)
        def short(self: Self, /, *args: Fields.args, **fields: Fields.kwargs) -> Returned:
            return method(self, record(*args, **fields))

        own, theirs = inspect.signature(method), inspect.signature(record)
        me = next(iter(own.parameters.values()))
        short.__signature__ = own.replace(parameters=[me, *theirs.parameters.values()])  # type: ignore[attr-defined]
        short.__doc__ = f"{inspect.getdoc(method)}\n\n{_arguments(record)}"
        return short

    return decorate


def _arguments(record: Callable[..., Any]) -> str:
    """The part of a docstring that is about arguments, and what follows."""
    text = inspect.getdoc(record) or ""
    return text[text.index("Args:") :]
