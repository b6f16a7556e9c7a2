"""What executes a segment's rows: buffers that it alone uses for the time, driven eagerly or by a captured graph."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import NamedTuple

import torch

from pndm_fast.loop import conditioning, nvtx
from pndm_fast.loop.evaluation import Trees
from pndm_fast.loop.learn import first_call
from pndm_fast.loop.positions import Positions
from pndm_fast.loop.results import Cancel, Report
from pndm_fast.loop.run import RunRows, eager_rows
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.workspace import BufferSpec, OutputSpec, Workspace
from pndm_fast.plan.checks import choose
from pndm_fast.row.device import stream_of
from pndm_fast.row.table import LAYOUTS
from pndm_fast.runtime.cache import Cache
from pndm_fast.runtime.capture import CannotCapture, release
from pndm_fast.runtime.cuda import Cuda
from pndm_fast.runtime.cuda import cuda_of as cuda_of  # the engine asks here, as this module does
from pndm_fast.runtime.graphs import AUTO, AUTO_REASON, GRAPHS, MODES, Graph, Pool, graph_key, graph_spec, modules_of


class Executor(NamedTuple):
    """Begun buffers with what runs their rows.

    Attributes:
        segment: as the network takes it: with two calls for guidance where it refuses one.
        first_calls: of the network before the rows that are run: those of a first call, or of a capture.
        graph: while, replay or eager; `reason`: why not a better one.
        graph_bytes, nodes: of the captured iteration.
        cancelable: for a loop on the device, what lets a `Cancel` end it.
        launches: of the graph so far, one number for each time that rows were run.
        copied: what network outputs were like that had to be copied.
    """

    segment: Segment
    workspace: Workspace
    rows: RunRows
    first_calls: int = 0
    graph: str = "eager"
    reason: str = ""
    graph_bytes: int = 0
    nodes: Mapping[str, int] = MappingProxyType({})
    cancelable: Callable[[Cancel], AbstractContextManager[None]] | None = None
    launches: Sequence[int] = ()
    copied: Collection[str] = ()

    @property
    def calls(self) -> int:
        """Calls of the network, if all rows are run."""
        return self.first_calls + self.segment.length * self.segment.evaluation.calls


def check_graph(graph: str, device: torch.device, stateful: bool) -> str:
    """A graph mode that the device could have.

    Raises:
        ValueError: unknown, or named where there is no CUDA device, or for a network that must not be captured.
    """
    choose("graph", graph, GRAPHS)
    if graph in MODES and stateful:
        raise ValueError(f"graph must be auto or eager for a stateful network, got {graph!r}")
    if graph in MODES and cuda_of(device) is None:
        raise ValueError(f"graph {graph!r} cannot be had: {_need(device)}")
    return graph


def captures(graph: str, device: torch.device) -> bool:
    """Whether CUDA graphs are made where this mode was asked for, if the network allows them."""
    return graph != "eager" and cuda_of(device) is not None


@functools.cache
def _need(device: torch.device) -> str:
    return f"graphs need a CUDA device, got {device}"


def take_executor(
    cache: Cache, segment: Segment, positions: Positions, graph: str, concurrency: int, stateful: bool = False
) -> AbstractContextManager[Executor]:
    """The best executor that `graph` allows; it must be entered, and given back.

    Raises:
        ValueError: a graph mode was named and cannot be had, with the reason.
    """
    if stateful and graph in MODES:  # a cache that was enabled since
        raise ValueError(f"graph must be auto or eager for a stateful network, got {graph!r}")
    if graph == "eager" or stateful:
        return _eager(cache, segment, positions, "the network is stateful" if stateful else "graph='eager'")
    cuda = cuda_of(segment.device)
    if cuda is None:
        return _eager(cache, segment, positions, _need(segment.device))
    release()
    try:
        return _graphed(_take_graph(cuda, cache, segment, graph, concurrency))
    except CannotCapture as reason:
        if graph in MODES:
            raise ValueError(f"graph {graph!r} cannot be had: {reason}") from reason
        why = str(reason)
    # not while the reason is being handled: a network's own error would be shown as its consequence
    return _eager(cache, segment, positions, why)


class _Taken(NamedTuple):
    """A graph that this call has to itself, for the segment as the network takes it."""

    graph: Graph
    pool: Pool
    segment: Segment
    first_calls: int
    reason: str


def _take_graph(cuda: Cuda, cache: Cache, segment: Segment, asked: str, concurrency: int) -> _Taken:
    modes, unasked = (AUTO, AUTO_REASON) if asked == "auto" else ((asked,), "")
    if asked == "auto" and cache.first_time(_output_key(segment)):
        raise CannotCapture("captured when it comes a second time")
    output, first_calls = _output_spec(cache, segment)
    segment = segment.as_learned(output)
    key = modes, concurrency, graph_key(segment, output)
    refused = cache.refused.peek(key)
    if refused is not None:
        raise CannotCapture(refused)

    def make(replaces: bool) -> Graph:
        nonlocal first_calls
        graph = Graph(cuda, segment, graph_spec(segment, output), modes)
        first_calls += graph.calls
        cache.captured(key, replaces)
        return graph

    pool = cache.graphs.get(key, lambda: Pool(concurrency))
    try:
        graph = pool.take(make)
    except CannotCapture as refusal:
        cache.refuse(key, refusal)
        raise
    return _Taken(graph, pool, segment, first_calls, graph.reason or unasked)


@contextlib.contextmanager
def _graphed(taken: _Taken) -> Iterator[Executor]:
    graph, segment = taken.graph, taken.segment

    launches: list[int] = []

    def rows(count: int) -> None:
        with nvtx.marked("rows"):
            if segment.call.by_row is not None:
                graph.refill(segment)
            launches.append(graph.launch(count))

    try:
        with nvtx.marked("begin"):
            graph.begin(segment)
        found = graph.mode, taken.reason, graph.bytes, graph.nodes, graph.cancelable
        yield Executor(segment, graph.workspace, rows, taken.first_calls, *found, launches, graph.copied)
    finally:
        ended = False
        try:
            graph.end()
            ended = True
        finally:  # else nobody would ever have this graph's place again
            taken.pool.give(graph if ended else None)


class Held(NamedTuple):
    """An executor that its holder has for as long as it likes, for samples that it puts there itself.

    Attributes:
        executor: its segment is the one that it was made with.
        trees: the network's arguments besides x and t, in place.
        stale: whether a graph reads tensors that the network has no more.
    """

    executor: Executor
    trees: Trees
    stale: Callable[[], bool]


def hold(cache: Cache, segment: Segment, lines: int, graph: str) -> Held:
    """For any plans of the segment's layout and for requests with other conditioning of its form.

    Args:
        lines: of the table.

    Raises:
        ValueError: a graph mode was named and cannot be had, with the reason.
    """
    cuda = None if graph == "eager" else cuda_of(segment.device)
    reason = "graph='eager'" if graph == "eager" else _need(segment.device)
    if cuda is not None:
        release()
        try:
            return _held_graph(cuda, cache, segment, lines)
        except CannotCapture as refusal:
            if graph in MODES:
                raise ValueError(f"graph {graph!r} cannot be had: {refusal}") from refusal
            reason = str(refusal)
    output, _ = _output_spec(cache, segment, capture=False)
    segment = segment.as_learned(output)
    workspace = Workspace(held_spec(segment, output, lines))
    trees = conditioning.copied(segment.evaluation.marked)
    segment.begin(workspace)
    evaluate = segment.evaluation.bind(workspace, trees)
    run = eager_rows(segment, workspace, Positions((), ()), evaluate, None)
    return Held(Executor(segment, workspace, run, reason=reason, copied=workspace.copied), trees, lambda: False)


def _held_graph(cuda: Cuda, cache: Cache, segment: Segment, lines: int) -> Held:
    output, _ = _output_spec(cache, segment)
    segment = segment.as_learned(output)
    key = graph_key(segment, output)
    refused = cache.refused.peek(key)
    if refused is not None:
        raise CannotCapture(refused)
    spec = held_spec(segment, output, lines)
    try:
        graph = Graph(cuda, _with_history(segment, spec), spec, ("replay",))
    except CannotCapture as refusal:
        cache.refuse(key, refusal)
        raise
    cache.captured(key, False)

    def rows(count: int) -> None:
        graph.launch(count)
        graph.end()  # whenever it is dropped

    found = "replay", "", graph.bytes, graph.nodes
    executor = Executor(segment, graph.workspace, rows, 0, *found, copied=graph.copied)
    return Held(executor, graph.trees, graph.stale)


def _with_history(segment: Segment, spec: BufferSpec) -> Segment:
    """Where an example does not begin at its first row, past outputs: a graph's check must find numbers there."""
    if not any(segment.at):
        return segment
    workspace = Workspace(spec)
    segment.begin(workspace)
    workspace.registers.slots.zero_()
    return segment._replace(snapshot=workspace.snapshot())


def held_spec(segment: Segment, output: OutputSpec, lines: int) -> BufferSpec:
    """Buffers that any plan of the layout finds room in; the network's input is apart, and slots hold any output."""
    spec = segment.buffers(output)
    width = spec.table[1]
    state = segment.call.state_dtype
    return spec._replace(slots=LAYOUTS[width].slots, direct=False, slot=state, table=(lines, width))


def _output_spec(cache: Cache, segment: Segment, capture: bool = True) -> tuple[OutputSpec, int]:
    """What is known of the network's outputs, or a first call's news with the network calls that it took."""
    key = _output_key(segment)
    known = cache.outputs.peek(key)
    if known is not None:
        return known, 0
    if capture:
        modules_of(segment)  # what shows without a network call is refused before the first
    told = first_call(segment, None, Workspace)
    cache.outputs.put(key, told.spec)
    return told.spec, told.refused + told.segment.evaluation.calls


def _output_key(segment: Segment) -> Hashable:
    kind, evaluation = segment.device.type, segment.evaluation
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    guided = evaluation.cfg_copies, evaluation.split_reason, bool(evaluation.rescale)
    return segment.kind.model, segment.call.batch, segment.call.state_dtype, guided, autocast


@contextlib.contextmanager
def _eager(cache: Cache, segment: Segment, positions: Positions, reason: str) -> Iterator[Executor]:
    """Buffers of the form that the network's outputs have: as is known, or as its first output tells."""
    key = _output_key(segment)
    known, idle = cache.outputs.peek(key), deque[Workspace]()

    def take(spec: BufferSpec) -> Workspace:
        nonlocal idle
        idle = idle_workspaces(cache, spec)
        try:
            return idle.pop()
        except IndexError:
            return Workspace(spec)

    told = first_call(segment, known, take)
    if told.spec != known:
        cache.learned(key, told.spec, told.refused)
    rows = eager_rows(told.segment, told.workspace, positions, told.evaluate, told.output)
    try:
        yield Executor(told.segment, told.workspace, rows, told.refused, reason=reason, copied=told.workspace.copied)
    finally:
        idle.append(told.workspace)


def idle_workspaces(cache: Cache, spec: BufferSpec) -> deque[Workspace]:
    """Buffers of a form that nobody uses."""
    # buffers go back while their last kernels may still run: only the same stream may take them up
    return cache.idle.get((spec, stream_of(spec.device)), deque)


def report_of(cache: Cache, ran: Sequence[Executor], seconds: float, batch_error: float | None) -> Report:
    """How a call went, segment by segment."""
    last = ran[-1]
    call, workspace = last.segment.call, last.workspace
    reasons = [e.segment.evaluation.split_reason for e in ran if e.segment.kind.guided]
    guided = [f"two calls: {reason}" if reason else "batched" for reason in reasons]
    return Report(
        nfe=call.nfe,
        calls=sum([e.calls for e in ran]),
        seconds=seconds,
        batch=call.real,
        **workspace.words,
        backend=last.segment.backend.name,
        direct=workspace.spec.direct,
        guidance=guided[0] if guided else "none",
        buffer_bytes=max([e.workspace.bytes for e in ran]),
        graph=_joined([e.graph for e in ran], ", "),
        graph_reason=_joined([e.reason for e in ran if e.reason], "; "),
        graph_bytes=sum([e.graph_bytes for e in ran]),
        nodes=dict(last.nodes),
        captures=cache.captures,
        recaptures=cache.recaptures,
        launches=sum([sum(e.launches) for e in ran]),
        batch_error=batch_error,
        copied=", ".join(sorted(set().union(*[e.copied for e in ran]))) if any([e.copied for e in ran]) else "",
    )


def _joined(words: list[str], separator: str) -> str:
    return words[0] if len(words) == 1 else separator.join(dict.fromkeys(words))
