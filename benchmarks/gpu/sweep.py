"""Which launch configuration of the Triton row is fastest where, and whether a row without a ticket would be faster;
each must first give the reference's bits.

    python benchmarks sweep           # under a minute on an H200; results/<gpu>/sweep.json is written after each case

Rows are timed in a graph of several, as the sampler runs them: no launch from Python is in the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import machine
import torch
from gpu import ticketless
from speed.run import folder_of
from speed.steps import Steps

# each cap lets four more warps onto an SM than the one before
BLOCKS, WARPS, CAPS = (256, 512, 1024, 2048, 4096), (1, 2, 4, 8), (168, 128, 96, 80, 72, 64)
FEWEST, MOST = 4, 16  # elements a thread: outside, accesses are narrow or registers spill
MOST_SPILLED = 32  # words a thread: with more, a configuration is told and not timed
REGISTERS, MOST_WARPS, MOST_PROGRAMS = 65536, 64, 32  # of an SM, compute capability 8.0 to 10.0
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SIZES = {
    "64M": ((4096, 4, 64, 64), "plms"),
    "cifar-B1": ((1, 3, 32, 32), "plms"),
    "cifar-B16": ((16, 3, 32, 32), "plms"),
    "latent-B1": ((1, 4, 64, 64), "plms"),
    "latent-B16": ((16, 4, 64, 64), "plms"),
    "cifar-B256": ((256, 3, 32, 32), "plms"),
    "64M-noise": ((4096, 4, 64, 64), "ddpm"),
}
DECIDING = ("64M-bf16", "cifar-B1-bf16", "cifar-B1-fp32")
CHECKED = ((2, 3, 32, 32), (3, 4, 64, 64))
PASSES = 3

Forms = Callable[[Steps, str], dict[str, Callable[[], None]]]
"""forms(steps, dtype): rows to be compared, by name."""


class Config(NamedTuple):
    """A launch configuration; `cap` on registers, None for the compiler's own choice."""

    block: int
    warps: int
    cap: int | None

    def __str__(self) -> str:
        return f"{self.block}/{self.warps}/{self.cap or '-'}"


def kernels() -> Any:
    """The kernel's module: the package's attribute of that name is a function."""
    return importlib.import_module("pndm_fast.kernels.apply_row")


def committed() -> Config:
    """What the kernel is launched with now."""
    return Config(kernels().BLOCK, kernels().OPTIONS["num_warps"], kernels().OPTIONS.get("maxnreg"))


@contextlib.contextmanager
def using(config: Config) -> Iterator[None]:
    """For a time, launch rows with that configuration."""
    module = kernels()
    before = module.BLOCK, module.OPTIONS
    module.BLOCK = config.block
    module.OPTIONS = {**before[1], "num_warps": config.warps, "maxnreg": config.cap}
    try:
        yield
    finally:
        module.BLOCK, module.OPTIONS = before


class Launches:
    """Stands for the kernel and keeps what it compiled last."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.last = kernel, None

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*arguments: Any, **options: Any) -> Any:
            self.last = self.kernel[grid](*arguments, **options)
            return self.last

        return launch


def check(config: Config, dtype: str, device: str) -> dict[str, Any]:
    """Compile and compare with the reference. Returns registers and spills, and what was wrong, if anything."""
    module = kernels()
    kernel, launches = module._apply_row_kernel, Launches(module._apply_row_kernel)
    module._apply_row_kernel = launches
    wrong = None
    try:
        with using(config):
            for shape in CHECKED:
                for solver in ("plms", "ddpm"):
                    Steps(shape, DTYPES[dtype], solver=solver, device=device, backend="triton").check(rows=2)
    except Exception as error:  # of the compiler, the driver, or the comparison: this configuration is out
        wrong = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        module._apply_row_kernel = kernel
    registers, spills = (getattr(launches.last, name, None) for name in ("n_regs", "n_spills"))
    warps = programs(registers, config.warps) * config.warps if registers else None
    told = {"n_regs": registers, "n_spills": spills, "warps_per_sm": warps}
    return {"config": config, "dtype": dtype, **told, "wrong": wrong}


def programs(registers: int, warps: int) -> int:
    """On an SM at a time; its four parts share its registers, and a thread gets them by eights."""
    held = REGISTERS // (32 * 8 * math.ceil(registers / 8)) // 4 * 4
    return min(min(held, MOST_WARPS) // warps, MOST_PROGRAMS)


def check_caps(block: int, warps: int, dtype: str, device: str) -> list[dict[str, Any]]:
    """Every cap that binds, down to the first that spills much: what compiles here, all processes find in the cache."""
    found = [check(Config(block, warps, None), dtype, device)]
    free = found[0]["n_regs"]
    for cap in CAPS:
        if (free is None or cap < free) and timed(found[-1]):
            found.append(check(Config(block, warps, cap), dtype, device))
    return found


def timed(one: dict[str, Any]) -> bool:
    """Whether a configuration that was checked deserves it."""
    return not one["wrong"] and (one["n_spills"] or 0) <= MOST_SPILLED


def candidates(device: str, workers: int) -> list[dict[str, Any]]:
    """All configurations but the committed one, compiled and checked in several processes."""
    tasks = [
        (block, warps, dtype, device)
        for dtype in DTYPES
        for block in BLOCKS
        for warps in WARPS
        if FEWEST <= block / (32 * warps) <= MOST
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        found = [one for several in pool.map(check_caps, *zip(*tasks, strict=True)) for one in several]
    return [one for one in found if one["config"] != committed()]


def launch(steps: Steps, config: Config) -> None:
    """A row in that configuration."""
    with using(config):
        steps.step(steps.out, None, None)


def configurations(found: list[dict[str, Any]]) -> Forms:
    """Rows in the configurations that are to be timed."""

    def forms(steps: Steps, dtype: str) -> dict[str, Callable[[], None]]:
        fit = [one["config"] for one in found if one["dtype"] == dtype and timed(one)]
        return {str(config): functools.partial(launch, steps, config) for config in fit}

    return forms


def graph_of(row: Callable[[], None], rows: int, device: torch.device) -> Callable[[], None]:
    """A replay of so many rows; on the CPU, where only the script itself is tested, plain calls."""

    def call() -> None:
        for _ in range(rows):
            row()

    if device.type == "cpu":
        return call
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def microseconds(steps: Steps, row: Callable[[], None]) -> float:
    """Median time of a row on the device."""
    large = steps.batch * steps.registers.n > 2**24
    rows, repeats = (4, 5) if large else (64, 15)
    steps.reset()
    replay = graph_of(row, rows, steps.out.device)
    steps.reset()
    if steps.out.device.type == "cpu":
        began = time.perf_counter()
        replay()
        return (time.perf_counter() - began) / rows * 1e6
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    replay()
    marks[0].record()
    for mark in marks[1:]:
        replay()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False)) / rows * 1e3


class Case(NamedTuple):
    """Steps of one size and dtype."""

    shape: tuple[int, ...]
    solver: str
    dtype: str


def cases() -> dict[str, Case]:
    """By name, those that decide first."""
    every = {f"{size}-{dtype}": Case(*of, dtype) for size, of in SIZES.items() for dtype in DTYPES}
    return {name: every[name] for name in sorted(every, key=lambda name: name not in DECIDING)}


class Results:
    """What was measured, in a file that is written anew after each case: a machine may be taken away."""

    def __init__(self, path: Path | None, described: dict[str, Any]) -> None:
        self.path, self.described = path, described
        self.compiled: list[dict[str, Any]] = []
        self.us: dict[str, dict[str, float]] = {}
        self.ticketless: dict[str, dict[str, float]] = {}

    def measure(self, part: dict[str, dict[str, float]], forms: Forms, device: str, until: float) -> None:
        """Into a part, for each case: the forms' medians over passes, which go through the forms by turns."""
        for name, (shape, solver, dtype) in cases().items():
            if time.monotonic() > until:
                print(f"{name}: not measured", file=sys.stderr)
                continue
            steps = Steps(shape, DTYPES[dtype], solver=solver, device=device, backend="triton")
            rows = forms(steps, dtype)
            times: dict[str, list[float]] = {form: [] for form in rows}
            for _ in range(PASSES):
                for form, row in rows.items():
                    times[form].append(microseconds(steps, row))
            part[name] = part.get(name, {}) | {form: round(statistics.median(t), 3) for form, t in times.items()}
            self.write()

    def write(self) -> None:
        """As JSON, whole at any time."""
        if self.path is None:
            return
        compiled = [{**one, "config": str(one["config"])} for one in self.compiled]
        kept = {"machine": self.described, "committed": str(committed()), "ranking": rank(self.us), "us": self.us}
        kept["ticketless"] = {case: times | saved(times) for case, times in self.ticketless.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**kept, "compiled": compiled}, indent=1) + "\n")
        part.replace(self.path)


def saved(times: dict[str, float]) -> dict[str, float]:
    """Microseconds that a row without a ticket saves beside both forms that have one; less than zero where it costs."""
    row, looped, without = (times[form] for form in ticketless.FORMS)
    return {"saves_in_loop": round(looped - without, 3), "saves_in_replay": round(row - without, 3)}


def rank(results: dict[str, dict[str, float]]) -> list[tuple[str, float]]:
    """Configurations that every case has, by the geometric mean of their times over each case's best.

    A case of which only one is timed yet says nothing.
    """
    compared = [times for times in results.values() if len(times) > 1]
    shared = set.intersection(*map(set, compared)) if compared else set()

    def score(name: str) -> float:
        ratios = [times[name] / min(times.values()) for times in compared]
        return math.exp(statistics.fmean(map(math.log, ratios)))

    return sorted(((name, round(score(name), 4)) for name in shared), key=lambda one: one[1])


def compare_ticketless(results: Results, device: str, until: float) -> str | None:
    """Time the forms of a row with and without a ticket, in the committed configuration. Returns what was wrong."""
    try:
        for dtype in DTYPES.values():
            for shape in CHECKED:
                ticketless.check(Steps(shape, dtype, device=device, backend="triton"))
    except Exception as error:  # the sweep itself can do without
        return f"ticketless: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    results.measure(results.ticketless, lambda steps, _: ticketless.forms(steps), device, until)
    return None


def show(results: Results) -> None:
    """The best of each case, and over all; and what a ticket costs."""
    now, ranking = str(committed()), rank(results.us)
    for case, times in results.us.items():
        best = min(times, key=times.__getitem__)
        own = f"{times[now]:.2f} us with {now}" if now in times else f"{now} not measured"
        print(f"{case:<16} best {best:<11} {times[best]:>9.2f} us   {own}")
    print("over all cases (1 is each case's best):", ", ".join(f"{name} {score}" for name, score in ranking[:5]))
    print(f"committed: {now} {dict(ranking).get(now, 'not in every case')}")
    for case, times in results.ticketless.items():
        loop, replay = saved(times).values()
        print(f"{case:<16} a ticket costs a row {loop:+.2f} us in a loop, {replay:+.2f} us in a replay; {times}")


def sweep(results: Results, device: str, workers: int, until: float) -> list[str]:
    """What is committed in every case, then without its ticket, then all configurations. Returns what was wrong."""
    results.compiled = [check(committed(), dtype, device) for dtype in DTYPES]
    results.measure(results.us, configurations(results.compiled), device, until)
    wrong = compare_ticketless(results, device, until)
    if time.monotonic() < until:
        results.compiled += candidates(device, workers)
        results.measure(results.us, configurations(results.compiled), device, until)
    told = [f"{one['config']} {one['dtype']}: {one['wrong']}" for one in results.compiled if one["wrong"]]
    return told if wrong is None else [*told, wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1))
    parser.add_argument("--budget", type=float, default=55, help="seconds after which no further case is begun")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.budget
    described = machine.describe(arguments.commit)
    results = Results(folder_of("cuda", described) / "sweep.json", described)
    for line in sweep(results, "cuda", arguments.workers, until):
        print(line, file=sys.stderr)
    show(results)
    return 0 if results.us and results.ticketless else 1


if __name__ == "__main__":
    sys.exit(main())
