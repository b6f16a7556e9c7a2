"""The loop: call the network, execute a row, again. It knows no solver, and no row that all samples share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pndm_fast.loop import nvtx
from pndm_fast.loop.checks import check_changed, check_restarts
from pndm_fast.loop.evaluation import Evaluate, Output
from pndm_fast.loop.positions import Positions
from pndm_fast.loop.results import BadSample, Cancelled, Step
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.workspace import Workspace
from pndm_fast.plan.matrix2 import Coefficient
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import Row
from pndm_fast.row.device import fetch
from pndm_fast.row.layout import flatten
from pndm_fast.row.registers import NEVER

# what callbacks return by chance, as `bar.update()` and `file.write()` do
NO_STATE = (type(None), bool, int, float, str)
RunRows = Callable[[int], None]  # execute so many rows


def eager_rows(
    segment: Segment,
    workspace: Workspace,
    positions: Positions,
    network: Evaluate,
    first: Output | None,
) -> RunRows:
    """Rows by calling the network and the row operation one after the other; `first` is an output that is there.

    They raise what `Evaluation.bind`, which the network comes from, says.
    """
    source, channels = segment.call.noise, workspace.registers.channels
    row = workspace.bind(segment.backend).step

    def rows(count: int) -> None:
        nonlocal first
        evaluate, step = nvtx.marking("network", network), nvtx.marking("row", row)
        for _ in range(count):
            if first is None:
                out, uncond = evaluate()
            else:
                (out, uncond), first = first, None
            z = None if source is None else source.of_rows(positions)
            step(out, uncond, z if z is None else flatten(z, channels).contiguous())

    return rows


def run_segment(
    segment: Segment,
    workspace: Workspace,
    rows: RunRows,
    positions: Positions,
    *,
    at_once: int,
    on_step: Callable[[Step], Any] | None = None,
    after: Callable[[int], None] | None = None,
) -> Tensor:
    """The segment's rows, `at_once` at a time; then on_step and after(rows of the call so far). The state, copied.

    Raises:
        Cancelled: `on_step` or `after` asked for it.
        TypeError, ValueError: `on_step` returned what the next row cannot go on from, or cond of the next row is wrong.
    """
    left, call = segment.length, segment.call
    while left:
        count = min(at_once, left)
        left -= count
        follow = following(segment, workspace, positions, on_step)
        rows(count)
        positions.advance(count)
        follow()
        if after is not None:
            after(positions.run)
        if call.by_row is not None and positions.run < call.nfe:
            call.by_row.go(positions.run)
    return samples_of(segment, workspace)


def following(
    segment: Segment, workspace: Workspace, positions: Positions, on_step: Callable[[Step], Any] | None
) -> Callable[[], bool]:
    """Before rows: what is to follow them, the known part and on_step. That says whether it changed the states.

    What is returned raises what `run_segment` says of `on_step`.
    """
    call = segment.call
    seen = None if on_step is None else (workspace.registers.y.clone(), positions.rows())
    done = positions.next_rows() if call.origin.known is not None else []

    def follow() -> bool:
        if done:
            workspace.put_known(call, done, positions.left(), positions.next_rows())
        if on_step is None or seen is None:
            return bool(done)
        changed = _step(segment, workspace, positions.run - 1, *seen).show(on_step)
        if isinstance(changed, NO_STATE):
            return bool(done)
        _go_on_from(changed, segment, workspace, positions, seen[1], done)
        return True

    return follow


def _go_on_from(
    changed: Any,
    segment: Segment,
    workspace: Workspace,
    positions: Positions,
    rows: tuple[Row | None, ...],
    done: list[Row],
) -> None:
    """Put what `on_step` returned in the place of the states of samples that were under way in these rows."""
    call = segment.call
    states = check_changed(changed, call.shape, call.real, segment.device)
    samples = [b for b, row in enumerate(rows[: call.real]) if row is not None]
    check_restarts([(call.plans[b], positions.at[b] - 1) for b in samples])
    workspace.replace(samples, states)
    if done:
        workspace.put_known(call, done, positions.left(), positions.next_rows())
    else:
        workspace.feed(positions.next_rows())


def _step(segment: Segment, workspace: Workspace, index: int, seen: Tensor, rows: tuple[Row | None, ...]) -> Step:
    call = segment.call
    return Step(
        index,
        call.nfe,
        rows[: call.real],
        lambda: samples_of(segment, workspace),
        lambda: _estimate(segment, workspace, seen, rows),
    )


def samples_of(segment: Segment, workspace: Workspace) -> Tensor:
    """The state of those asked for, a fresh tensor [B, *shape]."""
    return workspace.state(segment.call.real)


def _estimate(segment: Segment, workspace: Workspace, seen: Tensor, rows: tuple[Row | None, ...]) -> Tensor:
    """The network's estimate of x_0, from the y that it saw; of a sample that had ended, y."""
    previews: list[tuple[Coefficient, Coefficient]] = [(1.0, 0.0) if row is None else row.preview for row in rows]
    return workspace.x0(seen, previews, [0 if row is None else row.slot for row in rows])[: segment.call.real]


def check_ended(segment: Segment, workspace: Workspace, positions: Positions, samples: Tensor) -> None:
    """Wait for the device, and see whether the loop there ran to its end: the longest plan's rows say so.

    Raises:
        Cancelled: it did not.
    """
    places = zip(workspace.registers.row.tolist(), segment.first_rows(), segment.at, strict=True)
    ran = max(now - first - at for now, first, at in places)
    if ran < segment.length:
        raise Cancelled(positions.run - segment.length + ran - 1, samples, None)


def watch_for_bad(segment: Segment, workspace: Workspace, samples: Tensor) -> Callable[[], tuple[BadSample, ...]]:
    """Begin to read which samples are not finite; what is returned waits for that, and says where they ceased to be.

    A sum of finite outputs that overflowed is laid to its last row. The buffers are free meanwhile.
    """
    call = segment.call
    # a sum is finite where all of its terms are: one pass
    read = fetch(workspace.registers.first_bad, samples.sum())

    def found() -> tuple[BadSample, ...]:
        first_bad, total = read()
        marks = first_bad[: call.real]
        if math.isfinite(total) and min(marks) == NEVER:
            return ()
        first = segment.first_rows()
        finite = samples.flatten(1).isfinite().all(1).tolist()
        marks = [row if fine else min(row, NEVER - 1) for row, fine in zip(marks, finite, strict=True)]
        return tuple([_bad(b, call.plans[b], row - first[b]) for b, row in enumerate(marks) if row != NEVER])

    return found


def _bad(sample: int, plan: Plan, row: int) -> BadSample:
    index = min(row, plan.nfe - 1)
    return BadSample(sample, index, plan.times[index])
