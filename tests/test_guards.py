"""What a captured graph takes for granted of a network."""

import functools
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from pndm_fast.runtime.guards import Guards, inspect_networks, modules_in


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 3))).eval()


def guards_of(*models):
    return Guards(inspect_networks(*models).modules)


def obstacle(*models):
    return inspect_networks(*models).obstacle


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


def denoiser_of_dict(module):
    parts = {"unet": module}
    return lambda x, t: parts["unet"](x)


WRAPPERS = {
    "service": lambda module: Service(module).denoise,
    "service's lambda": lambda module: Service(module).lambdas(),
    "dict": denoiser_of_dict,
    "module": lambda module: module,
    "compiled": lambda module: torch.compile(module),
    "object": Adapter,
    "method": lambda module: Adapter(module).method,
    "closure": lambda module: lambda x, t: module(x),
    "partial": lambda module: functools.partial(lambda net, x, t: net(x), module),
    "forward": lambda module: module.forward,
    "nested": lambda module: (lambda inner: lambda x, t: inner(x, t))(lambda x, t: module(x)),
}


@pytest.mark.parametrize("kind", sorted(WRAPPERS))
def test_modules_are_found_in_wrappers(kind):
    module = network()
    wrapped = WRAPPERS[kind](module)
    found = list(modules_in(wrapped))
    assert any(module is part or module in part.modules() for part in found)
    watch = guards_of(wrapped)
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


def attribute_added(module):
    module[2][0].gain = 2.0


def attribute_deleted(module):
    del module[0].strength


def attribute_renamed(module):
    del module[0].last
    module[0].latest = "same"


def list_grown(module):
    module[0].active.append("other")


def key_renamed(module):
    module[0].scaling["other"] = module[0].scaling.pop("default")


def of_another_type(module):
    module[0].strength = True


def hook_with_arguments(module):
    module[2].register_forward_pre_hook(lambda *_: None, with_kwargs=True)


def there_and_back(module):
    """A move to another device and back gives memory elsewhere; the parameters stay the same objects."""
    parameters = list(module.parameters())
    module.to(torch.float64).to(torch.float32)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        attribute_added,
        attribute_deleted,
        attribute_renamed,
        list_grown,
        key_renamed,
        of_another_type,
        hook_with_arguments,
        there_and_back,
        lambda module: module.train(),
        lambda module: module[2][0].train(),
        lambda module: module.compile(backend="eager"),
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
    module[0].cache, module[0].last = torch.zeros(3), "same"
    watch = guards_of(module)
    assert not watch.changed()
    change(module)
    assert watch.changed() and watch.changed()


def test_values_changed_in_place_need_none():
    module = network()
    watch = guards_of(module)
    with torch.no_grad():
        module[0].weight.mul_(2)
    module.load_state_dict({name: value * 2 for name, value in module.state_dict().items()})
    module(torch.randn(2, 3))
    module.train().eval()
    assert not watch.changed()


def test_the_same_values_again_are_no_change():
    module = network()
    module.note, module.table = "a" * 3, {"scale": 0.1 + 0.2}
    watch = guards_of(module)
    module.note, module.table["scale"] = "".join("aaa"), 0.3 + 0.00000000000000004
    assert not watch.changed()
    module.table = {"scale": 0.1 + 0.2}
    assert not watch.changed()
    module.table["scale"] = 0.5
    assert watch.changed()


def test_tensors_without_memory_are_known_by_identity():
    module = network()
    module.sparse = nn.Buffer(torch.eye(3).to_sparse())
    watch = guards_of(module)
    assert not watch.changed()
    module.sparse = torch.eye(3).to_sparse()
    assert watch.changed()


def pointed_elsewhere(module):
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*jit.*")
@pytest.mark.parametrize("change", [assigned, pointed_elsewhere, nn.Module.train, nn.Module.double])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, torch.randn(2, 3))])
def test_scripted_modules(make, inside, change):
    scripted = make(network())
    whole = nn.Sequential(scripted).eval() if inside else scripted
    watch = guards_of(whole)
    whole(torch.randn(2, 3))
    assert not watch.changed()
    change(scripted)
    assert watch.changed()


def test_guards_do_not_keep_the_network():
    """Not even one that its own parts lead back to: a cache that goes with its network would keep it for ever."""
    module = network()
    module.compile(backend="eager")
    module[2].whole, module[1].act = [module], functools.partial(type(module).forward, module)
    watch, alive = guards_of(module), weakref.ref(module)
    assert not watch.changed()
    del module
    gc.collect()
    assert alive() is None and watch.changed()


def test_what_is_held_can_be_collected():
    """A network that keeps its guards, which hold a tuple with the network in it."""
    module = network()
    module[0].owners = (module,)
    module.watch, alive = guards_of(module), weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


def test_memory_that_a_graph_may_read_is_kept():
    """`.to()` keeps the parameter, and points it elsewhere."""
    module, array = network(), np.ones((4, 3), np.float32)
    weight, alive = module[0].weight, weakref.ref(array)
    weight.data = torch.from_numpy(array)  # its memory goes with the array
    watch = guards_of(module)
    del array
    module.double()
    assert module[0].weight is weight and watch.changed() and alive() is not None
    del watch
    assert alive() is None


def test_hooks_that_a_call_does_not_read():
    module = network()
    watch = guards_of(module)
    module.register_state_dict_post_hook(lambda *_: None)
    module[0].register_full_backward_hook(lambda *_: None)
    assert not watch.changed()


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
    watch = guards_of(module)
    assert not watch.changed()
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    assert watch.changed()


def test_training_mode():
    assert obstacle(network()) == ""
    inspection = inspect_networks(lambda x, t: network(), network().train())
    assert "training mode" in inspection.obstacle and inspection.passing and inspection.modules == ()
    assert not inspect_networks(torch.compile(network(), mode="reduce-overhead")).passing
