"""A segment's rows: run in one go, or one by one where somebody looks on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pndm_fast.loop.positions import Positions
from pndm_fast.loop.request import Request
from pndm_fast.loop.results import Cancelled
from pndm_fast.loop.run import check_ended, run_segment, samples_of
from pndm_fast.runtime import executor
from pndm_fast.runtime.cuda import Event
from pndm_fast.runtime.executor import Executor


def run_rows(request: Request, taken: Executor, positions: Positions, advance: Callable[[], None]) -> Tensor:
    """A segment's rows: in one go where nobody looks on; a loop on the device can be cancelled there.

    Args:
        advance: called after each row, where they are run one by one.

    Raises:
        Cancelled: with the samples as they are.
    """
    call, cancel = taken.segment.call, request.cancel
    watched = request.progress or request.on_step is not None or call.origin.known is not None
    between = call.noise is not None or call.by_row is not None
    if watched or between or (cancel is not None and taken.cancelable is None):
        return _row_by_row(request, taken, positions, advance)
    rows = taken.segment, taken.workspace, taken.rows, positions
    if cancel is None or taken.cancelable is None:
        return run_segment(*rows, at_once=taken.segment.length)
    with taken.cancelable(cancel):
        samples = run_segment(*rows, at_once=taken.segment.length)
        check_ended(taken.segment, taken.workspace, positions, samples)
    return samples


def _row_by_row(request: Request, taken: Executor, positions: Positions, advance: Callable[[], None]) -> Tensor:
    segment, workspace, cancel = taken.segment, taken.workspace, request.cancel
    pace = Pace(segment.device)

    def after(done: int) -> None:
        pace.tick()
        advance()
        if cancel is not None and cancel.is_set() and done < segment.call.nfe:
            raise Cancelled(done - 1, samples_of(segment, workspace), None)

    rows = segment, workspace, taken.rows, positions
    return run_segment(*rows, at_once=1, on_step=request.on_step, after=after)


class Pace:
    """Keeps the host one row ahead of the device, no more: what is cancelled then ends, and progress is progress."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = executor.cuda_of(device)
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
