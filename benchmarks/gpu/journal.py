"""What a test process says of itself, a JSON line at a time: what it leaves when it is killed is what it had written.

A test's first line holds `start` and `limit`, its second `outcome`; `finished` is the last line of a process that was
not killed. A process that is begun with the same file goes on after the last test in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]
UNUSABLE = 70  # exit status of a process whose device can no longer be used
KEPT = ("min", "median", "iqr")  # of a benchmark's statistics


def lines(path: Path) -> list[Line]:
    """Every whole line that is an object, of a journal or a log; not one that a killed process began."""
    return since(path, 0)[0]


def since(path: Path, start: int) -> tuple[list[Line], int]:
    """What came after so many bytes, and how many have been read."""
    if not path.is_file():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        whole = file.read().rpartition(b"\n")[0]
    found = []
    for text in whole.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found, start + len(whole) + bool(whole)


def add(path: Path, **line: Any) -> None:
    """Append a line, and see that it is in the file."""
    with path.open("a") as file:
        file.write(json.dumps(line, default=str) + "\n")


def tests(path: Path) -> dict[str, Line]:
    """The last line of each test that was collected, {} for one that was not begun."""
    found: dict[str, Line] = {}
    for line in lines(path):
        found |= {name: found.get(name, {}) for name in line.get("collected", ())}
        if "test" in line:
            found[line["test"]] = line
    return found


def began(path: Path) -> set[str]:
    """Tests that a process has begun."""
    return {line["test"] for line in lines(path) if "test" in line}


def unfinished(path: Path) -> str | None:
    """The test that is running, or in which its process ended."""
    return next((name for name, line in tests(path).items() if line and "outcome" not in line), None)


def results(path: Path) -> list[Line]:
    """What passed benchmarks measured, each with its name."""
    passed = [(name, line) for name, line in tests(path).items() if line.get("outcome") == "passed"]
    return [{"name": name.split("::")[-1], **line["result"]} for name, line in passed if line.get("result")]


def measured(benchmark: Any) -> Line:
    """A benchmark's record: no raw data, seconds for one call; {} where it measured nothing."""
    info = dict(benchmark.extra_info)
    if "us" not in info or benchmark.stats is None:
        return {}
    stats = benchmark.stats.stats
    seconds = {name: getattr(stats, name) / info.get("calls", 1) for name in KEPT}
    return {**info, "seconds": {**seconds, "rounds": stats.rounds}}
