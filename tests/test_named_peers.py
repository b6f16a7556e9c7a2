"""diffusers' own float64 trajectories of samplers that have no compat plan: our plans on their grids.

Where they differ from the papers, and so from us: SASolver replaces its second-order weights by others of the same
order, which its authors' code calls an improvement for few steps; it is compared at order 1, and
`test_named_solvers.py` has the formula. KDPM2's and TCD's told times are taken as they are.
"""

import math
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the peer is diffusers")
from drawing import draw
from gaussian_case import NORMALS, START, network, relative, run
from peers import _Widened

import pndm_fast as pf

LINEAR = pf.Schedule.linear().interpolate("sigma")  # as they interpolate
STATE = torch.from_numpy(START)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.* diverges in", "ignore:the grid (starts|ends)", "ignore:.* has no effect"
)


def ours(plan, told=None, state=STATE, net=None, draws=None):
    """Our plan on the same network, told the same times; `draws` are the calls whose rows the peer's normals are of."""
    order = list(range(len(plan))) if draws is None else draws
    return draw(
        net or network(),
        solver=plan if told is None else plan.with_times(told),
        start=pf.State(state),
        noise_sampler=lambda i: torch.from_numpy(NORMALS[order.index(i - 2)]),
    )


@pytest.mark.parametrize("n", [2, 5, 12])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_kdpm2(n, spacing):
    for name, solver in (("KDPM2Discrete", "dpm-2"), ("KDPM2AncestralDiscrete", "dpm-2-ancestral")):
        peer = run(name, n, timestep_spacing=spacing)
        plan = pf.make_plan(solver, LINEAR, times=[*peer.times[::2], -1])
        state = peer.start / math.hypot(*peer.seen[0])
        assert relative(ours(plan, peer.times, state, draws=peer.draws), peer.final) < 1e-10, name


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_tcd(n, eta):
    peer = run("TCD", n, eta=eta)
    times = [*peer.times, 0]
    plan = pf.make_plan("tcd", pf.Schedule.linear(), times=times, integer_times=True, eta=eta, final="min")
    assert relative(ours(plan), peer.final) < 1e-12


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ltx(eta):
    sigmas = [1.0, 0.94, 0.8, 0.55, 0.3, 0.1, 0.0]

    def flow(x, t):
        return torch.sin(1.3 * x) + x * (t / 2000).view(-1, 1, 1, 1)

    from diffusers.schedulers import scheduling_ltx_euler_ancestral_rf as module

    normals, x = iter(NORMALS), STATE
    names = {"torch": _Widened(torch), "randn_tensor": lambda *_, **__: torch.from_numpy(next(normals))}
    with mock.patch.multiple(module, **names):
        scheduler = module.LTXEulerAncestralRFScheduler(eta=eta)
        scheduler.set_timesteps(sigmas=sigmas)
        for t in scheduler.timesteps[:-1]:
            x = scheduler.step(flow(x, t.expand(len(x))), t, x).prev_sample
    plan = pf.make_plan(
        "euler-ancestral", pf.Schedule.flow(T=1000), sigmas=sigmas, prediction="flow", eta=eta, split="flow"
    )
    assert relative(ours(plan, net=flow), x) < 1e-11  # 1e-12 is in its denominators


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_sa_solver_of_order_one(tau):
    config = {"predictor_order": 1, "corrector_order": 1, "tau_func": lambda t: tau, "timestep_spacing": "trailing"}
    for n in (4, 10):
        peer = run("SASolver", n, **config)
        plan = pf.make_plan(
            "sa-solver", pf.Schedule.linear(), times=[*peer.times, 0], final="min", order=1, corrector_order=1, tau=tau
        )
        assert relative(ours(plan), peer.vp_states[-1]) < 1e-9


def test_scm():
    """Its step for two calls: TrigFlow's network is v in units of sigma_data, its sampler tcd at eta = 1."""
    from diffusers import SCMScheduler

    angles = [1.57, 1.3, 0.0]
    scheduler, data = SCMScheduler(sigma_data=0.5), 0.5
    scheduler.set_timesteps(2, timesteps=angles, max_timesteps=None, intermediate_timesteps=None)
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    schedule = pf.Schedule.trigflow()

    def output(x, t):
        return torch.tanh(0.7 * x) + t.view(-1, 1, 1, 1) / 9

    x = STATE.float() * data
    for t in scheduler.timesteps[:-1]:
        out = output(x / data, t.expand(len(x))) * data
        x = scheduler.step(out, t, x, generator=generator, return_dict=False)[0]
    normals = [torch.randn(STATE.shape, generator=again).double() for _ in range(2)]
    plan = pf.make_plan("tcd", schedule, times=angles, prediction="v", eta=1.0)
    got = draw(output, solver=plan, start=pf.State(STATE), noise_sampler=lambda i: normals[i - 2])
    assert relative(got * data, x.double()) < 2e-6  # its float32


def test_trigflow_s_levels():
    schedule = pf.Schedule.trigflow()
    t = np.linspace(0, math.pi / 2, 9)
    assert schedule.alpha(t) == pytest.approx(np.cos(t), abs=1e-15)
    assert schedule.sigma(t) == pytest.approx(np.sin(t), rel=1e-15) and schedule.alpha(math.pi / 2) == 0
    inside = np.array([1e-6, 0.3, 1.2, 1.57])
    assert schedule.time_at(schedule.lam(inside)) == pytest.approx(inside, rel=1e-13)
    assert schedule.time(schedule.log_alpha_bar(inside[1:])) == pytest.approx(inside[1:], rel=1e-12)
    assert schedule.log_alpha_slope(0.3) == pytest.approx(-math.tan(0.3))
    plan = pf.make_plan("ddim", schedule, steps=4, prediction="v")
    assert plan.start.alpha == 0 and plan.times[0] == math.pi / 2
