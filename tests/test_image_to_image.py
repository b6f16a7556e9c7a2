"""Starts in the middle and samples that are known in part, against direct loops in float64."""

import numpy as np
import pytest
import torch
from golden_data import mixture
from test_sampler import Conv, Pointwise

import pndm_fast as pf

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
    got = pf.sample(network, solver=plan, init=init, noise=noise)
    y = float(SCHEDULE.alpha(500)) * init + float(SCHEDULE.sigma(500)) * noise
    wanted = ddim_loop(network, y, [*plan.times, -1.0])
    assert torch.allclose(got, wanted, atol=1e-12)
    assert torch.allclose(got, pf.sample(network, 10, solver="ddim", init=init, noise=noise, **middle), atol=0)


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
    pf.sample(
        lambda x, t: seen.append(x.clone()) or x * 0, solver=plan, init=init,
        noises=lambda index: noise if index == 0 else torch.full((1, 8), z),
    )  # fmt: skip
    y = (3.0 * alpha + sigma) * plan.prologue.a0 + plan.prologue.c0 * z
    assert torch.allclose(seen[0], torch.full((1, 8), y * plan.rows[0].in_scale), rtol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixed_starts_of_one_batch(layout):
    def network(x, t):
        return (x * 0.5 + (t / 1000).view(-1, 1, 1, 1)).contiguous(memory_format=layout)

    plans = [pf.make_plan("ddim", steps=8, t_start=900), pf.make_plan("plms", steps=8, t_start=400)]
    init = torch.randn(SHAPE)
    sampler = pf.Sampler(network, plans[0], shape=SHAPE)
    both = sampler(plan=plans, init=init, seeds=3)
    for b, plan in enumerate(plans):
        assert torch.equal(both[b : b + 1], sampler(plan=plan, init=init[b : b + 1], seeds=[3 + b]))


@pytest.mark.parametrize("solver", ["ddim", "plms", "f-pndm"])
def test_what_is_known_is_there_in_the_end(solver):
    known, mask = torch.rand(SHAPE), (torch.rand(2, 1, 8, 8) > 0.5).float()
    got = pf.sample(Conv(), 8, solver=solver, known=known, mask=mask, seeds=5)
    free = pf.sample(Conv(), 8, solver=solver, shape=SHAPE, seeds=5)
    kept = mask.expand(SHAPE) == 0
    assert torch.allclose(got[kept], known[kept], atol=1e-6) and not torch.equal(got[~kept], free[~kept])


def test_inpainting_is_the_loop_that_puts_the_known_part():
    network, known, noise = mixture(SCHEDULE), normal(2), normal(3)
    mask = torch.tensor([1.0, 0.0] * 4)

    def put(y, t):
        at = float(SCHEDULE.alpha(t)) * known + float(SCHEDULE.sigma(t)) * noise
        return torch.where(mask.bool(), y, at)

    got = pf.sample(network, 12, solver="ddim", known=known, mask=mask, noise=noise)
    times = [*pf.make_plan("ddim", SCHEDULE, steps=12).times, -1.0]
    assert torch.allclose(got, ddim_loop(network, noise, times, put), atol=1e-12)


@pytest.mark.parametrize("graph", ["while", "replay"])
def test_both_in_graphs_and_padded(stand_in, graph):
    plan = pf.make_plan("plms", steps=8, strength=0.75)
    known, init, mask = torch.rand(3, *SHAPE[1:]), torch.rand(3, *SHAPE[1:]), torch.zeros(8, 8)
    mask[2:5] = 1
    captured = pf.Sampler(Pointwise(), plan, shape=SHAPE, graph=graph)
    captured.prepare([4])
    arguments = {"seeds": range(3), "init": init, "known": known, "mask": mask}
    steps = []
    got = captured(**arguments, on_step=lambda step: steps.append(step.state))
    wanted = pf.Sampler(Pointwise(), plan, shape=SHAPE, graph="eager")(**arguments)
    assert torch.equal(got, wanted) and captured.report.graph == graph and torch.equal(steps[-1], got)


NEED = torch.zeros(SHAPE)
BAD = {
    "strength 0": ({"strength": 0.0}, "strength must be in (0, 1]"),
    "strength and t_start": ({"strength": 0.5, "t_start": 300}, "exclude each other"),
    "too late": ({"t_start": -1}, "t_start must leave at least 1 steps"),
    "a word": ({"t_start": "half"}, "t_start must be"),
    "compat": ({"strength": 0.5, "solver": "plms", "compat": "diffusers"}, "strength cannot go with compat"),
    "init and state": ({"init": NEED, "state": NEED}, "init and state exclude each other"),
    "known alone": ({"known": NEED}, "known and mask come together"),
    "mask alone": ({"mask": NEED}, "known and mask come together"),
    "grey mask": ({"known": NEED, "mask": torch.full((1,), 0.5)}, "mask must be 1"),
    "mask of another shape": ({"known": NEED, "mask": torch.ones(5)}, "mask must fit"),
    "mask as numbers": ({"known": NEED, "mask": np.ones(SHAPE)}, "mask must be a tensor"),
    "known and noises": ({"known": NEED, "mask": NEED, "noises": lambda i: NEED}, "known and noises exclude"),
    "batches": ({"init": NEED, "known": NEED[:1], "mask": NEED[:1]}, "known must have batch 2"),
    "not finite": ({"init": NEED / 0}, "init must be finite"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input(case):
    arguments, message = BAD[case]
    calls = []
    arguments = {"solver": "ddim", "steps": 5, "shape": SHAPE, **arguments}
    with pytest.raises((ValueError, TypeError)) as error:
        pf.sample(lambda x, t: calls.append(1) or x, **arguments)
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
    sampler = pf.Sampler(both, pf.make_plan("plms", steps=5), shape=SHAPE)
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
    assert torch.allclose(pf.sample(plain, negative=both, guidance=2.0, **call), wanted, rtol=1e-5, atol=1e-4)
    other = pf.sample(lambda x, t: torch.cat([x * 0.5, x], 1), negative=lambda x, t: x * 0.25, guidance=2.0, **call)
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
    pf.sample(lambda x, t: calls.append(x.clone()) or x * 0.1, solver=plan, known=known, mask=mask, noise=noise)
    for x, row in zip(calls[-plan.nfe :], plan.rows, strict=True):
        alpha, sigma = row.levels.call
        assert torch.allclose(x[..., 4:, :], (alpha * known + sigma * noise)[..., 4:, :], atol=1e-5)


def test_guided_rescales():
    """The result has the condition's standard deviation at rescale 1, and is plain guidance at 0."""
    net, labels, none = Conv(), torch.tensor([1, 2]), torch.tensor([10, 10])
    x, t = torch.randn(SHAPE), torch.full((2,), 500.0)
    cond, uncond = net(x, t, labels), net(x, t, none)
    plain = (cond - uncond) * 5.0 + uncond
    for rescale, wanted in ((0.0, plain), (1.0, None), (0.7, None)):
        got = pf.Guided(net, {"labels": none}, 5.0, rescale)(x, t, labels=labels)
        std = cond.std((1, 2, 3), keepdim=True) / plain.std((1, 2, 3), keepdim=True)
        wanted = plain * (rescale * std + 1 - rescale)
        assert torch.allclose(got, wanted, atol=1e-5)
    guided = pf.sample(
        pf.Guided(net, {"labels": none}, 3.0, 0.0), 5, solver="ddim", shape=SHAPE, cond={"labels": labels}
    )
    inside = pf.sample(
        net, 5, solver="ddim", shape=SHAPE, cond={"labels": labels}, uncond={"labels": none}, guidance=3.0
    )
    assert torch.allclose(guided, inside, atol=1e-4)
    for arguments, message in (
        (({}, 3.0, 1.5), "rescale must be in"),
        (({}, float("nan")), "scale must be finite"),
        ((None, 1.0), "uncond must be a dict"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            pf.Guided(net, *arguments)


def test_guided_in_prepared_sizes():
    """An unconditional argument of batch 1 stands for any batch, and the two evaluations stay one call."""
    batches = []

    class Noted(Conv):
        def forward(self, x, t, labels):
            batches.append(len(x))
            return super().forward(x, t, labels)

    guided = pf.Guided(Noted(), {"labels": torch.tensor([10])}, 3.0)
    sampler = pf.Sampler(guided, pf.make_plan("ddim", steps=3), shape=SHAPE)
    labels = {"labels": torch.tensor([1, 2, 3])}
    wanted = sampler(seeds=range(3), cond=labels)
    sampler.prepare([8], cond={"labels": torch.tensor([1, 2])})
    assert torch.allclose(sampler(seeds=range(3), cond=labels), wanted, atol=1e-5)
    assert set(batches) == {6, 16}


def test_thresholds_know_their_times():
    plan = pf.make_plan("ddim", steps=12)
    with pytest.raises(pf.NonFiniteError):
        pf.sample(pf.Thresholded(Pointwise(), plan), 37, solver="ddim", shape=SHAPE)
    noise = normal(0)
    clipped = pf.sample(lambda x, t: x * 0.3, solver=plan.with_clip(1.0), noise=noise)
    thresholded = pf.sample(pf.Thresholded(lambda x, t: x * 0.3, plan, 1.0, 1.0), solver=plan, noise=noise)
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
