"""Captured rows on a CUDA device: eager's bits, no growth, no races.

Every test is of one mode, a parameter: `make gpu` runs those of `while` in a process of their own.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from drawing import Reporting
from golden_data import FROM_NOISE
from gpu_networks import (
    DEVICE,
    FAKE,
    MODES,
    SHAPE,
    assert_no_synchronization,
    cancel_from_another_thread,
    conv,
    pointwise,
    sampler,
)

import pndm_fast as pf
from pndm_fast.phase_space import PSLD

pytestmark = pytest.mark.gpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARM, CALLS = (2, 6) if FAKE else (100, 1000)
REPLAYS, ROWS, PROGRAMS = 200 if FAKE else 100_000, 50, 64


def captured(ours, mode):
    """Assert that the last call ran in that mode."""
    report = ours.report
    assert (report.graph, report.graph_reason) == (mode, ""), report.graph_reason
    assert report.captures >= 1 and report.nodes


@pytest.mark.filterwarnings("ignore:.* diverges in")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", FROM_NOISE)
def test_graph_is_eager(solver, mode, dtype):
    model = conv(DTYPES[dtype])
    wanted = sampler(model, "eager", solver)(seeds=5)
    ours = sampler(model, mode, solver)
    for _ in range(3):
        assert torch.equal(ours(seeds=5), wanted)
    captured(ours, mode)
    assert ours.report.captures == 1 and ours.report.recaptures == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
def test_guided_graph_is_eager(solver, mode, dtype):
    model = conv(DTYPES[dtype])
    cond = {"shift": torch.tensor([1.0, 2.0, 3.0], device=DEVICE)}
    uncond = {"shift": torch.zeros(3, device=DEVICE)}
    eager, ours = sampler(model, "eager", solver), sampler(model, mode, solver)
    # at 1.0 nothing is guided: that is another network call, and another graph
    for guidance, captures in ((2.5, 1), (7.5, 1), (1.0, 2), (-3.0, 2)):
        arguments = {"seeds": 3, "cond": cond, "uncond": uncond, "guidance": guidance}
        assert torch.equal(ours(**arguments), eager(**arguments))
        captured(ours, mode)
        assert ours.report.captures == captures


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", ["conjugate", "rvv", "sscs", "nobab"])
def test_phase_space_graph_is_eager(solver, mode):
    """Rows of blocks; after them a scalar plan on the same sampler, and blocks again."""
    plans = [pf.make_plan(solver, PSLD(), steps=20), pf.make_plan("ddpm", steps=9)]
    shape = (3, 6, 8, 8)
    eager, ours = (Reporting(pointwise, plans[0], shape=shape, device=DEVICE, graph=g) for g in ("eager", mode))
    for plan in (plans[0], plans[0], plans[1], plans[0]):
        assert torch.equal(ours(seeds=5, plan=plan), eager(seeds=5, plan=plan))
        captured(ours, mode)


@pytest.mark.filterwarnings("ignore:.* diverges in")  # few steps are enough for bits
@pytest.mark.parametrize("mode", MODES)
def test_what_needs_no_new_capture(mode):
    """Steps, solvers, seeds and conditioning values are device data."""
    model = conv()
    eager, ours = sampler(model, "eager"), sampler(model, mode)
    for i, solver in enumerate(FROM_NOISE):
        plan = pf.make_plan(solver, steps=5 + 3 * i)
        arguments = {"seeds": [i, 7, 2**64 - 1], "plan": plan, "cond": {"shift": torch.full((3,), i / 2).to(DEVICE)}}
        assert torch.equal(ours(**arguments), eager(**arguments)), solver
    mixed = [pf.make_plan(solver, steps=steps) for solver, steps in (("ddim", 4), ("f-pndm", 9), ("ddpm", 6))]
    arguments = {"plan": mixed, "cond": {"shift": torch.ones(3, device=DEVICE)}}
    assert torch.equal(ours(**arguments), eager(**arguments))
    captured(ours, mode)
    assert ours.report.captures == 1


def memory():
    """Bytes that torch has given out, that torch holds, that the driver says are used, and of this process's own."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total - free, pages * 4096


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_calls_do_not_grow(mode):
    model = conv()
    plans = [pf.make_plan("f-pndm", steps=5), pf.make_plan("ddpm", steps=7)]
    eager, ours = sampler(model, "eager"), sampler(model, mode)
    wanted = [eager(plan=plan, seeds=1) for plan in plans]
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for i in range(WARM + CALLS):
        if i == WARM:
            before = memory()
        got = ours(plan=plans[i % 2], seeds=1, on_nan="ignore")
        wrong += (got != wanted[i % 2]).sum()
    after = memory()
    assert wrong.item() == 0
    assert after[:2] == before[:2], (before, after)
    assert after[2] - before[2] <= 2**23 and after[3] - before[3] <= 2**25, (before, after)
    captured(ours, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
def test_a_call_does_not_synchronize(mode, solver):
    ours = sampler(conv(), mode, solver)
    assert_no_synchronization(ours)
    captured(ours, mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_hundred_thousand_replays_at_mixed_rows(mode):
    """The row protocol: 64 programs a sample, samples at different rows of different plans, the reference's bits."""
    from pndm_fast.kernels.apply_row import BLOCK

    chosen = {"ddim": ROWS, "f-pndm": ROWS - 12, "ddpm": ROWS - 5, "s-pndm": ROWS - 1}
    plans = [pf.make_plan(solver, steps=steps) for solver, steps in chosen.items()]
    shape = (len(plans), (1 if FAKE else PROGRAMS) * BLOCK)
    options = {"shape": shape, "device": DEVICE}
    wanted = Reporting(pointwise, plans[0], graph="eager", backend="reference", **options)(plan=plans)
    ours = Reporting(pointwise, plans[0], graph=mode, **options)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(REPLAYS // ROWS):
        wrong += (ours(plan=plans, on_nan="ignore") != wanted).sum()
    assert wrong.item() == 0
    assert max(plan.nfe for plan in plans) == ROWS
    captured(ours, mode)


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_threads(mode, concurrency):
    """Eight threads, each on a stream of its own."""
    model = conv()
    eager, ours = sampler(model, "eager"), sampler(model, mode, concurrency=concurrency)
    wanted = [eager(seeds=seed) for seed in range(8)]
    ours()
    torch.cuda.synchronize()

    def work(seed):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            results = [ours(seeds=seed) for _ in range(3 if FAKE else 10)]
        stream.synchronize()
        return all(torch.equal(result, wanted[seed]) for result in results)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert 1 <= ours.report.captures <= concurrency


@pytest.mark.parametrize("mode", MODES)
def test_cancel_from_another_thread(mode):
    cancel_from_another_thread(mode)


@pytest.mark.parametrize("mode", MODES)
def test_prepared_batches(mode):
    """A request that is filled up to a prepared size gives each sample the bits that it has alone."""
    cond = {"shift": torch.tensor([0.5, -1.0, 2.0], device=DEVICE)}
    eager, ours = sampler(pointwise, "eager"), sampler(pointwise, mode)
    ours.prepare([2, 4], pf.Request(cond=cond))
    ours(cond=cond)
    captures = ours.report.captures
    assert captures == 2
    for batch in (3, 2, 1, 4):
        given = {"shift": torch.arange(float(batch), device=DEVICE)}
        arguments = {"seeds": range(batch), "cond": given}
        got = ours(**arguments)
        assert torch.equal(got, eager(**arguments)) and len(got) == batch
    assert ours.report.captures == captures
    captured(ours, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
def test_on_step_sees_what_eager_sees(solver, mode):
    model = conv()

    def seen(graph):
        steps = []
        out = sampler(model, graph, solver)(seeds=2, on_step=lambda s: steps.append((s.index, s.state, s.x0)))
        return steps, out

    (wanted, end), (got, own) = seen("eager"), seen(mode)
    assert torch.equal(own, end) and len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])


@pytest.mark.parametrize("mode", MODES)
def test_another_stream_and_back(mode):
    """A captured call is ordered after the work that its stream waits for, and before what waits for its stream."""
    ours = sampler(pointwise, mode)
    noise = torch.randn(3, *SHAPE, device=DEVICE)
    wanted = sampler(pointwise, "eager")(start=pf.Noise(noise))
    ours()
    stream = torch.cuda.Stream()
    for _ in range(5):
        late = torch.zeros_like(noise)
        torch.cuda._sleep(2_000_000)
        late.copy_(noise)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = ours(start=pf.Noise(late), on_nan="ignore")
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(got, wanted)
        assert torch.equal(ours(start=pf.Noise(noise)), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_nan_is_found_at_the_end(mode):
    def network(x, t):
        return torch.where((t < 500).view(-1, 1, 1, 1), torch.full_like(x, float("nan")), x * 0.5)

    ours = sampler(network, mode, "ddim")
    with pytest.raises(pf.NonFiniteError) as error:
        ours()
    eager = sampler(network, "eager", "ddim")
    with pytest.raises(pf.NonFiniteError) as same:
        eager()
    assert error.value.bad == same.value.bad
