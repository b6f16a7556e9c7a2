"""A segment's first network call: what it tells of the outputs decides on the buffers, and its output is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pndm_fast.loop import nvtx
from pndm_fast.loop.evaluation import Evaluate, Output
from pndm_fast.loop.network import explain
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.workspace import BufferSpec, OutputSpec, Workspace
from pndm_fast.row.layout import channels_of
from pndm_fast.row.registers import FLOATS

Take = Callable[[BufferSpec], Workspace]
OUT_OF_MEMORY = torch.OutOfMemoryError, MemoryError


class FirstCall(NamedTuple):
    """What a first call told, and what it left.

    Attributes:
        spec: of the network's outputs.
        segment: with two calls for guidance, where the network refused one.
        workspace: begun buffers of the form that the outputs ask for; evaluate: the network on them.
        output: the first row's.
        refused: network calls that failed.
    """

    spec: OutputSpec
    segment: Segment
    workspace: Workspace
    evaluate: Evaluate
    output: Output
    refused: int = 0


def first_call(segment: Segment, known: OutputSpec | None, take: Take) -> FirstCall:
    """Begin the segment in buffers as the outputs are known to need them, or in careful ones, and call the network.

    Where the output is of another form, samples move to other buffers and take it along: the network is not called
    again, since one that keeps a state, a step cache say, would be a call ahead.

    Args:
        known: what earlier calls told; None where there were none.
        take: buffers of a form.

    Raises:
        ValueError, TypeError: outputs of another shape, on another device, or not of floating point.
    """
    expected = known or OutputSpec(segment.call.state_dtype, segment.channels())
    segment = segment.as_learned(expected)
    workspace = take(segment.buffers(expected))
    segment.begin(workspace)
    refused = 0
    try:
        told = _call(segment, workspace, known is None)
    except Exception as error:
        if segment.evaluation.cfg_copies == 1 or isinstance(error, OUT_OF_MEMORY):
            raise
        segment = segment.split(f"the network refused a batch of {2 * segment.call.batch}: {error}")
        refused, workspace = 1, _moved(segment, workspace, take(segment.buffers(expected)))
        told = _call(segment, workspace, known is None)
    evaluate, (out, uncond), wrote = told
    if known is not None and not wrote and not refused and workspace.fits(out):  # mostly
        uncond = None if uncond is None else workspace.taken(uncond)
        return FirstCall(known, segment, workspace, evaluate, (out, uncond))
    _check(out, workspace.x_in.shape, segment)
    spec = _told(segment, out, wrote, known, expected)
    if spec != expected and segment.buffers(spec) != workspace.spec:
        workspace = _moved(segment, workspace, take(segment.buffers(spec)), wrote)
        evaluate = segment.evaluation.bind(workspace)
    output = workspace.taken(out), None if uncond is None else workspace.taken(uncond)
    return FirstCall(spec, segment, workspace, evaluate, output, refused)


def _told(segment: Segment, out: Tensor, wrote: bool, known: OutputSpec | None, expected: OutputSpec) -> OutputSpec:
    """What an output tells of those to come."""
    state = segment.call.state_dtype
    # weights are asked again, which takes a walk over them, where an output is unlike what they said
    as_said = known is None or channels_of(out) == expected.channels
    return OutputSpec(
        out.dtype if out.dtype in FLOATS or out.dtype is state else state,
        expected.channels if as_said else segment.channels(),
        wrote or (known is not None and known.writes_input),
        segment.evaluation.split_reason,
    )


def _call(segment: Segment, workspace: Workspace, compare: bool) -> tuple[Evaluate, Output, bool]:
    """The network on a workspace, its outputs as they are, and whether it wrote its input.

    Args:
        compare: values too: torch counts no writes through `.data`, numpy or a kernel of the network's own.
    """
    evaluate, x = segment.evaluation.bind(workspace), workspace.x_in
    before, values = x._version, x.clone() if compare else None
    try:
        output = nvtx.marking("network", evaluate)(True)
    except RuntimeError as error:
        explain(error, segment.evaluation.model, x.dtype)
        raise
    return evaluate, output, x._version != before or (values is not None and not torch.equal(values, x))


def _moved(segment: Segment, old: Workspace, new: Workspace, wrote: bool = False) -> Workspace:
    """The samples before the segment's first rows, in other buffers: what their noise came from is not asked again."""
    snapshot = segment.snapshot
    if snapshot is None:
        snapshot = old.snapshot()
        if wrote and old.spec.direct:  # into y; before the first row x is the same
            snapshot = replace(snapshot, y=snapshot.x)
    segment._replace(snapshot=snapshot).begin(new)
    return new


def _check(out: Tensor, shape: torch.Size, segment: Segment) -> None:
    if out.shape != shape:
        raise ValueError(f"the network's output must have shape {tuple(shape)}, got {tuple(out.shape)}")
    if out.device != segment.device:
        raise ValueError(f"the network's output must be on {segment.device}, got {out.device}")
    if not out.dtype.is_floating_point or out.layout is not torch.strided:
        raise TypeError(f"the network's output must be dense and of floating point, got {out.dtype}, {out.layout}")
