"""What a sampler remembers between calls: plans, tables, what is known of the network, idle buffers."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from pndm_fast.loop.workspace import Probe, Workspace
from pndm_fast.plan.plan import Plan
from pndm_fast.row.table import Table
from pndm_fast.runtime import graphs

Value = TypeVar("Value")
KEPT = 32  # entries of each kind


class Recent(Generic[Value]):
    """The last values used, by key. Threads may make one twice, never see half of one."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def peek(self, key: Hashable) -> Value | None:
        with self._lock:
            return self._values.get(key)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            value = self._values.setdefault(key, made)
            dropped = self._trim()
        del dropped  # not under the lock: freeing a graph waits for the device
        return value

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            dropped = self._trim()
        del dropped

    def values(self) -> list[Value]:
        """All that are kept."""
        with self._lock:
            return list(self._values.values())

    def _trim(self) -> list[tuple[Hashable, Value]]:
        return [self._values.popitem(last=False) for _ in range(len(self._values) - self._kept)]


class Memory:
    """Everything is bounded, holds no network, and may be used by several threads.

    Args:
        patient: nothing is captured for what comes but once.

    Attributes:
        idle: buffers that no call uses, by their form.
        probes: what is known of the network's outputs.
        tables: rows in device memory, with the plans that they are of.
        guided: plans at another guidance scale, with the plan that they were made from.
        graphs: captured iterations, by what they hold fast; `refused`: why one could not be had.
        captures: how many were made; `recaptures`: how many of them because the network's tensors had changed.
    """

    def __init__(self, patient: bool = False) -> None:
        self._patient = patient
        self._seen: Recent[bool] = Recent()
        self.idle: Recent[deque[Workspace]] = Recent()
        self.probes: Recent[Probe] = Recent()
        self.tables: Recent[tuple[tuple[Plan, ...], Table]] = Recent()
        self.guided: Recent[tuple[Plan, Plan]] = Recent()
        self.graphs: Recent[graphs.Pool] = Recent(graphs.KEPT)
        self.refused: Recent[str] = Recent()
        self.captures = self.recaptures = 0
        self._lock = threading.Lock()

    def first_time(self, key: Hashable) -> bool:
        """Whether a patient memory is asked for this for the first time."""
        if not self._patient or self._seen.peek(key):
            return False
        self._seen.put(key, True)
        return True

    def count(self, replaces: bool) -> None:
        """A graph was made, maybe since the network had changed: then other graphs of it may be stale too."""
        with self._lock:
            self.captures += 1
            self.recaptures += replaces
        if replaces:
            for pool in self.graphs.values():
                pool.drop_stale()


_OF_MODEL: weakref.WeakKeyDictionary[Any, Recent[Memory]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def clear() -> None:
    """Free what `pndm_fast.sample` keeps between calls: buffers, tables, what it knows of networks."""
    global _OF_MODEL
    with _LOCK:
        dropped, _OF_MODEL = _OF_MODEL, weakref.WeakKeyDictionary()
    del dropped


def memory_of(model: Any, key: Hashable) -> Memory:
    """The memory of earlier calls with this network (a bound method counts as its owner's), or a new one.

    It goes when the network goes.
    """
    owner = getattr(model, "__self__", model)
    try:
        with _LOCK:
            recent = _OF_MODEL.setdefault(owner, Recent())
    except TypeError:  # neither hashable nor weakly referable: nothing to remember it by
        return Memory(patient=True)
    return recent.get((getattr(model, "__func__", None), key), lambda: Memory(patient=True))
