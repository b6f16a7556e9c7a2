"""Every solver that diffusers 0.42 has, against its own scheduler in float64: same network, grid, start and noise.

The exceptions, each with the test that shows who is right (`test_peers_exceptions.py` where not said otherwise):

- multistep and singlestep 3 of sde-dpmsolver++: a wrong sign; not offered. `test_third_order_sde_keeps_the_variance`.
- EulerDiscrete's s_churn: added after the call. Ours, `edm`, adds it before: `test_churn_before_the_call`.
- DPMSolverSDE's Brownian tree: `dpmpp-sde` has both noises of a step on one path by default; compat takes them
  independent, as the oracle draws them.
- IPNDM: its own schedule, whose first call is dead; `ipndm` and `ipndm-v` take any.
- DDIM, DDPM, LCM, DDIMInverse clip x_0 to [-1, 1] by default; compat does not. (DDIM's eps stays unclipped: two slots.)
- trailing grids with a time of -1 (62 of the n up to 1000): refused.
- what is NaN or an exception there is refused by name: UniPC to sigma = 0 with lower_order_final=False,
  predict_x0=False or bh1, third order over a last step of no length, grids whose first whole time stands twice.
- Euler's interpolation_type="log_linear" (which does not reach the end): not offered.
- ancestral steps and DDIM's eta = 1 from alpha near 0: a root of -1e-8 is NaN in its float32; ours is the root of 0.
- v on flow levels: x_0 = alpha x - sigma v there, which is v of no flow model: refused.
"""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the peer is diffusers")
from drawing import draw
from golden_data import START, Recorder, mixture, relative
from peers import trajectory

import pndm_fast as pf
from pndm_fast.solvers.compat import COMPAT, SCHEDULERS

LINEAR = pf.Schedule.linear()
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
MIN = {"final_sigmas_type": "sigma_min"}
NOISE_PREDICTION = {"algorithm_type": "dpmsolver", **MIN}
WORDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}
SPACINGS = ("leading", "linspace", "trailing")
PEERS = {  # name: (scheduler, its configuration, options of ours)
    "ddim": ("DDIM", {}, {}),
    "ddpm": ("DDPM", {}, {}),
    "ddim-inverse": ("DDIMInverse", {}, {}),
    "plms": ("PNDM", {"skip_prk_steps": True}, {}),
    "f-pndm": ("PNDM", {}, {}),
    "lcm": ("LCM", {}, {}),
    "dpm-solver-1": ("DPMSolverMultistep", {**NOISE_PREDICTION, "solver_order": 1}, MIN),
    "dpm-solver-2": ("DPMSolverMultistep", NOISE_PREDICTION, MIN),
    "dpm-solver-3": ("DPMSolverMultistep", {**NOISE_PREDICTION, "solver_order": 3}, MIN),
    "dpmpp-2m": ("DPMSolverMultistep", {}, {}),
    "dpmpp-3m": ("DPMSolverMultistep", {"solver_order": 3}, {}),
    "dpmpp-2m-sde": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpmpp-2s": ("DPMSolverSinglestep", {}, {}),
    "deis": ("DEISMultistep", {}, {}),
    "unipc": ("UniPCMultistep", {}, {}),
    "euler": ("EulerDiscrete", {}, {}),
    "euler-ancestral": ("EulerAncestralDiscrete", {}, {}),
    "heun": ("HeunDiscrete", {}, {}),
    "lms": ("LMSDiscrete", {}, {}),
    "dpmpp-sde": ("DPMSolverSDE", {}, {}),
    "dpm-2": ("KDPM2Discrete", {}, {}),
    "dpm-2-ancestral": ("KDPM2AncestralDiscrete", {}, {}),
    "tcd": ("TCD", {"eta": 0.3}, {"eta": 0.3}),
}
GRIDLESS = {"lcm": (None,), "tcd": (None,), "dpmpp-2s": (None,), "ddim-inverse": ("leading", "trailing")}


def normal(k):
    return torch.randn(START.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)


def compare(scheduler, plan, network, config, steps, bound=1e-9):
    """Final states and told times; the peer's k-th draw goes to the row that made it."""
    peer = trajectory(scheduler, network, START, steps, config, normal)
    drawn = {call + 2: normal(k) for k, call in enumerate(peer.draws)}
    recorder = Recorder(network)
    start = pf.State(START) if plan.start.sigma < 0.5 else pf.Noise(START)
    x = draw(recorder, solver=plan, start=start, noise_sampler=lambda i: drawn.get(i, START))
    assert recorder.times == pytest.approx(peer.times, rel=1e-12, abs=1e-9)
    assert relative(x, peer.final) < bound
    return peer


def model(schedule, kind="eps"):
    """diffusers' fractional times mean interpolated sigma / alpha."""
    return mixture(schedule.interpolate("sigma"), kind)


def test_every_compatible_solver_is_compared():
    assert set(COMPAT["diffusers"]) == set(PEERS)


def grids():
    """Solver, steps, spacing and prediction: all at 4 and 10 steps, eps and v by turns at 25; the rest is `stress`."""
    slow, stress = pytest.mark.slow, pytest.mark.stress
    for solver in PEERS:
        for i, spacing in enumerate(GRIDLESS.get(solver, SPACINGS)):
            for kind in ("eps", "v"):
                at_4, at_25 = () if kind == "eps" else slow, slow if kind == ("eps", "v")[i % 2] else stress
                for steps, mark in ((4, at_4), (10, slow), (25, at_25), (50, stress)):
                    yield pytest.param(solver, steps, spacing, kind, marks=mark)


@pytest.mark.slow
@pytest.mark.parametrize("solver, steps, spacing, kind", list(grids()))
def test_equal_to_the_peer(solver, steps, spacing, kind):
    scheduler, config, options = PEERS[solver]
    grid = {} if spacing is None else {"spacing": spacing}
    theirs = {} if spacing is None else {"timestep_spacing": spacing}
    plan = pf.make_plan(solver, LINEAR, steps=steps, prediction=kind, compat="diffusers", **grid, **options)
    compare(scheduler, plan, model(LINEAR, kind), {**config, **theirs, "prediction_type": WORDS[kind]}, steps)


def test_tcd_s_grid():
    """By its configuration; what set_timesteps takes under the name of original_inference_steps is another thing."""
    import diffusers

    for original, steps in ((100, 16), (30, 7), (1000, 4)):
        scheduler = diffusers.TCDScheduler(original_inference_steps=original)
        scheduler.set_timesteps(steps)
        assert list(pf.plan_like(scheduler, steps=steps).times) == scheduler.timesteps.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("sigmas", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    "solver",
    [
        "dpmpp-2m",
        "dpmpp-3m",
        "dpmpp-2s",
        "deis",
        "unipc",
        "euler",
        "heun",
        "lms",
        "dpmpp-sde",
        "dpmpp-2m-sde",
        "dpm-2",
        "dpm-2-ancestral",
    ],
)
def test_sigmas(solver, sigmas):
    scheduler, config, options = PEERS[solver]
    for steps in (4, 25):
        plan = pf.make_plan(solver, LINEAR, steps=steps, sigma_spacing=sigmas, compat="diffusers", **options)
        compare(scheduler, plan, model(LINEAR), {**config, f"use_{sigmas}_sigmas": True}, steps)


VARIANTS = [
    ("ddim", {"eta": 1.0}, {}),
    ("ddim", {"eta": 0.5, "set_alpha_to_one": False, "steps_offset": 1}, {}),
    ("ddpm", {"variance_type": "fixed_large"}, {}),
    ("ddim-inverse", {"steps_offset": 1}, {}),
    ("lcm", {"original_inference_steps": 100, "timestep_scaling": 5.0}, {}),
    ("tcd", {"eta": 1.0}, {}),
    ("tcd", {"eta": 0.0}, {}),
    ("deis", {"solver_order": 3}, {}),
    ("deis", {"solver_order": 3, "lower_order_final": False, "steps_offset": 3}, {}),
    ("unipc", {"solver_order": 1}, {}),
    ("unipc", {"solver_order": 3}, {}),
    ("unipc", {"solver_order": 3, "solver_type": "bh1", **MIN}, {}),
    ("unipc", {"solver_type": "bh1", **MIN}, {}),
    ("unipc", {"solver_order": 3, "predict_x0": False, **MIN}, {}),
    ("unipc", {"predict_x0": False, "solver_type": "bh1", "lower_order_final": False, **MIN}, {}),
    ("dpmpp-2m", {"solver_type": "heun"}, {}),
    ("dpmpp-2m", {"lower_order_final": False}, {}),
    ("dpmpp-2m", MIN, {}),
    ("dpmpp-3m", {"lower_order_final": False, **MIN}, {}),
    ("dpmpp-2m-sde", {"solver_type": "heun"}, {}),
    ("dpmpp-2s", {"solver_type": "heun"}, {}),
    ("dpm-solver-2", {"solver_type": "heun"}, {}),
    ("dpm-solver-3", {"lower_order_final": False}, {}),
    ("euler", {"steps_offset": 1}, {"spacing": "leading"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("solver, same, ours", VARIANTS, ids=str)
@pytest.mark.parametrize("steps", [7, 16])
def test_options(solver, same, ours, steps):
    """diffusers' words for its options are ours."""
    scheduler, config, options = PEERS[solver]
    plan = pf.make_plan(solver, LINEAR, steps=steps, compat="diffusers", **{**options, **same, **ours})
    spacing = {"timestep_spacing": ours["spacing"]} if ours else {}
    compare(scheduler, plan, model(LINEAR), {**config, **same, **spacing}, steps)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("lower", [True, False])
def test_singlestep(solver_type, order, lower):
    """Noise prediction: diffusers' second stage of half a slope, and the orders at its end."""
    config = {
        "algorithm_type": "dpmsolver",
        "solver_order": order,
        "solver_type": solver_type,
        "lower_order_final": lower,
        **MIN,
    }
    for steps in (1, 2, 3, 4, 5, 6, 16, 18):
        plan = SCHEDULERS["DPMSolverSinglestepScheduler"](LINEAR, steps, **config)
        compare("DPMSolverSinglestep", plan, model(LINEAR), config, steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", ["ddim", "dpmpp-2m", "unipc", "euler-ancestral", "heun", "lms", "plms", "f-pndm", "deis"]
)
@pytest.mark.parametrize("name", ["scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_other_schedules(solver, name):
    """Leading, which starts the cosine schedule where alpha-bar still has digits."""
    scheduler, config, options = PEERS[solver]
    if name == "sigmoid":
        betas = 1e-4 + (0.02 - 1e-4) / (1 + np.exp(-np.linspace(-6, 6, 1000)))
        schedule, betas = pf.Schedule.sigmoid(), {"trained_betas": betas.tolist()}
    elif name == "scaled_linear":
        schedule, betas = pf.Schedule.scaled_linear(), LATENT
    else:
        schedule, betas = pf.Schedule.cosine(), {"beta_schedule": name}
    plan = pf.make_plan(solver, schedule, steps=20, spacing="leading", compat="diffusers", **options)
    compare(scheduler, plan, model(schedule), {**config, **betas, "timestep_spacing": "leading"}, 20)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc", "euler", "euler-ancestral", "ddpm"])
def test_zero_terminal_snr(solver):
    """v-prediction; the schedulers of sigma put alpha-bar = 2^-24 for 0."""
    scheduler, config, options = PEERS[solver]
    schedule = LINEAR.zero_terminal_snr()
    config = {
        **config,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    plan = pf.make_plan(solver, schedule, steps=10, spacing="trailing", prediction="v", compat="diffusers", **options)
    compare(scheduler, plan, mixture(schedule, "v"), config, 10, bound=1e-7)  # of cumprod(1 - beta) near 0


@pytest.mark.parametrize("scheduler, solver", [("EDMEuler", "euler"), ("EDMDPMSolverMultistep", "dpmpp-2m")])
def test_edm(scheduler, solver):
    """The raw network inside EDM's preconditioning, told log(sigma) / 4."""

    def network(x, t):
        return torch.tanh(x + t.view(-1, 1))

    schedule = pf.Schedule.edm(sigma_data=0.5)
    for steps in (4, 10, 25):
        plan = pf.make_plan(solver, schedule, steps=steps, prediction="edm")
        peer = trajectory(scheduler, network, START, steps, {})
        x = pf.sample(network, solver=plan, start=pf.State(peer.start))
        assert plan.times == pytest.approx(peer.times, rel=1e-12)
        assert relative(x, peer.final) < 1e-9


@pytest.mark.parametrize("scheduler, solver", [("FlowMatchEulerDiscrete", "euler"), ("FlowMatchHeunDiscrete", "heun")])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(scheduler, solver, shift):
    schedule = pf.Schedule.flow(shift, 1000)
    network = mixture(schedule, "flow")
    for steps in (4, 10, 25):
        peer = trajectory(scheduler, network, START, steps, {"shift": shift})
        sigmas = [peer.seen[0].sigma, *(level.sigma for level in peer.levels)]
        plan = pf.make_plan(solver, schedule, sigmas=sorted(set(sigmas), reverse=True), prediction="flow")
        x = pf.sample(network, solver=plan, start=pf.State(peer.start))
        assert plan.times == pytest.approx(peer.times, rel=1e-12)
        assert relative(x, peer.final) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc", "euler", "lms", "f-pndm", "ddim"])
def test_a_network(solver):
    """A random U-Net in float64; and stock diffusers in float32 to its rounding."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(8, 1, 1, **blocks, **kinds).double().eval()

    def network(x, t):
        with torch.no_grad():
            return unet(x.view(-1, 1, 8, 8).double(), t).sample.view(x.shape).to(x.dtype)

    start = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scheduler, config, options = PEERS[solver]
    plan = pf.make_plan(solver, LINEAR, steps=10, compat="diffusers", **options)
    x = pf.sample(network, solver=plan, start=pf.Noise(start))
    assert relative(x, trajectory(scheduler, network, start, 10, config).final) < 1e-9
    assert relative(x, trajectory(scheduler, network, start, 10, config, stock=True).final) < 5e-5


def response(plan, schedule):
    """Variance of the last state for data N(0, 1/4), of unit inputs: the network is linear."""
    inputs = plan.nfe + 2
    eye = torch.eye(inputs, dtype=torch.float64).view(inputs, inputs, 1)

    def network(x, t):
        alpha, sigma = float(schedule.alpha(float(t[0]))), float(schedule.sigma(float(t[0])))
        return sigma * x / (alpha**2 / 4 + sigma**2)

    out = draw(
        network, solver=plan, start=pf.Noise(eye[:, 0].contiguous()), noise_sampler=lambda i: eye[:, i].contiguous()
    )
    return float(out.square().sum()) / 0.25


@pytest.mark.slow
def test_third_order_sde_keeps_the_variance():
    """diffusers' third-order SDE ends above 1.2 here; with the integral's weights the variance is right."""
    schedule = LINEAR.interpolate("sigma")
    assert abs(response(pf.make_plan("dpmpp-3m-sde", schedule, steps=100, exact=True), schedule) - 1) < 0.01
    assert abs(response(pf.make_plan("dpmpp-3m-sde", schedule, steps=100), schedule) - 1) < 0.05
    assert abs(response(pf.make_plan("dpmpp-2m-sde", schedule, steps=100), schedule) - 1) < 0.04


@pytest.mark.slow
def test_noises_of_one_path():
    """Independent normals of a step's stage and end leave the variance 11 % short at n = 100."""
    plans = [pf.make_plan("dpmpp-sde", LINEAR, steps=100, spacing="linspace", one_path=p) for p in (True, False)]
    one, independent = (response(plan, LINEAR) for plan in plans)
    assert abs(one - 1) < 0.03 < 0.08 < abs(independent - 1)


def test_churn_before_the_call():
    """arXiv:2206.00364, algorithm 2, by hand, in unscaled data; the variance is right, as it is not in diffusers."""
    schedule = pf.Schedule.edm(sigma_max=80.0)
    network = mixture(schedule)
    plan = pf.make_plan("edm", schedule, steps=12, churn=5.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
    x = draw(network, solver=plan, start=pf.Noise(START), noise_sampler=lambda i: normal(i))
    sigmas = [*pf.make_plan("euler", schedule, steps=12).times, 0.0]
    y = 80.0 * START
    for i in range(12):
        gamma = min(5.0 / 12, 2**0.5 - 1) if 0.05 <= sigmas[i] <= 50.0 else 0.0
        hat = sigmas[i] * (1 + gamma)
        y = y + (hat**2 - sigmas[i] ** 2) ** 0.5 * 1.003 * normal(1 if i == 0 else 2 * i + 1)
        slope = network(y, hat)
        end = y + (sigmas[i + 1] - hat) * slope
        if sigmas[i + 1] > 0:
            end = y + (sigmas[i + 1] - hat) * (slope + network(end, sigmas[i + 1])) / 2
        y = end
    assert relative(x, y) < 1e-12
