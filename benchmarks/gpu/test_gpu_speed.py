"""The Triton row and the loop around it on a GPU."""

import machine
import pytest
import torch
from speed.calls import call_cost, free
from speed.harness import Side, Target, contest, contest_costs, operators_between_calls, record, skip_unless_full
from speed.steps import FIRST, DiffusersSteps, Steps, against_diffusers, compiled_rivals

import pndm_fast as pf
from pndm_fast.phase_space import PSLD
from pndm_fast.row.table import NOISE, layout_of

pytestmark = pytest.mark.gpu

SAMPLE = (4, 64, 64)
BATCHES = [1, 16, 256]  # of 2^14 elements
NETWORKS = {"bf16": torch.bfloat16, "fp32": torch.float32}


LARGE = (4096, *SAMPLE)  # 64M elements, many times the second-level cache


def copies(moved, device="cuda"):
    """A device-to-device copy that reads and writes so many bytes."""
    source = torch.rand(moved // 8, device=device)
    target = torch.empty_like(source)

    def run(calls):
        for _ in range(calls):
            target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize()

    return Side(run)


@pytest.mark.parametrize("network", NETWORKS)
def test_large_row(benchmark, request, rounds, network):
    """Share of the copy bandwidth that a PLMS row reaches at 64M elements."""
    skip_unless_full(request, benchmark)
    steps = Steps(LARGE, NETWORKS[network], device="cuda")
    steps.check(rows=2)
    moved = steps.moved()
    target = Target(0.9 if network == "bf16" else None)
    contest(benchmark, steps.side(), {"copy": copies(moved)}, target, rounds=rounds, moved=moved)
    benchmark.extra_info["clocks"] = machine.clocks()


@pytest.mark.parametrize("network", NETWORKS)
def test_large_phase_row(benchmark, request, rounds, network):
    """The same share for a row of blocks that takes four outputs."""
    skip_unless_full(request, benchmark)
    plan = pf.make_plan("conjugate", PSLD(), steps=50, order=4)
    steps = Steps(LARGE, NETWORKS[network], plan=plan, row=FIRST, device="cuda")
    steps.check(rows=2)
    moved = steps.moved()
    target = Target(0.9 if network == "bf16" else None)
    contest(benchmark, steps.side(), {"copy": copies(moved)}, target, rounds=rounds, moved=moved)


@pytest.mark.parametrize("network", NETWORKS)
def test_large_row_with_noise(benchmark, request, rounds, network):
    """A DDPM row over the same row without its noise, at 64M elements."""
    skip_unless_full(request, benchmark)
    steps, quiet = (Steps(LARGE, NETWORKS[network], solver="ddpm", device="cuda") for _ in range(2))
    layout = layout_of(quiet.table)
    for column in (NOISE, layout.y - 1, layout.end - 1):
        quiet.table[:, column] = 0
    steps.check(rows=1)
    quiet.check(rows=1)
    target, moved = Target(1.2 if network == "bf16" else None, at_most=True), steps.moved(reads=0)
    contest(benchmark, steps.side(), {"without noise": quiet.side()}, target, rounds=rounds, moved=moved)


@pytest.mark.parametrize("state", NETWORKS)
def test_large_guided_row(benchmark, request, rounds, state):
    """Guidance and a PLMS step on 64M bfloat16 outputs, over eager guidance and `PNDMScheduler`.

    Our state and slots are float32. The eager sample is that too, which gives the same numbers, or bfloat16, as
    pipelines keep it, with half the bytes and fewer digits.
    """
    skip_unless_full(request, benchmark)
    ours, theirs = against_diffusers(LARGE, 7.5, "cuda", torch.bfloat16)
    if state == "bf16":
        theirs = DiffusersSteps(ours, 7.5, torch.bfloat16)
    theirs.reset()
    theirs.run(4)
    rounds = min(rounds, 15)
    contest(benchmark, ours.side(), {"eager": theirs.side()}, Target(3.5), rounds=rounds, moved=ours.moved())


def milliseconds(call):
    """Median and quartiles of a call on the device, the second-level cache emptied before each."""
    import triton.testing

    return triton.testing.do_bench(call, quantiles=[0.5, 0.25, 0.75])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("solver", ["plms", "ddpm"])
def test_row_against_copy(benchmark, solver, network, batch):
    """Bandwidth of a row, without (plms) and with (ddpm) Philox normals, against a copy of as many bytes."""
    steps = Steps((batch, *SAMPLE), NETWORKS[network], solver=solver, device="cuda")
    steps.check(rows=2)
    moved = steps.moved(reads=3 if solver == "plms" else 0)
    source = torch.rand(moved // 8, device="cuda")
    target = torch.empty_like(source)
    benchmark.pedantic(steps.run, args=(1,), setup=steps.reset)
    if benchmark.disabled:
        return
    steps.reset()
    row = milliseconds(lambda: steps.step(steps.out, None, None))
    copy = milliseconds(lambda: target.copy_(source))
    record(benchmark, [row[0] / 1e3], None, round(row[0] / copy[0], 4), None, calls=1, rival="copy", bytes=moved)
    benchmark.extra_info |= {
        "row_quartiles_us": [round(x * 1e3, 3) for x in row[1:]],
        "GB/s": round(moved / row[0] / 1e6, 1),
        "copy GB/s": round(moved / copy[0] / 1e6, 1),
    }


@pytest.mark.parametrize("guidance", [None, 7.5], ids=["plain", "guided"])
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_gpu_step_against_diffusers(benchmark, rounds, batch, guidance):
    """Wall time of steps with one synchronization at the end of a block."""
    ours, theirs = against_diffusers((batch, *SAMPLE), guidance, "cuda")
    contest(benchmark, ours.side(), {"diffusers": theirs.side()}, Target(4.0), rounds=rounds, moved=ours.moved())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_gpu_step_against_inductor(benchmark, rounds, batch, network):
    steps = Steps((batch, *SAMPLE), NETWORKS[network], device="cuda")
    contest(benchmark, steps.side(), compiled_rivals(steps), Target(1.0), rounds=rounds, moved=steps.moved())


@pytest.mark.parametrize("batch", [1, 16])
def test_gpu_row_outside_the_network(benchmark, rounds, batch):
    shape = (batch, *SAMPLE)
    operators = operators_between_calls(shape, "cuda")
    case = call_cost(free(shape, "cuda"), shape, "plms", (50, 200), "cuda")
    contest_costs(benchmark, case, "row", Target(0, at_most=True), rounds, ratio=operators)
