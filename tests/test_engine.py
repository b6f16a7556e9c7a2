"""The whole engine on plans written by hand, against a loop of numpy: what no shipped solver exercises."""

import threading
import time

import numpy as np
import pytest
import torch
from drawing import Reporting, draw
from golden_data import FROM_NOISE

import pndm_fast as pf
from pndm_fast.plan.levels import Level, Levels
from pndm_fast.plan.row import ANCHOR, MAX_SLOTS, NOISE, SLOT, STATE, OutputMap
from pndm_fast.row import registers
from pndm_fast.row.noise import normals, seed_tensor
from pndm_fast.runtime import cache

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")
AT = Level(0.05, 1.0)


def row(t, slot, y, *, x=ANCHOR, **more):
    return pf.Row(t=t, slot=slot, y=tuple(y), x=tuple(x), levels=Levels(AT, AT, AT), **more)


LONG = pf.Plan(
    (
        row(9.0, 0, 0.5 * STATE + 0.2 * SLOT[0], x=STATE, in_scale=0.7, preview=(2.0, -1.0)),
        row(
            7.5, 2, 0.3 * ANCHOR + 0.4 * SLOT[2] + 0.1 * NOISE, store=OutputMap(0.5, -1.0, 0.25, 2.0, 0.8), in_scale=1.3
        ),
        row(5.0, 1, STATE - 0.5 * SLOT[0] + SLOT[1] + 0.2 * SLOT[2], x=0.5 * ANCHOR + NOISE, in_scale=0.9),
        row(2.0, 0, 0.6 * ANCHOR + 0.1 * SLOT[0], in_scale=1.1, preview=(0.0, 3.0)),
    ),
    prologue=pf.Prologue(p0=3.0, a0=0.5, c0=0.25),
)
SHORT = pf.Plan((row(4.0, 0, 0.9 * STATE - 0.1 * SLOT[0]), row(1.0, 0, 0.5 * STATE + 0.5 * SLOT[0])))


def network(x, t, shift=None):
    out = x * 0.5 + (t * 0.1).view(-1, 1)
    return out if shift is None else out + shift.view(-1, 1)


def by_hand(plan, seed, n, shift=None, guidance=None):
    """States after each row and x_0 estimates, float64."""

    def z(index):
        return normals(seed_tensor([seed]), index, n)[0].double().numpy()

    p0, a0, c0 = plan.prologue
    x = y = a0 * p0 * z(0) + (c0 * z(1) if c0 else 0)
    slots, states, estimates = [np.zeros(n)] * MAX_SLOTS, [], []
    for i, r in enumerate(plan.rows):
        out = 0.5 * r.in_scale * y + 0.1 * r.t
        if shift is not None:
            scale = 1.0 if guidance is None else guidance[i]
            out = out + scale * shift
        s = r.store
        slots[r.slot] = s.p2 * y + s.q2 * np.clip(s.p * y + s.q * out, -s.clamp, s.clamp)
        estimates.append(r.preview[0] * y + r.preview[1] * slots[r.slot])
        operands = np.stack([x, y, *slots, z(i + 2)])
        x, y = np.array(r.x) @ operands, np.array(r.y) @ operands
        states.append(y)
    return states, estimates


def close(got, wanted):
    np.testing.assert_allclose(got.double().numpy(), wanted, rtol=2e-5, atol=2e-5)


@pytest.fixture(params=["cpp", "reference"])
def sampler(request):
    return Reporting(network, LONG, shape=(3, 32), backend=request.param)


def test_a_plan_by_hand(sampler):
    """Prologue, in_scale, store map, clamp, noise and both registers."""
    for _ in range(2):
        samples = sampler(seeds=[5, 6, 7])
        for b in range(3):
            close(samples[b], by_hand(LONG, 5 + b, 32)[0][-1])
    assert not sampler.report.direct


def test_plans_of_two_lengths_with_callbacks(sampler):
    """A sample that has ended keeps its state; its estimate of x_0 is that state."""
    seen = []
    sampler(seeds=[5, 6], plan=[LONG, SHORT], on_step=lambda step: seen.append((step.rows, step.state, step.x0)))
    long, short = by_hand(LONG, 5, 32), by_hand(SHORT, 6, 32)
    assert len(seen) == 4 and seen[2][0] == (LONG.rows[2], None)
    for i, (_, state, x0) in enumerate(seen):
        close(state[0], long[0][i])
        close(x0[0], long[1][i])
        close(state[1], short[0][min(i, 1)])
        close(x0[1], short[1][i] if i < 2 else short[0][1])


def test_guidance_for_each_row(sampler):
    scales = [0.5, 2.0, -1.0, 3.0]
    shift = torch.tensor([0.3, 0.3, 0.3])
    arguments = {"cond": {"shift": shift}, "uncond": {"shift": torch.zeros(3)}}
    close(sampler(seeds=5, **arguments, guidance=scales)[0], by_hand(LONG, 5, 32, 0.3, scales)[0][-1])
    close(sampler(seeds=5, **arguments, guidance=np.array(scales))[0], by_hand(LONG, 5, 32, 0.3, scales)[0][-1])


def test_guidance_of_one_sample_leaves_its_neighbor_alone(sampler):
    """A sample at scale 1 has the bits that it has alone, whatever the other half of its batch holds."""
    arguments = {"cond": {"shift": torch.full((2,), 0.3)}, "uncond": {"shift": torch.tensor([0.0, float("nan")])}}
    mixed = sampler(seeds=[5, 6], plan=[LONG.with_guidance(3.0), LONG], **arguments)
    alone = sampler(seeds=[6], cond={"shift": torch.full((1,), 0.3)})
    assert torch.equal(mixed[1], alone[0])


def test_nan_is_laid_to_the_right_row_of_the_right_plan(sampler):
    def breaks(x, t):
        out = network(x, t)
        if t[1] < 3:
            out[1] = float("nan")
        return out

    broken = Reporting(breaks, LONG, shape=(2, 32), backend=sampler.backend)
    with pytest.raises(pf.NonFiniteError) as caught:
        broken(plan=[LONG, SHORT])
    assert caught.value.bad == (pf.BadSample(1, 1, 1.0),)


def test_an_overflowing_state_is_reported():
    plan = pf.Plan((row(1.0, 0, 2.0 * SLOT[0]),))
    with pytest.raises(pf.NonFiniteError, match="sample 0 at row 0"):
        pf.sample(lambda x, t: torch.full_like(x, 3e38), solver=plan, shape=(1, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_callers_noise_is_asked_for_once(dtype):
    """A stateful source must not be drawn from twice while the network's form is learned."""
    asked = []

    def noises(index):
        asked.append(index)
        return torch.full((2, 32), float(len(asked)))

    x = draw(lambda x, t: x * 0.5, 4, solver="ddim", shape=(2, 32), dtype=dtype, noise_sampler=noises)
    assert asked == [0]
    start = torch.ones(2, 32)
    assert torch.equal(x, draw(lambda x, t: x * 0.5, 4, solver="ddim", start=pf.Noise(start), dtype=dtype))


def test_two_calls_of_a_network_that_writes_its_inputs():
    def writes(x, t, text):
        x.mul_(0.5)
        t.mul_(0.1)
        return x + t.view(-1, 1) * 0.01 + text.mean()

    def clean(x, t, text):
        return x * 0.5 + t.view(-1, 1) * 0.1 * 0.01 + text.mean()

    arguments = {"cond": {"text": torch.ones(2, 7)}, "uncond": {"text": torch.zeros(2, 3)}, "guidance": 2.0}
    results = [pf.sample(f, 4, solver="ddim", shape=(2, 32), **arguments) for f in (writes, clean)]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", [lambda x: x.data, lambda x: x.numpy(), lambda x: torch.from_dlpack(x.detach().data)])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_an_input_that_is_written_where_torch_does_not_count_it(way, solver):
    """As a kernel of the network's own does: such a network gets a copy of the state too, whatever its version says."""

    def writes(x, t):
        inner = way(x)
        inner *= 0.5
        return x + 0

    plan = pf.make_plan(solver, steps=6)
    sampler, clean = (Reporting(f, plan, shape=(2, 32)) for f in (writes, lambda x, t: x * 0.5))
    wanted = clean()
    assert clean.report.direct and all(torch.equal(sampler(), wanted) for _ in range(2)) and not sampler.report.direct


def test_a_network_may_change_its_form_between_calls():
    """Another dtype or layout at the first output of a call is learned, not refused for good."""
    form = {"dtype": torch.float32}
    sampler = Reporting(lambda x, t: (x * 0.5).to(form["dtype"]), SHORT, shape=(2, 32))
    first = sampler()
    form["dtype"] = torch.bfloat16
    rounded = [sampler(), sampler()]
    assert torch.equal(*rounded) and not torch.equal(rounded[0], first)
    form["dtype"] = torch.float32
    assert torch.equal(sampler(), first)


def test_a_passing_failure_is_no_refusal():
    failures = [RuntimeError("busy")]

    def moody(x, t, shift):
        if failures:
            raise failures.pop()
        return network(x, t, shift)

    sampler = Reporting(moody, SHORT, shape=(2, 32))
    arguments = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}, "guidance": 2.0}
    first = sampler(**arguments)
    assert sampler.report.guidance == "two calls: the network refused a batch of 4: busy"
    assert torch.equal(sampler(**arguments), first) and sampler.report.guidance == "batched"


def test_steps_are_read_inside_the_callback():
    kept = []
    draw(network, solver=SHORT, shape=(2, 32), on_step=lambda step: kept.append((step, step.state)))
    assert kept[0][0].state is kept[0][1]  # read once, kept
    with pytest.raises(RuntimeError, match="inside on_step"):
        _ = kept[0][0].x0


def test_a_step_is_over_when_its_callback_fails():
    kept = []

    def fail(step):
        kept.append(step)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        draw(network, solver=SHORT, shape=(2, 32), on_step=fail)
    with pytest.raises(RuntimeError, match="inside on_step"):
        _ = kept[0].state


def test_conditioning_trees():
    """Nested dicts, lists, named tuples, numpy values, shared tensors and None."""
    from collections import namedtuple

    Pair = namedtuple("Pair", "shift weight")

    def reads(x, t, tree, table, extra, pair, nothing):
        assert nothing is None and extra[0].shape == (3,) and len(table) == 64
        return x * 0.5 + (tree["a"]["shift"] * tree["scale"] + pair.shift).view(-1, 1)

    numbers = np.arange(3)

    def tree(value):
        shift = torch.full((2,), value)
        return {
            "tree": {"a": {"shift": shift}, "scale": 2.0},
            "table": pf.Shared(torch.ones(64)),
            "extra": [pf.Shared(numbers)],
            "pair": Pair(shift, 1),
            "nothing": None,
        }

    sampler = Reporting(reads, SHORT, shape=(2, 32))
    guided = sampler(cond=tree(0.2), uncond=tree(0.0), guidance=2.0)
    assert sampler.report.guidance == "batched"
    torch.testing.assert_close(guided, sampler(cond=tree(0.4)), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:(alphafold-3|edm|heun|dpm-2-.*|dpm-fast) diverges")  # few steps are enough for bits
def test_memory_that_nobody_wrote_is_not_read(monkeypatch):
    """Every buffer starts as NaN: a register read before it is written shows."""
    plain = {name: pf.sample(network, 6, solver=name, shape=(2, 33), seeds=3) for name in FROM_NOISE}
    cache.clear()
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.dtype.is_floating_point else tensor.fill_(-7)

    monkeypatch.setattr(registers.torch, "empty", poisoned)
    for name, wanted in plain.items():
        for _ in range(2):
            assert torch.equal(pf.sample(network, 6, solver=name, shape=(2, 33), seeds=3), wanted), name


def test_buffers_go_back():
    sampler = Reporting(network, LONG, shape=(2, 32))
    for _ in range(6):
        sampler()
    kept = [workspace for idle in sampler.cache.idle._values.values() for workspace in idle]
    assert len(kept) == 1


def test_progress_counts_rows(capsys):
    pf.sample(network, solver=LONG, shape=(2, 32), progress=True)
    told = [line.split(" network")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == [f"{LONG.solver}: {i} of 4" for i in (1, 2, 3, 4)]


def test_large_rows_release_the_interpreter():
    """A Python thread goes on while a row of 64 million element updates runs."""
    plan = pf.make_plan("ddpm", steps=3)  # noise makes the rows long
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    answer = torch.zeros(4, 2_000_000)
    marks = []
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        pf.sample(lambda x, t: marks.append(time.perf_counter()) or answer, solver=plan, shape=tuple(answer.shape))
    finally:
        done.set()
        thread.join()
    during = [t for t in ticks if marks[0] < t < marks[-1]]
    assert len(during) >= 3


def test_sample_takes_times_and_clear_frees():
    x = draw(network, times=[900, 500, -1], solver="ddim", shape=(2, 32))
    assert torch.equal(x, pf.sample(network, solver=pf.make_plan("ddim", times=[900, 500, -1]), shape=(2, 32)))
    assert len(cache._OF_MODEL) > 0
    pf.clear()
    assert len(cache._OF_MODEL) == 0


def test_a_weaker_network_that_holds_the_other_keeps_neither():
    """What `sample` remembers of a network goes with it, whatever the guidance was."""
    import gc
    import weakref

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, t):
            return self.inner(x, t) * 0.5

    model = torch.nn.Module()
    model.forward = lambda x, t: x * 0.5
    alive, weaker = weakref.ref(model.eval()), Wrapper(model).eval()
    pf.sample(model, 3, solver="ddim", shape=(2, 33), guidance=pf.Guidance(2.0, weaker=weaker))
    del model, weaker
    gc.collect()
    assert alive() is None
