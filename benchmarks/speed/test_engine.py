"""What `Engine` does between two network calls, beyond the row that `Sampler` executes there."""

import statistics

import pytest
import torch
from speed.harness import Side, Target, quartiles, record

import pndm_fast as pf

LANES, NUMBERS = 16, 64
ROWS = 200  # of a block
MICROSECONDS = {"nobody": Target(30.0, at_most=True), "one": Target(150.0, at_most=True)}


class Steps:
    """Steps of a full engine beside a network that costs nothing.

    Args:
        turnover: who leaves and joins with each step.
    """

    def __init__(self, turnover: str) -> None:
        answer = torch.zeros(LANES, NUMBERS)
        self.turnover, self.asked = turnover, []
        self.plans = {n: pf.make_plan("ddim", steps=n, spacing="trailing") for n in (*range(1, LANES + 1), 1000)}
        self.network = lambda x, t: answer[: len(x)]
        self.engine = pf.Engine(self.network, shape=(LANES, NUMBERS))
        self.sampler = pf.Sampler(self.network, self.plans[1000], shape=(LANES, NUMBERS))

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
            lengths = [*range(1, LANES + 1), *[LANES] * (2 * ROWS)]
        requests = [pf.Request(plan=self.plans[length], seeds=[seed]) for seed, length in enumerate(lengths)]
        self.asked = [self.engine.add(request) for request in requests]
        self.engine.step()

    def run(self, calls: int) -> None:
        """That many steps."""
        for _ in range(calls):
            self.engine.step()

    def rows(self, _: int) -> None:
        """A call of the sampler."""
        self.sampler(seeds=0)


@pytest.mark.parametrize("turnover", MICROSECONDS)
def test_between_two_calls(benchmark, rounds, one_thread, turnover):
    """Microseconds of a step of 16 lanes of 64 numbers, less a row of the sampler with as many samples."""
    steps = Steps(turnover)
    steps.check()
    ours, theirs = Side(steps.run, steps.reset), Side(steps.rows, most=1)
    rival = []

    def other_first() -> None:
        rival.append(theirs.block(1) / len(steps.plans[1000]))
        ours.prepare()

    benchmark.pedantic(steps.run, args=(ROWS,), setup=other_first, rounds=3 if benchmark.disabled else rounds)
    if benchmark.disabled:
        return
    own = [block / ROWS for block in benchmark.stats.stats.data]
    beyond = [1e6 * (a - b) for a, b in zip(own, rival, strict=True)]
    more = {"calls": ROWS, "ratio_is": "microseconds", "rival": "sampler"}
    more["rivals"] = {"sampler": {"us": round(statistics.median(rival) * 1e6, 3)}}
    record(benchmark, own, MICROSECONDS[turnover], round(statistics.median(beyond), 2), quartiles(beyond), **more)
