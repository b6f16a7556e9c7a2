"""One call of a pipeline: what its loop's body was given becomes one request, run once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pndm_fast.integrations.as_denoiser import IN_PLACE, Answers, Samplers, conditioning_of, form_of, halves
from pndm_fast.integrations.contexts import check_caches, hooks_of, in_contexts
from pndm_fast.integrations.diffusers import PlanScheduler, normals_like
from pndm_fast.integrations.family import Family
from pndm_fast.integrations.stand_in import Asked, Recorded, Recorder, StandIn, Times
from pndm_fast.integrations.watching import Bar, Known, Watch, of_steps
from pndm_fast.loop.conditioning import Shared
from pndm_fast.loop.request import Conditioning, Request
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
        self.base, self.family, self.signature = base, family, inspect.signature(base.__call__)
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

    def plan(self, plan: Plan, rows: int, models: Sequence[int]) -> Plan:
        """A plan that ends early, or that calls several networks: the same for the same."""
        if rows == plan.nfe and not any(models):
            return plan

        def make() -> tuple[Plan, Plan]:
            return plan, replace(plan, rows=plan.rows[:rows]).with_models(models)

        return self._plans.get((id(plan), rows, tuple(models)), make)[1]


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
        self.bar: Bar | None = None
        self._known = Known(self.inner) if self.family.known else None
        self._in_place: tuple[Tensor, Tensor] | None = None
        if self.family.in_place:
            self.inner.__dict__["prepare_latents"] = self._prepare_latents
        self._asked: Asked | None = None
        self._answers: Answers | None = None
        self._callback: Callable[..., Any] | None = arguments.get("callback_on_step_end")
        # the body then goes on to there before the loop is run
        self._hooked = self._callback is not None or self._known is not None
        if arguments.get("callback") is not None:
            self._callback = of_steps(arguments["callback"], arguments["callback_steps"], self)
            arguments["callback"] = None
        if self._hooked:
            names = getattr(self._callback, "tensor_inputs", arguments["callback_on_step_end_tensor_inputs"])
            if "denoised" in names:
                raise ValueError(
                    "callback_on_step_end_tensor_inputs must not have 'denoised' in an accelerated pipeline, "
                    f"got {list(names)}: it is known after the last step alone"
                )
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
            if network is not None:
                inner.__dict__[name] = Recorder(network, self)
        return inner

    def _prepare_latents(self, *arguments: Any, **keywords: Any) -> Any:
        """Of a pipeline whose network may see data in parts of its input."""
        made = type(self.inner).prepare_latents(self.inner, *arguments, **keywords)
        if len(made) == 3:
            _, data, mask = made
            self._in_place = mask, data
        return made

    def _progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        order = self.scheduler.order if iterable is None else 1
        total = total if iterable is None else len(iterable)
        self.bar = bar = Bar(type(self.inner).progress_bar(self.inner, total=total), total, order)
        return bar if iterable is None else bar.over(iterable)

    def stepped(self, asked: Asked) -> Tensor:
        """The sample after the loop; as it was where our callback is still to come."""
        if self._hooked:
            self._asked = asked
            return asked.sample
        return self._denoise(asked, {"latents": asked.sample})

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
        networks, models = self._networks()
        plan = self.kept.plan(asked.plan, len(self.times), models)
        if self.family.check_plan is not None:
            self.family.check_plan(plan)
        watch = self._watch(asked, plan, tensors, sample)
        cond, uncond = self._conditioning(networks, guidance is not None, sample)
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
        out = self._run(request, networks, sample, watch).to(sample.dtype)
        return torch.cat([out, out]) if twice else out

    def _networks(self) -> tuple[dict[str, Any], list[int]]:
        """Those that the loop calls, and which of them each of its rows.

        Raises:
            ValueError: the pipeline lacks one.
        """
        assert self.times is not None
        models = [0] * len(self.times)
        if self.family.models is not None:
            models = list(self.family.models(self.inner, self.arguments))
        used = sorted(set(models))
        networks = {name: getattr(self.pipe, name) for name in [self.family.networks[i] for i in used]}
        for name, network in networks.items():
            if network is None:
                raise ValueError(f"{name} must be a network where the loop calls it, got None")
        return networks, [used.index(i) for i in models]

    def _run(self, request: Request, networks: dict[str, Any], sample: Tensor, watch: Watch | None) -> Tensor:
        call = self.recorded[0]
        x, _ = call.get(0, self.family.sample)
        graph, reason = self._graph_of(networks, sample.device)
        sampler = self.kept.samplers.of(tuple(networks.values()), form_of(call, self.family), sample, x.dtype, graph)
        adapter: Any = sampler.model
        self._answers = adapter.answers
        try:
            result = sampler.run(request)
        except Cancelled:
            assert watch is not None and watch.latents is not None
            return watch.latents
        self.report = result.report._replace(graph_reason=reason) if reason else result.report
        return result.samples

    def _conditioning(
        self, networks: dict[str, Any], guided: bool, sample: Tensor
    ) -> tuple[Conditioning, Conditioning | None]:
        """Of the network's calls in the body: both halves of one, or one each."""
        assert self.times is not None
        cached = check_caches(networks, self.recorded)
        trees = [conditioning_of(call, self.family, sample, self.times[0]) for call in self.recorded]
        for tree in trees if self._in_place is not None else ():
            tree[IN_PLACE] = Shared(self._in_place)
        if guided and len(trees) == 1:
            first, second = halves(trees[0], len(sample))
            return (first, second) if self.family.cond_first else (second, first)
        each: list[Conditioning] = [*trees]
        if cached:
            sigmas = self.scheduler.sigmas.tolist()
            each = [in_contexts(*one, sigmas) for one in zip(trees, self.recorded, strict=True)]
        return each[0], each[1] if guided else None

    def _noise(self, asked: Asked, batch: int) -> Callable[[int], Tensor]:
        """The pipeline's numbers, in its order: of the dtype that the network's output has."""
        output = asked.output

        def draw(index: int) -> Tensor:
            dtype = None if self._answers is None else self._answers.dtype
            return normals_like(output if dtype is None else output.to(dtype), asked.generator)[:batch]

        return draw

    def _watch(self, asked: Asked, plan: Plan, tensors: Mapping[str, Any], sample: Tensor) -> Watch | None:
        known = self._known if self._known is not None and self._puts_back(sample) else None
        if known is not None and not all(plan.restarts[:-1]):
            raise ValueError(
                f"scheduler must go on from a state that is put back in part, got {plan.solver}: inpainting with a "
                "network that is not told the mask needs one of one call a step without a corrector, such as "
                "DPMSolverMultistepScheduler"
            )
        bar = self.bar if self.bar is not None and self.bar.shows else None
        if known is None and self._callback is None and bar is None:
            return None
        return Watch(self, asked, tensors, known, self._callback, bar)

    def _puts_back(self, sample: Tensor) -> bool:
        x, _ = self.recorded[0].get(0, self.family.sample)
        return bool(x.shape[self.family.channels] == sample.shape[self.family.channels])

    def _graph_of(self, networks: dict[str, Any], device: torch.device) -> tuple[str, str]:
        """The graph mode, and why it is not the one that was asked for.

        Raises:
            ValueError: a mode was named and cannot be had.
        """
        graph = self.kept.graph
        if graph == "eager" or device.type != "cuda":
            return graph, ""
        parts = [part for network in networks.values() for part in network.modules()]
        if any(hasattr(part, "_hf_hook") for part in parts) or hooks_of(networks):
            reason = "the network has hooks, such as those of offloading, which a graph would leave out"
            if graph != "auto":
                raise ValueError(f"graph {graph!r} cannot be had: {reason}")
            return "eager", reason
        if graph == "auto" and self._callback is not None:
            return "eager", "callback_on_step_end may change the network between two steps"
        return graph, ""
