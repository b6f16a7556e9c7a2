"""Starts in the middle and samples that are known in part, against direct loops in float64."""

import numpy as np
import pytest
import torch
from drawing import Reporting, draw
from golden_data import mixture
from sampler_case import Conv, Pointwise

import pndm_fast as pf
from pndm_fast.loop.guidance import rescaled

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")
SHAPE = (2, 3, 8, 8)
SCHEDULE = pf.Schedule.linear()


def ddim_loop(network, y, times, put=lambda y, t: y):
    """DDIM, written down; `put` changes the state at a time."""
    y = put(y, times[0])
    for t, s in zip(times, times[1:], strict=False):
        alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
        eps = network(y, torch.full((len(y),), float(t), dtype=y.dtype))
        y = float(SCHEDULE.alpha(s)) * (y - sigma * eps) / alpha + float(SCHEDULE.sigma(s)) * eps
        y = put(y, s)
    return y


def normal(seed, shape=(3, 8)):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("middle", [{"t_start": 590}, {"strength": 0.6}])
def test_image_to_image_is_the_loop_from_there(middle):
    network, init, noise = mixture(SCHEDULE), normal(0), normal(1)
    plan = pf.make_plan("ddim", SCHEDULE, steps=10, **middle)
    assert plan.times == (500.0, 400.0, 300.0, 200.0, 100.0, 0.0)
    got = pf.sample(network, solver=plan, start=pf.Image(init, noise))
    y = float(SCHEDULE.alpha(500)) * init + float(SCHEDULE.sigma(500)) * noise
    wanted = ddim_loop(network, y, [*plan.times, -1.0])
    assert torch.allclose(got, wanted, atol=1e-12)
    assert torch.equal(got, draw(network, 10, solver="ddim", schedule=SCHEDULE, start=pf.Image(init, noise), **middle))


@pytest.mark.parametrize("solver", ["f-pndm", "s-pndm", "plms", "fon"])
def test_a_start_in_the_middle_has_a_warm_up_of_its_own(solver):
    whole, part = (pf.make_plan(solver, SCHEDULE, steps=20, **extra) for extra in ({}, {"t_start": 700}))
    assert part.times[0] == 700 and part.nfe - part.steps == whole.nfe - whole.steps
    assert part.rows == pf.make_plan(solver, SCHEDULE, times=[*range(700, -1, -50), -1]).rows


@pytest.mark.filterwarnings("ignore:.* diverges in")  # four steps are few
def test_a_noisy_start_keeps_its_churn():
    """What a prologue adds comes on top: the data is noised to the level below it."""
    schedule = pf.Schedule.edm()
    plan = pf.make_plan("edm", schedule, steps=6, churn=3.0, t_start=10.0, prediction="x0")
    alpha, sigma = plan.entry
    assert alpha == pytest.approx(1.0) and sigma < plan.start.sigma and sigma <= 10.0
    init, noise, z = torch.full((1, 8), 3.0), torch.ones(1, 8), 0.5
    seen = []

    def normals(index):
        return noise if index == 0 else torch.full((1, 8), z)

    draw(lambda x, t: seen.append(x.clone()) or x * 0, solver=plan, start=pf.Image(init), noise_sampler=normals)
    y = (3.0 * alpha + sigma) * plan.prologue.a0 + plan.prologue.c0 * z
    assert torch.allclose(seen[0], torch.full((1, 8), y * plan.rows[0].in_scale), rtol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixed_starts_of_one_batch(layout):
    def network(x, t):
        return (x * 0.5 + (t / 1000).view(-1, 1, 1, 1)).contiguous(memory_format=layout)

    plans = [pf.make_plan("ddim", steps=8, t_start=900), pf.make_plan("plms", steps=8, t_start=400)]
    init = torch.randn(SHAPE)
    sampler = Reporting(network, plans[0], shape=SHAPE)
    both = sampler(plan=plans, start=pf.Image(init), seeds=3)
    for b, plan in enumerate(plans):
        assert torch.equal(both[b : b + 1], sampler(plan=plan, start=pf.Image(init[b : b + 1]), seeds=[3 + b]))


@pytest.mark.parametrize("solver", ["ddim", "plms", "f-pndm"])
def test_what_is_known_is_there_in_the_end(solver):
    known, mask = torch.rand(SHAPE), (torch.rand(2, 1, 8, 8) > 0.5).float()
    got = pf.sample(Conv(), 8, solver=solver, start=pf.Inpaint(known, mask), seeds=5)
    free = pf.sample(Conv(), 8, solver=solver, shape=SHAPE, seeds=5)
    kept = mask.expand(SHAPE) == 0
    assert torch.allclose(got[kept], known[kept], atol=1e-6) and not torch.equal(got[~kept], free[~kept])


def test_inpainting_is_the_loop_that_puts_the_known_part():
    network, known, noise = mixture(SCHEDULE), normal(2), normal(3)
    mask = torch.tensor([1.0, 0.0] * 4)

    def put(y, t):
        at = float(SCHEDULE.alpha(t)) * known + float(SCHEDULE.sigma(t)) * noise
        return torch.where(mask.bool(), y, at)

    got = pf.sample(network, 12, solver="ddim", start=pf.Inpaint(known, mask, pf.Noise(noise)))
    times = [*pf.make_plan("ddim", SCHEDULE, steps=12).times, -1.0]
    assert torch.allclose(got, ddim_loop(network, noise, times, put), atol=1e-12)


@pytest.mark.parametrize("graph", ["while", "replay"])
def test_both_in_graphs_and_padded(stand_in, graph):
    plan = pf.make_plan("plms", steps=8, strength=0.75)
    known, init, mask = torch.rand(3, *SHAPE[1:]), torch.rand(3, *SHAPE[1:]), torch.zeros(8, 8)
    mask[2:5] = 1
    captured = Reporting(Pointwise(), plan, shape=SHAPE, graph=graph)
    captured.prepare([4])
    arguments = {"seeds": range(3), "start": pf.Inpaint(known, mask, pf.Image(init))}
    steps = []
    got = captured(**arguments, on_step=lambda step: steps.append(step.state))
    wanted = Reporting(Pointwise(), plan, shape=SHAPE, graph="eager")(**arguments)
    assert torch.equal(got, wanted) and captured.report.graph == graph and torch.equal(steps[-1], got)


NEED = torch.zeros(SHAPE)
BAD = {
    "strength 0": ({"strength": 0.0}, "strength must be in (0, 1]"),
    "strength and t_start": ({"strength": 0.5, "t_start": 300}, "exclude each other"),
    "too late": ({"t_start": -1}, "t_start must leave at least 1 steps"),
    "a word": ({"t_start": "half"}, "t_start must be"),
    "compat": ({"strength": 0.5, "solver": "plms", "compat": "diffusers"}, "strength cannot go with compat"),
    "a tensor": ({"start": NEED}, "start must be a Noise, State, Image or Inpaint, which says what its tensor is"),
    "inpainting within": (
        {"start": pf.Inpaint(NEED, NEED, pf.Inpaint(NEED, NEED))},
        "Inpaint's start must be a Noise, State or Image, got Inpaint",
    ),
    "no mask": ({"start": pf.Inpaint(NEED, None)}, "mask must be a tensor, got NoneType"),
    "mask above 1": ({"start": pf.Inpaint(NEED, torch.full((1,), 1.5))}, "mask must be in [0, 1], 0 where"),
    "mask below 0": ({"start": pf.Inpaint(NEED, torch.tensor(-1))}, "they are drawn, got -1"),
    "mask of nothing": ({"start": pf.Inpaint(NEED, torch.tensor(float("nan")))}, "they are drawn, got nan"),
    "complex mask": ({"start": pf.Inpaint(NEED, torch.tensor(1j))}, "mask must be of real numbers, got torch.complex"),
    "mask of another shape": ({"start": pf.Inpaint(NEED, torch.ones(5))}, "mask must fit"),
    "mask as numbers": ({"start": pf.Inpaint(NEED, np.ones(SHAPE))}, "mask must be a tensor"),
    "known and noises": (
        {"start": pf.Inpaint(NEED, NEED), "noise_sampler": lambda i: NEED},
        "noise_sampler cannot go with Inpaint",
    ),
    "batches": ({"start": pf.Inpaint(NEED[:1], NEED[:1], pf.Image(NEED))}, "known must have batch 2"),
    "not finite": ({"start": pf.Image(NEED / 0)}, "image must be finite"),
    "nothing": ({"start": pf.State(None)}, "state must be a floating-point tensor, got NoneType"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input(case):
    arguments, message = BAD[case]
    calls = []
    arguments = {"solver": "ddim", "steps": 5, "shape": SHAPE, **arguments}
    with pytest.raises((ValueError, TypeError)) as error:
        draw(lambda x, t: calls.append(1) or x, **arguments)
    assert message in str(error.value) and not calls


# ---- networks that learned their variance, and what goes around a network


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_learned_variance_takes_the_mean(layout, guidance):
    def mean(x, t, shift):
        return (x * 0.5 + shift.view(-1, 1, 1, 1)).contiguous(memory_format=layout)

    def both(x, t, shift):
        return torch.cat([mean(x, t, shift), torch.full_like(x, 7.0)], 1).contiguous(memory_format=layout)

    arguments = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}, "guidance": guidance}
    sampler = Reporting(both, pf.make_plan("plms", steps=5), shape=SHAPE)
    wanted = pf.sample(mean, 5, solver="plms", shape=SHAPE, **arguments)
    for _ in range(2):
        assert torch.equal(sampler(**arguments), wanted)


def test_networks_with_and_without_a_variance_beside_each_other():
    def plain(x, t):
        return x * 0.5

    def both(x, t):
        return torch.cat([x * 0.25, x * 7], 1)

    def combined(x, t):
        return (x * 0.5 - x * 0.25) * 2.0 + x * 0.25

    call = {"steps": 5, "solver": "plms", "shape": SHAPE}
    wanted = pf.sample(combined, **call)
    mixed = pf.sample(plain, guidance=pf.Guidance(2.0, weaker=both), **call)
    assert torch.allclose(mixed, wanted, rtol=1e-5, atol=1e-4)
    quarter = pf.Guidance(2.0, weaker=lambda x, t: x * 0.25)
    other = pf.sample(lambda x, t: torch.cat([x * 0.5, x], 1), guidance=quarter, **call)
    assert torch.allclose(other, wanted, rtol=1e-5, atol=1e-4)
    plan = pf.make_plan("ddim", steps=5)
    alone, wrapped = (pf.Thresholded(net, plan) for net in (lambda x, t: x * 0.25, both))
    assert torch.equal(pf.sample(alone, solver=plan, shape=SHAPE), pf.sample(wrapped, solver=plan, shape=SHAPE))


@pytest.mark.parametrize("solver", ["heun", "dpmpp-2s", "dpm-solver-3", "f-pndm", "unipc", "ddim"])
def test_the_network_sees_what_is_known_at_every_call(solver):
    plan = pf.make_plan(solver, steps=6, spacing="trailing")
    known, noise = torch.rand(SHAPE), torch.randn(SHAPE)
    mask, calls = torch.zeros(8, 8), []
    mask[:4] = 1
    pf.sample(
        lambda x, t: calls.append(x.clone()) or x * 0.1, solver=plan, start=pf.Inpaint(known, mask, pf.Noise(noise))
    )
    for x, row in zip(calls[-plan.nfe :], plan.rows, strict=True):
        alpha, sigma = row.levels.call
        assert torch.allclose(x[..., 4:, :], (alpha * known + sigma * noise)[..., 4:, :], atol=1e-5)


@pytest.mark.parametrize("calls", ["batched", "separate"])
@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescaled_guidance_is_the_loop(calls, phi):
    """Lin et al.'s equations 14 to 16 in a DDIM loop in float64; rows outside the interval are the condition alone."""
    interval = (0.2, 3.0)

    def net(x, t, shift):
        return torch.sin(x * 1.3 + shift) + 0.1 * x

    def guided(y, t):
        cond, uncond = net(y, t, torch.tensor(0.5)), net(y, t, torch.tensor(0.0))
        rho = float(SCHEDULE.sigma(float(t[0])) / SCHEDULE.alpha(float(t[0])))
        if not interval[0] < rho <= interval[1]:
            return cond
        plain = (cond - uncond) * 4.0 + uncond
        return plain * (phi * cond.std(1, keepdim=True) / plain.std(1, keepdim=True) + 1 - phi)

    noise = normal(3)
    trees = {"cond": {"shift": torch.full((3, 1), 0.5).double()}, "uncond": {"shift": torch.zeros(3, 1).double()}}
    guidance = pf.Guidance(4.0, interval, rescale=phi, calls=calls)
    plan = pf.make_plan("ddim", SCHEDULE, steps=10)
    got = draw(net, solver=plan, start=pf.Noise(noise), guidance=guidance, **trees)
    wanted = ddim_loop(guided, noise, [*plan.times, -1.0])
    assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("graph", ["while", "replay"])
def test_rescaled_guidance_in_graphs(stand_in, graph):
    """The scale is read on the device: one capture serves all scales, and another rescaling takes its own."""
    arguments = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}}
    captured, eager = (
        Reporting(Pointwise(), pf.make_plan("plms", steps=6), shape=SHAPE, graph=g) for g in (graph, "eager")
    )
    for scale, phi, captures in ((2.0, 0.5, 1), (7.0, 0.5, 1), (2.0, 0.9, 2), (2.0, 0.0, 3)):
        guidance = pf.Guidance(scale, rescale=phi)
        assert torch.equal(captured(guidance=guidance, **arguments), eager(guidance=guidance, **arguments))
        assert captured.report.graph == graph and captured.report.captures == captures


@pytest.mark.parametrize("answer", [torch.float64, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("other", [None, torch.float32, torch.bfloat16])
def test_rescaling_rounds_the_first_output_as_the_others(stand_in, answer, other):
    """A graph, which takes every output in the buffers' dtype, shows the first row of an eager call apart."""

    class Answers(torch.nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.dtype_of_output = dtype
            self.eval()

        def forward(self, x, t, c):
            return (torch.sin(x * 0.3) + c.view(-1, 1)).to(self.dtype_of_output)

    weaker = None if other is None else Answers(other)
    arguments = {"cond": {"c": torch.ones(2)}, "uncond": {"c": torch.zeros(2)}}
    results = []
    for graph in ("eager", "replay"):
        sampler = Reporting(Answers(answer), pf.make_plan("dpmpp-2m", steps=6), shape=(2, 16), graph=graph)
        results.append(sampler(guidance=pf.Guidance(2.0, rescale=0.6, weaker=weaker), **arguments))
    assert sampler.report.graph == "replay" and torch.equal(*results)


@pytest.mark.parametrize("answer", [torch.int64, torch.complex64, torch.bool])
def test_rescaling_hides_no_output_that_is_refused(answer):
    with pytest.raises(TypeError, match="the network's output must be dense and of floating point, got torch"):
        pf.sample(
            lambda x, t, c: x.to(answer),
            4,
            solver="ddim",
            spacing="trailing",
            shape=(2, 8),
            cond={"c": 1},
            uncond={"c": 2},
            guidance=pf.Guidance(2.0, rescale=0.5),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 40, 33_000])
def test_rescaling_does_not_depend_on_the_batch(n, dtype):
    """`torch.std` does: it splits a reduction by the whole tensor's shape, and across threads where that is large."""
    cond, uncond = torch.randn(2, 5, n, generator=torch.Generator().manual_seed(0), dtype=dtype)
    scale = torch.tensor([2.0, 3.0, 1.0, 4.0, 2.5])
    whole = rescaled(cond, uncond, scale, 0.7)
    for b in range(5):
        alone = rescaled(cond[b : b + 1], uncond[b : b + 1], scale[b : b + 1], 0.7)
        assert torch.equal(alone[0], whole[b])


def test_rescaling_a_constant_leaves_it():
    x = torch.ones(2, 3, 4, 4)
    got = pf.sample(
        lambda x, t, c: c.view(-1, 1, 1, 1).expand_as(x).contiguous(),
        4,
        solver="ddim",
        shape=tuple(x.shape),
        cond={"c": torch.ones(2)},
        uncond={"c": torch.zeros(2)},
        guidance=pf.Guidance(3.0, rescale=0.7),
    )
    assert bool(got.isfinite().all())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scale": 3.0, "rescale": 1.5}, "rescale must be a number in"),
        ({"scale": float("nan")}, "guidance must be finite"),
        ({"scale": 2.0, "calls": "twice"}, "calls must be one of auto, batched, separate, got 'twice'"),
        ({"scale": 2.0, "weaker": Conv(), "calls": "batched"}, "calls must be separate or auto with a weaker network"),
        ({"scale": None, "interval": (1.0, 2.0)}, "interval must come with scale"),
        ({"scale": 2.0, "weaker": 3}, "weaker must be callable"),
    ],
)
def test_bad_guidance(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pf.Guidance(**arguments)


def test_one_call_that_cannot_be_is_refused():
    trees = {"cond": {"words": torch.ones(2, 5)}, "uncond": {"words": torch.ones(2, 3)}}
    with pytest.raises(ValueError, match="calls='batched' cannot be had: tensors of shapes"):
        pf.sample(Pointwise(), 4, solver="ddim", shape=SHAPE, guidance=pf.Guidance(2.0, calls="batched"), **trees)


def test_separate_calls_as_asked():
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=4), shape=SHAPE)
    arguments = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}}
    apart = sampler(guidance=pf.Guidance(2.0, calls="separate"), **arguments)
    assert sampler.report.calls == 8 and sampler.report.guidance == "two calls: as asked"
    assert torch.equal(apart, sampler(guidance=2.0, **arguments)) and sampler.report.calls == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_thresholds_keep_their_times_in_a_narrow_network(dtype):
    """`.half()` on the wrapper would round them, and leave none that the plan has."""
    plan, network = pf.make_plan("dpmpp-2m", steps=7, spacing="trailing"), torch.nn.Bilinear(8, 1, 8).to(dtype)

    def net(x, t):
        return network(x.to(dtype), t.to(dtype)[:, None] / 1000).to(x.dtype)

    plain, narrow = pf.Thresholded(net, plan), pf.Thresholded(net, plan).to(dtype)
    assert torch.equal(pf.sample(narrow, solver=plan, shape=(2, 8)), pf.sample(plain, solver=plan, shape=(2, 8)))


def test_thresholds_know_their_times():
    plan = pf.make_plan("ddim", steps=12)
    wrapped = pf.Thresholded(lambda x, t: pytest.fail("the network was called"), plan)
    others = (
        pf.make_plan("ddim", steps=37),
        plan.with_times(lambda t: t + 0.5),
        pf.make_plan("ddim", pf.Schedule.cosine(), steps=12),
    )
    for other in others:  # the last has the times at other levels, of which nothing would have told
        with pytest.raises(
            ValueError, match="plan must call pf.Thresholded as the plan that it was made with, got t ="
        ):
            pf.sample(wrapped, solver=other, shape=SHAPE)
    assert bool(pf.Thresholded(Pointwise(), plan)(torch.ones(SHAPE), torch.full(SHAPE[:1], 3.25)).isnan().all())
    noise = normal(0)
    clipped = pf.sample(lambda x, t: x * 0.3, solver=plan.with_clip(1.0), start=pf.Noise(noise))
    thresholded = pf.sample(pf.Thresholded(lambda x, t: x * 0.3, plan, 1.0, 1.0), solver=plan, start=pf.Noise(noise))
    assert torch.allclose(thresholded, clipped, atol=1e-10)
    with pytest.raises(ValueError, match="plan must be called at alpha and sigma above 0"):
        pf.Thresholded(Pointwise(), pf.make_plan("ddim-inverse", steps=4))
    with pytest.raises(TypeError, match="plan must be a Plan"):
        pf.Thresholded(Pointwise(), None)
    assert pf.make_plan("ddim-inverse", steps=4, clip=1.0).rows[0] == pf.make_plan("ddim-inverse", steps=4).rows[0]


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_thresholded(prediction):
    """Each prediction's x_0 estimate is the clamped one of the same network."""
    plan = pf.make_plan("ddim", steps=6, spacing="trailing", prediction=prediction)
    row = plan.rows[2]
    alpha, sigma = row.levels.call
    y = torch.randn(2, 1, 16, 16)
    x0 = torch.randn(2, 1, 16, 16) * torch.tensor([0.2, 3.0]).view(2, 1, 1, 1)
    eps = (y - alpha * x0) / sigma
    out = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]
    got = pf.Thresholded(lambda x, t: out, plan, quantile=0.9)(y, torch.full((2,), row.t))
    bound = x0.abs().flatten(1).quantile(0.9, 1).clamp(min=1).view(2, 1, 1, 1)
    clamped = x0.clamp(-bound, bound) / bound
    estimate = {"eps": (y - sigma * got) / alpha, "x0": got, "v": alpha * y - sigma * got}[prediction]
    assert torch.allclose(estimate, clamped, atol=2e-4)
    assert torch.allclose(estimate[0], x0[0], atol=2e-4)  # the quiet sample is left alone
    sampled = pf.sample(pf.Thresholded(Pointwise(), plan), solver=plan, shape=SHAPE)
    assert float(sampled.abs().max()) <= 1 + 1e-3
