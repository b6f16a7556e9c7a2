"""A network inside others that hand on what they are given: what is asked of it is asked of the inner one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from torch import jit, nn

from pndm_fast.plan.row import Row


class Around(nn.Module):
    """A network of this package's own around another, `model`: its facts are the other's, tensors of its own aside."""

    model: Any

    def check_rows(self, rows: Iterable[Row]) -> None:
        """Refuse to be called by rows that it was not made for."""


def layers(model: Any) -> Iterator[Any]:
    """The network, and what it wraps, outermost first.

    Looked through are `nn.DataParallel`, `DistributedDataParallel`, `AveragedModel` and every other module whose only
    child is called `module`, `torch.compile`, `functools.partial`, methods of a module, functions made by
    `functools.wraps`, and this package's own.
    """
    seen: list[Any] = []
    while model is not None and not any(model is one for one in seen):
        yield model
        seen.append(model)
        model = _inner(model)


def _inner(part: Any) -> Any:
    if isinstance(part, functools.partial):
        return part.func
    if inspect.ismethod(part):
        return part.__self__ if isinstance(part.__self__, nn.Module) else None
    if isinstance(part, Around):
        return part.model
    if isinstance(part, nn.Module) and not isinstance(part, jit.ScriptModule):
        children = part._modules
        only = "module" if list(children) == ["module"] else "_orig_mod"
        return children.get(only)
    return getattr(part, "__wrapped__", None) if inspect.isfunction(part) else None


def innermost(model: Any) -> Any:
    """What does the work."""
    return list(layers(model))[-1]
