"""integer_times: every call of every solver at a whole time, with coefficients that follow."""

import re

import numpy as np
import pytest
import rows
import torch
from golden_data import SCALAR, START, mixture
from hypothesis import given
from hypothesis import strategies as st
from oracle import probability_flow
from test_order import CASES as ORDERS

import pndm_fast as pf
from pndm_fast.loop.checks import check_time_dtype
from pndm_fast.plan.grids import SPACINGS, WholeTimes
from pndm_fast.plan.row import MAX_SLOTS
from pndm_fast.solvers import SOLVER_INFO
from pndm_fast.solvers.pndm import runge_kutta_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.* diverges in", "ignore:.* has no effect", "ignore:edm adds no noise", "ignore:the grid starts"
)
SCHEDULES = [pf.Schedule.linear(), pf.Schedule.scaled_linear(), pf.Schedule.cosine(), pf.Schedule.linear(T=97)]
OPTIONS = [
    *((name, {}) for name in SCALAR if name != "rk"),  # its stages stand at its tableau's nodes
    *((name, options) for name, options, _ in ORDERS if options and name not in ("rk", "restart")),
    *(("edm", {"churn": churn, "churn_min": 0.1}) for churn in (0.0, 0.3, 7.0)),
    *(("dpmpp-sde", {"r": r, "one_path": r > 0.5, "eta": r}) for r in (0.05, 0.5, 0.9)),
    ("fon-rk4", {"delta": 0.0}),
]


def fits(solver, schedule, steps, spacing, **options):
    """The plan, or how many steps the refusal says to fit."""
    try:
        return pf.make_plan(solver, schedule, steps=steps, spacing=spacing, integer_times=True, **options)
    except ValueError as error:
        assert "integer_times must" in str(error), error
        found = re.search(r"at most (\d+) steps of this spacing do", str(error))
        assert found or "no number of steps of this spacing does" in str(error)
        return int(found[1]) if found else 0


def check(solver, options, schedule, spacing, steps):
    plan = fits(solver, schedule, steps, spacing, **options)
    if isinstance(plan, int):  # refused
        assert plan < steps
        if plan == 0:
            return
        plan = fits(solver, schedule, plan, spacing, **options)
    assert plan.nfe == SOLVER_INFO[solver].calls(plan.steps)
    for row in plan:
        assert row.t == int(row.t)
        if not SOLVER_INFO[solver].inverts:  # told the time of the step's other end
            assert row.levels.call == (schedule.alpha(row.t), schedule.sigma(row.t))


@pytest.mark.parametrize("solver", SCALAR)
def test_every_call_is_at_a_whole_time(solver):
    """With every option; schedules, grids and lengths take turns."""
    for i, options in enumerate(options for name, options in OPTIONS if name == solver):
        for k in (i, i + 2):
            check(solver, options, SCHEDULES[k % 4], SPACINGS[(k + i // 4) % len(SPACINGS)], 5 + (7 * k) % 20)


@pytest.mark.stress
@given(st.sampled_from(OPTIONS), st.sampled_from(SCHEDULES), st.sampled_from(SPACINGS), st.integers(4, 60))
def test_every_call_is_at_a_whole_time_anywhere(case, schedule, spacing, steps):
    check(*case, schedule, spacing, steps)


@pytest.mark.parametrize("solver", SCALAR)
def test_solvers_say_where_they_call_inside_a_step(solver):
    """Steps of 3 have no whole middle: without integer_times each call inside one is at a fraction."""
    times = [*range(60, -1, -3), -1.0]
    quiet = {"edm": {"churn": 0.0}, "restart": {"restarts": ()}, "alphafold-3": {"gamma": 0.0}}
    quiet |= {"dpm-2-ancestral": {"eta": 0.5}, "dpmpp-2s-ancestral": {"eta": 0.5}}
    plan = pf.make_plan(solver, times=times, **quiet.get(solver, {}))  # at eta = 1 their middle is the step's end
    inside = {sum(t > row.t for t in times) for row in plan if row.t not in times}
    assert len(inside) == min(SOLVER_INFO[solver].inner_steps, len(times) - 2)


def test_the_largest_number_of_steps():
    """One more does not fit; it is as true of nfe."""
    linear = pf.Schedule.linear()
    for solver, spacing, most in (("dpmpp-sde", "leading", 500), ("f-pndm", "leading", 571), ("plms", "karras", 76)):
        assert fits(solver, linear, most, spacing).steps == most
        assert fits(solver, linear, most + 1, spacing) == most
    with pytest.raises(ValueError, match=r"at most 38 steps \(75 network calls\) of this spacing do for dpmpp-sde"):
        pf.make_plan("dpmpp-sde", nfe=99, integer_times=True)
    with pytest.raises(ValueError, match="inside step 0, got 999 then 998; give other times"):
        pf.make_plan("dpmpp-sde", times=[999, 998, 500, -1], integer_times=True)
    assert pf.make_plan("dpmpp-sde", times=[999, 997, 0, -1], integer_times=True).times == (999, 998, 997, 300, 0)


def test_butcher_s_conditions():
    for c in (0.5, 1 / 3, 2 / 3, 0.4, 0.6):
        b, nodes = np.array(runge_kutta_weights(c)), np.array([0, c, c, 1])
        inner = np.array([0, 0, c * c, c])  # sum_j a_ij c_j
        assert [b.sum(), b @ nodes, b @ nodes**2, b @ inner] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 6], rel=1e-13)
    assert runge_kutta_weights(0.5) == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6], rel=1e-14)


@pytest.mark.parametrize("solver, options", [("f-pndm", {}), ("dpmpp-sde", {"eta": 0.0}), ("fon-rk4", {"delta": 0.0})])
def test_coefficients_follow_the_stages(solver, options):
    """Steps of 3 training times: the stage a sixth of the step away from where it was asked costs no order."""
    schedule = pf.Schedule.from_alphas_cumprod(pf.Schedule.vp().alpha(np.arange(1, 301) / 300) ** 2)
    times = [*range(90, 29, -3)] if solver != "f-pndm" else [90, 87, 84, 81, 78]
    state = START * float(schedule.sigma(90))
    exact = probability_flow(mixture(schedule), schedule, state, start=90.0, end=float(times[-1]))

    def error(whole):
        plan = pf.make_plan(solver, schedule, times=times, integer_times=whole, final="min", **options)
        assert any(row.t != int(row.t) for row in plan) != whole
        return float((rows.run(plan, mixture(schedule), state) - exact).square().mean().sqrt())

    assert error(True) < 1.5 * error(False)


@pytest.mark.parametrize("solver", ["dpmpp-sde", "edm"])
def test_noise_keeps_the_variance_at_whole_times(solver):
    """On one point, whose x_0 the network knows, carried and fresh noise add up to each row's level."""
    plan = pf.make_plan(solver, steps=20, spacing="karras", prediction="x0", integer_times=True)
    assert any(plan.noisy)
    eye = np.eye(2 + plan.nfe)  # x_0, the first noise and each row's
    x = y = plan.start.alpha * eye[0] + plan.start.sigma * eye[1]
    slots = [None] * MAX_SLOTS
    for row, z in zip(plan, eye[2:], strict=True):
        slots[row.slot] = rows.store(row, y, eye[0])
        x, y = rows.evaluate(row.x, x, y, slots, z), rows.evaluate(row.y, x, y, slots, z)
        for value, (alpha, sigma) in ((x, row.levels.x), (y, row.levels.y)):
            assert value[0] == pytest.approx(alpha, rel=1e-10)
            assert np.linalg.norm(value[1:]) == pytest.approx(sigma, rel=1e-10, abs=1e-12)


def test_builders_refuse_another_time():
    """What a solver adds to a whole grid without asking for it is seen at once."""
    from pndm_fast.solvers.builder import PlanBuilder

    made = PlanBuilder("ddim", pf.Schedule.linear(), WholeTimes((9.0, 3.0, -1.0)), "eps")
    assert made.inside(9.0, 3.0, 6.5) == 6.0 and made.inside(9.0, 3.0, 8.9) == 8.0 and made.inside(9, 3, 3.1) == 4
    with pytest.raises(AssertionError, match="which never was `inside`"):
        made.call(6.5, 0, np.zeros(15), 3.0)
    with pytest.raises(ValueError, match="must leave a whole time inside each step, got 4 then 3"):
        made.inside(4.0, 3.0, 3.5)


def test_a_refusal_of_fractions_says_what_helps():
    """Whatever made them, integer_times=True included: compat keeps the peer's."""
    for plan in (
        pf.make_plan("f-pndm", steps=40),
        pf.make_plan("dpmpp-sde", steps=7, compat="diffusers"),
        pf.make_plan("ddim", pf.Schedule.vp(), steps=5),
        pf.make_plan("em", steps=5),
    ):
        with pytest.raises(
            ValueError, match="integers for time_dtype int64, got .*integer_times=True.* plan.with_times"
        ):
            check_time_dtype(plan, torch.int64)
        check_time_dtype(plan.with_times(round), torch.int64)
