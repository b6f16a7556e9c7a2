"""What a GPU is to show, read from the results of one machine: met, MISSED, or not run and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Found = dict[str, Any]
MODES = ("while", "replay", "unrolled", "eager")
MET, MISSED, NOT_RUN, TOLD = "met", "MISSED", "not run", "reported"
EARNS = 1.05  # of replay's time on a launch-bound network: below it a loop on the device is not worth its code


@dataclass(frozen=True)
class Line:
    """What is asked, how it stands, and the number or the reason."""

    what: str
    status: str
    got: str


class Results:
    """A results folder: how each step went, and what each benchmark measured."""

    def __init__(self, folder: Path) -> None:
        self.steps: dict[str, Found] = _load(folder / "steps.json").get("steps", {})
        suites = {suite: _load(folder / f"{suite}.json").get("results", []) for suite in ("gpu_sample", "gpu_speed")}
        self.suites = {suite: {one["name"]: one for one in results} for suite, results in suites.items()}

    def lines(self, step: str, name: str) -> list[Found]:
        """What a process of a step printed."""
        return [line for line in self.steps.get(step, {}).get("lines", []) if line.get("line") == name]

    def value(self, step: str, name: str, key: str) -> Any:
        """Of a line from a device, not from a dry run."""
        return next((line[key] for line in self.lines(step, name) if key in line and line.get("device") != "cpu"), None)

    def tests(self, step: str, names: tuple[str, ...], words: tuple[str, ...] = ()) -> dict[str, Found]:
        """A step's tests whose functions' names hold one of these, and their parameters all of these words."""
        found = {}
        for node, test in self.steps.get(step, {}).get("tests", {}).items():
            name = node.split("::")[-1]
            function, _, parameters = name.removesuffix("]").partition("[")
            if any(name in function for name in names) and set(words) <= set(parameters.split("-")):
                found[name] = test
        return found

    def absent(self, step: str, parts: tuple[str, ...] = ()) -> str:
        """Why a step has not told something; its processes of these names, if it has any, are the ones to ask."""
        if step not in self.steps:
            return "step not asked for"
        record = self.steps[step]
        tasks = record.get("tasks", [])
        asked = [task for task in tasks if task["name"] in parts] or tasks
        notes = dict.fromkeys(task["note"] for task in asked if task["note"])
        return record.get("note") or "; ".join(notes) or "nothing of that name was run"


Judge = Callable[[Results], Line]


def tests(what: str, names: tuple[str, ...], words: tuple[str, ...] = (), step: str = "tests") -> Judge:
    """Met where all passed. One that failed or ended its process is a miss; any that was not run leaves it open."""

    def judge(results: Results) -> Line:
        found = results.tests(step, names, words)
        bad = {name: one for name, one in found.items() if one.get("outcome") in ("failed", "error", "killed")}
        passed = sum(one.get("outcome") == "passed" for one in found.values())
        if bad:
            name, one = next(iter(bad.items()))
            return Line(what, MISSED, f"{len(bad)} of {len(found)}, first {name}: {_why(one)}")
        if found and passed == len(found):
            return Line(what, MET, f"{passed} passed")
        rest = [one for one in found.values() if one.get("outcome") != "passed"]
        why = next((_why(one) for one in rest if one.get("message")), results.absent(step, words))
        return Line(what, NOT_RUN, f"{passed} of {len(found)} passed; {why}" if passed else why)

    return judge


def benchmark(what: str, suite: str, name: str) -> Judge:
    """Judged by its own target; without one it is only reported."""

    def judge(results: Results) -> Line:
        one = results.suites[suite].get(name)
        if one is None or one.get("ratio") is None:
            return _unmeasured(what, results, suite, name)
        spread = "..".join(f"{value:.3g}" for value in one.get("quartiles") or [])
        theirs = one.get("rivals", {}).get(one.get("rival"), {}).get("us")
        got = f"{one['ratio']:.4g} ({spread}), ours {_time(one['us'])}, {one.get('rival')} {_time(theirs)}"
        got += f", wanted {one['target']}" if one.get("target") else ""
        if one.get("apart"):
            got += f"; THE IMAGES ARE APART by {one['relative_distance']:.2g}"
        return Line(what, _status(one.get("met")), got)

    return judge


def row_cost(what: str, name: str) -> Judge:
    def judge(results: Results) -> Line:
        one = results.suites["gpu_sample"].get(name)
        if one is None or "row_us" not in one:
            return _unmeasured(what, results, "gpu_sample", name)
        got = f"{one['row_us']} us; {one['row_us_with_start_and_end']} with start and end"
        return Line(what, _status(one["row_met"]), got)

    return judge


def modes(what: str, name: str) -> Judge:
    def judge(results: Results) -> Line:
        one = results.suites["gpu_sample"].get(name)
        if one is None:
            return _unmeasured(what, results, "gpu_sample", name)
        each = ", ".join(f"{mode} {_time(us)}" for mode, us in _by_mode(one).items())
        missing = "".join(f"; no {mode}: {why[:80]}" for mode, why in one.get("missing", {}).items())
        got = f"default {one.get('graph')} {_time(one['us'])}; {each}, wanted {one.get('target')} of the best{missing}"
        return Line(what, _status(one.get("met")), got)

    return judge


def decision(what: str, name: str) -> Judge:
    """Whether a loop on the device stays: from whole samples, or else from the first minute's."""

    def judge(results: Results) -> Line:
        one = results.suites["gpu_sample"].get(name)
        us, source = _by_mode(one) if one else {}, name
        if not {"while", "replay"} <= set(us):
            us = {mode: results.value("smoke", f"small-{mode}", "us") for mode in ("while", "replay")}
            source = "smoke"
        if not us["while"] or not us["replay"]:
            lacking = [mode for mode in ("while", "replay") if not us[mode]]
            why = results.absent("gpu_sample") if "gpu_sample" in results.steps else results.absent("smoke")
            return Line(what, NOT_RUN, f"{' and '.join(lacking)} not measured; {why}")
        ratio = us["replay"] / us["while"]
        word = "KEEP while" if ratio >= EARNS else "TAKE while OUT"
        got = f"{word}: {ratio:.3f} ({source}: replay {_time(us['replay'])}, while {_time(us['while'])})"
        return Line(what, MET if ratio >= EARNS else MISSED, got)

    return judge


def launches(what: str, mode: str) -> Judge:
    """One launch for a sample, or one for each row, and no synchronization; in either no call of Python for a row."""

    name = f"launches-{mode}"

    def judge(results: Results) -> Line:
        seen: Found = {}
        for line in results.lines("profiler", name):
            seen |= line
        if "launches" not in seen:
            return Line(what, NOT_RUN, results.absent("profiler", (name,)))
        wanted = 1 if mode == "while" else seen["nfe"]
        good = seen["launches"] == wanted and not seen.get("synchronizations") and seen["none_from_python"]
        few, many = seen["calls_of_python"]
        got = f"{seen['launches']} of {wanted} launches, {few} calls of Python, {many} at twice the rows, "
        if "synchronizations" in seen:
            return Line(what, _status(good), got + f"{seen['synchronizations']} synchronizations")
        got += f"synchronizations not counted: {results.absent('profiler', (name,))}"
        return Line(what, NOT_RUN if good else MISSED, got)

    return judge


def memcheck(what: str, step: str) -> Judge:
    def judge(results: Results) -> Line:
        record = results.steps.get(step, {})
        bad = [task["name"] for task in record.get("tasks", []) if task["code"] == 9]
        if bad:
            return Line(what, MISSED, f"errors found in {', '.join(bad)}")
        outcomes = [test.get("outcome") for test in record.get("tests", {}).values()]
        tasks = record.get("tasks", [])
        if outcomes and set(outcomes) == {"passed"} and tasks and all(task["code"] == 0 for task in tasks):
            return Line(what, MET, f"clean, {len(outcomes)} tests")
        return Line(what, NOT_RUN, results.absent(step))

    return judge


def smoke(name: str) -> Judge:
    """A line of the first minute: only what is wrong in it is judged."""

    def judge(results: Results) -> Line:
        what, lines = f"smoke: {name}", results.lines("smoke", name)
        if not lines:
            return Line(what, NOT_RUN, results.absent("smoke", (name,)))
        wrong = [line for line in lines if line.get("ok") is False]
        told = [{key: value for key, value in line.items() if key not in ("line", "nodes")} for line in wrong or lines]
        ended = next((task["note"] for task in results.steps["smoke"]["tasks"] if task["name"] == name), "")
        status = MISSED if wrong else NOT_RUN if ended else TOLD
        return Line(what, status, "; ".join([*(_words(one) for one in told), *([f"then {ended}"] if ended else [])]))

    return judge


def properties(results: Results) -> list[Line]:
    """What tests recorded."""
    found = [test.get("properties") or {} for record in results.steps.values() for test in record["tests"].values()]
    return [Line(name, TOLD, str(value)) for one in found for name, value in one.items()]


def text(lines: list[Line]) -> str:
    return "\n".join(f"{line.status:<8} {line.what:<58} {line.got}" for line in lines)


def _unmeasured(what: str, results: Results, suite: str, name: str) -> Line:
    """A benchmark that found its results unequal has missed; of one that could not be run the reason is told."""
    tests = results.steps.get(suite, {}).get("tests", {})
    test = next((one for node, one in tests.items() if node.endswith(f"::{name}")), {})
    if test.get("outcome") in ("failed", "error"):
        return Line(what, MISSED, _why(test))
    return Line(what, NOT_RUN, _why(test) if test.get("message") else results.absent(suite))


def _by_mode(one: Found) -> dict[str, float]:
    return {mode: one["rivals"][mode]["us"] for mode in MODES if mode in one.get("rivals", {})}


def _status(met: bool | None) -> str:
    return {True: MET, False: MISSED, None: TOLD}[met]


def _why(test: Found) -> str:
    """A test's outcome and the first line of its message."""
    message = str(test.get("message", "")).split("\n")[0][:160]
    return message if test.get("outcome") == "lacking" else f"{test.get('outcome')}: {message}"


def _words(found: Found) -> str:
    return ", ".join(f"{key} {value}" for key, value in found.items() if value not in ("", None, [], {}))


def _time(us: float | None) -> str:
    return "?" if us is None else f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.1f} us"


def _load(path: Path) -> Found:
    return json.loads(path.read_text()) if path.is_file() else {}
