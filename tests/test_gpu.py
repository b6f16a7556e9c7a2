"""The engine on a CUDA device: the same bits as on the CPU, and no host synchronization in the loop."""

import pytest
import torch
from drawing import draw
from golden_data import FROM_NOISE, PHASE
from gpu_networks import DEVICE, assert_no_synchronization, cancel_from_another_thread, conv, sampler
from gpu_networks import pointwise as shifted

import pndm_fast as pf
from pndm_fast.phase_space import PSLD
from pndm_fast.row.noise import normals, seed_tensor
from pndm_fast.runtime.graphs import AUTO_REASON

pytestmark = pytest.mark.gpu

SHAPE = (3, 8, 8)


def pointwise(x, t):
    """Two rounded operations an element: the same bits on every device."""
    return x * 0.5 + (t * 0.001).view(-1, *[1] * (x.dim() - 1))


@pytest.mark.filterwarnings("ignore:.* diverges in")
@pytest.mark.parametrize("solver", FROM_NOISE)
@pytest.mark.parametrize("size", [(5,), SHAPE, (1031,)])
def test_same_bits_as_the_cpu(solver, size):
    results = [
        draw(pointwise, 6, solver=solver, shape=(3, *size), seeds=9, device=device) for device in ("cpu", DEVICE)
    ]
    assert torch.equal(results[0], results[1].cpu())


@pytest.mark.filterwarnings("ignore:.* diverges in")
@pytest.mark.parametrize("solver", PHASE)
@pytest.mark.parametrize("size", [(2, 5), (6, 8, 8), (2, 1031)], ids=str)
def test_same_bits_as_the_cpu_in_phase_space(solver, size):
    plan = pf.make_plan(solver, PSLD(), steps=6)
    results = [draw(pointwise, solver=plan, shape=(3, *size), seeds=9, device=device) for device in ("cpu", DEVICE)]
    assert torch.equal(results[0], results[1].cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_triton_is_the_reference(dtype, layout):
    def network(x, t):
        return pointwise(x, t).to(dtype).contiguous(memory_format=layout)

    results = [
        draw(network, 4, solver="ddpm", shape=(2, *SHAPE), device=DEVICE, dtype=dtype, backend=backend, graph="eager")
        for backend in ("triton", "reference")
    ]
    assert torch.equal(*results)


def test_noise_is_the_cpus():
    seen = []
    draw(lambda x, t: seen.append(x.clone()) or x * 0, 4, shape=(2, 784), seeds=3, device=DEVICE, graph="eager")
    assert torch.equal(seen[0].cpu(), normals(seed_tensor([3, 4]), 0, 784))


@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
def test_no_synchronization_between_calls(solver):
    calls = []

    def network(x, t):
        calls.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(calls) < sampler.plan.nfe else "default")
        return x * 0.5

    plan = pf.make_plan(solver, steps=6)
    sampler = pf.Sampler(network, plan, shape=(2, *SHAPE), device=DEVICE, graph="eager")
    try:
        for _ in range(2):
            calls.clear()
            sampler()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' of numpy
@pytest.mark.parametrize("name", ["UniPCMultistep", "EulerAncestralDiscrete", "PNDM"])
def test_a_scheduler_s_steps(name):
    """`PlanScheduler`: the CPU's bits, and no synchronization in a step."""
    diffusers = pytest.importorskip("diffusers")
    from pndm_fast.integrations.diffusers import PlanScheduler

    theirs, made = getattr(diffusers, f"{name}Scheduler")(), []
    for device in ("cpu", DEVICE):
        scheduler = PlanScheduler.from_config(theirs)
        scheduler.set_timesteps(6, device=device)
        x = torch.linspace(-1, 1, 96).view(2, 3, 4, 4).to(device)
        generator = torch.Generator().manual_seed(0)  # on the CPU, so that the noise is the same
        for t in scheduler.timesteps:
            x = scheduler.step(x * 0.5, t, x, generator=generator).prev_sample
        made.append(x.cpu())
    assert torch.equal(*made)
    scheduler.set_timesteps(6, device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in scheduler.timesteps.unbind():
            x = scheduler.step(x * 0.5, t, x).prev_sample
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_another_stream():
    sampler = pf.Sampler(pointwise, pf.make_plan("f-pndm", steps=6), shape=(2, *SHAPE), device=DEVICE)
    wanted = sampler()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = sampler()
    stream.synchronize()
    assert torch.equal(got, wanted)


def test_guidance_and_nan():
    def network(x, t, shift):
        return pointwise(x, t) + shift.view(-1, 1, 1, 1)

    arguments = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}, "guidance": 2.0}
    on_gpu = {
        k: {n: v.to(DEVICE) for n, v in value.items()} if k != "guidance" else value for k, value in arguments.items()
    }
    cpu = pf.sample(network, 5, shape=(2, *SHAPE), **arguments)
    gpu = draw(network, 5, shape=(2, *SHAPE), device=DEVICE, **on_gpu)
    assert torch.equal(cpu, gpu.cpu())
    with pytest.raises(pf.NonFiniteError, match="sample 0 at row 0"):
        draw(lambda x, t: x / 0, 5, shape=(1, 8), device=DEVICE)


@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
def test_an_eager_call_does_not_synchronize(solver):
    assert_no_synchronization(sampler(conv(), "eager", solver))


def test_an_eager_call_is_cancelled_from_another_thread():
    cancel_from_another_thread("eager")


def test_a_default_sample_is_captured():
    """By `replay`, as long as no measurement says more."""
    model = conv()
    options = {"shape": (2, *SHAPE), "device": DEVICE, "seeds": 4}
    wanted = draw(model, 6, graph="eager", **options)
    ours = sampler(model, "auto", shape=options["shape"])
    for _ in range(2):
        assert torch.equal(ours(seeds=4, plan=pf.make_plan(steps=6)), wanted)
    report = ours.report
    assert (report.graph, report.graph_reason, report.captures) == ("replay", AUTO_REASON, 1)
    assert report.graph_bytes >= 0 and report.nodes


@pytest.mark.parametrize("graph", ["eager", "replay"])
def test_an_engine_s_requests(graph):
    """Each has the bits that it has alone; while they join, move and end, nobody waits for the device's numbers."""
    plans = [pf.make_plan(solver, steps=6) for solver in ("ddpm", "f-pndm", "unipc")]
    alone = pf.Sampler(shifted, shape=(1, *SHAPE), device=DEVICE, graph="eager")
    engine = pf.Engine(shifted, shape=(4, *SHAPE), device=DEVICE, graph=graph)

    def request(i):
        cond, uncond = ({"shift": torch.full((1,), shift, device=DEVICE)} for shift in (0.5 * i, 0.0))
        guided = {"uncond": uncond, "guidance": pf.Guidance(2.0, interval=(0.5, 5.0))} if i % 3 == 2 else {}
        return pf.Request(plan=plans[i % 3], seeds=[i, i + 1][: 1 + i % 2], cond=cond, **guided)

    for mode in ("default", "error"):  # the first time makes the batches
        requests = [request(i) for i in range(8)]
        numbers, over = {}, {}
        for i in (*range(8), *[None] * 60):
            if i is not None:
                numbers[engine.add(requests[i])] = i
            torch.cuda.set_sync_debug_mode(mode)
            try:
                over |= {numbers[one.id]: one for one in engine.step()}
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert engine.idle and over.keys() == set(range(8))
        for i, one in over.items():
            assert one.error is None and one.result.report.graph == graph, one
            assert torch.equal(one.result.samples, alone.run(requests[i]).samples)
