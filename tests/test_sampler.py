"""`sample` and `Sampler`: what a caller relies on, whatever the solver."""

import numpy as np
import pytest
import torch
from drawing import Reporting, draw
from golden_data import FROM_NOISE, GUIDED, START, mixture
from sampler_case import SHAPE, Conv, Pointwise

import pndm_fast as pf
from pndm_fast.row.noise import normals, seed_tensor

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")


def test_defaults_need_only_a_model():
    class Configured(Conv):
        config = {"in_channels": 3, "sample_size": (8, 8)}

    x = pf.sample(Configured())
    assert x.shape == (1, *SHAPE) and x.dtype is torch.float32 and x.is_contiguous() and not x.requires_grad


def test_the_default_dtype_is_the_callers_affair(plan):
    wanted = pf.sample(Pointwise(), solver=plan, shape=(2, *SHAPE))
    torch.set_default_dtype(torch.float64)
    try:
        for backend in ("cpp", "reference"):
            got = draw(Pointwise(), solver=plan, shape=(2, *SHAPE), backend=backend, device="cpu")
            assert got.dtype is torch.float32 and torch.equal(got, wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_same_seed_same_bytes(sampler):
    first = sampler(seeds=7)
    for _ in range(5):
        assert torch.equal(sampler(seeds=7), first)
    assert torch.equal(pf.sample(Pointwise(), 6, shape=(4, *SHAPE), seeds=7), first)
    assert not torch.equal(sampler(seeds=8), first)


def test_start_is_the_seeds_noise():
    seen = []
    pf.sample(lambda x, t: seen.append(x.clone()) or x * 0, 4, shape=(2, *SHAPE), seeds=[5, 2**64 - 1])
    wanted = normals(seed_tensor([5, 2**64 - 1]), 0, 192).view(2, *SHAPE)
    assert torch.equal(seen[0], wanted)


@pytest.mark.filterwarnings("ignore:(alphafold-3|edm|heun|dpm-2-.*|dpm-fast) diverges")  # few steps are enough for bits
@pytest.mark.parametrize("solver", FROM_NOISE)
def test_a_sample_does_not_depend_on_its_batch(solver):
    sampler = Reporting(Pointwise(), pf.make_plan(solver, steps=6), shape=(1, *SHAPE))
    seeds = [3, 14, 15, 92, 65]
    together = sampler(seeds=seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(sampler(seeds=seed)[0], together[i])
    assert torch.equal(sampler(seeds=seeds[::-1]).flip(0), together)


def test_integer_seed_counts_up(sampler):
    assert torch.equal(sampler(seeds=10), sampler(seeds=[10, 11, 12, 13]))
    assert torch.equal(sampler(seeds=np.int64(10)), sampler(seeds=np.arange(10, 14)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm", "plms"])
def test_backends_agree_to_the_bit(dtype, solver):
    """C++ and reference, with a real network between the rows."""
    results = [
        draw(Conv(dtype), 5, solver=solver, shape=(3, *SHAPE), seeds=4, backend=backend)
        for backend in ("cpp", "reference")
    ]
    assert torch.equal(*results)


LABELS = {"cond": {"labels": torch.tensor([1, 2])}, "uncond": {"labels": torch.tensor([10, 10])}, "guidance": 0.7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", [*GUIDED, "restart"])
def test_backends_agree_to_the_bit_on_both_outputs(dtype, solver):
    results = [
        draw(Conv(dtype), 5, solver=solver, shape=(2, *SHAPE), seeds=4, backend=backend, **LABELS)
        for backend in ("cpp", "reference")
    ]
    assert torch.equal(*results) and results[0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dpmpp-2s-ancestral-cfg-pp", "res-multistep-ancestral-cfg-pp", "restart"])
def test_triton_agrees_to_the_bit_on_both_outputs(solver, triton_device):
    network = Conv().to(triton_device)
    given = {"shape": (2, *SHAPE), "seeds": 4, "solver": solver, **LABELS}
    given |= {name: {"labels": LABELS[name]["labels"].to(triton_device)} for name in ("cond", "uncond")}
    triton, reference = (draw(network, 3, backend=backend, **given) for backend in ("triton", "reference"))
    assert torch.equal(triton, reference)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
def test_triton_agrees_to_the_bit(solver, triton_device):
    network = Conv().to(triton_device)
    triton = draw(network, 4, solver=solver, shape=(2, *SHAPE), seeds=4, backend="triton")
    reference = draw(network, 4, solver=solver, shape=(2, *SHAPE), seeds=4, backend="reference")
    assert torch.equal(triton, reference)


@pytest.mark.parametrize("size", [1, 7, 784, 65537])
def test_odd_sizes(size):
    results = [draw(Pointwise(), 5, solver="ddpm", shape=(2, size), seeds=1, backend=b) for b in ("cpp", "reference")]
    assert torch.equal(*results)


def test_low_precision_network_keeps_a_float32_state():
    """The result of a bfloat16 network is the float32 trajectory through its rounded outputs, not a rounded one."""
    network = Conv(torch.bfloat16)
    seen = []
    x = draw(lambda x, t: seen.append(x.dtype) or network(x, t), 5, dtype=torch.bfloat16, shape=(2, *SHAPE))
    assert set(seen) == {torch.bfloat16} and x.dtype is torch.float32
    assert not torch.equal(x, x.bfloat16().float())


def test_noise_and_state():
    noise = torch.randn(2, *SHAPE)
    assert torch.equal(
        pf.sample(Pointwise(), 5, start=pf.Noise(noise), schedule=pf.Schedule.linear()),
        pf.sample(Pointwise(), 5, start=pf.State(noise), schedule=pf.Schedule.linear()),
    )
    assert pf.sample(Pointwise(), 5, start=pf.Noise(noise.double())).dtype is torch.float64
    assert pf.sample(Pointwise(), 5, start=pf.Noise(noise.half())).dtype is torch.float32


def test_float64_is_exact_and_float32_near():
    exact = pf.sample(mixture(pf.Schedule.linear()), 20, start=pf.Noise(START))
    near = pf.sample(mixture(pf.Schedule.linear()), 20, start=pf.Noise(START.float()))
    # rounding of the start and of each row: sum |coefficients| eps_mach rows
    assert (near - exact).abs().max() < 29 * 10 * torch.finfo(torch.float32).eps


def test_a_float64_network_has_a_float64_state():
    network = Conv(torch.float64)
    x = pf.sample(network, 5, shape=(2, *SHAPE), seeds=3)
    start = normals(seed_tensor([3, 4]), 0, 192).view(2, *SHAPE)
    assert x.dtype is torch.float64
    assert torch.equal(x, pf.sample(network, 5, start=pf.Noise(start.double())))
    assert torch.equal(x, pf.sample(network, 5, start=pf.Noise(start)))


def test_noises_replace_philox():
    seeds = seed_tensor([0, 1])
    asked = []

    def noises(index):
        asked.append(index)
        return normals(seeds, index, 192).view(2, *SHAPE)

    ours = pf.sample(Pointwise(), 4, solver="ddpm", shape=(2, *SHAPE), seeds=0)
    theirs = draw(Pointwise(), 4, solver="ddpm", shape=(2, *SHAPE), noise_sampler=noises)
    assert torch.equal(ours, theirs)
    assert asked == [0, 2, 3, 4]  # x_T, then rows 0, 1 and 2; the last draws none


def test_conditioning_reaches_the_network():
    # the plan grows a network's rounding 500-fold: in float64 far below the law, on any processor
    network, labels = Conv(torch.float64), torch.tensor([1, 2])
    x = pf.sample(network, 4, shape=(2, *SHAPE), cond={"labels": labels})
    alone = pf.sample(network, 4, shape=(1, *SHAPE), seeds=1, cond={"labels": labels[1:]})
    torch.testing.assert_close(x[1:], alone, rtol=0, atol=1e-10)
    assert not torch.allclose(x, pf.sample(network, 4, shape=(2, *SHAPE)), atol=1e-3)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_guidance_is_one_batched_call(backend):
    calls = []

    def network(x, t, shift):
        calls.append((len(x), len(t), shift.tolist()))
        return Pointwise()(x, t, shift)

    shift, nothing = torch.tensor([0.1, 0.2]), torch.zeros(2)
    sampler = Reporting(network, pf.make_plan("ddim", steps=5), shape=(2, *SHAPE), backend=backend)
    x = sampler(cond={"shift": shift}, uncond={"shift": nothing}, guidance=3.0)
    assert calls == [(4, 4, pytest.approx([0.0, 0.0, 0.1, 0.2]))] * 5
    assert sampler.report.guidance == "batched" and sampler.report.calls == 5
    # for a network linear in its condition, guidance g is the condition scaled by g
    torch.testing.assert_close(x, sampler(cond={"shift": 3 * shift}), rtol=1e-4, atol=1e-5)


def test_guidance_takes_two_calls_where_it_must():
    def ragged(x, t, text=None):
        return x * 0.5 + (0 if text is None else text.mean())

    cond, uncond = {"text": torch.ones(2, 7)}, {"text": torch.ones(2, 3)}
    sampler = Reporting(ragged, pf.make_plan("ddim", steps=5), shape=(2, *SHAPE))
    x = sampler(cond=cond, uncond=uncond, guidance=2.0)
    assert sampler.report.calls == 10 and "two calls" in sampler.report.guidance
    torch.testing.assert_close(x, sampler(cond=cond), rtol=1e-6, atol=1e-6)
    sampler(cond=cond, uncond={"text": None}, guidance=2.0)
    assert sampler.report.calls == 10


def test_guidance_where_the_network_refuses_a_double_batch():
    def fixed(x, t, shift):
        if len(x) != 2:
            raise RuntimeError("batch must be 2")
        return Pointwise()(x, t, shift)

    sampler = Reporting(fixed, pf.make_plan("ddim", steps=5), shape=(2, *SHAPE))
    arguments = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}, "guidance": 2.0}
    first = sampler(**arguments)
    assert "refused a batch of 4: batch must be 2" in sampler.report.guidance
    for calls in (11, 10):  # it is asked once more: a refusal may be chance
        assert torch.equal(sampler(**arguments), first) and sampler.report.calls == calls


def test_guidance_of_one_makes_no_second_evaluation(sampler):
    arguments = {"cond": {"shift": torch.ones(4)}, "uncond": {"shift": torch.zeros(4)}}
    assert torch.equal(sampler(**arguments, guidance=1.0), sampler(cond=arguments["cond"]))
    assert sampler.report.guidance == "none"


def test_two_calls_survive_a_static_output():
    """A network that answers in one buffer of its own (CUDA graphs do) must not overwrite the first answer."""
    static = torch.empty(2, *SHAPE)

    def network(x, t, text):
        return static.copy_(Pointwise()(x, t) + text.mean())

    plan = pf.make_plan("ddim", steps=4)
    arguments = {"cond": {"text": torch.ones(2, 7)}, "uncond": {"text": torch.zeros(2, 3)}, "guidance": 2.0}
    x = pf.sample(network, solver=plan, shape=(2, *SHAPE), **arguments)
    wanted = pf.sample(lambda x, t: Pointwise()(x, t) + 2, solver=plan, shape=(2, *SHAPE))
    torch.testing.assert_close(x, wanted, rtol=1e-6, atol=1e-6)


def test_plans_of_one_batch_may_differ(sampler):
    plans = [
        pf.make_plan("ddim", steps=3),
        pf.make_plan("f-pndm", steps=5),
        pf.make_plan("ddpm", steps=4),
        pf.make_plan("ddim", steps=3),
    ]
    together = sampler(seeds=0, plan=plans)
    for i, plan in enumerate(plans):
        assert torch.equal(together[i], sampler(seeds=[i], plan=plan)[0])
    assert sampler.report.nfe == 3
    assert sampler(seeds=0, plan=plans).shape == (4, *SHAPE) and sampler.report.nfe == 14
