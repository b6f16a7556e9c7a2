"""What a sampler remembers between calls: plans, tables, what is known of the network, idle buffers."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pndm_fast.loop.network import Denoiser, denoiser_of, with_time
from pndm_fast.loop.workspace import OutputSpec, Workspace
from pndm_fast.plan.plan import Plan
from pndm_fast.row.table import Table
from pndm_fast.runtime import graphs
from pndm_fast.runtime.capture import CannotCapture, release

Value = TypeVar("Value")
KEPT = 32  # entries of each kind
PLANS = 1024  # and of what is small: a batch may have many plans


class LRU(Generic[Value]):
    """The last values used, by key. Threads may make one twice, never see half of one."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def peek(self, key: Hashable) -> Value | None:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            known = self._values.get(key)
            if known is not None:
                self._values.move_to_end(key)
                return known
        made = make()
        with self._lock:
            value = self._values.setdefault(key, made)
            dropped = self._trim()
        del dropped  # not under the lock: it may be a graph, or much memory
        return value

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            dropped = self._trim()
        del dropped

    def values(self) -> list[Value]:
        """All that are kept."""
        with self._lock:
            return list(self._values.values())

    def _trim(self) -> list[tuple[Hashable, Value]]:
        return [self._values.popitem(last=False) for _ in range(len(self._values) - self._kept)]


class Cache:
    """Everything is bounded, holds no network but a weaker one's, and may be used by several threads.

    Args:
        capture_on_second_use: nothing is captured for what comes but once.

    Attributes:
        idle: buffers that no call uses, by their form.
        outputs: what is known of the network's outputs.
        tables: lines of plans, with the plans.
        guided: plans at another guidance scale, with the plan that they were made from; checked: plans that passed.
        weaker: what is known of guidance's other networks.
        graphs: captured iterations, by what they hold fast; `refused`: why none can be had.
        captures: how many were made; `recaptures`: how many of them because the network's tensors had changed.
    """

    def __init__(self, capture_on_second_use: bool = False) -> None:
        self._capture_on_second_use = capture_on_second_use
        self._seen: LRU[bool] = LRU()
        self.idle: LRU[deque[Workspace]] = LRU()
        self.outputs: LRU[OutputSpec] = LRU()
        self.tables: LRU[tuple[tuple[Plan, ...], Table]] = LRU()
        self.guided: LRU[tuple[Plan, Plan]] = LRU(PLANS)
        self.checked: LRU[Plan] = LRU(PLANS)
        self.weaker: LRU[Denoiser] = LRU()
        self.graphs: LRU[graphs.Pool] = LRU(graphs.KEPT)
        self.refused: LRU[str] = LRU()
        self._failures: LRU[int] = LRU()  # in a row
        self.captures = self.recaptures = 0
        self._lock = threading.Lock()

    def first_time(self, key: Hashable) -> bool:
        """Whether this comes for the first time where that is not captured."""
        if not self._capture_on_second_use or self._seen.peek(key):
            return False
        self._seen.put(key, True)
        return True

    def refuse(self, key: Hashable, refusal: CannotCapture) -> None:
        """A graph could not be had; no more is tried after as many failures in a row as such a refusal is worth."""
        failures = 1 + (self._failures.peek(key) or 0)
        if failures >= refusal.tries:
            self.refused.put(key, str(refusal))
        elif refusal.tries < math.inf:
            self._failures.put(key, failures)

    def learned(self, key: Hashable, told: OutputSpec, refused: int) -> None:
        """What a first call told. A batch that was refused for guidance is tried once more: it may have been chance."""
        if refused and not self._failures.peek(key):
            self._failures.put(key, refused)
            told = replace(told, split_reason=None)
        self.outputs.put(key, told)

    def captured(self, key: Hashable, replaces: bool) -> None:
        """A graph was made, maybe since the network had changed: then other graphs of it may be stale too."""
        self._failures.put(key, 0)
        with self._lock:
            self.captures += 1
            self.recaptures += replaces
        if replaces:
            for pool in self.graphs.values():
                pool.drop_stale()


_OF_MODEL: weakref.WeakKeyDictionary[Any, LRU[Cache]] = weakref.WeakKeyDictionary()
_FACTS: weakref.WeakKeyDictionary[Any, tuple[Hashable, tuple[Any, ...]]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def asked_once(network: Any, dtype: torch.dtype | None, device: torch.device | None, name: str) -> Denoiser:
    """`denoiser_of`, whose walk over a network's tensors takes milliseconds: again where its ends have changed."""
    if dtype is not None or device is not None:
        return denoiser_of(network, dtype, device, name)
    now, known = _witness(network), None
    with contextlib.suppress(TypeError):  # neither hashable nor weakly referable
        known = _FACTS.get(network)
    if known is not None and known[0] == now:
        time, *others = known[1]
        return Denoiser(network, with_time(network, time.keyword), time, *others)
    made = denoiser_of(network, name=name)
    with contextlib.suppress(TypeError):
        _FACTS[network] = now, (made.time, made.dtype, made.device, made.momentum_only, made.scatters)
    return made


def _witness(network: Any) -> Hashable:
    first = None
    with contextlib.suppress(TypeError, AttributeError):  # no such method, or something else by its name
        first = next(iter(network.parameters()), None)
    ends = first, _last_parameter(network) if isinstance(network, nn.Module) else None
    tensors = [(one.dtype, one.device) if isinstance(one, Tensor) else None for one in ends]
    own = getattr(network, "__dict__", {})
    return *tensors, own.get("_hf_hook") is None, id(own.get("forward")), getattr(network, "momentum_only", None)


def _last_parameter(module: nn.Module) -> Tensor | None:
    """Where the first one stays as it was, as one that is kept in float32 does, the last shows what the others are."""
    for child in reversed(module._modules.values()):
        found = None if child is None else _last_parameter(child)
        if found is not None:
            return found
    return next((one for one in reversed(module._parameters.values()) if one is not None), None)


def clear() -> None:
    """Free what `pndm_fast.sample` keeps between calls: buffers, tables, what it knows of networks."""
    global _OF_MODEL
    with _LOCK:
        dropped, _OF_MODEL = _OF_MODEL, weakref.WeakKeyDictionary()
    _FACTS.clear()
    del dropped
    release(wait=True)


def cache_of(model: Any, key: Hashable) -> Cache:
    """The cache of earlier calls with this network (a bound method counts as its owner's), or a new one.

    It goes when the network goes.
    """
    owner = getattr(model, "__self__", model)
    try:
        with _LOCK:
            recent = _OF_MODEL.setdefault(owner, LRU())
    except TypeError:  # neither hashable nor weakly referable: nothing to remember it by
        return Cache(capture_on_second_use=True)
    return recent.get((getattr(model, "__func__", None), key), lambda: Cache(capture_on_second_use=True))
