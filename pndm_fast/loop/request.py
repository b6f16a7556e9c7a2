"""One call of a `Sampler`, checked and completed before the first network call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop import conditioning
from pndm_fast.loop.checks import (
    check_batches,
    check_callable,
    check_components,
    check_conditioning,
    check_guidance,
    check_models,
    check_plans,
    check_seeds,
    check_start,
    check_tensor,
    check_time_dtype,
)
from pndm_fast.loop.inpainting import Known, known_of
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan, check_interval, distinct
from pndm_fast.row.device import upload
from pndm_fast.row.noise import INITIAL, normals
from pndm_fast.row.table import Table


@dataclass(frozen=True)
class Stretch:
    """Rows one after another that call the same network in the same way.

    Attributes:
        start, stop: their indexes, stop excluded.
        model: which network.
        guided: whether it is evaluated twice, for guidance.
    """

    start: int
    stop: int
    model: int = 0
    guided: bool = False


@dataclass(frozen=True)
class Request:
    """Arguments of one call in their final form.

    Attributes:
        shape: of one sample.
        plans: one for each sample.
        seeds: int64 [B] on the sampler's device.
        noise, state: tensors [B, *shape] in the state's dtype, or None.
        init: data that the start is noised from, or None.
        known: what components of the samples are to be, or None.
        noises: callable(index) -> [B, *shape] in place of Philox, or None.
        cond: the network's keyword arguments; uncond: those of its second evaluation, None without guidance.
        state_dtype: float32, or float64 for exact runs.
    """

    shape: tuple[int, ...]
    plans: tuple[Plan, ...]
    seeds: Tensor
    noise: Tensor | None
    state: Tensor | None
    init: Tensor | None
    known: Known | None
    noises: Callable[[int], Tensor] | None
    cond: dict[str, Any]
    uncond: dict[str, Any] | None
    state_dtype: torch.dtype
    real: int  # samples that were asked for; those behind them are halted from the start
    drawn: dict[int, Tensor] = field(default_factory=dict)  # noises before the first row: they are asked for once

    @property
    def batch(self) -> int:
        """B."""
        return len(self.plans)

    @property
    def nfe(self) -> int:
        """Network calls of the longest plan."""
        return max(plan.nfe for plan in self.plans)

    @cached_property
    def distinct(self) -> tuple[Plan, ...]:
        """The different plan objects, in order of appearance."""
        return distinct(self.plans)

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The rows by what they call. Samples of one batch share the switches.

        Raises:
            ValueError: they call different networks at one row.
        """
        kinds = []
        for index in range(self.nfe):
            here = [plan.kinds[index] for plan in self.distinct if index < plan.nfe]
            models = sorted({model for model, _ in here})
            if len(models) > 1:
                raise ValueError(f"plans of one batch must call the same network at row {index}, got {models}")
            kinds.append((models[0], any(guided for _, guided in here)))
        found, start = [], 0
        for (model, guided), group in groupby(kinds):
            count = sum(1 for _ in group)
            found.append(Stretch(start, start + count, model, guided))
            start += count
        return tuple(found)

    @cached_property
    def first_noise(self) -> Tensor:
        """The standard normals that the samples start from, [B, *shape]."""
        if self.noise is not None:
            return self.noise
        flat = normals(self.seeds, INITIAL, math.prod(self.shape))
        return flat.view(self.batch, *self.shape).to(self.state_dtype)

    @cached_property
    def components(self) -> int:
        """2 where samples are positions and momenta, else 1."""
        return max(plan.components for plan in self.distinct)

    @cached_property
    def raw(self) -> bool:
        """Whether every row stores the network's output unchanged and unguided."""
        return self.uncond is None and all(plan.raw for plan in self.distinct)

    @cached_property
    def unscaled(self) -> bool:
        """Whether the network sees y itself in every row."""
        return all(row.in_scale == 1.0 for plan in self.distinct for row in plan.rows)

    def first_rows(self, table: Table) -> list[int]:
        """Where in the table of the distinct plans each sample starts: added ones at their plan's halt row."""
        start = {id(plan): row for plan, row in zip(self.distinct, table.start, strict=True)}
        return [start[id(plan)] + (0 if b < self.real else plan.nfe) for b, plan in enumerate(self.plans)]

    def resized(self, batch: int) -> Request:
        """An example of another batch, for learning what a network does with it."""
        if batch >= self.batch:
            return self.padded(batch)
        return replace(
            self,
            plans=self.plans[:batch],
            seeds=self.seeds[:batch],
            cond=conditioning.resized(self.cond, self.batch, batch),
            uncond=None if self.uncond is None else conditioning.resized(self.uncond, self.batch, batch),
            real=batch,
        )

    def padded(self, batch: int) -> Request:
        """For a batch at least as large, with halted samples behind those asked for."""
        more = batch - self.batch

        def longer(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])

        if more == 0:
            return self
        return replace(
            self,
            plans=self.plans + self.plans[-1:] * more,
            seeds=longer(self.seeds),
            noise=None if self.noise is None else longer(self.noise),
            state=None if self.state is None else longer(self.state),
            init=None if self.init is None else longer(self.init),
            known=None if self.known is None else Known(longer(self.known.values), longer(self.known.mask)),
            cond=conditioning.resized(self.cond, self.batch, batch),
            uncond=None if self.uncond is None else conditioning.resized(self.uncond, self.batch, batch),
        )


def complete(
    *,
    default: Plan,
    networks: Sequence[Any],
    negative: Callable[..., Any] | None,
    guided: Callable[[tuple[Plan, ...], Any, Any], tuple[Plan, ...]],
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype | None,
    time_dtype: torch.dtype | None,
    seeds: Any,
    noise: Any = None,
    state: Any = None,
    noises: Any = None,
    init: Any = None,
    known: Any = None,
    mask: Any = None,
    cond: Any = None,
    uncond: Any = None,
    guidance: Any = None,
    guidance_interval: Any = None,
    plan: Any = None,
) -> Request:
    """Check the arguments of `Sampler.__call__` and complete them. `shape` is (batch, *sample shape).

    Raises:
        TypeError, ValueError: naming the argument.
    """
    for name, other in (("noise", noise), ("init", init)):
        if other is not None and state is not None:
            raise ValueError(f"{name} and state exclude each other: give one of them")
    if known is not None and noises is not None:
        raise ValueError("known and noises exclude each other: what is known is noised as the samples' start was")
    given = {"noise": noise, "state": state, "init": init, "known": known}
    tensors = {name: check_tensor(name, value, shape[1:], device) for name, value in given.items()}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    batch = shape[0] if is_integer(seeds) else None
    bits = check_seeds(seeds, next((len(tensor) for tensor in present.values()), batch))
    check_batches(present, len(bits))
    exact = dtype is torch.float64 or any(tensor.dtype is torch.float64 for tensor in present.values())
    if exact and device.type != "cpu":
        raise ValueError(f"a float64 network, noise or state must be on the CPU, got {device}")
    state_dtype = torch.float64 if exact else torch.float32
    plans = check_plans(plan, default, len(bits))
    if guidance is not None:
        interval = None if guidance_interval is None else check_interval(guidance_interval)
        plans = guided(plans, check_guidance(guidance), interval)
    elif guidance_interval is not None:
        raise ValueError("guidance_interval must come with guidance, the scale inside it")
    for p in distinct(plans):
        check_start(p, state is not None or init is not None)
        check_components(p, shape)
        check_time_dtype(p, time_dtype)
    check_models(plans, networks, negative)
    with_cond, without = check_conditioning(cond, uncond, plans, device, negative is not None)
    tensors = {name: None if tensor is None else tensor.to(state_dtype) for name, tensor in tensors.items()}
    request = Request(
        shape=shape[1:],
        plans=plans,
        seeds=upload(bits, device),
        noise=tensors["noise"],
        state=tensors["state"],
        init=tensors["init"],
        known=known_of(tensors["known"], mask, device),
        noises=check_callable("noises", noises),
        cond=with_cond,
        uncond=without,
        state_dtype=state_dtype,
        real=len(bits),
    )
    assert request.stretches  # raises where samples of the batch disagree
    return request
