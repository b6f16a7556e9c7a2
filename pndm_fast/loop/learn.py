"""The first call of a network: what its outputs are like."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pndm_fast.loop import nvtx
from pndm_fast.loop.evaluation import Output, OutputMisfit
from pndm_fast.loop.segment import Segment
from pndm_fast.loop.workspace import OutputSpec, Workspace
from pndm_fast.row.layout import channels_of, describe
from pndm_fast.row.registers import FLOATS


@dataclass(frozen=True, eq=False)
class FirstCall:
    """What a first call told, and what it left.

    Attributes:
        segment: with two calls for guidance, where the network refused one.
        workspace: begun buffers of the form that the outputs ask for.
        output: the first row's, None where those buffers are of another layout than the call saw: it is made again, so
            that the first sample of a `Sampler` has the bits of all later ones.
        calls: of the network so far.
    """

    spec: OutputSpec
    segment: Segment
    workspace: Workspace
    output: Output | None
    calls: int


def learn(segment: Segment) -> FirstCall:
    """Call the network in careful buffers, which it may write into, and look at what it does.

    Raises:
        ValueError, TypeError: outputs of another shape, device or dtype, or of a layout with gaps.
    """
    careful = OutputSpec(segment.call.state_dtype)
    workspace = Workspace(segment.buffers(careful))
    calls, refusal = 0, None
    for _ in range(2):  # what comes and goes is no refusal
        segment.begin(workspace)
        before = workspace.x_in._version
        try:
            calls += segment.evaluation.calls
            with nvtx.marked("network"):
                out, uncond = segment.evaluation.bind(workspace, learning=True)()
            break
        except (RuntimeError, ValueError) as error:
            if segment.evaluation.cfg_copies == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            refusal = error
    else:
        told = learn(segment.split(f"the network refused a batch of {2 * segment.call.batch}: {refusal}"))
        return replace(told, calls=told.calls + calls)
    wrote = workspace.x_in._version != before
    exact = segment.call.state_dtype is torch.float64
    channels = _checked_layout(out, workspace.x_in.shape, segment.device, exact)
    spec = OutputSpec(out.dtype, channels, wrote, segment.evaluation.split_reason)
    buffers = segment.buffers(replace(spec, writes_input=True))
    if buffers != workspace.spec:
        workspace = Workspace(buffers)
        segment.begin(workspace)
    if channels > 1:
        return FirstCall(spec, segment, workspace, None, calls)
    if uncond is not None and not workspace.fits(uncond):
        raise OutputMisfit(workspace.difference(uncond))
    return FirstCall(spec, segment, workspace, (out, uncond), calls)


def _checked_layout(out: Tensor, shape: torch.Size, device: torch.device, exact: bool) -> int:
    """The layout of a network's first output, as its channel count."""
    if out.shape != shape:
        raise ValueError(f"the network's output must have shape {tuple(shape)}, got {tuple(out.shape)}")
    if out.device != device:
        raise ValueError(f"the network's output must be on {device}, got {out.device}")
    if out.dtype not in FLOATS and not (exact and out.dtype is torch.float64):
        raise TypeError(f"the network's output must be float32, float16 or bfloat16, got {out.dtype}")
    channels = channels_of(out)
    if channels is None:
        got = describe(out)
        raise ValueError(f"the network's output must be contiguous or channels_last, got {got}: call .contiguous()")
    return channels
