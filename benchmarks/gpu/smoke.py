"""The first minute on a GPU, a line at a time: each is a process of its own that prints what it finds as JSON, at once.

python benchmarks smoke LINE           # versions, kernel-while, rows, ...
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import machine
import torch

Found = Iterator[dict[str, Any]]
PACKAGES = ("pytest", "pytest_benchmark", "hypothesis", "scipy", "diffusers", "nvtx", "pynvml", "pybind11", "ninja")
SIZES = {"cifar-B1": (1, 3, 32, 32), "cifar-B16": (16, 3, 32, 32), "64M": (4096, 4, 64, 64)}
REPEATS = 5
MODES = ("replay", "while")


def versions(device: str, commit: str | None) -> Found:
    """The machine, and which packages it has and lacks."""
    yield {"machine": machine.describe(commit)}
    there = {name: importlib.util.find_spec(name) is not None for name in PACKAGES}
    yield {"present": [name for name in PACKAGES if there[name]], "lacking": [n for n in PACKAGES if not there[n]]}
    yield {"ok": device == "cpu" or torch.ones(1, device=device).item() == 1, "clocks": machine.clocks()}


def median(call: Callable[[], Any], device: str) -> float:
    """Microseconds of a call, to the end of its work on the device."""
    seconds = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]) * 1e6


def kernel(mode: str, device: str) -> Found:
    """What a row costs around a network of one kernel: the mode's own cost, from a long plan less a short one."""
    import pndm_fast as pf

    few, many = (100, 1000) if device != "cpu" else (2, 6)
    short, long = (pf.make_plan("ddim", steps=steps, spacing="trailing") for steps in (few, many))

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)

    eager, ours = (
        pf.Sampler(network, long, shape=(1, 3, 32, 32), device=device, graph=graph) for graph in ("eager", mode)
    )
    wanted, got = eager(seeds=1), ours.run(pf.Request(seeds=1))
    told = {"graph": got.report.graph, "launches": got.report.launches, "nodes": dict(got.report.nodes)}
    yield {"ok": torch.equal(got.samples, wanted), **told}
    less, more = (median(lambda plan=plan: ours(plan=plan, on_nan="ignore"), device) for plan in (short, long))
    yield {"us_a_row": round((more - less) / (long.nfe - short.nfe), 3), "us_a_call": round(more, 1), "nfe": long.nfe}


def rows(device: str) -> Found:
    """Bits against the reference, then time, and for large ones the bandwidth over that of a copy."""
    from gpu import sweep
    from speed.steps import Steps

    for size, shape in SIZES.items():
        if device == "cpu" and size != "cifar-B1":
            continue
        for dtype in sweep.DTYPES:
            steps = Steps(shape, sweep.DTYPES[dtype], device=device, backend="auto" if device == "cpu" else "triton")
            found = {"case": f"{size}-{dtype}"}
            try:
                steps.check(rows=2)
            except AssertionError as error:
                yield {**found, "ok": False, "why": str(error)}
                continue
            us = sweep.microseconds(steps, functools.partial(steps.step, steps.out, None, None))
            share = copied(steps.moved(), device) / us
            yield {**found, "ok": True, "us": round(us, 3), "share_of_copy": round(share, 3)}


def copied(moved: int, device: str) -> float:
    """Microseconds of a copy that reads and writes so many bytes."""
    source = torch.rand(moved // 8, device=device)
    target = torch.empty_like(source)

    def ten() -> None:
        for _ in range(10):
            target.copy_(source)

    return median(ten, device) / 10


def samples(name: str, mode: str, device: str) -> Found:
    """A sampler's image against the eager one's, and what a sample takes."""
    from gpu.samples import Job

    job = Job(name, 1, steps=50 if device != "cpu" else 6, device=device)
    sampler = job.sampler(mode)
    got, wanted = job.run(sampler), job.sample(job.sampler("eager"))
    same = torch.equal(got.samples, wanted) and bool(torch.isfinite(wanted).all())
    told = {"graph": got.report.graph, "reason": got.report.graph_reason, "nfe": got.report.nfe}
    yield {"network": name, "mode": mode, "ok": same, **told}
    yield {"network": name, "mode": mode, "us": round(median(lambda: job.sample(sampler), device), 1)}


def cifar(device: str) -> Found:
    """A sample beside as many replays of the network alone; `small` stands for a network that cannot be made here."""
    from gpu.samples import Alone, Job

    there, why = importlib.util.find_spec("diffusers") is not None, "lacks diffusers"
    if device == "cpu":
        there, why = False, "no device"
    name = "cifar" if there else "small"
    job = Job(name, 1, steps=50 if device != "cpu" else 6, device=device)
    alone, nfe = Alone(job), job.plan.nfe
    us = round(median(lambda: alone(nfe), device), 1)
    yield {"network": name, "mode": "network alone", "us": us, **({} if there else {"why": why})}
    for mode in MODES:
        for found in samples(name, mode, device):
            yield found | ({"over_alone": round(found["us"] / us, 4)} if "us" in found else {})


def launches(mode: str, device: str) -> Found:
    """Graph launches of a call; Python's calls for few rows and for many; then synchronizations, as CUPTI sees them.

    Torch's profiler shows no launch of a graph: that is a call of the driver, not of the runtime.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    import pndm_fast as pf

    plan, longer = (pf.make_plan("f-pndm", steps=steps) for steps in (20, 40))
    sampler = pf.Sampler(lambda x, t: torch.sin(x), plan, shape=(1, 3, 32, 32), device=device, graph=mode)

    def call(plan: pf.Plan = plan) -> int:
        return sampler.run(pf.Request(plan=plan, on_nan="ignore")).report.launches

    python = [calls_of_python(lambda one=one: call(one)) for one in (plan, longer)]
    yield {
        "mode": mode,
        "nfe": plan.nfe,
        "launches": call(),
        "calls_of_python": python,
        "none_from_python": python[0] == python[1],
    }
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen, record_function("the call"):
        call()
    events = seen.events()
    during = next(event.time_range for event in events if event.name == "the call")
    names = [event.name for event in events if during.start <= event.time_range.start <= during.end]
    yield {"mode": mode, "nfe": plan.nfe, "synchronizations": sum("Synchronize" in name for name in names)}


def calls_of_python(call: Callable[[], Any]) -> int:
    """Functions, of Python and built in, that a warmed-up call enters."""
    for _ in range(3):
        call()
    seen = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


LINES: dict[str, Callable[[str], Found]] = {
    **{f"kernel-{mode}": functools.partial(kernel, mode) for mode in MODES},
    "rows": rows,
    **{f"small-{mode}": functools.partial(samples, "small", mode) for mode in ("auto", *MODES)},
    "cifar": cifar,
    **{f"launches-{mode}": functools.partial(launches, mode) for mode in MODES},
}


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """The tests' fake driver on the CPU, so that these lines can be tried where there is no device."""
    sys.path.append(str(machine.ROOT / "tests"))
    from cuda_stand_in import StandIn
    from fake_cuda import FakeDriver

    from pndm_fast.runtime import executor

    torch.set_num_threads(1)  # on a busy machine, two threads of tensors this small wait for each other
    real, device = executor.cuda_of, StandIn(FakeDriver())
    executor.cuda_of = lambda _: device
    try:
        yield
    finally:
        executor.cuda_of = real


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("line", choices=["versions", *LINES])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a fake driver, a test")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    arguments = parser.parse_args()
    device, good = arguments.device, True
    plain = arguments.line == "versions" or device != "cpu"
    with contextlib.nullcontext() if plain else stand_in():
        found = versions(device, arguments.commit) if arguments.line == "versions" else LINES[arguments.line](device)
        for one in found:
            print(json.dumps({"line": arguments.line, "device": device, **one}, default=str), flush=True)
            good = good and one.get("ok", True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
