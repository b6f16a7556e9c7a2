"""What `Sampler` does between two network calls, against diffusers' `PNDMScheduler.step` and torch.compile."""

import pytest
import torch
from speed.harness import Target, contest, skip_unless_full
from speed.steps import Steps, against_diffusers, compiled_rivals

DIFFUSERS = {
    "4x64x64-B1": ((1, 4, 64, 64), 12.0),
    "4x64x64-B16": ((16, 4, 64, 64), 4.0),
    "3x32x32-B1": ((1, 3, 32, 32), 12.0),
    "3x32x32-B16": ((16, 3, 32, 32), 4.0),
    "3x32x32-B256": ((256, 3, 32, 32), 4.0),
}
COMPILED = {
    "3x32x32-B1": (1, 3, 32, 32),
    "3x32x32-B16": (16, 3, 32, 32),
    "3x32x32-B256": (256, 3, 32, 32),
    "4x64x64-B1": (1, 4, 64, 64),
    "4x64x64-B16": (16, 4, 64, 64),
    "4x128x128-B1": (1, 4, 128, 128),
    "4x128x128-B16": (16, 4, 128, 128),
    "4x128x128-B96": (96, 4, 128, 128),
}


@pytest.mark.parametrize("shape", DIFFUSERS)
def test_step_against_diffusers(benchmark, request, rounds, threads, shape):
    shape, bound = DIFFUSERS[shape]
    if shape[0] > 16:
        skip_unless_full(request, benchmark)
    ours, theirs = against_diffusers(shape)
    contest(benchmark, ours.side(), {"diffusers": theirs.side()}, Target(bound), rounds=rounds, moved=ours.moved())


@pytest.mark.parametrize("batch", [1, 16])
def test_guided_step_against_diffusers(benchmark, rounds, threads, batch):
    """Guidance, the step and the doubled input: one row of ours, against the eager expressions that pipelines write."""
    ours, theirs = against_diffusers((batch, 4, 64, 64), guidance=7.5)
    contest(benchmark, ours.side(), {"eager": theirs.side()}, Target(4.0), rounds=rounds, moved=ours.moved())


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", COMPILED)
def test_step_against_inductor(benchmark, request, rounds, threads, shape, network):
    if shape != "3x32x32-B1" or threads > 1:
        skip_unless_full(request, benchmark)
    steps = Steps(COMPILED[shape], network)
    contest(benchmark, steps.side(), compiled_rivals(steps), Target(1.0), rounds=rounds, moved=steps.moved())
