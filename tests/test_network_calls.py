"""How `Sampler` calls a network, and what it makes of outputs of all kinds."""

import warnings

import pytest
import rounding
import torch
from drawing import Reporting, draw
from sampler_case import SHAPE, ChannelsLast, Conv, Pointwise

import pndm_fast as pf

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
@pytest.mark.parametrize("asked", [False, True])
def test_channels_last_networks(backend, solver, asked):
    """By the weights, or as the caller says of a network whose weights are not to be seen: from the first call on."""
    layouts, channels_last = [], torch.channels_last
    module = ChannelsLast().to(memory_format=channels_last)
    module.register_forward_pre_hook(lambda _, args: layouts.append(args[0].is_contiguous(memory_format=channels_last)))
    network = (lambda x, t: module(x, t)) if asked else module
    options = {"memory_format": channels_last} if asked else {}
    sampler = Reporting(network, pf.make_plan(solver, steps=5), shape=(2, *SHAPE), backend=backend, **options)
    first = sampler()
    assert sampler.report.layout == "channels_last" and all(layouts) and first.is_contiguous()
    assert sampler.report.calls == sampler.report.nfe == len(layouts) and not sampler.report.copied
    assert torch.equal(sampler(), first)
    wanted = pf.sample(Conv(), 5, solver=solver, shape=(2, *SHAPE))
    atol = rounding.of_samples(lambda net: pf.sample(net, 5, solver=solver, shape=(2, *SHAPE)), Conv())
    torch.testing.assert_close(first, wanted, rtol=0, atol=atol)


def test_a_network_that_goes_back_to_training_is_told():
    """As a training loop leaves it between two previews; each time that it has changed."""
    net = Conv().eval()
    plan = pf.make_plan("ddim", steps=2, spacing="trailing")
    sampler = pf.Sampler(torch.nn.DataParallel(net), plan, shape=(1, *SHAPE))
    sampler()
    for _ in range(2):
        net.train()
        with pytest.warns(UserWarning, match="the model is in training mode"):
            sampler()
        sampler()  # said once
        net.eval()
        sampler()


@pytest.mark.slow
def test_inside_a_compiled_function():
    """A break in its graph, whatever was sampled before: weak references and locks are not to be traced."""
    net = Conv().eval()
    plan = pf.make_plan("ddim", steps=4, spacing="trailing")
    compiled = torch.compile(net, backend="eager")
    wanted = pf.sample(net, solver=plan, shape=(1, *SHAPE))
    assert torch.equal(pf.sample(compiled, solver=plan, shape=(1, *SHAPE)), wanted)
    sampler = pf.Sampler(net, plan, shape=(1, *SHAPE))
    forms = {
        "sample": lambda: pf.sample(net, solver=plan, shape=(1, *SHAPE)) * 2,
        "compiled": lambda: pf.sample(compiled, 4, solver="ddim", spacing="trailing", shape=(1, *SHAPE)) * 2,
        "sampler": lambda: sampler() * 2,
        "run": lambda: sampler.run(pf.Request()).samples * 2,
    }
    for form in forms.values():
        assert torch.equal(torch.compile(form, backend="eager")(), 2 * wanted)


def test_weights_that_are_laid_out_anew():
    """Seen by the next first output, and then by all inputs."""
    net = Conv().eval()
    sampler = Reporting(net, pf.make_plan("ddim", steps=3), shape=(2, *SHAPE))
    sampler()
    net.to(memory_format=torch.channels_last)
    for _ in range(2):
        sampler()
        assert sampler.report.layout == "channels_last" and sampler.report.calls == 3


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("guided", ["no", "batched", "separate"])
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda out: out.contiguous(memory_format=torch.channels_last), "float32, channels_last"),
        (lambda out: out.transpose(2, 3).contiguous().transpose(2, 3), "float32, strides (108, 36, 1, 6)"),
        (lambda out: torch.cat([out, out], 3)[..., :6], "float32, strides (216, 72, 12, 1)"),
        (lambda out: out[:, :1].expand(-1, 3, -1, -1), "float32, strides (108, 0, 6, 1)"),
        (lambda out: out.double(), "float64, contiguous"),
        (lambda out: torch._neg_view(-out), "float32, contiguous"),  # as imag of a conjugate: a sign not yet applied
        (lambda out: out.flip(0).flip(0)[:, :, ::1], ""),
    ],
    ids=["channels_last", "permuted", "cropped", "expanded", "float64", "negative bit", "as it is"],
)
def test_outputs_of_other_forms_are_copied_and_reported(backend, guided, change, words):
    """Every row, and from some row on: dense ones of the same numbers lead to the same samples."""
    options = {} if guided == "no" else {"cond": {"c": 0.5}, "uncond": {"c": 0.25}, "guidance": 2.0}
    if guided == "batched":
        options |= {"cond": {"c": torch.full((2, 1, 1, 1), 0.5)}, "uncond": {"c": torch.full((2, 1, 1, 1), 0.25)}}
    plan = pf.make_plan("f-pndm", steps=5, spacing="trailing")

    def drawn(spoil, begin):
        calls = []

        def network(x, t, c=1.0):
            calls.append(1)
            out = x * 0.5 * c + (x[:, :1] * 0.1 if spoil is None else 0.1 * x[:, :1])
            out = out if "expand" not in words and "0," not in words else out[:, :1].expand(-1, 3, -1, -1).contiguous()
            return spoil(out) if spoil is not None and len(calls) > begin else out

        sampler = Reporting(network, plan, shape=(2, 3, 6, 6), backend=backend)
        return sampler(seeds=3, **options), sampler.report, len(calls)

    wanted, report, _ = drawn(None, 0)
    assert not report.copied
    for begin in (0, 5):
        got, report, calls = drawn(change, begin)
        assert torch.equal(got, wanted) and calls == report.calls == report.nfe * (2 if guided == "separate" else 1)
        assert (report.copied == words) if guided != "batched" or not words else report.copied


def test_an_output_that_changes_its_dtype_is_cast_to_the_first_one_s(plan):
    calls = []

    def network(x, t):
        calls.append(1)
        out = x.half() * 0.5
        return out.float() if len(calls) % 2 == 0 else out

    sampler = Reporting(network, plan, shape=(2, *SHAPE))
    first = sampler()
    assert sampler.report.copied == "float32, contiguous"
    assert torch.equal(first, pf.sample(lambda x, t: x.half() * 0.5, solver=plan, shape=(2, *SHAPE)))


class Cached(torch.nn.Module):
    """A step cache: the whole network on every third call, its last output on the others."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls, self.out = torch.nn.Conv2d(3, 3, 3, padding=1), 0, None

    def forward(self, x, t, c=None):
        if self.calls % 3 == 0:
            self.out = self.conv(x)
        self.calls += 1
        return self.out.clone()


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("form", ["contiguous", "channels_last", "half", "writes its input", "permuted"])
def test_a_network_is_called_as_often_as_the_plan_says(steps, form):
    """From the first sample on, which has the bits of all later ones: for what remembers its calls."""

    class Counted(Cached):
        def forward(self, x, t, c=None):
            out = super().forward(x, t)
            if form == "writes its input":
                x.mul_(0.5)
            out = out.half() if form == "half" else out
            return out.transpose(2, 3).contiguous().transpose(2, 3) if form == "permuted" else out

    torch.manual_seed(0)
    net = Counted().eval()
    net = net.to(memory_format=torch.channels_last) if form == "channels_last" else net
    draws = []

    def noises(index):  # in order, as a generator's are: not to be asked for twice
        draws.append(index)
        return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(index))

    plan = pf.make_plan("ddpm", steps=steps, spacing="trailing")
    sampler = Reporting(net, plan, shape=(2, *SHAPE), stateful=True)
    images = []
    for _ in range(3):
        net.calls = 0
        draws.clear()
        images.append(sampler(noise_sampler=noises))
        assert net.calls == steps == sampler.report.calls and draws == sorted(set(draws))
        assert sampler.report.graph_reason == "the network is stateful"
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_a_network_that_begins_to_write_its_input_at_a_first_row():
    """It reads the state itself by then, which is not lost: x is the same before a call's first row."""
    writes = [False]

    def network(x, t):
        out = x * 0.5
        if writes[0]:
            x.zero_()
        return out

    sampler = Reporting(network, pf.make_plan("f-pndm", steps=5), shape=(2, 2, 8, 8))
    wanted = sampler()
    assert sampler.report.direct
    writes[0] = True
    assert torch.equal(sampler(), wanted) and not sampler.report.direct
    assert sampler.report.calls == sampler.report.nfe
    writes[0] = False
    assert torch.equal(sampler(), wanted) and not sampler.report.direct  # it may again


@pytest.mark.parametrize(
    "error", [RuntimeError, ValueError, AssertionError, TypeError, KeyError, IndexError, NotImplementedError, Exception]
)
def test_guidance_takes_two_calls_after_any_error(error):
    def network(x, t, c):
        if len(x) != 2:
            raise error("two at a time")
        return x * 0.5 * c.view(-1, 1)

    options = {"cond": {"c": torch.ones(2)}, "uncond": {"c": torch.zeros(2)}, "guidance": 2.0}
    sampler = Reporting(network, pf.make_plan("ddim", steps=4, spacing="trailing"), shape=(2, 4))
    first = sampler(**options)
    assert "two at a time" in sampler.report.guidance and sampler.report.calls == 9  # one of which was refused
    assert torch.equal(sampler(**options), first) and sampler.report.calls == 9  # it might have been chance
    assert torch.equal(sampler(**options), first) and sampler.report.calls == 8
    separate = pf.Guidance(2.0, calls="separate")
    assert torch.equal(sampler(**(options | {"guidance": separate})), first) and sampler.report.calls == 8


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_guidance_does_not_go_on_where_memory_is_out(error):
    calls = []

    def network(x, t, c):
        calls.append(len(x))
        raise error("no room")

    options = {"cond": {"c": torch.ones(2)}, "uncond": {"c": torch.zeros(2)}, "guidance": 2.0}
    with pytest.raises(error):
        pf.sample(network, 4, solver="ddim", spacing="trailing", shape=(2, 4), **options)
    assert calls == [4]


def test_an_error_of_the_network_s_own_is_shown():
    def network(x, t, c):
        raise TypeError(f"not with {len(x)}")

    options = {"cond": {"c": torch.ones(2)}, "uncond": {"c": torch.zeros(2)}, "guidance": 2.0}
    with pytest.raises(TypeError, match="not with 2"):
        pf.sample(network, 4, solver="ddim", spacing="trailing", shape=(2, 4), **options)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda x: x[:, :2], "shape"),
        (lambda x: x.int(), "of floating point, got torch.int32"),
        (lambda x: x.to(torch.complex64), "of floating point, got torch.complex64"),
        (lambda x: x.to_sparse(), "must be dense and of floating point, got torch.float32, torch.sparse_coo"),
        (lambda x: x.to("meta"), "must be on cpu, got meta"),
        (lambda x: x.numpy(), "must return a tensor"),
        (lambda x: {"a": x, "b": x}, "must return a tensor"),
        (lambda x: None, "must return a tensor"),
    ],
)
def test_outputs_that_cannot_be_used(spoil, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pf.sample(lambda x, t: spoil(x * 0.5), 5, shape=(2, *SHAPE))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: (out, None),
        lambda out: [out],
        lambda out: {"sample": out, "extra": 1},
        lambda out: {"only": out},
        lambda out: type("Output", (), {"sample": out}),
    ],
)
def test_forms_of_output(wrap, sampler):
    wrapped = Reporting(lambda x, t: wrap(Pointwise()(x, t)), sampler.plan, shape=(4, *SHAPE))
    assert torch.equal(wrapped(), sampler())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_an_output_in_our_own_memory_is_copied(backend, plan):
    aliased = Reporting(lambda x, t: x, plan, shape=(2, 3, 8, 8), backend=backend)
    fresh = Reporting(lambda x, t: x.clone(), plan, shape=(2, 3, 8, 8), backend=backend)
    for _ in range(2):  # the second call reads the state itself
        assert torch.equal(aliased(), fresh())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_network_that_writes_its_input(backend, plan):
    def writes(x, t):
        x.mul_(0.5)
        return x + 0.1

    def clean(x, t):
        return x * 0.5 + 0.1

    writing = Reporting(writes, plan, shape=(2, *SHAPE), backend=backend)
    wanted = pf.sample(clean, solver=plan, shape=(2, *SHAPE))
    for _ in range(2):
        assert torch.equal(writing(), wanted)
    assert not writing.report.direct


def test_a_network_that_starts_to_write_its_input_is_caught(plan):
    calls = []

    def later(x, t):
        calls.append(1)
        return x.mul_(0.5) if len(calls) > plan.nfe + 2 else x * 0.5

    sampler = Reporting(later, plan, shape=(2, *SHAPE))
    sampler()
    with pytest.raises(RuntimeError, match="changed its input in place"):
        sampler()


def test_the_network_reads_the_state_itself_where_it_can(sampler):
    sampler()
    sampler()
    assert sampler.report.direct
    odd = Reporting(Pointwise(), sampler.plan, shape=(2, 7))
    odd(), odd()
    assert not odd.report.direct


def test_time_dtypes():
    seen = []

    def network(x, t):
        seen.append((t.dtype, t[0].item()))
        return x * 0.5

    draw(network, 5, solver="ddim", shape=(2, *SHAPE), time_dtype=torch.int64)
    assert seen == [(torch.int64, t) for t in (800, 600, 400, 200, 0)]
    with pytest.raises(ValueError, match="integer_times=True"):
        draw(network, 40, shape=(2, *SHAPE), time_dtype=torch.int64)  # stage times of a stride of 25
    seen.clear()
    draw(network, 40, shape=(2, *SHAPE), time_dtype=torch.int64, integer_times=True)
    assert len(seen) == 49


def test_torchscript_and_compile():
    network = Conv()
    wanted = pf.sample(network, 4, shape=(2, *SHAPE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.trace(network, (torch.randn(2, *SHAPE), torch.zeros(2)))
    atol = rounding.of_samples(lambda net: pf.sample(net, 4, shape=(2, *SHAPE)), network)
    torch.testing.assert_close(pf.sample(traced, 4, shape=(2, *SHAPE)), wanted, rtol=0, atol=atol)
    compiled = torch.compile(network, backend="aot_eager")
    torch.testing.assert_close(pf.sample(compiled, 4, shape=(2, *SHAPE)), wanted, rtol=0, atol=atol)


def test_autograd_and_inference_mode_outside(plan):
    network = Conv()
    wanted = pf.sample(network, solver=plan, shape=(2, *SHAPE))
    sampler = Reporting(network, plan, shape=(2, *SHAPE))
    with torch.inference_mode():
        inside = sampler()
    assert torch.equal(inside, wanted) and not inside.is_inference()
    assert torch.equal(sampler(), wanted) and not sampler().requires_grad


def test_training_mode_warns(plan):
    with pytest.warns(UserWarning, match="training mode"):
        Reporting(Conv().train(), plan, shape=(2, *SHAPE))
