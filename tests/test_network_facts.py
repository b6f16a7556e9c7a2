"""What is known of a network before it is called: asked of it, never guessed, refused by name where in doubt."""

import functools
import types
import warnings
from unittest import mock

import pytest
import torch
from network_kinds import DDIM, LABELS, SHAPE, Small
from torch import nn

import pndm_fast as pf
from pndm_fast.loop.memory_format import channels_for
from pndm_fast.loop.network import denoiser_of
from pndm_fast.loop.time_argument import TimeArgument, time_argument

F32, BF16, F16, F8, I8 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8


class Holding(nn.Module):
    """A network of tensors of these dtypes."""

    def __init__(self, parameters=(), buffers=(), device="cpu", **declared):
        super().__init__()
        for i, dtype in enumerate(parameters):
            self.register_parameter(f"p{i}", nn.Parameter(torch.zeros(2, device=device).to(dtype), requires_grad=False))
        for i, dtype in enumerate(buffers):
            self.register_buffer(f"b{i}", torch.zeros(2, device=device).to(dtype))
        for name, value in declared.items():
            setattr(self, name, value)
        self.eval()

    def forward(self, x, t, **cond):
        return x * 0.5


class Computed(Holding):
    dtype = property(lambda self: self.told)
    device = property(lambda self: self.where)


@pytest.mark.parametrize(
    "network, dtype",
    [
        (lambda x, t: x, None),
        (Holding([BF16, BF16]), BF16),
        (Holding([torch.float64], [F32]), torch.float64),
        (Holding([], [F16, F16]), F16),
        (Holding([I8], [F16]), F16),  # quantized: the scales say it
        (Holding([I8]), None),
        (Holding([F8, BF16]), BF16),  # weights that are only stored beside norms
        (Holding([BF16], device="meta"), BF16),
        (Computed([F32, BF16], told=BF16, where=None), BF16),
        (Computed([F8, F8], told=F16, where=None), F16),
        (Computed([BF16], told=F8, where=None), BF16),
        (Computed([BF16], told="bfloat16", where=None), BF16),
        (Holding([F8], dtype=BF16), BF16),
        (Holding([BF16], dtype=BF16), BF16),
        (Holding([BF16], dtype=None), BF16),
        (nn.DataParallel(Holding([BF16])), BF16),
        (nn.DataParallel(Computed([F32, BF16], told=BF16, where=None)), BF16),
        (torch.optim.swa_utils.AveragedModel(Holding([F16])), F16),
        (torch.compile(Computed([F32, BF16], told=BF16, where=None), backend="eager"), BF16),
        (functools.partial(Holding([BF16]), label=1), BF16),
        (Holding([BF16]).forward, BF16),
        (functools.partial(nn.DataParallel(Holding([BF16])).forward, label=1), BF16),
        (pf.Thresholded(Holding([BF16]), DDIM), BF16),
        (pf.Thresholded(lambda x, t: x, DDIM), None),  # its own levels, in float64, say nothing of the network
        (pf.phase_space.MomentumOnly(Computed([F8], told=F16, where=None)), F16),
    ],
)
def test_dtype(network, dtype):
    assert denoiser_of(network, device=torch.device("cpu")).dtype is dtype


@pytest.mark.parametrize(
    "network, message",
    [
        (Holding([F32, BF16]), "whose dtypes are several, got weights in bfloat16 and float32"),
        (Holding([F32, BF16, F8]), "got weights in bfloat16 and float32"),
        (nn.DataParallel(Holding([F32, BF16])), "got weights in bfloat16 and float32"),
        (Holding([], [F32, F16]), "got weights in float16 and float32"),
        (Holding([F8]), "whose weights are only stored so, got weights in float8_e4m3fn"),
        (Holding([], [F8]), "got weights in float8_e4m3fn"),
        (Computed([F8], told=F8, where=None), "got weights in float8_e4m3fn"),
        (Holding([BF16], dtype=F32), "got model.dtype float32 and weights in bfloat16"),  # older than `.bfloat16()`
        (Holding([F32, F16], dtype=F16), "got model.dtype float16 and weights in float16 and float32"),
    ],
)
def test_dtypes_in_doubt(network, message):
    with pytest.raises(ValueError, match=f"^dtype must be given for model, .*{message}: .*dtype=.... says it$"):
        pf.Sampler(network, DDIM, shape=SHAPE)
    assert pf.Sampler(network, DDIM, shape=SHAPE, dtype=F32)().dtype is F32


def hooked_inside(device, outer=True):
    """As accelerate's `cpu_offload` leaves it: the outer hook only puts outputs back."""
    net = hooked(None) if outer else Holding([F32], device="meta")
    net.block = hooked(None, device)
    return net


def hooked(*devices):
    hooks = [types.SimpleNamespace(execution_device=device) for device in devices]
    net = Holding([F32], device="meta")
    net._hf_hook = hooks[0] if len(hooks) == 1 else types.SimpleNamespace(hooks=hooks)
    return net


def partly_meta():
    net = Holding([F32, F32])
    net.p0 = nn.Parameter(torch.empty(2, device="meta"))
    return net


CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda:0")


@pytest.mark.parametrize(
    "network, device",
    [
        (lambda x, t: x, None),
        (Holding(), None),
        (Holding([F32]), CPU),
        (Holding([], [I8]), CPU),
        (partly_meta(), CPU),
        (hooked("cpu"), CPU),
        (hooked(None, CUDA), CUDA),
        (hooked_inside(CUDA), CUDA),
        (hooked_inside(CUDA, outer=False), CUDA),
        (nn.DataParallel(hooked("cpu")), CPU),
        (Computed([F32], device="meta", where=CUDA, told=F32), CUDA),
        (Computed([F32], where=META, told=F32), CPU),
        (Computed([F32], where="cuda", told=F32), CPU),
        (Holding([F32], device="cpu"), CPU),
        (functools.partial(Holding([F32])), CPU),
    ],
)
def test_device(network, device):
    assert denoiser_of(network).device == device


def declared(device, where):
    net = Holding([F32], device=where)
    net.device = device
    return net


@pytest.mark.parametrize(
    "network, message",
    [
        (Holding([F32], device="meta"), "weights are all on the meta device, got none: .*device=.* says it"),
        (Holding([], [F32], device="meta"), "weights are all on the meta device"),
        (declared(META, "meta"), "weights are all on the meta device"),
        (declared(CUDA, "cpu"), "which is on several, got model.device cuda:0 and weights on cpu"),
    ],
)
def test_devices_in_doubt(network, message):
    with pytest.raises(ValueError, match=f"^device must be given for model, .*{message}"):
        pf.Sampler(network, DDIM, shape=SHAPE)
    assert pf.Sampler(network, DDIM, shape=SHAPE, device="cpu").device == CPU


@pytest.mark.parametrize(
    "device, error, message",
    [
        ("meta", ValueError, "device must be one that computes, got meta"),
        ("tpu?", ValueError, "device must be one that torch can use here, got 'tpu.'"),
        (2.5, TypeError, "device must be a device such as 'cpu' or 'cuda:0', got 2.5"),
    ],
)
def test_devices_that_are_none(device, error, message):
    with pytest.raises(error, match=message):
        pf.Sampler(Holding(), DDIM, shape=SHAPE, device=device)


def named(*names, then=""):
    """A function with these arguments."""
    return eval(f"lambda {', '.join(names)}{then}: x")


def test_time_argument_of_signatures():
    def of(function):
        return time_argument(function).keyword

    assert of(named("x", "t")) is of(named("x", "s", "scale=1")) is of(named("x", "*rest")) is of(torch.add) is None
    assert of(named("x", "sigma", "t=0")) is None  # both may be, and the second is
    assert of(named("x", "context", "timesteps")) == of(named("img", "img_ids", "txt", "timesteps")) == "timesteps"
    assert of(named("x", "*", "noise_labels", "label=None")) == "noise_labels"
    assert of(named("x", "y", "timestep", "sigma=None")) == "timestep"  # of two the one that must be given
    assert of(named("x", "*rest", "time=0")) == "time"
    assert of(functools.partial(named("net", "x", "context", "t"), 1)) == "t"
    assert of(functools.partial(named("x", "context", "t"), context=1)) == "t"
    assert of(functools.partial(named("x", "t", "context"), context=1)) is None
    assert time_argument(named("x", "y", "t")) == TimeArgument("t", frozenset({"x", "t"}))
    assert time_argument(named("x", "t", "/", "y")).names == frozenset()


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_time_argument_of_wrappers():
    class Late(nn.Module):
        def forward(self, x, context, timestep):
            return x

    net = Late().eval()
    wrapped = [
        net, net.forward, nn.DataParallel(net), torch.compile(net, backend="eager"), functools.partial(net, context=1),
        torch.jit.trace(net, (torch.zeros(1),) * 3), torch.optim.swa_utils.AveragedModel(net),
        functools.partial(nn.DataParallel(net)), functools.wraps(net.forward)(lambda *a, **b: net(*a, **b)),
    ]  # fmt: skip
    assert [time_argument(one).keyword for one in wrapped] == ["timestep"] * len(wrapped)
    patched = Late()
    patched.forward = functools.update_wrapper(functools.partial(lambda net, *a, **b: None, patched), patched.forward)
    assert time_argument(patched).keyword == "timestep"  # as accelerate's and diffusers' hooks do
    own = functools.wraps(net.forward)(lambda x, t, **cond: net(x, timestep=t, **cond))
    assert time_argument(own).keyword is None  # what it shows itself goes first


class Package:
    """As an AOTInductor package tells of its arguments."""

    def __init__(self, arguments, names):
        import torch.utils._pytree as pytree

        spec = pytree.tree_structure(((0,) * arguments, {name: 0 for name in names}))
        self.loader = types.SimpleNamespace(get_call_spec=lambda: [pytree.treespec_dumps(spec), ""])

    def __call__(self, *args, **named):
        return args[0]


def test_time_argument_of_packages():
    assert time_argument(Package(2, ["label"])).keyword is None
    assert time_argument(Package(1, ["context", "timestep"])).keyword == "timestep"
    with pytest.raises(TypeError, match="there is none"):
        time_argument(Package(1, ["context"]))


def exported(**named):
    class Late(nn.Module):
        def forward(self, x, context, timestep):
            return x * timestep + context

    arguments = [torch.zeros(2)] * (3 - len(named))
    return torch.export.export(Late().eval(), tuple(arguments), named).module()


@pytest.mark.slow
def test_time_argument_of_exported_programs():
    assert time_argument(exported(context=torch.zeros(2), timestep=torch.zeros(2))).keyword == "timestep"
    with pytest.raises(TypeError, match="timestep has no keyword"):  # such a program takes no other form
        time_argument(exported())


@pytest.mark.parametrize(
    "network, message",
    [
        (named("x"), "got .x., where there is none"),
        (named("x", "*", "label"), "where there is none"),
        (named("x", "**cond"), r"got \(x, \*\*cond\), where there is none"),
        (named("t", "x"), r"got \(t, x\), where t is first"),
        (named("timestep", "x", "y"), "where timestep is first"),
        (named("x", "encoder_hidden_states", "pooled_projections"), "where its second is encoder_hidden_states"),
        (named("x", "class_labels=None"), "where its second is class_labels"),
        (named("x", "context", "t", "sigma"), "where it may be any of t, sigma"),
        (named("x", "context", "t", "/"), "where t has no keyword"),
        (functools.partial(named("x", "context", "t"), t=1), "where its second is context"),
        (nn.DataParallel(nn.Linear(3, 3).eval()), r"got \(input\), where there is none"),
    ],
)
def test_networks_without_a_place_for_the_time(network, message):
    with pytest.raises(TypeError, match=f"^model must take x first, and the time second .*{message}: wrap it"):
        pf.Sampler(network, DDIM, shape=SHAPE)


@pytest.mark.parametrize("key", ["x", "timestep"])
def test_conditioning_in_the_place_of_what_the_sampler_gives(key):
    network, cond = named("x", "label", "timestep"), {"label": LABELS, key: LABELS}
    refusal = f"cond must not have the key '{key}': the sampler gives that argument of the network"
    with pytest.raises(ValueError, match=refusal):
        pf.sample(network, solver=DDIM, shape=SHAPE, cond=cond)
    guidance = pf.Guidance(2.0, weaker=network)
    with pytest.raises(ValueError, match=refusal):
        pf.sample(lambda *args, **cond: args[0], solver=DDIM, shape=SHAPE, cond=cond, guidance=guidance)


def test_the_mode_is_the_inner_networks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.Sampler(nn.DataParallel(Small()), DDIM, shape=SHAPE)  # itself in training mode, as it is made
    outer = nn.DataParallel(Small()).eval()
    outer.module.train()
    for network in (outer, functools.partial(Small().train()), Small().train().forward):
        with pytest.warns(UserWarning, match="the model is in training mode"):
            pf.Sampler(network, DDIM, shape=SHAPE)


def test_wrappers_of_the_package_tell_the_time_as_the_network_takes_it():
    net = Small()
    plan = pf.make_plan("ddim", steps=4, spacing="trailing")
    late = pf.Thresholded(lambda x, label, *, timestep: net(x, timestep, label), plan)
    wanted = pf.sample(pf.Thresholded(net, plan), solver=plan, shape=SHAPE, cond={"label": LABELS})
    assert torch.equal(pf.sample(late, solver=plan, shape=SHAPE, cond={"label": LABELS}), wanted)


def test_what_else_is_asked_of_the_inner_network():
    net = Small().to(memory_format=torch.channels_last)
    assert channels_for(functools.partial(net, label=LABELS), None, SHAPE[1:]) == SHAPE[1]
    net.is_cache_enabled = True
    with pytest.raises(ValueError, match="prepare calls the network, which a stateful one would remember"):
        pf.Sampler(nn.DataParallel(net), DDIM, shape=SHAPE).prepare([1])


def test_shared_tensors_are_not_for_what_deals_them_out():
    plan = pf.make_plan("ddim", steps=2, spacing="trailing")

    class Net(torch.nn.Module):
        def forward(self, x, t, c):
            return x * 0.5 + c.sum()

    network = torch.nn.DataParallel(Net()).eval()
    shared = {"c": {"inner": [pf.Shared({"a": torch.ones(3)})]}}
    network.device_ids = [0, 1]
    with pytest.raises(ValueError, match="cond must not share tensors with a DataParallel network"):
        pf.sample(network, solver=plan, shape=(2, 3), cond=shared)
    network = torch.nn.DataParallel(Net()).eval()
    pf.sample(network, solver=plan, shape=(2, 3), cond={"c": pf.Shared(torch.ones(3))})


def test_a_first_tensor_that_stays_does_not_hide_the_others_change():
    """What is remembered is asked again where the last tensor has changed: scales that stay in float32 come first."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(8)), nn.Sequential(nn.Linear(8, 8), nn.SiLU())
            self.eval().requires_grad_(False)

        dtype = property(lambda self: self.inner[0].weight.dtype)

        def forward(self, x, t):
            assert x.dtype is self.dtype
            return self.inner(x) * 0.1

    network = Scaled()
    for dtype in (F32, BF16, F32):
        network.inner.to(dtype)
        assert bool(pf.sample(network, solver=DDIM, shape=(1, 8)).isfinite().all())


@pytest.mark.parametrize(
    "said, dtype",
    [("which the network does not say", None), ("the network says torch.float16, maybe since a later change", F16)],
)
def test_a_networks_own_error_of_types_is_explained(said, dtype):
    """Its message names two types, and not where the input's comes from."""
    network = Holding([F32]).eval()
    inner = nn.Linear(8, 8, dtype=F16)
    sampler = pf.Sampler((lambda x, t: inner(x)) if dtype is None else network, DDIM, shape=(1, 8))
    network.forward = lambda x, t: inner(x)
    network.half()
    with pytest.raises(RuntimeError, match="dtype") as error:
        sampler()
    note = f"its input is torch.float32; {said}: pf.Sampler(model, plan, dtype=...) says another"
    assert error.value.__notes__ == [note]


def test_other_errors_of_a_network_are_left_alone():
    def fails(x, t):
        raise RuntimeError("no more memory cards")

    with pytest.raises(RuntimeError) as error:
        pf.sample(fails, solver=DDIM, shape=(1, 8))
    assert not hasattr(error.value, "__notes__")


@pytest.mark.parametrize("kind", [mock.Mock, mock.MagicMock])
def test_an_object_that_answers_to_every_name(kind):
    network = kind(side_effect=lambda x, t: x * 0.5)
    wanted = pf.sample(lambda x, t: x * 0.5, solver=DDIM, shape=(1, 8))
    assert torch.equal(pf.sample(network, solver=DDIM, shape=(1, 8)), wanted) and network.call_count == DDIM.nfe
