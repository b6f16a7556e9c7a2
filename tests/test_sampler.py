"""`sample` and `Sampler`: what a caller relies on, whatever the solver."""

import threading
import warnings

import numpy as np
import pytest
import rounding
import torch
from drawing import Reporting, draw
from golden_data import FROM_NOISE, GUIDED, START, mixture, named_stress
from torch import nn

import pndm_fast as pf
from pndm_fast.row.noise import normals, seed_tensor

SHAPE = (3, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")


class Conv(nn.Module):
    """A small network: convolutions, time and an optional label; its output depends on all of them."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.label = nn.Embedding(11, 8)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        self.to(dtype).eval()

    def forward(self, x, t, labels=None):
        h = self.first(x) + (t.to(x.dtype) / 1000)[:, None, None, None]
        if labels is not None:
            h = h + self.label(labels)[:, :, None, None]
        return self.last(torch.tanh(h))


class Pointwise:
    """A batch-invariant network: each element by itself, the same arithmetic at every batch size."""

    def __call__(self, x, t, shift=None):
        out = x * 0.5 + (t / 1000).view(-1, *[1] * (x.dim() - 1))
        return out if shift is None else out + shift.view(-1, *[1] * (x.dim() - 1))


@pytest.fixture
def plan():
    return pf.make_plan("f-pndm", steps=6)


@pytest.fixture
def sampler(plan):
    return Reporting(Pointwise(), plan, shape=(4, *SHAPE))


def test_defaults_need_only_a_model():
    class Configured(Conv):
        config = {"in_channels": 3, "sample_size": (8, 8)}

    x = pf.sample(Configured())
    assert x.shape == (1, *SHAPE) and x.dtype is torch.float32 and x.is_contiguous() and not x.requires_grad


def test_the_default_dtype_is_the_callers_affair(plan):
    wanted = pf.sample(Pointwise(), solver=plan, shape=(2, *SHAPE))
    torch.set_default_dtype(torch.float64)
    try:
        for backend in ("cpp", "reference"):
            got = draw(Pointwise(), solver=plan, shape=(2, *SHAPE), backend=backend, device="cpu")
            assert got.dtype is torch.float32 and torch.equal(got, wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_same_seed_same_bytes(sampler):
    first = sampler(seeds=7)
    for _ in range(5):
        assert torch.equal(sampler(seeds=7), first)
    assert torch.equal(pf.sample(Pointwise(), 6, shape=(4, *SHAPE), seeds=7), first)
    assert not torch.equal(sampler(seeds=8), first)


def test_start_is_the_seeds_noise():
    seen = []
    pf.sample(lambda x, t: seen.append(x.clone()) or x * 0, 4, shape=(2, *SHAPE), seeds=[5, 2**64 - 1])
    wanted = normals(seed_tensor([5, 2**64 - 1]), 0, 192).view(2, *SHAPE)
    assert torch.equal(seen[0], wanted)


@pytest.mark.filterwarnings("ignore:(alphafold-3|edm|heun|dpm-2-.*|dpm-fast) diverges")  # few steps are enough for bits
@pytest.mark.parametrize("solver", FROM_NOISE)
def test_a_sample_does_not_depend_on_its_batch(solver):
    sampler = Reporting(Pointwise(), pf.make_plan(solver, steps=6), shape=(1, *SHAPE))
    seeds = [3, 14, 15, 92, 65]
    together = sampler(seeds=seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(sampler(seeds=seed)[0], together[i])
    assert torch.equal(sampler(seeds=seeds[::-1]).flip(0), together)


def test_integer_seed_counts_up(sampler):
    assert torch.equal(sampler(seeds=10), sampler(seeds=[10, 11, 12, 13]))
    assert torch.equal(sampler(seeds=np.int64(10)), sampler(seeds=np.arange(10, 14)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm", "plms"])
def test_backends_agree_to_the_bit(dtype, solver):
    """C++ and reference, with a real network between the rows."""
    results = [
        draw(Conv(dtype), 5, solver=solver, shape=(3, *SHAPE), seeds=4, backend=backend)
        for backend in ("cpp", "reference")
    ]
    assert torch.equal(*results)


LABELS = {"cond": {"labels": torch.tensor([1, 2])}, "uncond": {"labels": torch.tensor([10, 10])}, "guidance": 0.7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", [*GUIDED, "restart"])
def test_backends_agree_to_the_bit_on_both_outputs(dtype, solver):
    results = [
        draw(Conv(dtype), 5, solver=solver, shape=(2, *SHAPE), seeds=4, backend=backend, **LABELS)
        for backend in ("cpp", "reference")
    ]
    assert torch.equal(*results) and results[0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dpmpp-2s-ancestral-cfg-pp", "res-multistep-ancestral-cfg-pp", "restart"])
def test_triton_agrees_to_the_bit_on_both_outputs(solver, triton_device):
    network = Conv().to(triton_device)
    given = {"shape": (2, *SHAPE), "seeds": 4, "solver": solver, **LABELS}
    given |= {name: {"labels": LABELS[name]["labels"].to(triton_device)} for name in ("cond", "uncond")}
    triton, reference = (draw(network, 3, backend=backend, **given) for backend in ("triton", "reference"))
    assert torch.equal(triton, reference)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
def test_triton_agrees_to_the_bit(solver, triton_device):
    network = Conv().to(triton_device)
    triton = draw(network, 4, solver=solver, shape=(2, *SHAPE), seeds=4, backend="triton")
    reference = draw(network, 4, solver=solver, shape=(2, *SHAPE), seeds=4, backend="reference")
    assert torch.equal(triton, reference)


@pytest.fixture
def triton_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("size", [1, 7, 784, 65537])
def test_odd_sizes(size):
    results = [draw(Pointwise(), 5, solver="ddpm", shape=(2, size), seeds=1, backend=b) for b in ("cpp", "reference")]
    assert torch.equal(*results)


def test_low_precision_network_keeps_a_float32_state():
    """The result of a bfloat16 network is the float32 trajectory through its rounded outputs, not a rounded one."""
    network = Conv(torch.bfloat16)
    seen = []
    x = draw(lambda x, t: seen.append(x.dtype) or network(x, t), 5, dtype=torch.bfloat16, shape=(2, *SHAPE))
    assert set(seen) == {torch.bfloat16} and x.dtype is torch.float32
    assert not torch.equal(x, x.bfloat16().float())


def test_noise_and_state():
    noise = torch.randn(2, *SHAPE)
    assert torch.equal(
        pf.sample(Pointwise(), 5, start=pf.Noise(noise), schedule=pf.Schedule.linear()),
        pf.sample(Pointwise(), 5, start=pf.State(noise), schedule=pf.Schedule.linear()),
    )
    assert pf.sample(Pointwise(), 5, start=pf.Noise(noise.double())).dtype is torch.float64
    assert pf.sample(Pointwise(), 5, start=pf.Noise(noise.half())).dtype is torch.float32


def test_float64_is_exact_and_float32_near():
    exact = pf.sample(mixture(pf.Schedule.linear()), 20, start=pf.Noise(START))
    near = pf.sample(mixture(pf.Schedule.linear()), 20, start=pf.Noise(START.float()))
    # rounding of the start and of each row: sum |coefficients| eps_mach rows
    assert (near - exact).abs().max() < 29 * 10 * torch.finfo(torch.float32).eps


def test_a_float64_network_has_a_float64_state():
    network = Conv(torch.float64)
    x = pf.sample(network, 5, shape=(2, *SHAPE), seeds=3)
    start = normals(seed_tensor([3, 4]), 0, 192).view(2, *SHAPE)
    assert x.dtype is torch.float64
    assert torch.equal(x, pf.sample(network, 5, start=pf.Noise(start.double())))
    assert torch.equal(x, pf.sample(network, 5, start=pf.Noise(start)))


def test_noises_replace_philox():
    seeds = seed_tensor([0, 1])
    asked = []

    def noises(index):
        asked.append(index)
        return normals(seeds, index, 192).view(2, *SHAPE)

    ours = pf.sample(Pointwise(), 4, solver="ddpm", shape=(2, *SHAPE), seeds=0)
    theirs = draw(Pointwise(), 4, solver="ddpm", shape=(2, *SHAPE), noise_sampler=noises)
    assert torch.equal(ours, theirs)
    assert asked == [0, 2, 3, 4]  # x_T, then rows 0, 1 and 2; the last draws none


def test_conditioning_reaches_the_network():
    # the plan grows a network's rounding 500-fold: in float64 far below the law, on any processor
    network, labels = Conv(torch.float64), torch.tensor([1, 2])
    x = pf.sample(network, 4, shape=(2, *SHAPE), cond={"labels": labels})
    alone = pf.sample(network, 4, shape=(1, *SHAPE), seeds=1, cond={"labels": labels[1:]})
    torch.testing.assert_close(x[1:], alone, rtol=0, atol=1e-10)
    assert not torch.allclose(x, pf.sample(network, 4, shape=(2, *SHAPE)), atol=1e-3)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_guidance_is_one_batched_call(backend):
    calls = []

    def network(x, t, shift):
        calls.append((len(x), len(t), shift.tolist()))
        return Pointwise()(x, t, shift)

    shift, nothing = torch.tensor([0.1, 0.2]), torch.zeros(2)
    sampler = Reporting(network, pf.make_plan("ddim", steps=5), shape=(2, *SHAPE), backend=backend)
    x = sampler(cond={"shift": shift}, uncond={"shift": nothing}, guidance=3.0)
    assert calls == [(4, 4, pytest.approx([0.0, 0.0, 0.1, 0.2]))] * 5
    assert sampler.report.guidance == "batched" and sampler.report.calls == 5
    # for a network linear in its condition, guidance g is the condition scaled by g
    torch.testing.assert_close(x, sampler(cond={"shift": 3 * shift}), rtol=1e-4, atol=1e-5)


def test_guidance_takes_two_calls_where_it_must():
    def ragged(x, t, text=None):
        return x * 0.5 + (0 if text is None else text.mean())

    cond, uncond = {"text": torch.ones(2, 7)}, {"text": torch.ones(2, 3)}
    sampler = Reporting(ragged, pf.make_plan("ddim", steps=5), shape=(2, *SHAPE))
    x = sampler(cond=cond, uncond=uncond, guidance=2.0)
    assert sampler.report.calls == 10 and "two calls" in sampler.report.guidance
    torch.testing.assert_close(x, sampler(cond=cond), rtol=1e-6, atol=1e-6)
    sampler(cond=cond, uncond={"text": None}, guidance=2.0)
    assert sampler.report.calls == 10


def test_guidance_where_the_network_refuses_a_double_batch():
    def fixed(x, t, shift):
        if len(x) != 2:
            raise RuntimeError("batch must be 2")
        return Pointwise()(x, t, shift)

    sampler = Reporting(fixed, pf.make_plan("ddim", steps=5), shape=(2, *SHAPE))
    arguments = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}, "guidance": 2.0}
    first = sampler(**arguments)
    assert "refused a batch of 4: batch must be 2" in sampler.report.guidance
    for calls in (11, 10):  # it is asked once more: a refusal may be chance
        assert torch.equal(sampler(**arguments), first) and sampler.report.calls == calls


def test_guidance_of_one_makes_no_second_evaluation(sampler):
    arguments = {"cond": {"shift": torch.ones(4)}, "uncond": {"shift": torch.zeros(4)}}
    assert torch.equal(sampler(**arguments, guidance=1.0), sampler(cond=arguments["cond"]))
    assert sampler.report.guidance == "none"


def test_two_calls_survive_a_static_output():
    """A network that answers in one buffer of its own (CUDA graphs do) must not overwrite the first answer."""
    static = torch.empty(2, *SHAPE)

    def network(x, t, text):
        return static.copy_(Pointwise()(x, t) + text.mean())

    plan = pf.make_plan("ddim", steps=4)
    arguments = {"cond": {"text": torch.ones(2, 7)}, "uncond": {"text": torch.zeros(2, 3)}, "guidance": 2.0}
    x = pf.sample(network, solver=plan, shape=(2, *SHAPE), **arguments)
    wanted = pf.sample(lambda x, t: Pointwise()(x, t) + 2, solver=plan, shape=(2, *SHAPE))
    torch.testing.assert_close(x, wanted, rtol=1e-6, atol=1e-6)


def test_plans_of_one_batch_may_differ(sampler):
    plans = [
        pf.make_plan("ddim", steps=3),
        pf.make_plan("f-pndm", steps=5),
        pf.make_plan("ddpm", steps=4),
        pf.make_plan("ddim", steps=3),
    ]
    together = sampler(seeds=0, plan=plans)
    for i, plan in enumerate(plans):
        assert torch.equal(together[i], sampler(seeds=[i], plan=plan)[0])
    assert sampler.report.nfe == 3
    assert sampler(seeds=0, plan=plans).shape == (4, *SHAPE) and sampler.report.nfe == 14


class ChannelsLast(Conv):
    """Returns channels_last whatever it is given, as fast networks do."""

    def forward(self, x, t, labels=None):
        return super().forward(x, t, labels).contiguous(memory_format=torch.channels_last)


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


def test_steps_are_shown(sampler):
    steps = []
    result = sampler(on_step=lambda step: steps.append((step.index, step.nfe, step.t, step.state, step.x0)))
    assert [s[0] for s in steps] == list(range(15)) and {s[1] for s in steps} == {15}
    assert [s[2] for s in steps] == list(sampler.plan.times)
    assert torch.equal(steps[-1][3], result)
    assert not torch.equal(steps[-2][3], result)  # copies, not the living buffer
    last = []
    result = sampler(plan=pf.make_plan("ddim", steps=5), on_step=lambda step: last.append(step.x0))
    torch.testing.assert_close(last[-1], result)  # DDIM ends on the network's last estimate


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(
    "solver", [*named_stress(sorted(set(FROM_NOISE) - {"lcm"})), "diffusers plms", "diffusers f-pndm"]
)
def test_x0_estimates_of_a_single_point(solver, prediction):
    """Where the data is one point, every estimate of x_0 is that point."""
    compat, _, solver = solver.rpartition(" ")
    schedule, point = pf.Schedule.linear(), 0.7

    def network(x, t):
        alpha, sigma = (float(f(float(t[0]))) for f in (schedule.alpha, schedule.sigma))
        eps = (x - alpha * point) / sigma
        return eps if prediction == "eps" else alpha * eps - sigma * point

    estimates = []
    noise = torch.randn(2, 5, dtype=torch.float64)
    plan = pf.make_plan(solver, steps=50, prediction=prediction, compat=compat or None)
    draw(network, solver=plan, start=pf.Noise(noise), on_step=lambda step: estimates.append(step.x0))
    for estimate in estimates:
        assert (estimate - point).abs().max() < 1e-9


def test_cancel(sampler):
    seen = []

    def stop(step):
        seen.append(step.state)
        if step.index == 4:
            step.cancel()

    with pytest.raises(pf.Cancelled, match="after row 4") as caught:
        sampler(on_step=stop)
    assert len(seen) == 5 and torch.equal(caught.value.state, seen[-1]) and caught.value.index == 4
    assert caught.value.x0.shape == (4, *SHAPE)
    assert torch.equal(sampler(), sampler())  # the sampler is as good as before


def test_errors_in_a_callback_or_network_leave_the_sampler_whole(sampler):
    wanted = sampler()

    def fail(step):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sampler(on_step=fail)
    assert torch.equal(sampler(), wanted)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan(backend, value, plan):
    def network(x, t):
        out = x * 0.5
        if t[0] < 500:
            out[2, 0, 3, 3] = value
        return out

    sampler = Reporting(network, plan, shape=(4, *SHAPE), backend=backend)
    row = next(i for i, t in enumerate(plan.times) if t < 500)
    for _ in range(2):
        with pytest.raises(pf.NonFiniteError, match=f"sample 2 at row {row}, t = {plan.times[row]:g}") as caught:
            sampler()
    assert caught.value.bad == (pf.BadSample(2, row, plan.times[row]),)
    good = [0, 1, 3]
    clean = pf.sample(lambda x, t: x * 0.5, solver=plan, shape=(4, *SHAPE))
    assert torch.equal(caught.value.samples[good], clean[good])
    marked = sampler(on_nan="mark")
    assert marked[2].isnan().all() and torch.equal(marked[good], clean[good])
    assert torch.equal(sampler(on_nan="ignore")[good], clean[good])


def test_clipped_plan_still_reports_nan():
    """The clamp must not hide what the network did."""
    plan = pf.make_plan("ddim", steps=4, clip=1.0)
    with pytest.raises(pf.NonFiniteError):
        pf.sample(lambda x, t: x / 0, solver=plan, shape=(1, 8))


@pytest.mark.parametrize("solver", FROM_NOISE)
def test_clip_bounds_the_estimate(solver):
    """Whatever a solver's slots hold; a limit that no estimate reaches changes nothing."""
    plan = pf.make_plan(solver, steps=8, spacing="trailing")
    noise = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(plan, gain):
        seen = []
        result = draw(lambda x, t: x * gain, solver=plan, start=pf.Noise(noise), on_step=lambda s: seen.append(s.x0))
        return result, max(float(x0.abs().max()) for x0 in seen)

    free, reached = run(plan, 0.9)
    assert reached > 0.5
    assert run(pf.make_plan(solver, steps=8, spacing="trailing", clip=0.5), 0.9)[1] <= 0.5 + 1e-9
    wide = run(plan.with_clip(2 * reached), 0.9)[0]
    assert torch.allclose(wide, free, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="clip must be given once"):
        plan.with_clip(1.0).with_clip(1.0)


def test_progress_is_drawn(sampler, capsys):
    sampler(progress=True)
    assert "f-pndm" in capsys.readouterr().err


def test_threads_share_a_sampler():
    """8 threads, 50 mixed requests each, on shared objects: the bits of the sequential run."""
    network = Pointwise()
    solvers = [("ddim", 3), ("s-pndm", 4), ("f-pndm", 5), ("plms", 4), ("ddpm", 3), ("ipndm", 6)]
    plans = [pf.make_plan(name, steps=steps) for name, steps in solvers]
    sampler = Reporting(network, plans[0], shape=(2, *SHAPE))
    requests = []
    for i in range(50):
        request = {"plan": plans[i % 6], "seeds": [i, i + 7, i * 31][: 1 + i % 3]}
        if i % 4 == 0:
            batch = len(request["seeds"])
            request |= {"cond": {"shift": torch.full((batch,), 0.1)}, "uncond": {"shift": torch.zeros(batch)}}
            request["guidance"] = 2.0 + i % 3
        requests.append(request)
    wanted = [sampler(**request) for request in requests]
    failures = []

    def work(offset):
        for i in range(50):
            k = (i * 7 + offset * 13) % 50
            if not torch.equal(sampler(**requests[k]), wanted[k]):
                failures.append((offset, k))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_report_and_reset(sampler):
    result = sampler.run(pf.Request())
    report = result.report
    assert torch.equal(result.samples, sampler()) and result.bad == ()
    assert (report.nfe, report.calls, report.batch, report.device, report.backend) == (15, 15, 4, "cpu", "cpp")
    assert report.seconds > 0 and report.buffer_bytes > 4 * 192 * 4 * 8
    sampler.reset()
    assert torch.equal(sampler(), sampler())


def test_many_plans_do_not_pile_up():
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=2), shape=(1, 16))
    for steps in range(2, 80):
        sampler(plan=pf.make_plan("ddim", steps=steps))
    assert len(sampler.cache.tables._values) <= 32


def test_doubtful_starts():
    with pytest.warns(UserWarning, match="trailing"):
        pf.sample(Pointwise(), 2, solver="ddim", shape=(1, 8))
    with pytest.raises(ValueError, match="alpha is 0.9.*trailing.*start=State"):
        pf.sample(Pointwise(), solver=pf.make_plan("ddim", times=[100, 50, -1]), shape=(1, 8))
    pf.sample(Pointwise(), solver=pf.make_plan("ddim", times=[100, 50, -1]), start=pf.State(torch.randn(1, 8)))


def test_sample_remembers_a_network_while_it_lives():
    """A second `sample` learns nothing again; a network that is gone leaves nothing behind."""
    import gc
    import weakref

    from pndm_fast.runtime import cache

    calls = []

    class Counting(ChannelsLast):
        def forward(self, x, t):
            calls.append(len(x))
            return super().forward(x, t)

    network = Counting()
    first = pf.sample(network, 4, solver="ddim", shape=(2, *SHAPE))
    assert len(calls) == 4
    assert torch.equal(pf.sample(network, 4, solver="ddim", shape=(2, *SHAPE)), first) and len(calls) == 8
    assert torch.equal(pf.sample(network.forward, 4, solver="ddim", shape=(2, *SHAPE)), first)
    alive = weakref.ref(network)
    held = len(cache._OF_MODEL)
    del network
    gc.collect()
    assert alive() is None and len(cache._OF_MODEL) < held


def test_autocast_is_another_form():
    network = Conv()
    sampler = Reporting(network, pf.make_plan("ddim", steps=3), shape=(2, *SHAPE))
    plain = sampler()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sampler()
    assert torch.equal(sampler(), plain) and not torch.equal(rounded, plain)
