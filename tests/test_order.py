"""Observed orders on the exact model. A wrong letter in a coefficient shows here at once."""

import functools

import numpy as np
import pytest
import torch
from golden_data import START, mixture

import pndm_fast as pf

VP = pf.Schedule.vp(0.1, 20.0)
STEPS = (128, 256, 512)
# Uniform t from 1 to 0.1. To t = 0 the pseudo methods drop to about 1: sigma grows like sqrt(t) there.
ORDERS = {
    "ddim": (0.9, 1.1),
    "s-pndm": (1.8, 2.2),
    "f-pndm": (1.8, 2.2),
    "plms": (1.8, 2.2),
    "ipndm": (1.8, 2.2),
    "fon": (1.8, 2.3),  # its authors' start is second order
    "fon-rk4": (3.7, 5.5),
}


@functools.cache
def exact():
    return pf.probability_flow(mixture(VP), VP, START, end=0.1, rtol=1e-12)


def error(solver, steps, **options):
    plan = pf.make_plan(solver, VP, times=np.linspace(1.0, 0.1, steps + 1), **options)
    x = pf.sample(mixture(VP), solver=plan, state=START)
    return float((x - exact()).square().mean().sqrt())


@pytest.mark.parametrize("solver", ORDERS)
def test_observed_order(solver):
    """The slope of log error against log n over n = 128, 256, 512."""
    errors = [error(solver, n) for n in STEPS]
    slope = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    low, high = ORDERS[solver]
    assert low <= slope <= high, (solver, errors, slope)


def test_every_solver_has_an_order():
    stochastic = {"ddpm"}
    assert set(pf.SOLVERS) == set(ORDERS) | stochastic


def test_difference_quotient_has_a_floor():
    """A derivative taken over 1/1000 of the time is wrong by a fixed amount, however many steps there are."""
    assert error("fon-rk4", 512, delta=1e-3) > 30 * error("fon-rk4", 512)


def test_fon_rk4_beats_fon():
    assert error("fon-rk4", 256) < error("fon", 256) / 10


@pytest.mark.parametrize("prediction", ["v", "x0", "flow"])
@pytest.mark.parametrize("solver", [name for name in ORDERS])
def test_predictions_agree(solver, prediction):
    """What the network predicts changes the store map alone: the samples are the same to rounding."""
    times = np.linspace(1.0, 0.1, 21)
    plans = [pf.make_plan(solver, VP, times=times, prediction=p) for p in ("eps", prediction)]
    by_eps = pf.sample(mixture(VP), solver=plans[0], state=START)
    other = pf.sample(mixture(VP, prediction), solver=plans[1], state=START)
    torch.testing.assert_close(other, by_eps, rtol=1e-9, atol=1e-9)
