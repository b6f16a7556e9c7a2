"""What a caller sees of a trajectory: its steps, its report, and the ways it can end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from pndm_fast.plan.row import Row


class Cancelled(Exception):
    """`Step.cancel` or `Cancel.set` was called. Nothing computed is lost.

    Attributes:
        state: the state after the last row, [B, *shape]; None where a request was still in an engine's line.
        x0: the network's estimate of x_0 at that row; None without `on_step`, for which alone it is kept.
        index: that row, -1 before the first.
    """

    def __init__(self, index: int, state: Tensor | None, x0: Tensor | None) -> None:
        super().__init__(index, state, x0)  # what pickle makes another one from
        self.index, self.state, self.x0 = index, state, x0

    def __str__(self) -> str:
        where = "before its first row" if self.index < 0 else f"after row {self.index}"
        return f"sampling was cancelled {where}"


class Cancel:
    """Ends calls of a sampler from another thread: `sampler(cancel=c)` raises `Cancelled` soon after `c.set()`.

    A loop on the device ends with the row under way; elsewhere one more may have been launched.
    """

    def __init__(self) -> None:
        self._set = threading.Event()
        self._flags: list[Tensor] = []
        self._lock = threading.RLock()  # a signal handler may call `set` while this thread is in `linked`

    def set(self) -> None:
        """Cancel all calls that were given this, and those to come."""
        with self._lock:
            self._set.set()
            for flag in self._flags:
                flag.fill_(1)

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._set.is_set()

    @contextlib.contextmanager
    def linked(self, flag: Tensor) -> Iterator[None]:
        """For a time, `set` writes 1 to a flag that a device reads."""
        with self._lock:
            self._flags.append(flag)
            flag.fill_(self._set.is_set())
        try:
            yield
        finally:
            with self._lock:
                self._flags = [other for other in self._flags if other is not flag]
                flag.zero_()


class NonFiniteError(ArithmeticError):
    """The network produced NaN or infinity, or outputs so large that the state overflowed.

    Attributes:
        bad: (sample, row, time) for each sample, at its first such output.
        samples: the result all the same, [B, *shape]; report: how the call ran.
    """

    def __init__(self, bad: tuple[BadSample, ...], samples: Tensor, report: Report) -> None:
        super().__init__(bad, samples, report)  # what pickle makes another one from
        self.bad, self.samples, self.report = bad, samples, report

    def __str__(self) -> str:
        listed = "; ".join(f"sample {b.sample} at row {b.row}, t = {b.t:g}" for b in self.bad[:5])
        more = f" and {len(self.bad) - 5} more" if len(self.bad) > 5 else ""
        return f"the network's output, or the state that it led to, was not finite: {listed}{more}"


@dataclass(frozen=True)
class BadSample:
    """Where a sample's network output was first not finite."""

    sample: int
    row: int
    t: float


class Report(NamedTuple):
    """How a call ran.

    Attributes:
        nfe: rows of the longest plan.
        calls: calls of the network; above nfe where guidance takes two, one was refused, or a graph was captured.
        seconds: wall time on the host.
        backend: cpp, triton or reference.
        direct: whether the network reads the state itself, without a copy.
        layout: contiguous or channels_last: of the network's inputs.
        copied: what outputs of the network were like that had to be copied, as they had another layout or dtype than
            its inputs or its first output; empty where none were.
        guidance: none, batched, or why it took two calls.
        buffer_bytes: memory of the registers.
        graph: while (one launch for the trajectory), replay (one for each row) or eager.
        graph_reason: why the call was not captured, or why `auto` took the mode that it took; empty where a mode was
            asked for and given.
        captures: graphs captured so far with this sampler's memory; recaptures: those among them that replaced a graph
            whose network had got other tensors.
        launches: of graphs, in this call: one for each of its segments in `while`, one for each row in `replay`.
        graph_bytes: device memory that capturing the graph took, its activations foremost.
        nodes: of the captured iteration, by type.
        batch_error: by how much the network's output for a sample differs, relative to its largest number, with the
            batch and the place in it, as `Sampler.prepare` measured: 0.0 where bits do not depend on the batch; None
            where it was not measured.
    """

    nfe: int
    calls: int
    seconds: float
    batch: int
    device: str
    network_dtype: str
    backend: str
    direct: bool
    layout: str
    guidance: str
    buffer_bytes: int
    graph: str = "eager"
    graph_reason: str = ""
    captures: int = 0
    recaptures: int = 0
    launches: int = 0
    graph_bytes: int = 0
    nodes: Mapping[str, int] = {}  # of one type with what runs give: a read-only view would not pickle
    copied: str = ""
    batch_error: float | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """What a request came to.

    Attributes:
        samples: float32 [B, *shape], contiguous (float64 where the network, noise or state is float64).
        bad: samples whose network output was not finite, at their first such row; empty where on_nan is ignore.
    """

    samples: Tensor
    report: Report
    bad: tuple[BadSample, ...] = ()


@dataclass
class Step:
    """One finished row, as `on_step` sees it.

    Attributes:
        index: rows that the call had executed before this one.
        nfe: rows of the longest plan.
        rows: for each sample its row of the plan, None once it has ended.
    """

    index: int
    nfe: int
    rows: tuple[Row | None, ...]
    _state: Callable[[], Tensor]
    _x0: Callable[[], Tensor]
    cancelled: bool = field(default=False, init=False)
    _read: dict[str, Tensor] = field(default_factory=dict, init=False)
    _over: bool = field(default=False, init=False)

    @property
    def row(self) -> Row:
        """The row of the first sample that is still under way."""
        return next(row for row in self.rows if row is not None)

    @property
    def t(self) -> float:
        """The time at which the network was called."""
        return self.row.t

    @property
    def state(self) -> Tensor:
        """A copy of the state after the row, [B, *shape]; its level is `row.levels.y`. `on_step` may return another.

        Raises:
            RuntimeError: first read after the callback has returned: the buffers have moved on.
        """
        return self._once("state", self._state)

    @property
    def x0(self) -> Tensor:
        """The network's estimate of x_0 at this row's call, [B, *shape]; of a sample that has ended, its state.

        Near pure noise it is a small difference of large numbers: in phase space about 0.01 off at t = 1, in float32.
        """
        return self._once("x0", self._x0)

    def _once(self, name: str, read: Callable[[], Tensor]) -> Tensor:
        if name not in self._read:
            if self._over:
                raise RuntimeError(f"Step.{name} must be read inside on_step: later rows have changed the buffers")
            self._read[name] = read()
        return self._read[name]

    def show(self, on_step: Callable[[Step], Any]) -> Any:
        """What the callback returns, after which buffers cannot be read any more.

        Raises:
            Cancelled: it asked for that.
        """
        try:
            returned = on_step(self)
            if self.cancelled:
                raise Cancelled(self.index, self.state, self.x0)
            return returned
        finally:
            self._over = True

    def cancel(self) -> None:
        """End sampling after this row with `Cancelled`.

        Raises:
            RuntimeError: the callback has returned: nobody would ask.
        """
        if self._over:
            raise RuntimeError("Step.cancel must be called inside on_step: a pf.Cancel ends a call from elsewhere")
        self.cancelled = True
