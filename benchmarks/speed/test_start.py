"""Host time of a captured call before its first launch, on the tests' fake CUDA driver: what a GPU would idle for."""

import sys
import time

import pytest
import torch
from gpu import networks
from machine import ROOT
from speed.harness import Target, quartiles, record

import pndm_fast as pf
from pndm_fast.runtime import executor, graphs

sys.path.append(str(ROOT / "tests"))
from cuda_stand_in import StandIn  # noqa: E402
from fake_cuda import FakeDriver  # noqa: E402

CALLS = 200


class Answer(torch.nn.Module):
    """Costs nothing, and has all the modules and tensors of the network that it holds."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t, encoder_hidden_states=None):
        return x * 0.5


def case(name):
    """A sampler in `replay`, and its requests' fields."""
    network = networks.NETWORKS[name]
    with torch.device("meta"):
        model = Answer(network.make()).eval()
    solver = "plms" if network.text else "f-pndm"
    options = {"shape": (1, *network.shape), "device": "cpu", "dtype": torch.float32, "graph": "replay"}
    sampler = pf.Sampler(model, pf.make_plan(solver, steps=50), **options)
    if not network.text:
        return sampler, {}
    texts = {side: {"encoder_hidden_states": torch.randn(1, networks.SEQUENCE, networks.WIDTH)} for side in ("a", "b")}
    return sampler, {"cond": texts["a"], "uncond": texts["b"], "guidance": 7.5}


@pytest.mark.parametrize("name", ["small", "cifar", "sd"])
def test_host_time_before_the_first_launch(benchmark, monkeypatch, one_thread, name):
    """`sd` is guided. Of 59 rows (51 in `sd`), at batch 1, from the call to the launch.

    The start itself is the CPU's, in C++, in place of a kernel's launch.
    """
    device, marks = StandIn(FakeDriver()), []
    monkeypatch.setattr(executor, "cuda_of", lambda _: device)
    sampler, fields = case(name)
    got, report = sampler(**fields), sampler.run(pf.Request(**fields)).report
    assert report.graph == "replay" and report.nfe == (51 if name == "sd" else 59)
    eager = pf.Sampler(
        sampler.model, sampler.plan, shape=sampler.shape, device="cpu", dtype=torch.float32, graph="eager"
    )
    assert torch.equal(got, eager(**fields))
    # from here on nothing runs the rows, as a host runs none beside a GPU
    monkeypatch.setattr(graphs.Graph, "launch", lambda *_: marks.append(time.perf_counter()) or 0)
    seconds = []
    for seed in range(3 if benchmark.disabled else CALLS):
        began = time.perf_counter()
        sampler.run(pf.Request(seeds=seed, **fields))
        seconds.append(marks[-1] - began)
    benchmark.pedantic(lambda: None)
    if not benchmark.disabled:
        target = Target(150, at_most=True) if name == "cifar" else Target(None, at_most=True)
        us = sorted(value * 1e6 for value in seconds)
        record(benchmark, seconds, target, round(us[len(us) // 2], 1), quartiles(us), ratio_is="microseconds")
