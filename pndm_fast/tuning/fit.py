"""The fit itself: Adam on a few dozen numbers, whose whole state is one checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pndm_fast.tuning.parameters import Solver, paces, projected, sizes
from pndm_fast.tuning.teacher import Folder

BETAS, CLIP, TINY = (0.9, 0.999), 1.0, 1e-12  # arXiv:2510.17699: Adam, its norm of gradients clipped
WARM, LEAST = 20, 0.02  # iterations until the full rate, and what is left of it at the end
PILOT = 5  # iterations that are timed where minutes are given
CHECKPOINT, VECTORS = "parameters", ("vector", "mean", "square", "average", "best")

Losses = Callable[[Tensor, range | list[int]], Tensor]  # vector, training pairs -> [B]


@dataclass(frozen=True, eq=False)
class Course:
    """How a fit goes.

    Attributes:
        iterations: how many; None until minutes are known as a number of them.
        every: iterations between two validations, after which the checkpoint is written.
        moving: names of the parameters that are fitted; the others stay.
        loss: its name.
        start: what tells the plan that the fit starts at from others.
    """

    pairs: int
    batch: int
    rate: float
    seed: int
    iterations: int | None
    minutes: float | None
    every: int
    moving: tuple[str, ...]
    loss: str
    start: str = ""

    def key(self, nfe: int) -> dict[str, Any]:
        """What makes a fit this one: no checkpoint of another is gone on from."""
        own = {name: getattr(self, name) for name in ("rate", "iterations", "minutes", "loss", "start")}
        return {"nfe": nfe, **own, "moving": list(self.moving)}


@dataclass(frozen=True, eq=False)
class State:
    """All that a fit is at one moment: who goes on from it ends where an unbroken fit does.

    Attributes:
        vector, mean, square, average: parameters, Adam's moments, and the moving average that is validated.
        best, lowest: the average of the lowest validation loss so far.
        total: iterations of the whole fit, None while they are being timed.
        skipped: iterations whose gradient was not finite.
        seconds: spent so far, those of the fits before included.
    """

    vector: Tensor
    mean: Tensor
    square: Tensor
    average: Tensor
    best: Tensor
    lowest: float
    total: int | None
    done: int = 0
    skipped: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)


def started(vector: Tensor, lowest: float, course: Course) -> State:
    """Before the first iteration."""
    zero = torch.zeros_like(vector)
    return State(vector, zero, zero, vector, vector, lowest, course.iterations, curve=[(0, lowest)])


def fit(
    state: State,
    solver: Solver,
    course: Course,
    losses: Losses,
    validate: Callable[[Tensor], float],
    folder: Folder | None,
) -> Iterator[State]:
    """The states after each iteration, the last one's `done` being its `total`."""
    began, before, pace = time.perf_counter(), state.seconds, paces(solver.nfe, course.moving)
    while state.total is None or state.done < state.total:
        state = _stepped(state, solver, course, losses, pace)
        state = replace(state, seconds=before + time.perf_counter() - began)
        if state.total is None and state.done == PILOT:
            assert course.minutes is not None
            state = replace(state, total=max(PILOT, round(course.minutes * 60 * PILOT / state.seconds)))
        if state.done % course.every == 0 or state.done == state.total:
            value = validate(state.average)
            state = replace(state, curve=[*state.curve, (state.done, value)])
            if value < state.lowest:
                state = replace(state, best=state.average, lowest=value)
            if folder is not None and state.total is not None:
                save(state, folder, course.key(solver.nfe))
        yield state


def _stepped(state: State, solver: Solver, course: Course, losses: Losses, pace: Tensor) -> State:
    """One iteration. Kingma & Ba 2015, arXiv:1412.6980, algorithm 1."""
    vector = state.vector.clone().requires_grad_()
    with torch.enable_grad():
        loss = losses(vector, drawn(course, state.done)).mean()
        (gradient,) = torch.autograd.grad(loss, vector)
    if not bool(gradient.isfinite().all()):
        return replace(state, done=state.done + 1, skipped=state.skipped + 1)
    gradient = torch.where(pace > 0, gradient, 0.0)
    gradient = gradient * min(1.0, CLIP / (float(gradient.norm()) + TINY))
    step = state.done + 1
    mean = BETAS[0] * state.mean + (1 - BETAS[0]) * gradient
    square = BETAS[1] * state.square + (1 - BETAS[1]) * gradient**2
    away = mean / (1 - BETAS[0] ** step) / ((square / (1 - BETAS[1] ** step)).sqrt() + TINY)
    moved = state.vector - course.rate * _warmth(state) * pace * away
    projected(moved, solver)
    kept = min(0.999, (1 + step) / (10 + step))  # over the last tenth or so, as long as a fit is young
    average = kept * state.average + (1 - kept) * moved
    return replace(state, vector=moved, mean=mean, square=square, average=average, done=step)


def _warmth(state: State) -> float:
    """Of the rate: a linear rise, then half a cosine."""
    rise = min(1.0, (state.done + 1) / WARM)
    if state.total is None:
        return rise
    return rise * (LEAST + (1 - LEAST) * (1 + math.cos(math.pi * state.done / state.total)) / 2)


def drawn(course: Course, iteration: int) -> list[int]:
    """The training pairs of an iteration: one permutation of all after another, each known by its number alone."""
    first = iteration * course.batch
    found = []
    orders: dict[int, Tensor] = {}
    for place in range(first, first + course.batch):
        turn, at = divmod(place, course.pairs)
        if turn not in orders:
            generator = torch.Generator().manual_seed((course.seed * 1_000_003 + turn) % 2**63)
            orders[turn] = torch.randperm(course.pairs, generator=generator)
        found.append(int(orders[turn][at]))
    return found


def save(state: State, folder: Folder, key: dict[str, Any]) -> None:
    """Write the state, and what fit it is of."""
    vectors = {k: getattr(state, k) for k in VECTORS}
    curve = torch.tensor(state.curve, dtype=torch.float64)
    own = state.lowest, state.seconds, state.total or 0, state.done, state.skipped
    numbers = torch.tensor(own, dtype=torch.float64)
    folder.save(CHECKPOINT, {**vectors, "curve": curve, "numbers": numbers}, key)


def load(folder: Folder, key: dict[str, Any]) -> State | None:
    """The state that was written, None where there is none.

    Raises:
        ValueError: it is of another fit, or damaged.
    """
    found = folder.load(CHECKPOINT, {**dict.fromkeys(VECTORS, (None,)), "curve": (None, 2), "numbers": (5,)})
    if found is None:
        return None
    tensors: dict[str, Any] = found[0]
    kept = found[1] if isinstance(found[1], dict) else {}
    other = [name for name in key if kept.get(name) != key[name]]
    if other:
        raise ValueError(f"resume must go on from the same fit, got a folder with another {', '.join(other)}")
    size = sum(sizes(key["nfe"]).values())
    fits = all(len(tensors[name]) == size for name in VECTORS)
    curve, numbers = tensors.pop("curve"), tensors.pop("numbers")
    whole = torch.cat([numbers[1:], curve[:, 0], *tensors.values()])  # losses alone may be infinite
    lowest, seconds, total, done, skipped = numbers.tolist()
    if not fits or not bool(whole.isfinite().all()) or not 0 <= skipped <= done <= total:
        raise ValueError(f"folder must hold a fit's own files, got {folder.path} with parameters that are none")
    counts: dict[str, Any] = {"total": int(total), "done": int(done), "skipped": int(skipped)}
    told = [(int(i), float(value)) for i, value in curve.tolist()]
    return State(**tensors, **counts, lowest=lowest, seconds=seconds, curve=told)
