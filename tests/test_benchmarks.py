"""The benchmarks' own parts that decide what is compared: networks, loops, and what is made of results."""

# ruff: noqa: E402
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
sys.path.append(str(FOLDER))

from aot import ARCHITECTURES
from gpu import networks, samples, sweep, ticketless
from quality.solvers import distance
from rowcase import assert_same, clone, random_case
from speed import calls, compare, harness, run
from speed.steps import Steps

import pndm_fast as pf
from pndm_fast.row import reference, table
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
    assert sweep.rank({**results, "c": {"z": 1.0}}) == sweep.rank(results)


@pytest.mark.parametrize("registers, warps, wanted", [(128, 4, 4), (112, 4, 4), (96, 4, 5), (96, 2, 10), (112, 2, 8),
                                                      (74, 8, 3), (64, 8, 4), (255, 4, 2), (24, 1, 32)])  # fmt: skip
def test_how_many_programs_an_sm_holds(registers, warps, wanted):
    """As the CUDA occupancy calculator has it for 9.0: 65,536 registers, given to warps in each of four parts."""
    assert sweep.programs(registers, warps) == wanted


@pytest.mark.parametrize("wrong, wanted", [(None, [None, 96, 80]), ("no", [None])])
def test_a_sweep_tries_caps_that_bind_until_one_spills_much(wrong, wanted, monkeypatch):
    def check(config, dtype, device):
        spills = {None: 0, 96: 4, 80: 40}[config.cap]
        return {"config": config, "dtype": dtype, "n_regs": config.cap or 115, "n_spills": spills, "wrong": wrong}

    monkeypatch.setattr(sweep, "check", check)
    found = sweep.check_caps(1024, 4, "bf16", "cuda")
    assert [one["config"].cap for one in found] == wanted
    steps = Steps((1, 1, 4, 4), torch.bfloat16)
    assert list(sweep.configurations(found)(steps, "bf16")) == ([] if wrong else ["1024/4/-", "1024/4/96"])


@pytest.mark.slow
def test_a_sweep_keeps_what_it_has_and_measures_what_decides_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "SIZES", {"small": ((3, 1, 4, 4), "plms")})
    monkeypatch.setattr(sweep, "CHECKED", ((5, 1, 4, 4),))
    monkeypatch.setattr(sweep, "DECIDING", ("small-fp32",))
    monkeypatch.setattr(sweep, "PASSES", 1)
    monkeypatch.setattr(sweep, "microseconds", lambda steps, row: row() or 2.0)
    other = sweep.Config(256, 2, 64)
    told = {"n_regs": 64, "n_spills": 0, "wrong": None}
    spills = [{"config": sweep.Config(512, 1, 64), "dtype": "fp32", **told, "n_spills": 142}]
    found = [{"config": other, "dtype": dtype, **told} for dtype in sweep.DTYPES]
    monkeypatch.setattr(sweep, "candidates", lambda *_: found + spills)
    path, seen = tmp_path / "gpu" / "sweep.json", []
    results, write = sweep.Results(path, {"gpu": None}), sweep.Results.write

    def noted(self):
        write(self)
        seen.append(json.loads(path.read_text()))

    monkeypatch.setattr(sweep.Results, "write", noted)
    assert sweep.sweep(results, "cpu", 1, float("inf")) == []
    now, cases = str(sweep.committed()), ["small-fp32", "small-bf16"]
    assert [list(one["us"]) for one in seen[:2]] == [list(one["ticketless"]) for one in seen[2:4]] == [cases[:1], cases]
    assert all(times.keys() == {now} for one in seen[:4] for times in one["us"].values())
    assert seen[-1]["us"] == dict.fromkeys(cases, {now: 2.0, str(other): 2.0}) and len(seen[-1]["ranking"]) == 2
    assert seen[-1]["ticketless"]["small-bf16"] == dict.fromkeys(ticketless.FORMS, 2.0) | {
        "saves_in_loop": 0.0, "saves_in_replay": 0.0
    }  # fmt: skip
    assert [one["config"] for one in seen[-1]["compiled"]] == [now, now, str(other), str(other), "512/1/64"]
    sweep.show(results)
    assert [file.name for file in path.parent.iterdir()] == ["sweep.json"]


def test_a_sweep_out_of_time_measures_nothing_and_says_so(capsys):
    results = sweep.Results(None, {})
    results.measure(results.us, lambda *_: {}, "cpu", until=0.0)
    assert results.us == {} and capsys.readouterr().err.count("not measured") == len(sweep.cases())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("guidance, components", [(False, 1), (True, 1), (True, 2)])
def test_a_row_without_a_ticket_and_what_advances_after_it(seed, guidance, components):
    """Samples at rows of plans of their own, some at their halt from the start."""
    case = random_case(
        seed, 5, 40, halt_some=seed > 0, guidance=guidance, components=components, calls=3,
        net_dtype=(None, torch.bfloat16)[seed % 2], time_dtype=(torch.float32, torch.int64)[seed // 2],
    )  # fmt: skip
    expected, got, budget = clone(case.registers), clone(case.registers), torch.tensor([2, -1], dtype=torch.int32)
    rows = case.registers.row.tolist()
    assert len(set(rows)) > 1 + (seed > 0)
    for left, call in zip((1, 0, -1), case.calls, strict=True):
        reference.apply_row(expected, case.table, *call)
        ticketless.apply_row_alone(got, case.table, *call)
        assert got.row.tolist() == rows
        ticketless.condition(got, case.table, budget, advance=True)
        rows = got.row.tolist()
        assert_same(got, expected, pads=False)
        assert budget.tolist() == [left, int(left > 0 and int(got.active) > 0)]
    assert int(case.table[got.row.long(), table.HALT].sum()) == 5 - int(got.active)


# Both kernels without a GPU, in a process without the interpreter; prints their atomic instructions.
COMPILED = """
import re, sys
sys.path += sys.argv[2:]
import aot, triton
from gpu.ticketless import _condition_kernel
from pndm_fast.kernels.apply_row import _apply_row_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

pointers = {"budget_ptr": "*i32", "row_ptr": "*i32", "t_ptr": "*fp32", "active_ptr": "*i32", "table_ptr": "*fp32"}
numbers = {"WIDTH": 32, "CFG_COPIES": 2, "LANES": 4096, "ADVANCE": True}
condition = ASTSource(_condition_kernel, {**pointers, "batch": "i32", **dict.fromkeys(numbers, "constexpr")}, numbers)
for source in (condition, aot._source(_apply_row_kernel, slots="bf16", network="bf16", net_in=True, ticket=False)):
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 4})
    print(re.findall("(?:atom|red)[.]global[.][a-z0-9.]+", made.asm["ptx"]))
"""


@pytest.mark.machine_code
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_only_atomic_without_a_ticket_is_that_of_bad_outputs(architecture, tmp_path):
    command = [sys.executable, "-c", COMPILED, str(architecture), str(Path(__file__).parent), str(FOLDER)]
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "[]", done.stderr
    assert re.fullmatch(r"\['(atom|red)\.global\.gpu\.relaxed\.min\.s32'\]", done.stdout.splitlines()[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forms_of_a_row_are_compared_before_they_are_timed(dtype, monkeypatch):
    steps = Steps((5, 1, 4, 4), dtype, backend="triton")
    ticketless.check(steps)
    monkeypatch.setattr(ticketless, "apply_row_alone", lambda *_: None)
    with pytest.raises(AssertionError, match="row without ticket, condition that advances: y is not the reference's"):
        ticketless.check(steps)
