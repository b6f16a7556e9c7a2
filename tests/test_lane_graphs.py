"""The engine's batches as graphs, on the fake driver: one for each size, and nothing read between rows."""

import pytest
import torch
from lanecase import SHAPE, network, plan, same, served
from torch.utils._python_dispatch import TorchDispatchMode

import pndm_fast as pf
from pndm_fast.engine import results

pytestmark = [pytest.mark.filterwarnings("ignore:the grid starts"), pytest.mark.usefixtures("stand_in")]
GUIDED = {"uncond": {"shift": torch.zeros(1)}, "guidance": 2.0}


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.eval()

    def forward(self, x, t, shift=None, texts=None):
        out = network(x, t, shift) * self.weight
        return out if texts is None else out + len(texts[0])


def asked(seed, steps=5, shift=1.0, **more):
    return pf.Request(plan=plan("ddpm", steps), seeds=[seed], cond={"shift": torch.tensor([shift])}, **more)


def of(engine):
    """Its residents, by what they are run by."""
    groups = engine._groups._groups.values()
    return [resident.held.executor.graph for group in groups for resident in group._residents.values()]


@pytest.mark.parametrize("graph", ["auto", "replay"])
def test_one_graph_for_each_batch_size(stand_in, graph):
    model = Scaled()
    engine, sampler = pf.Engine(model, shape=(4, *SHAPE), graph=graph), pf.Sampler(model, shape=(1, *SHAPE))
    requests = [asked(s, steps, s) for s, steps in enumerate([5, 3, 7, 4, 2, 6])]
    requests += [asked(7, 4, **GUIDED), asked(8, 6, uncond=GUIDED["uncond"], guidance=pf.Guidance(2.0, (0.5, 5.0)))]
    requests.append(pf.Request(plan=plan("ddim", 5), seeds=[3], cond=lambda row: {"shift": torch.tensor([float(row)])}))
    at = [0, 0, 1, 2, 8, 9, 3, 4, 5]
    for ours, request in zip(served(engine, requests, at), requests, strict=True):
        same(ours, sampler.run(request))
        assert ours.report.graph == "replay" and ours.report.launches == ours.report.nfe
    made = of(engine)
    assert set(made) == {"replay"} and len(made) <= 6  # 1, 2 and 4, without and with guidance
    captures = stand_in.counts["capture"]
    served(engine, requests, at)
    assert of(engine) == made and stand_in.counts["capture"] == captures


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a number."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten.nonzero.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_between_rows(monkeypatch):
    """Requests join, end and move to another batch meanwhile; a result's numbers are fetched apart."""
    engine = pf.Engine(Scaled(), shape=(4, *SHAPE))
    served(engine, [asked(s, 3) for s in range(4)])
    read = []
    for name in ("tolist", "item", "cpu", "__bool__", "__float__", "__int__"):
        true = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, true=true, name=name: read.append(name) or true(self, *a)
        )
    todo = [asked(s, steps) for s, steps in enumerate([5, 3, 7, 4])]
    counts = []
    with Reads() as reads:
        while todo or not engine.idle:
            if todo:
                engine.add(todo.pop())
            read.clear()  # what a request holds is checked
            reads.count = 0
            over = engine.step()
            fetched = 2 * len(over)  # the rows of NaN, and the sum
            counts.append((reads.count, read[fetched:]))
    assert set(map(str, counts)) == {"(0, [])"}


def test_results_on_their_way_hold_nobody_up(monkeypatch):
    there, fetched = [], results.fetch

    def slow(*tensors):
        return fetched(*tensors)._replace(ready=lambda: bool(there))

    monkeypatch.setattr(results, "fetch", slow)
    engine = pf.Engine(Scaled(), shape=(4, *SHAPE))
    ids = [engine.add(asked(s, steps)) for s, steps in enumerate([2, 4, 9])]
    assert [engine.step() for _ in range(6)] == [[]] * 6 and engine.running == 1
    there.append(True)
    assert [one.id for one in engine.step()] == ids[:2]
    there.clear()
    assert [one.id for _ in range(2) for one in engine.step()] == ids[2:]  # nothing else is to be done: it waits


def test_other_weights_are_captured_when_the_next_request_joins(stand_in):
    model = Scaled()
    engine = pf.Engine(model, shape=(2, *SHAPE))
    same(served(engine, [asked(1)])[0], pf.Sampler(model, shape=(1, *SHAPE)).run(asked(1)))
    model.weight = torch.nn.Parameter(torch.tensor(0.25))
    same(served(engine, [asked(1)])[0], pf.Sampler(model, shape=(1, *SHAPE)).run(asked(1)))
    assert of(engine) == ["replay"]


def test_prepare_captures_all_sizes(stand_in):
    engine = pf.Engine(Scaled(), plan("ddpm", 4), shape=(4, *SHAPE))
    engine.prepare(asked(0, **GUIDED))
    assert of(engine) == ["replay"] * 3
    captures = stand_in.counts["capture"]
    served(engine, [asked(s, **GUIDED) for s in range(3)])
    assert stand_in.counts["capture"] == captures


def test_lists_of_entries_are_served_apart():
    model = Scaled()
    engine, sampler = pf.Engine(model, shape=(4, *SHAPE)), pf.Sampler(model, shape=(1, *SHAPE), graph="eager")
    requests = [pf.Request(plan=plan("ddim", 3), seeds=[n], cond={"texts": pf.PerSample(["a" * n])}) for n in (1, 2)]
    for ours, request in zip(served(engine, requests), requests, strict=True):
        same(ours, sampler.run(request))


@pytest.mark.parametrize("graph", ["replay", "auto"])
def test_a_network_that_cannot_be_captured(graph):
    def drawing(x, t, shift):
        torch.rand(1)
        return network(x, t, shift)

    engine, sampler = (
        pf.Engine(drawing, shape=(2, *SHAPE), graph=graph),
        pf.Sampler(drawing, shape=(1, *SHAPE), graph="eager"),
    )
    (ours,) = served(engine, [asked(1)])
    if graph == "auto":
        same(ours, sampler.run(asked(1)))
        assert "draws from torch's generator" in ours.report.graph_reason
    else:
        assert isinstance(ours, ValueError) and "graph 'replay' cannot be had: the network draws" in str(ours)


def test_the_host_stays_one_row_ahead(stand_in):
    engine = pf.Engine(Scaled(), shape=(2, *SHAPE))
    engine.add(asked(1, 8))
    engine.step()
    before = stand_in.counts["synchronize"]
    for _ in range(4):
        engine.step()
    assert stand_in.counts["synchronize"] == before + 4
