"""`Sampler`: a network, called many times, from many threads."""

from __future__ import annotations

import bisect
import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop import nvtx
from pndm_fast.loop.call import Call, resolve
from pndm_fast.loop.checks import check_sizes
from pndm_fast.loop.positions import Positions
from pndm_fast.loop.request import Request, check_request
from pndm_fast.loop.results import BadSample, NonFiniteError, Result
from pndm_fast.loop.run import watch_for_bad
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.short_form import with_fields_of
from pndm_fast.plan.hints import in_words
from pndm_fast.plan.plan import Plan
from pndm_fast.runtime import graphs
from pndm_fast.runtime.cache import Cache
from pndm_fast.runtime.capture import release
from pndm_fast.runtime.executor import Executor, check_graph, report_of, take_executor
from pndm_fast.runtime.machine import Machine
from pndm_fast.runtime.opaque import opaque
from pndm_fast.runtime.progress import progress_bar
from pndm_fast.runtime.watched import run_rows


@in_words("Sampler")
class Sampler:
    """A network, mostly with a plan: call it many times, from many threads.

    Args:
        model: called as model(x, t, **cond) with x of shape [B, *shape] and t of shape [B], or with t by its name where
            the signature shows one, as timestep, elsewhere than second. Both are buffers that the next row overwrites:
            a network that keeps them must copy them. Or a sequence of networks, of which each row of a plan names one
            (`Plan.with_models`).
        plan: of requests that bring none.
        shape: (batch, *sample shape); default a batch of 1 of the shape in model.config, where that is clear.
        device: of the network's input, default the model's: where accelerate runs it, else `model.device`, else that of
            its weights.
        dtype: of the network's input, default the model's: `model.dtype`, else that of its weights. The state is
            float32 whatever it is. Of several networks each has its own.
        time_dtype: of t, default float32; torch.int64 for networks with one embedding per training time.
        backend: auto, cpp (CPU), triton (CUDA) or reference.
        graph: how a CUDA device is driven: `while` (network and row captured as the body of a loop: one launch for a
            trajectory), `replay` (one launch for each row), `eager`; `auto` is `replay` until a committed measurement
            shows `while` to be faster, or `eager` where the network allows no graph, with the reason in the report's
            `graph_reason`. A graph reads its own copies of x, t and conditioning tensors;
            weights changed in place are seen, replaced ones lead to a new capture.
        concurrency: how many captured calls may run at once, each with a graph, and memory, of its own.
        memory_format: of the network's inputs, default torch.channels_last where its convolutions' weights lie so, as
            `model.to(memory_format=...)` leaves them. Outputs of another layout are copied, and the report says so.
        fixed_batch: the number of samples in every call of the network, a request's own and halted ones behind them, so
            that what it says of a sample cannot depend on how many others there are. Guidance then takes two calls.
            Whether kernels treat the places of a batch alike too, `prepare([n])` measures: `batch_error` is 0.
        stateful: whether the network remembers its calls (a step cache, say). It is then called exactly as often as
            the plan says, and so neither captured nor prepared. A network of diffusers whose cache is enabled says so.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Sequence[Callable[..., Any]],
        plan: Plan | None = None,
        *,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        time_dtype: torch.dtype | None = None,
        backend: str = "auto",
        graph: str = "auto",
        concurrency: int = 1,
        memory_format: torch.memory_format | None = None,
        fixed_batch: int | None = None,
        stateful: bool = False,
    ) -> None:
        if plan is not None and not isinstance(plan, Plan):
            raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
        self.concurrency = check_sizes("concurrency", [concurrency])[0]
        self.machine = Machine(
            model,
            plan,
            shape=shape,
            device=device,
            dtype=dtype,
            time_dtype=time_dtype,
            backend=backend,
            memory_format=memory_format,
            fixed_batch=fixed_batch,
            stateful=stateful,
        )
        self.graph = check_graph(graph, self.device, stateful)
        self._preparing = threading.Lock()  # two at once could each hold a part of the graphs, and wait for the rest
        self.reset()

    def reset(self) -> None:
        """Forget buffers, graphs, tables, sizes that were prepared and what is known of the network's outputs.

        Waits for what dropped graphs still do on their device.
        """
        self.machine.cache = Cache()
        self.batches: list[int] = []
        self.batch_error: float | None = None
        release(wait=True)

    @property
    def cache(self) -> Cache:
        """Buffers, graphs and tables."""
        return self.machine.cache

    @cache.setter
    def cache(self, cache: Cache) -> None:
        self.machine.cache = cache

    @property
    def models(self) -> tuple[Callable[..., Any], ...]:
        """The networks. Others need another sampler."""
        return tuple([network.network for network in self.machine.setup.networks])

    @property
    def model(self) -> Callable[..., Any]:
        """The network, or the first of several."""
        return self.models[0]

    @property
    def plan(self) -> Plan | None:
        """The plan of requests that bring none."""
        return self.machine.setup.plan

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, *sample shape); the batch is that of a request with one seed."""
        return self.machine.setup.shape

    @property
    def device(self) -> torch.device:
        """Where the network, and so everything, is."""
        return self.machine.setup.device

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the network's input, or of the first one's; None where it is the state's."""
        return self.machine.setup.networks[0].dtype

    @property
    def time_dtype(self) -> torch.dtype | None:
        """Of the network's times; None where it is the state's."""
        return self.machine.setup.time_dtype

    @property
    def backend(self) -> str:
        """As it was asked for."""
        return self.machine.backend

    @property
    def memory_format(self) -> torch.memory_format | None:
        """Of the network's inputs, as it was asked for."""
        return self.machine.memory_format

    @property
    def fixed_batch(self) -> int | None:
        """How many samples are in every call of the network, where that is fixed."""
        return self.machine.setup.fixed_batch

    @property
    def stateful(self) -> bool:
        """Whether the network was said to remember its calls."""
        return self.machine.stateful

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has a memory of its own, and is to be prepared anew."""
        options = {name: getattr(self, name) for name in inspect.signature(Sampler).parameters}
        options["dtype"], options["device"] = self.machine.asked  # not the first network's for all
        models, plan = options.pop("model"), options.pop("plan")
        return functools.partial(Sampler, **options), (models if len(self.models) == 1 else self.models, plan)

    def __repr__(self) -> str:
        plan = "no plan" if self.plan is None else f"{self.plan.solver} with {self.plan.nfe} calls"
        names = ", ".join(getattr(model, "__name__", type(model).__name__) for model in self.models)
        return f"<Sampler of {names}: {plan}, shape {self.shape}, {self.device}>"

    @with_fields_of(Request)
    def __call__(self, request: Request) -> Tensor:
        """`run` for the samples alone: float32 [B, *shape], contiguous (float64 where network, noise or state is)."""
        return self.run(request).samples

    @opaque
    def run(self, request: Request) -> Result:
        """Sample.

        Raises:
            TypeError, ValueError: naming the argument, before the first network call.
            NonFiniteError, Cancelled: both carry what was computed.
        """
        began = time.perf_counter()
        self.machine.warn_of_new_training()
        call = resolve(check_request(request), self.machine.setup)
        call = call.padded(self._batch_for(call.batch))
        evaluations = self.machine.evaluations(call)
        positions, ran = call.positions(), []
        samples, snapshot = None, None
        look: Callable[[], tuple[BadSample, ...]] = tuple
        with self.machine.modes(), progress_bar(request.progress, call.plans[0].solver, call.nfe) as advance:
            for number, (kind, count) in enumerate(call.segments, 1):
                segment = self.machine.segment(call, evaluations[kind], positions, kind, count, snapshot)
                with self._executor(segment, positions) as executor:
                    samples = run_rows(request, executor, positions, advance)
                    if number < len(call.segments):
                        snapshot = executor.workspace.snapshot()
                    elif request.on_nan != "ignore":
                        with nvtx.marked("finish"):
                            look = watch_for_bad(executor.segment, executor.workspace, samples)
                ran.append(executor)
            bad = look()  # others may have the executor by now
        assert samples is not None
        report = report_of(self.cache, ran, time.perf_counter() - began, self.batch_error)
        if bad and request.on_nan == "raise":
            raise NonFiniteError(bad, samples, report)
        if bad:
            samples[[b.sample for b in bad]] = float("nan")
        return Result(samples, report, bad)

    @in_words("prepare", batch_size="batches", batch_sizes="batches", sizes="batches", request="example")
    @opaque
    def prepare(self, batches: Iterable[int], example: Request | None = None) -> None:
        """Make everything for these batch sizes now: compile, capture, allocate. Later requests are filled up to them.

        A request runs with the next larger size, halted samples standing behind its own; one above all sizes runs as it
        is. Without CUDA graphs the network is called once for each size, and once more for reports' `batch_error`,
        which compares its outputs for one sample alone and in batches of these sizes.

        Args:
            example: of later requests, for a batch of `shape[0]`: values do not matter, forms do, and where there is
                guidance. How it is watched does not matter.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        sizes = sorted(set(check_sizes("batches", batches)))
        if len(sizes) > graphs.KEPT:
            raise ValueError(f"batches must have at most {graphs.KEPT} entries, got {len(sizes)}")
        if self.fixed_batch is not None and sizes != [self.fixed_batch]:
            raise ValueError(f"batches must be [{self.fixed_batch}], the sampler's fixed_batch, got {sizes}")
        if self.machine.remembers():
            raise ValueError("prepare calls the network, which a stateful one would remember: it cannot be had")
        # the noise of an example is of its own batch
        example = Request() if example is None else replace(check_request(example, "example"), noise_sampler=None)
        call = resolve(example, self.machine.setup, example=True)
        with self._preparing, self.machine.modes():
            for size in reversed(sizes):  # the largest first: what it takes, smaller ones may find free again
                self._prepare(call.resized(size))
            self.batch_error = self.machine.batch_error(call, sizes)
        self.batches = sizes

    def _prepare(self, call: Call) -> None:
        evaluations, positions, snapshot = self.machine.evaluations(call), call.positions(), None
        for kind, count in call.segments:
            segment = self.machine.segment(call, evaluations[kind], positions, kind, count, snapshot)
            with contextlib.ExitStack() as stack:
                for _ in range(self.concurrency):
                    taken = self._executor(segment, positions)
                    snapshot = stack.enter_context(taken).workspace.snapshot()
            positions.advance(segment.length)

    def _executor(self, segment: Segment, positions: Positions) -> contextlib.AbstractContextManager[Executor]:
        remembers = self.machine.remembers()
        return take_executor(self.cache, segment, positions, self.graph, self.concurrency, remembers)

    def _batch_for(self, batch: int) -> int:
        """The fixed size, else the next one that was prepared, else the batch itself."""
        if self.fixed_batch is not None:
            return self.fixed_batch
        at = bisect.bisect_left(self.batches, batch)
        return self.batches[at] if at < len(self.batches) else batch
