"""What a captured graph takes for granted of a network."""

import functools
import gc
import sys
import weakref

import pytest
import torch
from drawing import Reporting
from test_sampler import Conv
from torch import nn

import pndm_fast as pf
from pndm_fast import _C
from pndm_fast.runtime import graphs, guards
from pndm_fast.runtime.guards import Guards, inspect_networks, modules_in

SHAPE = (2, 3, 8, 8)


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
    module = network()
    weight = module[0].weight
    old, pointer = weight.detach().clone(), weight.data_ptr()
    watch = guards_of(module)
    module.double()
    news = [torch.full_like(old, 7.0) for _ in range(64)]
    assert module[0].weight is weight and pointer not in [new.data_ptr() for new in news] and watch.changed()


class Thing:
    """With attributes, a hash and an equality that nobody may ask for."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    __hash__ = object.__hash__

    def __eq__(self, other):
        raise AssertionError("compared")


def test_a_watch_asks_no_object_for_equality():
    thing = Thing(other=Thing(), table={"a": Thing(), 1: 2.0}, items=[Thing()], pair=(1, 2))
    watch = _C.Watch([thing], set())
    assert not watch.changed()
    thing.pair = tuple([1, 2])
    assert watch.changed()


@pytest.mark.parametrize("other", [1.0, True, 2, "1", None, 1 + 0j])
def test_a_number_of_another_type_or_value(other):
    thing = Thing(value=1, table={"value": 1}, items=[1])
    for change in (
        lambda value: setattr(thing, "value", value),
        lambda value: thing.table.update(value=value),
        lambda value: thing.items.__setitem__(0, value),
    ):
        watch = _C.Watch([thing], set())
        change(other)
        assert watch.changed()
        change(1)
        assert not watch.changed()


def test_names_that_are_not_read():
    thing = Thing(read=1, unread=1)
    watch = _C.Watch([thing], {"unread"})
    thing.unread = {"a": 1}
    assert not watch.changed()
    del thing.unread
    assert watch.changed()


@pytest.mark.parametrize("thing", [3, [1], {1}, len])
def test_what_cannot_be_watched(thing):
    message = f"objects must have weak references and a __dict__, got {type(thing).__name__}"
    with pytest.raises(TypeError, match=message):
        _C.Watch([thing], set())


def test_a_watch_leaves_no_references():
    other, pair = Thing(), (1, [2])
    thing = Thing(other=other, pair=pair, table={"pair": pair, "other": other}, items=[pair, 1.5])
    thing.number = int("1" + 20 * "0")
    watched = other, pair, thing, Thing, dict, list, thing.number
    _C.Watch([thing], {"pair"}).changed()
    before = [sys.getrefcount(one) for one in watched]
    for i in range(100):
        watch = _C.Watch([thing], {"pair"})
        assert not watch.changed()
        thing.items[1] = 3 * 0.5
        assert not watch.changed()
        thing.number = int("1" + 20 * "0")
        assert not watch.changed()
        thing.table["new"] = i
        assert watch.changed()
        del thing.table["new"]
        del watch
    watched = other, pair, thing, Thing, dict, list, thing.number
    assert [sys.getrefcount(one) for one in watched] == before


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


@pytest.fixture
def walks(monkeypatch):
    """Counts walks over modules."""
    made = []
    for owner, name in ((nn.Module, "named_modules"), (guards, "modules_in")):
        walk = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, walk=walk, **kw: made.append(walk) or walk(*args, **kw))
    return made


def sampler_of(network, graph="auto"):
    return Reporting(network, pf.make_plan("plms", steps=4, spacing="trailing"), shape=SHAPE, graph=graph)


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: lambda x, t, **cond: network(x, t, **cond)])
@pytest.mark.parametrize("guided", [False, True])
def test_a_captured_network_is_not_walked(stand_in, walks, guided, wrap):
    sampler, arguments = sampler_of(wrap(Conv())), {}
    if guided:
        labels = [torch.tensor(pair) for pair in ([1, 2], [10, 10])]
        arguments = {"cond": {"labels": labels[0]}, "uncond": {"labels": labels[1]}, "guidance": 2.0}
    sampler(**arguments)
    assert walks and sampler.report.captures == 1
    walks.clear()
    for seed in range(3):
        sampler(seeds=seed, **arguments)
    assert walks == [] and sampler.report.graph == "while" and sampler.report.captures == 1


@pytest.mark.filterwarnings("ignore:the model is in training mode")
def test_training_is_seen_and_passes(stand_in):
    network = Conv()
    sampler, named = sampler_of(network), sampler_of(network, "replay")
    sampler(), named()
    for _ in range(2 * graphs.MOST_STALE):
        network.train()
        for _ in range(2):
            sampler()
            assert sampler.report.graph == "eager" and "training mode" in sampler.report.graph_reason
            with pytest.raises(ValueError, match="graph 'replay' cannot be had: the network is in training mode"):
                named()
        network.eval()
        sampler(), named()
        assert (sampler.report.graph, named.report.graph) == ("while", "replay")


@pytest.mark.filterwarnings("ignore:the model is in training mode")
def test_training_makes_many_graphs_stale(stand_in):
    """More than may be captured in vain: none of them was."""
    network, size = Conv(), 2 * graphs.MOST_STALE
    plan = pf.make_plan("plms", steps=4, spacing="trailing")
    sampler = Reporting(network, plan, shape=SHAPE, concurrency=size)
    sampler.prepare([SHAPE[0]])
    network.train()
    for _ in range(size + 1):
        sampler()
        assert "training mode" in sampler.report.graph_reason
    network.eval()
    sampler()
    assert sampler.report.graph == "while" and stand_in.counts["capture"] == size + 1


@pytest.mark.filterwarnings("ignore:the model is in training mode")
def test_a_network_in_training_is_not_walked(stand_in, walks):
    network = Conv().train()
    calls = []
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="training mode"):
        sampler_of(network, "while")()
    assert calls == []  # refused before the first call
    sampler = sampler_of(network)
    sampler()
    walks.clear()
    sampler()
    assert [walk.__name__ for walk in walks] == ["modules_in"]
