"""Building a 50-step plan of every solver."""

import pytest
from speed.harness import Target, record

import pndm_fast as pf
from pndm_fast.solvers import SOLVER_INFO

STEPS = 50
MILLISECONDS = Target(20.0, at_most=True)


@pytest.mark.parametrize("solver", pf.SOLVERS)
def test_make_plan(benchmark, rounds, solver):
    plan = pf.make_plan(solver, steps=STEPS)
    assert plan.nfe == SOLVER_INFO[solver].calls(STEPS)
    assert pf.Plan.from_json(plan.to_json()) == plan
    benchmark.pedantic(pf.make_plan, args=(solver,), kwargs={"steps": STEPS}, rounds=rounds, warmup_rounds=1)
    if not benchmark.disabled:
        data = benchmark.stats.stats.data
        milliseconds = round(benchmark.stats.stats.median * 1e3, 3)
        record(benchmark, data, MILLISECONDS, milliseconds, None, calls=1, ratio_is="milliseconds")
