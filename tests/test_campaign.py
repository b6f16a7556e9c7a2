"""`make gpu` where things go wrong: devices that hang or crash, no build, packages lacking, a machine taken away."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from campaigns import FOLDER, GRAPH, held, outcomes, script, suite
from gpu import building, campaign, journal, runner, steps, table
from gpu.runner import Task
from gpu.steps import Step


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Test processes without any plugin but ours: none may be needed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


HANGS = """
    import os, signal, pytest
    @pytest.mark.parametrize("case", ["ddpm-while-fp32", "f-pndm-while-fp32", "ddim-while-fp32"])
    def test_graph_is_eager(case):
        if case.startswith("f"):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGABRT):
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.Signals)
            read, write = os.pipe()
            os.read(read, 1)
    def test_a_thousand_calls_do_not_grow(): pass
"""


@pytest.mark.slow
def test_a_hang_that_no_signal_ends_is_named_and_the_rest_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SLACK", 0.3)
    monkeypatch.setattr(runner, "ABORTING", 0.3)
    code, told, lines = held(tmp_path, [Step("tests", 60, [suite(tmp_path, "while", HANGS, each=0.2)])])
    assert code == 1
    found = outcomes(told)
    assert found.pop("test_graph_is_eager[f-pndm-while-fp32]") == "killed"
    assert len(found) == 3 and set(found.values()) == {"passed"}
    status, got = lines["graph == eager bit for bit, while, fp32"]
    assert status == table.MISSED and "f-pndm-while-fp32" in got and "no answer" in got
    assert lines["graph == eager bit for bit, while, bf16"][0] == table.NOT_RUN
    assert "f-pndm-while-fp32" in told["tests"]["tasks"][0]["note"]


CRASHES = """
    import os, signal, pytest
    @pytest.mark.parametrize("case", range(7))
    def test_crashes(case):
        if case in {crashing}:
            os.kill(os.getpid(), signal.SIGSEGV)
    def test_graph_is_eager(): pass
"""


@pytest.mark.slow
def test_a_crash_in_the_middle_of_a_file_costs_one_test(tmp_path):
    task = suite(tmp_path, "replay", CRASHES.format(crashing={2}))
    code, told, _ = held(tmp_path, [Step("tests", 60, [task])])
    found = outcomes(told)
    assert code == 1 and found.pop("test_crashes[2]") == "killed"
    assert len(found) == 7 and set(found.values()) == {"passed"}
    assert told["tests"]["tasks"][0]["note"] == f"SIGSEGV in {GRAPH}::test_crashes[2]"
    log = (tmp_path / "logs" / "replay.log").read_text()
    assert "Fatal Python error: Segmentation fault" in log and "test_crashes" in log, "where it was"


@pytest.mark.slow
def test_restarts_are_few_and_what_they_leave_is_not_run(tmp_path):
    code, told, lines = held(
        tmp_path, [Step("tests", 60, [suite(tmp_path, "replay", CRASHES.format(crashing="range(7)"))])]
    )
    found = list(outcomes(told).values())
    assert code == 1 and found.count("killed") == 4 and found.count(None) == 4
    status, got = lines["1,000 calls without growth, replay"]
    assert status == table.NOT_RUN and "SIGSEGV" in got and "test_crashes[3]" in got and "3 restarts, no more" in got


EXITS = """
    import atexit, os, signal
    def test_graph_is_eager(): atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.slow
def test_a_crash_at_the_end_takes_no_test_along(tmp_path):
    code, told, _ = held(tmp_path, [Step("tests", 60, [suite(tmp_path, "replay", EXITS)])])
    assert code == 1 and told["tests"]["tasks"][0]["note"] == "SIGSEGV after its last test"
    assert outcomes(told) == {"test_graph_is_eager": "passed"}


STICKY = """
    import pytest
    def test_first():
        raise RuntimeError("CUDA error: unspecified launch failure")
    def test_lacks(): import no_such_package
    @pytest.mark.timeout(7)
    def test_own_limit(record_property): record_property("launches", 3)
    def test_refused():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    def test_after(): pytest.skip("no reason")
"""


@pytest.mark.slow
def test_a_lost_device_costs_a_process_and_a_lacking_package_nothing(tmp_path):
    """The first failure ends its process, the last does not: without a device, its words are what there is."""
    task = suite(tmp_path, "networks", STICKY)
    _, told, lines = held(tmp_path, [Step("tests", 60, [task])])
    wanted = {"test_first": "failed", "test_lacks": "lacking", "test_own_limit": "passed"}
    assert outcomes(told) == {**wanted, "test_refused": "failed", "test_after": "skipped"}
    assert told["tests"]["tasks"][0]["note"] == f"device unusable in {GRAPH}::test_first"
    lines_ = journal.lines(tmp_path / "logs" / "networks.jsonl")
    assert [line["limit"] for line in lines_ if "own_limit" in line.get("test", "") and "start" in line] == [7]
    assert lines["launches"] == (table.TOLD, "3")
    assert told["tests"]["tests"][f"{GRAPH}::test_lacks"]["message"] == "lacks no_such_package"


@pytest.mark.slow
def test_a_smoke_line_that_is_wrong_or_hangs_is_shown(tmp_path, monkeypatch):
    wrong = json.dumps({"line": "small-while", "ok": False, "mode": "while"})
    hung = f"print('{json.dumps({'line': 'rows', 'ok': True, 'us': 3})}', flush=True); import time; time.sleep(60)"
    tasks = [script("small-while", f"print('{wrong}'); raise SystemExit(1)"), script("rows", hung, limit=0.5)]
    monkeypatch.setattr(campaign, "FEWEST", 0.1)
    code, told, lines = held(tmp_path, [Step("smoke", 60, tasks)])
    assert code == 1 and lines["smoke: small-while"][0] == table.MISSED
    assert lines["smoke: rows"] == (table.NOT_RUN, "ok True, us 3; then out of time")
    assert told["smoke"]["tasks"][1]["note"] == "out of time"


TREE = {
    "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'no_such_backend'\n",
    "setup.py": "{setup}",
    "pndm_fast/__init__.py": "",
    "pndm_fast/plan/__init__.py": "",
    "kernels/__init__.py": "",
}
IN_PLACE = "open('pndm_fast/_C.py', 'w').close()"


def tree(tmp_path, setup):
    for name, text in TREE.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(setup=setup))
    return ["--root", str(tmp_path / "tree"), "--site", str(tmp_path / "site")]


@pytest.mark.slow
def test_without_pip_it_is_built_in_place(tmp_path):
    task = Task("build", 60, [*steps.COMMAND, "build", *tree(tmp_path, IN_PLACE)])
    end = runner.run(task, tmp_path, 60, lambda: None)
    (line,) = journal.lines(tmp_path / "build.log")
    assert end.code == 0 and line["how"] == "setup.py build_ext --inplace"
    assert "no_such_backend" in line["failed"]["pip install --editable"]
    assert (tmp_path / "site" / "pndm_fast" / "kernels").resolve() == (tmp_path / "tree" / "kernels").resolve()


LOCKS = """
import fcntl, os, subprocess, sys, time
if sys.argv[1:] == ["compiler"]:
    file = open({lock!r}, "a")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("locked")
    file.flush()
else:
    subprocess.Popen([sys.executable, __file__, "compiler"], preexec_fn=os.setpgrp)  # as ninja does
time.sleep(99)
"""


def held_by_none(lock):
    """Whether the process that had locked the file is gone; a zombie holds nothing."""
    until = time.monotonic() + 10
    with lock.open("a") as file:
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
                continue
            return True
    return False


@pytest.mark.slow
def test_what_a_way_of_building_has_begun_ends_with_it(tmp_path):
    lock, builder = tmp_path / "lock", tmp_path / "builder.py"
    builder.write_text(LOCKS.format(lock=str(lock)))
    assert building.run([str(builder)], tmp_path, 2) == (False, "not done in 2 s")
    assert lock.read_text() == "locked" and held_by_none(lock)


@pytest.mark.slow
def test_what_a_build_has_begun_ends_with_the_campaign(tmp_path):
    lock, where = tmp_path / "lock", tree(tmp_path, "")
    hangs = "[build-system]\nrequires = []\nbuild-backend = 'hangs'\nbackend-path = ['.']\n"
    (tmp_path / "tree" / "pyproject.toml").write_text(hangs)
    (tmp_path / "tree" / "hangs.py").write_text(LOCKS.format(lock=str(lock)))

    def watch():
        if lock.is_file() and lock.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(Task("build", 60, [*steps.COMMAND, "build", *where]), tmp_path, 60, watch)
    assert held_by_none(lock)


@pytest.mark.slow
def test_without_a_build_what_needs_it_is_not_run(tmp_path):
    build = Task("build", 60, [*steps.COMMAND, "build", *tree(tmp_path, "raise SystemExit('no compiler')")])
    ran = script("versions", "print('{}')")
    chosen = [Step("versions", 9, [ran], built=False), Step("build", 90, [build], built=False)]
    code, told, lines = held(tmp_path, [*chosen, Step("tests", 9, [script("rows", "")])])
    assert code == 1 and told["versions"]["tasks"][0]["code"] == 0
    assert "no compiler" in told["build"]["tasks"][0]["note"] and "no_such_backend" in told["build"]["tasks"][0]["note"]
    assert told["tests"]["note"] == "no build" and told["tests"]["tasks"] == []
    assert lines["graph == eager bit for bit, replay, bf16"] == (table.NOT_RUN, "no build")
    assert lines["memcheck"] == (table.NOT_RUN, "step not asked for")


def test_what_lacks_packages_or_time_or_a_tool_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(steps.shutil, "which", lambda name: None)
    sanitized = next(step for step in steps.steps() if step.name == "memcheck")
    speed = script("gpu_speed", "", needs=("sys_no_such", "json"))
    chosen = [Step("gpu_speed", 9, [speed]), sanitized, Step("gpu_sample", 1, [script("gpu_sample", "")])]
    code, told, lines = held(tmp_path, chosen)
    assert code == 1
    assert lines["share of the copy's bandwidth, 64M bf16 row"] == (table.NOT_RUN, "lacks sys_no_such")
    assert lines["memcheck"] == (table.NOT_RUN, "lacks compute-sanitizer")
    assert lines["diffusers eager / ours, CIFAR-size, batch 1"] == (table.NOT_RUN, "out of time")
    assert all(task["code"] is None for step in told.values() for task in step["tasks"])


TAKEN = """
import sys
from pathlib import Path
sys.path.append({benchmarks!r})
from gpu import campaign, steps
from gpu.runner import Task
from gpu.steps import Step
folder = Path({folder!r})
hangs = "import os, time; print(os.getpid()); print('{{\\"line\\": \\"rows\\"}}'); time.sleep(99)"
chosen = [
    Step("versions", 9, [Task("versions", 9, [sys.executable, "-c", 'print(\\'{{"line": "versions", "n": 1}}\\')'])]),
    Step("smoke", 90, [Task("rows", 90, [sys.executable, "-u", "-c", hangs])]),
    Step("tests", 90, [Task("replay", 90, [sys.executable, "-c", "pass"])]),
]
campaign.Campaign.every, campaign.Campaign.root = 0.1, folder
campaign.Campaign(chosen, folder / "logs", folder / "results", folder / "out", 100).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_machine_that_is_taken_away_leaves_an_archive(tmp_path, number):
    """Whole at any moment, with all that was found until then, and true about the rest."""
    code = TAKEN.format(benchmarks=str(FOLDER), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log, path = tmp_path / "logs" / "rows.log", tmp_path / "out" / "logs.tar.gz"
    until = time.monotonic() + 30
    while not (log.is_file() and '"rows"' in log.read_text() and b"rows" in unpacked(path).get("steps.json", b"")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.wait()
    orphan = int(log.read_text().splitlines()[0])
    if number == signal.SIGKILL:
        os.kill(orphan, signal.SIGKILL)
    told = json.loads(unpacked(path)["steps.json"])["steps"]
    assert told["versions"]["lines"] == [{"line": "versions", "n": 1}] and told["versions"]["tasks"][0]["code"] == 0
    assert told["smoke"]["tasks"] == [{"name": "rows", "code": None, "seconds": 0.0, "note": campaign.RUNNING}]
    assert told["tests"]["note"] == campaign.NOT_REACHED and told["tests"]["tasks"] == []
    shown = unpacked(path)["table.txt"].decode()
    assert re.search(f"not run +graph == eager bit for bit, while, fp32 +{campaign.NOT_REACHED}", shown)
    assert re.search("reported +smoke: rows", shown) is None and campaign.RUNNING in shown


def unpacked(path):
    """Name of a file -> what it holds."""
    if not path.is_file():
        return {}
    with tarfile.open(path) as archive:
        return {Path(one.name).name: archive.extractfile(one).read() for one in archive.getmembers()}


def test_journals_hold_whole_lines_only(tmp_path):
    path = tmp_path / "journal"
    path.write_text('{"test": "a", "start": 1}\nnoise\n[1]\n{"test": "a", "outc')
    assert journal.lines(path) == [{"test": "a", "start": 1}] and journal.unfinished(path) == "a"
    new, read = journal.since(path, 0)
    with path.open("a") as file:
        file.write('ome": "passed"}\n')
    assert journal.since(path, read)[0] == [{"test": "a", "outcome": "passed"}] and journal.unfinished(path) is None


@pytest.mark.slow
def test_a_build_of_another_tree_is_none(tmp_path):
    good, said = building.imported(tmp_path)
    assert not good and "is imported" in said
