"""A plan on unscaled data makes the samples of the plan."""

import numpy as np
import pytest
import torch
from compat_case import network
from golden_data import relative

import pndm_fast as pf
from pndm_fast.plan.coordinates import unscaled

SOLVERS = ("euler", "dpmpp-2m", "unipc", "heun", "f-pndm", "deis", "ddpm", "euler-ancestral", "dpmpp-3m-sde", "edm")


@pytest.mark.filterwarnings("ignore:.* diverges in")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_same_samples(solver, prediction):
    plan = pf.make_plan(solver, steps=6, prediction=prediction, clip=4.0 if solver == "unipc" else None)
    other = unscaled(plan)
    assert all(level.alpha == 1 for row in other for level in row.levels)
    start = pf.Noise(torch.from_numpy(np.random.default_rng(0).standard_normal((2, 6))))
    want = pf.sample(network, solver=plan, start=start, seeds=3)  # float64, as the start is
    assert relative(pf.sample(network, solver=other, start=start, seeds=3), want) < 1e-11


def test_no_signal():
    plan = pf.make_plan("euler", pf.Schedule.flow(), steps=4, prediction="flow")
    with pytest.raises(ValueError, match="plan must be of numbers, with alpha > 0 throughout, got euler"):
        unscaled(plan)
