"""`make gpu`: everything that needs a GPU, in under nine minutes, on a machine without network or package index.

A step that fails or outlasts its limit stops no later one. Logs go to build/gpu/, results to benchmarks/results/<gpu>/,
a table of what the project says of itself is printed last.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu import verdict
from speed.run import folder_of, outcome, test_cases

ROOT = Path(__file__).parents[2]
COMMAND = [
    sys.executable,
    "-P",
    str(ROOT / "benchmarks"),
]  # -P: the folder kernels/ must not become importable as `kernels`
LOGS = ROOT / "build" / "gpu"
SITE = ROOT / "build" / "gpu-site"  # the wheels that travelled; the machine's own packages stay as they are
TOTAL = 525  # seconds for all steps
MARGIN = 45  # seconds that a benchmark may go on for after the last was begun
GRACE = 10  # seconds to write what there is, once interrupted

PYTHON = [sys.executable, "-P"]  # the folder kernels/ must not become importable as `kernels`
PYTEST = [*PYTHON, "-m", "pytest"]
COMMAND = [*PYTHON, str(ROOT / "benchmarks")]
JUNIT = ["-o", "junit_family=legacy"]  # the form that keeps what tests record
SANITIZED = {
    "sanitizer": [
        "tests/test_gpu.py::test_triton_is_the_reference",
        "tests/test_gpu_graph.py::test_graph_is_eager[ddpm-replay-fp32]",
        "tests/test_gpu_graph.py::test_guided_graph_is_eager[f-pndm-replay-bf16]",
    ],
    "sanitizer-while": ["tests/test_gpu_graph.py::test_graph_is_eager[ddpm-while-fp32]"],
}


@dataclass(frozen=True)
class Step:
    """A command with a time limit in seconds; `shown`: how many of its last lines are printed."""

    name: str
    limit: float
    command: list[str] | None
    shown: int = 4


@dataclass
class Done:
    """How a step went: `code` is None where it was not run, for the reason in `note`."""

    name: str
    seconds: float = 0.0
    code: int | None = None
    note: str = ""
    tests: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)


def junit(name: str) -> Path:
    return LOGS / f"{name}.xml"


def tests(name: str, limit: float, *arguments: str, under: list[str] | None = None) -> Step:
    return Step(name, limit, [*(under or []), *PYTEST, "-rf", *JUNIT, f"--junitxml={junit(name)}", *arguments])


def bench(suite: str, limit: float, options: list[str]) -> Step:
    budget = f"--budget={max(limit - MARGIN, 10):.0f}"
    return Step(suite, limit, [*COMMAND, "speed", "--device=cuda", budget, *options, suite], shown=40)


def sanitizer() -> str | None:
    """compute-sanitizer, on the path or in a toolkit."""
    found = glob.glob("/usr/local/cuda*/bin/compute-sanitizer") + glob.glob("/opt/nvidia/**/compute-sanitizer")
    return shutil.which("compute-sanitizer") or next(iter(found), None)


def sanitized(name: str, limit: float) -> Step:
    """memcheck of named tests; refused API calls are no memory errors, the tests see those themselves."""
    tool = sanitizer()
    if tool is None:
        return Step(name, limit, None)
    under = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
    return tests(name, limit, "-p", "no:cacheprovider", "-o", f"timeout={limit}", *SANITIZED[name], under=under)


def steps(options: list[str]) -> list[Step]:
    """In order of need; the last takes what time the others leave."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    wheels = sorted(glob.glob(str(ROOT / ".whl" / "*.whl")))
    target = ["--no-compile", "--upgrade", "--target", str(SITE)]
    parallel = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    sweep = [*COMMAND, "sweep", "--budget=40", *options]
    return [
        Step("wheels", 30, [*pip, *target, *wheels] if wheels else None),
        Step("build", 60, [*pip, "--no-build-isolation", "--editable", str(ROOT)]),
        tests("tests", 115, "-m", "gpu", "--continue-on-collection-errors", "-o", "timeout=60"),
        bench("gpu_speed", 85, options),
        Step("sweep", 60, sweep, shown=20),
        tests("kernels", 50, *parallel, "tests/test_triton.py", "tests/test_noise.py"),
        *(sanitized(name, 35) for name in SANITIZED),
        bench("gpu_sample", TOTAL, options),
    ]


def environment() -> dict[str, str]:
    """Ours, with the travelled wheels in front; pins are for machines with an index."""
    ours = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    path = [str(SITE), *filter(None, [ours.get("PYTHONPATH")])]
    return {**ours, "PYTHONPATH": os.pathsep.join(path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(step: Step, limit: float) -> Done:
    """In a process group of its own, of which nothing is left afterwards."""
    done = Done(step.name)
    if step.command is None or limit < 5:
        done.note = "nothing to run it with" if step.command is None else "no time left"
        return done
    log, began = LOGS / f"{step.name}.log", time.monotonic()
    junit(step.name).unlink(missing_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment(), stdout=output, stderr=output, start_new_session=True
        )
        try:
            done.code = process.wait(limit)
        except subprocess.TimeoutExpired:
            done.note = f"stopped at {limit:.0f} s"
            process.send_signal(signal.SIGINT)
            done.code = finish(process)
        finally:
            end_group(process.pid)
    done.seconds = round(time.monotonic() - began, 1)
    read_tests(done)
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-(step.shown if done.code == 0 else max(step.shown, 25)) :]), flush=True)
    return done


def finish(process: subprocess.Popen[bytes]) -> int:
    """The status of an interrupted process, which gets a while to write what it has."""
    try:
        return process.wait(GRACE) or 124
    except subprocess.TimeoutExpired:
        end_group(process.pid)
        process.wait()
        return 124


def end_group(leader: int) -> None:
    """Compilers' workers outlive who started them."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def read_tests(done: Done) -> None:
    for case in test_cases(junit(done.name)):
        if not case.get("name"):  # an interrupted one
            continue
        done.tests[case.get("name", "")] = outcome(case)
        for one in case.iter("property"):
            done.properties[one.get("name", "")] = one.get("value", "")


def describe(commit: str | None) -> dict[str, Any]:
    """The machine, asked in a process that sees the wheels; empty where that fails."""
    code = f"import sys, json; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import machine; "
    code += f"print(json.dumps(machine.describe({commit!r})))"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    return json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 and asked.stdout else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="default: all")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    parser.add_argument("--total", type=float, default=TOTAL, help="seconds for all steps")
    arguments = parser.parse_args()
    options = [f"--commit={arguments.commit}"] * bool(arguments.commit)
    known = steps(options)
    unknown = set(arguments.steps) - {step.name for step in known}
    if unknown:
        parser.error(f"steps must be among {', '.join(step.name for step in known)}, got {', '.join(sorted(unknown))}")
    chosen = [step for step in known if not arguments.steps or step.name in arguments.steps]
    LOGS.mkdir(parents=True, exist_ok=True)
    until, finished = time.monotonic() + arguments.total, []
    machine = describe(arguments.commit)
    folder = folder_of("cuda", machine)
    for step in chosen:  # what an earlier run left is not this one's
        (folder / f"{step.name}.json").unlink(missing_ok=True)
    for step in chosen:
        left = min(step.limit, until - time.monotonic() - GRACE)
        if step.name == "gpu_sample":
            step = bench(step.name, left, options)
        print(f"== {step.name}, at most {left:.0f} s", flush=True)
        finished.append(run(step, left))
    return report(finished, machine, folder)


def report(finished: list[Done], machine: dict[str, Any], folder: Path) -> int:
    """Write tests.json and must_show.json beside the suites' results; print steps and table. 1 if a step failed.

    Of steps that were not asked for, what an earlier run said is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tests.json"
    earlier = json.loads(path.read_text())["steps"] if path.is_file() else []
    names = {done.name for done in finished}
    kept = [step for step in earlier if step["name"] not in names]
    kept += [{**vars(done), "commit": machine.get("commit")} for done in finished]
    path.write_text(json.dumps({"machine": machine, "steps": kept}, indent=1) + "\n")
    table = verdict.table(folder)
    (folder / "must_show.json").write_text(json.dumps({"machine": machine, "shows": table}, indent=1) + "\n")
    for done in finished:
        how = "not run" if done.code is None else "ok" if done.code == 0 else f"FAILED ({done.code})"
        print(f"{done.name:<16} {how:<13} {done.seconds:>6.1f} s  {done.note}")
    print(f"\n{folder.relative_to(ROOT)}: {verdict.commits(folder)}")
    print(verdict.text(table))
    return 1 if any(done.code for done in finished) else 0


if __name__ == "__main__":
    sys.exit(main())
