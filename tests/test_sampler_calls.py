"""Calls of a `Sampler`: what is seen of them, what ends them, and what is kept after them."""

import threading

import pytest
import torch
from drawing import Reporting, draw
from golden_data import FROM_NOISE, named_stress
from sampler_case import SHAPE, ChannelsLast, Conv, Pointwise

import pndm_fast as pf

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")


def test_steps_are_shown(sampler):
    steps = []
    result = sampler(on_step=lambda step: steps.append((step.index, step.nfe, step.t, step.state, step.x0)))
    assert [s[0] for s in steps] == list(range(15)) and {s[1] for s in steps} == {15}
    assert [s[2] for s in steps] == list(sampler.plan.times)
    assert torch.equal(steps[-1][3], result)
    assert not torch.equal(steps[-2][3], result)  # copies, not the living buffer
    last = []
    result = sampler(plan=pf.make_plan("ddim", steps=5), on_step=lambda step: last.append(step.x0))
    torch.testing.assert_close(last[-1], result)  # DDIM ends on the network's last estimate


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(
    "solver", [*named_stress(sorted(set(FROM_NOISE) - {"lcm"})), "diffusers plms", "diffusers f-pndm"]
)
def test_x0_estimates_of_a_single_point(solver, prediction):
    """Where the data is one point, every estimate of x_0 is that point."""
    compat, _, solver = solver.rpartition(" ")
    schedule, point = pf.Schedule.linear(), 0.7

    def network(x, t):
        alpha, sigma = (float(f(float(t[0]))) for f in (schedule.alpha, schedule.sigma))
        eps = (x - alpha * point) / sigma
        return eps if prediction == "eps" else alpha * eps - sigma * point

    estimates = []
    noise = torch.randn(2, 5, dtype=torch.float64)
    plan = pf.make_plan(solver, steps=50, prediction=prediction, compat=compat or None)
    draw(network, solver=plan, start=pf.Noise(noise), on_step=lambda step: estimates.append(step.x0))
    for estimate in estimates:
        assert (estimate - point).abs().max() < 1e-9


def test_cancel(sampler):
    seen = []

    def stop(step):
        seen.append(step.state)
        if step.index == 4:
            step.cancel()

    with pytest.raises(pf.Cancelled, match="after row 4") as caught:
        sampler(on_step=stop)
    assert len(seen) == 5 and torch.equal(caught.value.state, seen[-1]) and caught.value.index == 4
    assert caught.value.x0.shape == (4, *SHAPE)
    assert torch.equal(sampler(), sampler())  # the sampler is as good as before


def test_errors_in_a_callback_or_network_leave_the_sampler_whole(sampler):
    wanted = sampler()

    def fail(step):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sampler(on_step=fail)
    assert torch.equal(sampler(), wanted)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan(backend, value, plan):
    def network(x, t):
        out = x * 0.5
        if t[0] < 500:
            out[2, 0, 3, 3] = value
        return out

    sampler = Reporting(network, plan, shape=(4, *SHAPE), backend=backend)
    row = next(i for i, t in enumerate(plan.times) if t < 500)
    for _ in range(2):
        with pytest.raises(pf.NonFiniteError, match=f"sample 2 at row {row}, t = {plan.times[row]:g}") as caught:
            sampler()
    assert caught.value.bad == (pf.BadSample(2, row, plan.times[row]),)
    good = [0, 1, 3]
    clean = pf.sample(lambda x, t: x * 0.5, solver=plan, shape=(4, *SHAPE))
    assert torch.equal(caught.value.samples[good], clean[good])
    marked = sampler(on_nan="mark")
    assert marked[2].isnan().all() and torch.equal(marked[good], clean[good])
    assert torch.equal(sampler(on_nan="ignore")[good], clean[good])


def test_clipped_plan_still_reports_nan():
    """The clamp must not hide what the network did."""
    plan = pf.make_plan("ddim", steps=4, clip=1.0)
    with pytest.raises(pf.NonFiniteError):
        pf.sample(lambda x, t: x / 0, solver=plan, shape=(1, 8))


@pytest.mark.parametrize("solver", FROM_NOISE)
def test_clip_bounds_the_estimate(solver):
    """Whatever a solver's slots hold; a limit that no estimate reaches changes nothing."""
    plan = pf.make_plan(solver, steps=8, spacing="trailing")
    noise = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(plan, gain):
        seen = []
        result = draw(lambda x, t: x * gain, solver=plan, start=pf.Noise(noise), on_step=lambda s: seen.append(s.x0))
        return result, max(float(x0.abs().max()) for x0 in seen)

    free, reached = run(plan, 0.9)
    assert reached > 0.5
    assert run(pf.make_plan(solver, steps=8, spacing="trailing", clip=0.5), 0.9)[1] <= 0.5 + 1e-9
    wide = run(plan.with_clip(2 * reached), 0.9)[0]
    assert torch.allclose(wide, free, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="clip must be given once"):
        plan.with_clip(1.0).with_clip(1.0)


def test_progress_is_drawn(sampler, capsys):
    sampler(progress=True)
    assert "f-pndm" in capsys.readouterr().err


def test_threads_share_a_sampler():
    """8 threads, 50 mixed requests each, on shared objects: the bits of the sequential run."""
    network = Pointwise()
    solvers = [("ddim", 3), ("s-pndm", 4), ("f-pndm", 5), ("plms", 4), ("ddpm", 3), ("ipndm", 6)]
    plans = [pf.make_plan(name, steps=steps) for name, steps in solvers]
    sampler = Reporting(network, plans[0], shape=(2, *SHAPE))
    requests = []
    for i in range(50):
        request = {"plan": plans[i % 6], "seeds": [i, i + 7, i * 31][: 1 + i % 3]}
        if i % 4 == 0:
            batch = len(request["seeds"])
            request |= {"cond": {"shift": torch.full((batch,), 0.1)}, "uncond": {"shift": torch.zeros(batch)}}
            request["guidance"] = 2.0 + i % 3
        requests.append(request)
    wanted = [sampler(**request) for request in requests]
    failures = []

    def work(offset):
        for i in range(50):
            k = (i * 7 + offset * 13) % 50
            if not torch.equal(sampler(**requests[k]), wanted[k]):
                failures.append((offset, k))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_report_and_reset(sampler):
    result = sampler.run(pf.Request())
    report = result.report
    assert torch.equal(result.samples, sampler()) and result.bad == ()
    assert (report.nfe, report.calls, report.batch, report.device, report.backend) == (15, 15, 4, "cpu", "cpp")
    assert report.seconds > 0 and report.buffer_bytes > 4 * 192 * 4 * 8
    sampler.reset()
    assert torch.equal(sampler(), sampler())


def test_many_plans_do_not_pile_up():
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=2), shape=(1, 16))
    for steps in range(2, 80):
        sampler(plan=pf.make_plan("ddim", steps=steps))
    assert len(sampler.cache.tables._values) <= 32


def test_doubtful_starts():
    with pytest.warns(UserWarning, match="trailing"):
        pf.sample(Pointwise(), 2, solver="ddim", shape=(1, 8))
    with pytest.raises(ValueError, match="alpha is 0.9.*trailing.*start=State"):
        pf.sample(Pointwise(), solver=pf.make_plan("ddim", times=[100, 50, -1]), shape=(1, 8))
    pf.sample(Pointwise(), solver=pf.make_plan("ddim", times=[100, 50, -1]), start=pf.State(torch.randn(1, 8)))


def test_sample_remembers_a_network_while_it_lives():
    """A second `sample` learns nothing again; a network that is gone leaves nothing behind."""
    import gc
    import weakref

    from pndm_fast.runtime import cache

    calls = []

    class Counting(ChannelsLast):
        def forward(self, x, t):
            calls.append(len(x))
            return super().forward(x, t)

    network = Counting()
    first = pf.sample(network, 4, solver="ddim", shape=(2, *SHAPE))
    assert len(calls) == 4
    assert torch.equal(pf.sample(network, 4, solver="ddim", shape=(2, *SHAPE)), first) and len(calls) == 8
    assert torch.equal(pf.sample(network.forward, 4, solver="ddim", shape=(2, *SHAPE)), first)
    alive = weakref.ref(network)
    held = len(cache._OF_MODEL)
    del network
    gc.collect()
    assert alive() is None and len(cache._OF_MODEL) < held


def test_autocast_is_another_form():
    network = Conv()
    sampler = Reporting(network, pf.make_plan("ddim", steps=3), shape=(2, *SHAPE))
    plain = sampler()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sampler()
    assert torch.equal(sampler(), plain) and not torch.equal(rounded, plain)
