"""This version of the package and another by turns, as each one's Python runs `calls.py`.

    python benchmarks compare OTHER/bin/python        # of an environment with the other version; --out keeps the result

The other is a `git worktree` with an editable install, say. A process of each takes turns with the other, so that a
drifting machine moves both sides of a round; pairs of processes follow one another, because where memory lies makes one
a few per cent slower for its whole life. `before / now` is the median over rounds with its quartiles, `at best` is from
each side's quickest turn: on a busy machine only that tells.
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
PAIRS = 4  # of processes, one pair after another


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


Turns = dict[str, list[dict[str, float]]]


def take_turns(name: str, threads: int, versions: dict[str, Version], seconds: float, rounds: int) -> tuple[Any, Turns]:
    """A case's weights, and each version's turns: as many rounds as fit in `seconds`, and at least three."""
    turns: Turns = {which: [] for which in versions}
    began = time.monotonic()
    for done in range(rounds):
        if done >= 3 and time.monotonic() - began > seconds:
            break
        for which in sorted(versions, reverse=bool(done % 2)):
            told = versions[which].ask(case=name, threads=threads, backwards=bool(done // 2 % 2))
            turns[which].append(told["seconds"])
    return told["weights"], turns


def results_of(name: str, threads: int, weights: Any, turns: Turns) -> list[dict[str, Any]]:
    """A result for each cost of a case."""
    each = {which: [costs(weights, turn) for turn in turns[which]] for which in turns}
    least = {which: best(weights, turns[which]) for which in turns}
    return [
        {"name": f"{name}: {cost}", "threads": threads, "rounds": len(turns["now"])}
        | compared([one[cost] for one in each["before"]], [one[cost] for one in each["now"]])
        | {"best_before_us": round(least["before"][cost], 2), "best_us": round(least["now"][cost], 2)}
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
    parser.add_argument("--seconds", type=float, default=8.0, help="of a case")
    parser.add_argument("--rounds", type=int, default=200, help="of a case, at most")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"cases must be among {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    arguments = parse()
    asked = [(name, threads) for name in arguments.cases or CASES for threads in arguments.threads]
    pooled: dict[tuple[str, int], tuple[Any, Turns]] = {}
    share, rounds = arguments.seconds / PAIRS, -(-arguments.rounds // PAIRS)
    for pair in range(PAIRS):
        versions = {"before": Version(arguments.against), "now": Version(sys.executable)}
        for case in asked:
            print(f"\r{pair + 1} of {PAIRS}: {case[0]:<20}", end="", file=sys.stderr, flush=True)
            weights, turns = take_turns(*case, versions, share, rounds)
            earlier = pooled.setdefault(case, (weights, {which: [] for which in turns}))[1]
            for which, more in turns.items():
                earlier[which] += more
        for version in versions.values():
            version.close()
    print(file=sys.stderr)
    results = [one for case, (weights, turns) in pooled.items() for one in results_of(*case, weights, turns)]
    print(f"{'us':<28} {'before':>10} {'now':>10} {'before / now':>21}   {'before':>10} {'now, at best':>10}")
    print(*map(line, results), sep="\n")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"machine": machine.describe(), "results": results}, indent=1) + "\n")
    return 0
