"""`fixed_batch`: every call of the network has n samples, so that a sample has the same bits whatever is beside it."""

import copy
import pickle

import pytest
import torch
from drawing import Reporting
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_case import Pointwise

import pndm_fast as pf
from pndm_fast.demo import mnist_unet, null_class

SHAPE = (3, 4, 4)
pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")


class Sized(Pointwise):
    """Takes one batch size; the samples' places do not matter."""

    def __init__(self, size):
        self.size, self.calls = size, 0

    def __call__(self, x, t, shift=None):
        assert len(x) == len(t) == self.size and (shift is None or len(shift) == self.size)
        self.calls += 1
        return super().__call__(x, t, shift)


class Mixing(Pointwise):
    """Depends on the batch as kernels do, by its size alone."""

    def __call__(self, x, t, shift=None):
        return super().__call__(x, t, shift) * (1 + 1e-3 * len(x))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
@pytest.mark.parametrize("scale", [None, 2.5])
def test_every_call_has_that_many(backend, solver, scale):
    plan = pf.make_plan(solver, steps=4)
    guided = pf.Guidance(scale, interval=(0.0, 1.0)) if scale else None
    fixed = Reporting(Sized(5), plan, shape=(1, *SHAPE), backend=backend, fixed_batch=5)
    plain = pf.Sampler(Pointwise(), plan, shape=(1, *SHAPE), backend=backend)
    for batch in (1, 3, 5):
        arguments = {"cond": {"shift": torch.arange(float(batch))}}
        if scale:
            arguments |= {"uncond": {"shift": -torch.ones(batch)}, "guidance": guided}
        fixed.model.calls = 0
        assert torch.equal(fixed(seeds=range(batch), **arguments), plain(seeds=range(batch), **arguments))
        assert fixed.model.calls == fixed.report.calls and fixed.report.batch == batch
    assert fixed.report.guidance == ("two calls: fixed_batch" if scale else "none")


def test_what_depends_on_the_batch_no_longer_does():
    plan = pf.make_plan("ddim", steps=4)
    plain, fixed = (pf.Sampler(Mixing(), plan, shape=(1, *SHAPE), fixed_batch=n) for n in (None, 6))
    whole = fixed(seeds=range(6))
    assert torch.equal(fixed(seeds=[4]), whole[4:5]) and not torch.equal(plain(seeds=[4]), plain(seeds=range(6))[4:5])


@pytest.mark.parametrize("size", [1, 4])
def test_prepared(size):
    fixed = Reporting(Sized(size), pf.make_plan("ddim", steps=3), shape=(1, *SHAPE), fixed_batch=size)
    fixed.prepare([size])
    assert fixed.batch_error == (None if size == 1 else 0.0)
    fixed(seeds=[1])
    assert fixed.report.batch_error == fixed.batch_error
    with pytest.raises(ValueError, match=rf"batches must be \[{size}\], the sampler's fixed_batch, got \[2\]"):
        fixed.prepare([2])


def test_prepare_measures_and_reports():
    plan = pf.make_plan("ddim", steps=3)
    for model, wanted in ((Pointwise(), 0.0), (Mixing(), 7e-3 / 1.008)):
        sampler = Reporting(model, plan, shape=(1, *SHAPE))
        sampler()
        assert sampler.report.batch_error is None
        sampler.prepare([2, 8])
        sampler()
        assert sampler.report.batch_error == pytest.approx(wanted, rel=0.02)

    class Placed(Pointwise):
        def __call__(self, x, t, shift=None):
            return super().__call__(x, t) * (1 + 0.01 * torch.arange(len(x)))[:, None, None, None]

    sampler = pf.Sampler(Placed(), plan, shape=(1, *SHAPE), fixed_batch=3)
    sampler.prepare([3])
    assert sampler.batch_error == pytest.approx(0.02, rel=1e-3)
    sampler.reset()
    assert sampler.batch_error is None
    takes_four = pf.Sampler(Sized(4), plan, shape=(4, *SHAPE))
    takes_four.prepare([4])
    assert takes_four.batch_error is None


@pytest.mark.parametrize("alike, wanted", [(True, 0.0), (False, float("inf"))])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_no_proof_of_sameness(value, alike, wanted):
    """In one batch alone they are a difference without a measure."""

    def network(x, t):
        return torch.where(torch.tensor(alike or len(x) == 2), value, x * 0.5)

    sampler = pf.Sampler(network, pf.make_plan("ddim", steps=4), shape=(1, 8))
    sampler.prepare([2, 3])
    assert sampler.batch_error == wanted


@pytest.fixture(scope="module")
def packaged():
    """The packaged network with a number of samples for which its rows do not depend on their place either."""
    for n in (4, 8, 2):
        sampler = pf.Sampler(mnist_unet(), pf.make_plan("ddim", steps=2), shape=(1, 1, 32, 32), fixed_batch=n)
        sampler.prepare([n], pf.Request(cond={"class_labels": torch.tensor([1])}))
        if sampler.batch_error == 0.0:
            return sampler
    pytest.fail("no batch size has the same bits at each place")


PLANS = [
    pf.make_plan("ddim", steps=2),
    pf.make_plan("ddpm", steps=3),
    pf.make_plan("ddim", steps=2).with_guidance(3.0),
]


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_the_packaged_network_bit_for_bit(packaged, data):
    """Alone or at any place beside any neighbours, of other plans, labels and guidance."""
    n = packaged.fixed_batch
    batch = data.draw(st.integers(1, n))
    seeds = data.draw(st.lists(st.integers(0, 3), min_size=batch, max_size=batch))
    which = data.draw(st.lists(st.integers(0, 2), min_size=batch, max_size=batch))
    labels = [3 * seed for seed in seeds]

    def drawn(members):
        cond = {"class_labels": torch.tensor([labels[i] for i in members])}
        uncond = {"class_labels": torch.full((len(members),), null_class)}
        plans = [PLANS[which[i]] for i in members]
        if not any(plan.guided for plan in plans):
            uncond = None
        return packaged(seeds=[seeds[i] for i in members], plan=plans, cond=cond, uncond=uncond)

    together = drawn(range(batch))
    place = data.draw(st.integers(0, batch - 1))
    assert torch.equal(drawn([place]), together[place : place + 1])
    order = data.draw(st.permutations(range(batch)))
    assert torch.equal(drawn(order), together[list(order)])


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: sampler(fixed_batch=0), ValueError, "fixed_batch must be positive, got 0"),
        (lambda: sampler(fixed_batch=2.0), TypeError, "fixed_batch must be positive integers, got 2.0"),
        (lambda: sampler(fixed_batch=2, batch=3), ValueError, "shape must have at most fixed_batch = 2 samples, got 3"),
        (lambda: sampler(fixed_batch=2)(seeds=range(3)), ValueError, "at most fixed_batch = 2 samples, got 3"),
        (
            lambda: sampler(fixed_batch=2)(guidance=pf.Guidance(2.0, calls="batched"), cond={}, uncond={}),
            ValueError,
            "guidance calls must be separate or auto with fixed_batch",
        ),
        (lambda: sampler(stateful=True).prepare([1]), ValueError, "prepare calls the network"),
        (lambda: sampler(memory_format="channels_last"), TypeError, "memory_format must be a torch.memory_format"),
        (lambda: sampler(memory_format=torch.channels_last_3d), ValueError, "memory_format must be .* for shape"),
        (lambda: sampler(memory_format=torch.preserve_format), ValueError, "memory_format must be .* for shape"),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def sampler(batch=1, **options):
    return pf.Sampler(Pointwise(), pf.make_plan("ddim", steps=3), shape=(batch, *SHAPE), **options)


@pytest.mark.usefixtures("stand_in")
def test_a_step_cache_that_a_network_tells_of():
    """As diffusers' networks do."""

    class Telling(Pointwise):
        is_cache_enabled = False

    net = Telling()
    arguments = {"shape": (2, *SHAPE), "device": "cpu"}
    auto, named = (Reporting(net, pf.make_plan("ddim", steps=4), graph=g, **arguments) for g in ("auto", "replay"))
    auto()
    assert auto.report.graph == "replay"
    net.is_cache_enabled = True
    auto()
    assert auto.report.graph == "eager" and auto.report.graph_reason == "the network is stateful"
    with pytest.raises(ValueError, match="graph must be auto or eager for a stateful network"):
        named()
    with pytest.raises(ValueError, match="prepare calls the network"):
        auto.prepare([2])
    with pytest.raises(ValueError, match="graph must be auto or eager for a stateful network"):
        pf.Sampler(net, shape=(2, *SHAPE), graph="while", stateful=True)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_sampler_is_copied(again):
    options = {"fixed_batch": 3, "memory_format": torch.channels_last, "stateful": True, "time_dtype": torch.int64}
    plan = pf.make_plan("ddim", steps=4)
    first = pf.Sampler(Pointwise(), plan, shape=(2, *SHAPE), backend="reference", **options)
    wanted = first(seeds=[1, 2])
    other = again(first)
    assert torch.equal(other(seeds=[1, 2]), wanted) and other.cache is not first.cache
    assert {name: getattr(other, name) for name in options} == options
    assert (other.backend, other.shape, other.plan) == ("reference", (2, *SHAPE), plan)
    several = again(pf.Sampler([Pointwise(), Pointwise()], None, shape=(2, *SHAPE)))
    assert len(several.models) == 2 and several.plan is None


def test_a_deep_copy_has_a_network_of_its_own():
    net = torch.nn.Conv2d(3, 3, 1).eval()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    first = pf.Sampler(Model().eval(), pf.make_plan("ddim", steps=2), shape=(1, *SHAPE))
    assert copy.deepcopy(first).model.net is not net and copy.copy(first).model.net is net
