"""What a captured graph takes for granted of a network."""

import functools

import pytest
import torch
from torch import nn

from pndm_fast.runtime.guards import Guards, modules_in, obstacle


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 3))).eval()


class Adapter:
    """A callable object around a module."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x, t):
        return self.module(x)

    def method(self, x, t):
        return self.module(x)


class Service:
    """Not callable itself."""

    def __init__(self, module):
        self.parts = {"unet": [module]}

    def denoise(self, x, t):
        return self.parts["unet"][0](x)

    def lambdas(self):
        return lambda x, t: self.denoise(x, t)


def wrappers(module):
    parts = {"unet": module}
    return {
        "service": Service(module).denoise,
        "service's lambda": Service(module).lambdas(),
        "dict": lambda x, t: parts["unet"](x),
        "module": module,
        "compiled": torch.compile(module),
        "object": Adapter(module),
        "method": Adapter(module).method,
        "closure": lambda x, t: module(x),
        "partial": functools.partial(lambda net, x, t: net(x), module),
        "forward": module.forward,
        "nested": (lambda inner: lambda x, t: inner(x, t))(lambda x, t: module(x)),
    }


@pytest.mark.parametrize("kind", sorted(wrappers(network())))
def test_modules_are_found_in_wrappers(kind):
    module = network()
    found = list(modules_in(wrappers(module)[kind]))
    assert any(module is part or module in part.modules() for part in found)
    watch = Guards(wrappers(module)[kind])
    assert not watch.changed()
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)
    assert watch.changed()


def assigned(module):
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)


def data_replaced(module):
    module[0].weight.data = module[0].weight.data.clone()


def adapter_inserted(module):
    module[2][0] = nn.Sequential(module[2][0], nn.Identity())


def adapter_added(module):
    module[0].lora = nn.Linear(3, 4)


def buffer_replaced(module):
    module[1].running_mean = module[1].running_mean.clone()


def parameter_deleted(module):
    module[0].bias = None


def hook_added(module):
    module[0].register_forward_hook(lambda *_: None)


def forward_replaced(module):
    module[0].forward = lambda x: x


def scale_changed(module):
    module[0].scaling["default"] = 0.5


def number_changed(module):
    module[0].strength = 2.0


def switched(module):
    module[0].active[0] = "other"


def cache_replaced(module):
    module[0].cache = torch.zeros(3)


@pytest.mark.parametrize(
    "change",
    [
        hook_added,
        forward_replaced,
        scale_changed,
        number_changed,
        switched,
        cache_replaced,
        assigned,
        data_replaced,
        adapter_inserted,
        adapter_added,
        buffer_replaced,
        parameter_deleted,
        lambda module: module.to(torch.float64),
    ],
)
def test_changes_that_need_a_capture(change):
    module = network()
    module[0].scaling, module[0].active, module[0].strength = {"default": 1.0}, ["default"], 1.0
    module[0].cache = torch.zeros(3)
    watch = Guards(module)
    change(module)
    assert watch.changed()


def test_values_changed_in_place_need_none():
    module = network()
    watch = Guards(module)
    with torch.no_grad():
        module[0].weight.mul_(2)
    module.load_state_dict({name: value * 2 for name, value in module.state_dict().items()})
    module(torch.randn(2, 3))
    assert not watch.changed()


def test_the_same_values_again_are_no_change():
    module = network()
    module.note, module.table = "a" * 3, {"scale": 0.1 + 0.2}
    watch = Guards(module)
    module.note, module.table["scale"] = "".join("aaa"), 0.3 + 0.00000000000000004
    assert not watch.changed()


def test_tensors_without_memory_are_known_by_identity():
    module = network()
    module.sparse = nn.Buffer(torch.eye(3).to_sparse())
    watch = Guards(module)
    assert not watch.changed()
    module.sparse = torch.eye(3).to_sparse()
    assert watch.changed()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*jit.*")
def test_scripted_modules():
    module = torch.jit.trace(network(), torch.randn(2, 3))
    watch = Guards(module)
    assert not watch.changed()
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    assert watch.changed()


def test_a_watch_does_not_keep_the_network():
    import gc
    import weakref

    module = network()
    watch, alive = Guards(module), weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None and not watch.changed()


@pytest.mark.parametrize("mode, own", [(None, False), ("reduce-overhead", True), ("max-autotune", True)])
def test_networks_with_graphs_of_their_own(mode, own):
    module = torch.compile(network(), mode=mode)
    assert ("CUDA graphs of its own" in obstacle(module)) is own
    assert ("CUDA graphs of its own" in obstacle(lambda x, t: module(x))) is own
    assert ("CUDA graphs of its own" in obstacle(torch.compile(lambda x, t: x, mode=mode))) is own


def test_parts_that_make_graphs_of_their_own():
    whole, part = network(), network()
    whole.compile(mode="reduce-overhead")
    part[2] = torch.compile(part[2], mode="reduce-overhead")
    for module in (whole, part):
        assert "CUDA graphs of its own" in obstacle(module)


def test_exported_programs_have_no_training_mode():
    module = torch.export.export(network(), (torch.randn(2, 3),)).module()
    assert module.training and obstacle(module) == ""
    watch = Guards(module)
    assert not watch.changed()
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    assert watch.changed()


def test_training_mode():
    assert obstacle(network()) == ""
    assert "training mode" in obstacle(network().train())
