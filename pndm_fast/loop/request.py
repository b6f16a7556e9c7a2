"""What is asked of one call: a frozen record, the one place where each of these arguments is declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pndm_fast.loop.guidance import Guidance
from pndm_fast.loop.results import Cancel, Step
from pndm_fast.loop.starts import Image, Inpaint, Noise, Start, State
from pndm_fast.plan.checks import check_type, shown
from pndm_fast.plan.hints import in_words
from pndm_fast.plan.plan import Plan

Conditioning = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]

ON_NAN = ("raise", "mark", "ignore")


@in_words("Request")
@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """What one call draws, and how it is watched.

    Args:
        plan: a plan, or one for each sample, which may differ in solver and length; default the sampler's.
        seeds: s means s, s + 1, ...; a sequence gives one for each sample, and so the batch.
        start: `Noise`, `State`, `Image` or `Inpaint`; default the seeds' noise.
        noise_sampler: index -> standard normals [B, *shape], in place of Philox: 0 is x_T, 1 the prologue's, i + 2
            row i's.
        cond: the network's keyword arguments; uncond: those without condition, for guidance; keys that it lacks come
            from cond. A tensor has one entry for each sample, [B, ...], or one for all, [1, ...]; `Shared(value)` is
            the same for all whatever its shape, and `PerSample(list)` one entry for each. Numbers, words, None and
            tensors without dimensions are the same for all; lists, tuples and mappings hold more of these. Anything
            else is refused. Or a function of the row, 0, 1, ..., that returns such a mapping: it is called once for
            each row, before that row's network call, and only values may differ from row 0's.
        guidance: a scale, one for each row, or a `Guidance`; default the plan's.
        on_step: called after each row with a `Step`. On a CUDA device the row before has ended, this one is under way.
            None, a number or a word changes nothing. A tensor [B, *shape] that it returns is the state, at the level
            `step.row.levels.y`, from which the next row goes on; after the last row it is the sample. That can be after
            rows which end a step and leave later ones nothing but slots (`Plan.restarts`). Slots stay: a one-step
            solver is exact from there on, a multistep one combines outputs at the old states with those at the new for
            as many rows as it looks back. Samples that have ended keep theirs, and what `Inpaint` knows is put into the
            new state.
        cancel: a `Cancel` by which another thread can end the call.
        on_nan: raise `NonFiniteError` at the end, mark (those samples become NaN), or ignore.
        progress: whether to draw a bar over the rows on stderr.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    plan: Plan | Sequence[Plan] | None = None
    seeds: int | Sequence[int] = 0
    start: Start | None = None
    noise_sampler: Callable[[int], Tensor] | None = None
    cond: Conditioning | None = None
    uncond: Conditioning | None = None
    guidance: float | Sequence[float] | Guidance | None = None
    on_step: Callable[[Step], Any] | None = None
    cancel: Cancel | None = None
    on_nan: str = "raise"
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "plan"):  # a request may be run again
            if isinstance(getattr(self, name), Iterator):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.on_nan not in ON_NAN:
            raise ValueError(f"on_nan must be one of {', '.join(ON_NAN)}, got {shown(self.on_nan)}")
        for name in ("on_step", "noise_sampler"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, got {shown(value)}")
        check_type("progress", self.progress, bool)
        if self.cancel is not None and not isinstance(self.cancel, Cancel):
            raise TypeError(f"cancel must be a Cancel, got {type(self.cancel).__name__}")
        if self.start is not None and not isinstance(self.start, (Noise, State, Image, Inpaint)):
            got = type(self.start).__name__
            raise TypeError(f"start must be a Noise, State, Image or Inpaint, which says what its tensor is, got {got}")
        if isinstance(self.start, Inpaint) and self.noise_sampler is not None:
            raise ValueError("noise_sampler cannot go with Inpaint: what is known is noised as the samples' start was")
        if self.guidance is not None and not isinstance(self.guidance, Guidance):
            object.__setattr__(self, "guidance", Guidance(self.guidance))


def check_request(request: Any, name: str = "request") -> Request:
    """A request, and nothing else.

    Raises:
        TypeError: naming what was got.
    """
    if not isinstance(request, Request):
        raise TypeError(f"{name} must be a Request, got {type(request).__name__}")
    return request
