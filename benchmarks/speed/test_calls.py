"""What a whole sampling call adds to its network calls, and what making a plan takes."""

import statistics
import time

import pytest
import torch
from speed.calls import CASES, call_cost, free
from speed.harness import Target, contest_costs, operators_between_calls, quartiles, record

import pndm_fast as pf
from pndm_fast.demo import mnist_unet
from pndm_fast.solvers import SOLVER_INFO

BATCH, SHAPE = 16, (16, 1, 28, 28)
BOUND = Target(1.01, at_most=True)
STEPS = 50
MILLISECONDS = Target(20.0, at_most=True)
MICROSECONDS = {"fixed": Target(150.0, at_most=True), "row": Target(5.0, at_most=True)}


@pytest.mark.parametrize("cost", MICROSECONDS)
@pytest.mark.parametrize("solver", ["ddim", "f-pndm"])
def test_cost_beside_an_mlp(benchmark, rounds, threads, solver, cost):
    """A call's fixed cost, and a row's, beside the bare calls of a small network."""
    contest_costs(benchmark, CASES[f"mlp {solver}"](), cost, MICROSECONDS[cost], rounds)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (16, 4, 64, 64)], ids=["4x64x64-B1", "4x64x64-B16"])
def test_row_outside_the_network(benchmark, rounds, shape):
    """A row beside a network that costs nothing; the target is about operators between its calls."""
    operators = operators_between_calls(shape, "cpu")
    case = call_cost(free(shape), shape, "plms", (10, 100))
    contest_costs(benchmark, case, "row", Target(0, at_most=True), rounds, ratio=operators)


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


def test_sampler_against_paired_calls(benchmark, rounds):
    """Whole calls of the sampler over bare network calls, each bare one beside the sampler's own.

    Blocks of whole trajectories would differ by 2 % from drift alone. `outside_share` is the sampler's time outside
    the network over its time inside.
    """
    network, plan = Paired(mnist_unet()), pf.make_plan("f-pndm", steps=8 if benchmark.disabled else STEPS)
    sampler = pf.Sampler(network, plan, shape=SHAPE)
    assert torch.equal(sampler(), pf.Sampler(network, plan, shape=SHAPE, backend="reference")())
    ratios, shares, own = [], [], []

    def sample():
        network.restart()
        began = time.perf_counter()
        sampler()
        own.append(time.perf_counter() - began - network.bare)
        ratios.append(own[-1] / network.bare)
        shares.append((own[-1] - network.inside) / network.inside)

    benchmark.pedantic(sample, rounds=max(3, rounds // 3))
    if not benchmark.disabled:
        more = {"nfe": plan.nfe, "outside_share": round(statistics.median(shares), 6), "calls": 1}
        record(benchmark, own, BOUND, round(statistics.median(ratios), 5), quartiles(ratios), rival="network", **more)


@pytest.mark.parametrize("solver", pf.SOLVERS)
def test_make_plan(benchmark, rounds, solver):
    """A plan of 50 steps."""
    plan = pf.make_plan(solver, steps=STEPS)
    assert plan.nfe == SOLVER_INFO[solver].calls(STEPS)
    assert pf.Plan.from_json(plan.to_json()) == plan
    benchmark.pedantic(pf.make_plan, args=(solver,), kwargs={"steps": STEPS}, rounds=rounds, warmup_rounds=1)
    if not benchmark.disabled:
        milliseconds = round(benchmark.stats.stats.median * 1e3, 3)
        data = benchmark.stats.stats.data
        record(benchmark, data, MILLISECONDS, milliseconds, None, calls=1, ratio_is="milliseconds")
