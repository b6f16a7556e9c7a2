"""`Machine`: networks on a device, and what is kept from call to call. `Sampler` and `Engine` run requests with one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from pndm_fast.loop.call import Call, Setup
from pndm_fast.loop.checks import check_shape, check_sizes
from pndm_fast.loop.config_shape import sample_shape
from pndm_fast.loop.evaluation import Evaluation, Output, evaluation_of
from pndm_fast.loop.layers import innermost, layers
from pndm_fast.loop.learn import first_call
from pndm_fast.loop.memory_format import check_memory_format
from pndm_fast.loop.network import (
    Denoiser,
    Identity,
    check_device,
    check_dtype,
    denoiser_of,
    denoisers,
    device_of_all,
    in_training,
    warn_of_training,
)
from pndm_fast.loop.positions import Kind, Positions
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.tensors import INPUTS, same_device
from pndm_fast.loop.workspace import Workspace
from pndm_fast.plan.checks import check_type, choose
from pndm_fast.plan.plan import Plan
from pndm_fast.row.backends import BACKENDS, choose_backend
from pndm_fast.row.registers import Registers
from pndm_fast.row.table import Table, build
from pndm_fast.runtime.batch_error import batch_error
from pndm_fast.runtime.cache import Cache, asked_once


class Machine:
    """For the package alone: what a user gives and reads of it, `Sampler` has.

    Args:
        model, plan, shape, ..., stateful: of `Sampler`.

    Attributes:
        setup: what a request is resolved with.
        asked: dtype and device as they were given.
        cache: buffers, graphs and tables.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Sequence[Callable[..., Any]],
        plan: Plan | None,
        *,
        shape: Sequence[int] | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        time_dtype: torch.dtype | None,
        backend: str,
        memory_format: torch.memory_format | None,
        fixed_batch: int | None,
        stateful: bool,
    ) -> None:
        self.cache = Cache()
        self.backend = choose("backend", backend, BACKENDS)
        self.asked = check_dtype("dtype", dtype, INPUTS), check_device(device)
        networks = denoisers(model, *self.asked, ask=asked_once)
        check_type("stateful", stateful, bool)
        self.stateful = stateful
        self.setup = Setup(
            networks=networks,
            plan=plan,
            shape=(1, *sample_shape(networks[0].network)) if shape is None else check_shape(shape),
            device=device_of_all(networks),
            weaker=self._weaker,
            time_dtype=check_dtype("time_dtype", time_dtype, (torch.float32, torch.int64)),
            guided=self._with_guidance,
            once=self._once,
            fixed_batch=None if fixed_batch is None else check_sizes("fixed_batch", [fixed_batch])[0],
        )
        batch, fixed = self.setup.shape[0], self.setup.fixed_batch
        if fixed is not None and batch > fixed:
            raise ValueError(f"shape must have at most fixed_batch = {fixed} samples, got {batch}")
        self.memory_format = check_memory_format(memory_format, self.setup.shape)
        parts: list[Any] = [part for known in networks for part in layers(known.network)]
        self._inner = [innermost(known.network) for known in networks]
        self._training = any(map(in_training, self._inner))  # of which the check of a model has warned
        self._telling = [part for part in parts if hasattr(part, "is_cache_enabled")]

    def remembers(self) -> bool:
        """Whether a network keeps something of its calls."""
        return self.stateful or any([part.is_cache_enabled is True for part in self._telling])

    def warn_of_new_training(self) -> None:
        """Of a network that has gone into training mode, as a training loop may leave it."""
        training = any([in_training(network) for network in self._inner])
        if training and not self._training:
            warn_of_training()
        self._training = training

    def modes(self) -> contextlib.AbstractContextManager[Any]:
        """Without gradients, outside inference mode, on the device."""
        device = self.setup.device
        if device.type != "cuda" and not torch.is_inference_mode_enabled():
            return torch.no_grad()
        stack = contextlib.ExitStack()
        # inference tensors have no version counters, and buffers made in inference mode cannot be used outside it
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if device.type == "cuda":  # kernels are launched on the current device, which need not be the model's
            stack.enter_context(torch.cuda.device(device))
        return stack

    def evaluations(self, call: Call) -> dict[Kind, Evaluation]:
        """How each kind of the call's rows is evaluated: what cannot be is refused before the first network call."""
        return {kind: evaluation_of(call, kind, self.setup.networks) for kind, _ in call.segments}

    def segment(
        self,
        call: Call,
        evaluation: Evaluation,
        positions: Positions,
        kind: Kind,
        count: int,
        snapshot: Registers | None = None,
    ) -> Segment:
        """`count` rows of one kind, from these positions on; what came before them is in the snapshot."""
        return Segment(
            call=call,
            kind=kind,
            evaluation=evaluation,
            at=tuple(positions.at),
            length=count,
            table=self._table(call.distinct, call.state_dtype),
            backend=choose_backend(self.backend, self.setup.device, call.state_dtype),
            device=self.setup.device,
            network=evaluation.model.dtype or call.state_dtype,
            time=self.setup.time_dtype or call.state_dtype,
            memory_format=self.memory_format,
            snapshot=snapshot,
        )

    def batch_error(self, call: Call, sizes: Iterable[int]) -> float | None:
        """`Report.batch_error` over these batch sizes, which takes a call of the network for each."""
        one = call.resized(1)

        def output(size: int) -> Output:
            return self._first_output(replace(one.padded(size), real=size))  # none of them halted

        return batch_error(output, sizes, alone=self.setup.fixed_batch is None)

    def _first_output(self, call: Call) -> Output:
        """Of the network at a call's first row."""
        kind, count = call.segments[0]
        segment = self.segment(call, self.evaluations(call)[kind], call.positions(), kind, count)
        return first_call(segment, None, Workspace).output

    def _with_guidance(self, plan: Plan, scale: Any, interval: tuple[float, float] | None) -> Plan:
        key = id(plan), scale, interval
        return self.cache.guided.get(key, lambda: (plan, plan.with_guidance(scale, interval)))[1]

    def _weaker(self, network: Any) -> Denoiser:
        """What is known of guidance's other network, which must be where the others are."""

        def ask() -> Denoiser:
            known, device = denoiser_of(network, *self.asked, "weaker"), self.setup.device
            if known.device is not None and not same_device(known.device, device):
                raise ValueError(f"weaker must be on {device}, as the sampler's network, got {known.device}")
            return known

        return self.cache.weaker.get(Identity(network), ask)

    def _once(self, key: Any, make: Callable[[], Plan]) -> Plan:
        return self.cache.checked.get(key, make)

    def _table(self, plans: tuple[Plan, ...], dtype: torch.dtype) -> Table:
        # the entry holds the plans, so their ids stay theirs
        return self.cache.tables.get((dtype, *map(id, plans)), lambda: (plans, build(plans, dtype)))[1]
