"""What calls of a captured network ask of it: nothing that walks its modules, and always its mode."""

import pytest
import torch
from drawing import Reporting
from sampler_case import Conv
from torch import nn

import pndm_fast as pf
from pndm_fast.runtime import graphs, guards

SHAPE = (2, 3, 8, 8)


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
    assert walks == [] and sampler.report.graph == "replay" and sampler.report.captures == 1


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
        assert (sampler.report.graph, named.report.graph) == ("replay", "replay")


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
    assert sampler.report.graph == "replay" and stand_in.counts["capture"] == size + 1


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
