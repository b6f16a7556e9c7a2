"""What a whole sampling call adds to its network calls."""

import statistics
import time

import pytest
import torch
from speed.calls import overhead
from speed.harness import Target, quartiles, record

import pndm_fast as pf
from pndm_fast.demo import mnist_unet

BATCH, SHAPE = 16, (16, 1, 28, 28)
BOUND = Target(1.01, at_most=True)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (16, 4, 64, 64)], ids=["4x64x64-B1", "4x64x64-B16"])
def test_row_outside_the_network(benchmark, rounds, shape):
    overhead(benchmark, shape, "cpu", rounds)


class Paired:
    """Calls the network twice for each row, by turns first for the sampler and first for comparison, and times both."""

    def __init__(self, network):
        self.network = network
        self.restart()

    def restart(self):
        self.calls, self.inside, self.bare = 0, 0.0, 0.0

    def timed(self, x, t):
        began = time.perf_counter()
        out = self.network(x, t)
        return out, time.perf_counter() - began

    def __call__(self, x, t):
        (first, a), (second, b) = self.timed(x, t), self.timed(x, t)
        swapped = self.calls % 2
        self.calls += 1
        self.inside += b if swapped else a
        self.bare += a if swapped else b
        return second if swapped else first


def plan(benchmark):
    return pf.make_plan("f-pndm", steps=8 if benchmark.disabled else 50)


def test_sampler_against_paired_calls(benchmark, rounds):
    """Whole calls of the sampler over bare network calls, each bare one beside the sampler's own.

    Blocks of whole trajectories would differ by 2 % from drift alone. `outside_share` is the sampler's time outside
    the network over its time inside.
    """
    network = Paired(mnist_unet())
    sampler = pf.Sampler(network, plan(benchmark), shape=SHAPE)
    expected = pf.Sampler(network, sampler.plan, shape=SHAPE, backend="reference")()
    assert torch.equal(sampler(), expected)
    ratios, shares, own = [], [], []

    def sample():
        network.restart()
        began = time.perf_counter()
        sampler()
        own.append(time.perf_counter() - began - network.bare)
        ratios.append(own[-1] / network.bare)
        shares.append((own[-1] - network.inside) / network.inside)

    rounds = max(3, rounds // 3)
    benchmark.pedantic(sample, rounds=rounds)
    if not benchmark.disabled:
        more = {"nfe": sampler.plan.nfe, "outside_share": round(statistics.median(shares), 6), "calls": 1}
        record(benchmark, own, BOUND, round(statistics.median(ratios), 5), quartiles(ratios), rival="network", **more)
