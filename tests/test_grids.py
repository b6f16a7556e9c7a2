"""Grids of every spacing on every schedule, and what they refuse."""

import math
import warnings

import numpy as np
import pytest
from golden_data import SCALAR, named_stress

import pndm_fast as pf
from pndm_fast.plan.grids import SPACINGS, make_grid, noisiest
from pndm_fast.solvers import SOLVER_INFO

SCHEDULES = {
    "linear": pf.Schedule.linear(),
    "cosine": pf.Schedule.cosine(),
    "vp": pf.Schedule.vp(),
    "edm": pf.Schedule.edm(),
    "flow": pf.Schedule.flow(),
    "flow-shift": pf.Schedule.flow(3.0, 1000),
}
HALF = math.sqrt(0.5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("T", [10, 15, 32, 100, 999, 1000])
def test_discrete_grids(T, spacing):
    """Inside the schedule for any length; `t_min` and the noisiest time are met exactly."""
    schedule = pf.Schedule.linear(T=T)
    for n in sorted({1, 2, 3, 7, T // 2, T - 1}):
        times = make_grid(schedule, n, spacing)
        assert len(times) == n + 1 and times[-1] == -1 and all(np.diff(times) < 0)
        assert n > 7 or pf.make_plan("ddim", schedule, steps=n, spacing=spacing).nfe == n
        if spacing not in ("leading", "trailing"):
            assert times[0] == T - 1 and (n == 1 or times[-2] == 0)
            ended = make_grid(schedule, n, spacing, "min", 0.5)
            assert ended[0] == T - 1 and ended[-1] == 0.5 and len(ended) == n + 1
            assert n == 1 or make_grid(schedule, n, spacing, t_min=0.5)[-2] == 0.5


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "flow-shift"])
def test_continuous_grids_end_at_t_min(name):
    schedule = SCHEDULES[name]
    low = schedule.last / 7
    for spacing in sorted(set(SPACINGS) - {"leading"}):
        times = make_grid(schedule, 5, spacing, "min", low)
        assert (
            times[0] == (noisiest(schedule) if spacing in ("logsnr", "dpm-fast") else schedule.last)
            and times[-1] == low
            and all(np.diff(times) < 0)
        )


def test_shifted_grid_to_t_min_keeps_its_form():
    """Uniform in u between the ends, then shifted."""
    t = np.array(make_grid(pf.Schedule.flow(3.0), 5, "linspace", "min", 0.1))
    assert np.diff(t / (3 - 2 * t)) == pytest.approx(-(1 - 0.1 / 2.8) / 5)


@pytest.mark.slow
@pytest.mark.filterwarnings(  # few steps, any spacing
    "ignore:.* diverges in", "ignore:the grid starts", "ignore:edm adds no noise"
)
@pytest.mark.parametrize("solver", named_stress(SCALAR))
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_combination_builds_or_says_why(name, solver):
    for spacing in SPACINGS:
        for n in sorted({1, 2, 3, SOLVER_INFO[solver].min_steps}):
            try:
                plan = pf.make_plan(solver, SCHEDULES[name], steps=n, spacing=spacing)
            except ValueError as error:
                assert " must " in str(error) and "row " not in str(error), (spacing, n, str(error))
            else:
                assert plan.nfe == SOLVER_INFO[solver].calls(n)


def test_edm_of_one_step():
    """The state after the first noise is where the step starts."""
    schedule = pf.Schedule.edm()
    plan = pf.make_plan("edm", schedule, steps=1, prediction="x0")
    hat = 80 * math.sqrt(2)
    assert plan.prologue.p0 == 80 and plan.times[0] == pytest.approx(hat)
    assert plan.start.sigma == pytest.approx(hat) and plan.rows[0].levels.y.sigma == 0
    for name in ("linear", "vp"):
        assert pf.make_plan("edm", SCHEDULES[name], steps=1, spacing="leading").nfe == 1


def test_levels():
    levels = pf.Schedule.from_levels([0.0, HALF, HALF, 1.0], [1.0, HALF, HALF, 0.0])  # two may be equal
    assert levels.alpha(3) == 0 and levels.sigma(0) == 0
    assert make_grid(levels, 3, "leading") == (3, 2, 1, 0) == make_grid(levels, 3, "trailing")
    assert make_grid(pf.Schedule.from_levels([0.1, 1.0], [0.99**0.5, 0.0]), 1, "leading") == (1, 0)
    assert make_grid(levels, 2, "linspace") == (3, 1, 0)


LEVELS = [
    ([-0.1, 1], [0.99**0.5, 0], "alphas must be positive .*got -0.1 at index 0"),
    ([HALF, 0], [HALF, 1], "alphas must be positive .*got 0.0 at index 1"),
    ([math.nan, 1], [HALF, 0], "alphas must be positive .*got nan at index 0"),
    ([HALF, 1], [HALF, -0.1], "sigmas must be positive .*got -0.1 at index 1"),
    ([1, 1], [0, 0], "sigmas must be positive .*got 0.0 at index 0"),
    ([HALF, 1], [math.inf, 0], "sigmas must be positive .*got inf at index 0"),
    ([1, 1], [80, 0.1], r"alphas and sigmas must have alpha\^2 \+ sigma\^2 = 1, got 1.0 and 80.0 at index 0"),
    ([1e300, 1], [1e300, 0.1], r"alphas and sigmas must have alpha\^2"),
    ([0.8, 0.6], [0.6, 0.8], "sigmas must decrease, got 0.6 then 0.8 at index 1"),
]


@pytest.mark.parametrize("alphas, sigmas, message", LEVELS)
def test_levels_refused(alphas, sigmas, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("error")
        pf.Schedule.from_levels(alphas, sigmas)


REFUSED = [
    ({"spacing": "linspace", "t_min": -1}, ValueError, "t_min must be later than -1 for linspace spacing, got -1"),
    ({"spacing": "quadratic", "t_min": -1}, ValueError, "t_min must be later than -1 for quadratic spacing"),
    ({"spacing": "beta", "t_min": -1}, ValueError, "t_min must be later than -1 for beta spacing"),
    ({"spacing": "karras", "t_min": -1, "final": "min"}, ValueError, "t_min must be later than -1 for karras"),
    ({"spacing": "linspace", "t_min": math.nan}, ValueError, "t_min must be in .*got nan"),
    ({"spacing": "leading", "t_min": 5}, ValueError, "t_min must be None for leading spacing with final='zero', got 5"),
    ({"spacing": "leading", "t_min": 5, "final": "min"}, ValueError, "t_min must be None for leading"),
    ({"spacing": "trailing", "t_min": 5}, ValueError, "t_min must be None for trailing spacing"),
    ({"times": [999, None]}, TypeError, "times must be a decreasing sequence of numbers, got None at index 1"),
    ({"times": ["a"]}, TypeError, "times must be a decreasing sequence of numbers, got 'a' at index 0"),
    ({"times": [9, "5"]}, TypeError, "times must be .*got '5' at index 1"),
    ({"times": [[9, 5]]}, TypeError, r"times must be .*got \[9, 5\] at index 0"),
    ({"times": [np.ones(2), 5]}, TypeError, "times must be a decreasing sequence of numbers, got array"),
    ({"times": [10**400, 5]}, TypeError, "times must be a decreasing sequence of numbers, got 1000"),
    ({"times": []}, ValueError, "times must be a decreasing sequence of numbers, got none"),
    ({"times": [None, 5], "integer_times": True}, TypeError, "times must be .*got None at index 0"),
    ({"sigmas": [None]}, TypeError, "sigmas must be a decreasing sequence of numbers, got None at index 0"),
    ({"sigmas": []}, ValueError, "sigmas must be a decreasing sequence of numbers, got none"),
]


@pytest.mark.parametrize("options, kind, message", REFUSED)
def test_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        pf.make_plan("ddim", **{"steps": None if {"times", "sigmas"} & options.keys() else 6}, **options)


def test_flow_sigmas_refused():
    with pytest.raises(ValueError, match=r"sigmas must be in \[0, 1\] on flow, got 2"):
        pf.make_plan("euler", pf.Schedule.flow(), sigmas=[2, 0], prediction="flow")
