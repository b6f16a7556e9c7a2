"""What happens between two rows of a pipeline's loop: parts put back, the callback, the bar, an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from pndm_fast.integrations.stand_in import Asked, StandIn, Times
from pndm_fast.loop.results import Step


class Bar:
    """A pipeline's progress bar, which its loop's body does not move.

    Args:
        bar: tqdm's; total: its ticks; order: calls for each.
    """

    def __init__(self, bar: Any, total: int | None, order: int) -> None:
        self._bar, self._total, self._order = bar, total or 0, order

    @property
    def shows(self) -> bool:
        """Whether anybody sees it."""
        return not getattr(self._bar, "disable", False)

    def ends_step(self, i: int, calls: int) -> bool:
        """Whether pipelines count a step after call i of so many: they leave out calls before the first."""
        warmup = max(calls - self._total * self._order, 0)
        return i == calls - 1 or (i + 1 > warmup and (i + 1) % self._order == 0)

    def tick(self, i: int, calls: int) -> None:
        """After call i of so many."""
        if self.ends_step(i, calls):
            self._bar.update()

    def update(self, n: int = 1) -> None:
        """Of the body."""

    def over(self, times: Iterable[Any]) -> Iterator[Any]:
        """The times, with the bar shown meanwhile."""
        with self:
            yield from times

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


class Known:
    """What an inpainting pipeline puts back: it is noted where the pipeline prepares it.

    After each step but the last x <- (1 - m) (alpha data + sigma noise) + m x at the next level, then data.
    """

    def __init__(self, pipe: Any) -> None:
        self.data = self.noise = self.mask = None
        latents, mask = pipe.prepare_latents, pipe.prepare_mask_latents

        def prepare_latents(*arguments: Any, **keywords: Any) -> Any:
            made = latents(*arguments, **keywords)
            if len(made) > 2:
                _, self.noise, self.data, *_ = made
            return made

        def prepare_mask_latents(*arguments: Any, **keywords: Any) -> Any:
            made = mask(*arguments, **keywords)
            self.mask = made[0]
            return made

        pipe.__dict__.update(prepare_latents=prepare_latents, prepare_mask_latents=prepare_mask_latents)

    data: Tensor | None
    noise: Tensor | None
    mask: Tensor | None

    def put(self, latents: Tensor, scheduler: StandIn, index: int | None) -> Tensor:
        """The state with it: at a call's level, or as data."""
        assert self.data is not None and self.noise is not None and self.mask is not None
        data = self.data if index is None else scheduler.noised(self.data, self.noise, index)
        mask = self.mask[: len(latents)]
        return (1 - mask) * data + mask * latents


class Loop(Protocol):
    """Of a call."""

    pipe: Any
    inner: Any
    scheduler: StandIn
    times: Times | None
    bar: Bar | None


def of_steps(callback: Callable[..., Any], every: int, loop: Loop) -> Callable[..., dict[str, Any]]:
    """diffusers' older kind of callback, (step, t, latents) after every so many steps, as the newer one."""

    def called(pipe: Any, i: int, t: Tensor, tensors: Mapping[str, Any]) -> dict[str, Any]:
        assert loop.bar is not None and loop.times is not None
        if loop.bar.ends_step(i, len(loop.times)) and i % every == 0:
            callback(i // loop.scheduler.order, t, tensors["latents"])
        return {}

    return called


class Watch:
    """The `on_step` of a pipeline's loop.

    Attributes:
        latents: the state after the last row, where it was interrupted.
    """

    def __init__(
        self,
        loop: Loop,
        asked: Asked,
        tensors: Mapping[str, Any],
        known: Known | None,
        callback: Callable[..., Any] | None,
        bar: Bar | None,
    ) -> None:
        assert loop.times is not None
        self._loop, self._asked, self._known, self._callback, self._bar = loop, asked, known, callback, bar
        self._times = loop.times.unbind(0)
        self._tensors, self._asks = dict(tensors), "latents" in tensors
        self._versions = {name: _version(value) for name, value in tensors.items()}
        self._guidance = loop.inner.__dict__.get("_guidance_scale")
        self.latents: Tensor | None = None

    def __call__(self, step: Step) -> Tensor | None:
        """After a row.

        Raises:
            TypeError, ValueError: the callback changed what stays in a loop.
        """
        i, calls, latents = step.index, len(self._times), None
        if self._known is not None:
            at = None if i == calls - 1 else self._asked.first + i + 1
            latents = self._known.put(self._state(step), self._loop.scheduler, at)
        if self._callback is not None:
            latents = self._called(self._callback, i, step, latents)
        if self._bar is not None:
            self._bar.tick(i, calls)
        if any(one.__dict__.get("_interrupt") for one in (self._loop.inner, self._loop.pipe)):
            self.latents = self._state(step) if latents is None else latents
            step.cancel()
        return latents

    def _state(self, step: Step) -> Tensor:
        return step.state.to(self._asked.sample.dtype)

    def _called(self, callback: Callable[..., Any], i: int, step: Step, latents: Tensor | None) -> Tensor | None:
        """The state that the callback leaves, None where it is ours."""
        given = dict(self._tensors)
        shown = latents
        if self._asks:
            shown = given["latents"] = self._state(step) if latents is None else latents
        version = _version(shown)
        if "_current_timestep" in self._loop.inner.__dict__:
            self._loop.inner._current_timestep = self._times[i]
        returned = callback(self._loop.inner, i, self._times[i], given)
        if not isinstance(returned, Mapping):
            raise TypeError(f"callback_on_step_end must return a dict, got {type(returned).__name__}")
        self._check(returned)
        found: Tensor | None = returned.get("latents", shown)
        if self._loop.scheduler.denoises and i == len(self._times) - 1 and found is not shown:
            return latents  # the image is what was denoised before
        if found is not shown or _version(found) != version:
            return found
        return latents

    def _check(self, returned: Mapping[str, Any]) -> None:
        for name in {**self._tensors, **returned}:
            value = self._tensors.get(name)  # what was not given is of no loop of ours either
            kept = name in self._tensors and returned.get(name, value) is value
            if not (kept and _version(value) == self._versions[name]) and name != "latents":
                raise ValueError(f"callback_on_step_end must leave {name} as it is: one loop has one conditioning")
        if self._loop.inner.__dict__.get("_guidance_scale") != self._guidance:
            raise ValueError("callback_on_step_end must leave the guidance scale as it is: one loop has one plan")


def _version(value: Any) -> int | None:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None
