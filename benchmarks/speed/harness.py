"""Alternate our code with others' in short blocks and compare block by block: a shared machine drifts."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from speed.calls import Case, best, costs, timed
from torch.utils._python_dispatch import TorchDispatchMode

import pndm_fast as pf

BLOCK_SECONDS = 0.008


def nothing() -> None:
    """No preparation."""


@dataclass(frozen=True)
class Side:
    """One contestant.

    Attributes:
        run: makes that many calls, and on a GPU waits for the last.
        reset: prepares a block, untimed.
        most: calls that a block may make; 1 is for long calls, which are timed alone.
    """

    run: Callable[[int], Any]
    reset: Callable[[], Any] = field(default=nothing)
    most: int = 10_000

    def prepare(self) -> None:
        """What comes before a block, untimed: one call brings the memory of short ones into the caches."""
        self.reset()
        if self.most > 1:
            self.run(1)

    def block(self, calls: int) -> float:
        """Seconds for a call."""
        self.prepare()
        began = time.perf_counter()
        self.run(calls)
        return (time.perf_counter() - began) / calls

    def calls(self) -> int:
        """As many as fill a block."""
        if self.most == 1:
            return 1
        trials = [self.block(1) for _ in range(5)]
        return max(1, min(self.most - 1, math.ceil(BLOCK_SECONDS / statistics.median(trials))))


@dataclass(frozen=True)
class Target:
    """A bound on a ratio: `at_most` bounds ours / theirs, else theirs / ours must reach it; None only reports it."""

    value: float | None
    at_most: bool = False

    def ratio(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.at_most else theirs / ours

    def met(self, ratio: float) -> bool | None:
        if self.value is None:
            return None
        return ratio <= self.value if self.at_most else ratio >= self.value

    def __str__(self) -> str:
        return "" if self.value is None else f"{'<=' if self.at_most else '>='} {self.value:g}"


def contest(
    benchmark: Any,
    ours: Side,
    theirs: Mapping[str, Side],
    target: Target,
    *,
    rounds: int,
    moved: int | None = None,
    **more: Any,
) -> None:
    """Run ours and each of theirs by turns; write ratios and quartiles over the rounds into `extra_info`.

    pytest-benchmark times our blocks, its setup times theirs: `stats` holds seconds for a block of `calls` calls.

    Args:
        theirs: the fastest of these, by its median, is the rival that the target is about.
        moved: bytes that one of our calls reads and writes.
        more: further entries for `extra_info`.
    """
    if benchmark.disabled:
        for side in (ours, *theirs.values()):
            side.block(1)
        benchmark.pedantic(nothing)
        return
    calls, own_calls = {name: side.calls() for name, side in theirs.items()}, ours.calls()
    seconds: dict[str, list[float]] = {name: [] for name in theirs}

    def others_first() -> None:
        for name, side in theirs.items():
            seconds[name].append(side.block(calls[name]))
        ours.prepare()

    benchmark.pedantic(ours.run, args=(own_calls,), setup=others_first, rounds=rounds)
    own = [block / own_calls for block in benchmark.stats.stats.data]
    results = {name: against(own, values, target) for name, values in seconds.items()}
    rival = min(results, key=lambda name: results[name]["us"])
    more |= {"calls": own_calls, "rival": rival, "rivals": results}
    record(benchmark, own, target, results[rival]["ratio"], results[rival]["quartiles"], **more)
    if moved:
        benchmark.extra_info |= {"bytes": moved, "GB/s": round(moved / statistics.median(own) / 1e9, 2)}


def contest_costs(
    benchmark: Any, case: Case, cost: str, target: Target, rounds: int, ratio: float | None = None
) -> None:
    """Turns of a `call_cost`; record one of its costs, for the target and in place of a ratio unless one is given.

    `seconds` are the long call's. `best` holds costs of each side's quickest turn, which is what a busy machine can
    still tell.
    """
    repeats = dict.fromkeys(case.sides, 1) if benchmark.disabled else case.repeats()
    others, long = [name for name in case.sides if name != "long"], case.sides["long"]
    turns: list[dict[str, float]] = []

    def others_first() -> None:
        turns.append({name: timed(case.sides[name], repeats[name]) for name in others})
        long()

    def run() -> None:
        for _ in range(repeats["long"]):
            long()

    benchmark.pedantic(run, setup=others_first, rounds=rounds)
    if benchmark.disabled:
        return
    for turn, seconds in zip(turns, benchmark.stats.stats.data, strict=True):
        turn["long"] = seconds / repeats["long"]
    each = [costs(case.weights, turn) for turn in turns]
    own = [one[cost] for one in each]
    record(
        benchmark,
        [us / 1e6 for us in own],
        target,
        round(statistics.median(own), 2) if ratio is None else ratio,
        quartiles(own) if ratio is None else None,
        calls=repeats["long"],
        ratio_is="microseconds" if ratio is None else "operators",
        costs_us={name: round(statistics.median(one[name] for one in each), 2) for name in case.weights},
        best_us={name: round(us, 2) for name, us in best(case.weights, turns).items()},
    )


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


def against(own: list[float], theirs: list[float], target: Target) -> dict[str, Any]:
    """Median time of a rival, and median and quartiles of the per-round ratios."""
    ratios = [target.ratio(a, b) for a, b in zip(own, theirs, strict=True)]
    return {
        "us": round(statistics.median(theirs) * 1e6, 3),
        "ratio": round(statistics.median(ratios), 4),
        "quartiles": quartiles(ratios),
    }


def quartiles(values: list[float]) -> list[float]:
    """First and third."""
    if len(values) == 1:
        return [round(values[0], 4)] * 2
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [round(first, 4), round(third, 4)]


def record(
    benchmark: Any,
    own: list[float],
    target: Target | None,
    ratio: float | None,
    spread: list[float] | None,
    **more: Any,
) -> None:
    """The entries that every benchmark has; `more` holds its own."""
    benchmark.extra_info |= {
        "us": round(statistics.median(own) * 1e6, 3),
        "ratio": ratio,
        "quartiles": spread,
        "target": None if target is None else str(target) or None,
        "met": None if target is None or ratio is None else target.met(ratio),
        **more,
    }


def skip_unless_full(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """Leave a large or slow case to full runs."""
    if benchmark.disabled or request.config.getoption("--quick"):
        pytest.skip("only in a full run of `python benchmarks speed`")
