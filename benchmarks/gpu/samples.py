"""Whole samples, by every way that a benchmark compares: ours in each mode, the network alone, diffusers' loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu import networks
from quality.solvers import distance
from speed.harness import Side
from torch import Tensor, nn

import pndm_fast as pf
from pndm_fast.loop.call import resolve
from pndm_fast.loop.network import result_tensor
from pndm_fast.loop.workspace import OutputSpec, Workspace
from pndm_fast.plan.plan import Plan

SCALE = 7.5  # of guidance, where a network takes a text

Network = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """A network, a plan and a batch.

    Attributes:
        name: of `networks.NETWORKS`.
        steps: of diffusers' PNDM: with its Runge-Kutta start for `small` and `cifar` (9 more calls), without for `sd`
            (1 more), as the published scheduler configurations say.
    """

    name: str
    batch: int
    steps: int = 50
    device: str = "cuda"

    @property
    def network(self) -> networks.Network:
        return networks.NETWORKS[self.name]

    @property
    def module(self) -> nn.Module:
        return networks.module(self.name, self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, *self.network.shape

    @functools.cached_property
    def plan(self) -> Plan:
        """Diffusers' own, so that both loops make the same calls."""
        return self.plan_of(self.steps)

    def plan_of(self, steps: int) -> Plan:
        arguments = dict(self.network.schedule)
        kind, skip = arguments.pop("beta_schedule"), arguments.pop("skip_prk_steps", False)
        make = getattr(pf.Schedule, kind)
        schedule = make(beta_start=arguments.pop("beta_start"), beta_end=arguments.pop("beta_end"))
        return pf.make_plan("plms" if skip else "f-pndm", schedule, steps=steps, compat="diffusers", **arguments)

    @functools.cached_property
    def texts(self) -> tuple[Tensor, Tensor] | None:
        """Unconditional and conditional embeddings."""
        if not self.network.text:
            return None
        generator = torch.Generator(self.device).manual_seed(1)
        both = torch.randn(2, networks.SEQUENCE, networks.WIDTH, generator=generator, device=self.device)
        uncond, cond = (one.expand(self.batch, -1, -1).to(self.network.dtype).contiguous() for one in both)
        return uncond, cond

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a call of our sampler."""
        if self.texts is None:
            return {"seeds": 0}
        uncond, cond = ({"encoder_hidden_states": text} for text in self.texts)
        return {"seeds": 0, "uncond": uncond, "cond": cond, "guidance": SCALE}

    @property
    def merged(self) -> dict[str, Tensor]:
        """Of a call of the network, both outputs of guidance at once."""
        return {} if self.texts is None else {"encoder_hidden_states": torch.cat(self.texts)}

    def sampler(self, graph: str = "auto", network: Network | None = None, **options: Any) -> pf.Sampler:
        options = {"shape": self.shape, "device": self.device, "dtype": self.network.dtype} | options
        return pf.Sampler(
            self.module if network is None else network, options.pop("plan", self.plan), graph=graph, **options
        )

    def run(self, sampler: pf.Sampler, plan: Plan | None = None) -> pf.Result:
        return sampler.run(pf.Request(plan=plan, **self.arguments))

    def sample(self, sampler: pf.Sampler, plan: Plan | None = None) -> Tensor:
        return self.run(sampler, plan).samples

    def side(self, call: Callable[[], Any]) -> Side:
        """A contestant whose one call is a whole sample."""

        def run(calls: int) -> None:
            for _ in range(calls):
                call()
            synchronize(self.device)

        return Side(run, most=1)

    def ours(self, sampler: pf.Sampler, plan: Plan | None = None) -> Side:
        return self.side(lambda: self.sample(sampler, plan))


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||; NaN, which passes no bound, where either holds one."""
    return float(distance(a, b).norm() / distance(b, torch.zeros_like(b)).norm())


class Alone:
    """Nothing but the network: one captured call of it, replayed for each row."""

    def __init__(self, job: Job) -> None:
        copies = 1 if job.texts is None else 2
        x = torch.randn((copies * job.batch, *job.network.shape), device=job.device).to(job.network.dtype)
        t = torch.full((copies * job.batch,), 500.0, device=job.device)
        merged = job.merged

        def call() -> None:
            self.out = result_tensor(job.module(x, t, **merged))

        with torch.no_grad():
            self.replay = captured(call) if job.device != "cpu" else call

    @torch.no_grad()
    def __call__(self, calls: int) -> None:
        for _ in range(calls):
            self.replay()


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    """A replay of what it launches, after the customary warm-up on another stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class Unrolled:
    """All rows of a plan in one graph of torch's: no loop on the device, and a capture for each number of steps."""

    def __init__(self, job: Job) -> None:
        self.job, self.merged, sampler = job, job.merged, job.sampler("eager")
        call = resolve(pf.Request(**job.arguments), sampler.machine.setup)
        [(kind, count)] = call.segments
        evaluation = sampler.machine.evaluations(call)[kind]
        self.segment = sampler.machine.segment(call, evaluation, call.positions(), kind, count, None)
        self.workspace = Workspace(self.segment.buffers(OutputSpec(job.network.dtype, writes_input=False)))
        self.step = self.workspace.bind(self.segment.backend).step
        with torch.no_grad():
            self.begin()
            self.replay = self._captured() if job.device != "cpu" else self.rows

    def _captured(self) -> Callable[[], None]:
        for _ in range(3):
            self.step(result_tensor(self.job.module(self.workspace.x_in, self.workspace.t, **self.merged)), None, None)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.rows()
        return graph.replay

    def begin(self) -> None:
        self.segment.begin(self.workspace)

    def rows(self) -> None:
        for _ in range(self.job.plan.nfe):
            out = result_tensor(self.job.module(self.workspace.x_in, self.workspace.t, **self.merged))
            self.step(out, None, None)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        self.begin()
        self.replay()
        return self.workspace.state()


class DiffusersLoop:
    """The loop of diffusers' pipelines around a network and its `PNDMScheduler`.

    Args:
        state: dtype of the sample between calls: pipelines keep the network's. Ours is float32 always.
        clone: copy each output, which networks that answer in static memory need.
    """

    def __init__(
        self, job: Job, network: Network | None = None, state: torch.dtype | None = None, clone: bool = False
    ) -> None:
        from diffusers import PNDMScheduler

        self.job, self.network, self.clone = job, job.module if network is None else network, clone
        self.state = state or job.network.dtype
        self.scheduler = PNDMScheduler(**job.network.schedule)
        self.merged = job.merged

    @torch.no_grad()
    def __call__(self, start: Tensor | None = None) -> Tensor:
        """A sample, from that start or torch's own normals."""
        job, scheduler = self.job, self.scheduler
        scheduler.set_timesteps(job.steps, device=job.device)
        x = torch.randn(job.shape, device=job.device) if start is None else start
        x = x.to(self.state) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = x if job.texts is None else torch.cat([x] * 2)
            out = self._call(scheduler.scale_model_input(both, t).to(job.network.dtype), t)
            if job.texts is not None:
                uncond, cond = out.chunk(2)
                out = uncond + SCALE * (cond - uncond)
            x = scheduler.step(out, t, x, return_dict=False)[0]
        return x

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        if self.clone:
            torch.compiler.cudagraph_mark_step_begin()
        out = result_tensor(self.network(x, t, **self.merged)).to(self.state)
        return out.clone() if self.clone and out.dtype is self.job.network.dtype else out
