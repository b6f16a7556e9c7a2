"""Samplers by the names that users have for them: plans against loops, on VP, EDM and flow."""

import math

import named_loops as loops
import numpy as np
import pytest
import torch
from drawing import draw
from golden_data import GUIDED
from rows import evaluate, store

import pndm_fast as pf
from pndm_fast.plan.row import MAX_SLOTS
from pndm_fast.plan.stability import gaussian_spread
from pndm_fast.solvers import TABLEAUX, Tableau

pytestmark = pytest.mark.filterwarnings("ignore:.* diverges in", "ignore:.* has no effect")
RANDOM = np.random.default_rng(0)
START = RANDOM.standard_normal(12)
NORMALS = RANDOM.standard_normal((64, 12))
MIX = RANDOM.standard_normal((12, 12)) / 4
# schedule, sigma / alpha of a grid without equal steps
GRIDS = {
    "vp": (pf.Schedule.vp(), [60.0, 21.0, 9.0, 4.2, 2.0, 1.1, 0.5, 0.21, 0.0]),
    "edm": (pf.Schedule.edm(), [80.0, 24.0, 9.0, 3.7, 1.6, 0.8, 0.3, 0.1, 0.0]),
    "flow": (pf.Schedule.flow(), [30.0, 11.0, 5.0, 2.6, 1.2, 0.6, 0.25, 0.1, 0.0]),
}


def network(x, alpha, sigma):
    """x_0 of anything: not linear, and every element of every other."""
    unit = x / math.hypot(alpha, sigma)
    return np.tanh(MIX @ unit) * math.cos(sigma) + 0.3 * unit / (1 + sigma**2)


def weaker(x, alpha, sigma):
    return 0.7 * network(x, alpha, sigma) - 0.1 * np.sin(x / math.hypot(alpha, sigma))


def run(plan, start=START, uncond=None):
    """The plan's last state; normals in the order in which rows take them."""
    x = y = plan.prologue.a0 * start
    drawn, slots = 0, [None] * MAX_SLOTS
    if plan.prologue.c0:
        x = y = x + plan.prologue.c0 * NORMALS[0]
        drawn = 1
    for row in plan:
        level = row.levels.call
        out = network(y, *level)
        if uncond is not None:
            other = uncond(y, *level)
            if row.second is not None:
                slots[row.second] = store(row, y, other)
            out = other + row.guidance * (out - other)
        slots[row.slot] = store(row, y, out)
        z = NORMALS[drawn] if row.noisy else 0.0
        drawn += row.noisy
        x, y = evaluate(row.x, x, y, slots, z), evaluate(row.y, x, y, slots, z)
    return y


def level(schedule, rho):
    """(alpha, sigma) of sigma / alpha, from what the schedule's scale means."""
    alpha = {"vp": 1 / math.hypot(1, rho), "sigma": 1.0, "flow": 1 / (1 + rho)}[schedule.scale]
    return alpha, alpha * rho


def direct(loop, name, own=False, both=False, **options):
    """The loop's last state on a grid: in x / alpha, or a flow in its own x and sigma."""
    schedule, rho = GRIDS[name]
    own = own and schedule.scale == "flow"
    normals = iter(NORMALS)

    def denoise(x, s):
        alpha, sigma = (1 - s, s) if own else level(schedule, s)
        seen = x if own else alpha * x
        return (network(seen, alpha, sigma), weaker(seen, alpha, sigma)) if both else network(seen, alpha, sigma)

    sigmas = [s / (1 + s) for s in rho] if own else rho
    start = START if own else START / level(schedule, rho[0])[0]
    return loop(denoise, start, sigmas, lambda: next(normals), **options)


def plan_of(solver, name, **options):
    schedule, rho = GRIDS[name]
    sigmas = [s / (1 + s) for s in rho] if schedule.scale == "flow" else rho
    return pf.make_plan(solver, schedule, sigmas=sigmas, prediction="x0", **options)


KUTTA = {"a": ((1 / 2,), (-1.0, 2.0)), "b": (1 / 6, 2 / 3, 1 / 6), "c": (1 / 2, 1.0)}
FINE = {"lower_order_final": False}
PAPERS = ((3, 1, 19.35, 40.79), (4, 1, 1.09, 1.92), (4, 3, 0.59, 1.09), (4, 2, 0.30, 0.59), (6, 3, 0.06, 0.30))
# solver, its options, the loop, its options, whether a flow is in its own x and sigma
CASES = [
    ("euler", {"churn": 2.0}, loops.euler, {"churn": 2.0}, False),
    ("euler-ancestral", {}, loops.euler_ancestral, {}, False),
    ("euler-ancestral", {"eta": 1.6}, loops.euler_ancestral, {"eta": 1.6}, False),
    ("dpm-2", {}, loops.dpm_2, {}, True),
    ("dpm-2-ancestral", {"eta": 0.6}, loops.dpm_2, {"eta": 0.6}, "vp edm"),
    ("dpm-2-ancestral", {}, loops.dpm_2, {"eta": 1.0}, "vp edm"),
    ("dpm-2", {"churn": 2.0}, loops.dpm_2, {"churn": 2.0}, "vp edm"),
    ("heunpp2", {}, loops.heunpp2, {}, True),
    ("gradient-estimation", {}, loops.gradient_estimation, {}, True),
    ("gradient-estimation", {"gamma": 1.5}, loops.gradient_estimation, {"gamma": 1.5}, True),
    ("rk", {"tableau": "kutta-3"}, loops.runge_kutta, KUTTA, True),
    ("res-2s", {}, loops.res_2s, {}, False),
    ("res-2s", {"c2": 0.7}, loops.res_2s, {"c2": 0.7}, False),
    ("res-3s", {}, loops.res_3s, {}, False),
    ("res-3s", {"c2": 1 / 3, "c3": 0.8}, loops.res_3s, {"c2": 1 / 3, "c3": 0.8}, False),
    ("exp-heun-2-x0", {}, loops.seeds_2, {"eta": 0.0, "r": 1.0, "phi_2": True}, False),
    ("exp-heun-2-x0-sde", {}, loops.seeds_2, {"r": 1.0, "phi_2": True}, False),
    ("dpmpp-3s", {}, loops.dpmpp_3s, {}, False),
    ("dpmpp-2s-ancestral", {}, loops.dpmpp_2s_ancestral, {}, False),
    ("dpmpp-2s-ancestral", {"eta": 0.6}, loops.dpmpp_2s_ancestral, {"eta": 0.6}, False),
    ("res-2m", {}, loops.res_multistep, {}, False),
    ("res-2m", {}, loops.exponential_adams, {"order": 2}, False),
    ("res-3m", {}, loops.exponential_adams, {"order": 3}, False),
    ("res-multistep-ancestral", {}, loops.res_multistep, {"eta": 1.0}, False),
    ("res-multistep-ancestral", {"eta": 0.6}, loops.res_multistep, {"eta": 0.6}, False),
    ("seeds-2", {}, loops.seeds_2, {}, False),
    ("seeds-2", {"eta": 0.4, "r": 0.3, "solver_type": "heun"}, loops.seeds_2,
     {"eta": 0.4, "r": 0.3, "phi_2": True}, False),
    ("seeds-3", {}, loops.seeds_3, {}, False),
    ("seeds-3", {"eta": 0.4, "r1": 0.2, "r2": 0.9}, loops.seeds_3, {"eta": 0.4, "r1": 0.2, "r2": 0.9}, False),
    *(("er-sde", {"order": k}, loops.er_sde, {"order": k}, False) for k in (1, 2, 3)),
    ("er-sde", {"integral": "sum"}, loops.er_sde, {"rectangles": 200}, False),
    ("er-sde", {"eta": 1.0}, loops.er_sde, {"scaler": lambda u: u**2}, False),
    ("sa-solver", FINE, loops.sa_solver, {}, False),
    ("sa-solver", {"order": 2, "corrector_order": 2, "tau": 0.5}, loops.sa_solver,
     {"predictor": 2, "corrector": 2, "tau": lambda s: 0.5}, False),
    ("sa-solver", {"order": 3, "corrector_order": 3, "tau_min": 0.35, "tau_max": 6.0, **FINE}, loops.sa_solver,
     {"corrector": 3, "tau": lambda s: float(0.35 <= s <= 6.0)}, False),
    ("sa-solver", {"corrector_order": 0, "tau": 0.0, **FINE}, loops.sa_solver,
     {"corrector": 0, "tau": lambda s: 0.0}, False),
    ("sa-solver-pece", FINE, loops.sa_solver, {"pece": True}, False),
    ("restart", {"restarts": ((4, 2, 0.2, 2.5),)}, loops.restart, {"restarts": [(4, 2, 0.2, 2.5)]}, "vp edm"),
    ("restart", {"restarts": PAPERS, "noise_scale": 1.003}, loops.restart, {"restarts": PAPERS, "noise": 1.003},
     "vp edm"),
    ("alphafold-3", {}, loops.alphafold_3, {}, "edm"),
    ("alphafold-3", {"gamma": 0.3, "gamma_min": 2.5, "step_scale": 1.2}, loops.alphafold_3,
     {"gamma": 0.3, "gamma_min": 2.5, "step_scale": 1.2}, "vp edm flow"),
]  # fmt: skip


def near(got, wanted, bound=1e-12):
    assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max(), np.abs(got - wanted).max()


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("solver, options, loop, told, own", CASES, ids=lambda value: str(value)[:40])
def test_the_loop_of_the_paper(solver, options, loop, told, own, name):
    """On a flow slopes are against sigma where the last entry says so, or the method has none there."""
    if isinstance(own, str):
        if name not in own:
            return
        own = False
    near(run(plan_of(solver, name, **options)), direct(loop, name, own, **told))


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize(
    "solver, loop",
    [
        ("euler-ancestral", loops.euler_ancestral),
        ("dpm-2-ancestral", loops.dpm_2),
        ("dpmpp-2s-ancestral", loops.dpmpp_2s_ancestral),
    ],
)
def test_ancestral_steps_that_flows_have(solver, loop, eta):
    """split="flow", with scale_noise of 1: LTX's and ComfyUI's."""
    near(run(plan_of(solver, "flow", eta=eta, split="flow")), direct(loop, "flow", True, eta=eta, flow=True))


def test_flow_steps_may_start_at_noise_alone():
    plan = pf.make_plan("euler-ancestral", GRIDS["flow"][0], steps=4, prediction="flow", split="flow")
    assert plan.start == (0, 1) and plan.rows[0].levels.y.sigma == 0.75
    # of the posterior's split .4714, of this one .4330: both leave sigma = .5 from .75
    for split, noise in (("posterior", 0.4714), ("flow", 0.4330)):
        row = pf.make_plan("euler-ancestral", GRIDS["flow"][0], sigmas=[0.75, 0.5, 0], split=split).rows[0]
        assert row.y[-1] == pytest.approx(noise, abs=5e-5)


@pytest.mark.parametrize("scale", [0.0, 0.7, 1.003])
@pytest.mark.parametrize(
    "solver",
    ["euler-ancestral", "dpm-2-ancestral", "dpmpp-2s-ancestral", "res-multistep-ancestral", "er-sde", "sa-solver"],
)
def test_noise_scale_is_of_the_noise_alone(solver, scale):
    for row, scaled in zip(plan_of(solver, "vp"), plan_of(solver, "vp", noise_scale=scale), strict=True):
        assert scaled.y[:-1] == row.y[:-1] and scaled.y[-1] == pytest.approx(scale * row.y[-1], rel=1e-14)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("name", GRIDS)
def test_dpm_fast(name, n, eta):
    """n calls between two levels, and one to sigma = 0; the grid is the solver's own."""
    schedule = GRIDS[name][0]
    ends = schedule.time_at(-np.log([40.0, 0.1]))
    sizes = groups(n)
    parts = [k + j / size for k, size in enumerate(sizes) for j in range(size)] + [len(sizes)]
    rho = np.exp(np.log(40.0) + np.log(0.1 / 40.0) * np.array(parts) / len(sizes))
    plan = pf.make_plan("dpm-fast", schedule, times=[*schedule.time_at(-np.log(rho)), 0], prediction="x0", eta=eta)
    assert plan.nfe == n + 1 and plan.times[0] == pytest.approx(ends[0])
    normals = iter(NORMALS)

    def denoise(x, s):
        alpha, sigma = level(schedule, s)
        return network(alpha * x, alpha, sigma)

    start = START / level(schedule, 40.0)[0]
    near(run(plan), loops.dpm_fast(denoise, start, [*rho, 0.0], lambda: next(normals), eta=eta))
    if schedule.scale != "flow":
        whole = pf.make_plan("dpm-fast", schedule, steps=n, spacing="dpm-fast", final="min", prediction="x0")
        lam = [schedule.lam(row.t) for row in whole]
        span = schedule.lam(schedule.floor) - lam[0]
        assert whole.nfe == n and np.subtract(lam, lam[0]) / span == pytest.approx(np.array(parts)[:-1] / len(sizes))


def groups(n):
    return [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("name", GRIDS)
def test_cfg_pp(name, weight):
    """Guided x_0, unconditional noise: Euler's needs a guidance of each row alone, 2M both outputs."""
    told = {"both": True, "weight": weight}
    for solver, loop, options, more in [
        ("euler-cfg-pp", loops.euler_cfg_pp, {}, {}),
        ("euler-ancestral-cfg-pp", loops.euler_cfg_pp, {}, {"eta": 1.0}),
        ("euler-ancestral-cfg-pp", loops.euler_cfg_pp, {"eta": 0.3}, {"eta": 0.3}),
        ("dpmpp-2m-cfg-pp", loops.dpmpp_2m_cfg_pp, {}, {"paper": True}),
        ("dpmpp-2m-cfg-pp", loops.dpmpp_2m_cfg_pp, {"rule": "comfyui"}, {"paper": False}),
        ("res-multistep-cfg-pp", loops.res_multistep_cfg_pp, {}, {}),
        ("res-multistep-ancestral-cfg-pp", loops.res_multistep_cfg_pp, {}, {"eta": 1.0}),
        ("res-multistep-ancestral-cfg-pp", loops.res_multistep_cfg_pp, {"eta": 0.6}, {"eta": 0.6}),
        ("gradient-estimation-cfg-pp", loops.gradient_estimation_cfg_pp, {}, {"flow": name == "flow", "own": True}),
        ("gradient-estimation-cfg-pp", loops.gradient_estimation_cfg_pp, {"gamma": 1.3},
         {"gamma": 1.3, "flow": name == "flow", "own": True}),
        ("dpmpp-2s-ancestral-cfg-pp", loops.dpmpp_2s_ancestral_cfg_pp, {}, {"paper": True}),
        ("dpmpp-2s-ancestral-cfg-pp", loops.dpmpp_2s_ancestral_cfg_pp, {"eta": 0.6, "rule": "comfyui"},
         {"eta": 0.6, "paper": False}),
    ]:  # fmt: skip
        plan = plan_of(solver, name, **options)
        assert plan.guided and plan.keeps_uncond == (not solver.startswith("euler"))
        near(run(plan.with_guidance(weight), uncond=weaker), direct(loop, name, **told, **more))


@pytest.mark.parametrize("solver", GUIDED)
def test_cfg_pp_in_the_engine(solver):
    """Its factors and its second outputs, of a call with a condition, without, and a scale."""
    schedule = GRIDS["vp"][0]

    def both(x, t, weaker):
        alpha, sigma = schedule.alpha(float(t[0])), schedule.sigma(float(t[0]))
        pairs = zip(x.numpy(), weaker.tolist(), strict=True)
        return torch.from_numpy(np.stack([(other if w else network)(y, alpha, sigma) for y, w in pairs]))

    other, plan = weaker, plan_of(solver, "vp")
    drawn = {i + 2: k for k, i in enumerate(i for i, noisy in enumerate(plan.noisy) if noisy)}
    got = draw(
        both,
        solver=plan,
        start=pf.State(torch.from_numpy(START)[None]),
        cond={"weaker": torch.zeros(1)},
        uncond={"weaker": torch.ones(1)},
        guidance=0.7,
        noise_sampler=lambda i: torch.from_numpy(NORMALS[drawn[i]])[None],
    )
    near(got[0].numpy(), run(plan.with_guidance(0.7), uncond=weaker))


def test_cfg_pp_is_its_unguided_method_for_one_network():
    """Both outputs equal: DDIM, the ancestral step, and DPM-Solver++(2M)."""
    for solver, plain, options in [
        ("euler-cfg-pp", "ddim", {}),
        ("euler-ancestral-cfg-pp", "euler-ancestral", {}),
        ("dpmpp-2m-cfg-pp", "dpmpp-2m", {"lower_order_final": False}),
        ("res-multistep-cfg-pp", "res-2m", {}),
        ("res-multistep-ancestral-cfg-pp", "res-multistep-ancestral", {}),
        ("gradient-estimation-cfg-pp", "gradient-estimation", {}),
        ("dpmpp-2s-ancestral-cfg-pp", "dpmpp-2s-ancestral", {}),
    ]:
        near(run(plan_of(solver, "vp").with_guidance(0.8), uncond=network), run(plan_of(plain, "vp", **options)))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_tcd(name, eta):
    schedule, normals = GRIDS[name][0], iter(NORMALS)
    times = [0.95, 0.8, 0.5, 0.3, 0.1, 0.0]
    x = START
    for t, s in zip(times[:-1], times[1:], strict=True):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        data = network(x, alpha, sigma)
        m = (1 - eta) * s
        x = schedule.alpha(m) * data + schedule.sigma(m) * (x - alpha * data) / sigma
        ratio = schedule.alpha(s) / schedule.alpha(m)
        noise = schedule.sigma(s) ** 2 - (ratio * schedule.sigma(m)) ** 2
        x = ratio * x + (math.sqrt(noise) * next(normals) if noise > 1e-12 else 0)
    near(run(pf.make_plan("tcd", schedule, times=times, prediction="x0", eta=eta)), x)


@pytest.mark.parametrize("prediction", ["x0", "edm"])
def test_consistency(prediction):
    """Algorithm 1 with appendix C's scalings, which make f the identity at the floor."""
    schedule, floor, data = pf.Schedule.edm(0.002, 80.0, sigma_data=0.5), 0.002, 0.5
    sigmas, normals, x, y = [80.0, 24.4, 5.84, 0.9, 0.002], iter(NORMALS), 80 * START, 80 * START
    plan = pf.make_plan("consistency", schedule, sigmas=[*sigmas, 0.0], prediction=prediction)

    def raw(x, time):
        return np.tanh(MIX @ x) + time / 1000

    rows = iter(plan)
    for t, s in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        row = next(rows)
        if prediction == "edm":
            scale, time = 1 / math.hypot(t, data), 1000 * math.log(t) / 4
            skip, out = data**2 / ((t - floor) ** 2 + data**2), data * (t - floor) / math.hypot(t, data)
            f = skip * x + out * raw(scale * x, time)
            assert (row.t, row.in_scale) == pytest.approx((time, scale))
            slot = store(row, y, raw(row.in_scale * y, row.t))
        else:
            f, slot = network(x, 1.0, t), network(y, 1.0, t)
            assert (row.t, row.in_scale) == pytest.approx((t, 1.0))
        z = next(normals) if s > floor else 0
        x = f + math.sqrt(max(0.0, s * s - floor * floor)) * z
        y = evaluate(row.y, y, y, [slot] + [None] * (MAX_SLOTS - 1), z)
        near(y, x)
        assert t > floor or prediction == "x0" or np.abs(f - x).max() <= 1e-15


def test_consistency_on_other_schedules_noises_the_estimate_anew():
    """v-prediction at alpha = cos t: TrigFlow's network in units of the data, and tcd at eta = 1 is sCM's sampler."""
    angles = np.array([1.56, 1.3, 0.7, 0.0])
    schedule = pf.Schedule.from_levels(np.cos(angles), np.sin(angles))
    plan = pf.make_plan("tcd", schedule, times=[3, 2, 1, 0], prediction="v", eta=1.0)
    x, normals = START, iter(NORMALS)
    for i, (row, angle, after) in enumerate(zip(plan, angles[:-1], angles[1:], strict=True)):
        output = np.tanh(MIX @ x)
        data = math.cos(angle) * x - math.sin(angle) * output
        z = next(normals) if i < 2 else 0.0
        got = evaluate(row.y, x, x, [store(row, x, output)] + [None] * (MAX_SLOTS - 1), z)
        x = math.cos(after) * data + math.sin(after) * z
        near(got, x)


def test_names_of_one_method():
    """Where a name is another solver's option, its plan has that one's rows."""
    late = {"lower_order_final": False}
    for name in ("vp", "edm"):
        for solver, options, other, same in [
            ("res-2m", {}, "dpmpp-2m", {"solver_type": "heun", **late}),
            ("res-3m", {}, "dpmpp-3m", {"solver_type": "heun", "exact": True, **late}),
            ("res-multistep-ancestral", {"eta": 0.0}, "res-2m", {}),
            ("exp-heun-2-x0", {}, "res-2s", {"c2": 1.0}),
            ("seeds-2", {"eta": 0.0, "solver_type": "heun", "r": 0.4}, "res-2s", {"c2": 0.4}),
            ("dpmpp-2s-ancestral", {"eta": 0.0}, "seeds-2", {"eta": 0.0}),
            ("dpm-2-ancestral", {"eta": 0.0}, "dpm-2", {}),
            ("sa-solver", {"tau": 1.0, "order": 2, "corrector_order": 0}, "dpmpp-2m-sde", {"solver_type": "heun"}),
            ("sa-solver", {"order": 1, "corrector_order": 0}, "er-sde", {"order": 1, "eta": 1.0}),
            ("rk", {"tableau": "heun-2"}, "heun", {}),
            ("restart", {"restarts": ()}, "heun", {}),
            ("restart", {"restarts": [[5, 0, 0.1, 2.0]]}, "heun", {}),
            ("alphafold-3", {"gamma": 0.0, "step_scale": 1.0}, "euler", {}),
            ("rk", {"tableau": "euler"}, "gradient-estimation", {"gamma": 1.0}),
        ]:
            near(run(plan_of(solver, name, **options)), run(plan_of(other, name, **same)))


def test_a_tableau_of_one_s_own():
    """The exponential method of two stages, written as terms in phi."""
    half = Tableau(((((0.5, 1, 0.5),),),), (((1.0, 1, 1.0), (-2.0, 2, 1.0)), ((2.0, 2, 1.0),)), (0.5,))
    assert half.exponential and not TABLEAUX["rk4"].exponential
    near(run(plan_of("rk", "edm", tableau=half)), run(plan_of("res-2s", "edm")))
    assert hash(half) == hash(Tableau(half.a, half.b, half.c))


WEAK = [  # solver, options, the order at which the variance of Gaussian data comes near
    ("euler", {"churn": 10.0}, 1),
    ("euler-ancestral", {}, 1),
    ("euler-ancestral", {"eta": 1.5}, 1),
    ("dpm-2", {"churn": 10.0}, 2),
    ("dpm-2-ancestral", {}, 2),
    ("dpm-2-ancestral", {"eta": 0.5}, 2),
    ("dpmpp-2s-ancestral", {}, 2),
    ("res-multistep-ancestral", {}, 2),
    ("er-sde", {}, 2),
    ("er-sde", {"eta": 1.0}, 2),
    ("seeds-2", {}, 2),
    ("seeds-3", {}, 1.7),
    ("exp-heun-2-x0-sde", {}, 2),
    ("sa-solver", {}, 2),
    ("sa-solver-pece", {"tau": 0.6}, 2),
    ("restart", lambda n: {"restarts": ((n // 3, 2, 0.3, 2.0),)}, 2),
    ("alphafold-3", {"step_scale": 1.0, "noise_scale": 1.0, "gamma": 0.1}, 1),
]


@pytest.mark.parametrize("solver, options, order", WEAK, ids=str)
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_variance_of_gaussian_data(solver, options, order, name):
    """Exactly, from the rows: the network is linear there, and the covariance of all registers known."""
    schedule = GRIDS[name][0]
    splits = ("posterior", "flow") if name == "flow" and "ancestral" in solver else ("",)
    for split in splits:
        errors = []
        for n in (64, 128):
            own = {**(options(n) if callable(options) else options), **({"split": split} if split else {})}
            times = schedule.time_at(np.linspace(-3, 3, n + 1))
            plan = pf.make_plan(solver, schedule, times=times, final="min", prediction="x0", **own)
            errors.append(abs(gaussian_spread(plan) - 1))
        assert order - 0.25 <= math.log2(errors[0] / errors[1]) <= order + 0.5, errors
