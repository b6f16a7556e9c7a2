"""diffusers' float64 trajectories are the published formulas, written as direct loops: states of every step."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the peer is diffusers")
import transcriptions as direct
from gaussian_case import MIN, MODEL, NORMALS, SDE, SPACINGS, START, difference, normal, relative, run
from peers import trajectory

pytestmark = pytest.mark.slow  # of diffusers alone
STEPS = [4, 10, 25, pytest.param(50, marks=pytest.mark.stress)]


def ramp(n, order, *last):
    return direct.ramp(n, order, last)


def dpm_last(n, config):
    """DPM-Solver's lowered orders at the end: 2, 1 below 15 steps, else 1 where sigma ends at 0."""
    if n < 15:
        return (2, 1)
    return () if config.get("final_sigmas_type") == "sigma_min" else (1,)


CASES = {
    "ddim": ("DDIM", {}, lambda p, n: difference(p, direct.ddim)),
    "ddim-eta": ("DDIM", {"eta": 0.7}, lambda p, n: difference(p, direct.ddim, 0.7, normal)),
    "ddpm": ("DDPM", {}, lambda p, n: difference(p, direct.ddim, 1.0, normal)),
    "euler": ("EulerDiscrete", {}, lambda p, n: difference(p, direct.euler)),
    "euler-karras": ("EulerDiscrete", {"use_karras_sigmas": True}, lambda p, n: difference(p, direct.euler)),
    "euler-ancestral": ("EulerAncestralDiscrete", {}, lambda p, n: difference(p, direct.euler_ancestral, normal)),
    "ancestral-is-ddim": ("EulerAncestralDiscrete", {}, lambda p, n: difference(p, direct.ddim, 1.0, normal)),
    "heun": ("HeunDiscrete", {}, lambda p, n: difference(p, direct.heun, stages=2)),
    "lms": ("LMSDiscrete", {}, lambda p, n: difference(p, direct.lms)),
    "lms-2": ("LMSDiscrete", {"order": 2}, lambda p, n: difference(p, direct.lms, 2)),
    "kdpm2": (
        "KDPM2Discrete",
        {},
        lambda p, n: difference(p, direct.midpoint, lambda i: p.times[2 * i + 1], stages=2),
    ),
    "dpmpp-sde": (
        "DPMSolverSDE",
        {},
        lambda p, n: difference(p, direct.dpmpp_sde, lambda i: p.times[2 * i + 1], normal, stages=2),
    ),
}


def add_dpm(name, solver, order, data, **config):
    config = {"algorithm_type": "dpmsolver++" if data else "dpmsolver", "solver_order": order, **config}
    CASES[name] = (
        "DPMSolverMultistep",
        config,
        lambda p, n: difference(p, solver, ramp(n, order, *dpm_last(n, config)), data),
    )


for order in (1, 2, 3):
    add_dpm(f"dpmpp-{order}m", direct.dpm_multistep, order, True)
    add_dpm(f"dpmpp-{order}m-min", direct.dpm_multistep, order, True, **MIN)
    add_dpm(f"dpm-{order}m", direct.dpm_multistep, order, False, **MIN)
    CASES[f"deis-{order}"] = (
        "DEISMultistep",
        {"solver_order": order},
        lambda p, n, order=order: difference(
            p, direct.exponential_adams, ramp(n, order, *((2, 1) if n < 15 else ())), False
        ),
    )
    for variant in ("bh1", "bh2"):
        for corrected in (True, False):
            CASES[f"unipc-{order}-{variant}{'' if corrected else '-predictor'}"] = (
                "UniPCMultistep",
                {"solver_order": order, "solver_type": variant, "disable_corrector": [] if corrected else range(99)},
                lambda p, n, order=order, variant=variant, corrected=corrected: difference(
                    p,
                    direct.unipc,
                    ramp(n, order, *range(order, 0, -1)),
                    variant,
                    True,
                    lambda i, corrected=corrected: corrected,
                ),
            )
add_dpm("dpmpp-2m-heun", direct.exponential_adams, 2, True, solver_type="heun")
add_dpm("dpm-2m-heun", direct.exponential_adams, 2, False, solver_type="heun", **MIN)
for order in (1, 2):
    CASES[f"dpmpp-{order}m-sde"] = (
        "DPMSolverMultistep",
        {"solver_order": order, **SDE},
        lambda p, n, order=order: difference(p, direct.dpm_sde, ramp(n, order, *dpm_last(n, {})), normal),
    )
CASES["dpmpp-2m-sde-heun"] = (
    "DPMSolverMultistep",
    {"solver_type": "heun", **SDE},
    lambda p, n: difference(p, direct.exponential_adams, ramp(n, 2, *dpm_last(n, {})), True, normal),
)
CASES["unipc-noise"] = (
    "UniPCMultistep",
    {"predict_x0": False, **MIN},
    lambda p, n: difference(p, direct.unipc, ramp(n, 2, 2, 1), "bh2", False),
)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("name", CASES)
def test_formula(name, n):
    scheduler, config, compare = CASES[name]
    bound = 1e-9 if name == "ddpm" else 2e-12  # DDPM adds 1e-10 z after its last time above 0
    for spacing in SPACINGS if scheduler != "DDIM" else ("leading", "trailing"):  # its strides lose linspace
        assert compare(run(scheduler, n, timestep_spacing=spacing, **config), n) < bound, spacing


@pytest.mark.parametrize("n", [1, 2, 4, 10, 50])
def test_lcm(n):
    assert difference(run("LCM", n), direct.lcm, normal) < 2e-12


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("data", [True, False])
def test_singlestep(order, data):
    kind = {"algorithm_type": "dpmsolver++"} if data else {"algorithm_type": "dpmsolver", **MIN}
    for n in (4, 9, 10, 11, 25):
        peer = run("DPMSolverSinglestep", n, solver_order=order, lower_order_final=True, **kind)
        assert difference(peer, direct.dpm_singlestep, peer.scheduler.order_list, data) < 2e-12


@pytest.mark.parametrize("kind", ["v", "x0"])
@pytest.mark.parametrize("scheduler", ["DDIM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "LMSDiscrete"])
def test_predictions_are_converted_first(scheduler, kind):
    name = {"v": "v_prediction", "x0": "sample"}[kind]
    for spacing in SPACINGS:
        other = run(scheduler, 10, kind, prediction_type=name, timestep_spacing=spacing)
        assert relative(other.final, run(scheduler, 10, timestep_spacing=spacing).final) < 1e-12


def edm_network(x, t):
    """F of the preconditioned denoiser D = c_skip y + c_out F, y = x / c_in, sigma_data = 1/2; told log(sigma) / 4."""
    sigma = float(np.exp(4 * t[0]))
    scale = np.hypot(sigma, 0.5)
    y = x.numpy() * scale
    clean = y - sigma * MODEL.eps(y / np.hypot(1, sigma), 1 / np.hypot(1, sigma), sigma / np.hypot(1, sigma))
    return torch.from_numpy((clean - 0.25 / scale**2 * y) / (sigma * 0.5 / scale))


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize(
    "scheduler, config, solver, options",
    [
        ("EDMEuler", {}, direct.euler, lambda n: ()),
        ("EDMEuler", {"sigma_schedule": "exponential"}, direct.euler, lambda n: ()),
        ("EDMDPMSolverMultistep", {}, direct.dpm_multistep, lambda n: (ramp(n, 2, *dpm_last(n, {})), True)),
        (
            "EDMDPMSolverMultistep",
            {"solver_order": 3},
            direct.dpm_multistep,
            lambda n: (ramp(n, 3, *dpm_last(n, {})), True),
        ),
        ("EDMDPMSolverMultistep", SDE, direct.dpm_sde, lambda n: (ramp(n, 2, *dpm_last(n, {})), normal)),
    ],
)
def test_edm(scheduler, config, solver, options, n):
    def eps(x, t):
        rho = np.exp(4 * t)
        return MODEL.eps(x, 1 / np.hypot(1, rho), rho / np.hypot(1, rho))

    peer = trajectory(
        scheduler, edm_network, torch.from_numpy(START), n, config, lambda k: torch.from_numpy(NORMALS[k])
    )
    assert difference(peer, solver, *options(n), model=eps) < 1e-11


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow(shift, n):
    """x = (1 - sigma) x0 + sigma eps: Euler and the trapezoid of v = eps - x0 in sigma, Euler to 0."""

    def velocity(x, t):
        alpha, sigma = 1 - t / 1000, t / 1000  # v from E[x0 | x], which alpha = 0 does not upset
        d = MODEL.deviation
        x0 = (alpha * d**2 * x + sigma**2 * MODEL.mean) / (alpha**2 * d**2 + sigma**2)
        return (x - x0) / sigma

    def network(x, t):
        return torch.from_numpy(velocity(x.numpy(), float(t[0])))

    euler, heun = (
        trajectory(f"FlowMatch{name}Discrete", network, torch.from_numpy(START), n, {"shift": shift})
        for name in ("Euler", "Heun")
    )
    sigma, x, y = np.array([*(level.sigma for level in euler.seen), 0.0]), START, START
    for i in range(n):
        h, end = sigma[i + 1] - sigma[i], sigma[i + 1]
        x = x + h * velocity(x, euler.times[i])
        v = velocity(y, euler.times[i])
        y = y + h * (v if end == 0 else (v + velocity(y + h * v, euler.times[i + 1])) / 2)
        assert relative(euler.states[i], x) < 1e-12
    assert relative(heun.final, y) < 1e-12
