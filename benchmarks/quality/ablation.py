"""What of a fit does what: times, coefficients, the last row, the number of pairs; and what a fit costs."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from quality.plan_studio import TEACHER
from torch import Tensor

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.loop.fitted import fingerprint
from pndm_fast.loop.network import denoiser_of
from pndm_fast.tuning.calls import Caller, Pairs
from pndm_fast.tuning.figures import LOSSES
from pndm_fast.tuning.fit import Course, fit, started
from pndm_fast.tuning.named import finalists
from pndm_fast.tuning.parameters import PACE, TIMES, Coefficients, Solver, coefficients, start_of
from pndm_fast.tuning.search import search
from pndm_fast.tuning.table import table_of
from pndm_fast.tuning.task import Task
from pndm_fast.tuning.teacher import Folder
from pndm_fast.tuning.tune import best_named

if TYPE_CHECKING:
    from quality.fitted import Results

NFE, BATCH, RATE = 5, 24, 4e-3  # those of `tune` by default
VALIDATION, HELD_OUT = 64, 256
EVERYTHING, COEFFICIENTS = tuple(PACE), tuple(name for name in PACE if name not in TIMES)
FEWER = (64, 128, 256, 512)  # pairs
ROUNDS, BLOCK = 9, 2  # of the overhead: turns of each side, and iterations of a turn


class Served:
    """The packaged network as TorchScript behind an interface that carries no gradients, as a server's is."""

    def __init__(self) -> None:
        net = demo.mnist_unet()
        example = torch.zeros(2, 1, 28, 28), torch.zeros(2), torch.zeros(2, dtype=torch.long)
        self.network = torch.jit.freeze(torch.jit.trace(net, example))

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = self.network(x, t, class_labels)
        return out


def label(i: int) -> dict[str, Tensor]:
    """The conditioning of pair i."""
    return {"class_labels": torch.tensor([i % demo.null_class])}


def task_of(model: Callable[..., Any], pairs: int, folder: Path | None) -> Task:
    """A fit of 5 calls on the packaged network's schedule; `tune` has the same by default."""
    schedule = pf.Schedule.linear()
    sampler = pf.Sampler(model, shape=(1, 1, 28, 28))
    counts = {"pairs": pairs, "validation": VALIDATION, "held out": HELD_OUT, "teacher": TEACHER}
    key = {**counts, "network": fingerprint(model)}
    return Task(
        sampler=sampler,
        caller=Caller(replace(denoiser_of(model), device=sampler.device), None, None, torch.float32),
        pairs=Pairs((1, 28, 28), 0, label, None, sampler.device),
        schedule=schedule,
        prediction="eps",
        guidance=None,
        nfe=NFE,
        teacher=pf.make_plan("auto", schedule, nfe=TEACHER),
        loss_name="rms",
        loss=LOSSES["rms"],
        train=range(pairs),
        validate=range(pairs, pairs + VALIDATION),
        held_out=range(pairs + VALIDATION, pairs + VALIDATION + HELD_OUT),
        batch=BATCH,
        recompute=False,
        folder=None if folder is None else Folder(folder, key),
        progress=True,
    )


def course_of(iterations: int, pairs: int, moving: tuple[str, ...] = EVERYTHING) -> Course:
    """Batch, rate, seed and loss are those of `tune` by default; validations come ten times or more."""
    return Course(pairs, BATCH, RATE, 0, iterations, None, max(1, min(20, iterations // 10)), moving, "rms")


def ablation(store: Results, arguments: argparse.Namespace) -> None:
    """Fits of 5 calls that lack something each, from the same plan, judged on the same held-out pairs."""
    parts = {
        "last row by least squares": (),
        "times alone": TIMES,
        "coefficients alone": COEFFICIENTS,
        "everything": EVERYTHING,
    }
    cases = [(name, moving, arguments.pairs) for name, moving in parts.items()]
    cases += [(f"everything, {pairs} pairs", EVERYTHING, pairs) for pairs in FEWER if pairs < arguments.pairs]
    todo = [case for case in cases if case[0] not in store.tree["ablation"]]
    if not todo:
        return
    folder = arguments.folder or arguments.out / "ablation.fit"
    net = demo.mnist_unet()
    task = task_of(net, arguments.pairs, folder)
    name, named = best_named(task, finalists(task.schedule, task.prediction, NFE))
    ends = task.ends
    for case, moving, pairs in todo:
        own = _with_ends(replace(task, train=range(pairs), folder=None), ends)
        if not moving:  # a network without gradients gets no more than its last row
            closed = replace(task.caller.network, network=without(net), call=without(task.caller.network.call))
            own = _with_ends(replace(own, caller=replace(task.caller, network=closed)), ends)
        course = course_of(arguments.iterations, pairs, moving or COEFFICIENTS)
        told = search(own, course, name, named, resume=False).fitted or {}
        values = {**told["held_out"], "named plan": name, "iterations": told["iterations"]}
        store.keep("ablation", case, values)
        print(f"{case}: {told['held_out']['ratio']:.3f}", file=sys.stderr)


def _with_ends(task: Task, ends: Tensor) -> Task:
    """The same task with the teacher's samples at hand."""
    task.__dict__["ends"] = ends
    return task


def without(net: Callable[..., Any]) -> Callable[..., Any]:
    """The same without gradients."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return net(*args, **kwargs)

    return call


def black_box(store: Results, arguments: argparse.Namespace) -> None:
    """`tune` on a network that carries no gradient."""
    if "blackbox" in store.tree:
        return
    plan = pf.tune(
        Served(),
        NFE,
        schedule=pf.Schedule.linear(),
        prediction="eps",
        shape=(1, 1, 28, 28),
        cond=label,
        pairs=min(256, arguments.pairs),
        held_out=arguments.images,
        progress=True,
    )
    told = plan.fitted or {}
    kept = ("better", "by", "could_not", "held_out", "named", "pairs")
    store.keep("blackbox", None, {key: told[key] for key in kept})


def overhead(store: Results, arguments: argparse.Namespace) -> None:
    """Time and memory of a fit's iterations, and of the network's own passes alone."""
    times = paired()
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for how in ("network alone", "fit", "fit, recompute"):
        with ProcessPoolExecutor(1, context) as pool:
            peaks[how] = pool.submit(_peak, how).result()
    store.keep("overhead", None, {**times, "peak_mib": peaks, "threads": torch.get_num_threads()})


def paired() -> dict[str, Any]:
    """Turns of both sides, and the median over rounds of their ratio: iterations, and validations."""
    net = demo.mnist_unet()
    task = task_of(net, 2 * BATCH, None)
    _with_ends(task, torch.zeros(task.held_out.stop, 1, 28, 28))
    numbers = _numbers(task)
    found = {}
    sides = {
        "iteration": (_iterations(task), _passes(net, BATCH, grad=True), 1),
        "validation": (lambda: task.validation(numbers), _passes(net, BATCH, grad=False), VALIDATION / BATCH),
    }
    for name, (own, bare, times) in sides.items():
        assert _seen(net, own) == times * _seen(net, bare), f"{name}: the sides differ in what the network sees"
        rounds = []
        for _ in range(ROUNDS):
            a, b = _timed(own), _timed(bare)
            rounds.append((a, b * times))
        ratios = sorted(a / b for a, b in rounds)
        found[name] = {
            "ratio": round(statistics.median(ratios), 4),
            "quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[-1 - len(ratios) // 4], 4)],
            "ours_s": round(statistics.median(a for a, _ in rounds), 4),
            "network_s": round(statistics.median(b for _, b in rounds), 4),
        }
    return found


def _seen(net: torch.nn.Module, work: Callable[[], Any]) -> int:
    """How many images the network is called on."""
    sizes = []
    with net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0]))):
        work()
    return sum(sizes)


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    for _ in range(BLOCK):
        work()
    return (time.perf_counter() - began) / BLOCK


def _numbers(task: Task) -> Coefficients:
    solver, vector = _start(task)
    return coefficients(vector, solver)


def _start(task: Task) -> tuple[Solver, Tensor]:
    table = table_of(pf.make_plan("auto", task.schedule, nfe=NFE), task.schedule)
    solver = Solver(task.schedule, task.prediction, float(table.times[0]), NFE)
    return solver, start_of(table, solver)


def _iterations(task: Task) -> Callable[[], Tensor]:
    """One iteration of a fit after another, without validations."""
    solver, vector = _start(task)
    course = replace(course_of(10**6, len(task.train)), every=10**6)

    def losses(own: Tensor, indices: range | list[int]) -> Tensor:
        return task.losses(coefficients(own, solver), indices)

    states = fit(started(vector, 0.0, course), solver, course, losses, lambda own: 0.0, None)
    return lambda: next(states).vector


def _passes(net: Callable[..., Any], batch: int, grad: bool) -> Callable[[], Tensor]:
    """As many calls of the network, each on what the one before returned, and the backward pass to inputs and times."""
    labels = torch.arange(batch) % demo.null_class
    noise = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def run() -> Tensor:
        with torch.set_grad_enabled(grad):
            x = noise.clone().requires_grad_(grad)
            times = [torch.full((batch,), 900.0 - 150 * n, requires_grad=grad) for n in range(NFE)]
            out = x
            for t in times:
                out = net(out, t, labels)
            if grad:
                torch.autograd.grad(out.sum(), [x, *times])
        return out

    return run


def _peak(how: str) -> float:
    """MiB of resident memory at most, beyond what the imports and the network took, over two turns."""
    net = demo.mnist_unet()
    net(torch.zeros(1, 1, 28, 28), 0.0)
    before = _most()
    if how == "network alone":
        work = _passes(net, BATCH, grad=True)
    else:
        task = replace(task_of(net, 2 * BATCH, None), recompute="recompute" in how)
        _with_ends(task, torch.zeros(task.held_out.stop, 1, 28, 28))
        work = _iterations(task)
    for _ in range(2):
        work()
    return round(_most() - before, 1)


def _most() -> float:
    """MiB of resident memory at most so far: of this process alone, where getrusage counts its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
