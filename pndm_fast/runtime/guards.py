"""What a captured graph takes for granted of a network: its tensors and attributes, and that it may be replayed."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pndm_fast.loop.network import in_training

DEPTH = 5  # wrappers that are looked through
MOST = 10_000  # objects that are looked at
SCALARS = (int, float, complex, bool, str, bytes, type(None))
LEAVES = (*SCALARS, Tensor, type, types.ModuleType)
# of the tables that every module has, those that a forward call reads
_TABLES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_EVERY_MODULES = frozenset(vars(nn.Module()))


def modules_in(model: Any) -> Iterator[nn.Module]:
    """The modules that a callable uses, as far as that can be seen.

    Itself, or what a partial, a closure, a bound method's owner, attributes and containers of those hold, and globals
    that a function's code names.
    """
    level, seen = [model], {id(model): model}  # held, so that ids stay theirs
    for _ in range(DEPTH + 1):
        below: list[Any] = []
        for part in level:
            if isinstance(part, nn.Module):
                yield part
                continue
            for inner in _parts(part):
                if id(inner) not in seen and not isinstance(inner, LEAVES) and len(seen) < MOST:
                    seen[id(inner)] = inner
                    below.append(inner)
        level = below


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if inspect.ismethod(thing):
        return [thing.__self__, thing.__func__]
    if inspect.isfunction(thing):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        named = [thing.__globals__.get(name) for name in thing.__code__.co_names]
        return [*cells, *named, *vars(thing).values()]
    return list(getattr(thing, "__dict__", {}).values())


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False


class Guards:
    """Notices that a network is no longer what was captured.

    That is: parameters, buffers or attributes are other tensors, or in other memory; modules, hooks or plain attributes
    (numbers, dicts and lists of them) were changed. Tensors updated in place are no change: a graph reads the same
    memory. What cannot be seen from Python, the weights of a compiled package say, is not watched. The tensors are
    kept alive, since a graph may still read them.
    """

    def __init__(self, *models: Any) -> None:
        roots = list({id(module): module for model in models for module in modules_in(model)}.values())
        self._scripted = [root for root in roots if isinstance(root, torch.jit.ScriptModule)]
        self._tables: list[dict[str, Any]] = []
        self._lists: list[list[Any]] = []
        self._attributes: list[dict[str, Any]] = []
        self._own: list[tuple[Callable[[Any], Any], dict[str, Any]]] = []  # how to read a module's own attributes
        for root in roots:
            for module in root.modules() if root not in self._scripted else ():
                self._look(vars(module))
        self._lengths, self._values = self._sizes(), tuple(self._now())
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._pointers = [_pointer(tensor) for tensor in self._tensors]
        self._script_pointers = self._of_scripts()
        self.modules = len(roots)

    def _look(self, attributes: dict[str, Any]) -> None:
        own = sorted(attributes.keys() - _EVERY_MODULES)
        self._attributes.append(attributes)
        self._tables += [attributes[name] for name in _TABLES if name in attributes]
        self._tables += [attributes[name] for name in own if isinstance(attributes[name], dict)]
        self._lists += [attributes[name] for name in own if isinstance(attributes[name], list)]
        if own:
            self._own.append((operator.itemgetter(*own, own[0]), attributes))  # two names at least: a tuple

    def _of_scripts(self) -> list[int | None]:  # a script module makes new Python objects of its tensors at each look
        return [_pointer(t) for script in self._scripted for t in (*script.parameters(), *script.buffers())]

    def _sizes(self) -> list[int]:
        return [*map(len, self._tables), *map(len, self._lists), *map(len, self._attributes)]

    def _now(self) -> Iterator[Any]:
        own = (read(attributes) for read, attributes in self._own)
        return chain(
            chain.from_iterable(map(dict.values, self._tables)),
            chain.from_iterable(self._lists),
            chain.from_iterable(own),
        )

    def changed(self) -> bool:
        """Whether anything is another than at the start."""
        try:
            if self._sizes() != self._lengths:
                return True
            same = all(map(operator.is_, self._now(), self._values)) or all(map(_same, self._now(), self._values))
        except KeyError:  # an attribute is gone
            return True
        if not same or [_pointer(tensor) for tensor in self._tensors] != self._pointers:
            return True
        return self._of_scripts() != self._script_pointers


def _same(now: Any, before: Any) -> bool:
    return now is before or (isinstance(now, SCALARS) and type(now) is type(before) and now == before)


def _pointer(tensor: Tensor) -> int | None:
    try:
        return tensor.data_ptr()
    except (RuntimeError, ValueError, NotImplementedError):  # sparse, lazy, or a wrapper: known by identity alone
        return None


def obstacle(*models: Any) -> str:
    """Why networks must not be captured, as far as that shows before they run; empty where nothing does."""
    for model in models:
        for part in (model, *modules_in(model)):
            if in_training(part):
                return "the network is in training mode: call .eval()"
            if any(map(_own_graphs, (part, *(part.modules() if isinstance(part, nn.Module) else ())))):
                return (
                    "the network makes CUDA graphs of its own (torch.compile mode 'reduce-overhead' or 'max-autotune'):"
                    " compile it with the default mode or 'max-autotune-no-cudagraphs'"
                )
    return ""


def _own_graphs(part: Any) -> bool:
    for compiled in (part, getattr(part, "_compiled_call_impl", None)):  # torch.compile(module), module.compile()
        config = getattr(compiled, "get_compiler_config", None)
        if config is not None and (config() or {}).get("triton.cudagraphs"):
            return True
    return False
