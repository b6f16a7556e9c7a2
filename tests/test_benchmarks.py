"""The benchmarks' own parts that decide what is compared: networks, loops, and what is made of results."""

# ruff: noqa: E402
import re
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
sys.path.append(str(FOLDER))

from gpu import networks, samples, sweep
from quality.solvers import distance
from speed import calls, compare, harness, run

import pndm_fast as pf
from pndm_fast.row.noise import normals, seed_tensor


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_have_the_published_sizes(name):
    network = networks.NETWORKS[name]
    with torch.device("meta"):
        module = network.make()
    assert sum(p.numel() for p in module.parameters()) == network.parameters


def test_random_weights_are_seeded():
    a, b = networks.module("small"), networks.module.__wrapped__("small")
    assert a is not b
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class Text(networks.Small):
    """With a text, so that it is called with guidance."""

    def forward(self, x, t, encoder_hidden_states):
        return super().forward(x, t) + encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1)


@pytest.fixture(params=["small-3", "text-2"])
def job(request, monkeypatch):
    """Small jobs on the CPU; `text` has Stable Diffusion's shapes, scheduler and dtype."""
    latent = networks.NETWORKS["sd"]
    text = networks.Network(lambda: Text(4, 8, 2), latent.shape, latent.dtype, 0, latent.schedule, text=True)
    monkeypatch.setitem(networks.NETWORKS, "text", text)
    name, batch = request.param.split("-")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, two threads of a network this small wait for each other
    yield samples.Job(name, int(batch), steps=12, device="cpu")
    torch.set_num_threads(threads)
    networks.module.cache_clear()


@pytest.mark.filterwarnings("ignore:the grid starts")
def test_all_loops_make_the_same_sample(job):
    ours = job.sample(job.sampler())
    assert torch.equal(samples.Unrolled(job)(), ours)
    flat = normals(seed_tensor(list(range(job.batch))), 0, ours[0].numel())
    theirs = samples.DiffusersLoop(job, state=torch.float32)
    assert samples.relative(ours, theirs(flat.view(job.shape))) <= 1e-5
    assert len(theirs.scheduler.timesteps) == job.plan.nfe
    alone = samples.Alone(job)
    alone(1)
    assert alone.out.shape[0] == (1 if job.texts is None else 2) * job.batch


def test_a_distance_is_never_small_for_nan():
    a, b = torch.tensor([[1.0, float("nan")], [3.0, 4.0]]), torch.zeros(2, 2)
    assert not samples.relative(a, torch.ones(2, 2)) <= 1.0
    assert distance(a, b)[0].isnan() and torch.isclose(
        distance(a, b)[1], torch.tensor(12.5, dtype=torch.float64).sqrt()
    )


def test_costs_are_the_intercept_and_the_slope_less_the_network():
    case = calls.call_cost(calls.mlp(), calls.MLP, "ddim", (2, 5))
    fixed, row, network = 100e-6, 7e-6, 20e-6
    seconds = {"short": fixed + 2 * (row + network), "long": fixed + 5 * (row + network), "bare": 5 * network}
    told = calls.costs(case.weights, seconds)
    assert told == pytest.approx({"fixed": 100, "row": 7, "call": 235, "network": 20})
    slow = {side: 2 * value for side, value in seconds.items()}
    assert calls.best(case.weights, [slow, seconds]) == told
    assert set(case.turn(dict.fromkeys(case.sides, 1))) == set(seconds)


def test_what_is_not_equal_is_not_timed():
    plan = pf.make_plan("ddim", steps=3, spacing="trailing")
    calls.check(pf.Sampler(calls.mlp(), plan, shape=calls.MLP))
    with pytest.raises(AssertionError):
        calls.check(pf.Sampler(lambda x, t: torch.rand_like(x), plan, shape=calls.MLP))


def test_before_and_now_are_compared_round_by_round():
    told = compare.compared([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])
    assert told == {"before_us": 4.0, "us": 4.0, "ratio": 2.0, "quartiles": [1.5, 2.5]}


@pytest.mark.parametrize("suite", run.SUITES)
def test_suites_name_files_that_are_there(suite):
    file, chosen = run.SUITES[suite]
    found = re.findall(r"^def (test_\w+)", (FOLDER / file).read_text(), re.MULTILINE)
    assert [name for name in found if any(word in name for word in chosen.split(" or "))]


def test_a_target_of_none_is_only_reported():
    assert harness.Target(None).met(0.5) is None and str(harness.Target(None)) == ""
    assert harness.Target(1.03, at_most=True).met(1.03) and not harness.Target(2.0).met(1.99)


def test_interrupted_and_failed_benchmarks_are_not_kept():
    stats = {"min": 1.0, "median": 1.0, "iqr": 0.0, "rounds": 3}
    report = {"machine_info": {}, "benchmarks": []}
    for name, info in (("good", {"us": 1.0}), ("bad", {"us": 1.0}), ("half", {})):
        report["benchmarks"].append({"name": name, "extra_info": info, "stats": stats})
    kept = run.summary("suite", report, False, ["bad"])
    assert [one["name"] for one in kept["results"]] == ["good"]


def test_sweep_ranks_by_the_geometric_mean():
    results = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.5, "y": 1.0, "z": 0.5}}
    assert sweep.rank(results) == [("x", 1.7321), ("y", 2.0)] and sweep.rank({}) == []
