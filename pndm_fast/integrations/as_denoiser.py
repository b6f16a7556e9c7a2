"""A pipeline's network as a `Sampler` calls one, and the conditioning in a call that the pipeline would have made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pndm_fast.integrations.family import Family
from pndm_fast.integrations.stand_in import Recorded
from pndm_fast.loop.conditioning import CONSTANTS, Shared, mapped
from pndm_fast.loop.layers import Around
from pndm_fast.loop.network import in_training, result_tensor
from pndm_fast.runtime.cache import LRU
from pndm_fast.runtime.sampler import Sampler

# arguments of `AsDenoiser` alone
BEHIND, WEIGHTS, IN_PLACE = "channels_behind", "time_weights", "in_place"
KEPT = 8  # samplers: of shapes, dtypes and forms


class Form(NamedTuple):
    """How a network is told x and t.

    Attributes:
        sample, time: their names, None where they have the first two places.
        times: how many, 0 for a time without dimensions, None for one for each sample.
        time_dtype: theirs; told: what is done to them then.
        channels: where what stands behind x is joined to it; answered: whether the network answers for that too.
    """

    sample: str | None
    time: str | None
    times: int | None
    time_dtype: torch.dtype
    told: Callable[[Tensor], Tensor] | None
    channels: int
    answered: bool


class Answers:
    """What a network's outputs were like: of what dtype, which autocast decides on."""

    dtype: torch.dtype | None = None


class AsDenoiser(Around):
    """The network as network(x, t, **cond).

    Attributes:
        answers: what is known of those so far.
    """

    def __init__(self, network: Any, form: Form) -> None:
        super().__init__()
        self.model, self.form, self.training = network, form, in_training(network)
        self.answers = Answers()

    def forward(
        self, x: Tensor, t: Tensor, cache_context: tuple[str, Mapping[str, Any]] | None = None, **cond: Any
    ) -> Any:
        """What the network returns, called in a cache's context where there is one."""
        if cache_context is None:
            result = self._called(x, t, **cond)
        else:
            name, where = cache_context
            with self.model.cache_context(name, **where):
                result = self._called(x, t, **cond)
        out = result_tensor(result)
        self.answers.dtype = out.dtype
        if not self.form.answered:
            return out
        return out.narrow(self.form.channels, 0, x.shape[self.form.channels]).contiguous()

    def _called(
        self,
        x: Tensor,
        t: Tensor,
        channels_behind: Tensor | None = None,
        time_weights: Tensor | None = None,
        in_place: tuple[Tensor, Tensor] | None = None,
        **cond: Any,
    ) -> Any:
        """What the network returns.

        Args:
            channels_behind: joined to x; time_weights: of t, [1, times], for a network that is told a time for each
                token; in_place: (mask, data), of which the data stand where the mask is 0.
        """
        form = self.form
        if channels_behind is not None:
            x = torch.cat([x, channels_behind], form.channels)
        if in_place is not None:
            mask, data = (part.to(x.dtype) for part in in_place)
            x = (1 - mask) * data + mask * x
        if form.times is not None:
            t = t[: form.times] if form.times else t[0]
        t = t.to(form.time_dtype)
        t = t if form.told is None else form.told(t)
        t = t if time_weights is None else t[:, None] * time_weights
        if form.sample is not None:
            return self.model(**{form.sample: x}, **{str(form.time): t}, **cond)
        return self.model(x, t, **cond) if form.time is None else self.model(x, **{form.time: t}, **cond)


def form_of(call: Recorded, family: Family) -> Form:
    """As the pipeline called it."""
    (x, sample), (t, time) = call.get(0, family.sample), call.get(1, family.time)
    times = 0 if not t.dim() else None if len(t) == len(x) else 1
    # the dtype before `told`, which keeps that of floating point
    return Form(sample, time, times, t.dtype, family.told, family.channels, family.answered)


def conditioning_of(call: Recorded, family: Family, sample: Tensor, first: Tensor) -> dict[str, Any]:
    """Its other arguments, each marked as what it is, with what is joined to the sample and to the time, `first`."""
    (x, _), (t, _) = call.get(0, family.sample), call.get(1, family.time)
    own = {family.sample, family.time}
    cond = {name: _marked(value, name, family) for name, value in call.keywords.items() if name not in own}
    channels = sample.shape[family.channels]
    if x.shape[family.channels] > channels:
        cond[BEHIND] = x.narrow(family.channels, channels, x.shape[family.channels] - channels)
    if t.dim() > 1:
        cond[WEIGHTS] = Shared(t[:1] / first)
    return cond


def _marked(value: Any, name: str, family: Family) -> Any:
    return value if name in family.per_sample or isinstance(value, CONSTANTS) else Shared(value)


def halves(cond: Mapping[str, Any], batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first and the second samples of a batch for guidance.

    Raises:
        ValueError: a tensor of another batch.
    """

    def half(name: str, value: Any, at: int) -> Any:
        def cut(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if not leaf.dim() or len(leaf) != 2 * batch:
                raise ValueError(f"{name} must have {2 * batch} entries for guidance, got {tuple(leaf.shape)}")
            return leaf[at : at + batch]

        return mapped(cut, value)

    first, second = ({name: half(name, value, at) for name, value in cond.items()} for at in (0, batch))
    return first, second


class Samplers:
    """Those of a pipeline's networks as they are; of networks that it has no more they are forgotten."""

    def __init__(self, backend: str, concurrency: int) -> None:
        self._options: dict[str, Any] = {"backend": backend, "concurrency": concurrency}
        self._networks: tuple[Any, ...] = ()
        self._made: LRU[Sampler] = LRU(KEPT)

    def of(self, networks: tuple[Any, ...], form: Form, sample: Tensor, dtype: torch.dtype, graph: str) -> Sampler:
        """One for samples such as this."""
        if self._networks != networks:
            self._networks, self._made = networks, LRU(KEPT)
        shape, whole = (1, *sample.shape[1:]), not form.time_dtype.is_floating_point

        def make() -> Sampler:
            return Sampler(
                [AsDenoiser(network, form) for network in networks],
                shape=shape,
                device=sample.device,
                dtype=dtype,
                time_dtype=torch.int64 if whole else torch.float32,
                graph=graph,
                **self._options,
            )

        sampler = self._made.get((form, shape, sample.device, dtype, graph), make)
        adapters: Any = sampler.models
        for adapter in adapters:
            if adapter.training is not in_training(adapter.model):
                adapter.training = in_training(adapter.model)
        return sampler
