"""One call of a pipeline: what its loop's body was given becomes one request, run once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pndm_fast.integrations.as_denoiser import Samplers, conditioning_of, form_of, halves
from pndm_fast.integrations.diffusers import PlanScheduler, normals_like
from pndm_fast.integrations.families import Family
from pndm_fast.integrations.stand_in import Asked, Recorded, Recorder, StandIn, Times
from pndm_fast.integrations.watching import Bar, Known, Watch
from pndm_fast.loop.request import Request
from pndm_fast.loop.results import Cancelled, Report
from pndm_fast.loop.starts import State
from pndm_fast.plan.plan import Plan
from pndm_fast.runtime.cache import LRU


class Kept:
    """What an accelerated pipeline keeps between its calls.

    Args:
        base: the pipeline's own class; family: of its `__call__`.
        graph, backend, concurrency, on_nan: of `accelerate`.

    Attributes:
        report: of the last call that ended.
    """

    def __init__(self, base: Any, family: Family, graph: str, backend: str, concurrency: int, on_nan: str) -> None:
        self.base, self.family = base, family
        self.options = {"graph": graph, "backend": backend, "concurrency": concurrency, "on_nan": on_nan}
        self.graph, self.on_nan = graph, on_nan
        self.samplers = Samplers(backend, concurrency)
        self.report: Report | None = None
        self._plans: LRU[tuple[Plan, Plan]] = LRU()
        self._scheduler: tuple[Any, Any, PlanScheduler] | None = None

    def scheduler(self, given: Any) -> PlanScheduler:
        """The plans of the pipeline's scheduler, with those of earlier calls as long as it is the same.

        Raises:
            TypeError, ValueError: what no plan does.
        """
        known = self._scheduler
        if known is None or known[0] is not given or known[1] is not given.config:
            made = PlanScheduler.from_config(given)
            made._follow_config()
            known = self._scheduler = given, given.config, made
        return known[2]

    def first_rows(self, plan: Plan, rows: int) -> Plan:
        """A plan that ends early: the same for the same."""
        if rows == plan.nfe:
            return plan
        return self._plans.get((id(plan), rows), lambda: (plan, replace(plan, rows=plan.rows[:rows])))[1]


class Call:
    """A call of a pipeline, from its arguments to what its loop leaves.

    Args:
        pipe: the pipeline, which stays as it is.
        arguments: of the call, by name.

    Attributes:
        inner: the pipeline with stand-ins, whose `__call__` is to be run with `arguments`.
        over: whether the loop is; times: its times; recorded: calls of the network in its body.
        report: of the sampler.
    """

    def __init__(self, pipe: Any, kept: Kept, arguments: dict[str, Any]) -> None:
        self.pipe, self.kept, self.family, self.arguments = pipe, kept, kept.family, arguments
        self.over = False
        self.times: Times | None = None
        self.report: Report | None = None
        self.recorded: list[Recorded] = []
        self.scheduler = StandIn.of(kept.scheduler(pipe.scheduler), self)
        self.inner = self._stand_in()
        self._bar: Bar | None = None
        self._known = Known(self.inner) if self.family.known else None
        self._asked: Asked | None = None
        self._callback: Callable[..., Any] | None = arguments.get("callback_on_step_end")
        # the body then goes on to there before the loop is run
        self._hooked = self._callback is not None or self._known is not None
        if self._hooked:
            names = getattr(self._callback, "tensor_inputs", arguments["callback_on_step_end_tensor_inputs"])
            arguments |= {"callback_on_step_end": self._after_body, "callback_on_step_end_tensor_inputs": names}

    def _stand_in(self) -> Any:
        """A copy of the pipeline, whose loop is ours."""
        inner, own = object.__new__(self.kept.base), self.pipe.__dict__
        if own.get("_interrupt"):  # as each call of a pipeline begins
            own["_interrupt"] = False
        inner.__dict__.update(own, scheduler=self.scheduler, progress_bar=self._progress_bar)
        inner.__dict__["maybe_free_model_hooks"] = self.pipe.maybe_free_model_hooks  # of its own modules
        for name in self.family.networks:
            network = own.get(name)
            if getattr(network, "is_cache_enabled", False) is True:
                raise ValueError(f"{name} must have no cache enabled, whose contexts a Sampler does not enter")
            if network is not None:
                inner.__dict__[name] = Recorder(network, self)
        return inner

    def _progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        order = self.scheduler.order if iterable is None else 1
        total = total if iterable is None else len(iterable)
        self._bar = bar = Bar(type(self.inner).progress_bar(self.inner, total=total), total, order)
        return bar if iterable is None else bar.over(iterable)

    def stepped(self, asked: Asked) -> Tensor:
        """The sample after the loop; as it was where our callback is still to come."""
        if self._hooked:
            self._asked = asked
            return asked.sample
        return self._denoise(asked, {})

    def _after_body(self, pipe: Any, i: int, t: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        assert self._asked is not None
        out = self._denoise(self._asked, tensors)
        return {"latents": out, "denoised": out / self._asked.plan.rows[-1].levels.y.position.alpha}

    def _denoise(self, asked: Asked, tensors: Mapping[str, Any]) -> Tensor:
        """The one call of a sampler."""
        self.over = True
        assert self.times is not None
        guidance = self.family.guidance(self.inner, self.arguments)
        twice = self.family.doubled and guidance is not None
        sample = asked.sample.chunk(2)[0] if twice else asked.sample
        plan = self.kept.first_rows(asked.plan, len(self.times))
        watch = self._watch(asked, plan, tensors, sample)
        cond, uncond = self._conditioning(guidance is not None, sample)
        if guidance is not None and len(self.recorded) > 1:
            guidance = replace(guidance, calls="separate")
        request = Request(
            plan=plan,
            start=State(sample),
            noise_sampler=self._noise(asked, len(sample)) if any(plan.noisy) else None,
            cond=cond,
            uncond=uncond,
            guidance=guidance,
            on_step=watch,
            on_nan=self.kept.on_nan,
        )
        out = self._run(request, sample, watch).to(sample.dtype)
        return torch.cat([out, out]) if twice else out

    def _run(self, request: Request, sample: Tensor, watch: Watch | None) -> Tensor:
        network = getattr(self.pipe, self.family.networks[0])
        call = self.recorded[0]
        x, _ = call.get(0, self.family.sample)
        graph, reason = self._graph_of(network, sample.device)
        sampler = self.kept.samplers.of(network, form_of(call, self.family), sample, x.dtype, graph)
        try:
            result = sampler.run(request)
        except Cancelled:
            assert watch is not None and watch.latents is not None
            return watch.latents
        self.report = result.report._replace(graph_reason=reason) if reason else result.report
        return result.samples

    def _conditioning(self, guided: bool, sample: Tensor) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Of the network's calls in the body: both halves of one, or one each."""
        trees = [conditioning_of(call, self.family, sample) for call in self.recorded]
        if not guided:
            return trees[0], None
        if len(trees) > 1:
            return trees[0], trees[1]
        first, second = halves(trees[0], len(sample))
        return (first, second) if self.family.cond_first else (second, first)

    def _noise(self, asked: Asked, batch: int) -> Callable[[int], Tensor]:
        """The pipeline's numbers, in its order."""
        return lambda index: normals_like(asked.output, asked.generator)[:batch]

    def _watch(self, asked: Asked, plan: Plan, tensors: Mapping[str, Any], sample: Tensor) -> Watch | None:
        known = self._known if self._known is not None and self._puts_back(sample) else None
        if known is not None and not all(plan.restarts[:-1]):
            raise ValueError(
                f"scheduler must go on from a state that is put back in part, got {plan.solver}: inpainting with a "
                "network that is not told the mask needs one of one call a step without a corrector, such as "
                "DPMSolverMultistepScheduler"
            )
        bar = self._bar if self._bar is not None and self._bar.shows else None
        if known is None and self._callback is None and bar is None:
            return None
        return Watch(self, asked, tensors, known, self._callback, bar)

    def _puts_back(self, sample: Tensor) -> bool:
        x, _ = self.recorded[0].get(0, self.family.sample)
        return bool(x.shape[self.family.channels] == sample.shape[self.family.channels])

    def _graph_of(self, network: Any, device: torch.device) -> tuple[str, str]:
        """The graph mode, and why it is not the one that was asked for.

        Raises:
            ValueError: a mode was named and cannot be had.
        """
        graph = self.kept.graph
        if graph == "eager" or device.type != "cuda":
            return graph, ""
        if any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in network.modules()):
            reason = "the network has hooks, such as those of offloading, which a graph would leave out"
            if graph != "auto":
                raise ValueError(f"graph {graph!r} cannot be had: {reason}")
            return "eager", reason
        if graph == "auto" and self._callback is not None:
            return "eager", "callback_on_step_end may change the network between two steps"
        return graph, ""
