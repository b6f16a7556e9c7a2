"""This version of the package and another by turns, as each one's Python runs `calls.py`.

    python benchmarks compare OTHER/bin/python        # of an environment with the other version; --out keeps the result

The other is a `git worktree` with an editable install, say. Both processes live throughout and take turns, so that a
drifting machine moves both sides of a round. `before / now` is the median over rounds with its quartiles, `at best` is
from each side's quickest turn: on a busy machine only that tells.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
from speed.calls import CASES, best, costs
from speed.harness import quartiles
from speed.run import environment

SCRIPT = Path(__file__).with_name("calls.py")


class Version:
    """A process that measures one version."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-P", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment("cpu"),
            text=True,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """One answer.

        Raises:
            RuntimeError: the process has ended; what it said is on stderr.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args[0]} must answer {question}, got its end")  # type: ignore[index]
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def contest(
    name: str, threads: int, before: Version, now: Version, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """A case in both versions: a line for each of its costs. As many rounds as fit in `seconds`, and at least five."""
    turns: dict[Version, list[dict[str, float]]] = {before: [], now: []}
    began = time.monotonic()
    while (done := len(turns[now])) < rounds and (done < 5 or time.monotonic() - began < seconds):
        for version in (before, now) if done % 2 else (now, before):
            told = version.ask(case=name, threads=threads, backwards=bool(done // 2 % 2))
            turns[version].append(told["seconds"])
    weights = told["weights"]
    each = {version: [costs(weights, turn) for turn in turns[version]] for version in turns}
    least = {version: best(weights, turns[version]) for version in turns}
    return [
        {"name": f"{name}: {cost}", "threads": threads, "rounds": len(turns[now])}
        | compared([one[cost] for one in each[before]], [one[cost] for one in each[now]])
        | {"best_before_us": round(least[before][cost], 2), "best_us": round(least[now][cost], 2)}
        for cost in weights
    ]


def compared(before: list[float], now: list[float]) -> dict[str, Any]:
    """Medians, and before / now round by round."""
    ratios = [a / b for a, b in zip(before, now, strict=True)]
    return {
        "before_us": round(statistics.median(before), 2),
        "us": round(statistics.median(now), 2),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": quartiles(ratios),
    }


def line(one: dict[str, Any]) -> str:
    """For a terminal."""
    spread = "..".join(f"{x:.3g}" for x in one["quartiles"])
    return (
        f"{one['name']:<26} {one['threads']} {one['before_us']:>10.1f} {one['us']:>10.1f} {one['ratio']:>7.3g} "
        f"{spread:>13}   {one['best_before_us']:>10.1f} {one['best_us']:>10.1f}"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("against", help="Python of an environment with another version")
    parser.add_argument("cases", nargs="*", help="default: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="of a case; it has at least five rounds")
    parser.add_argument("--rounds", type=int, default=200, help="of a case, at most")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"cases must be among {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    arguments = parse()
    before, now = Version(arguments.against), Version(sys.executable)
    results = []
    print(f"{'us':<28} {'before':>10} {'now':>10} {'before / now':>21}   {'before':>10} {'now, at best':>10}")
    for name in arguments.cases or CASES:
        for threads in arguments.threads:
            for one in contest(name, threads, before, now, arguments.seconds, arguments.rounds):
                print(line(one), flush=True)
                results.append(one)
    kept = {"machine": machine.describe(), "results": results}
    for version in (before, now):
        version.close()
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(kept, indent=1) + "\n")
    return 0
