"""What a captured graph takes for granted of a network: its tensors and attributes, and that it may be replayed."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pndm_fast.loop.network import in_training

DEPTH = 5  # wrappers that are looked through
MOST = 10_000  # objects that are looked at
LEAVES = (int, float, complex, str, bytes, type(None), Tensor, type, types.ModuleType)
# of the attributes that every module has, those that a forward call does not read
_UNREAD = {
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
}


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


class Inspection(NamedTuple):
    """What shows of networks before they run.

    Attributes:
        modules: all that they use, as far as that can be seen; none where there is an obstacle.
        obstacle: why they must not be captured, empty where nothing shows; `passing`: they may be at another call.
    """

    modules: tuple[nn.Module, ...] = ()
    obstacle: str = ""
    passing: bool = False


def inspect_networks(*models: Any) -> Inspection:
    """Look through networks: milliseconds, so only where a graph is to be made. One in training mode is not walked."""
    distinct = {id(model): model for model in models}.values()
    parts = {id(part): part for model in distinct for part in (model, *modules_in(model))}
    if any(map(in_training, parts.values())):
        return Inspection(obstacle="the network is in training mode: call .eval()", passing=True)
    roots = [part for part in parts.values() if isinstance(part, nn.Module)]
    modules = {id(module): module for root in roots for module in root.modules()}
    if any(map(_own_graphs, (parts | modules).values())):
        return Inspection(
            obstacle="the network makes CUDA graphs of its own (torch.compile mode 'reduce-overhead' or "
            "'max-autotune'): compile it with the default mode or 'max-autotune-no-cudagraphs'"
        )
    return Inspection(tuple(modules.values()))


def _own_graphs(part: Any) -> bool:
    for compiled in (part, getattr(part, "_compiled_call_impl", None)):  # torch.compile(module), module.compile()
        config = getattr(compiled, "get_compiler_config", None)
        if config is not None and (config() or {}).get("triton.cudagraphs"):
            return True
    return False


class Guards:
    """Notices that a network is no longer what was captured.

    That is: parameters, buffers or attributes are other tensors, or in other memory; modules, hooks, a module's mode or
    plain attributes (numbers, dicts and lists of them) were changed. Tensors updated in place are no change: a graph
    reads the same memory. What cannot be seen from Python, the weights of a compiled package say, is not watched.

    The tensors' memory is kept, since a graph may still read it; the modules are not: one that is gone is a change.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        from pndm_fast._C import Watch

        modules = list(modules)
        # these make new Python objects of what they hold at each look
        self._scripts = [_Script(module) for module in modules if isinstance(module, torch.jit.ScriptModule)]
        plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        held = [*chain(*map(_tensors, plain), *(script.tensors for script in self._scripts))]
        self._tensors = [tensor for tensor in held if _has_memory(tensor)]
        self._pointers = self._now()
        # `.to()` keeps a parameter and frees what it pointed to
        self._kept = held, [tensor.untyped_storage() for tensor in self._tensors]
        self._watch = Watch(plain, _UNREAD)

    def _now(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._tensors))

    def changed(self) -> bool:
        """Whether anything is another than at the start: tens of microseconds, so that each call may ask."""
        try:
            return (
                self._watch.changed()
                or self._now() != self._pointers
                or any(script.changed() for script in self._scripts)
            )
        except _NO_MEMORY:  # a tensor has become one without
            return True


class _Script:
    """A script module's mode and its tensors, which it is asked for without a walk over its modules."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._of: Any = module._c  # that of a traced module is its script module's
        self._slots = [getattr(module, name).items for name in ("_parameters", "_buffers")]
        self.tensors, self._mode = self._held(), self._training()

    def _held(self) -> list[Tensor]:
        return [tensor for slots in self._slots for _, tensor in slots()]

    def _training(self) -> bool:
        return bool(self._of.hasattr("training") and self._of.getattr("training"))

    def changed(self) -> bool:
        now = self._held()
        same = len(now) == len(self.tensors) and all(map(operator.is_, now, self.tensors))
        return not same or self._training() != self._mode


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for value in vars(module).values():
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            if isinstance(inner, Tensor):
                yield inner


_NO_MEMORY = RuntimeError, ValueError, NotImplementedError  # sparse, lazy, or a wrapper: known by identity alone


def _has_memory(tensor: Tensor) -> bool:
    try:
        tensor.data_ptr()
    except _NO_MEMORY:
        return False
    return True
