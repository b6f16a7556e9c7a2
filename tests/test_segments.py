"""Rows that call another network, or evaluate it once in place of twice: the loop changes over, the state goes on."""

import pytest
import rounding
import torch
from drawing import Reporting, draw
from sampler_case import Conv, Pointwise

import pndm_fast as pf

SHAPE = (2, 3, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")


@pytest.fixture(params=["eager", "while", "replay"])
def graph(request):
    if request.param != "eager":
        request.getfixturevalue("stand_in")
    return request.param


class Large(Conv):
    """Another network, with another layout and another dtype."""

    def __init__(self, layout=torch.contiguous_format, dtype=torch.float32):
        super().__init__(seed=5)
        self.layout, self.out = layout, dtype

    def forward(self, x, t, labels=None):
        return super().forward(x, t, labels).to(self.out).contiguous(memory_format=self.layout)


def alternately(networks, models):
    """One callable that is networks[models[i]] in its i-th call."""
    calls = iter(models)
    return lambda x, t: networks[next(calls)](x.clone(), t)


@pytest.mark.parametrize("solver", ["f-pndm", "plms", "ddpm", "s-pndm"])
@pytest.mark.parametrize("switch", [1, 3, 4])
def test_two_networks(graph, solver, switch):
    """T-Stitch: the history goes over to the second network."""
    plan = pf.make_plan(solver, steps=6)
    networks, models = [Conv(), Large()], [0] * switch + [1] * (plan.nfe - switch)
    sampler = Reporting(networks, plan.with_models(models), shape=SHAPE, graph=graph)
    for seed in (0, 3):
        wanted = draw(alternately(networks, models), solver=plan, shape=SHAPE, seeds=seed, graph="eager")
        assert torch.equal(sampler(seeds=seed), wanted)
    assert sampler.report.graph == graph and sampler.report.calls == plan.nfe
    assert sampler.report.captures == (0 if graph == "eager" else 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_of_different_forms(graph, layout, dtype):
    plan = pf.make_plan("ddim", steps=6)
    networks, models = [Conv(), Large(layout, dtype)], [0, 0, 1, 1, 1, 0]
    got = draw(networks, solver=plan.with_models(models), shape=SHAPE, graph=graph)
    wanted = draw(alternately([Conv(), Large()], models), solver=plan, shape=SHAPE, graph="eager")

    def stitched(second):
        both = alternately([Conv(torch.float64), second], models)
        return draw(both, solver=plan, shape=SHAPE, dtype=torch.float64, graph="eager")

    atol = rounding.of_samples(stitched, Large(dtype=torch.float64), torch.finfo(dtype).eps)
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def test_every_sample_at_its_own_plan_but_one_network(graph):
    plans = [pf.make_plan("ddim", steps=5), pf.make_plan("plms", steps=3)]
    stitched = [plans[0].with_models([0, 0, 1, 1, 1]), plans[1].with_models([0, 0, 1, 1])]
    networks = [Pointwise(), lambda x, t: x * 0.25]
    got = draw(networks, solver=stitched[0], shape=SHAPE, graph=graph)
    assert got.shape == SHAPE
    sampler = Reporting(networks, stitched[0], shape=SHAPE, graph=graph)
    both = sampler(plan=stitched)
    for b, plan in enumerate(stitched):
        assert torch.equal(both[b : b + 1], sampler(plan=plan, seeds=[b]))
    with pytest.raises(ValueError, match="plans of one batch must call the same network at row 2, got .0, 1."):
        sampler(plan=[stitched[0], plans[1]])


def test_a_network_that_is_not_there():
    plan = pf.make_plan("ddim", steps=3).with_models([0, 1, 1])
    with pytest.raises(ValueError, match="the plan calls network 1, but model has 1"):
        pf.sample(Pointwise(), solver=plan, shape=SHAPE)
    with pytest.raises(ValueError, match="models must be one for each of the 3 rows, got 2"):
        plan.with_models([0, 1])
    with pytest.raises(ValueError, match="model must be the index of a network, got -1"):
        plan.with_models([0, -1, 0])
    with pytest.raises(ValueError, match="got none"):
        Reporting([], plan, shape=SHAPE)


class Batches(Pointwise):
    """Notes how many samples each call had."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, t, shift=None):
        self.seen.append(len(x))
        return super().__call__(x, t, shift)


GUIDED = {"cond": {"shift": torch.tensor([0.5, 1.0])}, "uncond": {"shift": torch.zeros(2)}, "guidance": 3.0}


@pytest.mark.parametrize("solver", ["ddim", "plms", "ddpm"])
def test_guidance_interval(graph, solver):
    plan = pf.make_plan(solver, steps=8, spacing="trailing")
    network = Batches()
    sampler = Reporting(network, plan, shape=SHAPE, graph=graph)
    inside = [0.5 < row.levels.call.sigma / row.levels.call.alpha <= 5 for row in plan]
    assert 2 < sum(inside) < len(inside) - 2
    within = {**GUIDED, "guidance": pf.Guidance(3.0, (0.5, 5.0))}
    sampler(**within)
    network.seen.clear()
    got = sampler(**within)
    assert network.seen == [4 if i else 2 for i in inside]
    # scales so near 1 that both evaluations are made: all rows in one stretch
    always = plan.with_guidance([3.0 if i else 1.0000001 for i in inside])
    assert torch.allclose(got, sampler(**{**GUIDED, "guidance": None}, plan=always), atol=1e-4)
    exact = draw(Pointwise(), solver=plan, shape=SHAPE, backend="reference", **within)
    assert torch.equal(got, exact)


@pytest.mark.parametrize(
    "interval, error",
    [((2, 1), ValueError), ((-1, 1), ValueError), (3, TypeError), ((1, 2, 3), TypeError), ((), TypeError)],
)
def test_bad_intervals(interval, error):
    with pytest.raises(error, match="interval must be"):
        pf.Guidance(3.0, interval)


@pytest.mark.parametrize("interval, error", [((2, 1), ValueError), ((3,), TypeError), ("ab", TypeError)])
def test_bad_intervals_of_a_plan(interval, error):
    with pytest.raises(error, match="interval must be"):
        pf.make_plan("ddim", steps=4).with_guidance(2.0, interval)


def test_an_interval_without_a_scale():
    with pytest.raises(ValueError, match="interval must come with scale"):
        pf.Guidance(None, (0, 1))


@pytest.mark.parametrize("solver", ["ddim", "plms"])
def test_a_weaker_network(graph, solver):
    """Autoguidance: out = weak + g (strong - weak), both with the condition unless uncond is given."""
    strong, weak = Conv(), Conv(seed=9)
    labels = {"labels": torch.tensor([1, 2])}

    def combined(x, t, labels):
        bad, good = weak(x, t, labels), strong(x, t, labels)
        return (good - bad) * 2.0 + bad

    sampler = Reporting(strong, pf.make_plan(solver, steps=5), shape=SHAPE, graph=graph)
    wanted = pf.sample(combined, 5, solver=solver, shape=SHAPE, cond=labels)
    for _ in range(2):
        assert torch.equal(sampler(cond=labels, guidance=pf.Guidance(2.0, weaker=weak)), wanted)
    assert sampler.report.calls == 2 * sampler.plan.nfe
    assert "the weaker network is another" in sampler.report.guidance
    wanted = pf.sample(strong, 5, solver=solver, shape=SHAPE, cond=labels)
    assert torch.equal(sampler(cond=labels), wanted)


def test_steps_and_cancel_across_a_switch(graph):
    plan = pf.make_plan("plms", steps=6)
    models, networks = [0, 0, 0, 1, 1, 1, 1], [Conv(), Large()]
    sampler = Reporting(networks, plan.with_models(models), shape=SHAPE, graph=graph)
    seen = []
    result = sampler(on_step=lambda step: seen.append((step.index, step.state, step.x0)))
    assert [index for index, _, _ in seen] == list(range(7)) and torch.equal(seen[-1][1], result)
    kept = []
    draw(
        alternately(networks, models),
        solver=plan,
        shape=SHAPE,
        graph="eager",
        on_step=lambda step: kept.append(step.state),
    )
    assert all(torch.equal(ours[1], theirs) for ours, theirs in zip(seen, kept, strict=True))
    with pytest.raises(pf.Cancelled) as error:
        sampler(on_step=lambda step: step.cancel() if step.index == 4 else None)
    assert error.value.index == 4 and torch.equal(error.value.state, kept[4])
    cancel = pf.Cancel()
    assert torch.equal(sampler(cancel=cancel), result)
    inside = pf.Cancel()
    network = networks[0]

    class Cancelling(Conv):
        calls = 0

        def forward(self, x, t):
            self.calls += 1
            if self.calls == 2 + 10 * (graph != "eager"):  # behind the calls that learn and capture
                inside.set()
            return network(x, t)

    cancelling = Reporting([Cancelling(), networks[1]], plan.with_models(models), shape=SHAPE, graph=graph)
    with pytest.raises(pf.Cancelled) as error:
        cancelling(cancel=inside)
    assert error.value.index == 1 and torch.equal(error.value.state, kept[1])
    cancel.set()
    with pytest.raises(pf.Cancelled) as error:
        sampler(cancel=cancel)
    assert error.value.index == 0


def test_prepare_makes_every_stretch(stand_in):
    plan = pf.make_plan("ddim", steps=4).with_models([0, 0, 1, 1])
    sampler = Reporting([Conv(), Large()], plan, shape=SHAPE, concurrency=2)
    sampler.prepare([1, 2])
    assert stand_in.counts["capture"] == 8
    sampler(seeds=[1])
    sampler()
    assert stand_in.counts["capture"] == 8 and sampler.report.graph == "replay"


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda out: out.double(), "float64, contiguous"),
        (lambda out: out.contiguous(memory_format=torch.channels_last), "float32, channels_last"),
        (lambda out: out.transpose(2, 3).contiguous().transpose(2, 3), "float32, strides (192, 64, 1, 8)"),
    ],
    ids=["dtype", "layout", "strides"],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_weaker_network_of_another_form(backend, change, words, steps):
    """Its output is read with the other's dtype and layout, so it is copied to those: at the first row too."""
    plain, changed = (
        pf.Guidance(2.0, weaker=lambda x, t, change=change: change(x * 0.25)) for change in (lambda out: out, change)
    )
    plan = pf.make_plan("ddim", steps=steps, spacing="trailing")
    sampler = Reporting(lambda x, t: x * 0.5, plan, shape=(4, 3, 8, 8), backend=backend)
    wanted = sampler(guidance=plain)
    for _ in range(2):
        assert torch.equal(sampler(guidance=changed), wanted) and sampler.report.copied == words


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_weaker_network_of_another_shape_is_refused(backend):
    weaker = pf.Guidance(2.0, weaker=lambda x, t: x.mean((1, 2, 3), keepdim=True))
    sampler = pf.Sampler(lambda x, t: x * 0.5, pf.make_plan("ddim", steps=1), shape=(4, 3, 8, 8), backend=backend)
    for _ in range(2):
        with pytest.raises(ValueError, match="the network's output must stay"):
            sampler(start=pf.State(torch.randn(4, 3, 8, 8)), guidance=weaker)


def test_what_cannot_be_batched_is_refused_before_the_first_call():
    """The first rows are outside the interval, and call the network as it likes."""
    calls = []
    trees = {"cond": {"words": torch.ones(2, 5)}, "uncond": {"words": torch.ones(2, 3)}}
    guidance = pf.Guidance(3.0, (0.1, 1.0), calls="batched")
    with pytest.raises(ValueError, match="calls='batched' cannot be had"):
        pf.sample(lambda x, t, words: calls.append(1) or x, 8, solver="ddim", shape=SHAPE, guidance=guidance, **trees)
    assert not calls


def test_reasons_do_not_pile_up():
    def network(x, t, y):
        if len(x) != 2:
            raise ValueError("two at a time")
        return x * 0.5

    sampler = Reporting(network, pf.make_plan("ddim", steps=3), shape=SHAPE)
    for _ in range(3):
        sampler(cond={"y": torch.ones(2)}, uncond={"y": torch.zeros(2)}, guidance=2.0)
        assert sampler.report.guidance == "two calls: the network refused a batch of 4: two at a time"
