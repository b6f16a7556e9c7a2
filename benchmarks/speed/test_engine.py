"""What `Engine` does between two network calls, beyond the row that `Sampler` executes there."""

import itertools
import statistics
import time

import pytest
import torch
from speed.calls import timed
from speed.harness import Side, Target, quartiles, record

import pndm_fast as pf

LANES, NUMBERS = 16, 64
ROWS = 60  # of a block, of which the median counts: other processes stretch some
CALL = 200  # rows of the sampler's
MICROSECONDS = {"nobody": Target(30.0, at_most=True), "one": Target(150.0, at_most=True)}


class Steps:
    """Steps of a full engine beside a network that costs nothing.

    Args:
        turnover: who leaves and joins with each step.

    Attributes:
        medians: seconds of a step, of each block.
    """

    def __init__(self, turnover: str) -> None:
        answer = torch.zeros(LANES, NUMBERS)
        self.turnover, self.asked, self.medians = turnover, [], []
        self.plans = {n: pf.make_plan("ddim", steps=n, spacing="trailing") for n in (*range(1, LANES + 1), CALL, 1000)}
        self.network = lambda x, t: answer[: len(x)]
        self.engine = pf.Engine(self.network, shape=(LANES, NUMBERS))
        self.sampler = pf.Sampler(self.network, self.plans[CALL], shape=(LANES, NUMBERS))

    def check(self) -> None:
        """A sample is the sampler's, bit for bit."""
        wanted = pf.Request(plan=self.plans[LANES], seeds=[7])
        self.reset()
        self.run(3)
        mine = self.engine.add(wanted, priority=1)
        over = {one.id: one.result for _ in range(2 * LANES) for one in self.engine.step()}
        assert self.turnover == "nobody" or torch.equal(over[mine].samples, self.sampler.run(wanted).samples)

    def reset(self) -> None:
        """All lanes are under way."""
        for number in self.asked:
            self.engine.cancel(number)
        while not self.engine.idle:
            self.engine.step()
        if self.turnover == "nobody":
            lengths = [1000] * LANES
        else:
            lengths = [*range(1, LANES + 1), *[LANES] * (ROWS + 2)]
        requests = [pf.Request(plan=self.plans[length], seeds=[seed]) for seed, length in enumerate(lengths)]
        self.asked = [self.engine.add(request) for request in requests]
        self.engine.step()

    def run(self, calls: int) -> None:
        """That many steps."""
        times = [time.perf_counter()]
        for _ in range(calls):
            self.engine.step()
            times.append(time.perf_counter())
        self.medians.append(statistics.median([b - a for a, b in itertools.pairwise(times)]))

    def row(self) -> float:
        """Seconds of a sampler's row: the quickest of some calls, which an engine's median is compared with."""
        return min([timed(lambda: self.sampler(seeds=0), 1) for _ in range(5)]) / CALL


@pytest.mark.parametrize("turnover", MICROSECONDS)
def test_between_two_calls(benchmark, rounds, one_thread, turnover):
    """Microseconds of a step of 16 lanes of 64 numbers, less a row of the sampler with as many samples."""
    steps = Steps(turnover)
    steps.check()
    ours = Side(steps.run, steps.reset)
    rival = []

    def other_first() -> None:
        rival.append(steps.row())
        ours.prepare()
        steps.medians.pop()

    steps.medians.clear()
    benchmark.pedantic(steps.run, args=(ROWS,), setup=other_first, rounds=3 if benchmark.disabled else rounds)
    if benchmark.disabled:
        return
    beyond = [1e6 * (own - row) for own, row in zip(steps.medians, rival, strict=True)]
    more = {"calls": ROWS, "ratio_is": "microseconds", "rival": "sampler"}
    more["rivals"] = {"sampler": {"us": round(statistics.median(rival) * 1e6, 3)}}
    target = MICROSECONDS[turnover]
    record(benchmark, steps.medians, target, round(statistics.median(beyond), 2), quartiles(beyond), **more)
