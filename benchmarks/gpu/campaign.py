"""`make gpu`: everything that needs a GPU, in under nine minutes, on a machine without network or package index.

A process that fails, hangs or crashes stops no later one, and what it had found stays. Logs go to build/gpu/,
results to benchmarks/results/<gpu>/; with --out one archive of both is written anew whenever something was found, and
an archive that is there already is gone on with. A table of what the project says of itself is printed last.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu import archive, journal, points, runner, table
from gpu.runner import ROOT, Task
from gpu.steps import WHOLE, Step, steps
from speed.run import RESULTS, folder_of

LOGS = ROOT / "build" / "gpu"
FEWEST = 5  # seconds for which nothing is begun
NOT_REACHED = "not reached when this was written"
RUNNING = "was running when this was written"
FIRST = ("versions", "build")


@dataclass
class Record:
    """How a step went, so far: `note` says why it was not run; `tests` and `lines` are what its processes told."""

    commit: str | None
    note: str = ""
    tasks: list[runner.End] = field(default_factory=list)
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)


class Campaign:
    """Steps within a time, and what is kept of them.

    Args:
        chosen: in order.
        logs, results: folders; results get one of the GPU's name.
        out: the archive's folder, None for no archive.
        total: seconds.

    Attributes:
        every: seconds between two archives within a step.
        root: the folder from which an archive's names are.
    """

    every = 10.0
    root = ROOT

    def __init__(
        self,
        chosen: Sequence[Step],
        logs: Path,
        results: Path,
        out: Path | None,
        total: float,
        commit: str | None = None,
    ) -> None:
        self.chosen, self.logs, self.commit = chosen, logs, commit
        self.archive = None if out is None else out / f"{logs.name}.tar.gz"
        self.brought: set[Path] = set()  # folders of an archive that was there before
        self.results, self.machine = results, {}
        self.records = {step.name: Record(commit, NOT_REACHED) for step in chosen}
        self.until, self.kept, self.current = time.monotonic() + total, 0.0, ""

    @property
    def folder(self) -> Path:
        return self.results / folder_of("cuda", self.machine).name

    def run(self) -> int:
        """1 if something failed or was not run."""
        if self.archive is not None:  # on a machine without logs it is newer than what the tree brought along
            self.brought = archive.unpack(self.archive, self.root, over=not self.logs.exists())
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            for step in self.chosen:
                self.step(step)
        finally:
            self.keep()
            print(self.text())
        records = self.records.values()
        return 1 if any(record.note or any(end.code or end.note for end in record.tasks) for record in records) else 0

    def step(self, step: Step) -> None:
        for name in [name for name, record in self.records.items() if record.note == NOT_REACHED]:
            (self.folder / f"{name}.json").unlink(missing_ok=True)  # what an earlier run left is not this one's
        record, self.current = self.records[step.name], step.name
        for task in step.tasks:
            for path in (runner.log_of(self.logs, task), runner.journal_of(self.logs, task)):
                path.unlink(missing_ok=True)
        until = min(self.until, time.monotonic() + step.limit)
        record.note = self.obstacle(step)
        for task in [] if record.note else step.tasks:
            left = min(task.limit, until - time.monotonic())
            print(f"== {step.name}: {task.name}, at most {left:.0f} s", flush=True)
            record.tasks.append(runner.End(task.name, note=RUNNING))
            self.keep()
            record.tasks[-1] = self.task(step, task, left)
            self.read(step)
            self.keep()
            show(record.tasks[-1], runner.log_of(self.logs, task))
        self.current = ""
        self.keep()

    def task(self, step: Step, task: Task, left: float) -> runner.End:
        if left < FEWEST:
            return runner.End(task.name, note=runner.OUT_OF_TIME)
        return runner.run(task, self.logs, left, lambda: self.watch(step))

    def obstacle(self, step: Step) -> str:
        """Why a step cannot be run at all."""
        build = self.records.get("build")
        if step.built and build and (build.note or any(end.code != 0 for end in build.tasks if end.name == "build")):
            return "no build"
        return runner.OUT_OF_TIME if self.until - time.monotonic() < FEWEST else ""

    def watch(self, step: Step) -> None:
        """While a process runs: now and then keep what it has told."""
        if time.monotonic() - self.kept > self.every:
            self.read(step)
            self.keep()

    def read(self, step: Step) -> None:
        """What a step's processes have told so far, from their journals and what they printed."""
        record = self.records[step.name]
        record.tests, record.lines, results = {}, [], []
        for task in step.tasks:
            path = runner.journal_of(self.logs, task)
            record.tests |= {name: _short(line) for name, line in journal.tests(path).items()}
            results += journal.results(path)
            if task.restarts is None:
                record.lines += [line for line in journal.lines(runner.log_of(self.logs, task)) if "line" in line]
        for line in record.lines:
            self.machine = line.get("machine", self.machine)
        self.commit = self.machine.get("commit") or self.commit
        record.commit = self.commit
        if results:
            kept = {"suite": step.name, "machine": self.machine, "results": results}
            archive.replace(self.folder / f"{step.name}.json", _json(kept))

    def keep(self) -> None:
        """Write the state of things, of which earlier steps' stay that are not run again, and the archive."""
        if self.machine or self.current != FIRST[0]:  # before, nobody knows whose results these are
            self.write()
        if self.archive is not None:
            archive.write(self.archive, {self.logs, self.folder, *self.brought}, self.root)
        self.kept = time.monotonic()

    def write(self) -> None:
        path = self.folder / "steps.json"
        earlier = json.loads(path.read_text())["steps"] if path.is_file() else {}
        told = earlier | {name: asdict(record) for name, record in self.records.items()}
        archive.replace(path, _json({"machine": self.machine, "steps": told}))
        lines = [asdict(line) for line in points.judged(table.Results(self.folder))]
        archive.replace(self.folder / "must_show.json", _json({"machine": self.machine, "shows": lines}))
        archive.replace(self.folder / "table.txt", self.text() + "\n")

    def text(self) -> str:
        """The steps of this run, then the table."""
        lines = []
        for name, record in self.records.items():
            lines += [f"{name:<16} not run  {record.note}"] if record.note else []
            lines += [f"{name:<16} {_words(end)}" for end in record.tasks]
        results = table.Results(self.folder)
        commits: dict[str, list[str]] = {}
        for name, record in results.steps.items():
            commits.setdefault(str(record.get("commit") or "unknown commit")[:12], []).append(name)
        where = "; ".join(f"{', '.join(names)} at {commit}" for commit, names in commits.items())
        warning = [] if self.machine.get("gpu") else ["NO GPU WAS SEEN: no number below is one of a GPU"]
        return "\n".join([*lines, "", *warning, f"{self.folder.name}: {where}", table.text(points.judged(results))])


def show(end: runner.End, log: Path) -> None:
    """A log's last lines, more of them where something went wrong."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    print("\n".join([*lines[-(25 if end.note or end.code else 8) :], *([end.note] if end.note else [])]), flush=True)


def _short(line: dict[str, Any]) -> dict[str, Any]:
    """A test's line without its name and what results hold; {} for one that is running or was not begun."""
    kept = ("outcome", "seconds", "message", "properties")
    return {key: line[key] for key in kept if line.get(key)} if "outcome" in line else {}


def _words(end: runner.End) -> str:
    how = "not run" if end.code is None else "ok" if end.code == 0 and not end.note else f"FAILED {end.code or ''}"
    return f"{end.name:<18} {how:<12} {end.seconds:>6.1f} s  {end.note}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"


def choose(named: list[str], known: list[Step]) -> list[Step]:
    """The named steps, or all that need not be named, and what comes before any."""
    chosen = [step for step in known if (step.name in named if named else not step.asked)]
    first = [step for step in known if step.name in FIRST[: 1 + any(step.built for step in chosen)]]
    return [*first, *(step for step in chosen if step not in first)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="default: all but memcheck-while")
    parser.add_argument("--out", type=Path, help=f"the folder for {LOGS.name}.tar.gz; what is in it already is kept")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    parser.add_argument("--total", type=float, default=WHOLE, help="seconds for all steps")
    parser.add_argument("--dry", action="store_true", help="on the CPU and the tests' fake driver; results in build/")
    arguments = parser.parse_args()
    known = steps(arguments.dry, arguments.commit)
    unknown = set(arguments.steps) - {step.name for step in known}
    if unknown:
        parser.error(f"steps must be among {', '.join(step.name for step in known)}, got {', '.join(sorted(unknown))}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a device's memory is in a core
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is told to end still ends its processes
    logs, results = (LOGS, RESULTS) if not arguments.dry else (LOGS.with_name("dry"), LOGS.with_name("dry-results"))
    chosen = choose(arguments.steps, known)
    return Campaign(chosen, logs, results, arguments.out, arguments.total, arguments.commit).run()


if __name__ == "__main__":
    sys.exit(main())
