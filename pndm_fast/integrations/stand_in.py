"""What stands in a pipeline's own `__call__` for its scheduler and its network, so that the loop's body is run once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pndm_fast.integrations.diffusers import PlanScheduler
from pndm_fast.integrations.family import Family
from pndm_fast.integrations.settings import check_idle
from pndm_fast.loop.conditioning import mapped
from pndm_fast.plan.plan import Plan
from pndm_fast.solvers.foreign import step_eta


class Recorded(NamedTuple):
    """A call of the network that was not made."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    context: tuple[str, Mapping[str, Any]] | None = None  # name and more of the cache's context that it was made in

    def get(self, place: int, name: str) -> tuple[Any, str | None]:
        """An argument, and the name by which it was given, None where it was given by its place."""
        if name in self.keywords:
            return self.keywords[name], name
        return self.arguments[place], None


class Asked(NamedTuple):
    """A call of the scheduler's step: where its loop begins.

    Attributes:
        plan: the rows from there on; first: the index of its first among all.
        draws: of which rows normals are drawn.
        output: of the form of the network's; sample: the state.
    """

    plan: Plan
    first: int
    draws: Sequence[bool]
    output: Tensor
    sample: Tensor
    generator: Any


class Loop(Protocol):
    """What the stand-ins tell, and are told."""

    family: Family
    over: bool
    times: Times | None
    recorded: list[Recorded]

    def stepped(self, asked: Asked) -> Tensor:
        """The sample after the loop."""


class Times(Tensor):
    """A scheduler's times, whose iteration ends when the loop is over; what is made of them are plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _loop: Loop

    @classmethod
    def of(cls, times: Tensor, loop: Loop) -> Times:
        """The same times in a loop."""
        made: Times = times.as_subclass(cls)
        made._loop = loop
        return made

    def __getitem__(self, index: Any) -> Tensor:
        found: Tensor = super().__getitem__(index)
        return Times.of(found, self._loop) if found.dim() else found

    def __iter__(self) -> Iterator[Tensor]:
        self._loop.times = self
        for t in self.unbind(0):
            yield t
            if self._loop.over:
                return


class StandIn(PlanScheduler):
    """A scheduler whose first step is the whole loop."""

    _loop: Loop

    @classmethod
    def of(cls, scheduler: PlanScheduler, loop: Loop) -> StandIn:
        """One that shares the scheduler's plans, and changes nothing else of it."""
        made = cls.__new__(cls)
        made.__dict__.update(scheduler.__getstate__(), _loop=loop)
        return made

    @functools.wraps(PlanScheduler.set_timesteps)
    def set_timesteps(self, *arguments: Any, **keywords: Any) -> None:  # type: ignore[override]
        """As of any, with times that end with the loop."""
        super().set_timesteps(*arguments, **keywords)
        self.timesteps = Times.of(self.timesteps, self._loop)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        generator: Any = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """The sample after the last step."""
        check_idle(others)
        first = self._index_of(timestep) if self._begin_index is None else self._begin_index
        prepared = self._prepare(first, step_eta(self.config["_plan"], eta))
        plan = prepared.plan
        out = self._loop.stepped(Asked(plan, first, prepared.draws, model_output, sample, generator))
        # consistency models add no noise after their last call
        return self._result(
            out, out / plan.rows[-1].levels.y.position.alpha if self._consistency else None, return_dict
        )

    def noised(self, data: Tensor, noise: Tensor, index: int) -> Tensor:
        """Data at the level of the call of that index."""
        alpha, sigma = self._level(index)
        if self._in_sigma:
            alpha, sigma = 1.0, sigma / alpha
        noised: Tensor = alpha * data + sigma * noise
        return noised


class Output(NamedTuple):
    """A network's, however it is read."""

    sample: Tensor


class Recorder:
    """Notes how a network is called until the loop is over, and is that network in all else."""

    def __init__(self, network: Any, loop: Loop) -> None:
        object.__setattr__(self, "_network", network)
        object.__setattr__(self, "_loop", loop)
        object.__setattr__(self, "_context", None)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The network's, so that pipelines find a module."""
        return type(object.__getattribute__(self, "_network"))

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_network"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_network"), name, value)

    @contextlib.contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Of the calls within."""
        object.__setattr__(self, "_context", (name, where))
        yield
        object.__setattr__(self, "_context", None)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Zeros of the output's shape."""
        network, loop = (object.__getattribute__(self, name) for name in ("_network", "_loop"))
        if loop.over:
            return network(*arguments, **keywords)
        context = object.__getattribute__(self, "_context")
        call = Recorded(arguments, mapped(lambda leaf: leaf, keywords), context)  # whose dicts are used again
        loop.recorded.append(call)
        sample, _ = call.get(0, loop.family.sample)
        shape = list(sample.shape)
        if not loop.family.answered:
            shape[loop.family.channels] = getattr(network.config, "out_channels", None) or shape[loop.family.channels]
        return Output(sample.new_zeros(shape))
