"""The Triton row and the loop around it on a GPU."""

import pytest
import torch
from cases import Steps, against_diffusers
from compare import Target, contest, record, skip_unless_full
from loops import overhead

pytestmark = pytest.mark.gpu

SAMPLE = (4, 64, 64)
BATCHES = [1, 16, 256, 4096]  # of 2^14 elements: 2^26 at most
NETWORKS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def milliseconds(call):
    """Median and quartiles of a call on the device, the second-level cache emptied before each."""
    import triton.testing

    return triton.testing.do_bench(call, quantiles=[0.5, 0.25, 0.75])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("solver", ["plms", "ddpm"])
def test_row_against_copy(benchmark, request, solver, network, batch):
    """Bandwidth of a row, without (plms) and with (ddpm) Philox normals, against a copy of as many bytes."""
    if batch > 256:
        skip_unless_full(request, benchmark)
    steps = Steps((batch, *SAMPLE), NETWORKS[network], solver=solver, device="cuda")
    steps.check(rows=2)
    moved = steps.moved(reads=3 if solver == "plms" else 0)
    source = torch.ones(moved // 8, device="cuda")
    target = torch.empty_like(source)
    benchmark.pedantic(steps.run, args=(1,), setup=steps.reset)
    if benchmark.disabled:
        return
    steps.reset()
    row = milliseconds(lambda: steps.step(steps.out, None, None))
    copy = milliseconds(lambda: target.copy_(source))
    bound = Target(1.15, at_most=True) if moved > 2**28 and solver == "plms" else None
    record(benchmark, [row[0] / 1e3], bound, round(row[0] / copy[0], 4), None, calls=1, rival="copy", bytes=moved)
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
    from test_compiled import Compiled, Side, check

    steps = Steps((batch, *SAMPLE), NETWORKS[network], device="cuda")
    fresh, into = Compiled(steps, False), Compiled(steps, True)
    check(steps, fresh, into)
    rivals = {"inductor": Side(fresh.run, steps.reset), "inductor-in-place": Side(into.run, steps.reset)}
    contest(benchmark, steps.side(), rivals, Target(1.0), rounds=rounds, moved=steps.moved())


@pytest.mark.parametrize("batch", [1, 16])
def test_gpu_row_outside_the_network(benchmark, rounds, batch):
    overhead(benchmark, (batch, *SAMPLE), "cuda", rounds)
