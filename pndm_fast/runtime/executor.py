"""Where a trajectory runs: buffers that it alone uses for the time, and what executes its rows."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from pndm_fast.loop import nvtx as ranges
from pndm_fast.loop.checks import check_choice
from pndm_fast.loop.results import BadSample, Cancel, Report
from pndm_fast.loop.trajectory import Rows, Trajectory
from pndm_fast.loop.workspace import BufferForm, Probe, Workspace
from pndm_fast.row.device import stream_of
from pndm_fast.runtime.cache import Memory
from pndm_fast.runtime.cuda import Event, cuda_of
from pndm_fast.runtime.graphs import AUTO, GRAPHS, CannotCapture, Graph, Pool, graph_key
from pndm_fast.runtime.guards import obstacle


@dataclass(frozen=True)
class Place:
    """Begun buffers with an executor of rows.

    Attributes:
        graph: while, replay or eager; `reason`: why not a better one.
        graph_bytes, nodes: of the captured iteration.
        cancelable: for a loop on the device, what lets a `Cancel` end it.
    """

    workspace: Workspace
    rows: Rows
    graph: str = "eager"
    reason: str = ""
    graph_bytes: int = 0
    nodes: dict[str, int] = field(default_factory=dict)
    cancelable: Callable[[Cancel], AbstractContextManager[None]] | None = None


def check_graph(graph: str, device: torch.device) -> str:
    """A graph mode that the device could have.

    Raises:
        ValueError: unknown, or named where there is no CUDA device.
    """
    check_choice("graph", graph, GRAPHS)
    if graph in AUTO and cuda_of(device) is None:
        raise ValueError(f"graph {graph!r} cannot be had: {_need(device)}")
    return graph


def _need(device: torch.device) -> str:
    return f"graphs need a CUDA device, got {device}"


@contextlib.contextmanager
def take_place(memory: Memory, trajectory: Trajectory, graph: str, concurrency: int) -> Iterator[Place]:
    """The best place that `graph` allows.

    Raises:
        ValueError: a graph mode was named and cannot be had, with the reason.
    """
    place, why = None, "graph='eager'"
    with contextlib.ExitStack() as stack:
        if graph != "eager":
            modes = AUTO if graph == "auto" else (graph,)
            try:
                place = stack.enter_context(_graphed(memory, trajectory, modes, concurrency))
            except CannotCapture as reason:
                if graph in AUTO:
                    raise ValueError(f"graph {graph!r} cannot be had: {reason}") from reason
                why = str(reason)
        # not while the reason is being handled: a network's own error would be shown as its consequence
        yield stack.enter_context(_eager(memory, trajectory, why)) if place is None else place


@contextlib.contextmanager
def _graphed(memory: Memory, trajectory: Trajectory, modes: tuple[str, ...], concurrency: int) -> Iterator[Place]:
    cuda = cuda_of(trajectory.device)
    if cuda is None:
        raise CannotCapture(_need(trajectory.device))
    reason = obstacle(trajectory.model, trajectory.negative)
    if reason:
        raise CannotCapture(reason)
    if modes == AUTO and memory.first_time(_probe_key(trajectory)):
        raise CannotCapture("captured when it comes a second time")
    probe = _probe(memory, trajectory)
    key = modes, concurrency, graph_key(trajectory, probe)
    refused = memory.refused.peek(key)
    if refused is not None:
        raise CannotCapture(refused)

    def make(replaces: bool) -> Graph:
        graph = Graph(cuda, trajectory, probe, modes)
        memory.count(replaces)
        return graph

    def rows(index: int, count: int) -> None:
        trajectory.calls += count * (1 if trajectory.apart is None else 2)
        with ranges.marked("rows"):
            graph.launch(count)

    with contextlib.ExitStack() as stack:
        try:
            graph = stack.enter_context(memory.graphs.get(key, lambda: Pool(concurrency)).take(make))
        except CannotCapture as refusal:
            if not refusal.passing:
                memory.refused.put(key, str(refusal))
            raise
        stack.callback(graph.end)
        with ranges.marked("begin"):
            graph.begin(trajectory)
        yield Place(graph.workspace, rows, graph.mode, graph.reason, graph.bytes, graph.nodes, graph.cancelable)


def _probe(memory: Memory, trajectory: Trajectory) -> Probe:
    """What is known of the network's outputs, or a first call's news."""
    key = _probe_key(trajectory)
    probe = memory.probes.peek(key)
    if probe is None:
        probe = trajectory.first_call()[0]
        memory.probes.put(key, probe)
    trajectory.apart = probe.apart
    return probe


def _probe_key(trajectory: Trajectory) -> Hashable:
    request, kind = trajectory.request, trajectory.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    return (
        trajectory.stretch.model,
        request.batch,
        request.state_dtype,
        trajectory.cfg_copies,
        trajectory.apart,
        autocast,
    )


@contextlib.contextmanager
def _eager(memory: Memory, trajectory: Trajectory, reason: str) -> Iterator[Place]:
    """Buffers of the form that the network is known to need, if its first output still has it; else of a new one."""
    apart = trajectory.apart
    key = _probe_key(trajectory)
    probe = memory.probes.peek(key)
    if probe is not None:
        trajectory.apart = probe.apart
        idle = _idle(memory, trajectory.form(probe))
        try:
            workspace = idle.pop()
        except IndexError:
            workspace = Workspace(trajectory.form(probe))
        try:
            trajectory.begin(workspace)
            first = trajectory.evaluate(workspace)
            if trajectory.fits(workspace, first):
                yield Place(workspace, trajectory.eager(workspace, first), reason=reason)
                return
        finally:
            idle.append(workspace)
        trajectory.apart = apart  # the network has changed since: learn its form anew
    probe, workspace, first_or_none = trajectory.first_call()
    memory.probes.put(key, probe)
    yield Place(workspace, trajectory.eager(workspace, first_or_none), reason=reason)


def _idle(memory: Memory, form: BufferForm) -> deque[Workspace]:
    # buffers go back while their last kernels may still run: only the same stream may take them up
    return memory.idle.get((form, stream_of(form.device)), deque)


def report_of(
    memory: Memory, ran: Sequence[tuple[Trajectory, Place]], bad: tuple[BadSample, ...], seconds: float
) -> Report:
    """How a call went, stretch by stretch."""
    trajectory, place = ran[-1]
    request, form = trajectory.request, place.workspace.form
    guided = [t.apart or "batched" for t, _ in ran if t.stretch.guided]
    return Report(
        nfe=request.nfe,
        calls=sum(t.calls for t, _ in ran),
        seconds=seconds,
        batch=request.real,
        device=str(form.device),
        network_dtype=str(form.network).removeprefix("torch."),
        backend=trajectory.backend.name,
        direct=form.direct,
        layout="contiguous" if form.channels == 1 else "channels_last",
        guidance=guided[0] if guided else "none",
        buffer_bytes=max(p.workspace.bytes for _, p in ran),
        graph=", ".join(dict.fromkeys(p.graph for _, p in ran)),
        graph_reason="; ".join(dict.fromkeys(p.reason for _, p in ran if p.reason)),
        graph_bytes=sum(p.graph_bytes for _, p in ran),
        nodes=place.nodes,
        captures=memory.captures,
        recaptures=memory.recaptures,
        bad=bad,
    )


class Pace:
    """Keeps the host one row ahead of the device, no more: what is cancelled then ends, and progress is progress."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = cuda_of(device)
        self._before: Event | None = None

    def tick(self) -> None:
        """A row was launched: wait for the one before."""
        if self._cuda is None:
            return
        event = self._cuda.event()
        event.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = event
