"""Requests of mixed lengths in front of one network: one after another, static batches, and `pf.Engine`.

Writes benchmarks/results/cpu/serving.json and .md: for each way the highest arrival rate at which the 99th percentile
of latency keeps to a limit, as simulated and as measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import machine
import torch
from serving import contest, report
from serving.load import Arrival, Mix, arrivals
from serving.simulate import Costs, Way, engine, highest_rate, latencies, quantile, static

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.plan.atomic import atomic_path

RESULTS = Path(__file__).parents[1] / "results" / "cpu"
LANES = 16
SIZES = (2, 4, 8, 16)  # of static batches: the best is taken
BUCKETS = tuple(range(1, LANES + 1))
LIMIT = 200  # of the 99th percentile, in costs of a call for one sample
UNIT = 4e-3  # seconds of such a call, where the cost is made up
PATTERN = 1  # the seed of arrivals
STEP = 1.15  # from one rate that is tried to the next; the first is BELOW the simulated one
BELOW = 0.9
FEW = 30  # arrivals in a scenario's time: nothing is measured of fewer
SERIAL = "one after another"
STATIC, ALIKE, ENGINE = "static batches", "batches of equal settings", "engine"


@dataclass(frozen=True)
class Scenario:
    """What is measured together.

    Attributes:
        law: cost of a call for B samples in those of one; None: the packaged U-Net's own.
        seconds: of arrivals: many limits, or a queue that grows goes unnoticed.
        target: least throughput of the engine to that of a rival.
    """

    name: str
    mix: Mix
    law: Callable[[int], float] | None
    seconds: float = 6.0
    target: tuple[str, float] | None = None
    limit: int = LIMIT
    unit: float = UNIT


SCENARIOS = (
    Scenario("cost 1 + 0.05 B", Mix(), lambda b: (1 + 0.05 * b) / 1.05, target=(STATIC, 2.0)),
    Scenario("cost 1 + 0.05 B, bursts of 6", Mix(burst=6), lambda b: (1 + 0.05 * b) / 1.05, target=(STATIC, 2.0)),
    Scenario("cost 1 + 0.05 B, half guided", Mix(guided=0.5), lambda b: (1 + 0.05 * b) / 1.05, target=(STATIC, 2.0)),
    Scenario("cost 0.5 + 0.5 B", Mix(), lambda b: 0.5 + 0.5 * b, 10.0, (STATIC, 2.0), limit=400, unit=2e-3),
    Scenario("cost B", Mix(), float, 10.0, (SERIAL, 0.95), limit=400, unit=2e-3),
    Scenario("packaged U-Net", Mix(steps=(4, 8, 10, 20)), None, seconds=15.0, target=(SERIAL, 0.95), limit=150),
)


class Bench:
    """A scenario's network, and those who run requests on it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, law = scenario, scenario.law
        if law is None:
            net = demo.mnist_unet()
            self.shape: tuple[int, ...] = (1, 28, 28)
            self.network = contest.Counted(lambda x, t, y: net(x, t, class_labels=y))
        else:
            self.shape = (8,)
            self.network = contest.Counted(contest.halved, lambda batch: scenario.unit * law(batch))
        self.exact = law is not None
        forms = (False, True) if scenario.mix.guided else (False,)
        self.costs: Costs = {(form, size): self._cost(size * (1 + form)) for form in forms for size in BUCKETS}
        self.engine = pf.Engine(self.network, shape=(LANES, *self.shape), device="cpu", buckets=BUCKETS)
        for form in forms:
            self.engine.prepare(contest.request_of(arrivals(replace(scenario.mix, guided=float(form)), 1.0, LANES, 0)))

    def _cost(self, batch: int) -> float:
        """Of a row, seconds: what `Sampler` does between calls included."""
        rows = 20 if self.exact else 4
        asked = [Arrival(0.0, rows, "ddim", None, seed) for seed in range(batch)]
        sampler, found = pf.Sampler(self.network, shape=(1, *self.shape), device="cpu"), []
        for _ in range(3):
            began = time.perf_counter()
            sampler.run(contest.request_of(asked))
            found.append((time.perf_counter() - began) / rows)
        return min(found)

    @property
    def limit(self) -> float:
        """Of the 99th percentile, seconds."""
        return self.scenario.limit * self.costs[False, 1]

    def ways(self) -> dict[str, tuple[Way, Callable[[contest.Done], contest.Contestant]]]:
        """Each as it is simulated and as it is run; static batches of the size that does best."""
        fixed = functools.partial(contest.Static, self.network, self.shape)
        found: dict[str, Any] = {SERIAL: (static(1), functools.partial(fixed, 1, False))}
        for name, alike in ((STATIC, False), (ALIKE, True)):
            most = max(SIZES, key=lambda size: self.simulated(static(size, alike))[0])  # noqa: B023
            found[name] = static(most, alike), functools.partial(fixed, most, alike)
            found[name][0].__name__ = f"at most {most}"
        found[ENGINE] = engine(BUCKETS), lambda done: contest.Lanes(self.engine, done)
        return found

    def simulated(self, way: Way) -> tuple[float, int]:
        """The highest rate, and how many arrivals at it fill the scenario's time: what is found for fewer is noise."""
        best, count = 1 / (self.scenario.mix.mean_rows * self.costs[False, 1]), 2000
        for _ in range(3):
            p99 = functools.partial(self._p99, way, count)
            rate = highest_rate(p99, self.limit, 0.02 * best, 40 * best)
            count = max(int(rate * self.scenario.seconds), 1)
        return rate, count

    def _p99(self, way: Way, count: int, rate: float) -> float:
        asked = arrivals(self.scenario.mix, rate, count, PATTERN)
        return quantile(latencies(asked, way(asked, self.costs).done), 0.99)

    def measured(self, make: Callable[[contest.Done], contest.Contestant], rate: float, count: int) -> dict[str, Any]:
        """At one arrival rate; results are compared with those of requests alone."""
        asked = arrivals(self.scenario.mix, rate, count, PATTERN)
        told = contest.raced(make, asked, self.network)
        contest.check(told.pop("drawn"), asked, self.network, self.exact)
        return {"rate": rate, **told}


def searched(bench: Bench, way: Way, make: Callable[[contest.Done], contest.Contestant], tries: int) -> dict[str, Any]:
    """From the simulated rate down, or up, until the limit lies between two that were measured."""
    predicted, count = bench.simulated(way)
    points = [bench.measured(make, BELOW * predicted, count)] if count >= FEW else []
    step = STEP if points and points[0]["p99"] <= bench.limit else 1 / STEP
    while 0 < len(points) < tries and (points[-1]["p99"] <= bench.limit) == (step > 1):
        points.append(bench.measured(make, points[-1]["rate"] * step, count))
    kept = [one for one in points if one["p99"] <= bench.limit]
    at = max(kept, key=lambda one: one["rate"], default=None)
    asked = arrivals(bench.scenario.mix, predicted, count, PATTERN)
    trace = way(asked, bench.costs)
    waited = latencies(asked, trace.done)
    return {
        "simulated": {"rate": predicted, "p50": quantile(waited, 0.5), "p99": quantile(waited, 0.99)},
        "measured": at,
        "tried": points,
        "requests": count,
    }


def run(scenario: Scenario, tries: int) -> dict[str, Any]:
    """All contestants of a scenario."""
    bench = Bench(scenario)
    found = {name: searched(bench, *both, tries) for name, both in bench.ways().items()}
    ratios = {name: _ratio(found[ENGINE], one, "measured") for name, one in found.items()}
    target = None
    if scenario.target is not None:
        rival, least = scenario.target
        ratio = ratios[rival]
        target = {"rival": rival, "least": least, "ratio": ratio, "met": None if ratio is None else ratio >= least}
    costs = {size: bench.costs[False, size] for size in (1, 2, 4, 8, 16)}
    lanes = bench.engine.costs
    return {
        "name": scenario.name,
        "mix": asdict(scenario.mix),
        "limit": bench.limit,
        "costs": costs,
        "prepared": {size: lanes[size] for size in (1, 2, 4, 8, 16)},
        "contestants": found,
        "ratios": ratios,
        "simulated_ratios": {name: _ratio(found[ENGINE], one, "simulated") for name, one in found.items()},
        "target": target,
    }


def _ratio(ours: dict[str, Any], theirs: dict[str, Any], how: str) -> float | None:
    """Of rates; None where there is none."""
    return ours[how]["rate"] / theirs[how]["rate"] if ours[how] and theirs[how] else None


def keep(result: dict[str, Any]) -> None:
    """Write it in the place of an older one of its name."""
    file = RESULTS / "serving.json"
    results = {one["name"]: one for one in json.loads(file.read_text())["results"]} if file.is_file() else {}
    results[result["name"]] = result
    kept = [results[scenario.name] for scenario in SCENARIOS if scenario.name in results]
    tree = {"suite": "serving", "lanes": LANES, "results": kept}
    for suffix, written in (("json", json.dumps(tree, indent=1) + "\n"), ("md", report.text(tree))):
        with atomic_path(RESULTS / f"serving.{suffix}") as temporary:
            temporary.write_text(written)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", help="parts of their names; default: all")
    parser.add_argument("--quick", action="store_true", help="a glance: little time for each, nothing written")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for scenario in SCENARIOS:
        if arguments.scenarios and not any(part in scenario.name for part in arguments.scenarios):
            continue
        told = {"machine": machine.describe(arguments.commit), "load": os.getloadavg()[0]}
        if arguments.quick:
            scenario = replace(scenario, seconds=scenario.seconds / 2)
        result = run(scenario, 1 if arguments.quick else 4) | told
        print(report.table(result), flush=True)
        if not arguments.quick:
            keep(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
