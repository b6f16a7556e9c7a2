"""`Sampler`: a network with a plan, called many times, from many threads."""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop import nvtx as ranges
from pndm_fast.loop.checks import ON_NAN, check_callable, check_choice, check_shape, check_sizes
from pndm_fast.loop.network import check_dtype, check_model, config_shape, networks_of, parameter
from pndm_fast.loop.request import Request, Stretch, complete
from pndm_fast.loop.results import BadSample, Cancel, Cancelled, NonFiniteError, Report, Step
from pndm_fast.loop.trajectory import Trajectory
from pndm_fast.plan.plan import Plan, distinct
from pndm_fast.row.backends import BACKENDS, choose_backend
from pndm_fast.row.device import stream_of
from pndm_fast.row.registers import Registers
from pndm_fast.row.table import Table, build
from pndm_fast.runtime import graphs
from pndm_fast.runtime.cache import Memory
from pndm_fast.runtime.executor import Pace, Place, check_graph, report_of, take_place
from pndm_fast.runtime.progress import progress_bar


class Sampler:
    """A network with a plan: call it many times, from many threads.

    Args:
        model: called as model(x, t, **cond) with x of shape [B, *shape] and t of shape [B]. Both are buffers that the
            next row overwrites: a network that keeps them must copy them. Or a sequence of networks, of which each row
            of a plan names one (`Plan.with_models`).
        plan: what runs where a call names no other.
        shape: (batch, *sample shape); default a batch of 1 of the shape in model.config.
        device: default the model's.
        dtype: of the network's input, default the model's; the state is float32 whatever it is.
        time_dtype: of t, default float32; torch.int64 for networks with one embedding per training time.
        backend: auto, cpp (CPU), triton (CUDA) or reference.
        graph: how a CUDA device is driven: `while` (network and row captured as the body of a loop: one launch for a
            trajectory), `replay` (one launch for each row), `eager`; `auto` is the best that the network allows, with
            the reason in `report.graph_reason`. A graph reads its own copies of x, t and conditioning tensors; weights
            changed in place are seen, replaced ones lead to a new capture.
        negative: another, weaker network for guidance's second evaluation (autoguidance, Karras et al. 2024,
            arXiv:2406.02507), called with uncond, or with cond where that is not given.
        concurrency: how many captured calls may run at once, each with a graph, and memory, of its own.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Sequence[Callable[..., Any]],
        plan: Plan,
        *,
        negative: Callable[..., Any] | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        time_dtype: torch.dtype | None = None,
        backend: str = "auto",
        graph: str = "auto",
        concurrency: int = 1,
    ) -> None:
        self.models: tuple[Callable[..., Any], ...] = networks_of(model)
        if negative is not None:
            check_model(negative, "negative")
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
        like = parameter(self.models[0])
        self.negative, self.plan = negative, plan
        self.backend = check_choice("backend", backend, BACKENDS)
        self.concurrency = check_sizes("concurrency", [concurrency])[0]
        self.shape = _batch_shape(self.models[0], shape)
        self.device = torch.empty(0, device=device or (like.device if like is not None else "cpu")).device
        self.graph = check_graph(graph, self.device)
        self.dtype = check_dtype("dtype", dtype, (torch.float32, torch.float16, torch.bfloat16, torch.float64))
        if self.dtype is None and like is not None:
            self.dtype = like.dtype
        self.time_dtype = check_dtype("time_dtype", time_dtype, (torch.float32, torch.int64))
        self._report: Report | None = None
        self._preparing = threading.Lock()  # two at once could each hold a part of the graphs, and wait for the rest
        self.reset()

    def reset(self) -> None:
        """Forget buffers, graphs, tables, sizes that were prepared and what is known of the network's outputs."""
        self.memory = Memory()
        self.batches: list[int] = []

    @property
    def model(self) -> Callable[..., Any]:
        """The network, or the first of several. Another one needs another sampler."""
        return self.models[0]

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
        init: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        guidance: float | Sequence[float] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        plan: Plan | Sequence[Plan] | None = None,
        progress: bool = False,
        on_step: Callable[[Step], Any] | None = None,
        cancel: Cancel | None = None,
        on_nan: str = "raise",
    ) -> Tensor:
        """Sample. Returns float32 [B, *shape], contiguous (float64 where the network, noise or state is float64).

        Args:
            seeds: s means s, s + 1, ...; a sequence gives one for each sample, and so the batch.
            noise: standard normals [B, *shape] in place of the seeds' x_T; state: the start itself.
            init: data [B, *shape] that is noised to the plan's first level, which `make_plan(start=)` or `strength=`
                puts in the middle: image to image. In phase space data are [x_0, 0], the momentum's half zero.
            known, mask: data [B, *shape] that the samples are to have where mask is 0; they are drawn where it is 1.
            noises: index -> standard normals, in place of Philox: 0 is x_T, 1 the prologue's, i + 2 row i's.
            cond: the network's keyword arguments; uncond: those without condition, for guidance; keys that it lacks
                come from cond.
            guidance: scale g of uncond + g (cond - uncond), one or one for each row; default the plan's.
            guidance_interval: (low, high) in sigma/alpha: the scale holds for rows called within, see
                `Plan.with_guidance`; the others are evaluated once.
            plan: another plan, or one for each sample: they may differ in solver and length.
            on_step: called after each row with a `Step`. On a CUDA device the row before has ended, this one
                is under way.
            cancel: a `Cancel` by which another thread can end the call.
            on_nan: raise `NonFiniteError` at the end, mark (those samples become NaN), or ignore.

        Raises:
            TypeError, ValueError: naming the argument, before the first network call.
            NonFiniteError, Cancelled: both carry what was computed.
        """
        began = time.perf_counter()
        check_choice("on_nan", on_nan, ON_NAN)
        check_callable("on_step", on_step)
        if cancel is not None and not isinstance(cancel, Cancel):
            raise TypeError(f"cancel must be a Cancel, got {type(cancel).__name__}")
        bad: tuple[BadSample, ...] = ()
        request = self._request(
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
            plan=plan,
        )
        request = request.padded(self._batch_for(request.batch))
        carry, ran = None, []
        with self._modes(), progress_bar(progress, request.plans[0].solver, request.nfe) as advance:
            for stretch in request.stretches:
                trajectory = self._trajectory(request, stretch, carry)
                with take_place(self.memory, trajectory, self.graph, self.concurrency) as place:
                    samples = self._run(trajectory, place, advance if progress else None, on_step, cancel)
                    if stretch.stop < request.nfe:
                        carry = place.workspace.carry()
                    elif on_nan != "ignore":
                        with ranges.marked("finish"):
                            bad = trajectory.bad(place.workspace, samples)
                ran.append((trajectory, place))
        self._report = report_of(self.memory, ran, bad, time.perf_counter() - began)
        if bad and on_nan == "raise":
            raise NonFiniteError(bad, samples)
        if bad:
            samples[[b.sample for b in bad]] = float("nan")
        return samples

    def prepare(
        self,
        batches: Iterable[int],
        *,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        guidance: float | Sequence[float] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        plan: Plan | Sequence[Plan] | None = None,
    ) -> None:
        """Make everything for these batch sizes now: compile, capture, allocate. Later requests are filled up to them.

        A request runs with the next larger size, halted samples standing behind its own; one above all sizes runs as it
        is. Without CUDA graphs the network is called once for each size.

        Args:
            cond, uncond, guidance, guidance_interval, plan: an example of later calls, for a batch of `shape[0]`:
                values do not matter, forms do, and where there is guidance.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        sizes = sorted(set(check_sizes("batches", batches)))
        if len(sizes) > graphs.KEPT:
            raise ValueError(f"batches must have at most {graphs.KEPT} entries, got {len(sizes)}")
        example = self._request(
            seeds=range(self.shape[0]),
            cond=cond,
            uncond=uncond,
            guidance=guidance,
            guidance_interval=guidance_interval,
            plan=plan,
        )
        with self._preparing, self._modes():
            for size in reversed(sizes):  # the largest first: what it takes, smaller ones may find free again
                self._prepare(example.resized(size))
        self.batches = sizes

    def _prepare(self, request: Request) -> None:
        carry = None
        for stretch in request.stretches:
            trajectory = self._trajectory(request, stretch, carry)
            with contextlib.ExitStack() as stack:
                for _ in range(self.concurrency):
                    place = stack.enter_context(take_place(self.memory, trajectory, self.graph, self.concurrency))
                carry = place.workspace.carry()

    def _batch_for(self, batch: int) -> int:
        """The next size that was prepared, else the batch itself."""
        at = bisect.bisect_left(self.batches, batch)
        return self.batches[at] if at < len(self.batches) else batch

    def _request(self, **arguments: Any) -> Request:
        return complete(
            default=self.plan,
            networks=self.models,
            negative=self.negative,
            guided=self._with_guidance,
            shape=self.shape,
            device=self.device,
            dtype=self.dtype,
            time_dtype=self.time_dtype,
            **arguments,
        )

    def _trajectory(self, request: Request, stretch: Stretch, carry: Registers | None) -> Trajectory:
        return Trajectory(
            self.models[stretch.model],
            request,
            self._table(request.plans, request.state_dtype),
            choose_backend(self.backend, self.device, request.state_dtype),
            stretch=stretch,
            carry=carry,
            negative=self.negative,
            device=self.device,
            network=self.dtype or request.state_dtype,
            time=self.time_dtype or request.state_dtype,
        )

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        # inference tensors have no version counters, and buffers made in inference mode cannot be used outside it
        with torch.inference_mode(False), torch.no_grad(), self._current_device():
            yield

    def _current_device(self) -> contextlib.AbstractContextManager[Any]:
        """Kernels are launched on the current device, which need not be the model's."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _with_guidance(
        self, plans: tuple[Plan, ...], scale: float | tuple[float, ...], interval: tuple[float, float] | None
    ) -> tuple[Plan, ...]:
        def guided(plan: Plan) -> Plan:
            key = id(plan), scale, interval
            return self.memory.guided.get(key, lambda: (plan, plan.with_guidance(scale, interval)))[1]

        made = {id(plan): guided(plan) for plan in distinct(plans)}
        return tuple(made[id(plan)] for plan in plans)

    def _table(self, plans: tuple[Plan, ...], dtype: torch.dtype) -> Table:
        unique = distinct(plans)
        # the entry holds the plans, so their ids stay theirs; what one stream writes no other may read unasked
        key = (dtype, stream_of(self.device), *map(id, unique))
        return self.memory.tables.get(key, lambda: (unique, build(unique, dtype, self.device)))[1]

    def _run(
        self,
        trajectory: Trajectory,
        place: Place,
        advance: Callable[[], None] | None,
        on_step: Callable[[Step], Any] | None,
        cancel: Cancel | None,
    ) -> Tensor:
        """The stretch's rows: in one go where nobody looks on; a loop on the device can be cancelled there."""
        nfe, workspace = trajectory.request.nfe, place.workspace
        watched = advance is not None or on_step is not None or trajectory.request.known is not None
        loop = None if cancel is None or watched else place.cancelable
        by_row = watched or (cancel is not None and loop is None)
        pace = Pace(self.device)

        def after(index: int, count: int) -> None:
            if not by_row:
                return
            pace.tick()
            if advance is not None:
                advance()
            if cancel is not None and cancel.is_set() and index + count < nfe:
                raise Cancelled(index, trajectory.samples(workspace), None)

        linked = contextlib.nullcontext() if cancel is None or loop is None else loop(cancel)
        with linked:
            samples = trajectory.run(workspace, place.rows, at_once=1 if by_row else nfe, on_step=on_step, after=after)
            if loop is not None:
                trajectory.check_ended(workspace, samples)
        return samples


def _batch_shape(model: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is not None:
        return check_shape(shape)
    inferred = config_shape(model)
    if inferred is None:
        raise ValueError("shape must be given, (batch, ...): model.config has no in_channels and sample_size")
    return 1, *inferred
