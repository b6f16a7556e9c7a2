"""A request, checked and completed for one sampler: all that a call needs to know before its first network call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pndm_fast.loop import conditioning
from pndm_fast.loop.by_row import ByRow, Pair
from pndm_fast.loop.checks import (
    check_batches,
    check_components,
    check_conditioning,
    check_models,
    check_names,
    check_plans,
    check_predictions,
    check_seeds,
    check_start,
    check_tensor,
    check_time_dtype,
    warn_of_idle_guidance,
    warn_of_idle_interval,
)
from pndm_fast.loop.fitted import warn_of_fit
from pndm_fast.loop.guidance import Guidance
from pndm_fast.loop.inpainting import Known, known_of
from pndm_fast.loop.layers import Around, layers
from pndm_fast.loop.network import Denoiser
from pndm_fast.loop.noise_source import NoiseSource
from pndm_fast.loop.positions import Kind, Positions, segments_of
from pndm_fast.loop.request import Request
from pndm_fast.loop.starts import Inpaint, Start, tensors_of
from pndm_fast.loop.told import check_told, told_prediction, told_schedule
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan, distinct
from pndm_fast.row.device import upload
from pndm_fast.row.noise import INITIAL, normals

UNGUIDED = Guidance(None)


@dataclass(frozen=True, eq=False)
class Setup:
    """What a sampler knows, of which a request says nothing.

    Attributes:
        networks: those that a plan's rows may name.
        shape: (batch, *sample shape); the batch is that of a request with one seed.
        time_dtype: of their times, None for the state's.
        weaker: what is known of guidance's other network; may remember.
        guided: (plan, scale, interval) -> the plan at that scale; may remember.
        once: (key, make) -> make(), remembered: of what is true of a plan whatever the request.
        fixed_batch: samples in every call of the network, where that is fixed.
    """

    networks: tuple[Denoiser, ...]
    plan: Plan | None
    shape: tuple[int, ...]
    device: torch.device
    time_dtype: torch.dtype | None
    weaker: Callable[[Any], Denoiser]
    guided: Callable[[Plan, Any, Any], Plan]
    once: Callable[[Any, Callable[[], Plan]], Plan]
    fixed_batch: int | None = None


@dataclass(frozen=True, eq=False)
class Origin:
    """Tensors [B, *shape] in the state's dtype that samples start from; None where the seeds say it.

    Attributes:
        noise, state, image: one at most of state and the others.
        known: what parts of the samples are to be.
    """

    noise: Tensor | None = None
    state: Tensor | None = None
    image: Tensor | None = None
    known: Known | None = None

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Origin:
        """With other tensors."""
        if self is SEEDS:
            return self

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        known = None if self.known is None else Known(function(self.known.values), function(self.known.mask))
        return Origin(of(self.noise), of(self.state), of(self.image), known)


SEEDS = Origin()


@dataclass(frozen=True, eq=False)
class Call:
    """One call in its final form. It says nothing of how far the call has come.

    Attributes:
        shape: of one sample.
        plans: one for each sample; distinct: the different objects among them, in order of appearance.
        segments: how the network is called, and for how many rows each time.
        seeds: int64 [B], the seeds' bits, on the host.
        noise: the caller's in place of Philox, or None.
        cond: the network's keyword arguments; uncond: those of its second evaluation, None without guidance.
        by_row: those of the row under way where they change, or None; cond and uncond are then row 0's.
        guidance: how it is evaluated; the scales stand in the plans. weaker: its other network, where there is one.
        separate: why guidance must take two calls, empty where it need not.
        state_dtype: float32, or float64 for exact runs.
        real: samples that were asked for; those behind them are halted from the start.
    """

    shape: tuple[int, ...]
    plans: tuple[Plan, ...]
    distinct: tuple[Plan, ...]
    segments: tuple[tuple[Kind, int], ...]
    seeds: NDArray[np.int64]
    origin: Origin
    noise: NoiseSource | None
    cond: dict[str, Any]
    uncond: dict[str, Any] | None
    guidance: Guidance
    weaker: Denoiser | None
    separate: str
    state_dtype: torch.dtype
    device: torch.device
    real: int
    by_row: ByRow | None = None

    @property
    def batch(self) -> int:
        """B."""
        return len(self.plans)

    @property
    def nfe(self) -> int:
        """Network calls of the longest plan."""
        return max(plan.nfe for plan in self.distinct)

    @property
    def components(self) -> int:
        """2 where samples are positions and momenta, else 1."""
        return max(plan.components for plan in self.distinct)

    @property
    def raw(self) -> bool:
        """Whether every row stores the network's output unchanged and unguided."""
        return self.uncond is None and all(plan.raw for plan in self.distinct)

    @property
    def unscaled(self) -> bool:
        """Whether the network sees y itself in every row."""
        return all(plan.unscaled for plan in self.distinct)

    @cached_property
    def plan_of(self) -> tuple[int, ...]:
        """Which of the distinct plans each sample has."""
        places = {id(plan): i for i, plan in enumerate(self.distinct)}
        return tuple([places[id(plan)] for plan in self.plans])

    @cached_property
    def first_noise(self) -> Tensor:
        """The standard normals that the samples start from, [B, *shape]."""
        if self.origin.noise is not None:
            return self.origin.noise
        flat = normals(upload(self.seeds, self.device), INITIAL, math.prod(self.shape))
        return flat.view(self.batch, *self.shape).to(self.state_dtype)

    def positions(self) -> Positions:
        """All samples before their first row, the added ones behind their last."""
        return Positions(self.plans, [0 if b < self.real else plan.nfe for b, plan in enumerate(self.plans)])

    def resized(self, batch: int) -> Call:
        """An example of another batch, for learning what a network does with it."""
        if batch >= self.batch:
            return self.padded(batch)
        return self._with(batch, lambda tensor: tensor[:batch], real=batch)

    def padded(self, batch: int) -> Call:
        """With halted samples behind the real ones: copies of the first, so that the network meets known numbers."""
        if batch == self.batch:
            return self
        more = batch - self.batch
        return self._with(batch, lambda t: torch.cat([t, t[:1].expand(more, *t.shape[1:])]), real=self.real)

    def _with(self, batch: int, resize: Callable[[Tensor], Tensor], real: int) -> Call:
        plans = (*self.plans, *self.plans[:1] * (batch - self.batch))[:batch]
        return replace(
            self,
            plans=plans,
            distinct=distinct(plans),
            segments=segments_of(distinct(plans)),
            seeds=np.append(self.seeds, self.seeds[:1].repeat(max(batch - self.batch, 0)))[:batch],
            origin=self.origin.mapped(resize),
            noise=None if self.noise is None else self.noise.resized(real, batch),
            cond=conditioning.resized("cond", self.cond, self.batch, batch),
            uncond=None if self.uncond is None else conditioning.resized("uncond", self.uncond, self.batch, batch),
            real=real,
            by_row=None if self.by_row is None else self.by_row.resized(batch),
        )


def resolve(request: Request, setup: Setup, *, example: bool = False) -> Call:
    """Check a request against a sampler, and complete it.

    Args:
        example: its values do not matter.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    tensors, bits = _samples(request, setup)
    batch = len(bits)
    state_dtype = _state_dtype(setup, tensors)
    guidance = request.guidance if isinstance(request.guidance, Guidance) else UNGUIDED
    weaker = None if guidance.weaker is None else setup.weaker(guidance.weaker)
    plans, different = _plans(request, setup, guidance, weaker, batch)
    (cond, uncond), by_row = _conditioning(request, setup, weaker, different, batch)
    _check_guidance(request, setup, guidance, different, guided=uncond is not None)
    if not example:
        if uncond is not None and weaker is None:
            warn_of_idle_guidance(request.cond, request.uncond)
        warn_of_idle_interval(different, guidance)
    source = request.noise_sampler
    return Call(
        shape=setup.shape[1:],
        plans=plans,
        distinct=different,
        segments=segments_of(different),
        seeds=bits,
        device=setup.device,
        origin=_origin(request.start, {name: t.to(state_dtype) for name, t in tensors.items()}, setup.device),
        noise=None if source is None else NoiseSource(source, setup.shape[1:], batch, setup.device, state_dtype),
        cond=cond,
        uncond=uncond,
        guidance=guidance,
        weaker=weaker,
        separate="as asked" if guidance.calls == "separate" else "fixed_batch" if setup.fixed_batch else "",
        state_dtype=state_dtype,
        real=batch,
        by_row=by_row,
    )


def _samples(request: Request, setup: Setup) -> tuple[dict[str, Tensor], NDArray[np.int64]]:
    """What they start from, by the names that messages have, and their seeds: as many of each."""
    given = tensors_of(request.start)
    tensors = {name: check_tensor(name, value, setup.shape[1:], setup.device) for name, value in given.items()}
    batch = setup.shape[0] if is_integer(request.seeds) else None
    bits = check_seeds(request.seeds, next((len(tensor) for tensor in tensors.values()), batch))
    check_batches(tensors, len(bits))
    if setup.fixed_batch is not None and len(bits) > setup.fixed_batch:
        raise ValueError(f"a request must have at most fixed_batch = {setup.fixed_batch} samples, got {len(bits)}")
    return tensors, bits


def _state_dtype(setup: Setup, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """float64 where a network or a start is."""
    inputs = [*[network.dtype for network in setup.networks], *[tensor.dtype for tensor in tensors.values()]]
    if torch.float64 not in inputs:
        return torch.float32
    if setup.device.type != "cpu":
        raise ValueError(f"a float64 network, noise or state must be on the CPU, got {setup.device}")
    return torch.float64


def _check_guidance(request: Request, setup: Setup, guidance: Guidance, plans: tuple[Plan, ...], guided: bool) -> None:
    """Refuse what would have no effect, or cannot be had.

    Raises:
        ValueError: naming the argument.
    """
    if setup.fixed_batch is not None and guidance.calls == "batched":
        raise ValueError("guidance calls must be separate or auto with fixed_batch, which is one call's, got 'batched'")
    if request.uncond is not None and not guided and request.guidance is None:
        raise ValueError("uncond must come with guidance, or a plan that has it: it has no effect without")
    if guidance is not UNGUIDED and guidance.scale is None and not guided:
        raise ValueError("guidance without a scale must come with a guided plan: it has no effect on this one")
    if guidance.rescale and any([plan.keeps_uncond or plan.has_factors for plan in plans]):
        raise ValueError(
            f"rescale must be 0 with a plan that keeps unconditional outputs or multiplies the scale, got "
            f"{guidance.rescale}"
        )


def _conditioning(
    request: Request, setup: Setup, weaker: Denoiser | None, plans: tuple[Plan, ...], batch: int
) -> tuple[Pair, ByRow | None]:
    """The trees of row 0, and what gives those of later rows where they change."""
    other, networks = weaker is not None, [network for network in (*setup.networks, weaker) if network is not None]

    def at(row: int) -> Pair:
        cond, uncond = check_conditioning(request.cond, request.uncond, plans, batch, setup.device, other, row)
        check_names("cond", cond, networks)
        check_names("uncond", uncond or {}, networks)
        return cond, uncond

    first = at(0)
    changes = any([callable(given) and not isinstance(given, Mapping) for given in (request.cond, request.uncond)])
    return first, ByRow(at, first, batch, batch) if changes else None


def _origin(start: Start | None, tensors: dict[str, Tensor], device: torch.device) -> Origin:
    if start is None:
        return SEEDS
    known = known_of(tensors["known"], start.mask, device) if isinstance(start, Inpaint) else None
    return Origin(tensors.get("noise"), tensors.get("state"), tensors.get("image"), known)


def _plans(
    request: Request, setup: Setup, guidance: Guidance, weaker: Denoiser | None, batch: int
) -> tuple[tuple[Plan, ...], tuple[Plan, ...]]:
    """One for each sample, and the different ones among them."""
    plans = check_plans(request.plan, setup.plan, batch)
    different = distinct(plans)
    if len(different) > 1:
        check_predictions(different)
    if guidance.scale is not None:
        made = {id(plan): setup.guided(plan, guidance.scale, guidance.interval) for plan in different}
        plans, different = tuple([made[id(plan)] for plan in plans]), tuple(made.values())
    given = not {"state", "image"}.isdisjoint(tensors_of(request.start))

    def checked(plan: Plan) -> Plan:
        check_start(plan, given)
        check_components(plan, setup.shape)
        check_time_dtype(plan, setup.time_dtype)
        check_models(plan, setup.networks, weaker)
        used = [setup.networks[i].network for i in sorted({row.model for row in plan})]
        check_told(plan, used if weaker is None else [*used, weaker.network])
        _check_rows(plan, setup.networks)
        warn_of_fit(plan, used)
        return plan

    facts = None
    if weaker is not None:
        facts = weaker.momentum_only, told_schedule(weaker.network), told_prediction(weaker.network)
    for plan in different:
        setup.once((id(plan), given, facts), lambda plan=plan: checked(plan))  # type: ignore[misc]
    return plans, different


def _check_rows(plan: Plan, networks: tuple[Denoiser, ...]) -> None:
    """Ask the package's own wrappers, which may be made for one plan."""
    for i, denoiser in enumerate(networks):
        for part in layers(denoiser.network):
            if isinstance(part, Around):
                part.check_rows([row for row in plan if row.model == i])
