"""Flow matching: each solver on `Schedule.flow`, its grids and its shifts, against the mixture, VP and diffusers."""

import ast
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import rows
import torch
from drawing import draw
from golden_data import SCALAR, START, mixture, relative

import pndm_fast as pf
from pndm_fast.plan.coefficients import ancestral
from pndm_fast.plan.grids import SPACINGS, make_grid, noisiest
from pndm_fast.plan.levels import Level
from pndm_fast.plan.stability import gaussian_spread
from pndm_fast.solvers import SOLVER_INFO

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' of numpy

UNDEFINED = {"conjugate", "lambda-ddim", "fon"}  # refused: golden/errors.txt
ON_FLOW = sorted(set(SCALAR) - UNDEFINED)
SHIFTS = (1.0, 3.0)


@pytest.mark.filterwarnings("ignore:.* adds no noise", "ignore:.* diverges in", "ignore:the grid starts")
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("solver", ON_FLOW)
def test_every_solver_on_every_grid(solver, shift):
    """Made, with the calls that it promises, from noise on; x0 says no flow where sigma = 0, so no x0 to there."""
    schedule = pf.Schedule.flow(shift, 1000)
    for spacing in SPACINGS:
        for final, prediction in (("zero", "flow"), ("min", "flow"), ("zero", "v"), ("min", "x0")):
            plan = pf.make_plan(solver, schedule, steps=7, spacing=spacing, final=final, prediction=prediction)
            assert plan.nfe == SOLVER_INFO[solver].calls(7, final)
            assert all(0 <= t <= 1000 for t in plan.times)
            assert spacing == "leading" or SOLVER_INFO[solver].inverts or plan.start.alpha < 1e-4


@pytest.mark.parametrize("solver", ["deis", "dpm-solver-2", "ddim", "unipc", "f-pndm"])
def test_eps_networks_begin_where_there_is_data(solver):
    schedule = pf.Schedule.flow(3.0)
    with pytest.raises(ValueError, match="prediction must be v, x0 or flow where alpha = 0"):
        pf.make_plan(solver, schedule, steps=7)
    plans = [pf.make_plan(solver, schedule, steps=7, spacing="logsnr", prediction=p) for p in ("eps", "flow")]
    start = START * plans[0].start.sigma
    by_eps, by_flow = (
        rows.run(plan, mixture(schedule, p), start) for plan, p in zip(plans, ("eps", "flow"), strict=True)
    )
    torch.testing.assert_close(by_eps, by_flow, rtol=1e-8, atol=1e-8)  # 1 / alpha is 3e4 there


def in_vp(schedule, times):
    """The variance-preserving schedule of the same sigma / alpha."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    norm = np.hypot(alpha, sigma)
    return pf.Schedule.from_levels(alpha / norm, sigma / norm)


IN_RHO = [  # solvers built in lam or rho, and those of one straight step
    *((name, {}) for name in ("ddim", "euler", "ddpm", "euler-ancestral", "dpm-solver-1", "dpm-solver-2")),
    *(("deis", {"variable": v}) for v in ("rho", "log_rho")),
    *((name, {}) for name in SCALAR if name.startswith(("dpmpp", "unipc"))),
    *((name, {}) for name in SCALAR if name.startswith(("res-", "seeds", "exp-heun", "er-sde", "sa-solver"))),
    ("rk", {"tableau": "etdrk4-b"}),
    ("dpm-solver-2", {"multistep": True}),
    ("dpm-solver-3", {"solver_type": "heun"}),
    ("dpm-solver-3", {"multistep": True, "exact": True}),
    ("dpmpp-3m", {"exact": True, "lower_order_final": False}),
    *(("unipc", {"order": 3, "predict": p, "variant": v}) for p in ("x0", "eps") for v in ("bh1", "bh2")),
]


STAGES_IN_LAM = (
    *("dpmpp-sde", "dpmpp-2s-ancestral", "res-2s", "res-3s", "seeds-2", "seeds-3", "rk"),
    *("exp-heun-2-x0", "exp-heun-2-x0-sde"),
)


@pytest.mark.parametrize("noisy", [0.97, 1.0], ids=["from t = 0.97", "from noise"])
@pytest.mark.parametrize("solver, options", IN_RHO, ids=str)
def test_the_same_levels_in_vp_give_the_same_samples(solver, options, noisy):
    """x_flow = (alpha + sigma) x_vp / |alpha, sigma|: another name for the state, the same x_0."""
    if solver in STAGES_IN_LAM and noisy == 1:
        noisy = noisiest(pf.Schedule.flow())
    flow = pf.Schedule.flow()
    times = [noisy, 0.93, 0.84, 0.7, 0.55, 0.41, 0.3, 0.17, 0.06, 0.0]
    vp = in_vp(flow, times)
    on_flow = pf.make_plan(solver, flow, times=times, prediction="flow", **options)
    on_vp = pf.make_plan(solver, vp, times=range(len(times) - 1, -1, -1), prediction="x0", **options)
    noise = lambda i: START.flip(0) * math.cos(i)  # noqa: E731
    state = START / math.hypot(*on_flow.start)
    got = draw(mixture(flow, "flow"), solver=on_flow, start=pf.State(START), noise_sampler=noise)
    want = draw(mixture(vp, "x0"), solver=on_vp, start=pf.State(state), noise_sampler=noise)
    assert relative(got, want) < 1e-9


@pytest.mark.parametrize(
    "solver, options", [("deis", {"variable": "rho"}), ("dpm-solver-1", {}), ("deis", {"order": 1})]
)
def test_the_first_step_from_noise_is_a_limit(solver, options):
    """Of starts at t -> 1, whose own first step takes eps and loses a digit for each that 1 - t has."""
    schedule = pf.Schedule.flow()

    def end(start):
        times = [start, *np.linspace(0.9, 0.0, 10)]
        return rows.run(
            pf.make_plan(solver, schedule, times=times, prediction="flow", **options), mixture(schedule, "flow"), START
        )

    exact = end(1.0)
    near = [relative(end(1 - gap), exact) for gap in (1e-3, 1e-5)]
    assert near[1] < 1e-4 and near[1] < near[0] / 50, near


def test_the_second_step_from_noise_is_of_first_order():
    """eps at alpha = 0 is the state: no slope leads from there to finite log-SNR."""
    for solver in ("deis", "dpm-solver-2", "unipc"):
        options = {"dpm-solver-2": {"multistep": True}, "unipc": {"predict": "eps", "corrector": False}}.get(solver, {})
        plan = pf.make_plan(solver, pf.Schedule.flow(), steps=20, prediction="flow", **options)
        first, second, third = plan.rows[:3]
        assert plan.start == (0.0, 1.0) and first.preview == (0.0, 1.0)  # the slot is x_0
        assert np.count_nonzero(second.y[2:-1]) == 1 and np.count_nonzero(third.y[2:-1]) == 2


def test_f_pndm_is_fon_rk4():
    """phi on flow is the classical transfer."""
    schedule = pf.Schedule.flow(3.0, 1000)
    one, other = (pf.make_plan(name, schedule, steps=9, prediction="flow") for name in ("f-pndm", "fon-rk4"))
    assert one.rows == other.rows
    with pytest.warns(pf.plan.warn.Notice, match="delta=0.5 has no effect on this plan of fon-rk4"):
        pf.make_plan("fon-rk4", schedule, steps=9, prediction="flow", delta=0.5)


STARTS_AT_NOISE = [
    *(("deis", {"variable": v}, 2) for v in ("t", "rho", "log_rho")),
    ("dpm-solver-1", {}, 1), ("dpm-solver-2", {}, 2), ("dpm-solver-2", {"multistep": True}, 2),
    ("dpm-solver-3", {}, 2), ("dpmpp-2m", {}, 2), ("dpmpp-2s", {}, 2), ("unipc", {}, 2), ("ddim", {}, 1),
    ("unipc", {"predict": "eps"}, 2), ("heun", {}, 2), ("lms", {}, 2), ("ipndm-v", {}, 2), ("s-pndm", {}, 2),
    ("dpmpp-sde", {"eta": 0.0}, 2),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* begins at t")
@pytest.mark.parametrize("solver, options, order", STARTS_AT_NOISE, ids=str)
def test_from_noise_to_data(solver, options, order):
    """From t = 1, where alpha = 0, at least the order that a first step of order 1 leaves; the reference is RK4-AB4."""
    schedule = pf.Schedule.flow()
    network = mixture(schedule, "flow")

    def end(name, n, **options):
        times = np.linspace(1, 0.1, n + 1)
        return rows.run(
            pf.make_plan(name, schedule, times=times, final="min", prediction="flow", **options), network, START
        )

    exact = end("f-pndm", 400)
    counts = 37, 73  # one step from noise, then whole groups of two and of three
    errors = [float((end(solver, n, **options) - exact).square().mean().sqrt()) for n in counts]
    assert math.log(errors[0] / errors[1]) / math.log(counts[1] / counts[0]) > order - 0.45, errors


def flow_sigmas(plan):
    """Of the calls and the end."""
    return [*(row.levels.call.sigma for row in plan), plan.rows[-1].levels.y.sigma]


@pytest.mark.parametrize("steps", [1, 2, 8, 30])
@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_grids_of_sigma_are_diffusers(kind, shift, steps):
    """use_karras_sigmas and its like, between the ends of its dynamically shifted grid, the defaults here too.

    Its beta is spread in sigma, ours before the shift: the same where there is none.
    """
    diffusers = pytest.importorskip("diffusers", reason="the grids are compared with its")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **{f"use_{kind}_sigmas": True})
    theirs.set_timesteps(steps, mu=math.log(shift if kind != "beta" else 1.0))
    schedule = pf.Schedule.flow(shift if kind != "beta" else 1.0, 1000)
    plan = pf.make_plan("euler", schedule, steps=steps, spacing=kind, prediction="flow")
    assert flow_sigmas(plan) == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    assert plan.times == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)


@pytest.mark.parametrize("shift", SHIFTS)
def test_log_snr_grids(shift):
    """Equal steps of log-SNR from the shifted 1 - 1e-4 to the shifted 1e-3."""
    schedule = pf.Schedule.flow(shift, 1000)
    times = np.array(make_grid(schedule, 9, "logsnr"))
    assert times[0] / 1000 == pytest.approx(shift * 0.9999 / (1 + (shift - 1) * 0.9999), rel=1e-12)
    assert np.diff(schedule.lam(times[:-1])) == pytest.approx((schedule.lam(times[-2]) - schedule.lam(times[0])) / 8)
    assert times[-2] / 1000 == pytest.approx(shift * 1e-3 / (1 + (shift - 1) * 1e-3))
    assert make_grid(schedule, 9, "logsnr", t_min=20.0)[-2] == 20


def test_what_begins_short_of_noise_says_so():
    schedule = pf.Schedule.flow(3.0, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for solver, spacing in (("dpmpp-sde", "trailing"), ("dpmpp-2m", "logsnr")):
            plan = pf.make_plan(solver, schedule, steps=6, spacing=spacing, prediction="flow")
            assert plan.times[0] == noisiest(schedule) and "999.967  3.3e-05" in str(plan).split("\n")[2]
    with pytest.warns(pf.plan.warn.Notice, match="dpmpp-sde begins at t = 999.96666, not at 1000, where alpha = 0 has"):
        pf.make_plan("dpmpp-sde", schedule, sigmas=[1, 0.8, 0.5, 0.2, 0], prediction="flow")


def formula(pipeline, name):
    """A function of a pipeline's file, which is not imported: its networks are many."""
    diffusers = pytest.importorskip("diffusers", reason="the shifts are compared with its")
    tree = ast.parse((Path(diffusers.__file__).parent / "pipelines" / pipeline).read_text())
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    names = {}
    exec(compile(ast.Module([found], []), pipeline, "exec"), names)  # noqa: S102
    return names[name]


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 4300, 4301, 8192, 16384])
def test_mu(tokens):
    flux = formula("flux/pipeline_flux.py", "calculate_shift")
    assert pf.flow_mu(tokens) == pytest.approx(flux(tokens), abs=1e-12)
    qwen = {"base_shift": 0.5, "max_shift": 0.9}
    assert pf.flow_mu(tokens, **qwen, max_tokens=8192) == pytest.approx(flux(tokens, 256, 8192, **qwen), abs=1e-12)
    flux2 = formula("flux2/pipeline_flux2.py", "compute_empirical_mu")
    for steps in (4, 10, 28, 50, 200):
        assert pf.flux2_mu(tokens, steps) == pytest.approx(flux2(tokens, steps), abs=1e-12)


QWEN = {"shift_terminal": 0.02, "max_shift": 0.9, "max_image_seq_len": 8192}


@pytest.mark.parametrize("steps", [2, 9, 28, 50])
@pytest.mark.parametrize(
    "mu, config, grid",
    [
        (pf.flow_mu(4096), {}, {}),  # FLUX.1
        (pf.flow_mu(1024), {"time_shift_type": "exponential"}, {}),
        (pf.flux2_mu(4096, 28), {}, {}),  # FLUX.2
        (pf.flow_mu(1024, max_shift=0.9, max_tokens=8192), QWEN, {"t_min": 20.0}),  # Qwen-Image
        (3.0, {"time_shift_type": "linear"}, {}),
        (1.5, {"time_shift_type": "linear", "shift_terminal": 0.1}, {"t_min": 100.0}),
    ],
    ids=["FLUX.1", "FLUX.1 at 512", "FLUX.2", "Qwen-Image", "linear", "linear to a terminal"],
)
def test_dynamic_shifts_are_diffusers(mu, config, grid, steps):
    """A pipeline gives uniform sigmas and mu; a schedule has exp(mu), or mu, and its own grid is that one."""
    diffusers = pytest.importorskip("diffusers", reason="the grids are compared with its")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **config)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    plan = pf.make_plan("euler", pf.Schedule.flow(shift, 1000), steps=steps, prediction="flow", **grid)
    assert flow_sigmas(plan) == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    assert plan.times == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
    assert pf.plan_like(theirs, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu).times == pytest.approx(plan.times)


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize("steps", [1, 9, 28, 50])
@pytest.mark.parametrize(
    "kind, config, solver, shift",
    [
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, "euler", 3.0),  # SD3, Z-Image
        ("FlowMatchHeunDiscrete", {"shift": 3.0}, "heun", 3.0),
        ("UniPCMultistep", {**FLOW, "flow_shift": 5.0}, "unipc", 5.0),  # Wan
        ("DPMSolverMultistep", {**FLOW, "flow_shift": 3.0}, "dpmpp-2m", 3.0),  # Sana
        ("DEISMultistep", {**FLOW, "flow_shift": 3.0}, "deis", 3.0),
    ],
    ids=["SD3", "Heun", "Wan", "Sana", "DEIS"],
)
def test_static_shifts_are_diffusers(kind, config, solver, shift, steps):
    diffusers = pytest.importorskip("diffusers", reason="the grids are compared with its")
    theirs = getattr(diffusers, f"{kind}Scheduler")(**config)
    theirs.set_timesteps(steps)
    schedule = pf.Schedule.flow(shift, 1000)
    plan = pf.make_plan(solver, schedule, steps=steps, prediction="flow", compat="diffusers")
    assert plan.times == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
    calls = list(dict.fromkeys(theirs.sigmas.tolist()))  # Heun's stand twice
    assert list(dict.fromkeys(flow_sigmas(plan))) == pytest.approx(calls, abs=1e-6)


@pytest.mark.parametrize("alpha", [1e-2, 1e-5, 1e-8, 1e-12])
def test_an_ancestral_step_from_far_keeps_its_share(alpha):
    """At eta = 1 rho_down = rho_s^2 / rho_t, to the last digits also where it is 1e-12 of rho_s."""
    source, target = Level(alpha, 1 - alpha), Level(0.988, 0.012)
    reduced, tau = ancestral(source, target, 1.0)
    (high, low), down = (at.sigma / at.alpha for at in (source, target)), reduced.sigma / reduced.alpha
    assert down == pytest.approx(low * low / high, rel=1e-14)
    assert math.hypot(reduced.sigma, tau) == pytest.approx(target.sigma, rel=1e-14)
    assert ancestral(Level(0.0, 1.0), target, 1.0) == (Level(0.988, 0.0), 0.012)
    assert ancestral(source, target, 0.0) == (target, 0.0)


@pytest.mark.parametrize("solver", ["dpm-2-ancestral", "dpmpp-2s-ancestral", "euler-ancestral", "dpmpp-sde"])
def test_one_step_from_noise_of_a_large_shift(solver):
    plan = pf.make_plan(solver, pf.Schedule.flow(12.0, 1000), steps=1, final="min", prediction="flow")
    assert plan.nfe == SOLVER_INFO[solver].calls(1, "min") and plan.rows[-1].levels.y.sigma < 0.012


@pytest.mark.parametrize("solver", ["dpmpp-sde", "res-2s", "dpm-fast"])
def test_stages_in_log_snr_begin_before_any_second_time(solver):
    """Of a grid so fine that its second time is noisier than where they begin else: half the way to it."""
    schedule = pf.Schedule.flow(3.0, 1000)
    for spacing, steps in (("beta", 60), ("beta", 700)):
        plan = pf.make_plan(solver, schedule, steps=steps, spacing=spacing, prediction="flow")
        second = make_grid(schedule, steps, spacing)[1]
        start = noisiest(schedule)
        assert (second >= start) == (steps == 700)
        assert plan.times[0] == pytest.approx(start if second < start else (1000 + second) / 2, rel=1e-14)
        assert plan.steps == steps and all(map(math.isfinite, plan.rows[0].y))


def test_dpm_fast_has_its_own_grid_on_each_schedule():
    for schedule in (pf.Schedule.flow(3.0), pf.Schedule.edm(), pf.Schedule.linear()):
        own = pf.make_plan("dpm-fast", schedule, steps=20, prediction="x0")
        assert own == pf.make_plan("dpm-fast", schedule, steps=20, spacing="dpm-fast", prediction="x0")
        assert gaussian_spread(own) == pytest.approx(1, abs=0.1)
