"""`sample`: a plan, a sampler and one call of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pndm_fast.loop.checks import check_seeds, check_shape
from pndm_fast.loop.guidance import Guidance
from pndm_fast.loop.request import Conditioning, Request
from pndm_fast.loop.starts import Start, tensors_of
from pndm_fast.loop.told import completed, told_plan
from pndm_fast.plan.hints import OPTIONS, refuse_unknown
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.warn import warn
from pndm_fast.runtime.cache import KEPT, Cache, cache_of
from pndm_fast.runtime.opaque import opaque
from pndm_fast.runtime.sampler import Sampler
from pndm_fast.solvers.auto import AUTO
from pndm_fast.solvers.make import make_plan


@opaque
def sample(
    model: Callable[..., Any] | Sequence[Callable[..., Any]],
    steps: int | None = None,
    *,
    nfe: int | None = None,
    solver: str | Plan | None = None,
    schedule: Schedule | PSLD | None = None,
    spacing: str | None = None,
    prediction: str | None = None,
    strength: float | None = None,
    shape: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 0,
    start: Start | None = None,
    cond: Conditioning | None = None,
    uncond: Conditioning | None = None,
    guidance: float | Sequence[float] | Guidance | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """Draw samples from a diffusion model: the short form of `make_plan`, a `Sampler` and one call of it.

    Args:
        model, shape: of `Sampler`; the batch is shape[0], or the number of seeds, or the start's.
        steps, nfe, schedule, spacing, prediction, strength: of `make_plan`, as are `options`, the solver's own. A model
            may carry a `schedule` and a `prediction` (`loop/told.py`): they are then the defaults, and nothing may
            contradict them.
        solver: of `make_plan`, or a ready `Plan`, which says all of these. "auto" takes a plan that a model carries
            and that was fitted to it (`plans` there), for that number of calls at that guidance, where nothing else of
            the plan is asked for.
        seeds, start, cond, uncond, guidance, progress: of `Request`.

    Returns:
        float32 [B, *shape], contiguous.

    Raises:
        TypeError, ValueError: naming the argument, before the first network call.
        NonFiniteError, Cancelled: both carry what was computed.
    """
    _refuse_words(options)
    request = Request(seeds=seeds, start=start, cond=cond, uncond=uncond, guidance=guidance, progress=progress)
    if not isinstance(solver, Plan):
        first = model[0] if isinstance(model, (tuple, list)) and model else model
        schedule, prediction = completed(first, schedule, prediction)
    planned = {"steps": steps, "nfe": nfe, "schedule": schedule, "spacing": spacing, "prediction": prediction}
    asked = {name: value for name, value in {**planned, "strength": strength, **options}.items() if value is not None}
    if not isinstance(solver, Plan):
        solver = _fitted(first, solver, asked, guidance) or _plan(solver, asked)
    elif asked:
        raise ValueError(f"{next(iter(asked))} cannot go with a ready plan: give it to make_plan")
    if isinstance(model, (tuple, list)) and solver.last_model + 1 < len(model):
        called = f"{solver.last_model + 1} of the {len(model)} in model"
        warn(f"the plan calls {called}: Plan.with_models says which network a row calls")
    sampler = Sampler(model, solver, shape=_shape_of_call(shape, request.seeds, start))
    alone = not isinstance(request.guidance, Guidance) or request.guidance.weaker is None
    if callable(model) and alone:  # several networks are remembered by a Sampler alone: one may hold another
        key = (sampler.shape[1:], sampler.device, sampler.dtype)
        sampler.cache = cache_of(model, key)
    else:
        sampler.cache = Cache(capture_on_second_use=True)
    return sampler.run(request).samples


def _refuse_words(options: Mapping[str, Any]) -> None:
    """What is neither here nor a solver's own: it would be forwarded unseen, or answered for something else."""
    if "plan" in options:
        raise TypeError("plan is no argument of pf.sample: give a ready plan as solver=")
    refuse_unknown("pf.sample", OPTIONS, options, all_known=False)


def _fitted(model: Any, solver: str | None, asked: Mapping[str, Any], guidance: Any) -> Plan | None:
    """The model's own plan, where auto is left every choice but schedule and prediction."""
    if solver != AUTO or asked.keys() - {"schedule", "prediction"} not in ({"steps"}, {"nfe"}):
        return None
    calls = asked.get("nfe", asked.get("steps"))
    return told_plan(model, calls, guidance, asked.get("schedule"), asked.get("prediction"))


@functools.lru_cache(maxsize=KEPT)
def _remembered_plan(solver: str | None, asked: tuple[tuple[str, type, Any], ...]) -> Plan:
    return make_plan(solver, **{name: value for name, _, value in asked})


def _plan(solver: str | None, asked: dict[str, Any]) -> Plan:
    try:
        # with its type: 5.0 == 5, but is no number of steps
        return _remembered_plan(solver, tuple((name, type(value), value) for name, value in asked.items()))
    except TypeError:  # a value without hash; if that was no value's fault, the same error comes again
        return make_plan(solver, **asked)


def _shape_of_call(shape: Sequence[int] | None, seeds: Any, start: Start | None) -> Sequence[int] | None:
    """The shape given, or the start's; both, and the number of seeds, must agree on the batch."""
    told = {name: t.shape for name, t in tensors_of(start).items() if isinstance(t, Tensor) and t.dim() > 1}
    if shape is None:
        return next(iter(told.values()), None)
    batch = check_shape(shape)[0]
    for name, own in told.items():
        if own[0] != batch:
            raise ValueError(f"{name} must have batch {batch}, the shape's, got {own[0]}")
    if not is_integer(seeds):
        check_seeds(seeds, batch)
    return shape
