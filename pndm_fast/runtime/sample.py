"""`sample`: a plan, a sampler and one call of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop.checks import check_seeds, check_shape
from pndm_fast.loop.network import networks_of
from pndm_fast.loop.results import Cancel, Step
from pndm_fast.phase_space import PSLD
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import Schedule
from pndm_fast.runtime.cache import KEPT, Memory, memory_of
from pndm_fast.runtime.sampler import Sampler
from pndm_fast.solvers.make import make_plan


def sample(
    model: Callable[..., Any] | Sequence[Callable[..., Any]],
    steps: int | None = None,
    *,
    nfe: int | None = None,
    times: Sequence[float] | None = None,
    solver: str | Plan | None = None,
    schedule: Schedule | PSLD | None = None,
    spacing: str | None = None,
    prediction: str = "eps",
    integer_times: bool = False,
    compat: str | None = None,
    shape: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 0,
    noise: Tensor | None = None,
    state: Tensor | None = None,
    noises: Callable[[int], Tensor] | None = None,
    init: Tensor | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance: float | Sequence[float] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    negative: Callable[..., Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    time_dtype: torch.dtype | None = None,
    backend: str = "auto",
    graph: str = "auto",
    progress: bool = False,
    on_step: Callable[[Step], Any] | None = None,
    cancel: Cancel | None = None,
    on_nan: str = "raise",
    **options: Any,
) -> Tensor:
    """Draw samples from a diffusion model: `make_plan`, a `Sampler` and one call of it.

    Args:
        model: called as model(x, t, **cond): a module, a compiled or TorchScript module, or any callable.
        steps: time points, default 50; or `nfe`, network calls; or `times`, decreasing.
        solver: a name of `SOLVERS`, default f-pndm; auto, default in phase space; or a ready `Plan`, which then says
            all of schedule, spacing and prediction.
        options: the solver's own, such as eta.

    The other arguments are those of `make_plan`, `Sampler` and `Sampler.__call__`. The batch is shape[0], or the
    number of seeds, or noise's.

    Returns:
        float32 [B, *shape], contiguous.

    Raises:
        TypeError, ValueError: naming the argument, before the first network call.
        NonFiniteError, Cancelled: both carry what was computed.
    """
    networks_of(model)
    seeds = seeds if is_integer(seeds) or not isinstance(seeds, Iterator) else list(seeds)
    planned: dict[str, Any] = {"steps": steps, "nfe": nfe, "schedule": schedule, "spacing": spacing, "compat": compat}
    planned["times"] = times
    planned |= {"integer_times": integer_times or None, "prediction": None if prediction == "eps" else prediction}
    asked = {name: value for name, value in {**planned, **options}.items() if value is not None}
    if not isinstance(solver, Plan):
        solver = _plan(solver, asked)
    elif asked:
        raise ValueError(f"{next(iter(asked))} cannot go with a ready plan: give it to make_plan")
    given = {"noise": noise, "state": state, "init": init, "known": known}
    name, start = next(((name, tensor) for name, tensor in given.items() if tensor is not None), ("", None))
    shape = _shape_of_call(shape, seeds, name, start)
    sampler = Sampler(
        model,
        solver,
        negative=negative,
        shape=shape,
        device=device,
        dtype=dtype,
        time_dtype=time_dtype,
        backend=backend,
        graph=graph,
    )
    if negative is None and callable(model):  # several networks are remembered by a Sampler alone
        key = (sampler.shape[1:], sampler.device, sampler.dtype, sampler.time_dtype, sampler.backend)
        sampler.memory = memory_of(model, key)
    else:
        sampler.memory = Memory(patient=True)
    return sampler(
        seeds=seeds,
        noise=noise,
        state=state,
        noises=noises,
        init=init,
        known=known,
        mask=mask,
        cond=cond,
        uncond=uncond,
        guidance=guidance,
        guidance_interval=guidance_interval,
        progress=progress,
        on_step=on_step,
        cancel=cancel,
        on_nan=on_nan,
    )


@functools.lru_cache(maxsize=KEPT)
def _remembered_plan(solver: str | None, asked: tuple[tuple[str, type, Any], ...]) -> Plan:
    return make_plan(solver, **{name: value for name, _, value in asked})


def _plan(solver: str | None, asked: dict[str, Any]) -> Plan:
    try:
        # with its type: 5.0 == 5, but is no number of steps
        return _remembered_plan(solver, tuple((name, type(value), value) for name, value in asked.items()))
    except TypeError:  # a value without hash; if that was no value's fault, the same error comes again
        return make_plan(solver, **asked)


def _shape_of_call(shape: Sequence[int] | None, seeds: Any, name: str, start: Any) -> Sequence[int] | None:
    """The shape given, or the start's; both, and the number of seeds, must agree on the batch."""
    if shape is None:
        return tuple(start.shape) if isinstance(start, Tensor) and start.dim() > 1 else None
    batch = check_shape(shape)[0]
    if isinstance(start, Tensor) and start.dim() > 1 and len(start) != batch:
        raise ValueError(f"{name} must have batch {batch}, the shape's, got {len(start)}")
    if not is_integer(seeds):
        check_seeds(seeds, batch)
    return shape
