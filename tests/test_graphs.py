"""Sampler's graph modes on the CPU, where a fake driver runs what was captured; test_gpu_graph.py has the real ones."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from drawing import Reporting, draw
from fake_cuda import FakeDriver
from golden_data import FROM_NOISE
from sampler_case import Conv, Pointwise

import pndm_fast as pf
from pndm_fast import _C
from pndm_fast.runtime import graphs

SHAPE = (2, 3, 8, 8)
MODES = ("while", "replay")
pytestmark = [pytest.mark.filterwarnings("ignore:the grid starts"), pytest.mark.usefixtures("stand_in")]


def pair(model, plan, graph="while", **arguments):
    """A sampler with graphs, and one without."""
    arguments = {"shape": SHAPE, **arguments}
    return Reporting(model, plan, graph=graph, **arguments), Reporting(model, plan, graph="eager", **arguments)


@pytest.mark.filterwarnings("ignore:(alphafold-3|edm|heun|dpm-2-.*|dpm-fast) diverges")  # few steps are enough for bits
@pytest.mark.parametrize("graph", MODES)
@pytest.mark.parametrize("solver", FROM_NOISE)
def test_the_same_bits_as_eager(solver, graph):
    captured, eager = pair(Conv(), pf.make_plan(solver, steps=6), graph)
    for seed in (0, 7):
        assert torch.equal(captured(seeds=seed), eager(seeds=seed))
    assert captured.report.graph == graph and captured.report.graph_reason == "" and captured.report.captures == 1
    assert captured.report.nodes == {"kernel": 1} and captured.report.graph_bytes == 4096


@pytest.mark.parametrize("graph", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_networks(dtype, graph):
    captured, eager = pair(Conv(dtype), pf.make_plan("f-pndm", steps=6), graph)
    assert torch.equal(captured(), eager())


@pytest.mark.parametrize("graph", MODES)
def test_launches_of_a_trajectory(stand_in, graph):
    sampler, _ = pair(Pointwise(), pf.make_plan("plms", steps=9), graph)
    sampler()
    stand_in.fake.reset()
    stand_in.counts.clear()
    sampler()
    counts = stand_in.fake.counts
    assert counts["cuGraphLaunch"] == (1 if graph == "while" else 10)
    assert counts.get("cuMemsetD32Async", 0) == (1 if graph == "while" else 0)
    assert not [name for name in counts if "Synchronize" in name] and not stand_in.counts["synchronize"]
    assert sampler.report.calls == sampler.report.nfe == 10
    assert sampler.report.launches == counts["cuGraphLaunch"]


def test_what_needs_no_new_capture():
    sampler, eager = pair(Conv(), pf.make_plan("f-pndm", steps=6))
    labels = [torch.tensor(pair) for pair in ([1, 2], [7, 0])]
    for plan in (
        pf.make_plan("f-pndm", steps=50),
        pf.make_plan("ddpm", steps=3),
        pf.make_plan("ddim", steps=1, spacing="trailing"),
    ):
        for label in labels:
            arguments = {"plan": plan, "seeds": [5, 2**63], "cond": {"labels": label}}
            assert torch.equal(sampler(**arguments), eager(**arguments))
    # f-pndm and ddim store the raw output in slots, ddpm too: one form
    assert sampler.report.captures == 1
    for scale in (2.0, 3.5):
        arguments = {"cond": {"labels": labels[0]}, "uncond": {"labels": torch.tensor([10, 10])}, "guidance": scale}
        assert torch.equal(sampler(**arguments), eager(**arguments))
    assert sampler.report.captures == 2 and sampler.report.recaptures == 0


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": range(3)},
        {"cond": {"shift": torch.zeros(2)}},
        {"cond": {"shift": torch.zeros(2)}, "uncond": {"shift": torch.ones(2)}, "guidance": 2.0},
        {"plan": pf.make_plan("ddim", steps=1000), "seeds": range(3)},
        {"plan": [pf.make_plan("ddim", steps=600), pf.make_plan("plms", steps=600)]},
    ],
)
def test_what_needs_another_capture(change):
    sampler, eager = pair(Pointwise(), pf.make_plan("ddim", steps=4))
    sampler()
    assert torch.equal(sampler(**change), eager(**change)) and sampler.report.graph == "while"
    assert sampler.report.captures == 2
    sampler()
    sampler(**change)
    assert sampler.report.captures == 2


@pytest.mark.parametrize("graph", MODES)
def test_guidance_in_two_calls(graph):
    def network(x, t, scale):
        return x * scale

    arguments = {"cond": {"scale": 0.5}, "uncond": {"scale": 0.25}, "guidance": 2.0}
    captured, eager = pair(network, pf.make_plan("plms", steps=5), graph)
    assert torch.equal(captured(**arguments), eager(**arguments))
    assert captured.report.graph == graph and "two calls" in captured.report.guidance
    captured(**arguments)
    assert captured.report.calls == 2 * captured.report.nfe


def test_mixed_plans_and_padding():
    plans = [pf.make_plan("ddpm", steps=3), pf.make_plan("f-pndm", steps=5), pf.make_plan("plms", steps=9)]
    captured, eager = pair(Pointwise(), plans[0])
    captured.prepare([4])
    for _ in range(2):
        assert torch.equal(captured(seeds=range(3), plan=plans), eager(seeds=range(3), plan=plans))
    assert captured.report.captures == 1


def test_channels_last_and_integer_times():
    class Last(Conv):
        def forward(self, x, t):
            return super().forward(x, t.float()).contiguous(memory_format=torch.channels_last)

    plan = pf.make_plan("f-pndm", steps=6, integer_times=True)
    last = Last().to(memory_format=torch.channels_last)
    captured, eager = pair(last, plan, time_dtype=torch.int64)
    assert torch.equal(captured(), eager()) and captured.report.layout == "channels_last"
    captured, eager = pair(Last(), plan, time_dtype=torch.int64)
    for _ in range(2):  # the copy is captured too
        assert torch.equal(captured(), eager()) and captured.report.graph == "while"
        assert captured.report.copied == eager.report.copied == "float32, channels_last"


def test_auto_replays_until_a_measurement_says_more(stand_in):
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    sampler()
    assert sampler.report.graph == "replay" and sampler.report.graph_reason == graphs.AUTO_REASON
    assert "no measurement" in graphs.AUTO_REASON
    named = Reporting(Pointwise(), sampler.plan, shape=SHAPE, graph="replay")
    named()
    assert named.report.graph == "replay" and named.report.graph_reason == ""


def test_auto_takes_the_first_that_can_be_had(stand_in, while_first):
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    sampler()
    assert sampler.report.graph == "while" and sampler.report.graph_reason == ""


def test_an_old_driver_replays(stand_in, while_first):
    old = FakeDriver(version=12020)
    stand_in.fake, stand_in.driver = old, _C.Driver(old.path)
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    sampler()
    assert sampler.report.graph == "replay" and sampler.report.graph_reason.startswith("while: WHILE nodes need")
    with pytest.raises(ValueError, match="graph 'while' cannot be had: WHILE nodes need a driver of CUDA 12.4"):
        draw(Pointwise(), 3, solver="ddim", shape=SHAPE, graph="while")


@pytest.mark.parametrize("graph", MODES)
def test_swapped_weights_are_noticed(stand_in, graph):
    network, plan = Conv(), pf.make_plan("plms", steps=5)
    sampler, eager = pair(network, plan, graph)
    before = sampler()
    with torch.no_grad():
        network.first.weight.mul_(0.5)  # in place: the graph reads the same memory
    changed = sampler()
    assert torch.equal(changed, eager()) and not torch.equal(changed, before) and sampler.report.captures == 1
    network.load_state_dict(Conv(seed=3).state_dict(), assign=True)
    assert torch.equal(sampler(), eager()) and (sampler.report.captures, sampler.report.recaptures) == (2, 1)
    sampler()
    assert sampler.report.captures == 2
    del sampler
    gc.collect()
    assert stand_in.fake.live == {}


@pytest.mark.parametrize("graph", MODES)
def test_steps_are_shown(graph):
    captured, eager = pair(Conv(), pf.make_plan("f-pndm", steps=5), graph)
    seen = [[], []]
    for sampler, kept in zip((captured, eager), seen, strict=True):
        sampler(on_step=lambda step, kept=kept: kept.append((step.index, step.t, step.state, step.x0)))
    assert len(seen[0]) == captured.plan.nfe
    for ours, theirs in zip(*seen, strict=True):
        assert ours[:2] == theirs[:2] and torch.equal(ours[2], theirs[2]) and torch.equal(ours[3], theirs[3])
    with pytest.raises(pf.Cancelled) as error:
        captured(on_step=lambda step: step.cancel() if step.index == 3 else None)
    assert torch.equal(error.value.state, seen[1][3][2])


@pytest.mark.parametrize("graph", MODES)
def test_cancel_from_another_thread(stand_in, graph):
    """The fake driver runs the network in the launch: it cancels there, as another thread would."""
    cancel, calls = pf.Cancel(), []

    def network(x, t):
        calls.append(1)
        if armed and len(calls) == 4:
            cancel.set()
        return x * 0.5

    armed = False
    sampler = Reporting(network, pf.make_plan("ddim", steps=9), shape=SHAPE, graph=graph)
    wanted = sampler(cancel=cancel)
    states = []
    sampler(on_step=lambda step: states.append(step.state))
    armed = bool(calls.clear()) or True
    stand_in.fake.reset()
    with pytest.raises(pf.Cancelled) as error:
        sampler(cancel=cancel)
    assert error.value.index == 3 and len(calls) == 4 and torch.equal(error.value.state, states[3])
    assert stand_in.fake.counts["cuGraphLaunch"] == (1 if graph == "while" else 4)
    assert torch.equal(sampler(), wanted)  # the flag does not stay


def test_nan_and_a_network_that_fails_leave_the_sampler_whole(stand_in):
    factor = torch.tensor(0.5)
    sampler = Reporting(lambda x, t: x * factor, pf.make_plan("ddim", steps=5), shape=SHAPE)
    wanted = sampler()
    factor.fill_(float("nan"))
    with pytest.raises(pf.NonFiniteError, match="sample 0 at row 0"):
        sampler()
    factor.fill_(0.5)
    stand_in.fake.fail("cuGraphLaunch", 719)
    with pytest.raises(RuntimeError, match="cuGraphLaunch: CUDA_ERROR_LAUNCH_FAILED"):
        sampler()
    assert torch.equal(sampler(), wanted) and sampler.report.captures == 1


@pytest.mark.parametrize("concurrency", [1, 3])
def test_threads(concurrency):
    network, plan = Conv(), pf.make_plan("plms", steps=4)
    sampler = Reporting(network, plan, shape=SHAPE, concurrency=concurrency)
    eager = Reporting(network, plan, shape=SHAPE, graph="eager")
    wanted = [eager(seeds=seed) for seed in range(8)]
    failed = []

    def work(first):
        for seed in (*range(first, 8), *range(first)):
            if not torch.equal(sampler(seeds=seed), wanted[seed]):
                failed.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and 1 <= sampler.report.captures <= concurrency


@pytest.mark.parametrize("concurrency", [1, 2])
def test_prepare_captures_everything(stand_in, concurrency):
    sampler = Reporting(Conv(), pf.make_plan("plms", steps=4), shape=(1, *SHAPE[1:]), concurrency=concurrency)
    labels = {"labels": torch.tensor([3])}
    sampler.prepare([1, 2, 4], pf.Request(cond=labels))
    assert stand_in.counts["capture"] == 3 * concurrency
    for batch in (1, 2, 3, 4):
        sampler(seeds=range(batch), cond={"labels": torch.arange(batch)})
    assert stand_in.counts["capture"] == 3 * concurrency and sampler.report.graph == "replay"
    with pytest.raises(ValueError, match="batches must have at most"):
        sampler.prepare(range(1, 100))


def test_nothing_piles_up(stand_in):
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=2), shape=SHAPE)
    sampler()
    live = stand_in.fake.live
    for seed in range(200):
        sampler(seeds=seed)
    assert stand_in.fake.live == live
    for batch in range(1, 2 * graphs.KEPT):
        sampler(seeds=range(batch))
    gc.collect()
    assert stand_in.fake.live["exec"] == graphs.KEPT
    sampler.reset()
    gc.collect()
    assert stand_in.fake.live == {}


def test_graphs_go_with_the_network_of_sample(stand_in):
    network = Conv()
    pf.sample(network, 3, solver="ddim", shape=SHAPE)
    pf.sample(network, 4, solver="plms", shape=SHAPE)
    assert stand_in.counts["capture"] == 1 and stand_in.fake.live["exec"] == 1
    stand_in.fake._callbacks.clear()  # closures that hold the network: a real graph's kernels do not
    alive = weakref.ref(network)
    del network
    gc.collect()
    assert alive() is None and stand_in.fake.live == {}


def test_graphs_on_the_cpu_are_refused(monkeypatch):
    from pndm_fast.runtime import executor

    monkeypatch.setattr(executor, "cuda_of", lambda _: None)
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=2), shape=SHAPE)
    sampler()
    assert sampler.report.graph == "eager" and sampler.report.graph_reason == "graphs need a CUDA device, got cpu"
    with pytest.raises(ValueError, match="graph 'while' cannot be had: graphs need a CUDA device, got cpu"):
        draw(Pointwise(), 2, solver="ddim", shape=SHAPE, graph="while")
    with pytest.raises(ValueError, match="graph must be one of auto, while, replay, eager, got 'always'"):
        draw(Pointwise(), 2, solver="ddim", shape=SHAPE, graph="always")


def test_an_end_that_fails_leaves_the_graphs_place_to_others(stand_in, monkeypatch):
    """On a device any earlier error may come back when the end is marked: the next call has a graph of its own."""
    ours = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE, graph="replay")
    wanted, end = ours(seeds=2), graphs.Graph.end

    def fails(graph):
        monkeypatch.setattr(graphs.Graph, "end", end)
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(graphs.Graph, "end", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ours(seeds=2)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(ours, seeds=2).result(timeout=60), wanted)
    assert torch.equal(ours(seeds=2), wanted) and ours.report.captures == 2
