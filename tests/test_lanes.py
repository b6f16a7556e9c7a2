"""The engine's law: whenever a request joins, and whoever is beside it, it comes to what it comes to alone."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lanecase import PLANS, SHAPE, alone, draws, network, pair, plan, same, served

import pndm_fast as pf
from pndm_fast.demo import mnist_unet, null_class
from pndm_fast.engine import alone as alone_group
from pndm_fast.engine import group

pytestmark = [
    pytest.mark.filterwarnings("ignore:the grid starts"),
    pytest.mark.filterwarnings("ignore:uncond has no effect"),
    pytest.mark.filterwarnings("ignore:guidance has no effect"),
]


@pytest.mark.parametrize("backend, count", [("cpp", 12), ("reference", 4)])
@settings(deadline=None)
@given(seed=st.integers(0, 2**31), capacity=st.sampled_from([3, 4, 7]), gap=st.integers(0, 4))
def test_requests_of_all_kinds_at_any_time(backend, count, seed, capacity, gap):
    engine, sampler = pair(capacity, backend=backend)
    requests = draws(seed, count)
    for ours, request in zip(served(engine, requests, [gap * i for i in range(count)]), requests, strict=True):
        same(ours, alone(request, sampler))
    assert engine.idle and not engine.running and not engine.waiting
    assert engine.report()["lanes"] == 0 and engine.stats.finished == count


def test_triton_too():
    engine, sampler = pair(3, backend="triton")
    words = {"plan": plan("ddpm", 2), "cond": {"shift": torch.ones(1)}}
    requests = [pf.Request(seeds=[s], **words) for s in (1, 2)]
    requests.append(pf.Request(seeds=[4], **words, uncond={"shift": torch.zeros(1)}, guidance=2.0))
    for ours, request in zip(served(engine, requests, [0, 1, 1]), requests, strict=True):
        same(ours, alone(request, sampler))


def test_a_network_of_another_dtype_and_layout():
    class Narrow:
        dtype = torch.bfloat16

        def __call__(self, x, t):
            assert x.dtype is torch.bfloat16
            return x.to(memory_format=torch.channels_last) * 0.5

    engine, sampler = (made(Narrow(), PLANS["f-pndm"], shape=(5, 3, 8, 8)) for made in (pf.Engine, pf.Sampler))
    requests = [pf.Request(seeds=[s, s + 1]) for s in range(4)]
    for ours, request in zip(served(engine, requests, [0, 1, 5, 6]), requests, strict=True):
        same(ours, sampler.run(request))


@pytest.mark.parametrize("memory_format", [None, torch.channels_last])
def test_channels_last_and_float64(memory_format):
    engine, sampler = pair(5, networks=network, memory_format=memory_format)
    state = torch.randn(2, *SHAPE, dtype=torch.float64)
    requests = [pf.Request(plan=PLANS["unipc"], start=pf.State(state)), pf.Request(plan=PLANS["ddpm"], seeds=[3])]
    requests.append(pf.Request(plan=PLANS["f-pndm"], start=pf.Inpaint(state.float(), state[0] > 0)))
    for ours, request in zip(served(engine, requests, [0, 1, 1]), requests, strict=True):
        same(ours, sampler.run(request))


def test_phase_space_beside_the_plane():
    from pndm_fast.phase_space import PSLD

    phase = pf.make_plan("em", PSLD(), steps=40)
    engine, sampler = pair(4)
    requests = [pf.Request(plan=one, seeds=[s]) for s, one in enumerate([phase, PLANS["ddpm"], phase])]
    for ours, request in zip(served(engine, requests, [0, 1, 2]), requests, strict=True):
        same(ours, sampler.run(request))


def place_blind(model, plan):
    """An engine with a batch size at which the network's rows do not depend on their place, and such a sampler."""
    for n in (4, 2, 8):
        words = {"shape": (n, 1, 32, 32), "fixed_batch": n}
        engine = pf.Engine(model, plan, **words)
        engine.prepare(pf.Request(cond={"class_labels": torch.tensor([1])}))
        if engine.batch_error == 0.0:
            assert engine.buckets == (n,)
            return engine, pf.Sampler(model, plan, **words)
    pytest.fail("no batch size has the same bits at each place")


def test_the_packaged_network_with_fixed_batch():
    engine, sampler = place_blind(mnist_unet(), plan("ddim", 2))

    def asked(seed, digit, guidance=None):
        cond = {"class_labels": torch.tensor([digit])}
        uncond = {"class_labels": torch.tensor([null_class])} if guidance else None
        return pf.Request(seeds=[seed], cond=cond, uncond=uncond, guidance=guidance)

    requests = [asked(1, 3), asked(2, 5), asked(3, 7, 2.0)]
    for ours, request in zip(served(engine, requests, [0, 1, 1]), requests, strict=True):
        same(ours, sampler.run(request))


# ---- what is watched


def steps_of(seen, change=None, cancel_at=None):
    def on_step(step):
        rows = tuple(None if row is None else row.t for row in step.rows)
        seen.append((step.index, step.nfe, rows, step.state.clone(), step.x0.clone()))
        if step.index == cancel_at:
            step.cancel()
        return step.state * 0.5 if change is not None and step.index in change else None

    return on_step


@pytest.mark.parametrize("start", [None, pf.Inpaint(torch.ones(3, *SHAPE), torch.arange(4.0) / 3)])
@pytest.mark.parametrize("change, cancel_at", [(None, None), ((0, 2, 4), None), (None, 2)])
def test_on_step_sees_and_changes_what_it_does_alone(start, change, cancel_at):
    plans = [plan("ddim", 6), plan("ddpm", 4), plan("ddim", 5)]
    words = {"plan": plans, "seeds": [5, 6, 7], "start": start, "cond": {"shift": torch.arange(3.0)}}
    guided = {"uncond": {"shift": torch.zeros(1)}, "guidance": pf.Guidance(2.0, interval=(0.5, 4.0))}
    for more in ({}, guided):
        engine, sampler = pair(6)
        mine, theirs = [], []
        watched = pf.Request(**words, **more, on_step=steps_of(mine, change, cancel_at))
        company = [pf.Request(plan=PLANS["unipc"], seeds=[s], cond={"shift": torch.ones(1)}) for s in (1, 2)]
        ours = served(engine, [company[0], watched, company[1]], [0, 1, 2])
        same(ours[1], alone(pf.Request(**words, **more, on_step=steps_of(theirs, change, cancel_at)), sampler))
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert a[:3] == b[:3] and torch.equal(a[3], b[3]) and torch.equal(a[4], b[4])
        for request, one in zip(company, ours[::2], strict=True):
            same(one, sampler.run(request))


def test_conditioning_is_asked_for_once_a_row():
    asked, shifts = [], torch.randn(9, 2)

    def cond(row):
        asked.append(row)
        return {"shift": shifts[row]}

    engine, sampler = pair(4)
    requests = [pf.Request(plan=PLANS["f-pndm"], seeds=[1], cond={"shift": torch.ones(1)})]
    requests.append(pf.Request(plan=plan("ddim", 5), seeds=[8, 9], cond=cond))
    ours = served(engine, requests, [0, 2])
    assert asked == list(range(5))
    for one, request in zip(ours, requests, strict=True):
        same(one, sampler.run(request))
    assert engine.stats.rows == max(PLANS["f-pndm"].nfe, 7)  # both were in one batch


def test_progress_is_told_in_lines(capsys):
    engine, _ = pair(2)
    served(engine, [pf.Request(plan=plan("ddim", 10), seeds=[s], progress=True) for s in (1, 2)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20 and lines[-1].startswith("ddim: 10 of 10 network calls (100 %)")


# ---- who ends for himself


@pytest.mark.parametrize("on_nan", ["raise", "mark", "ignore"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_bad_request_is_bad_alone(on_nan, batch):
    def poisoned(row):
        return {"shift": torch.tensor([1.0, float("nan") if row == 2 else 0.0])[-batch:]}

    words = {"plan": PLANS["f-pndm"], "uncond": {"shift": torch.zeros(1)}, "guidance": pf.Guidance(3.0, (0.1, 2.0))}
    requests = [pf.Request(seeds=[s], cond={"shift": torch.ones(1)}, **words) for s in (1, 2)]
    requests.insert(1, pf.Request(seeds=range(batch), cond=poisoned, on_nan=on_nan, **words))
    engine, sampler = pair(5)
    for ours, request in zip(served(engine, requests, [0, 1, 3]), requests, strict=True):
        same(ours, alone(request, sampler))


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_step": lambda step: 1 / (step.index - 2)},
        {"on_step": lambda step: torch.ones(1) if step.index == 1 else None},
        {"cond": lambda row: {"shift": torch.ones(1, 1 + (row == 2))}},
        {"cond": lambda row: {"shift": torch.ones(1)} if row < 2 else None},
        {"noise_sampler": lambda index: torch.full((1, *SHAPE), float("nan") if index == 4 else 1.0)},
        {"plan": PLANS["f-pndm"], "on_step": lambda step: step.state},
    ],
    ids=["callback", "callback's state", "cond's form", "no cond", "noise", "no restart"],
)
def test_an_error_of_a_request_is_its_own(wrong):
    words = {"plan": PLANS["ddpm"], "seeds": [3], "cond": {"shift": torch.ones(1)}} | wrong
    company = [pf.Request(plan=PLANS["unipc"], seeds=[s], cond={"shift": torch.ones(1)}) for s in (1, 2)]
    engine, sampler = pair(4)
    ours = served(engine, [company[0], pf.Request(**words), company[1]], [0, 1, 2])
    expected = alone(pf.Request(**words), sampler)
    assert isinstance(expected, Exception)
    same(ours[1], expected)
    for request, one in zip(company, ours[::2], strict=True):
        same(one, sampler.run(request))
    assert engine.stats.failed == 1


@pytest.mark.parametrize(
    "answer",
    [torch.zeros(1, 2), torch.zeros(1, *SHAPE, dtype=torch.int64), "words"],
    ids=["shape", "dtype", "no tensor"],
)
def test_what_a_first_call_refuses_is_the_request_s(answer):
    def fussy(x, t, scale=None):
        return answer if scale is None else network(x, t)

    engine, _ = pair(2, networks=fussy)
    good = pf.Request(plan=PLANS["ddpm"], cond={"scale": 1.0})
    wrong = pf.Request(plan=PLANS["ddpm"])
    for ours, request in zip(served(engine, [wrong, good]), [wrong, good], strict=True):
        same(ours, alone(request, pf.Sampler(fussy, shape=(1, *SHAPE))))
    (again,) = served(engine, [wrong])  # outputs are known by now
    assert isinstance(again, (TypeError, ValueError)) and "the network" in str(again)


def test_what_the_network_raises_ends_its_batch_and_no_more():
    broken = False

    def fragile(x, t, shift=None, bias=None):
        if broken and bias is None:
            raise OSError("gone")
        return network(x, t, shift, bias=bias)

    engine, sampler = pair(4, networks=fragile)
    request = pf.Request(plan=PLANS["ddpm"], seeds=[1], cond={"shift": torch.ones(1)})
    apart = pf.Request(plan=PLANS["ddpm"], seeds=[2], cond={"bias": pf.Shared(torch.ones(4))})
    ids = [engine.add(one) for one in (request, request, apart)]
    engine.step()
    broken = True
    over = {one.id: one for one in engine.step()}
    assert [type(over[i].error) for i in ids[:2]] == [OSError, OSError] and ids[2] not in over
    (last,) = [one for _ in range(PLANS["ddpm"].nfe) for one in engine.step()]
    same(last.result, sampler.run(apart))
    broken = False
    same(served(engine, [request])[0], sampler.run(request))


def test_ctrl_c_in_the_network_goes_through_and_loses_nobody():
    def interrupted(x, t):
        if interrupt:
            raise KeyboardInterrupt
        return network(x, t)

    interrupt = False
    engine, sampler = pair(4, networks=interrupted)
    request = pf.Request(plan=PLANS["ddpm"], seeds=[1])
    first = engine.add(request)
    engine.step()
    interrupt = True
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    interrupt = False
    (over,) = engine.step()
    assert over.id == first and isinstance(over.error, KeyboardInterrupt) and engine.idle
    same(served(engine, [request])[0], sampler.run(request))


def test_ctrl_c_in_the_first_call_loses_nobody():
    """Which comes before the first row, where a request joins."""

    def interrupted(x, t):
        if interrupt:
            raise KeyboardInterrupt
        return network(x, t)

    interrupt = True
    engine, sampler = pair(4, networks=interrupted)
    requests = [pf.Request(plan=PLANS["ddpm"], seeds=[s]) for s in (1, 2)]
    ids = [engine.add(request) for request in requests]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    interrupt = False
    over = engine.step()
    assert [one.id for one in over] == ids and all(isinstance(one.error, KeyboardInterrupt) for one in over)
    assert engine.idle and engine.report()["lanes"] == 0
    for ours, request in zip(served(engine, requests), requests, strict=True):
        same(ours, sampler.run(request))


def test_a_smaller_batch_than_any_yet_fails_in_its_first_call():
    """Those that joined for a batch of four are two when their first row comes: a network that refuses two is told."""

    def broken(x, t):
        if len(x) == 2:
            raise RuntimeError("not two")
        return network(x, t)

    engine, _ = pair(4, networks=(network, broken))
    both = plan("ddim", 4).with_models([0, 0, 1, 1])
    one = engine.add(pf.Request(plan=both, seeds=[1]))
    two = engine.add(pf.Request(plan=both, seeds=[2, 3]))
    engine.step()
    engine.step()
    engine.cancel(one)
    over = {one.id: one.error for _ in range(3) for one in engine.step()}
    assert isinstance(over[one], pf.Cancelled) and str(over[two]) == "not two" and engine.idle


def test_a_look_that_there_is_no_memory_for_ends_its_request_alone(monkeypatch):
    """And so with the states of one that is cancelled."""

    def none(*_):
        raise torch.OutOfMemoryError("full")

    engine, sampler = pair(4)
    requests = [pf.Request(plan=PLANS["ddpm"], seeds=[s]) for s in range(3)]
    ids = [engine.add(request) for request in requests]
    own = engine.add(pf.Request(plan=PLANS["ddpm"], seeds=[7], noise_sampler=lambda index: torch.ones(1, *SHAPE)))
    engine.step()
    with monkeypatch.context() as full:
        full.setattr(engine._groups, "take", none)
        engine.watch(ids[0], lambda step: step.x0)
        full.setattr(group, "states_of", none)
        full.setattr(alone_group, "samples_of", none)
        engine.cancel(ids[1])
        engine.cancel(own)
        over = {one.id: one.error for one in engine.step()}
    assert over.keys() == {*ids[:2], own} and all(str(error) == "full" for error in over.values())
    (left,) = [one for _ in range(5) for one in engine.step()]
    same(left.result, sampler.run(requests[2]))
    assert engine.idle and engine.report()["lanes"] == 0
    same(served(engine, requests[:1])[0], sampler.run(requests[0]))


def test_a_callback_may_not_step_its_own_engine():
    engine, _ = pair(2)
    one = engine.add(pf.Request(plan=PLANS["ddpm"], seeds=[1], on_step=lambda step: engine.step()))
    (over,) = [over for _ in range(2) for over in engine.step()]
    assert over.id == one and isinstance(over.error, RuntimeError) and "one thread at a time" in str(over.error)
    assert engine.idle


@pytest.mark.parametrize("more", [{}, {"noise_sampler": lambda index: torch.ones(1, *SHAPE)}])
def test_cancelling(more):
    engine, sampler = pair(2)
    cancel = [pf.Cancel() for _ in range(3)]
    words = {"plan": PLANS["ddpm"]}
    ids = [engine.add(pf.Request(seeds=[s], cancel=cancel[s], **words, **more)) for s in range(3)]
    asked = engine.add(pf.Request(seeds=[9], **words))
    assert engine.step() == [] and (engine.running, engine.waiting) == (2, 2)
    cancel[0].set()
    cancel[2].set()
    over = {one.id: one.error for one in engine.step()}
    assert over.keys() == {ids[0], ids[2]} and over[ids[2]].index == -1 and over[ids[2]].state is None
    states = []
    sampler.run(pf.Request(seeds=[0], on_step=lambda step: states.append(step.state), **words, **more))
    assert over[ids[0]].index == 0 and torch.equal(over[ids[0]].state, states[0])
    assert engine.cancel(asked) and not engine.cancel(1234)
    over = [one for _ in range(20) for one in engine.step()]
    assert [one.id for one in over] == [asked, ids[1]] and engine.idle and engine.stats.cancelled == 3
    assert isinstance(over[0].error, pf.Cancelled)
    same(over[1].result, sampler.run(pf.Request(seeds=[1], **words, **more)))
    assert not engine.cancel(ids[1])


def test_cancelled_in_line():
    engine, _ = pair(1)
    first, second = (engine.add(pf.Request(plan=PLANS["ddpm"], seeds=[s])) for s in (1, 2))
    engine.step()
    assert engine.cancel(second)
    (over,) = engine.step()
    assert over.id == second and "cancelled before its first row" in str(over.error)
    assert [one.id for _ in range(9) for one in engine.step()] == [first]


def test_a_running_request_is_cancelled_from_another_thread():
    engine, sampler = pair(2)
    one = engine.add(pf.Request(plan=PLANS["f-pndm"], seeds=[5, 6]))
    engine.step()
    engine.step()
    thread = threading.Thread(target=engine.cancel, args=[one])
    thread.start()
    thread.join()
    (over,) = engine.step()
    states = []
    sampler.run(pf.Request(plan=PLANS["f-pndm"], seeds=[5, 6], on_step=lambda step: states.append(step.state)))
    assert over.error.index == 1 and torch.equal(over.error.state, states[1])
