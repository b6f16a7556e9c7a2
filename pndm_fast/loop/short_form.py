"""Methods that take a record's fields in place of the record: arguments are declared, and documented, once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from pndm_fast.plan.hints import refuse_unknown

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
            try:
                asked = record(*args, **fields)
            except TypeError:
                _refuse_unknown(theirs, args, fields)
                raise
            return method(self, asked)

        own, theirs = inspect.signature(method), inspect.signature(record)
        me = next(iter(own.parameters.values()))
        short.__signature__ = own.replace(parameters=[me, *theirs.parameters.values()])  # type: ignore[attr-defined]
        short.__doc__ = f"{inspect.getdoc(method)}\n\n{_arguments(record)}"
        return short

    return decorate


def _refuse_unknown(known: inspect.Signature, args: tuple[Any, ...], fields: Mapping[str, Any]) -> None:
    """In the caller's words, where it is not a value that is wrong.

    Raises:
        TypeError: an argument without a name, or with one that there is not.
    """
    if args:
        raise TypeError("a call's arguments are given by name, as in sampler(seeds=0)") from None
    refuse_unknown("a call", known.parameters, fields)


def _arguments(record: Callable[..., Any]) -> str:
    """The part of a docstring that is about arguments, and what follows."""
    text = inspect.getdoc(record) or ""
    return text[text.index("Args:") :]
