"""`pytest --fake-device`: tests marked `gpu` run on the CPU, with the fake CUDA driver where a device would be.

Their own code is what this checks: captures, refusals, counts and bits. What else they ask of torch.cuda does nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from cuda_stand_in import Captured, StandIn
from fake_cuda import FakeDriver
from torch.utils._python_dispatch import TorchDispatchMode

device = "cuda"  # where the tests' tensors are
CYCLES = 2e9  # a second


def choose() -> None:
    """The CPU; before Triton and the tests are imported."""
    global device
    device = "cpu"
    os.environ["TRITON_INTERPRET"] = "1"


class _NoHostReads(TorchDispatchMode):
    """A capture's: the value that a read on the host asks for does not exist yet."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return func(*args, **(kwargs or {}))


class FakeDevice(StandIn):
    """Captures as torch does, by calling the body."""

    def capture(self, body: Callable[[], None]) -> tuple[Captured, int]:
        with _NoHostReads():
            body()
        return super().capture(body)


class Stream:
    """Everything has happened already."""

    def wait_stream(self, other: Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass


REPLACED: dict[str, Callable[..., Any]] = {
    "Stream": Stream,
    "current_stream": Stream,
    "stream": contextlib.nullcontext,
    "synchronize": lambda: None,
    "empty_cache": lambda: None,
    "set_sync_debug_mode": lambda mode: None,
    "mem_get_info": lambda: (2**30, 2**31),
    "memory_allocated": lambda: 0,
    "memory_reserved": lambda: 0,
    "_sleep": lambda cycles: time.sleep(cycles / CYCLES),
}


@contextlib.contextmanager
def installed(monkeypatch: Any) -> Any:
    """For one test. What it has compiled runs as it is written: Inductor's kernels for the CPU are not the subject."""
    from pndm_fast.runtime import executor

    fake = FakeDevice(FakeDriver())
    monkeypatch.setattr(executor, "cuda_of", lambda _: fake)
    for name, replacement in REPLACED.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    with torch.compiler.set_stance("force_eager"):
        yield
