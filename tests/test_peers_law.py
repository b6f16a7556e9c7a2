"""Any configuration of a scheduler of diffusers: a plan equal to it, or a refusal that names what is wrong."""

import re
from itertools import pairwise

import pytest

pytest.importorskip("diffusers", reason="the peer is diffusers")
import torch
from compat_case import (
    ANY,
    DISCRETE,
    FLOW,
    ON_FLOW,
    OPTIONS,
    SCHEDULES,
    Case,
    run,
)
from golden_data import relative
from hypothesis import assume, given
from hypothesis import strategies as st

import pndm_fast as pf
from pndm_fast.solvers.compat import COMPAT, SCHEDULERS

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered")  # in diffusers' grids

# what diffusers runs, and we refuse
NOT_OFFERED = (
    "as many points",  # a network told t = -1
    "must leave (leading|linspace) times apart",  # as many steps as training times: a level twice
    "must keep times below",  # a network told more than T - 1
    "third order has a wrong sign",
    "prediction must be one of .* on flow, got 'v'",  # v of no flow model
    "fixed_large_log is no number",  # but for a plan of one call, at t = 0
    "where there are no betas",  # a flow grid's end taken from betas of another schedule
)
EXACT = ("linear", "cosine")  # the schedules whose float32 tables we have to the last bit at their ends
DISCRETE_ALONE = ("spacing", "steps_offset", "sigma_spacing", "lambda_min_clipped")  # of the schedulers that have both
SLOW_TO_BUILD = ("HeunDiscrete", "LMSDiscrete", "DPMSolverSDE")  # they lay a grid of T points first
FLOAT_TIMES = (*SLOW_TO_BUILD, "EulerDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")


@st.composite
def cases(draw, scheduler, most):
    kinds = FLOW if scheduler.startswith("Flow") else DISCRETE + (FLOW if scheduler in ON_FLOW else ())
    kinds = ("short",) if scheduler in SLOW_TO_BUILD and most < 100 else kinds
    schedule = draw(st.sampled_from(kinds))
    known = dict(OPTIONS[scheduler])
    for name in DISCRETE_ALONE if schedule in FLOW and scheduler in ON_FLOW else ():
        known.pop(name, None)
    options = {name: draw(st.sampled_from(values)) for name, values in known.items()}
    kind = draw(st.sampled_from(("flow",) if scheduler.startswith("Flow") else ANY if schedule in FLOW else ANY[:3]))
    return Case(scheduler, schedule, draw(st.integers(1, most)), kind, options)


def outcome(case):
    """diffusers' trajectory in float32, or None where it fails."""
    try:
        return case.peer(stock=True)
    except Exception:
        return None


def finite(peer):
    return peer is not None and bool(torch.isfinite(peer.final).all())


def check(case):
    sigmas = case.options.get("sigma_spacing")
    cut = sigmas and case.scheduler not in FLOAT_TIMES
    assume(case.schedule in EXACT or not cut or case.schedule in FLOW)
    # by its rounding alone DDIM's eta = 1 is or is not a number from alpha = 0
    assume(case.schedule != "zero-snr" or case.options.get("eta") != 1.0)
    # whose rounded times are far from the levels here: the network's numbers then hang on rounding
    assume(not case.scheduler.startswith("KDPM2") or (case.schedule, sigmas) != ("cosine", "karras"))
    stock = outcome(case)
    try:
        plan = case.plan()
    except ValueError as error:
        assert not finite(stock) or any(re.search(reason, str(error)) for reason in NOT_OFFERED), error
        named = (*case.options, "schedule", "steps", "prediction", "original_inference_steps")
        assert str(error).split(" ")[0] in named, error
        return
    assert stock is not None
    times = stock.times
    if case.scheduler == "KDPM2AncestralDiscrete":  # which loses sigma_down where a step is long, to NaN at last
        rho = [sigma / alpha for alpha, sigma in (row.levels.call for row in plan)]
        assume(all(high < 100 * low for high, low in pairwise(rho)))
        times = case.peer().times
    assert plan.times == pytest.approx(times, abs=0.1 if case.scheduler in FLOAT_TIMES else 2e-3)
    ours = run(plan, stock.draws)
    if finite(stock) and relative(ours, stock.final) < 1e-5:
        return
    exact = case.peer(told=plan.times)  # where float32 has lost more than that, or is no number by its rounding
    if finite(exact):
        assert relative(run(plan, exact.draws), exact.final) < 1e-6
    else:
        assert finite(stock) and relative(ours, stock.final) < 1e-3


@pytest.mark.parametrize("scheduler", OPTIONS)
def test_equal_or_refused(scheduler):
    @given(case=cases(scheduler, most=16))
    def law(case):
        check(case)

    law()


@pytest.mark.stress
@pytest.mark.parametrize("scheduler", OPTIONS)
def test_equal_or_refused_up_to_a_hundred(scheduler):
    @given(case=cases(scheduler, most=100))
    def law(case):
        check(case)

    law()


def test_every_scheduler_has_its_law():
    assert {f"{name}Scheduler" for name in OPTIONS} == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistep", "UniPCMultistep"])
@pytest.mark.parametrize("schedule, steps", [("linear", 33), ("cosine", 2), ("cosine", 5)])
@pytest.mark.parametrize("sigmas", ["karras", "exponential", "beta"])
def test_whole_times_of_sigma_grids(scheduler, schedule, steps, sigmas):
    """Cut to integers in float32: on the cosine schedule the first is 998, and where the second is too it fails."""
    case = Case(scheduler, schedule, steps, "eps", {"sigma_spacing": sigmas})
    stock = outcome(case)
    if stock is None:
        with pytest.raises(ValueError, match="steps must leave the first two times apart"):
            case.plan()
    else:
        assert list(case.plan().times) == stock.times


@pytest.mark.parametrize("steps", [8, 15, 16])
@pytest.mark.parametrize("sigmas", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    "solver", ["dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde", "dpm-solver-2", "dpm-solver-3", "unipc", "deis"]
)
def test_a_last_step_of_no_length(solver, sigmas, steps):
    """Where sigma_min stands twice the last call changes nothing, or diffusers' is no number."""
    end = {} if solver == "deis" else {"final_sigmas_type": "sigma_min"}
    make = lambda: pf.make_plan(solver, steps=steps, sigma_spacing=sigmas, compat="diffusers", **end)  # noqa: E731
    if steps >= 15 and solver in ("dpmpp-3m", "dpm-solver-3"):
        with pytest.raises(ValueError, match="euler_at_final must be True where the last sigma stands twice"):
            make()
    else:
        row = make().rows[-1]
        if solver == "unipc":  # its row corrects the state before it
            assert row.x == pytest.approx(row.y, abs=1e-12)
        else:
            assert row.y == pytest.approx((0.0, 1.0, *[0.0] * (len(row.y) - 2)), abs=1e-12)


def test_the_last_noise_of_fixed_large():
    """diffusers adds sigma_t z in the last step, but from t = 0."""
    for offset, noisy in ((0, False), (1, True)):
        plan = pf.make_plan("ddpm", steps=10, compat="diffusers", variance_type="fixed_large", steps_offset=offset)
        last = plan.rows[-1]
        assert last.t == offset and last.y[-1] == pytest.approx(last.levels.call.sigma if noisy else 0.0, rel=1e-12)


@pytest.mark.parametrize("variance", ["fixed_large_log", "learned", "learned_range"])
def test_variances_that_no_plan_has(variance):
    with pytest.raises(ValueError, match=f"variance_type must be one of .*got '{variance}'"):
        pf.make_plan("ddpm", compat="diffusers", variance_type=variance)


def test_one_code_behind_names_and_classes():
    """A name of COMPAT is a class of SCHEDULERS with part of its configuration given."""
    by_class = SCHEDULERS["DPMSolverMultistepScheduler"]
    schedule = pf.Schedule.linear()
    assert COMPAT["diffusers"]["dpmpp-3m"](schedule, 9) == by_class(schedule, 9, solver_order=3)
    noise = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    assert pf.make_plan("dpm-solver-2", steps=9, compat="diffusers") == by_class(schedule, 9, **noise)
    flow = pf.Schedule.flow(3.0, 1000)
    plan = pf.make_plan("euler", flow, steps=9, compat="diffusers", prediction="flow", shift_terminal=0.05)
    assert plan == SCHEDULERS["FlowMatchEulerDiscreteScheduler"](flow, 9, shift_terminal=0.05)


@pytest.mark.parametrize(
    "solver, schedule, options, message",
    [
        ("euler", "flow", {"prediction": "flow", "steps_offset": 1}, "steps_offset cannot go with .* on flow, got 1"),
        ("heun", "flow", {"prediction": "eps"}, "prediction must be one of flow for diffusers' FlowMatchHeun"),
        ("euler", "linear", {"shift_terminal": 0.1}, "shift_terminal cannot go with .* on linear, got 0.1"),
        ("euler-ancestral", "linear", {"prediction": "x0"}, "prediction must be one of eps, v for diffusers' EulerAnc"),
        ("euler-ancestral", "linear", {"sigma_spacing": "karras"}, "'sigma_spacing' is neither an argument nor"),
        ("plms", "zero-snr", {"prediction": "v"}, "schedule must end at alpha > 0 for diffusers' PNDM"),
        ("heun", "zero-snr", {"prediction": "v"}, "schedule must end at alpha > 0 for diffusers' HeunDiscrete"),
        ("ddim", "zero-snr", {"spacing": "trailing"}, "prediction must be v, x0 or flow where alpha = 0"),
        ("ddim-inverse", "linear", {"prediction": "x0"}, "prediction 'x0' gives no eps where sigma = 0"),
        ("lms", "flow", {}, "compat='diffusers' must have a discrete schedule, got flow"),
        ("dpmpp-2m", "flow", {"prediction": "v"}, "prediction must be one of eps, x0, flow for .* on flow, got 'v'"),
        ("dpmpp-2m", "linear", {"prediction": "flow"}, "prediction must be one of eps, x0, v for .* got 'flow'"),
        ("dpmpp-2m", "flow", {"spacing": "trailing"}, "spacing must be 'linspace' on flow"),
        ("dpmpp-2m", "flow", {"sigma_spacing": "beta"}, "sigma_spacing must be None on flow"),
        ("dpmpp-2m", "flow", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type must be 'zero' on flow"),
        ("dpm-solver-2", "linear", {"final_sigmas_type": "zero"}, "final_sigmas_type must be 'sigma_min' for alg"),
        ("unipc", "linear", {"lower_order_final": False}, "lower_order_final must be True where final_sig"),
        ("unipc", "linear", {"predict_x0": False}, "predict_x0 must be True where final_sigmas_type='zero'"),
        ("unipc", "linear", {"solver_type": "bh1"}, "solver_type must be 'bh2' where final_sigmas_type='zero'"),
        ("unipc", "linear", {"solver_order": 4}, "solver_order must be 1 to 3, got 4"),
        ("unipc", "flow", {"shift_terminal": 1.5}, r"shift_terminal must be in \(0, 1\), got 1.5"),
        ("unipc", "flow", {"shift_terminal": 0.1, "steps": 1}, "shift_terminal must be None for a grid of one point"),
        ("dpmpp-2m", "linear", {"begin": 2}, "'begin' is neither an argument nor an option of dpmpp-2m"),
        ("euler", "linear", {"timesteps": [9, 1]}, "'timesteps' is neither an argument nor an option of euler"),
        ("dpmpp-2m", "linear", {"steps": 1000}, "steps must leave linspace times apart, got 1000 of 1000"),
        ("ddim", "linear", {"steps": 61, "spacing": "trailing"}, "steps must be a number whose trailing grid has"),
    ],
)  # fmt: skip
def test_refused(solver, schedule, options, message):
    with pytest.raises(ValueError, match=message):
        pf.make_plan(solver, SCHEDULES[schedule][0], **{"steps": 10, **options}, compat="diffusers")


def test_a_flow_schedule_without_training_times():
    with pytest.raises(ValueError, match=r"schedule must be Schedule.flow\(shift, T\) with T .*got T = 1"):
        pf.make_plan("euler", pf.Schedule.flow(3.0), steps=10, prediction="flow", compat="diffusers")
