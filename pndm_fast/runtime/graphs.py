"""Captured iterations: the network and the row after it as one CUDA graph, which C++ launches.

arXiv:2406.03791 (Galvez et al. 2024) runs decoding loops in WHILE nodes; here the body is a sampler's row.
"""

from __future__ import annotations

import contextlib
import math
import threading
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pndm_fast.loop import conditioning, nvtx
from pndm_fast.loop.evaluation import InputWritten, Trees
from pndm_fast.loop.network import Identity
from pndm_fast.loop.results import Cancel
from pndm_fast.loop.segment import Segment, room
from pndm_fast.loop.workspace import BufferSpec, OutputMisfit, OutputSpec, Workspace
from pndm_fast.row.table import LAYOUTS
from pndm_fast.runtime.capture import CannotCapture, capturing, no_autocast_cache, retire
from pndm_fast.runtime.cuda import Captured, Cuda, Event
from pndm_fast.runtime.guards import Guards, inspect_networks

if TYPE_CHECKING:
    from pndm_fast._C import Iteration

MODES = ("while", "replay")
GRAPHS = ("auto", *MODES, "eager")
# What `auto` tries, in order. `while` comes first, and the reason goes, once results of `make gpu` are committed in
# which, on a launch-bound network, `replay` takes at least 1.05 of its time.
AUTO = ("replay",)
AUTO_REASON = "replay: no measurement of `while` against it is committed yet"
WARM_UP = 3  # eager calls before a capture: libraries make handles, choose algorithms and load kernels at first use
CHECKED = 2  # rows that a new graph runs beside eager ones
ROUNDING = 1e-3  # of the state: how far two equal calls of a network may differ, at most
LEAST_ROWS = 1024  # of the table, so that another plan finds room in it
KEPT = 16  # graphs of different forms; each holds a network's activations
MOST_STALE = 3  # captures in a row that were in vain
PACKAGED = " (in an AOTInductor package: load it with run_single_threaded=True)"
TRIES = 3  # failed captures in a row: another thread that synchronizes the device spoils one, not each


def modules_of(segment: Segment) -> tuple[nn.Module, ...]:
    """Of its networks.

    Raises:
        CannotCapture: the networks show why not before they run.
    """
    found = inspect_networks(segment.evaluation.model.network, segment.evaluation.weaker.network)
    if found.obstacle:
        raise CannotCapture(found.obstacle, tries=math.inf if found.passing else 1)
    return found.modules


def graph_key(segment: Segment, output: OutputSpec) -> Hashable:
    """What a graph holds fast; steps, solver, seeds, guidance scale and conditioning values are not in it.

    Raises:
        CannotCapture: the request needs Python between network calls, or an argument cannot be held.
    """
    if segment.call.noise is not None:
        raise CannotCapture("noise_sampler is called between rows")
    if not segment.backend.capturable:
        raise CannotCapture(f"the {segment.backend.name} backend reads tensors on the host")
    try:
        arguments = conditioning.signature(segment.evaluation.marked, by_row=segment.call.by_row is not None)
    except TypeError as error:
        raise CannotCapture(str(error)) from error
    evaluation = segment.evaluation
    other = evaluation.weaker.network
    weaker = None if other is evaluation.model.network else Identity(other)
    networks = segment.kind, weaker, evaluation.rescale
    return networks, graph_spec(segment, output), arguments, _modes()


def graph_spec(segment: Segment, output: OutputSpec) -> BufferSpec:
    """The request's buffers, with room for any solver's slots and rows."""
    width = segment.table.width
    slots = LAYOUTS[width].slots
    return segment.buffers(output)._replace(slots=slots, table=(room(segment.table.rows, LEAST_ROWS), width))


def _modes() -> Hashable:
    """Switches of torch that decide which kernels a network launches."""
    backends: Any = torch.backends
    cuda, cudnn = backends.cuda, backends.cudnn
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer interface
        legacy = ""
    matmul = cuda.matmul
    return (
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.get_default_dtype(),
        (legacy, matmul.fp32_precision, cudnn.conv.fp32_precision),
        (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()),
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()),
    )


class Graph:
    """One captured iteration with its buffers: one trajectory at a time.

    Args:
        segment: whose network and first rows it is captured with; spec: of its buffers.
        modes: of `while` and `replay`, the ones to try, best first.

    Attributes:
        mode: the one that was possible; `reason`: why not those before it.
        workspace: registers and the network's inputs; trees: its other arguments.
        bytes: what capturing took of the device's memory; `nodes`: of the iteration, by type.
        copied: what network outputs are like that an iteration copies.

    Raises:
        CannotCapture: with the reason.
    """

    def __init__(self, cuda: Cuda, segment: Segment, spec: BufferSpec, modes: tuple[str, ...]) -> None:
        self.cuda = cuda
        try:
            self._make(segment, spec, modes)
        except torch.OutOfMemoryError as error:
            raise CannotCapture(f"out of memory: {_first_line(error)}", tries=math.inf) from error

    def _make(self, segment: Segment, spec: BufferSpec, modes: tuple[str, ...]) -> None:
        modules = modules_of(segment)
        self.workspace = Workspace(spec)
        # network calls of each iteration: shared, for what is captured must not hold the graph
        self._made: list[int] = []
        self.trees = conditioning.copied(segment.evaluation.marked)
        self._budget = torch.zeros(1, dtype=torch.int32, device=spec.device)
        self._cancel = self.cuda.flag()
        self._cancelable = False  # whether a Cancel is linked to that flag: a loop reads it only then
        self._end: Event = self.cuda.event()
        with capturing(), nvtx.marked("capture"), self.cuda.aside(), no_autocast_cache(spec.device):
            once = _iteration(segment, self.workspace, self.trees, self._made)
            wanted = self._warm_up(segment, once)
            captured = self._capture(once)
            self.copied = self.workspace.copied
            # first to last: the executable graph, what torch captured with its pool, the buffers that both name
            buffers = self.workspace, self.trees, self._budget, self._cancel
            self._held: list[Any] = [None, captured, buffers]
            self._finalizer = weakref.finalize(self, retire, self._end, self._held)
            self._choose(captured.raw_cuda_graph(), segment, wanted, modes)
            self._end.record()
        self._guards = Guards(modules)

    def _warm_up(self, segment: Segment, once: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """What eager calls make of the first rows, twice. The memory that they take, the capture may have again."""

        def eager(count: int) -> None:
            for _ in range(count):
                once()

        self._fill(segment)
        states = [self.cuda.random_state()]
        for _ in range(WARM_UP):
            once()
            states.append(self.cuda.random_state())
        if not any(torch.equal(a, b) for a, b in pairwise(states)):  # now and then, it was another thread
            raise CannotCapture("the network draws from torch's generator, which a graph would repeat")
        return self._first_rows(segment, eager), self._first_rows(segment, eager)

    def _first_rows(self, segment: Segment, run: Callable[[int], object]) -> Tensor:
        self._fill(segment)
        run(min(CHECKED, segment.length))
        return self.workspace.state()

    def _capture(self, once: Callable[[], None]) -> Captured:
        try:
            captured, self.bytes = self.cuda.capture(once)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            raise CannotCapture(f"the network cannot be captured: {_why(error)}", TRIES) from error
        return captured

    def _choose(self, raw: int, segment: Segment, wanted: tuple[Tensor, Tensor], modes: tuple[str, ...]) -> None:
        """The first mode that can be made and does what the network does."""
        refused: dict[str, str] = {}
        for self.mode in modes:
            try:
                self._held[0] = self._instantiate(raw)
                self._check(segment, *wanted)
            except (RuntimeError, CannotCapture) as error:
                if self._held[0] is not None:
                    self._held[0].close()
                refused[self.mode] = _first_line(error)
            else:
                self.reason, self.nodes = _listed(refused), self._held[0].nodes
                return
        raise CannotCapture(_listed(refused) if len(set(refused.values())) > 1 else refused[self.mode])

    def _instantiate(self, raw: int) -> Iteration:
        from pndm_fast._C import Iteration

        words = {"active": self.workspace.registers.active, "budget": self._budget, "cancel": self._cancel}
        control = {name: word.data_ptr() for name, word in words.items()} if self.mode == "while" else {}
        return Iteration(self.cuda.driver, raw, **control, assemble=self.cuda.assemble)

    def _check(self, segment: Segment, first: Tensor, second: Tensor) -> None:
        """A graph must do what eager calls do: host branches, counters and stale tensors show as a difference.

        Raises:
            CannotCapture: it does not.
        """
        graph = self._first_rows(segment, self.launch)
        if torch.equal(_bits(graph), _bits(first)):
            return
        spread = (first - second).abs().max()  # some networks do not repeat themselves to the bit
        if not bool(spread <= ROUNDING * first.abs().max()):
            raise CannotCapture("the network gives other values at each call")
        if not bool((graph - first).abs().max() <= 4 * spread):
            raise CannotCapture("the captured graph gives other values than the network does")

    def _fill(self, segment: Segment) -> None:
        self.refill(segment)
        segment.begin(self.workspace)

    def refill(self, segment: Segment) -> None:
        """Copy the conditioning of the row under way to where the graph reads it."""
        if any(segment.evaluation.trees):
            conditioning.refill(self.trees, segment.evaluation.marked)

    @property
    def calls(self) -> int:
        """Network calls that making it took."""
        return sum(self._made)

    def stale(self) -> bool:
        """Whether the network's tensors are no longer those that the graph reads."""
        return self._guards.changed()

    def begin(self, segment: Segment) -> None:
        """Take up a request, after the work of the one before."""
        self._end.wait()
        self._fill(segment)

    def launch(self, count: int) -> int:
        """Launch so many rows on the current stream; how many launches that took."""
        launches: int = self._held[0].launch(count, self.cuda.stream(), self._cancelable)
        return launches

    @property
    def cancelable(self) -> Callable[[Cancel], AbstractContextManager[None]] | None:
        """For a loop on the device: what lets a `Cancel` end launches inside its context."""
        return self._linked if self.mode == "while" else None

    @contextlib.contextmanager
    def _linked(self, cancel: Cancel) -> Iterator[None]:
        with cancel.linked(self._cancel):
            self._cancelable = True
            try:
                yield
            finally:
                self._cancelable = False

    def end(self) -> None:
        """Mark the end of a request's work on the current stream."""
        self._end.record()


def _iteration(segment: Segment, workspace: Workspace, trees: Trees, made: list[int]) -> Callable[[], None]:
    """A row in a graph's buffers, called from Python; network calls are noted in `made`."""
    step = workspace.bind(segment.backend).step
    evaluate = segment.evaluation.bind(workspace, trees)

    def once() -> None:
        made.append(segment.evaluation.calls)
        try:
            out, uncond = evaluate()
        except (OutputMisfit, InputWritten) as error:
            raise CannotCapture("the network's output changed its form") from error
        step(out, uncond, None)

    return once


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32)


def _listed(refused: dict[str, str]) -> str:
    return "; ".join(f"{mode}: {reason}" for mode, reason in refused.items())


def _root(error: BaseException) -> BaseException:
    """The error that was first: a capture that it broke fails once more in its end."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _first_line(error: BaseException) -> str:
    return str(_root(error)).strip().split("\n")[0]


def _why(error: BaseException) -> str:
    """Also where it came from: a package loaded the usual way queries events, which no capture allows."""
    frames = traceback.walk_tb(_root(error).__traceback__)
    packaged = any(frame.f_code.co_qualname == "AOTICompiledModel.__call__" for frame, _ in frames)
    return _first_line(error) + PACKAGED * packaged


class Pool:
    """Graphs of one key, at most `limit`, each used by one call at a time."""

    def __init__(self, limit: int) -> None:
        self._permits = threading.BoundedSemaphore(limit)
        self._limit = limit
        self._idle: deque[Graph] = deque()
        self._holders: Counter[int] = Counter()
        self._stale_in_a_row = 0

    def take(self, make: Callable[[bool], Graph]) -> Graph:
        """One that nobody uses, or a new one, make(whether the one before was stale); this thread must give it back.

        Raises:
            CannotCapture: this thread holds all there may be, or the network changes from call to call.
        """
        me = threading.get_ident()
        if self._holders[me] == self._limit:
            raise CannotCapture("a call inside the call that uses the graph", tries=math.inf)
        self._permits.acquire()
        self._holders[me] += 1
        try:
            graph = None
            with contextlib.suppress(IndexError):  # no graph yet, or `drop_stale` looks at it
                graph = self._idle.pop()
            stale = graph is not None and graph.stale()
            if stale and self._stale_in_a_row == MOST_STALE:
                raise CannotCapture("the network's tensors or attributes change from call to call")
            if graph is None or stale:
                graph = None  # a stale one's memory is free for its successor
                graph = make(stale)
            self._stale_in_a_row = self._stale_in_a_row + 1 if stale else 0  # what make refuses is no capture
        except BaseException:
            self._leave()
            raise
        return graph

    def give(self, graph: Graph | None) -> None:
        """Give back what this thread took; None where that is of no more use."""
        if graph is not None:
            self._idle.append(graph)
        self._leave()

    def _leave(self) -> None:
        self._holders[threading.get_ident()] -= 1
        self._permits.release()

    def drop_stale(self) -> None:
        """Free idle graphs that read tensors which the network has no more."""
        for _ in range(len(self._idle)):
            with contextlib.suppress(IndexError):  # others take them meanwhile
                graph = self._idle.popleft()
                if not graph.stale():
                    self._idle.append(graph)
