"""Kinds of networks with tiny random weights: each gives samples by one call, and what to compare them with.

A kind is a function that returns (samples, predict, rule): `predict(x, t)` calls the network as its own users do.
"""

import functools
import types

import torch
from torch import nn

import pndm_fast as pf

KINDS, SLOW = {}, set()
V = dict(steps=4, solver="ddim", spacing="trailing", prediction="v", seeds=(0, 1))
SHAPE = (2, 3, 8, 8)
DDIM = pf.make_plan("ddim", steps=4, spacing="trailing", prediction="v")
LABELS = torch.tensor([1, 2])


def flow(T):
    return dict(steps=3, solver="euler", schedule=pf.Schedule.flow(3.0, T), prediction="flow", seeds=(0, 1))


def kind(make):
    KINDS[make.__name__] = make
    return make


def slow(make):
    SLOW.add(make.__name__)
    return make


def filled(network, seed=0):
    """In evaluation mode, with weights that let every input through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            scale = p[0].numel() ** -0.5 if p.dim() > 1 else 0.2
            p.copy_(scale * noise + (p.dim() < 2 and "norm" in name and name.endswith("weight")))
    return network.eval().requires_grad_(False)


class Small(nn.Module):
    """Its output depends on x, on the time and on a label."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.label = nn.Embedding(4, 4)
        filled(self)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + self.label(label)[:, :, None, None] + (t / 250).to(x.dtype)[:, None, None, None]
        return self.last(torch.tanh(h))


def small(wrap=lambda net: net, cond=None, **more):
    """Of a wrapped `Small`, called with its label."""
    net = Small()
    samples = pf.sample(wrap(net), shape=SHAPE, cond={"label": LABELS} if cond is None else cond, **V, **more)
    return samples, lambda x, t: net(x, t, LABELS), "v"


@kind
def plain_function():
    net = Small()

    def network(x, t, **cond):
        return net(x, t, **cond)

    return pf.sample(network, shape=SHAPE, cond={"label": LABELS}, **V), lambda x, t: net(x, t, LABELS), "v"


@kind
def any_arguments():
    return small(lambda net: lambda *args, **cond: net(*args, **cond))


@kind
def module():
    return small()


@kind
def time_by_another_name():
    return small(lambda net: lambda x, label, *, noise_level: net(x, noise_level, label))


@kind
def module_with_config():
    net = Small()
    net.config = {"in_channels": 3, "sample_size": (8, 8)}
    return pf.sample(net, cond={"label": LABELS}, **V), lambda x, t: net(x, t, LABELS), "v"


@kind
def data_parallel():
    net = Small()
    net.config = types.SimpleNamespace(in_channels=3, sample_size=[8, 8])
    return pf.sample(nn.DataParallel(net), cond={"label": LABELS}, **V), lambda x, t: net(x, t, LABELS), "v"


@kind
def moving_average():
    return small(torch.optim.swa_utils.AveragedModel)


@kind
@slow
def compiled():
    return small(lambda net: torch.compile(net, backend="eager"))


@kind
@slow
def compiled_function():
    return small(lambda net: torch.compile(lambda x, label, timestep: net(x, timestep, label), backend="eager"))


@kind
def traced():
    return small(lambda net: torch.jit.trace(net, (torch.zeros(SHAPE), torch.zeros(2), LABELS)))


@kind
def scripted():
    return small(torch.jit.script)


@kind
@slow
def exported():
    net, batch = Small(), torch.export.Dim("batch")
    sizes = {name: {0: batch} for name in ("x", "t", "label")}
    inputs = torch.zeros(SHAPE), torch.zeros(2)
    program = torch.export.export(net, inputs, {"label": LABELS}, dynamic_shapes=sizes)
    samples = pf.sample(program.module(), shape=SHAPE, cond={"label": LABELS}, **V)
    return samples, lambda x, t: net(x, t, LABELS), "v"


@kind
@slow
def exported_with_a_named_time():
    net, batch = Small(), torch.export.Dim("batch")

    class Named(nn.Module):
        def forward(self, x, label, timestep):
            return net(x, timestep, label)

    sizes = {name: {0: batch} for name in ("x", "label", "timestep")}
    named = {"label": LABELS, "timestep": torch.zeros(2)}
    program = torch.export.export(Named().eval(), (torch.zeros(SHAPE),), named, dynamic_shapes=sizes)
    samples = pf.sample(program.module(), shape=SHAPE, cond={"label": LABELS}, **V)
    return samples, lambda x, t: net(x, t, LABELS), "v"


@kind
def partial():
    return small(lambda net: functools.partial(net, label=LABELS), cond={})


@kind
def bound_method():
    return small(lambda net: net.forward)


@kind
def decorated():
    def logged(net):
        @functools.wraps(net.forward)
        def network(*args, **named):
            return net(*args, **named)

        return network

    return small(logged)


@kind
def tuple_output():
    return small(lambda net: lambda x, t, label: (net(x, t, label), None))


@kind
def dict_output():
    return small(lambda net: lambda x, t, label: {"sample": net(x, t, label), "more": 1})


@kind
def object_output():
    return small(lambda net: lambda x, t, label: types.SimpleNamespace(sample=net(x, t, label)))


@kind
def learned_variance():
    return small(lambda net: lambda x, t, label: torch.cat([net(x, t, label), x], dim=1))


class Mixed(Small):
    """In bfloat16, with a first layer that stays in float32."""

    def __init__(self):
        super().__init__()
        self.bfloat16()
        self.label.float()

    def forward(self, x, t, label):
        h = self.first(x) + self.label(label)[:, :, None, None].to(x.dtype) + (t / 250).to(x.dtype)[:, None, None, None]
        return self.last(torch.tanh(h))


@kind
def bfloat16_with_float32_parts():
    net = Mixed()
    samples = pf.Sampler(net, DDIM, shape=SHAPE, dtype=torch.bfloat16)(cond={"label": LABELS})
    return samples, lambda x, t: net(x.bfloat16(), t, LABELS), "v"


@kind
def own_storage_in_float8():
    class Stored(nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
            self.weight = nn.Parameter(weight, requires_grad=False)

        def forward(self, x, t):
            return torch.tanh(x @ self.weight.to(x.dtype) + (t / 250)[:, None])

    net = Stored().eval()
    return pf.Sampler(net, DDIM, shape=(2, 3), dtype=torch.float32)(), net, "v"


class Offloaded(nn.Module):
    """Its weights are elsewhere between calls."""

    def __init__(self):
        super().__init__()
        self.inner = Small()
        self.weight = nn.Parameter(torch.empty(3, device="meta"))
        self._parts = [self._modules.pop("inner")]

    def forward(self, x, t, label):
        return self._parts[0](x, t, label)


@kind
def weights_on_the_meta_device():
    net = Offloaded().eval()
    samples = pf.Sampler(net, DDIM, shape=SHAPE, device="cpu")(cond={"label": LABELS})
    return samples, lambda x, t: net(x, t, LABELS), "v"


@kind
def weights_under_a_hook():
    net = Offloaded().eval()
    net._hf_hook = types.SimpleNamespace(execution_device="cpu")
    return pf.sample(net, shape=SHAPE, cond={"label": LABELS}, **V), lambda x, t: net(x, t, LABELS), "v"
