"""One trajectory: call the network, execute a row, again. It knows no solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop import nvtx as ranges
from pndm_fast.loop.conditioning import CannotBatch, batched
from pndm_fast.loop.network import prediction
from pndm_fast.loop.request import Request, Stretch
from pndm_fast.loop.results import BadSample, Cancelled, Step, rows_at
from pndm_fast.loop.workspace import BufferForm, Probe, Workspace, check_first_output, form_of, row_noise
from pndm_fast.plan.matrix2 import Coefficient
from pndm_fast.row.backends import Backend
from pndm_fast.row.layout import channels_of
from pndm_fast.row.registers import NEVER, Registers
from pndm_fast.row.table import Table

Output = tuple[Tensor, Tensor | None]  # (out, uncond); uncond is None where out holds both, or without guidance
Trees = tuple[dict[str, Any] | None, dict[str, Any]]  # arguments of a call of its own for uncond, and of the other
Rows = Callable[[int, int], None]  # execute so many rows, from that index on


class Trajectory:
    """The loop over a stretch of a request's rows.

    Args:
        model: the network; `negative`: another one for the second evaluation of guidance, if that is not its own.
        request: what was asked, checked.
        stretch: which rows; `carry`: the state before them, where they are not the first.
        table: the request's rows in device memory.
        network, time: dtypes of the network's inputs.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        request: Request,
        table: Table,
        backend: Backend,
        *,
        stretch: Stretch,
        device: torch.device,
        network: torch.dtype,
        time: torch.dtype,
        carry: Registers | None = None,
        negative: Callable[..., Any] | None = None,
    ) -> None:
        self.model, self.request, self.table, self.backend = model, request, table, backend
        self.negative = model if negative is None else negative
        self.stretch, self.carry = stretch, carry
        self.device, self.network, self.time = device, network, time
        self.calls = 0
        self.wrote = False  # whether the last call changed its input
        self.apart: str | None = None  # why guidance takes two calls
        self.merged: dict[str, Any] = request.cond
        if stretch.guided and self.negative is not model:
            self.apart = "two calls: the negative has a network of its own"
        elif stretch.guided:
            try:
                self.merged = batched(request.uncond, request.cond, request.batch)
            except CannotBatch as reason:
                self.apart = f"two calls: {reason}"

    @property
    def cfg_copies(self) -> int:
        """2 where one call carries both evaluations of guidance."""
        return 2 if self.stretch.guided and self.apart is None else 1

    def begin(self, workspace: Workspace) -> None:
        """Write into buffers what the first row of the stretch needs."""
        if self.carry is None:
            workspace.begin(self.request, self.table, self.backend)
        else:
            workspace.resume(self.request, self.carry, self.stretch.start)

    def form(self, probe: Probe) -> BufferForm:
        """The buffers that this request needs, given what the network does."""
        return form_of(
            self.request,
            probe,
            self.table.slots,
            device=self.device,
            network=self.network,
            time=self.time,
            cfg_copies=self.cfg_copies,
        )

    @property
    def trees(self) -> Trees:
        """What the network is called with besides x and t."""
        return (None, self.merged) if self.apart is None else (self.request.uncond, self.request.cond)

    def first_call(self, again: bool = False) -> tuple[Probe, Workspace, Output | None]:
        """Call the network in careful buffers and learn its form.

        The output is the first row's, unless its layout asks for other buffers: then it is None, and the call is made
        again, so that the first sample of a `Sampler` has the bits of all later ones.
        """
        careful = Probe(self.request.state_dtype, channels=1, writes_input=True)
        workspace = Workspace(self.form(careful))
        self.begin(workspace)
        try:
            out, uncond = self.evaluate(workspace)
        except (RuntimeError, ValueError) as error:
            if self.cfg_copies == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            if not again:  # what comes and goes is no refusal
                return self.first_call(again=True)
            self.apart = f"two calls: the network refused a batch of {2 * self.request.batch}: {error}"
            return self.first_call()
        exact = self.request.state_dtype is torch.float64
        channels = check_first_output(out, workspace.x_in.shape, self.device, exact)
        probe = Probe(out.dtype, channels, self.wrote, self.apart)
        form = self.form(Probe(out.dtype, channels, writes_input=True))
        if form != workspace.form:
            workspace = Workspace(form)
            self.begin(workspace)
        return probe, workspace, (out, uncond) if channels == 1 else None

    def evaluate(self, workspace: Workspace, trees: Trees | None = None) -> Output:
        """Call the network at the workspace's input: once, or twice for guidance that cannot be batched."""
        x, t = workspace.x_in, workspace.t
        before = x._version
        uncond, (separate, arguments) = None, trees or self.trees
        if separate is not None:
            self.calls += 1
            # copies both ways: a network may write its inputs, or answer twice in one static buffer
            uncond = self._dense(prediction(self.negative(x.clone(), t.clone(), **separate), x)).clone()
        self.calls += 1
        out = self._dense(prediction(self.model(x, t, **arguments), x))
        self.wrote = x._version != before
        return out, uncond

    def _dense(self, out: Tensor) -> Tensor:
        """Phase-space rows read whole halves: a channels-last output, where these are interleaved, is copied."""
        return out.contiguous() if self.request.components > 1 and channels_of(out) else out

    def fits(self, workspace: Workspace, output: Output) -> bool:
        """Whether a call just made left the state alone and gave outputs of the form that the buffers have."""
        out, uncond = output
        if self.wrote and workspace.form.direct:
            return False
        return workspace.fits(out) and (uncond is None or workspace.fits(uncond))

    def eager(self, workspace: Workspace, first: Output | None) -> Rows:
        """Rows by calling the network and the row operation one after the other.

        They raise ValueError at an output in another form than the first, and RuntimeError where the network changes
        the state itself, which it reads in place of a copy.
        """
        step = workspace.bind(self.table.data, self.backend)
        noisy = self.request.noises is not None

        def rows(index: int, count: int) -> None:
            nonlocal first
            for i in range(index, index + count):
                with ranges.marked("network"):
                    out, uncond = self.evaluate(workspace) if first is None else first
                first = None
                if not self.fits(workspace, (out, uncond)):
                    self._refuse(workspace, out, uncond)
                with ranges.marked("row"):
                    step(out, uncond, row_noise(self.request, i, workspace.registers) if noisy else None)

        return rows

    def run(
        self,
        workspace: Workspace,
        rows: Rows,
        *,
        at_once: int,
        on_step: Callable[[Step], Any] | None = None,
        after: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The stretch's rows, `at_once` at a time; then on_step and after(index, count). Returns the state, copied.

        Raises:
            Cancelled: `on_step` or `after` asked for it.
        """
        for index in range(self.stretch.start, self.stretch.stop, at_once):
            count = min(at_once, self.stretch.stop - index)
            seen = None if on_step is None else workspace.registers.y.clone()
            rows(index, count)
            if self.request.known is not None:
                workspace.put_known(self.request, index)
            if on_step is not None and seen is not None:
                self._show(index, workspace, seen, on_step)
            if after is not None:
                after(index, count)
        return self.samples(workspace)

    def check_ended(self, workspace: Workspace, samples: Tensor) -> None:
        """Wait for the device, and see whether the loop there ran to its end.

        Raises:
            Cancelled: it did not.
        """
        first = self.request.first_rows(self.table)[: self.request.real]
        done = max(now - then for now, then in zip(workspace.registers.row.tolist(), first, strict=False))
        if done < self.stretch.stop:
            raise Cancelled(done - 1, samples, None)

    def samples(self, workspace: Workspace) -> Tensor:
        """The state of those asked for, a fresh tensor."""
        return workspace.state()[: self.request.real]

    def _refuse(self, workspace: Workspace, out: Tensor, uncond: Tensor | None) -> None:
        if self.wrote and workspace.form.direct:
            raise RuntimeError("the network changed its input in place, which it did not at its first call")
        raise ValueError(workspace.difference(out if uncond is None or not workspace.fits(out) else uncond))

    def _show(self, index: int, workspace: Workspace, seen: Tensor, on_step: Callable[[Step], Any]) -> None:
        rows, real = rows_at(self.request.plans, index), self.request.real

        def x0() -> Tensor:
            previews: list[tuple[Coefficient, Coefficient]] = [
                (1.0, 0.0) if row is None else row.preview for row in rows
            ]
            return workspace.x0(seen, previews, [0 if row is None else row.slot for row in rows])[:real]

        view = Step(index, self.request.nfe, rows[:real], lambda: self.samples(workspace), x0)
        try:
            on_step(view)
            if view.cancelled:
                raise Cancelled(index, view.state, view.x0)
        finally:
            view.close()

    def bad(self, workspace: Workspace, samples: Tensor) -> tuple[BadSample, ...]:
        """The samples that are not finite, and where they ceased to be: read from the device once, at the end.

        A sum of finite outputs that overflowed is laid to its last row.
        """
        first = self.request.first_rows(self.table)
        never = workspace.registers.first_bad.new_full((), NEVER - 1)
        overflow = ~samples.flatten(1).isfinite().all(1)
        marks = workspace.registers.first_bad[: self.request.real]
        marks = torch.where(overflow, marks.minimum(never), marks)
        found = []
        for b, row in enumerate(marks.tolist()):
            if row != NEVER:
                plan = self.request.plans[b]
                index = min(row - first[b], plan.nfe - 1)
                found.append(BadSample(b, index, plan.times[index]))
        return tuple(found)
