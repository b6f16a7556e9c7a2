"""Contestants on the clock: the same arrivals, a network of a known cost or a real one, each in a thread of its own."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from serving.load import SHORT, Arrival
from serving.simulate import key_of, latencies, quantile, take
from torch import Tensor

import pndm_fast as pf

Network = Callable[..., Tensor]
Done = Callable[[int, Tensor], None]  # an arrival's index, and what was drawn for it
NULL = 10  # the label that means none


class Counted:
    """A network whose calls are counted, and cost what they are told where it has no cost of its own.

    Attributes:
        calls: so far; samples: the sum of their batches.
    """

    def __init__(self, network: Network, seconds: Callable[[int], float] | None = None) -> None:
        self._network, self._seconds = network, seconds
        self.calls = self.samples = 0

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        until = time.perf_counter() + (0.0 if self._seconds is None else self._seconds(len(x)))
        self.calls += 1
        self.samples += len(x)
        out = self._network(x, t, **cond)
        left = until - time.perf_counter() - SLEPT
        if left > 0:
            time.sleep(left)
        return out


def _oversleeps() -> float:
    """By how much `time.sleep` takes longer."""
    began = time.perf_counter()
    for _ in range(50):
        time.sleep(1e-3)
    return (time.perf_counter() - began) / 50 - 1e-3


SLEPT = _oversleeps()


def halved(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A network that says the same of a sample whatever is beside it."""
    return 0.5 * x + torch.sin(t * 0.01 + y).view(-1, *[1] * (x.dim() - 1))


@functools.cache
def plan_of(rows: int, solver: str, scale: float | None) -> pf.Plan:
    """As long as a server lives, which has a few."""
    plan = pf.make_plan(solver, steps=rows, spacing="trailing")
    return plan if scale is None else plan.with_guidance(scale)


def request_of(asked: Sequence[Arrival]) -> pf.Request:
    """Of one form."""
    labels = torch.tensor([one.seed % NULL for one in asked])
    return pf.Request(
        plan=[plan_of(one.rows, one.solver, one.scale) for one in asked],
        seeds=[one.seed for one in asked],
        cond={"y": labels},
        uncond={"y": torch.full_like(labels, NULL)} if asked[0].form else None,
    )


@dataclass
class Line:
    """Arrivals that wait for a contestant's thread."""

    waiting: deque[int] = field(default_factory=deque)
    closed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)


class Contestant(Protocol):
    """Who runs requests: `submit` hands one over, `close` waits for all."""

    def submit(self, index: int, one: Arrival) -> None: ...
    def close(self) -> None: ...


class Static:
    """Batches by one `Sampler` call after another, each of at most so many of those that wait: `simulate.static`."""

    def __init__(self, network: Network, shape: tuple[int, ...], most: int, alike: bool, done: Done) -> None:
        self._sampler = pf.Sampler(network, shape=(1, *shape), device="cpu")
        self._asked: dict[int, Arrival] = {}
        self._most, self._alike, self._done, self._line = most, alike, done, Line()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def submit(self, index: int, one: Arrival) -> None:
        with self._line.changed:
            self._asked[index] = one
            self._line.waiting.append(index)
            self._line.changed.notify()

    def close(self) -> None:
        with self._line.changed:
            self._line.closed = True
            self._line.changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._line.changed:
                self._line.changed.wait_for(lambda: self._line.waiting or self._line.closed)
                if not self._line.waiting:
                    return
                batch = take(self._line.waiting, lambda i: key_of(self._asked[i], self._alike), self._most)
            asked = [self._asked[i] for i in batch]
            samples = self._sampler.run(request_of(asked)).samples
            for place, index in enumerate(batch):
                self._done(index, samples[place : place + 1])


class Lanes:
    """`pf.Worker`."""

    def __init__(self, engine: pf.Engine, done: Done) -> None:
        self._worker, self._done = pf.Worker(engine, max_queue=None), done

    def submit(self, index: int, one: Arrival) -> None:
        ticket = self._worker.submit(request_of([one]))
        ticket.add_done_callback(lambda ended: self._done(index, ended.result().samples))

    def close(self) -> None:
        self._worker.close()


def raced(make: Callable[[Done], Contestant], asked: Sequence[Arrival], network: Counted) -> dict[str, Any]:
    """A contestant's numbers for these arrivals, each submitted when it is due whatever became of those before.

    `samples` holds the last of what was drawn by index, which is not written.
    """
    done, samples = [float("nan")] * len(asked), dict[int, Tensor]()

    def ended(index: int, drawn: Tensor) -> None:
        done[index] = time.perf_counter() - began
        if index % CHECKED == 0:
            samples[index] = drawn

    contestant = make(ended)
    calls, size = network.calls, network.samples
    began = time.perf_counter()
    for index, one in enumerate(asked):
        left = began + one.at - time.perf_counter()
        if left > 0:
            time.sleep(left)
        contestant.submit(index, one)
    contestant.close()
    waited = latencies(asked, done)
    short = [time for time, one in zip(waited, asked, strict=True) if one.rows <= SHORT]
    return {
        "requests": len(asked),
        "p50": quantile(waited, 0.5),
        "p99": quantile(waited, 0.99),
        "short_p50": quantile(short, 0.5),
        "short_p99": quantile(short, 0.99),
        "seconds": max(done),
        "calls": network.calls - calls,
        "samples": network.samples - size,
        "drawn": samples,
    }


CHECKED = 7  # of how many results one is compared with that of a request alone


def check(drawn: Mapping[int, Tensor], asked: Sequence[Arrival], network: Network, exact: bool) -> None:
    """Assert that results are what requests give alone: to the bit, or where a batch changes bits, to rounding."""
    for index, samples in list(drawn.items())[:20]:
        alone = pf.Sampler(network, shape=samples.shape, device="cpu").run(request_of([asked[index]])).samples
        if exact:
            assert torch.equal(samples, alone), f"request {index} has other bits than alone"
        else:
            torch.testing.assert_close(samples, alone, rtol=1e-3, atol=1e-3)
