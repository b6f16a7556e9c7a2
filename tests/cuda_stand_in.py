"""The graph modes on the CPU: captured kernels are Python calls in the fake driver's graphs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import torch
from fake_cuda import FakeDriver

from pndm_fast import _C
from pndm_fast.runtime.cuda import assembled


class Captured:
    """A graph of one kernel that does what the captured body did."""

    def __init__(self, fake: FakeDriver, body: Callable[[], None]) -> None:
        self._fake, self._graph = fake, fake.graph(body)

    def raw_cuda_graph(self) -> int:
        return self._graph

    def reset(self) -> None:
        self._fake.destroy(self._graph)


class Event:
    """Everything has happened already, unless the device is said to be busy; what was asked is counted."""

    def __init__(self, device: StandIn) -> None:
        self._device, self._counts = device, device.counts

    def query(self) -> bool:
        self._counts["query"] += 1
        return not self._device.busy

    def record(self) -> None:
        self._counts["record"] += 1

    def wait(self) -> None:
        self._counts["wait"] += 1

    def synchronize(self) -> None:
        self._counts["synchronize"] += 1


class StandIn:
    """`pndm_fast.runtime.cuda.Cuda` on the CPU.

    Attributes:
        fake: the driver.
        during: called in a capture, before the body, as a network's own fault would be.
        recorded: what the graph does in place of the body.
        busy: whether work is said to go on.
    """

    capability = (9, 0)

    def __init__(self, fake: FakeDriver) -> None:
        self.fake, self.driver, self.counts = fake, _C.Driver(fake.path), Counter()
        self.busy = False
        self.during: Callable[[], None] = lambda: None
        self.recorded: Callable[[Callable[[], None]], Callable[[], None]] = lambda body: body

    def stream(self) -> int:
        return 0

    def event(self) -> Event:
        return Event(self)

    def flag(self) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int32, device="cpu")

    def random_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def assemble(self, ptx: str) -> bytes:
        self.counts["assemble"] += 1
        return assembled(ptx, self.capability)

    def aside(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def capture(self, body: Callable[[], None]) -> tuple[Captured, int]:
        self.counts["capture"] += 1
        self.during()
        return Captured(self.fake, self.recorded(body)), 4096
