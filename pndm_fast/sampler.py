"""`Sampler`: a network with a plan, called many times, from many threads."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pndm_fast.backends import BACKENDS, choose_backend
from pndm_fast.events import NonFiniteError, Report, Step
from pndm_fast.make_plan import make_plan
from pndm_fast.memory import KEPT, Memory, memory_of
from pndm_fast.network import check_dtype, check_model, config_shape, parameter
from pndm_fast.noise import is_integer
from pndm_fast.plan import Plan
from pndm_fast.progress import progress_bar
from pndm_fast.request import ON_NAN, check_callable, check_choice, check_seeds, check_shape, complete, distinct
from pndm_fast.schedule import Schedule
from pndm_fast.table import Table, build
from pndm_fast.trajectory import Output, Trajectory
from pndm_fast.workspace import BufferForm, Workspace


class Sampler:
    """A network with a plan: call it many times, from many threads.

    Args:
        model: called as model(x, t, **cond) with x of shape [B, *shape] and t of shape [B]. Both are buffers that the
            next row overwrites: a network that keeps them must copy them.
        plan: what runs where a call names no other.
        shape: (batch, *sample shape); default a batch of 1 of the shape in model.config.
        device: default the model's.
        dtype: of the network's input, default the model's; the state is float32 whatever it is.
        time_dtype: of t, default float32; torch.int64 for networks with one embedding per training time.
        backend: auto, cpp (CPU), triton (CUDA) or reference.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        plan: Plan,
        *,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        time_dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> None:
        check_model(model)
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
        like = parameter(model)
        self.model, self.plan = model, plan
        self.backend = check_choice("backend", backend, BACKENDS)
        self.shape = _batch_shape(model, shape)
        self.device = torch.empty(0, device=device or (like.device if like is not None else "cpu")).device
        self.dtype = check_dtype("dtype", dtype, (torch.float32, torch.float16, torch.bfloat16, torch.float64))
        if self.dtype is None and like is not None:
            self.dtype = like.dtype
        self.time_dtype = check_dtype("time_dtype", time_dtype, (torch.float32, torch.int64))
        self._report: Report | None = None
        self.reset()

    def reset(self) -> None:
        """Forget buffers, tables and what is known of the network's outputs."""
        self.memory = Memory()

    @property
    def report(self) -> Report:
        """How the last finished call ran.

        Raises:
            RuntimeError: none has finished.
        """
        if self._report is None:
            raise RuntimeError("report: no call has finished yet")
        return self._report

    def __call__(
        self,
        *,
        seeds: int | Sequence[int] = 0,
        noise: Tensor | None = None,
        state: Tensor | None = None,
        noises: Callable[[int], Tensor] | None = None,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        guidance: float | Sequence[float] | None = None,
        plan: Plan | Sequence[Plan] | None = None,
        progress: bool = False,
        on_step: Callable[[Step], Any] | None = None,
        on_nan: str = "raise",
    ) -> Tensor:
        """Sample. Returns float32 [B, *shape], contiguous (float64 where the network, noise or state is float64).

        Args:
            seeds: s means s, s + 1, ...; a sequence gives one for each sample, and so the batch.
            noise: standard normals [B, *shape] in place of the seeds' x_T; state: the start itself.
            noises: index -> standard normals, in place of Philox: 0 is x_T, 1 the prologue's, i + 2 row i's.
            cond: the network's keyword arguments; uncond: those without condition, for guidance; keys that it lacks
                come from cond.
            guidance: scale g of uncond + g (cond - uncond), one or one for each row; default the plan's.
            plan: another plan, or one for each sample: they may differ in solver and length.
            on_step: called after each row with a `Step`.
            on_nan: raise `NonFiniteError` at the end, mark (those samples become NaN), or ignore.

        Raises:
            TypeError, ValueError: naming the argument, before the first network call.
            NonFiniteError, Cancelled: both carry what was computed.
        """
        began = time.perf_counter()
        check_choice("on_nan", on_nan, ON_NAN)
        check_callable("on_step", on_step)
        request = complete(
            default=self.plan,
            guided=self._with_guidance,
            shape=self.shape,
            device=self.device,
            dtype=self.dtype,
            time_dtype=self.time_dtype,
            seeds=seeds,
            noise=noise,
            state=state,
            noises=noises,
            cond=cond,
            uncond=uncond,
            guidance=guidance,
            plan=plan,
        )
        # inference tensors have no version counters, and buffers made in inference mode cannot be used outside it
        with torch.inference_mode(False), torch.no_grad(), self._current_device():
            trajectory = Trajectory(
                self.model,
                request,
                self._table(request.plans, request.state_dtype),
                choose_backend(self.backend, self.device, request.state_dtype),
                device=self.device,
                network=self.dtype or request.state_dtype,
                time=self.time_dtype or request.state_dtype,
            )
            with self._workspace(trajectory) as (workspace, first):
                with progress_bar(progress, request.plans[0].solver, request.nfe) as advance:
                    samples = trajectory.run(workspace, first, on_step, advance)
                bad = () if on_nan == "ignore" else trajectory.bad(workspace, samples)
        self._report = trajectory.report(workspace, bad, time.perf_counter() - began)
        if bad and on_nan == "raise":
            raise NonFiniteError(bad, samples)
        if bad:
            samples[[b.sample for b in bad]] = float("nan")
        return samples

    def _current_device(self) -> contextlib.AbstractContextManager[Any]:
        """Kernels are launched on the current device, which need not be the model's."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _with_guidance(self, plans: tuple[Plan, ...], scale: float | tuple[float, ...]) -> tuple[Plan, ...]:
        def guided(plan: Plan) -> Plan:
            return self.memory.guided.get((id(plan), scale), lambda: (plan, plan.with_guidance(scale)))[1]

        made = {id(plan): guided(plan) for plan in distinct(plans)}
        return tuple(made[id(plan)] for plan in plans)

    def _table(self, plans: tuple[Plan, ...], dtype: torch.dtype) -> Table:
        unique = distinct(plans)
        key = (dtype, *map(id, unique))  # the entry holds the plans, so their ids stay theirs
        return self.memory.tables.get(key, lambda: (unique, build(unique, dtype, self.device)))[1]

    @contextlib.contextmanager
    def _workspace(self, trajectory: Trajectory) -> Iterator[tuple[Workspace, Output | None]]:
        """Buffers that this call alone uses, begun, with the network's first output where it fits them."""
        request, apart = trajectory.request, trajectory.apart
        autocast = torch.is_autocast_enabled(self.device.type) and torch.get_autocast_dtype(self.device.type)
        key = (request.batch, request.state_dtype, trajectory.halves, apart, autocast)
        probe = self.memory.probes.peek(key)
        if probe is not None:
            trajectory.apart = probe.apart
            idle = self._idle(trajectory.form(probe))
            try:
                workspace = idle.pop()
            except IndexError:
                workspace = Workspace(trajectory.form(probe))
            try:
                workspace.begin(request, trajectory.table, trajectory.backend)
                first = trajectory.evaluate(workspace)
                if trajectory.fits(workspace, first):
                    yield workspace, first
                    return
            finally:
                idle.append(workspace)
            trajectory.apart = apart  # the network has changed since: learn its form anew
        probe, workspace, first_or_none = trajectory.first_call()
        self.memory.probes.put(key, probe)
        yield workspace, first_or_none

    def _idle(self, form: BufferForm) -> deque[Workspace]:
        # buffers go back while their last kernels may still run: only the same stream may take them up
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
        return self.memory.idle.get((form, stream), deque)


def _batch_shape(model: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is not None:
        return check_shape(shape)
    inferred = config_shape(model)
    if inferred is None:
        raise ValueError("shape must be given, (batch, ...): model.config has no in_channels and sample_size")
    return 1, *inferred


def sample(
    model: Callable[..., Any],
    steps: int | None = None,
    *,
    nfe: int | None = None,
    times: Sequence[float] | None = None,
    solver: str | Plan = "f-pndm",
    schedule: Schedule | None = None,
    spacing: str | None = None,
    prediction: str = "eps",
    integer_times: bool = False,
    compat: str | None = None,
    shape: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 0,
    noise: Tensor | None = None,
    state: Tensor | None = None,
    noises: Callable[[int], Tensor] | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance: float | Sequence[float] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    time_dtype: torch.dtype | None = None,
    backend: str = "auto",
    progress: bool = False,
    on_step: Callable[[Step], Any] | None = None,
    on_nan: str = "raise",
    **options: Any,
) -> Tensor:
    """Draw samples from a diffusion model: `make_plan`, a `Sampler` and one call of it.

    Args:
        model: called as model(x, t, **cond): a module, a compiled or TorchScript module, or any callable.
        steps: time points, default 50; or `nfe`, network calls; or `times`, decreasing.
        solver: a name of `SOLVERS`, or a ready `Plan`, which then says all of schedule, spacing and prediction.
        options: the solver's own, such as eta.

    The other arguments are those of `make_plan`, `Sampler` and `Sampler.__call__`. The batch is shape[0], or the
    number of seeds, or noise's.

    Returns:
        float32 [B, *shape], contiguous.

    Raises:
        TypeError, ValueError: naming the argument, before the first network call.
        NonFiniteError, Cancelled: both carry what was computed.
    """
    check_model(model)
    seeds = seeds if is_integer(seeds) or not isinstance(seeds, Iterator) else list(seeds)
    planned: dict[str, Any] = {"steps": steps, "nfe": nfe, "schedule": schedule, "spacing": spacing, "compat": compat}
    planned["times"] = times
    planned |= {"integer_times": integer_times or None, "prediction": None if prediction == "eps" else prediction}
    asked = {name: value for name, value in {**planned, **options}.items() if value is not None}
    if not isinstance(solver, Plan):
        solver = _plan(solver, asked)
    elif asked:
        raise ValueError(f"{next(iter(asked))} cannot go with a ready plan: give it to make_plan")
    shape = _shape_of_call(shape, seeds, state if noise is None else noise)
    sampler = Sampler(model, solver, shape=shape, device=device, dtype=dtype, time_dtype=time_dtype, backend=backend)
    sampler.memory = memory_of(
        model, (sampler.shape[1:], sampler.device, sampler.dtype, sampler.time_dtype, sampler.backend)
    )
    return sampler(
        seeds=seeds,
        noise=noise,
        state=state,
        noises=noises,
        cond=cond,
        uncond=uncond,
        guidance=guidance,
        progress=progress,
        on_step=on_step,
        on_nan=on_nan,
    )


@functools.lru_cache(maxsize=KEPT)
def _remembered_plan(solver: str, asked: tuple[tuple[str, type, Any], ...]) -> Plan:
    return make_plan(solver, **{name: value for name, _, value in asked})


def _plan(solver: str, asked: dict[str, Any]) -> Plan:
    try:
        # with its type: 5.0 == 5, but is no number of steps
        return _remembered_plan(solver, tuple((name, type(value), value) for name, value in asked.items()))
    except TypeError:  # a value without hash; if that was no value's fault, the same error comes again
        return make_plan(solver, **asked)


def _shape_of_call(shape: Sequence[int] | None, seeds: Any, start: Any) -> Sequence[int] | None:
    """The shape given, or the start's; both, and the number of seeds, must agree on the batch."""
    if shape is None:
        return tuple(start.shape) if isinstance(start, Tensor) and start.dim() > 1 else None
    batch = check_shape(shape)[0]
    if isinstance(start, Tensor) and start.dim() > 1 and len(start) != batch:
        raise ValueError(f"noise must have batch {batch}, the shape's, got {len(start)}")
    if not is_integer(seeds):
        check_seeds(seeds, batch)
    return shape
