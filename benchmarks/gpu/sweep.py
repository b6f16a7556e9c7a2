"""Which launch configuration of the Triton row is fastest where; each must first give the reference's bits.

    python benchmarks sweep           # under a minute on an H200; writes results/<gpu>/sweep.json

Rows are timed in a graph of several, as the sampler runs them: no launch from Python is in the figures.
"""

from __future__ import annotations

import argparse
import contextlib
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
from typing import Any, NamedTuple

import machine
import torch
from speed.run import folder_of
from speed.steps import Steps

BLOCKS, WARPS, CAPS = (512, 1024, 2048, 4096), (2, 4, 8), (96, 112, 128, 168)
FEWEST, MOST = 4, 32  # elements a thread: outside, accesses are narrow or registers spill
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = {
    "cifar-B1": ((1, 3, 32, 32), "plms"),
    "cifar-B16": ((16, 3, 32, 32), "plms"),
    "cifar-B256": ((256, 3, 32, 32), "plms"),
    "latent-B1": ((1, 4, 64, 64), "plms"),
    "latent-B16": ((16, 4, 64, 64), "plms"),
    "64M": ((4096, 4, 64, 64), "plms"),
    "64M-noise": ((4096, 4, 64, 64), "ddpm"),
}
CHECKED = ((2, 3, 32, 32), (3, 4, 64, 64))
PASSES = 3


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
    found = {name: getattr(launches.last, name, None) for name in ("n_regs", "n_spills")}
    return {"config": config, "dtype": dtype, **found, "wrong": wrong}


def check_caps(block: int, warps: int, dtype: str, device: str) -> list[dict[str, Any]]:
    """Every cap that binds. A worker's task: what it compiles, all processes then find in Triton's cache."""
    free = check(Config(block, warps, None), dtype, device)
    caps = [cap for cap in CAPS if free["n_regs"] is None or cap < free["n_regs"]]
    now = committed()
    if (block, warps) == now[:2] and now.cap not in (None, *caps):
        caps.append(now.cap)
    return [free, *(check(Config(block, warps, cap), dtype, device) for cap in caps)]


def candidates(device: str, workers: int) -> list[dict[str, Any]]:
    """All configurations, compiled and checked in several processes."""
    tasks = [
        (block, warps, dtype, device)
        for dtype in DTYPES
        for block in BLOCKS
        for warps in WARPS
        if FEWEST <= block / (32 * warps) <= MOST
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return [one for found in pool.map(check_caps, *zip(*tasks, strict=True)) for one in found]


def graph_of(steps: Steps, rows: int) -> Callable[[], None]:
    """A replay of so many rows; on the CPU, where only the script itself is tested, plain calls."""

    def call() -> None:
        for _ in range(rows):
            steps.step(steps.out, None, None)

    if steps.out.device.type == "cpu":
        return call
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def microseconds(steps: Steps, config: Config) -> float:
    """Median time of a row on the device."""
    large = steps.batch * steps.registers.n > 2**24
    rows, repeats = (4, 5) if large else (64, 15)
    with using(config):
        steps.reset()
        replay = graph_of(steps, rows)
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


def measure(found: list[dict[str, Any]], device: str, until: float) -> dict[str, dict[str, float]]:
    """Case -> configuration -> median over passes, which go through the configurations by turns."""
    results: dict[str, dict[str, float]] = {}
    for case, (shape, solver) in CASES.items():
        for dtype in DTYPES:
            fit = [one["config"] for one in found if one["dtype"] == dtype and not one["wrong"]]
            if time.monotonic() > until or not fit:
                print(f"{case}-{dtype}: not measured", file=sys.stderr)
                continue
            steps = Steps(shape, DTYPES[dtype], solver=solver, device=device, backend="triton")
            times: dict[str, list[float]] = {str(config): [] for config in fit}
            for _ in range(PASSES):
                for config in fit:
                    times[str(config)].append(microseconds(steps, config))
            results[f"{case}-{dtype}"] = {name: round(statistics.median(t), 3) for name, t in times.items()}
    return results


def rank(results: dict[str, dict[str, float]]) -> list[tuple[str, float]]:
    """Configurations that every case has, by the geometric mean of their times over each case's best."""
    shared = set.intersection(*(set(times) for times in results.values())) if results else set()

    def score(name: str) -> float:
        ratios = [times[name] / min(times.values()) for times in results.values()]
        return math.exp(statistics.fmean(map(math.log, ratios)))

    return sorted(((name, round(score(name), 4)) for name in shared), key=lambda one: one[1])


def show(results: dict[str, dict[str, float]], ranking: list[tuple[str, float]], now: str) -> None:
    """The best of each case, and over all."""
    for case, times in results.items():
        best = min(times, key=times.__getitem__)
        own = f"{times[now]:.2f} us with {now}" if now in times else f"{now} not measured"
        print(f"{case:<16} best {best:<11} {times[best]:>9.2f} us   {own}")
    print("over all cases (1 is each case's best):", ", ".join(f"{name} {score}" for name, score in ranking[:5]))
    print(f"committed: {now} {dict(ranking).get(now, 'not in every case')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: Triton's interpreter, a test")
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1))
    parser.add_argument("--budget", type=float, default=55, help="seconds after which no further case is begun")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.budget
    found = candidates(arguments.device, arguments.workers)
    wrong = [one for one in found if one["wrong"]]
    for one in wrong:
        print(f"{one['config']} {one['dtype']}: {one['wrong']}", file=sys.stderr)
    results = measure(found, arguments.device, until)
    ranking, described = rank(results), machine.describe(arguments.commit)
    show(results, ranking, str(committed()))
    if arguments.device == "cuda":
        folder = folder_of("cuda", described)
        folder.mkdir(parents=True, exist_ok=True)
        compiled = [{**one, "config": str(one["config"])} for one in found]
        kept = {"machine": described, "committed": str(committed()), "ranking": ranking, "us": results}
        (folder / "sweep.json").write_text(json.dumps({**kept, "compiled": compiled}, indent=1) + "\n")
    return 0 if results and len(wrong) < len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
