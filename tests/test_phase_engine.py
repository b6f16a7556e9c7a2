"""The engine on samples of position and momentum: backends, batches, graphs, and what a call may ask for."""

import math

import numpy as np
import pytest
import torch
from drawing import Reporting, draw
from golden_data import PHASE

import pndm_fast as pf
from pndm_fast.demo import gaussian_mixture
from pndm_fast.phase_space import PSLD, MomentumOnly, Preconditioning, momentum, position
from pndm_fast.plan.matrix2 import matrix

SHAPE = (3, 2, 5)  # halves that are no multiple of Philox's four
pytestmark = pytest.mark.filterwarnings("ignore:.* diverges in")
PROCESS = PSLD()
CLD = PSLD(gamma=0.0, nu=4.0)


def pointwise(x, t, shift=0.0):
    """Two rounded operations an element, either half reading the other."""
    return x.flip(1) * 0.5 + (t * 0.25 + shift).view(-1, *[1] * (x.dim() - 1))


def plan_of(solver, steps=5, **options):
    return pf.make_plan(solver, PROCESS, steps=steps, **options)


@pytest.mark.parametrize("solver", PHASE)
def test_cpp_leaves_the_reference_s_bits(solver):
    assert_same_bits(solver, "cpp")


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["em", "sscs", "cse", "nobab", "conjugate"])
def test_triton_leaves_the_reference_s_bits(solver):
    assert_same_bits(solver, "triton")


def assert_same_bits(solver, backend):
    ours, wanted = (
        draw(pointwise, solver=plan_of(solver), shape=SHAPE, seeds=9, backend=each) for each in (backend, "reference")
    )
    assert torch.equal(ours, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", ["sscs", "conjugate"])
def test_narrow_networks(solver, dtype):
    def network(x, t):  # with the state small enough for float16: such a network does not hold it back
        assert x.dtype is dtype
        return (x.float().flip(1) * 0.5 + 1e-3).to(dtype)

    noise = torch.randn(2, 2, 48) * 1e-3
    plan = plan_of(solver, **({"order": 3} if solver == "conjugate" else {}))
    by = [
        draw(network, solver=plan, start=pf.Noise(noise), dtype=dtype, backend=backend)
        for backend in ("reference", "cpp", "triton")
    ]
    assert torch.equal(by[0], by[1]) and torch.equal(by[0], by[2])


def test_a_sample_owes_nothing_to_its_batch():
    """Another place, another batch, another plan beside it, a scalar one among them."""
    plans = [plan_of("roba"), plan_of("conjugate", 7, order=2), plan_of("rvv", 3), pf.make_plan("ddim", steps=4)]
    sampler = Reporting(pointwise, plans[0], shape=(1, *SHAPE[1:]))
    together = sampler(seeds=range(4), plan=plans)
    for i, plan in enumerate(plans):
        assert torch.equal(together[i : i + 1], sampler(seeds=i, plan=plan))


def test_channels_last_outputs():
    def network(x, t):
        return pointwise(x, t).contiguous(memory_format=torch.channels_last)

    shape, plan = (2, 4, 3, 5), plan_of("sscs")
    assert torch.equal(pf.sample(network, solver=plan, shape=shape), pf.sample(pointwise, solver=plan, shape=shape))


@pytest.mark.parametrize("graph", ["while", "replay"])
@pytest.mark.parametrize("solver", PHASE)
@pytest.mark.usefixtures("stand_in")
def test_graphs_leave_the_bits_of_eager(solver, graph):
    captured, eager = (Reporting(pointwise, plan_of(solver), shape=SHAPE, graph=mode) for mode in (graph, "eager"))
    for seed in (0, 7):
        assert torch.equal(captured(seeds=seed), eager(seeds=seed))
    assert captured.report.graph == graph and captured.report.captures == 1


@pytest.mark.usefixtures("stand_in")
def test_a_graph_serves_every_phase_plan_of_its_form():
    sampler = Reporting(pointwise, plan_of("rvv"), shape=SHAPE, graph="while")
    for plan in (plan_of("rvv"), plan_of("sscs", 9), plan_of("conjugate", order=4)):
        eager = pf.sample(pointwise, solver=plan, shape=SHAPE, seeds=3)
        assert torch.equal(sampler(plan=plan, seeds=3), eager)
    assert sampler.report.captures == 1


def test_guidance():
    plan = plan_of("roba")
    shifts = torch.tensor([0.5, -0.25, 1.0])

    def network(x, t, shift):
        return pointwise(x, t, shift)

    def guided(x, t):
        low, high = (pointwise(x, t, s) for s in (torch.zeros(3), shifts))
        return low + 3.0 * (high - low)

    ours = pf.sample(
        network, solver=plan, shape=SHAPE, cond={"shift": shifts}, uncond={"shift": shifts * 0}, guidance=3.0
    )
    torch.testing.assert_close(ours, pf.sample(guided, solver=plan, shape=SHAPE), rtol=1e-4, atol=1e-4)


def test_guidance_interval_is_the_positions():
    plan = plan_of("em", 9)
    low, high = 0.3, 3.0
    for row in plan.with_guidance(4.0, (low, high)):
        alpha, sigma = matrix(row.levels.call.alpha), matrix(row.levels.call.sigma)
        ratio = math.sqrt((sigma @ sigma.T)[0, 0]) / alpha[0, 0]
        assert row.guidance == (4.0 if low < ratio <= high else 1.0)
    assert {row.guidance for row in plan.with_guidance(4.0, (low, high))} == {1.0, 4.0}


def test_two_networks():
    """T-Stitch: the history goes on."""
    plan = plan_of("conjugate", 6, order=3)
    sampler = Reporting([pointwise, pointwise], plan.with_models([0, 0, 1, 1, 0, 1]), shape=SHAPE)
    assert torch.equal(sampler(seeds=4), pf.sample(pointwise, solver=plan, shape=SHAPE, seeds=4))


def blocks_times(block, tensor):
    halves = tensor.chunk(2, dim=1)
    return torch.cat([sum(c * half for c, half in zip(row, halves, strict=True)) for row in block], dim=1)


def test_image_to_image_starts_at_the_plans_level():
    data = torch.randn(SHAPE, dtype=torch.float64)
    data[:, 1:] = 0  # there is no momentum in an image
    noise = torch.randn(SHAPE, dtype=torch.float64)
    plan = plan_of("conjugate", 9, strength=0.5)
    t = plan.times[0]
    assert 0.05 < t < 0.5
    state = blocks_times(PROCESS.transition(t), data) + blocks_times(PROCESS.cholesky(t), noise)
    ours = pf.sample(pointwise, solver=plan, start=pf.Image(data, noise))
    torch.testing.assert_close(ours, pf.sample(pointwise, solver=plan, start=pf.State(state)), rtol=1e-12, atol=1e-12)


def test_inpainting_keeps_what_is_known():
    known = torch.randn(SHAPE)
    mask = torch.zeros(SHAPE)
    mask[..., 3:] = 1
    x = position(pf.sample(pointwise, solver=plan_of("sscs", 8), start=pf.Inpaint(known, mask), shape=SHAPE))
    assert torch.equal(x[..., :3], position(known)[..., :3])
    assert not torch.allclose(x[..., 3:], position(known)[..., 3:], atol=0.1)


def test_previews():
    """x_0 and m_0 that the network's eps stands for, with the state that it saw."""
    seen = []

    def network(x, t):
        seen.append((x.clone(), float(t[0])))
        return pointwise(x, t)

    def look(step):
        z, t = seen[-1]
        a, b = PROCESS.data(t)
        wanted = blocks_times(a, z) + blocks_times(b, pointwise(z, torch.full((3,), t, dtype=z.dtype)))
        torch.testing.assert_close(step.x0, wanted, rtol=1e-9, atol=1e-9)

    draw(network, solver=plan_of("conjugate", 5, order=2), start=pf.Noise(torch.randn(*SHAPE).double()), on_step=look)
    assert len(seen) == 5


@pytest.mark.parametrize("solver", ["rvv", "sscs"])
def test_clip(solver):
    """A network whose estimate is out of bounds is one that says the bound."""

    def saying(x0):
        def network(z, t):
            a, b = PROCESS.data(float(t[0]))
            data = torch.cat([torch.full_like(position(z), x0), torch.zeros_like(momentum(z))], 1)
            return blocks_times(torch.linalg.inv(torch.from_numpy(b)), data - blocks_times(a, z))

        return network

    noise = torch.randn(*SHAPE).double()
    noises = {"start": pf.Noise(noise), "noise_sampler": lambda i: noise}
    clipped = draw(saying(5.0), solver=plan_of(solver, clip=0.75), **noises)
    torch.testing.assert_close(clipped, draw(saying(0.75), solver=plan_of(solver), **noises))


def plan_with(skip):
    def same(t):
        return np.eye(2)

    return pf.make_plan("em", PSLD(preconditioning=Preconditioning(skip, same, same)))


def test_the_default_solver_on_a_process_is_autos():
    plan = pf.make_plan(schedule=PROCESS, nfe=20)
    assert plan == pf.make_plan("auto", PROCESS, nfe=20) and plan.solver == "conjugate"
    x = pf.sample(pointwise, nfe=20, schedule=PROCESS, shape=SHAPE)
    assert torch.equal(x, pf.sample(pointwise, solver=plan, shape=SHAPE))


def test_blocks_may_be_lists_or_arrays():
    wanted = plan_of("conjugate", B=((1.0, 0.5), (0.0, 1.0)))
    assert plan_of("conjugate", B=[[1.0, 0.5], [0.0, 1.0]]) == wanted
    assert plan_of("conjugate", B=np.array([[1.0, 0.5], [0.0, 1.0]])) == wanted


def test_momentum_only_plans_are_read_back_and_need_no_copy_of_the_state(tmp_path):
    plan = pf.make_plan("conjugate", PSLD(gamma=0.0, nu=4.0).momentum_only(), steps=5)
    plan.save(tmp_path / "plan.json")
    assert pf.Plan.load(tmp_path / "plan.json") == plan
    sampler = Reporting(pointwise, plan, shape=(2, 2, 16, 16))
    sampler()  # careful, as any first call
    sampler()
    assert sampler.report.direct


HALF = MomentumOnly(pointwise)
GUIDANCE = {"guidance": 2.0, "cond": {"shift": 0.0}, "uncond": {"shift": 0.0}}


@pytest.mark.parametrize(
    "model, options",
    [
        (HALF, {}),
        (torch.nn.DataParallel(HALF).eval(), {}),
        (torch.compile(HALF), {}),
        (pointwise, {**GUIDANCE, "guidance": pf.Guidance(2.0, weaker=HALF)}),
    ],
    ids=["itself", "data parallel", "compiled", "weaker"],
)
def test_what_knows_the_momentum_alone_is_not_sampled_as_if_it_knew_both(model, options):
    with pytest.raises(ValueError, match=r"momentum_only\(\) for a network of the momentum alone"):
        pf.sample(model, 5, schedule=CLD, shape=SHAPE, **options)


def test_another_attribute_of_that_name_says_nothing():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("momentum_only", torch.zeros(3))

        def forward(self, x, t):
            return pointwise(x, t)

    assert torch.equal(
        pf.sample(Network().eval(), 5, schedule=CLD, shape=SHAPE), pf.sample(pointwise, 5, schedule=CLD, shape=SHAPE)
    )


def test_strided_outputs():
    def network(x, t):
        out = pointwise(x, t)
        return torch.cat([out, out], dim=-1)[..., : out.shape[-1]]

    plan = plan_of("em")
    sampler = Reporting(network, plan, shape=SHAPE)
    assert torch.equal(sampler(), pf.sample(pointwise, solver=plan, shape=SHAPE)) and sampler.report.copied


def test_channels_last_cannot_be_asked_for():
    sampler = pf.Sampler(pointwise, plan_of("em"), shape=(2, 4, 3, 5), memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="memory_format must be contiguous_format in phase space"):
        sampler()


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: pf.sample(pointwise, solver="rvv", shape=(2, 3, 8)),
            "shape must be .* with an even second entry for rvv",
        ),
        (lambda: pf.make_plan("f-pndm", PROCESS), "solver must be one of coba, .* on psld"),
        (lambda: pf.make_plan("rvv", pf.Schedule.linear()), "solver must be one of .* on linear, got 'rvv'"),
        (lambda: pf.make_plan("em", spacing="karras"), "spacing must be one of uniform, quadratic, got 'karras'"),
        (lambda: pf.make_plan("em", sigmas=[1.0, 0.5]), "sigmas cannot go with psld"),
        (lambda: pf.make_plan("em", times=[1.5, 0.5]), r"times must be in \[0, 1\], got 1.5"),
        (lambda: pf.make_plan("em", prediction="v"), "prediction must be 'eps' for em, got 'v'"),
        (lambda: pf.make_plan("em", integer_times=True), "integer_times must have a discrete schedule"),
        (lambda: pf.make_plan("euler", PROCESS, compat="diffusers"), "compat='diffusers' cannot go with psld"),
        (lambda: pf.make_plan("em", t_min=0.0), r"t_min must be in \(0, 1\), got 0"),
        (lambda: pf.make_plan("rvv", nfe=20), "nfe must be 2 n - 1 for rvv, such as 19 or 21, got 20"),
        (lambda: pf.make_plan("rvv", last="middle"), "last must be one of start, end, got 'middle'"),
        (lambda: pf.make_plan("roba", sequence="ABO"), "sequence must be one of OBA, BAO, got 'ABO'"),
        (lambda: pf.make_plan("roba", score_time=0.5), "score_time must be str, got 0.5"),
        (lambda: pf.make_plan("em", denoise="no"), "denoise must be one of ode, sde, got 'no'"),
        (lambda: pf.make_plan("conjugate", PROCESS, frame="Q"), "frame must be one of L, R, got 'Q'"),
        (lambda: pf.make_plan("conjugate", PROCESS, B=(1.0, 2.0)), "B must be a number or two rows of two numbers"),
        (lambda: pf.make_plan("conjugate", PROCESS, B="1"), "B must be a number or two rows of two numbers"),
        (lambda: pf.make_plan("conjugate", PROCESS, B=1e3), r"B must be in \[-100, 100\]"),
        (lambda: pf.make_plan("conjugate", B=((1.0, 0.0), (1.0, 1.0))), "B must be a number outside phase space"),
        (lambda: pf.make_plan("conjugate", steps=9, frame="R"), "frame must go with a PSLD, got 'R'"),
        (lambda: pf.make_plan("conjugate", steps=9, denoise="sde"), "denoise must go with a PSLD, got 'sde'"),
        (lambda: pf.make_plan("conjugate", PROCESS, B=True), "B must be a number or two rows of two numbers, got True"),
        (lambda: pf.make_plan("conjugate", PROCESS, B=[["1", 1], [1, 1]]), "B must be a number or two rows"),
        (lambda: PSLD(beta=[8, [1]]), "beta must be a positive number, or two"),
        (lambda: PSLD(beta=(1.0, 2.0, 3.0)), "beta must be a positive number, or two"),
        (lambda: PSLD(beta="8"), "beta must be a positive number, or two"),
        (lambda: CLD.preconditioned(0.5).momentum_only(), "preconditioning must be None, got one already"),
        (lambda: CLD.momentum_only().preconditioned(0.5), "preconditioning must be None, got one already"),
        (lambda: pf.make_plan(schedule=PROCESS, compat="diffusers"), "compat='diffusers' cannot go with psld"),
        (
            lambda: pf.solvers.conjugate(PSLD(gamma=0.0, nu=4.0, jitter=0.0), [1.0, 1e-14]),
            "jitter must be larger where times are as small as 1e-14",
        ),
        (lambda: pf.Thresholded(pointwise, plan_of("em")), "plan must be of one part"),
        (lambda: PSLD(beta=100.0), "beta must leave more of the data at t = 1 than 1 part in 1e+.?30, got 100"),
        (lambda: PSLD(preconditioning=Preconditioning("a", 1.0, 1.0)), "preconditioning.skip must be a function"),
        (lambda: PSLD().preconditioned("a"), "deviation must be positive, got 'a'"),
        (
            lambda: plan_with(lambda t: 1.0),
            r"preconditioning.skip must return a finite 2x2 matrix, got 1.0 at t = 1",
        ),
        (lambda: plan_with(lambda t: np.full((2, 2), np.nan)), "preconditioning.skip must return a finite"),
        (
            lambda: pf.make_plan("em", PSLD(gamma=0, nu=4, kappa=0, jitter=0), times=np.geomspace(1.0, 1e-9, 60)),
            "jitter must be larger where times are as small as .*e-",
        ),
        (
            lambda: pf.sample(pointwise, solver=pf.make_plan("em", PSLD(beta=(0.5, 1.0))), shape=SHAPE),
            "the grid starts pure noise at t = 1, where alpha is .*: begin at t = 1",
        ),
        (lambda: pf.solvers.ddim(PROCESS, [1.0, 0.5]), "schedule must be a Schedule for ddim, got PSLD"),
        (lambda: pf.solvers.conjugate(None, [1.0, 0.5]), "schedule must be a Schedule for conjugate, got NoneType"),
        (lambda: gaussian_mixture(PROCESS, [[0.0]], 1.0), "schedule must have alpha and sigma, got PSLD"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
