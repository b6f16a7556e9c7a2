"""`tune`: a plan of few calls, fitted to one network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pndm_fast.loop.fitted import fingerprint
from pndm_fast.loop.guidance import Guidance
from pndm_fast.loop.network import denoiser_of
from pndm_fast.loop.told import completed
from pndm_fast.plan.checks import check_type, shown
from pndm_fast.plan.numbers import is_integer, is_number
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import Schedule
from pndm_fast.runtime.progress import progress_bar
from pndm_fast.runtime.sampler import Sampler
from pndm_fast.solvers.make import make_plan
from pndm_fast.tuning.calls import Caller, Conditioning, Pairs, check_times, probed
from pndm_fast.tuning.figures import Loss, loss_of
from pndm_fast.tuning.fit import Course
from pndm_fast.tuning.named import best, check_process, finalists, given, rounds
from pndm_fast.tuning.parameters import PACE
from pndm_fast.tuning.search import search
from pndm_fast.tuning.task import Task
from pndm_fast.tuning.teacher import Folder
from pndm_fast.tuning.tuned import TunedPlan

FEWEST, MOST = 2, 10
OFTEN = 20  # a validation comes when the fit has called the network that many times as often


def tune(
    model: Callable[..., Any],
    nfe: int = 5,
    *,
    schedule: Schedule | None = None,
    prediction: str | None = None,
    shape: Sequence[int] | None = None,
    cond: Conditioning = None,
    uncond: Conditioning = None,
    guidance: float | Guidance | None = None,
    teacher: int | Plan = 60,
    rivals: Sequence[Plan] | None = None,
    pairs: int = 1024,
    validation: int = 64,
    held_out: int = 256,
    iterations: int | None = None,
    minutes: float | None = None,
    batch: int = 24,
    rate: float = 4e-3,
    loss: str | Loss = "rms",
    recompute: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> TunedPlan:
    """Fit a plan of few network calls to one network: where it goes in nfe calls, a fine plan goes in many.

    A generalised solver (arXiv:2510.17699): times, told times and additive corrections on DPM-Solver++, as parameters
    of a plan, start at the best named plan and follow the gradient of a loss between its samples and the teacher's from
    the same noise. A network that has no gradient gets optimal times (OSS, arXiv:2503.21774) and a last row by least
    squares. Ctrl-C ends the fit, and keeps the best so far.

    Args:
        model, shape, device, dtype: of `Sampler`; the batch in shape is not used.
        nfe: network calls of the plan, 2 to 10.
        schedule, prediction: of `make_plan`, default what the network says, else `Schedule.linear()` and "eps".
        cond, uncond: the network's arguments, as users will draw: the same for all pairs, tensors as [1, ...], or a
            function of the pair's index that returns those of one pair, [1, ...] too.
        guidance: a scale, or a `Guidance` with one; the plan is for that one alone, and carries it.
        teacher: calls of `auto`'s plan, or a plan without noise.
        rivals: plans that the fitted one must be better than, default a list of named ones on several grids.
        pairs, validation, held_out: how many noises to fit on, to choose the best moment by, and to judge by.
        iterations, minutes: how long the fit takes, teacher aside; default 800 iterations of `batch` pairs.
        batch: pairs of an iteration.
        rate: Adam's learning rate at its highest.
        loss: rms or l1, each image's own, or a function of (samples, ends), both float32 [B, *shape], that returns [B]:
            a distance of features.
        recompute: keep no activations of a call, and call the network once more for them: for large networks.
        seed: pair i has the noise of seed + i.
        folder: where the teacher's samples and the fit's state are kept. The same call goes on from there, and ends
            where it would have without a break; `resume=False` fits anew.
        progress: whether to tell on stderr how far it is.

    Returns:
        The fitted plan, or the best named one where that is not worse beyond doubt: the interval of the ratio of their
        losses on held-out noise must lie below 1. `TunedPlan.summary()` says which, and why.

    Raises:
        TypeError, ValueError: naming the argument, before the first network call.
    """
    _check_counts(nfe=nfe, pairs=pairs, validation=validation, held_out=held_out, batch=batch)
    for name, value in (("recompute", recompute), ("resume", resume), ("progress", progress)):
        check_type(name, value, bool)
    name, measure = loss_of(loss)
    every = math.ceil(OFTEN * validation / (3 * batch))
    course = _course(pairs, batch, every, rate, seed, iterations, minutes, name)
    schedule, prediction = _process(model, schedule, prediction)
    guide = _guidance(guidance, cond, uncond)
    plan = _teacher(teacher, schedule, prediction, nfe)
    plans = finalists(schedule, prediction, nfe) if rivals is None else given(rivals, schedule, prediction, nfe)
    sampler = Sampler(model, shape=shape, device=device, dtype=dtype)
    draws = Pairs(sampler.shape[1:], seed, cond, uncond, sampler.device)
    counts, caller = [pairs, validation, held_out, batch], _caller(model, guide, sampler)
    task = Task(
        sampler=sampler,
        caller=caller,
        pairs=draws,
        schedule=schedule,
        prediction=prediction,
        guidance=guide,
        nfe=nfe,
        teacher=plan,
        loss_name=course.loss,
        loss=measure,
        train=range(pairs),
        validate=range(pairs, pairs + validation),
        held_out=range(pairs + validation, pairs + validation + held_out),
        batch=batch,
        recompute=recompute,
        folder=None if folder is None else Folder(folder, _key(caller, draws, plan, counts)),
        progress=progress,
    )
    return search(task, course, *best_named(task, plans), resume=resume)


def best_named(task: Task, plans: dict[str, Plan]) -> tuple[str, Plan]:
    """The named plan of the lowest loss on training noise, before anything is fitted."""
    if not plans:
        raise ValueError(f"rivals must be one plan or more, got none of {task.nfe} calls on {task.schedule.name}")
    try:
        _ = task.ends  # drawn now, so that each part of the work tells of its own progress
    except (RuntimeError, TypeError, IndexError, AssertionError):
        check_times(task.caller, task.pairs, task.teacher.rows[0].t)
        raise
    count = sum(many for many, _ in rounds(len(plans), len(task.train)))
    with progress_bar(task.progress, "named plans", count, "plans") as advance:

        def error(plan: Plan, part: range) -> float:
            value = float(task.plan_losses(plan, part).sum())
            advance()
            return value

        return best(plans, error, len(task.train))


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        least, most = (FEWEST, MOST) if name == "nfe" else (1 if name == "batch" else 2, 10**7)
        if not is_integer(value) or not least <= value <= most:
            raise ValueError(f"{name} must be an integer in [{least}, {most}], got {shown(value)}")


def _process(model: Any, schedule: Any, prediction: str | None) -> tuple[Schedule, str]:
    schedule, prediction = completed(model, schedule, prediction)
    schedule = Schedule.linear() if schedule is None else schedule
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a Schedule, got {shown(schedule)}")
    return schedule, prediction or "eps"


def _course(
    pairs: int, batch: int, every: int, rate: Any, seed: Any, iterations: int | None, minutes: float | None, loss: str
) -> Course:
    if iterations is not None and minutes is not None:
        raise ValueError("minutes cannot go with iterations: either says how long the fit takes")
    if iterations is not None and (not is_integer(iterations) or iterations < 1):
        raise ValueError(f"iterations must be an integer from 1 on, got {shown(iterations)}")
    for name, value in (("minutes", minutes), ("rate", rate)):
        if value is not None and not (is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number, got {shown(value)}")
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer in [0, 2^63), got {shown(seed)}")
    total = 800 if minutes is None and iterations is None else iterations
    return Course(pairs, batch, float(rate), int(seed), total, minutes, every, moving=tuple(PACE), loss=loss)


def _guidance(guidance: Any, cond: Conditioning, uncond: Conditioning) -> Guidance | None:
    """One scale for all rows, of networks that are called without the condition too."""
    if guidance is None:
        if uncond is not None:
            raise ValueError("uncond must come with guidance: it has no effect without")
        return None
    guide = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    if not isinstance(guide.scale, float):
        raise ValueError(f"guidance must have one scale for all rows, got {guide.scale}")
    if uncond is None and guide.weaker is None:
        raise ValueError("guidance must come with uncond, the network's arguments without condition")
    return guide


def _teacher(teacher: Any, schedule: Schedule, prediction: str, nfe: int) -> Plan:
    if isinstance(teacher, Plan):
        if any(teacher.noisy) or teacher.prologue.c0 != 0:
            raise ValueError(f"teacher must be a plan without noise, got {teacher.solver}")
        check_process("teacher", teacher, schedule, prediction)
        return teacher
    if not is_integer(teacher) or teacher <= nfe:
        raise ValueError(f"teacher must be a Plan, or more calls than nfe = {nfe}, got {shown(teacher)}")
    return make_plan("auto", schedule, nfe=teacher, prediction=prediction)


def _caller(model: Any, guide: Guidance | None, sampler: Sampler) -> Caller:
    own = replace(denoiser_of(model, sampler.dtype), device=sampler.device)
    weaker = None if guide is None or guide.weaker is None else denoiser_of(guide.weaker, None, None, "weaker")
    exact = torch.float64 in (own.dtype, None if weaker is None else weaker.dtype)
    return Caller(own, guide, weaker, torch.float64 if exact else torch.float32)


def _key(caller: Caller, pairs: Pairs, teacher: Plan, counts: list[int]) -> dict[str, Any]:
    """What makes a teacher's samples these ones: a folder that holds others is not taken.

    A network without weights to look at is known by its outputs.
    """
    guide, weaker = caller.guidance, caller.weaker
    own = None if guide is None else [guide.scale, guide.interval and list(guide.interval), guide.rescale]
    network = fingerprint(caller.network.network)
    other = None if weaker is None else fingerprint(weaker.network)
    asked = network is None or (weaker is not None and other is None)
    scale = None if guide is None or not isinstance(guide.scale, float) else guide.scale
    return {
        "network": network,
        "weaker": other,
        "outputs": probed(caller, pairs, teacher.rows[len(teacher) // 2].t, scale) if asked else None,
        "dtype": str(caller.network.dtype or caller.state),
        "shape": list(pairs.shape),
        "seed": pairs.seed,
        "guidance": own,
        "teacher": teacher.to_json(),
        "pairs, validation, held_out, batch": counts,
    }
