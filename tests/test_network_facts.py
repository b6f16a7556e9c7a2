"""What is known of a network before it is called: asked of it, never guessed, refused by name where in doubt."""

import copy
import functools
import types
import warnings

import pytest
import torch
from drawing import draw
from network_kinds import DDIM, LABELS, SHAPE, Small
from torch import nn

import pndm_fast as pf
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


# several networks


class Noting(Small):
    """Notes the dtypes of its inputs; answers in its own."""

    def __init__(self, dtype):
        super().__init__()
        self.seen = set()
        self.to(dtype)

    def forward(self, x, t, label):
        self.seen.add(x.dtype)
        return super().forward(x, t, label)


def by_hand(plan, predict):
    """The plan's DDIM in v, with predict(i, x, t) for row i."""
    from test_network_kinds import ddim_loop, noise

    rows = iter(range(len(plan)))
    with torch.no_grad():
        return ddim_loop(lambda x, t: predict(next(rows), x, t).float(), noise(SHAPE))


@pytest.mark.parametrize("dtypes", [(F32, BF16), (BF16, F32), (F32, torch.float64)])
def test_each_network_is_called_in_its_own_dtype(dtypes):
    networks, cond = [Noting(dtype) for dtype in dtypes], {"label": LABELS}
    got = pf.sample(networks, solver=DDIM.with_models([0, 1, 0, 1]), shape=SHAPE, cond=cond)
    assert [net.seen for net in networks] == [{dtype} for dtype in dtypes]
    wanted = by_hand(DDIM, lambda i, x, t: networks[i % 2](x.to(dtypes[i % 2]), t, LABELS))
    # one rounding to bfloat16 may go the other way
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=0.05 if BF16 in dtypes else 1e-5)
    both = [Noting(BF16), Noting(BF16)]
    draw(both, solver=DDIM.with_models([0, 1, 0, 1]), shape=SHAPE, cond=cond, dtype=BF16)
    assert all(net.seen == {BF16} for net in both)


@pytest.mark.parametrize("solver", ["plms", "f-pndm"])
def test_the_history_keeps_its_dtype_from_one_network_to_the_next(solver):
    """Past outputs in float32 stay so, though the network that reads them answers in bfloat16."""
    net = Small()
    plan = pf.make_plan(solver, steps=8)
    narrow, cond = lambda x, t, label: net(x, t, label).bfloat16(), {"label": LABELS}
    models = [0] * (len(plan) - 2) + [1] * 2
    got = pf.sample([net, narrow], solver=plan.with_models(models), start=pf.Noise(torch.ones(SHAPE)), cond=cond)
    calls = iter(models)
    alike = lambda x, t, label: net(x, t, label) if next(calls) == 0 else narrow(x, t, label).float()  # noqa: E731
    wanted = pf.sample(alike, solver=plan, start=pf.Noise(torch.ones(SHAPE)), cond=cond)
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("dtypes", [(F32, BF16), (BF16, F32)])
def test_a_weaker_network_is_called_in_its_own_dtype(dtypes):
    strong, weak = [Noting(dtype) for dtype in dtypes]
    sampler = pf.Sampler(strong, DDIM, shape=SHAPE)
    ask = {"cond": {"label": LABELS}, "guidance": pf.Guidance(1.5, weaker=weak)}
    got = sampler(**ask)
    assert (strong.seen, weak.seen) == ({dtypes[0]}, {dtypes[1]})
    assert torch.equal(sampler(**ask), got)

    def guided(i, x, t):
        without, out = (net(x.to(dtype), t, LABELS).float() for net, dtype in ((weak, dtypes[1]), (strong, dtypes[0])))
        return without + 1.5 * (out - without)

    torch.testing.assert_close(got.double(), by_hand(DDIM, guided), rtol=0, atol=0.05)


@pytest.mark.parametrize("graph", ["while", "replay"])
def test_a_graph_tells_the_time_by_name_and_a_weaker_network_in_its_dtype(stand_in, graph):
    net, weak = Small(), Noting(BF16)
    late = lambda x, label, *, timestep: net(x, timestep, label)  # noqa: E731
    ask = {"cond": {"label": LABELS}, "guidance": pf.Guidance(1.5, weaker=weak)}
    result = pf.Sampler(late, DDIM, shape=SHAPE, graph=graph).run(pf.Request(**ask))
    assert result.report.graph == graph and weak.seen == {BF16}
    assert torch.equal(result.samples, pf.Sampler(net, DDIM, shape=SHAPE, graph="eager")(**ask))


def test_a_copied_sampler_has_each_networks_own_dtype():
    networks, cond = [Small(), Noting(BF16)], {"label": LABELS}
    networks.append(lambda x, label, *, t: networks[0](x, t, label))
    sampler = pf.Sampler(networks, DDIM.with_models([0, 1, 2, 1]), shape=SHAPE)
    twin = copy.deepcopy(sampler)
    assert torch.equal(twin(cond=cond), sampler(cond=cond)) and twin.models[1].seen == {BF16}


def test_networks_are_on_one_device():
    elsewhere = Computed([F32], where=CUDA, told=F32)
    with pytest.raises(ValueError, match="model must be networks on one device, got cpu and cuda:0: device= says"):
        pf.Sampler([Small(), elsewhere], DDIM, shape=SHAPE)
    assert pf.Sampler([lambda x, t: x, Small()], DDIM, shape=SHAPE).device == CPU
    for weaker, message in (
        (elsewhere, "^weaker must be on cpu, as the sampler's network, got cuda:0"),
        (Holding([F32], device="meta"), "^device must be given for weaker, whose weights are all on the meta"),
        (Holding([F32, BF16]), "^dtype must be given for weaker, whose dtypes are several"),
        (named("t", "x"), "^weaker must take x first"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            pf.Sampler(Small(), DDIM, shape=SHAPE)(cond={"label": LABELS}, guidance=pf.Guidance(2.0, weaker=weaker))
    with pytest.raises(ValueError, match=r"^dtype must be given for model\[1\], whose dtypes are several"):
        pf.Sampler([Small(), Holding([F32, BF16])], DDIM, shape=SHAPE)
    told = pf.Sampler(Small(), DDIM, shape=SHAPE, device="cpu", dtype=F32)
    for weaker in (elsewhere, Holding([F32], device="meta"), Holding([F32, BF16])):
        told(cond={"label": LABELS}, guidance=pf.Guidance(2.0, weaker=weaker))
