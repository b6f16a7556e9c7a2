"""What torch.compile runs as it is: a sampler holds locks, weak references and buffers, which a trace would break."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def opaque(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """The function; inside a region that torch.compile traces, a break in its graph. The network may be compiled.

    `torch.compiler.disable` as a decorator would do the same, and import all of torch's compiler with this package.
    """

    @functools.wraps(function)
    def outer(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-any-return, no-untyped-call]
        return function(*args, **kwargs)

    return outer
