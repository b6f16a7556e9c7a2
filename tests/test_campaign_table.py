"""What `make gpu` says of what was measured, and that what it asks for is there."""

import ast
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from campaigns import FOLDER, ROOT, held, printing, script, suite
from gpu import archive, building, campaign, points, steps, table
from gpu.steps import Step


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Test processes without any plugin but ours: none may be needed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


BENCHMARKS = """
    import pytest
    class Stats: min, median, iqr, rounds = 4.0, 6.0, 2.0, 5
    class Benchmark:
        stats = type("Metadata", (), {"stats": Stats})
        def __init__(self): self.extra_info = {}
    @pytest.fixture
    def benchmark(): return Benchmark()
    def rivals(**us): return {mode: {"us": value} for mode, value in us.items()}
    @pytest.mark.parametrize("case", ["cifar-B1"])
    def test_over_the_network_alone(benchmark, case):
        benchmark.extra_info |= {"us": 10.0, "ratio": 1.05, "target": "<= 1.03", "met": False, "calls": 2}
        benchmark.extra_info |= {"rival": "network alone", "rivals": rivals(**{"network alone": 9.0})}
        benchmark.extra_info |= {"row_us": 4.0, "row_us_with_start_and_end": 5.0, "row_met": True}
    @pytest.mark.parametrize("case", ["small-B1"])
    def test_modes(benchmark, case):
        benchmark.extra_info |= {"us": 9.0, "ratio": 1.0, "graph": "while", "target": "<= 1.02", "met": True}
        benchmark.extra_info |= {"rivals": rivals(replay=10.0, **{"while": 9.0})}
    @pytest.mark.parametrize("case", ["cifar-B1"])
    def test_against_diffusers(benchmark, case):
        benchmark.extra_info |= {"us": 9.0, "ratio": 2.5, "target": ">= 2", "met": True, "rival": "diffusers"}
        benchmark.extra_info |= {"apart": True, "relative_distance": 0.25, "rivals": rivals(diffusers=20.0)}
    @pytest.mark.parametrize("case", ["cifar-B1"])
    def test_against_reduce_overhead(benchmark, case):
        assert False, "while is not eager"
    @pytest.mark.parametrize("case", ["cifar-B16"])
    def test_against_another(case): import os; os.abort()
"""


@pytest.mark.slow
def test_what_was_measured_before_a_crash_is_kept_and_judged(tmp_path):
    task = suite(tmp_path, "gpu_sample", BENCHMARKS)
    _, told, lines = held(tmp_path, [Step("gpu_sample", 60, [task])])
    kept = json.loads((tmp_path / "results" / "gpu" / "gpu_sample.json").read_text())["results"]
    assert [one["name"] for one in kept] == [
        "test_over_the_network_alone[cifar-B1]",
        "test_modes[small-B1]",
        "test_against_diffusers[cifar-B1]",
    ]
    assert kept[0]["seconds"] == {"min": 2.0, "median": 3.0, "iqr": 1.0, "rounds": 5}
    assert lines["sample(50) / network alone, CIFAR-size, batch 1"][0] == table.MISSED
    assert "1.05" in lines["sample(50) / network alone, CIFAR-size, batch 1"][1]
    assert lines["a row's cost beside the network, wanted <= 5 us"][0] == table.MET
    status, got = lines["replay / while on a launch-bound network, wanted >= 1.05"]
    assert status == table.MET and got.startswith("KEEP while: 1.111")
    status, got = lines["diffusers eager / ours, CIFAR-size, batch 1"]
    assert status == table.MET and "APART by 0.25" in got
    status, got = lines["reduce-overhead / ours compiled, CIFAR-size, batch 1"]
    assert status == table.MISSED and "while is not eager" in got
    assert "SIGABRT" in told["gpu_sample"]["tasks"][0]["note"]


def test_a_loop_on_the_device_that_earns_nothing_is_to_go(tmp_path):
    lines = [{"line": f"small-{mode}", "ok": True, "us": us} for mode, us in (("replay", 10.0), ("while", 9.9))]
    _, told, shown = held(tmp_path, [Step("smoke", 60, [script("small", printing(lines))])])
    status, got = shown["replay / while on a launch-bound network, wanted >= 1.05"]
    assert status == table.MISSED and got.startswith("TAKE while OUT: 1.010 (smoke")
    assert told["smoke"]["lines"] == lines and shown["smoke: small-replay"][0] == table.TOLD
    assert shown["smoke: rows"] == (table.NOT_RUN, "nothing of that name was run")


def test_steps_that_are_not_asked_for_keep_what_an_earlier_run_said(tmp_path):
    first = script("small", 'print(\'{"line": "small-while", "ok": true, "us": 7}\')')
    held(tmp_path, [Step("smoke", 9, [first])])
    _, told, lines = held(tmp_path, [Step("tests", 9, [script("rows", "")])])
    assert lines["smoke: small-while"] == (table.TOLD, "ok True, us 7") and set(told) == {"smoke", "tests"}
    assert "smoke, tests at cccccccccccc" in (tmp_path / "results" / "gpu" / "table.txt").read_text()


def anew(tmp_path, *kept):
    """Another machine: of the first, what stands in `kept` is there."""
    for folder in {"logs", "results", "out"} - {*kept}:
        shutil.rmtree(tmp_path / folder, ignore_errors=True)


def members(tmp_path):
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as opened:
        return {one.name: opened.extractfile(one).read().decode() for one in opened.getmembers()}


def test_an_archive_that_is_there_is_gone_on_with(tmp_path):
    """On a machine that has nothing, or what an older commit had measured."""
    older = [Step("smoke", 9, [script("small", 'print(\'{"line": "small-while", "ok": true, "us": 99}\')')])]
    held(tmp_path, older)
    anew(tmp_path, "results")
    steps_json = (tmp_path / "results" / "gpu" / "steps.json").read_text()
    first = script("small", 'print(\'{"line": "small-while", "ok": true, "us": 7}\')')
    other = {"line": "versions", "machine": {"gpu": {"name": "Other"}, "commit": "b" * 40}}
    held(tmp_path, [Step("smoke", 9, [first])])
    made = campaign.Campaign(
        [Step("versions", 9, [script("versions", printing([other]))])],
        tmp_path / "logs",
        tmp_path / "results",
        tmp_path / "out",
        9,
    )
    made.root = tmp_path
    made.run()
    anew(tmp_path, "out")
    archive.replace(tmp_path / "results" / "gpu" / "steps.json", steps_json)
    _, told, lines = held(tmp_path, [Step("tests", 9, [script("rows", "print('new')")])])
    assert lines["smoke: small-while"] == (table.TOLD, "ok True, us 7") and set(told) == {"smoke", "tests"}
    kept = members(tmp_path)
    assert {"results/gpu/table.txt", "results/other/steps.json", "logs/small.log", "logs/versions.log"} <= {*kept}
    assert kept["logs/rows.log"] == "new\n" and set(json.loads(kept["results/gpu/steps.json"])["steps"]) == {*told}


def test_what_a_step_found_before_does_not_come_back_from_the_archive(tmp_path):
    archive.replace(tmp_path / "results" / "gpu" / "gpu_speed.json", "{}")
    held(tmp_path, [Step("versions", 9, [script("versions", "")])])
    assert "results/gpu/gpu_speed.json" in members(tmp_path)
    anew(tmp_path, "out")
    held(tmp_path, [Step("gpu_speed", 9, [script("gpu_speed", "")])])
    assert "results/gpu/gpu_speed.json" not in members(tmp_path)


def test_an_archive_that_cannot_be_read_is_kept_aside(tmp_path, capsys):
    archive.replace(tmp_path / "out" / "logs.tar.gz", "half")
    held(tmp_path, [Step("tests", 9, [script("rows", "")])])
    assert (tmp_path / "out" / "logs.tar.gz.unreadable").read_text() == "half"
    assert "logs/rows.log" in members(tmp_path) and "cannot be read" in capsys.readouterr().out


def test_an_archive_writes_nowhere_else(tmp_path):
    (tmp_path / "a").write_text("a")
    archive.write(tmp_path / "root" / "one.tar.gz", [], tmp_path)
    with tarfile.open(tmp_path / "root" / "one.tar.gz", "w:gz") as made:
        made.add(tmp_path / "a", "../b")
    assert archive.unpack(tmp_path / "root" / "one.tar.gz", tmp_path / "root", over=True) == set()
    assert not (tmp_path / "b").exists()


def test_memcheck_and_launches_are_judged(tmp_path):
    found = {"launches": 1, "synchronizations": 0, "nfe": 29, "calls_of_python": [9, 9], "none_from_python": True}
    lines = [{"line": f"launches-{mode}", **found} for mode in ("while", "replay")]
    memcheck = script("memcheck-rows", "raise SystemExit(9)")
    chosen = [Step("profiler", 9, [script("launches", printing(lines))]), Step("memcheck", 9, [memcheck])]
    _, _, lines = held(tmp_path, chosen)
    assert lines["while: 1 launch, 0 synchronizations"][0] == table.MET
    status, got = lines["replay: nfe launches, none from Python, 0 synchronizations"]
    assert status == table.MISSED and "1 of 29 launches" in got
    assert lines["memcheck"] == (table.MISSED, "errors found in memcheck-rows")


@pytest.mark.parametrize("seen, status", [(1, table.NOT_RUN), (0, table.MISSED)])
def test_launches_are_told_where_the_profiler_crashes(tmp_path, seen, status):
    line = {"line": "launches-while", "nfe": 29, "calls_of_python": [9, 9], "none_from_python": True, "launches": seen}
    crashes = f"{printing([line])}\nimport os, sys; sys.stdout.flush(); os.abort()"
    _, _, lines = held(tmp_path, [Step("profiler", 9, [script("launches-while", crashes)])])
    found, got = lines["while: 1 launch, 0 synchronizations"]
    assert found == status and got.startswith(f"{seen} of 1 launches") and got.endswith("not counted: SIGABRT")


class Nvml:
    """Two devices, of which CUDA sees one."""

    class NVMLError(Exception):
        pass

    uuids = ("GPU-a", "GPU-b")

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.uuids:
            raise self.NVMLError
        return self.uuids.index(uuid)


@pytest.mark.parametrize("uuid, handle", [("b", 1), ("of a part", 0), (None, 0)])
def test_the_device_that_is_described_is_the_one_that_is_measured(monkeypatch, uuid, handle):
    import machine

    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace() if uuid is None else SimpleNamespace(uuid=uuid)
    monkeypatch.setattr(machine.torch.cuda, "get_device_properties", lambda index: properties)
    assert machine._nvml()[1] == handle


def test_what_is_needed_most_has_its_time_whatever_the_rest_takes():
    known = {step.name: step for step in steps.steps()}
    assert [*known][:4] == ["versions", "build", "smoke", "tests"]
    assert sum(known[name].limit for name in [*known][:4]) <= steps.WHOLE
    lines = [*steps.SMOKE]
    assert sum(steps.SMOKE[line] for line in lines[: 1 + lines.index("cifar")]) <= known["smoke"].limit
    (build,) = (task for task in known["build"].tasks if task.name == "build")
    assert building.BOTH + building.LOOKING <= build.limit


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["replay", "while"])
def test_launches_are_told_before_the_profiler_runs(stand_in, monkeypatch, mode):
    from gpu import smoke

    monkeypatch.setattr("torch.profiler.profile", None)
    found = smoke.launches(mode, "cpu")
    told = next(found)
    assert told["launches"] == (1 if mode == "while" else told["nfe"]) and "calls_of_python" in told
    with pytest.raises(TypeError):
        next(found)


def functions(path):
    return {node.name: node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def needs_gpu(path):
    """Whether it, or one of its tests, is marked."""
    marks = []
    for node in ast.parse(path.read_text()).body:
        marks += node.decorator_list if isinstance(node, ast.FunctionDef) else []
        marks += [node.value] if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark" else []
    return any("pytest.mark.gpu" in ast.unparse(mark) for mark in marks)


def test_every_gpu_test_is_in_one_process():
    (step,) = (step for step in steps.steps() if step.name == "tests")
    marked = {f"tests/{path.name}" for path in ROOT.glob("tests/test_*.py") if needs_gpu(path)}
    named = {task.name: [word for word in task.command if word.startswith("tests/")] for task in step.tasks}
    assert {file for files in named.values() for file in files} == marked
    assert named["replay"] == named["while"] == steps.GRAPHS and not {*named["engine"]} & {*steps.GRAPHS}
    names = [task.name for step in steps.steps() for task in step.tasks]
    assert len(names) == len({*names}), "each has a log of its own"


def test_points_name_what_is_there(tmp_path):
    """A test that was renamed would leave its point open for good."""
    there = {name for path in ROOT.glob("tests/test_gpu*.py") for name in functions(path)}
    there |= {name for path in FOLDER.glob("gpu/test_gpu*.py") for name in functions(path)}
    passed = {f"file::{name}[while-replay-fp32-bf16]": {"outcome": "passed"} for name in there}
    told = {step: {"tests": passed, "tasks": []} for step in ("tests", "profiler")}
    archive.replace(tmp_path / "steps.json", json.dumps({"steps": told}))
    lines = [judge(table.Results(tmp_path)) for judge in (*points.ASKED, *points.MORE)]
    open_ = [line.what for line in lines if line.got == "nothing of that name was run"]
    assert [what for what in open_ if "launch" not in what] == []
    texts = [Path(module.__file__).read_text() for module in (points, steps)]
    named = {name for text in texts for name in re.findall(r"\btest_(?!gpu|noise|triton)\w+", text)}
    assert all(any(name in function for function in there) for name in named), named
    profiling = [path for path in ROOT.glob("tests/test_gpu*.py") if "torch.profiler" in path.read_text()]
    assert [name for path in profiling for name in functions(path) if name == steps.PROFILED]


@pytest.mark.slow
def test_smoke_lines_are_there_and_run_on_the_fake_driver(stand_in):
    from gpu import smoke

    assert set(steps.SMOKE) | {"launches-replay", "launches-while"} == set(smoke.LINES)
    assert next(smoke.versions("cpu", "c" * 40))["machine"]["commit"]
    for line in ("kernel-while", "small-replay", "rows"):
        found = list(smoke.LINES[line]("cpu"))
        assert found and all(one.get("ok", True) for one in found), line
    assert {one.get("graph") for one in smoke.LINES["small-while"]("cpu")} == {"while", None}


@pytest.mark.parametrize("named, first", [([], "versions"), (["smoke"], "versions"), (["versions"], "versions")])
def test_what_is_built_comes_after_the_build(named, first):
    chosen = [step.name for step in campaign.choose(named, steps.steps())]
    assert chosen[0] == first and ("build" in chosen) == (named != ["versions"])
    assert "memcheck-while" not in chosen and len(chosen) == len({*chosen})
    assert not named or set(chosen) - {"versions", "build"} == {*named} - {"versions"}


def test_a_dry_run_leaves_nothing_in_the_tree(monkeypatch, tmp_path):
    """All that it writes is in build/, which git ignores."""
    made = []
    monkeypatch.setattr(campaign, "Campaign", lambda *given: made.append(given) or SimpleNamespace(run=lambda: 0))
    monkeypatch.setattr(campaign.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(campaign.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--out", str(tmp_path)])
    assert campaign.main() == 0
    ((_, logs, results, *_),) = made
    assert logs.is_relative_to(ROOT / "build") and results.is_relative_to(ROOT / "build")
