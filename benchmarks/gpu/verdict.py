"""What a GPU is to show, read from the results of one machine: met, missed or not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Result = dict[str, Any]
MODES = ("while", "replay", "unrolled", "eager")

TESTS = (
    ("1", "graph == eager, bit for bit", ("test_graph_is_eager", "test_guided_graph_is_eager")),
    ("1", "no new capture for another plan, seed, scale, condition", ("test_what_needs_no_new_capture",)),
    ("1", "1,000 calls without growth", ("test_a_thousand_calls_do_not_grow",)),
    ("2", "no host synchronization", ("test_a_call_does_not_synchronize", "test_no_synchronization_between_calls")),
    ("2", "one kernel between network calls", ("test_what_runs_between_network_calls",)),
    ("7", "10^5 rows at mixed rows, 64 programs a sample", ("test_a_hundred_thousand_replays_at_mixed_rows",)),
    ("8", "changed weights change the next image", ("test_changed_weights_change_the_next_image",)),
    (
        "phase",
        "rows of blocks: the CPU's bits, and graph == eager",
        ("test_same_bits_as_the_cpu_in_phase_space", "test_phase_space_graph_is_eager"),
    ),
)
BENCHMARKS = (
    ("3", "sample(50) / network alone, CIFAR-size, batch 1", "gpu_sample", "test_over_the_network_alone[cifar-B1]"),
    ("4", "diffusers / ours, CIFAR-size, batch 1", "gpu_sample", "test_against_diffusers[cifar-B1]"),
    (
        "4",
        "reduce-overhead + diffusers / ours compiled, batch 1",
        "gpu_sample",
        "test_against_reduce_overhead[cifar-B1]",
    ),
    ("4", "diffusers / ours, CIFAR-size, batch 16", "gpu_sample", "test_against_diffusers[cifar-B16]"),
    ("4", "diffusers / ours, CIFAR-size, batch 256", "gpu_sample", "test_against_diffusers[cifar-B256]"),
    ("4", "diffusers / ours, SD-size bf16 guided, batch 1", "gpu_sample", "test_against_diffusers[sd-B1]"),
    ("4", "diffusers / ours, SD-size bf16 guided, batch 4", "gpu_sample", "test_against_diffusers[sd-B4]"),
    ("4", "reduce-overhead / ours compiled, CIFAR 16", "gpu_sample", "test_against_reduce_overhead[cifar-B16]"),
    ("4", "reduce-overhead / ours compiled, CIFAR 256", "gpu_sample", "test_against_reduce_overhead[cifar-B256]"),
    ("4", "reduce-overhead / ours compiled, SD 1", "gpu_sample", "test_against_reduce_overhead[sd-B1]"),
    ("4", "reduce-overhead / ours compiled, SD 4", "gpu_sample", "test_against_reduce_overhead[sd-B4]"),
    ("5", "share of copy bandwidth, 64M bf16", "gpu_speed", "test_large_row[bf16]"),
    ("5", "eager guidance + PNDM in fp32 / ours, 64M bf16", "gpu_speed", "test_large_guided_row[fp32]"),
    ("5", "eager guidance + PNDM in bf16 / ours, 64M bf16", "gpu_speed", "test_large_guided_row[bf16]"),
    ("5", "with noise / without, 64M bf16", "gpu_speed", "test_large_row_with_noise[bf16]"),
    ("phase", "share of copy bandwidth, blocks, 64M bf16", "gpu_speed", "test_large_phase_row[bf16]"),
)


def table(folder: Path) -> list[Result]:
    """Every line: the group it belongs to, what it is about, what was found, and whether that is enough."""
    results = {suite: _results(folder / f"{suite}.json") for suite in ("gpu_sample", "gpu_speed")}
    told = _load(folder / "tests.json")
    done = {step["name"]: step for step in told.get("steps", [])}
    lines = [_tests(number, what, names, done) for number, what, names in TESTS]
    lines += [_benchmark(number, what, results[suite].get(name)) for number, what, suite, name in BENCHMARKS]
    lines.append(_row(results["gpu_sample"].get("test_over_the_network_alone[cifar-B1]")))
    lines += [_modes(name, one) for name, one in results["gpu_sample"].items() if name.startswith("test_modes")]
    lines += [_sanitizer(name, done.get(name)) for name in ("sanitizer", "sanitizer-while")]
    lines.append(_first_request(results["gpu_sample"].get("test_first_request[cifar-B1]")))
    lines += _properties(done)
    return sorted(lines, key=lambda line: line["show"])


def text(lines: list[Result]) -> str:
    """For a terminal."""
    marks = {True: "met", False: "MISSED", None: ""}
    return "\n".join(f"{one['show']} {one['what']:<56} {marks[one['met']]:<7} {one['got']}" for one in lines)


def commits(folder: Path) -> str:
    """What was measured at which commit."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        commit = str((_load(path).get("machine") or {}).get("commit") or "unknown commit")
        found.setdefault(commit[:12], []).append(path.stem)
    return "; ".join(f"{', '.join(stems)} at {commit}" for commit, stems in found.items())


def _line(show: str, what: str, got: str, met: bool | None) -> Result:
    return {"show": show, "what": what, "got": got, "met": met}


def _load(path: Path) -> Result:
    return json.loads(path.read_text()) if path.is_file() else {}


def _results(path: Path) -> dict[str, Result]:
    return {one["name"]: one for one in _load(path).get("results", [])}


def _tests(show: str, what: str, names: tuple[str, ...], done: dict[str, Result]) -> Result:
    tests = done.get("tests", {}).get("tests", {})
    found = [result for name, result in tests.items() if name.split("[")[0] in names]
    counts = {result: found.count(result) for result in ("passed", "failed", "skipped")}
    got = ", ".join(f"{count} {result}" for result, count in counts.items() if count) or "not run"
    return _line(show, what, got, False if counts["failed"] else True if counts["passed"] else None)


def _benchmark(show: str, what: str, one: Result | None) -> Result:
    if one is None or one.get("ratio") is None:
        return _line(show, what, "not measured", None)
    spread = "..".join(f"{value:.3g}" for value in one.get("quartiles") or [])
    theirs = one.get("rivals", {}).get(one.get("rival"), {}).get("us")
    got = f"{one['ratio']:.4g} ({spread}), ours {_time(one['us'])}, {one.get('rival')} {_time(theirs)}"
    wanted = one.get("target")
    return _line(show, what, got + (f", wanted {wanted}" if wanted else ", reported"), one.get("met"))


def _time(us: float | None) -> str:
    return "?" if us is None else f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.1f} us"


def _row(one: Result | None) -> Result:
    what = "a row's cost beside the network, wanted <= 5 us"
    if one is None or "row_us" not in one:
        return _line("3", what, "not measured", None)
    return _line(
        "3", what, f"{one['row_us']} us; {one['row_us_with_start_and_end']} with start and end", one["row_met"]
    )


def _modes(name: str, one: Result) -> Result:
    rivals = one.get("rivals", {})
    each = ", ".join(f"{mode} {_time(rivals[mode]['us'])}" for mode in MODES if mode in rivals)
    got = f"default {one.get('graph')} {_time(one['us'])}; {each}"
    return _line(
        "6", f"default / best, {name.removeprefix('test_modes')}, wanted {one.get('target')}", got, one.get("met")
    )


def _sanitizer(name: str, done: Result | None) -> Result:
    what = "memcheck" + name.removeprefix("sanitizer").replace("-", ", ")
    if done is None or done["code"] is None:
        return _line("7", what, "not run: " + (done["note"] if done else "not asked for"), None)
    if done["code"] == 0 and "passed" not in done["tests"].values():
        return _line("7", what, "no test ran", None)
    words = {0: "clean", 9: "errors found", 124: "out of time"}
    met = {0: True, 124: None}.get(done["code"], False)
    return _line("7", what, words.get(done["code"], f"failed ({done['code']})"), met)


def _first_request(one: Result | None) -> Result:
    what = "first request of a sampler, CIFAR-size, batch 1"
    if one is None:
        return _line("8", what, "not measured", None)
    each = ", ".join(f"{name} {_time(rival['us'])}" for name, rival in one.get("rivals", {}).items())
    return _line("8", what, f"prepared {_time(one['us'])}; {each}", None)


def _properties(done: dict[str, Result]) -> list[Result]:
    found = done.get("tests", {}).get("properties", {})
    told = [_line("8", name, value, None) for name, value in found.items() if name.startswith("programmatic")]
    told += [_line("2", name, value, None) for name, value in found.items() if not name.startswith("programmatic")]
    return told or [_line("8", "programmatic launches in a WHILE body", "not run", None)]
