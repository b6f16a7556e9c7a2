"""`accelerate`: a pipeline of diffusers whose loop is one call of a `Sampler`."""

from __future__ import annotations

import functools
from typing import Any

from pndm_fast.integrations.denoise import Call, Kept
from pndm_fast.integrations.families import family_of
from pndm_fast.loop.checks import check_sizes
from pndm_fast.loop.request import ON_NAN
from pndm_fast.plan.checks import choose
from pndm_fast.row.backends import BACKENDS
from pndm_fast.runtime.graphs import GRAPHS


def accelerate(
    pipe: Any, *, graph: str = "auto", backend: str = "auto", concurrency: int = 1, on_nan: str = "raise"
) -> Any:
    """The pipeline with its denoising loop in one call of a `Sampler`: same arguments, same images, fewer launches.

    What is returned is of a subclass of the pipeline's class and shares all that the pipeline has: what is loaded into
    one, moved or replaced there is so in the other. In a call the pipeline's own code prepares and decodes; its loop's
    body is run once, for what it gives to the network. The scheduler's plan is that of `PlanScheduler`, which may be
    the pipeline's scheduler too: where no plan does what a scheduler does, it is refused.

    A call changes nothing of the pipeline, so that several threads may make one each; a callback is given the call's
    own copy. It may return other latents, where the plan can go on from them; one loop has one conditioning and one
    guidance. `_interrupt = True`, there or at the pipeline, ends the loop after a step that a callback or a bar sees.

    `report` is the sampler's of the last call that ended, None where it was interrupted.

    Args:
        pipe: see `families.FAMILIES`.
        graph, backend, concurrency: of `Sampler`. With `callback_on_step_end`, which may change the network, graph
            "auto" is eager, as where a network has hooks that offload it.
        on_nan: of `Request`; pipelines themselves ignore.

    Raises:
        TypeError, ValueError: a pipeline or a scheduler that is not known, with the reason.
    """
    kept = _kept_of(pipe, graph=graph, backend=backend, concurrency=concurrency, on_nan=on_nan)
    made: Any = object.__new__(_class_of(kept.base))
    object.__setattr__(made, "__dict__", pipe.__dict__)
    object.__setattr__(made, "_kept", kept)
    return made


def _kept_of(
    pipe: Any, *, graph: str = "auto", backend: str = "auto", concurrency: int = 1, on_nan: str = "raise"
) -> Kept:
    kept = Kept(
        getattr(type(pipe), "_accelerated", type(pipe)),
        family_of(pipe),
        choose("graph", graph, GRAPHS),
        choose("backend", backend, BACKENDS),
        check_sizes("concurrency", [concurrency])[0],
        choose("on_nan", on_nan, ON_NAN),
    )
    kept.scheduler(pipe.scheduler)
    return kept


def _run(pipe: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """A call of an accelerated pipeline."""
    kept: Kept = pipe._kept
    bound = kept.signature.bind(pipe, *arguments, **keywords)
    bound.apply_defaults()
    kept.family.check({**bound.arguments, **bound.arguments.get("kwargs", {})})
    call = Call(pipe, kept, bound.arguments)
    bound.arguments["self"] = call.inner
    result = kept.base.__call__(*bound.args, **bound.kwargs)
    kept.report = call.report
    return result


@functools.cache
def _class_of(base: Any) -> Any:
    """A pipeline's class with another `__call__`."""

    @functools.wraps(base.__init__)
    def init(self: Any, *arguments: Any, **keywords: Any) -> None:  # as from_pipe and from_pretrained make one
        base.__init__(self, *arguments, **keywords)
        object.__setattr__(self, "_kept", _kept_of(self))

    @functools.wraps(base.__call__)
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return _run(self, arguments, keywords)

    def reduced(self: Any) -> Any:
        plain = object.__new__(base)
        plain.__dict__.update(self.__dict__)
        return functools.partial(accelerate, **self._kept.options), (plain,)

    own = {
        "__init__": init,
        "__call__": call,
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__reduce__": reduced,
        "__slots__": ("_kept",),
        "_accelerated": base,
        "report": property(lambda self: self._kept.report, doc="Of the last call that ended, a `Report`."),
    }
    return type(base.__name__, (base,), own)
