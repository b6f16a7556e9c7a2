"""Processes that may hang or crash: each has a limit, and one that is killed names the test in which it was.

Nothing depends on a process's help: it is watched from outside, since a blocked call of a driver holds Python's lock,
and no signal and no timer within the process reaches it then.
"""

from __future__ import annotations

import importlib.machinery
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu import journal

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "gpu-site"  # what travelled; the machine's own packages stay as they are
SILENCE = 90  # seconds before a test process's first test, or between two
EXIT = 10  # seconds after its last
SLACK = 5  # seconds that a test may take beyond its limit
ABORTING, KILLING = 3, 10  # seconds for a process to write where it was, and to die
PAUSE = 0.1
OUT_OF_TIME = "out of time"


@dataclass(frozen=True)
class Task:
    """A process.

    Attributes:
        name: of its log and its journal.
        limit: seconds, with its restarts.
        restarts: of a test process, which then goes on after the test that ended it. None: no test process.
        needs: packages without which it is not run.
        refused: why it cannot be run here at all.
        settings: environment variables.
    """

    name: str
    limit: float
    command: list[str]
    restarts: int | None = None
    needs: tuple[str, ...] = ()
    refused: str = ""
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class End:
    """How a task went: `code` is None where it was not run, or would not die; `note` says why it is not 0."""

    name: str
    code: int | None = None
    seconds: float = 0.0
    note: str = ""


def log_of(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}.log"


def journal_of(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}.jsonl"


def lacking(names: tuple[str, ...]) -> str:
    """The packages among these that are not there, in words."""
    path = [str(SITE), *sys.path]
    gone = [name for name in names if importlib.machinery.PathFinder.find_spec(name, path) is None]
    return f"lacks {', '.join(gone)}" if gone else ""


def run(task: Task, folder: Path, limit: float, watch: Callable[[], None]) -> End:
    """To its end or the limit; `watch` is called all the while."""
    end, began = End(task.name, note=task.refused or lacking(task.needs)), time.monotonic()
    path, log = journal_of(folder, task), log_of(folder, task)
    if end.note:
        return end
    notes = []
    for _ in range(1 + (task.restarts or 0)):
        before = journal.began(path)
        end.code, why = _attempt(task, folder, began + limit, watch)
        died = bool(why) or end.code is None or end.code < 0
        why = why or _status(end.code, log)
        if task.restarts is None:
            notes += [why] if died or end.code else []
            break
        if any("finished" in line for line in journal.lines(path)):
            notes += [f"{why} after its last test"] if died else []
            break
        where = _blame(path, why, end.code)
        notes.append(f"{why} in {where}" if where else why)
        if why == OUT_OF_TIME or journal.began(path) == before:
            break
    else:
        notes.append(f"{task.restarts} restarts, no more")
    end.note, end.seconds = "; ".join(notes), round(time.monotonic() - began, 1)
    return end


def _attempt(task: Task, folder: Path, until: float, watch: Callable[[], None]) -> tuple[int | None, str]:
    """Its exit status, and why it was ended, if it did not end by itself."""
    path = journal_of(folder, task)
    command = task.command if task.restarts is None else [*task.command, "--journal", str(path)]
    with log_of(folder, task).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment(folder / f"{task.name}.cuda.log"), **task.settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # of which nothing is left afterwards
        )
    try:
        why = _wait(process, None if task.restarts is None else path, until, watch)
    finally:
        end(process)
    return process.returncode, why


def _wait(process: subprocess.Popen[bytes], path: Path | None, until: float, watch: Callable[[], None]) -> str:
    """Until it ends, "", or has to be ended: why."""
    heard, patience, read = time.monotonic(), float(SILENCE), 0
    while process.poll() is None:
        watch()
        if path is not None:
            new, read = journal.since(path, read)
            if new:
                heard = time.monotonic()
                patience = EXIT if "finished" in new[-1] else new[-1].get("limit", SILENCE - SLACK) + SLACK
        if time.monotonic() > until:
            return OUT_OF_TIME
        if path is not None and time.monotonic() - heard > patience:
            return f"no answer for {patience:.0f} s"
        try:
            process.wait(PAUSE)
        except subprocess.TimeoutExpired:
            continue
    return ""


def end(process: subprocess.Popen[Any]) -> None:
    """Abort, at which Python's fault handler writes where each thread is, then kill it and all that it started."""
    for number, patience in ((signal.SIGABRT, ABORTING), (signal.SIGKILL, KILLING)):
        if process.poll() is None:
            _signal(process.pid, number)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
    _signal(process.pid, signal.SIGKILL)
    killed: set[int] = set()
    while left := _session(process.pid) - killed:  # ninja's compilers are in groups of their own
        for pid in left:
            _signal(pid, signal.SIGKILL, os.kill)
        killed |= left


def _session(leader: int) -> set[int]:
    """Processes that it began, and those that they began."""
    found = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            found |= {pid} if os.getsid(pid) == leader else set()
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _signal(target: int, number: signal.Signals, send: Callable[[int, int], None] = os.killpg) -> None:
    try:
        send(target, number)
    except (ProcessLookupError, PermissionError):
        pass


def _blame(path: Path, why: str, code: int | None) -> str | None:
    """The test in which the process ended. If it had not ended itself, its journal says so from now on."""
    running = journal.unfinished(path)
    if running:
        journal.add(path, test=running, outcome="stopped" if why == OUT_OF_TIME else "killed", message=why)
    tests = [line["test"] for line in journal.lines(path) if "test" in line]
    return running or (tests[-1] if tests and code == journal.UNUSABLE else None)


def _status(code: int | None, log: Path) -> str:
    """In words: a signal's name, or the last line of the log that speaks of an error."""
    if code is None:
        return "would not die"
    if code < 0:
        return signal.Signals(-code).name
    if code == journal.UNUSABLE:
        return "device unusable"
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    told = [line for line in lines if "error" in line.lower()] or lines
    return f"status {code}: {told[-1][:160]}" if told else f"status {code}"


def environment(cuda_log: Path) -> dict[str, str]:
    """Ours, with what travelled in front. A driver of 12.9 or newer says in `cuda_log` why it refuses a call."""
    ours = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}  # for machines with an index
    path = [str(SITE), str(ROOT / "benchmarks"), *filter(None, [ours.get("PYTHONPATH")])]
    return {
        **ours,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "CUDA_LOG_FILE": str(cuda_log),
    }
