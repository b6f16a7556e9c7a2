"""The loop: call the network, execute a row, again. It knows no solver, and no row that all samples share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop import nvtx
from pndm_fast.loop.evaluation import Output
from pndm_fast.loop.positions import Positions
from pndm_fast.loop.results import BadSample, Cancelled, Step
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.workspace import Workspace
from pndm_fast.plan.matrix2 import Coefficient
from pndm_fast.plan.row import Row
from pndm_fast.row.layout import flatten
from pndm_fast.row.registers import NEVER

RunRows = Callable[[int], None]  # execute so many rows


def eager_rows(segment: Segment, workspace: Workspace, positions: Positions, first: Output | None) -> RunRows:
    """Rows by calling the network and the row operation one after the other; `first` is an output that is there.

    They raise what `Evaluation.bind` says.
    """
    table, source, channels = segment.table.data, segment.call.noise, workspace.registers.channels
    network, row = segment.evaluation.bind(workspace, table), workspace.bind(table, segment.backend)

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
    """
    left, known = segment.length, segment.call.origin.known is not None
    while left:
        count = min(at_once, left)
        left -= count
        seen = None if on_step is None else (workspace.registers.y.clone(), positions.rows())
        done = positions.next_rows() if known else []
        rows(count)
        positions.advance(count)
        if known:
            workspace.put_known(segment.call, done, positions.next_rows())
        if on_step is not None and seen is not None:
            _step(segment, workspace, positions.run - 1, *seen).show(on_step)
        if after is not None:
            after(positions.run)
    return samples_of(segment, workspace)


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


def bad_samples(segment: Segment, workspace: Workspace, samples: Tensor) -> tuple[BadSample, ...]:
    """The samples that are not finite, and where they ceased to be: read from the device once, at the end.

    A sum of finite outputs that overflowed is laid to its last row.
    """
    call, first_bad = segment.call, workspace.registers.first_bad
    total = float(samples.sum())  # finite where all of its terms are: one pass, and one wait for the device
    if math.isfinite(total) and min(first_bad.tolist()) == NEVER:
        return ()
    first, marks = segment.first_rows(), first_bad[: call.real]
    never = NEVER - 1
    overflow = ~samples.flatten(1).isfinite().all(1)
    found = []
    for b, row in enumerate(torch.where(overflow, marks.clamp(max=never), marks).tolist()):
        if row != NEVER:
            plan = call.plans[b]
            index = min(row - first[b], plan.nfe - 1)
            found.append(BadSample(b, index, plan.times[index]))
    return tuple(found)
