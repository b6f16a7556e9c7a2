"""Run the CPU's benchmarks, write benchmarks/results/cpu/<suite>.json, print a table."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

FOLDER = Path(__file__).parents[1]
RESULTS = FOLDER / "results"
SUITES = {  # the file, and an expression
    "stream": ("speed/test_rows.py", "stream"),
    "rows": ("speed/test_rows.py", "widest"),
    "diffusers_step": ("speed/test_steps.py", "diffusers"),
    "compiled": ("speed/test_steps.py", "inductor"),
    "calls": ("speed/test_calls.py", "beside"),
    "overhead": ("speed/test_calls.py", "outside or paired"),
    "plan_time": ("speed/test_calls.py", "make_plan"),
    "start": ("speed/test_start.py", ""),
    "schedulers": ("speed/test_schedulers.py", ""),
    "accelerate": ("speed/test_accelerate.py", ""),
    "engine": ("speed/test_engine.py", ""),
}
KEPT = ("min", "median", "iqr")


def settings(device: str) -> dict[str, str]:
    """Environment variables that make timings repeat."""
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return {
        # glibc otherwise returns large blocks to the system and faults them in again: a factor of 5 against eager code
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "MALLOC_MMAP_THRESHOLD_": str(2**34),
        "OMP_NUM_THREADS": cores,
        "MKL_NUM_THREADS": cores,
        "TORCHINDUCTOR_COMPILE_THREADS": "1" if device == "cpu" else cores,
    }


def environment(device: str) -> dict[str, str]:
    """Ours, with those."""
    return {**os.environ, **settings(device)}


def run_suite(suite: str, options: list[str]) -> tuple[int, dict[str, Any], list[str]]:
    """A fresh process for each suite. Returns pytest's exit status, its report and the names of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        report, junit = Path(folder) / "report.json", Path(folder) / "junit.xml"
        file, chosen = SUITES[suite]
        command = [sys.executable, "-P", "-m", "pytest", str(FOLDER / file), "-k", chosen, "--benchmark-enable"]
        command += [f"--benchmark-json={report}", "--benchmark-quiet", "--benchmark-disable-gc", "-o", "timeout=1200"]
        command += [f"--junitxml={junit}", *options]
        status = wait(subprocess.Popen(command, cwd=FOLDER.parent, env=environment("cpu")))
        written = report.is_file() and report.stat().st_size
        bad = [case.get("name", "") for case in test_cases(junit) if outcome(case) == "failed"]
        return status, json.loads(report.read_text()) if written else {"benchmarks": [], "machine_info": {}}, bad


def wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit status; an interrupt goes on to it once, so that it writes what it has."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        return process.wait() or 2


def test_cases(junit: Path) -> list[ElementTree.Element]:
    """The tests in a JUnit file; none where it was not written."""
    return list(ElementTree.parse(junit).iter("testcase")) if junit.is_file() else []


def outcome(case: ElementTree.Element) -> str:
    """passed, failed or skipped."""
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def summary(suite: str, report: dict[str, Any], quick: bool, bad: list[str]) -> dict[str, Any]:
    """What is kept: no raw data, times for one call, nothing of a benchmark that failed."""
    results = []
    for one in report["benchmarks"]:
        if one["name"] in bad or "us" not in one["extra_info"]:  # failed, or interrupted
            continue
        calls = one["extra_info"].get("calls", 1)
        stats = {key: one["stats"][key] / calls for key in KEPT} | {"rounds": one["stats"]["rounds"]}
        results.append({"name": one["name"], **one["extra_info"], "seconds": stats})
    return {
        "suite": suite,
        "date": report.get("datetime"),
        "quick": quick,
        "machine": report["machine_info"],
        "results": results,
    }


def folder_of(device: str, machine: dict[str, Any]) -> Path:
    """results/cpu, or the GPU's name in lower case with hyphens."""
    gpu = machine.get("gpu") or {}
    name = "cpu" if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", (gpu.get("name") or "gpu").lower()).strip("-")
    return RESULTS / name


def table(results: list[dict[str, Any]]) -> str:
    """One line for each result."""
    lines = [f"{'benchmark':<62} {'ours us':>10} {'rival us':>10} {'ratio':>8} {'quartiles':>15} {'target':>8}  met"]
    for one in results:
        rival = one.get("rivals", {}).get(one.get("rival"), {}).get("us")
        spread = "..".join(f"{x:.3g}" for x in one.get("quartiles") or [])
        ratio = "" if one.get("ratio") is None else f"{one['ratio']:.4g}"
        met = {True: "yes", False: "MISSED", None: ""}[one.get("met")]
        lines.append(
            f"{one['name'].removeprefix('test_'):<62} {one.get('us', 0):>10.2f} "
            f"{'' if rival is None else format(rival, '.2f'):>10} {ratio:>8} {spread:>15} "
            f"{one.get('target') or '':>8}  {met}"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", help="default: all")
    parser.add_argument("--quick", action="store_true", help="few rounds, no large sizes, nothing written")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    arguments = parser.parse_args()
    unknown = set(arguments.suites) - set(SUITES)
    if unknown:
        parser.error(f"suites must be among {', '.join(SUITES)}, got {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    arguments = parse()
    options = ["--quick"] * arguments.quick
    options += [f"--commit={arguments.commit}"] * bool(arguments.commit)
    failed, results = [], []
    for suite in arguments.suites or SUITES:
        status, report, bad = run_suite(suite, options)
        kept = summary(suite, report, arguments.quick, bad)
        results += kept["results"]
        if status or not kept["results"]:
            failed.append(suite)
        if kept["results"] and not arguments.quick and not status:
            folder = folder_of("cpu", kept["machine"])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{suite}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(table(results))
    if failed:
        print(f"failed, or nothing was measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
