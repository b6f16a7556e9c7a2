"""From the best named plan to a fitted one, and whether that is better."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pndm_fast.loop.results import Step
from pndm_fast.plan.coefficients import log_snr
from pndm_fast.plan.plan import Plan
from pndm_fast.runtime.progress import progress_bar
from pndm_fast.tuning.blackbox import LastRow, on_times, optimal_times
from pndm_fast.tuning.calls import gradients, probed
from pndm_fast.tuning.figures import compared
from pndm_fast.tuning.fit import CHECKPOINT, Course, fit, load, started
from pndm_fast.tuning.parameters import TIMES, Solver, coefficients, coefficients_of, start_of
from pndm_fast.tuning.table import Array, Table, plan_of, table_of
from pndm_fast.tuning.task import Task, over
from pndm_fast.tuning.teacher import chunks, digest
from pndm_fast.tuning.tuned import TunedPlan

GRID = 30  # times that optimal ones are chosen from
PATHS = 16  # pairs whose paths they are chosen by
REGRESSED = 256  # pairs that the last row is fitted on
NO_GRADIENT = "told times, and rows before the last, by gradient: the network has none, for "
NO_TIME = "times and told times: the network's output carries no gradient to the time it is told"


def search(task: Task, course: Course, name: str, named: Plan, *, resume: bool) -> TunedPlan:
    """Fit what the network allows, and judge it on held-out noise."""
    began = time.perf_counter()
    table = table_of(named, task.schedule)
    solver = Solver(task.schedule, task.prediction, float(table.times[0]), task.nfe)
    of_x, of_t, why = gradients(task.caller, task.pairs, float(table.told[len(table.told) // 2]))
    told: dict[str, Any] = {"could_not": [], "iterations": 0, "interrupted": False}
    if of_x:
        stay = () if of_t else TIMES
        course = replace(course, moving=tuple(k for k in course.moving if k not in stay), start=digest(named.to_json()))
        told["could_not"] = [] if of_t else [NO_TIME]
        found, more = _by_gradient(task, solver, course, table, resume)
        told |= more
    else:
        told |= {"by": "optimal times and least squares", "could_not": [NO_GRADIENT + why]}
        found = _without_gradient(task, solver, course, table)
    return _judged(task, name, named, found, told, began)


def _by_gradient(
    task: Task, solver: Solver, course: Course, table: Table, resume: bool
) -> tuple[Table, dict[str, Any]]:
    begin = load(task.folder, course.key(task.nfe)) if task.folder is not None and resume else None
    if begin is None:
        more = _with_last_rows(task, solver, table) if "c" in course.moving else []
        start, lowest = _lowest(task, [table, *more], solver)
        begin = started(start_of(start, solver), lowest, course)
        if task.folder is not None:
            task.folder.remove(CHECKPOINT)  # of a fit before: who is killed now must not go on from it
    state = begin

    def losses(vector: torch.Tensor, indices: range | list[int]) -> torch.Tensor:
        return task.losses(coefficients(vector, solver), indices)

    def validate(vector: torch.Tensor) -> float:
        return task.validation(coefficients(vector, solver))

    interrupted = False
    with contextlib.ExitStack() as stack:
        advance = None
        try:
            for state in fit(begin, solver, course, losses, validate, task.folder):
                if advance is None and state.total is not None:
                    left = max(1, state.total - state.done + 1)
                    advance = stack.enter_context(progress_bar(task.progress, "fit", left, "iterations"))
                if advance is not None:
                    advance()
        except KeyboardInterrupt:
            interrupted = True
    told = {"by": "gradient", "interrupted": interrupted, "iterations": state.done, "skipped": state.skipped}
    curve = [[i, value] for i, value in state.curve]
    return coefficients(state.best, solver).table(), {**told, "fit_seconds": state.seconds, "validation": curve}


def _without_gradient(task: Task, solver: Solver, course: Course, table: Table) -> Table:
    """The best on validation pairs of: the named plan and one on optimal times, with last rows by least squares."""
    tables = [table, *(_on_optimal_times(task, solver) if "theta" in course.moving else [])]
    more = [one for own in tables for one in _with_last_rows(task, solver, own)] if "c" in course.moving else []
    return _lowest(task, [*tables, *more], solver)[0]


def _on_optimal_times(task: Task, solver: Solver) -> list[Table]:
    """One, or none where the teacher's path has too few times to choose from."""
    indices = range(min(PATHS, len(task.train)))
    grid, path = _path(task, indices)
    if len(grid) <= task.nfe:
        return []
    network = task.caller.bound(task.pairs.trees(indices), task.scales(grid.tolist()))
    with progress_bar(task.progress, "times", task.nfe, "rounds") as advance, torch.no_grad():
        times = optimal_times(network, solver, grid, path, advance)
    return [on_times(times, solver)]


def _lowest(task: Task, tables: list[Table], solver: Solver) -> tuple[Table, float]:
    """The table of the lowest validation loss, and that."""
    values = [task.validation(coefficients_of(one, solver)) for one in tables]
    at = int(np.argmin(values))
    return tables[at], values[at]


def _with_last_rows(task: Task, solver: Solver, table: Table) -> list[Table]:
    """The table with its last row by least squares, at several ridges."""
    rows, numbers = LastRow(task.nfe), coefficients_of(table, solver)

    def take(indices: range) -> None:
        with torch.no_grad():
            own, basis = task.run(numbers, indices)
        rows.add(basis, own, task.ends[list(indices)])

    parts = [*chunks(range(min(REGRESSED, len(task.train))), task.batch)]
    over(parts, task.progress, "least squares", take)
    return rows.tables(table)


def _path(task: Task, indices: range) -> tuple[Array, torch.Tensor]:
    """Times and states of the teacher on the way, at most `GRID` of them and the end."""
    rows = task.teacher.rows
    whole = [i for i, row in enumerate(rows) if row.ends_step]
    count = min(GRID, len(whole))
    kept = sorted({whole[(k + 1) * len(whole) // count - 1] for k in range(count)})
    states: list[torch.Tensor] = []

    def keep(step: Step) -> None:
        if step.index in kept:
            states.append(step.state)

    task.sampler.run(replace(task.request(task.teacher, indices), on_step=keep))
    p0, a0, _ = task.teacher.prologue
    begin = task.pairs.noise(indices, task.caller.state) * float(p0) * float(a0)  # type: ignore[arg-type]
    levels = [rows[0].levels.call, *[rows[i].levels.y for i in kept]]
    lams = [log_snr(level.position) for level in levels]
    times = [float(task.schedule.time_at(lam)) for lam in lams]
    return np.array(times), torch.stack([begin, *[state.to(begin) for state in states]])


def _judged(task: Task, name: str, named: Plan, found: Table, told: dict[str, Any], began: float) -> TunedPlan:
    """The fitted plan if it is better on held-out noise, else the named one; both as they are run by the engine."""
    plan = plan_of(found, task.schedule, task.prediction)
    figures = compared(task.plan_losses(plan, task.held_out), task.plan_losses(named, task.held_out), task.pairs.seed)
    better = figures["interval"][1] < 1
    chosen = plan if better else named
    scales = task.scales(found.times.tolist())
    if scales is not None:
        assert task.guidance is not None
        chosen = chosen.with_guidance(task.guidance.scale or 1.0, task.guidance.interval)
    guidance = {"scales": [row.guidance for row in chosen]}
    if task.guidance is not None:
        guidance["rescale"] = task.guidance.rescale  # type: ignore[assignment]
    t = float(found.told[len(found.told) // 2])
    own = task.fingerprint
    outputs = probed(task.caller, task.pairs, t) if own is None else None
    fitted = {
        "better": better,
        **told,
        "network": own,
        "probe": {"shape": list(task.pairs.shape), "seed": task.pairs.seed, "time": t, "outputs": outputs},
        "schedule": {"name": task.schedule.name, "first": task.schedule.first, "last": task.schedule.last},
        "guidance": guidance,
        "loss": task.loss_name,
        "pairs": {"train": len(task.train), "validation": len(task.validate), "seed": task.pairs.seed},
        "teacher": {"solver": task.teacher.solver, "calls": task.teacher.nfe},
        "named": {"plan": name},
        "held_out": figures,
        "seconds": time.perf_counter() - began,
    }
    return TunedPlan(chosen.rows, chosen.solver, chosen.steps, chosen.prediction, chosen.prologue, fitted)
