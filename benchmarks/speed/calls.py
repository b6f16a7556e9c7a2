"""Time of the sampling loop itself, with a network that costs nothing."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from speed.harness import Target, record
from torch.utils._python_dispatch import TorchDispatchMode

import pndm_fast as pf

SHORT, LONG = 50, 1000


class Operators(TorchDispatchMode):
    """Counts what reaches torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen += 1
        return function(*args, **(kwargs or {}))


def operators_between_calls(shape: tuple[int, ...], device: str) -> int:
    """Operators between the first and the last call of a network, in a sampler that knows its outputs' form."""
    answer, marks = torch.randn(shape, device=device), []
    with Operators() as operators:

        def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            marks.append(operators.seen)
            return answer

        sampler = pf.Sampler(network, pf.make_plan("plms", steps=20), shape=shape, device=device)
        sampler()
        marks.clear()
        sampler()
    return marks[-1] - marks[0]


def overhead(benchmark: Any, shape: tuple[int, ...], device: str, rounds: int) -> None:
    """Time a row costs outside the network: the slope of a call's time over its rows, less the network's own.

    The target is about operators between network calls; the ratio is their number.
    """
    answer = torch.zeros(shape, device=device)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return answer

    def sampler(steps: int) -> pf.Sampler:
        return pf.Sampler(network, pf.make_plan("plms", steps=steps), shape=shape, device=device)

    short, long = sampler(SHORT), sampler(LONG)
    expected = pf.Sampler(network, short.plan, shape=shape, device=device, backend="reference")()
    assert torch.equal(short(), expected) and torch.isfinite(long()).all()
    operators = operators_between_calls(shape, device)
    seconds: list[float] = []

    def short_first() -> None:
        began = time.perf_counter()
        short()
        seconds.append(time.perf_counter() - began)

    benchmark.pedantic(long, setup=short_first, rounds=rounds)
    if benchmark.disabled:
        return
    began = time.perf_counter()
    for _ in range(LONG):
        network(answer, answer)
    bare = (time.perf_counter() - began) / LONG
    rows = long.plan.nfe - short.plan.nfe
    each = [(a - b) / rows - bare for a, b in zip(benchmark.stats.stats.data, seconds[-rounds:], strict=True)]
    fixed = statistics.median(seconds) - statistics.median(each) * short.plan.nfe
    record(benchmark, each, Target(0, at_most=True), operators, None, calls=1, fixed_us=round(fixed * 1e6, 1))
