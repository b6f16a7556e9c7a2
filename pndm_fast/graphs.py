"""Captured iterations: the network and the row after it as one CUDA graph, which C++ launches.

arXiv:2406.03791 (Galvez et al. 2024) runs decoding loops in WHILE nodes; here the body is a sampler's row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pndm_fast import conditioning, ranges
from pndm_fast.cuda import Captured, Cuda, Event
from pndm_fast.table import WIDTH, Table
from pndm_fast.trajectory import Trajectory, Trees
from pndm_fast.watch import Watch, obstacle
from pndm_fast.workspace import BufferForm, Probe, Workspace

if TYPE_CHECKING:
    from pndm_fast._C import Iteration

GRAPHS = ("auto", "while", "replay", "eager")
AUTO = ("while", "replay")  # not measured yet: benchmarks/test_gpu_sample.py compares them
WARM_UP = 3  # eager calls before a capture: libraries make handles, choose algorithms and load kernels at first use
CHECKED = 2  # rows that a new graph runs beside eager ones
ROUNDING = 1e-3  # of the state: how far two equal calls of a network may differ, at most
LEAST_ROWS = 1024  # of the table, so that another plan finds room in it
MOST_SLOTS = 6
KEPT = 16  # graphs of different forms; each holds a network's activations

_CAPTURING = threading.Lock()  # a process captures one graph at a time


class CannotCapture(Exception):
    """Why a network or a request runs eagerly."""


def graph_key(trajectory: Trajectory, probe: Probe) -> Hashable:
    """What a graph holds fast; steps, solver, seeds, guidance scale and conditioning values are not in it.

    Raises:
        CannotCapture: the request needs Python between network calls, or an argument cannot be held.
    """
    if trajectory.request.noises is not None:
        raise CannotCapture("noises is called between rows")
    if not trajectory.backend.capturable:
        raise CannotCapture(f"the {trajectory.backend.name} backend reads tensors on the host")
    try:
        arguments = conditioning.signature(trajectory.trees)
    except TypeError as error:
        raise CannotCapture(str(error)) from error
    networks = trajectory.stretch.model, trajectory.stretch.guided and trajectory.negative is not trajectory.model
    return networks, graph_form(trajectory, probe), _rows_of(trajectory.table), arguments, _modes()


def graph_form(trajectory: Trajectory, probe: Probe) -> BufferForm:
    """The request's buffers, with room for any solver's slots."""
    return dataclasses.replace(trajectory.form(probe), slots=MOST_SLOTS)


def _rows_of(table: Table) -> int:
    return max(LEAST_ROWS, 1 << (len(table.data) - 1).bit_length())


def _modes() -> Hashable:
    """Switches of torch that decide which kernels a network launches."""
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    backends: Any = torch.backends
    # the switches that may be read whichever of torch's two interfaces set them
    precision = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
    return autocast, precision, torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark


class Graph:
    """One captured iteration with its buffers: one trajectory at a time.

    Args:
        trajectory: whose network, form and first rows it is captured with.
        modes: of `while` and `replay`, the ones to try, best first.

    Attributes:
        mode: the one that was possible; `reason`: why not those before it.
        workspace: registers and the network's inputs; `cancel`: a flag that ends a loop.

    Raises:
        CannotCapture: with the reason.
    """

    def __init__(self, cuda: Cuda, trajectory: Trajectory, probe: Probe, modes: tuple[str, ...]) -> None:
        self.cuda = cuda
        self.workspace = Workspace(graph_form(trajectory, probe))
        device = self.workspace.form.device
        self._table = torch.zeros(_rows_of(trajectory.table), WIDTH, device=device)
        self._trees = conditioning.copied(trajectory.trees)
        self._budget = torch.zeros(1, dtype=torch.int32, device=device)
        self.cancel = cuda.flag()
        self._watch = Watch(trajectory.model, trajectory.negative)
        self._end: Event = cuda.event()
        with _CAPTURING, ranges.marked("capture"), cuda.aside(), _no_autocast_cache():
            once = _iteration(trajectory, self.workspace, self._trees, self._table)
            self._warm_up(trajectory, once)
            captured = self._capture(once)
            self._iteration = self._instantiate(captured.raw_cuda_graph(), modes)
            # last to first: the executable graph, what torch captured with its pool, the buffers that both name
            held = [self._iteration, captured, (self.workspace, self._table, self._trees, self._budget, self.cancel)]
            self._finalizer = weakref.finalize(self, _release, self._end, held)
            self._check(trajectory, once)
            self._end.record()

    def _warm_up(self, trajectory: Trajectory, once: Callable[[], None]) -> None:
        random = self.cuda.random_state()
        self._fill(trajectory)
        for _ in range(WARM_UP):
            once()
        if not torch.equal(self.cuda.random_state(), random):
            raise CannotCapture("the network draws from torch's generator, which a graph would repeat")

    def _capture(self, once: Callable[[], None]) -> Captured:
        try:
            captured, self.bytes = self.cuda.capture(once)
        except (RuntimeError, ValueError) as error:
            raise CannotCapture(f"the network cannot be captured: {_first_line(error)}") from error
        return captured

    def _instantiate(self, raw: int, modes: tuple[str, ...]) -> Iteration:
        from pndm_fast._C import Iteration

        words = {"active": self.workspace.registers.active, "budget": self._budget, "cancel": self.cancel}
        control = {name: word.data_ptr() for name, word in words.items()}
        refused = []
        for mode in modes:
            try:
                made = Iteration(self.cuda.driver, raw, **(control if mode == "while" else {}))
            except RuntimeError as error:
                refused.append(f"{mode}: {_first_line(error)}")
                continue
            self.mode, self.reason, self.nodes = mode, "; ".join(refused), made.nodes
            return made
        raise CannotCapture("; ".join(refused))

    def _check(self, trajectory: Trajectory, once: Callable[[], None]) -> None:
        """A graph must do what eager calls do: host branches, counters and stale tensors show as a difference.

        Raises:
            CannotCapture: it does not.
        """
        count = min(CHECKED, trajectory.stretch.stop - trajectory.stretch.start)

        def run(rows: Callable[[], None]) -> Tensor:
            self._fill(trajectory)
            rows()
            return self.workspace.state()

        def eager() -> None:
            for _ in range(count):
                once()

        first, second = run(eager), run(eager)
        graph = run(lambda: self.launch(count))
        if torch.equal(_bits(graph), _bits(first)):
            return
        spread = (first - second).abs().max()  # some networks do not repeat themselves to the bit
        if not bool(spread <= ROUNDING * first.abs().max()):
            raise CannotCapture("the network gives other values at each call")
        if not bool((graph - first).abs().max() <= 4 * spread):
            raise CannotCapture("the captured graph gives other values than the network does")

    def _fill(self, trajectory: Trajectory) -> None:
        self._table[: len(trajectory.table.data)].copy_(trajectory.table.data)
        conditioning.refill(self._trees, trajectory.trees)
        trajectory.begin(self.workspace)

    def stale(self) -> bool:
        """Whether the network's tensors are no longer those that the graph reads."""
        return self._watch.changed()

    def begin(self, trajectory: Trajectory) -> None:
        """Take up a request, after the work of the one before."""
        self._end.wait()
        self._fill(trajectory)

    def launch(self, count: int) -> None:
        """Launch so many rows on the current stream."""
        self._iteration.launch(count, self.cuda.stream())

    def end(self) -> None:
        """Mark the end of a request's work on the current stream."""
        self._end.record()


def _iteration(trajectory: Trajectory, workspace: Workspace, trees: Trees, table: Tensor) -> Callable[[], None]:
    step = workspace.bind(table, trajectory.backend)

    def once() -> None:
        out, uncond = trajectory.evaluate(workspace, trees)
        if not trajectory.fits(workspace, (out, uncond)):
            raise CannotCapture("the network's output changed its form")
        step(out, uncond, None)

    return once


def _release(end: Event, held: list[Any]) -> None:
    """Destroy in order, when nothing runs any more."""
    end.synchronize()
    held[0].close()
    held[1].reset()
    held.clear()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


@contextlib.contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Weights cast by autocast belong into the graph: cached ones are freed when autocast ends."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class Pool:
    """Graphs of one key, at most `limit`, each used by one call at a time."""

    def __init__(self, limit: int) -> None:
        self._permits = threading.BoundedSemaphore(limit)
        self._idle: deque[Graph] = deque()

    @contextlib.contextmanager
    def take(self, make: Callable[[bool], Graph]) -> Iterator[Graph]:
        """One that nobody uses, or a new one: make(whether it replaces a stale one)."""
        with self._permits:
            found = self._idle.pop() if self._idle else None  # a permit is held: nobody else takes the last one
            stale = found is not None and found.stale()
            graph = make(stale) if found is None or stale else found
            del found  # a stale one is freed before the next is used
            try:
                yield graph
            finally:
                self._idle.append(graph)


def check_network(model: Any) -> None:
    """Raise CannotCapture where a network is known to be unfit for a graph."""
    reason = obstacle(model)
    if reason:
        raise CannotCapture(reason)
