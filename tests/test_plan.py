"""Plans and schedules as objects: printing, JSON, guidance, inverse times."""

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import probability_flow

import pndm_fast as pf
from pndm_fast.plan.grids import BETA, beta_quantiles
from pndm_fast.solvers import SOLVER_INFO


@pytest.mark.filterwarnings("ignore:.* diverges in")  # seven steps are few for some
@pytest.mark.parametrize("solver", sorted(pf.SOLVERS))
def test_json_round_trip(solver, tmp_path):
    prediction = "eps" if SOLVER_INFO[solver].space == "phase" else "v"
    plan = pf.make_plan(solver, steps=7, prediction=prediction, **({"clip": 1.0} if solver in ("ddim", "ddpm") else {}))
    path = tmp_path / "plan.json"
    plan.save(path)
    assert pf.Plan.load(path) == plan == pf.Plan.from_json(plan.to_json())
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="plan.json is not JSON"):
        pf.Plan.load(tmp_path / "plan.json")
    tree = pf.make_plan("ddim", steps=3).to_json()
    tree["rows"][1]["y"]["s12"] = 1.0
    with pytest.raises(ValueError, match="row 1: an operand of y must be one of .* got 's12'"):
        pf.Plan.from_json(tree)


def test_str_shows_every_row():
    text = str(pf.make_plan("s-pndm", steps=3))
    assert text.splitlines()[0] == "s-pndm: 3 steps, 4 network calls, 2 slots, eps"
    assert len(text.splitlines()) == 2 + 4
    assert "x <- +1 y" in text and "1.5" not in text.splitlines()[2]
    assert "clamp(" in str(pf.make_plan("ddim", steps=3, clip=1.0))


def test_with_guidance():
    plan = pf.make_plan("ddim", steps=3)
    assert [row.guidance for row in plan.with_guidance(2.0)] == [2.0, 2.0, 2.0]
    assert [row.guidance for row in plan.with_guidance([1, 2, 3])] == [1.0, 2.0, 3.0]
    assert plan.raw and not plan.with_guidance(2.0).raw


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, tuple])
def test_arguments_may_be_arrays(kind):
    """A scalar or one number for each row, as a tensor or an array too."""
    plan = pf.make_plan("ddim", steps=3)
    assert plan.with_times(kind([9, 5, 1])).times == (9, 5, 1)
    assert plan.with_guidance(kind([1.0, 2.0, 3.0])).rows[2].guidance == 3
    assert [row.model for row in plan.with_models(kind([0, 0, 1]))] == [0, 0, 1]
    if kind in (torch.tensor, np.array):
        assert plan.with_guidance(kind(2.0)) == plan.with_guidance(2.0)


def test_plans_are_values():
    assert pf.make_plan("f-pndm", steps=9) == pf.make_plan("f-pndm", steps=9)
    assert hash(pf.make_plan("f-pndm", steps=9)) == hash(pf.make_plan("f-pndm", steps=9))
    with pytest.raises(AttributeError):
        pf.make_plan("ddim", steps=3).rows = ()


def test_facts_are_found_once_and_are_no_part_of_the_value():
    facts = ("times", "n_slots", "kinds", "run_ends", "raw", "unscaled", "guided", "noisy", "components", "last_model")
    plan = pf.make_plan("ddpm", steps=6).with_guidance([2, 2, 1, 1, 1, 3]).with_models([0, 1, 1, 1, 0, 0])
    assert plan.run_ends == (1, 2, 4, 4, 5, 6)
    assert (
        plan.noisy == (True,) * 5 + (False,) and plan.last_model == 1 and plan.guided and plan.unscaled and not plan.raw
    )
    fresh = replace(plan)
    for fact in facts:
        assert getattr(plan, fact) is getattr(plan, fact)
    assert plan == fresh and hash(plan) == hash(fresh)
    assert pickle.dumps(plan) == pickle.dumps(fresh)
    for other in (pickle.loads(pickle.dumps(plan)), copy.copy(plan), copy.deepcopy(plan)):
        assert other == plan and not set(facts) & set(vars(other))
    assert replace(plan.with_guidance(1.0), rows=plan.rows[:3]).run_ends == (1, 2, 3)


def test_repr_is_short():
    assert repr(pf.make_plan("f-pndm", steps=1000)) == (
        "<Plan f-pndm: 1000 steps, 1009 network calls, 6 slots, eps, t = 999 to 0>"
    )


def test_grids():
    assert pf.make_plan("ddim", steps=4).times == (750, 500, 250, 0)
    assert pf.make_plan("ddim", steps=3).times == (666, 333, 0)
    assert pf.make_plan("ddim", steps=4, spacing="trailing").times == (999, 749, 499, 249)
    assert pf.make_plan("ddim", steps=4, spacing="linspace").times == (999, 666, 333, 0)
    assert pf.make_plan("ddim", steps=7, spacing="trailing", integer_times=True).times == (
        999, 856, 713, 570, 428, 285, 142,
    )  # fmt: skip
    assert pf.make_plan("ddim", pf.Schedule.vp(), steps=4, spacing="trailing").times == (1.0, 0.75, 0.5, 0.25)
    assert pf.make_plan("f-pndm", steps=40, integer_times=True).times[1] == 962  # between 975 and 950


@pytest.mark.parametrize("schedule", [pf.Schedule.linear(), pf.Schedule.cosine(), pf.Schedule.vp()])
@given(fraction=st.floats(0, 1))
def test_time_is_the_inverse(schedule, fraction):
    t = schedule.first + fraction * (schedule.last - schedule.first)
    log = schedule.log_alpha_bar(t)
    assert schedule.log_alpha_bar(schedule.time(log)) == pytest.approx(log, rel=1e-12, abs=1e-15)
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1, abs=1e-14)


LINEAR = pf.Schedule.linear()
ALL = [
    LINEAR,
    LINEAR.interpolate("sigma"),
    LINEAR.interpolate("log_sigma"),
    LINEAR.zero_terminal_snr(),
    pf.Schedule.cosine(),
    pf.Schedule.sigmoid(),
    pf.Schedule.vp(),
    pf.Schedule.edm(),
    pf.Schedule.flow(),
    pf.Schedule.flow(3.0, 1000),
    pf.Schedule.from_levels([0.1, 0.5, 1.0], [0.99**0.5, 0.75**0.5, 0.0]),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: f"{s.name}-{getattr(s.curve, 'interp', '')}")
@given(fraction=st.floats(0, 1))
def test_time_at_is_the_inverse_of_lam(schedule, fraction):
    span = schedule.last - schedule.first
    t = schedule.first + fraction * span
    assert abs(schedule.time_at(schedule.lam(t)) - t) <= 1e-9 * span
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert {"vp": alpha**2 + sigma**2, "flow": alpha + sigma, "sigma": alpha}[schedule.scale] == pytest.approx(
        1, abs=1e-14
    )


def test_interpolation():
    """Between times the named quantity is linear; where it has no logarithm, its value."""
    rho = [float(LINEAR.sigma(t) / LINEAR.alpha(t)) for t in (10, 11, 0)]
    for interp, middle in (("sigma", (rho[0] + rho[1]) / 2), ("log_sigma", (rho[0] * rho[1]) ** 0.5)):
        other = LINEAR.interpolate(interp)
        assert other.sigma(10.5) / other.alpha(10.5) == pytest.approx(middle, rel=1e-12)
        assert other.sigma(-0.5) / other.alpha(-0.5) == pytest.approx(rho[2] / 2, rel=1e-12)
        for t in (300.3, 0.4):
            step = 1e-4
            slope = (np.log(other.alpha(t + step)) - np.log(other.alpha(t - step))) / (2 * step)
            assert other.log_alpha_slope(t) == pytest.approx(slope, rel=1e-6)


def test_zero_terminal_snr():
    """arXiv:2305.08891, algorithm 1: alpha from where it was to 0, the shape kept."""
    zero = LINEAR.zero_terminal_snr()
    assert zero.alpha(999) == 0 and zero.sigma(999) == 1 and zero.lam(999) == -np.inf
    assert zero.alpha(0) == pytest.approx(LINEAR.alpha(0), rel=1e-14)
    a = LINEAR.alpha(np.arange(1000))
    np.testing.assert_allclose(zero.alpha(np.arange(999)), (a - a[-1])[:-1] * a[0] / (a[0] - a[-1]), rtol=1e-12)
    for solver in ("ddim", "ddpm", "dpmpp-2m", "dpmpp-3m", "unipc", "dpmpp-2s"):
        plan = pf.make_plan(solver, zero, steps=6, spacing="trailing", prediction="v")
        assert plan.start == (0.0, 1.0)


def test_more_grids():
    lam = [float(LINEAR.lam(t)) for t in pf.make_plan("ddim", steps=6, spacing="logsnr").times]
    assert (
        np.diff(lam) == pytest.approx(np.diff(lam)[0])
        and pf.make_plan("ddim", steps=6, spacing="logsnr").times[-1] == 0
    )
    root = [np.exp(-LINEAR.lam(t) / 7) for t in pf.make_plan("ddim", steps=6, spacing="karras", t_min=10).times]
    assert np.diff(root) == pytest.approx(np.diff(root)[0])
    edm = pf.make_plan("euler", pf.Schedule.edm(), steps=18)  # arXiv:2206.00364, eq. 5
    i = np.arange(18) / 17
    assert edm.times == pytest.approx((80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rel=1e-12)
    assert edm.prologue.p0 == 80 and edm.rows[-1].levels.y.sigma == 0
    quadratic = np.sqrt(np.array(pf.make_plan("ddim", steps=5, spacing="quadratic").times) + 1)
    assert np.diff(quadratic) == pytest.approx(np.diff(quadratic)[0])
    assert pf.make_plan("ddim", steps=4, spacing="leading", final="min").rows[-1].levels.y.sigma == LINEAR.sigma(0)
    trailing = pf.make_plan("ddim", steps=3, spacing="trailing", final="min")
    assert trailing.times == (999, 666, 333) and trailing.rows[-1].levels.y.sigma == LINEAR.sigma(0)
    for length in ({"steps": 8}, {"nfe": 16}):
        assert pf.make_plan("heun", final="min", **length).nfe == 16
    flow = pf.make_plan("euler", pf.Schedule.flow(3.0, 1000), steps=4, prediction="flow")
    u = np.array([1, 0.75, 0.5, 0.25])
    assert flow.times == pytest.approx(1000 * 3 * u / (1 + 2 * u))
    assert flow.rows[0].y[:3] == pytest.approx((0, 1, -0.1)) and flow.raw  # x + (s - t) flow
    sigmas = pf.make_plan("ddim", sigmas=[100, 10, 1, 0])
    assert [row.levels.call.sigma / row.levels.call.alpha for row in sigmas] == pytest.approx([100, 10, 1])
    assert pf.make_plan("euler", pf.Schedule.flow(), sigmas=[1, 0.5, 0], prediction="flow").times == (1, 0.5)


def test_beta_quantiles():
    from scipy.stats import beta

    p = np.concatenate([np.linspace(0, 1, 1001), 10.0 ** -np.arange(1, 17)])
    assert beta_quantiles(p) == pytest.approx(beta.ppf(p, BETA, BETA), rel=1e-13, abs=1e-300)


def test_schedules():
    betas = np.linspace(1e-4, 0.02, 1000)
    linear = pf.Schedule.linear()
    np.testing.assert_allclose(linear.alpha(np.arange(1000)) ** 2, np.cumprod(1 - betas), rtol=1e-13)
    assert linear.alpha(-1) == 1 and linear.sigma(-1) == 0 and linear.lam(-1) == np.inf
    assert linear.sigma(0) == pytest.approx(0.01, rel=1e-12)
    scaled = pf.Schedule.scaled_linear()
    np.testing.assert_allclose(scaled.alpha(0) ** 2, 1 - 0.00085, rtol=1e-13)
    half = (linear.log_alpha_bar(10) + linear.log_alpha_bar(11)) / 2
    assert linear.log_alpha_bar(10.5) == pytest.approx(half, rel=1e-15)
    vp = pf.Schedule.vp(0.1, 20)
    assert vp.alpha(1) == pytest.approx(np.exp(-0.5 * 10.05), rel=1e-14)
    step = 1e-6
    slope = (np.log(vp.alpha(0.5 + step)) - np.log(vp.alpha(0.5 - step))) / (2 * step)
    assert vp.log_alpha_slope(0.5) == pytest.approx(slope, rel=1e-8)
    slope = np.log(linear.alpha(500)) - np.log(linear.alpha(499))
    assert linear.log_alpha_slope(500) == pytest.approx(slope, rel=1e-9)


def test_probability_flow_of_one_gaussian():
    """For N(0, s^2) data the flow scales the state by the ratio of standard deviations."""
    import torch

    schedule, s = pf.Schedule.vp(), 0.3

    def eps(x, t):
        alpha, sigma = float(schedule.alpha(float(t[0]))), float(schedule.sigma(float(t[0])))
        return sigma * x / (alpha**2 * s**2 + sigma**2)

    x = torch.randn(3, 4, dtype=torch.float64)
    end = probability_flow(eps, schedule, x, end=0.0)
    scale = s / float(np.sqrt(schedule.alpha(1) ** 2 * s**2 + schedule.sigma(1) ** 2))
    torch.testing.assert_close(end, x * scale, rtol=1e-8, atol=1e-10)
