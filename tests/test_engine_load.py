"""A worker under load: none is lost or doubled, nothing grows, and each has the bytes that it has alone."""

import concurrent.futures
import gc
import random
import threading
import time
import tracemalloc
import weakref

import pytest
import torch
from fake_engine import FakeEngine, request
from worker_case import ENDS, Gate, value

import pndm_fast as pf

SHAPE = (3, 8, 8)
PLANS = [
    pf.make_plan(solver, steps=steps, spacing="trailing", **options)
    for solver, steps, options in (
        ("ddim", 4, {}), ("unipc", 7, {}), ("f-pndm", 5, {}), ("dpmpp-2m-sde", 9, {}), ("deis", 12, {}),
        ("ddim", 20, {"eta": 1.0}), ("heun", 3, {}),
    )
]  # fmt: skip


def network(x, t, y=None):
    """Sample by sample, so that a batch changes no bits."""
    out = x * 0.3 + torch.sin(t * 0.01).view(-1, 1, 1, 1) * 0.1
    return out if y is None else out + y.view(-1, 1, 1, 1) * 0.01


def mixed(draw):
    """A request of any kind."""
    batch = draw.choice((1, 1, 1, 2, 3))
    asked = {"plan": draw.choice(PLANS), "seeds": [draw.randrange(10**9) for _ in range(batch)]}
    if draw.random() < 0.5:
        asked["cond"] = {"y": torch.tensor([draw.uniform(-1, 1) for _ in range(batch)])}
        if draw.random() < 0.5:
            asked |= {"uncond": {"y": torch.zeros(batch)}, "guidance": draw.choice((1.5, 3.0, 7.5))}
    if draw.random() < 0.1:
        asked["start"] = pf.Image(torch.full((batch, *SHAPE), 0.25))
    return pf.Request(**asked)


def engine(network=network, **options):
    return pf.Engine(network, shape=(options.pop("capacity", 8), *SHAPE), device="cpu", **options)


def storm(worker, threads, requests, seed):
    """Requests at random times from several threads, cancels and deadlines among them; [(wanted, ticket)]."""
    made, refused = [], []

    def submit(draw):
        for _ in range(requests // threads):
            seeds = [draw.randrange(10**6) for _ in range(draw.choice((1, 1, 1, 2, 4)))]
            deadline = draw.choice((None, None, None, 1e-4, 0.02, 60.0))
            try:
                ticket = worker.submit(
                    request(draw.choice((1, 2, 3, 5, 8, 20)), seeds, on_nan="mark"),
                    priority=draw.choice((0, 0, 1)),
                    deadline=deadline,
                    late=draw.choice(("refuse", "end")),
                )
            except (pf.QueueFull, pf.DeadlineMissed) as error:
                refused.append(error)
                continue
            made.append((seeds, ticket))
            if draw.random() < 0.1:
                draw.choice(made)[1].cancel()
            if draw.random() < 0.05:
                next(ticket.previews(every=draw.choice((1, 3))), None)
            if draw.random() < 0.3:
                time.sleep(draw.random() * 1e-3)

    pool = [threading.Thread(target=submit, args=(random.Random(seed + k),)) for k in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return made, refused


def test_none_is_lost_and_none_doubled_in_a_storm():
    ended = []
    with pf.Worker(FakeEngine(bad=tuple(range(0, 10**6, 50)))) as worker:
        made, refused = storm(worker, threads=8, requests=480, seed=0)
        for _, ticket in made:
            ticket.add_done_callback(ended.append)
        assert worker.drain(60)
    told = worker.metrics()
    assert len(made) + len(refused) == 480 == told["submitted"] + sum(told["refused"].values())
    assert len(ended) == len(made) == len(set(ended)) == sum(told[end] for end in ENDS)
    for seeds, ticket in made:
        assert ticket.done()
        if ticket.cancelled() or ticket.exception() is not None:
            bad = any(seed % 50 == 0 for seed in seeds)
            assert ticket.cancelled() or bad or isinstance(ticket.exception(), pf.DeadlineMissed)
        else:
            assert value(ticket) == [pytest.approx(float(seed)) for seed in seeds]


def growth(worker, requests, asked):
    """Bytes that Python holds after so many requests, by hundreds."""
    held, sizes = [], []
    for k in range(requests):
        held.append(worker.submit(asked, deadline=1e6 if k % 3 else None))
        held[-1].previews()
        if k % 4 == 0:
            held[-1].cancel()
        if len(held) == 100:
            worker.drain(60)
            held.clear()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    return sizes


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("requests", [1000, pytest.param(10_000, marks=pytest.mark.stress)])
@pytest.mark.filterwarnings("ignore:the grid starts")
def test_nothing_grows(requests, real):
    asked = pf.Request(plan=PLANS[0], seeds=[1]) if real else request(2, 0)
    lanes = engine() if real else FakeEngine()
    if real:
        lanes.prepare(asked)  # buffers of all sizes, which else come as chance will have it
    with pf.Worker(lanes) as worker:
        growth(worker, 500, asked)
        tracemalloc.start()
        try:
            sizes = growth(worker, requests, asked)
        finally:
            tracemalloc.stop()
    middle, end = sizes[len(sizes) // 2], sizes[-1]
    assert end - middle < 20_000, sizes  # 5,000 requests of which each leaves 8 bytes would be twice that


@pytest.mark.parametrize("requests", [1000, pytest.param(20_000, marks=pytest.mark.stress)])
def test_ten_times_too_many_are_refused_and_then_it_recovers(requests):
    """Submitting outruns a network of 4 lanes by far; what waits never exceeds the bound, and all of it is done."""
    most = 0
    with pf.Worker(FakeEngine(network=lambda numbers: time.sleep(1e-3)), max_queue=16) as worker:
        made, refused = [], 0
        for seed in range(requests):
            try:
                made.append((seed, worker.submit(request(3, seed))))
            except pf.QueueFull as full:
                refused += 1
                most = max(most, full.length)
        assert worker.drain(60) and refused > requests / 4 and most <= 16 + 4
        assert worker.metrics()["refused"]["queue_full"] == refused
        assert all(value(ticket) == [seed] for seed, ticket in made)
        for _ in range(4):
            worker.drain(60)
            assert [value(one) for one in [worker.submit(request(2, k)) for k in range(16)]] == [[k] for k in range(16)]


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.stress)])
@pytest.mark.filterwarnings("ignore:the grid starts")
def test_an_overload_on_the_engine(seconds):
    """Ten times what 8 lanes can do: a bounded queue, refusals that say so, memory that stays, and then bytes."""
    slow = 2e-3

    def sleeping(x, t, y=None):
        time.sleep(slow)
        return network(x, t, y)

    lanes, plan = engine(sleeping), PLANS[0]
    lanes.prepare(pf.Request(plan=plan, seeds=[1]))
    rate = 10 * lanes.capacity / (plan.nfe * slow)
    sampler = pf.Sampler(network, shape=(1, *SHAPE), device="cpu")
    taken, refused, sizes = [], 0, []
    with pf.Worker(lanes, max_queue=32) as worker:
        tracemalloc.start()
        began, asked = time.perf_counter(), 0
        while (now := time.perf_counter() - began) < seconds:
            while asked < now * rate:
                try:
                    ticket = worker.submit(pf.Request(plan=plan, seeds=[asked]))
                    taken = [*taken[-63:], (asked, ticket)]
                except pf.QueueFull as full:
                    refused += 1
                    assert full.length <= 32 + lanes.capacity
                asked += 1
            sizes.append(tracemalloc.get_traced_memory()[0])
            time.sleep(1e-3)
        tracemalloc.stop()
        assert worker.drain(60) and refused > asked / 2 and worker.metrics()["refused"]["queue_full"] == refused
        assert sizes[-1] - sizes[len(sizes) // 2] < 1_000_000, (sizes[len(sizes) // 2], sizes[-1])
        for seed, ticket in taken[-8:]:
            assert torch.equal(ticket.result(60).samples, sampler(plan=plan, seeds=[seed]))
        again = worker.submit(pf.Request(plan=plan, seeds=[7])).result(60)
    assert torch.equal(again.samples, sampler(plan=plan, seeds=[7]))


def test_results_are_not_kept_by_the_worker():
    with pf.Worker(FakeEngine()) as worker:
        ticket = worker.submit(request(2, 3), deadline=1e5)
        samples = weakref.ref(ticket.result(60).samples)
        worker.drain(60)
        value(worker.submit(request(1, 1)))  # the thread's own variables are another's now
        gc.disable()
        try:
            del ticket
            assert samples() is None
        finally:
            gc.enable()


@pytest.mark.filterwarnings("ignore:the grid starts")
@pytest.mark.parametrize("count", [120, pytest.param(500, marks=pytest.mark.stress)])
def test_in_a_storm_each_has_the_bytes_that_it_has_alone(count):
    """From 8 threads at random times, cancels and deadlines among them: none lost, none doubled."""
    alone, made, refused = pf.Sampler(network, PLANS[0], shape=(1, *SHAPE)), [], []

    def submit(draw):
        for _ in range(count // 8):
            asked = mixed(draw)
            try:
                ticket = worker.submit(
                    asked,
                    priority=draw.choice((0, 0, 1)),
                    deadline=draw.choice((None, None, None, 0.005, 60.0)),
                    late=draw.choice(("refuse", "end")),
                )
            except (pf.QueueFull, pf.DeadlineMissed) as error:
                refused.append(error)
                continue
            made.append((asked, ticket))
            if draw.random() < 0.1:
                draw.choice(made)[1].cancel()
            if draw.random() < 0.1:
                next(ticket.previews(every=2), None)
            time.sleep(draw.random() * 2e-3)

    with pf.Worker(engine(), max_queue=40) as worker:
        threads = [threading.Thread(target=submit, args=(random.Random(seed),)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = worker.metrics()
    assert len(made) + len(refused) == count // 8 * 8 == told["submitted"] + sum(told["refused"].values())
    assert sum(told[end] for end in ENDS) == len(made) and told["failed"] == 0
    finished = [(asked, ticket) for asked, ticket in made if not ticket.cancelled() and ticket.exception() is None]
    assert len(finished) == told["finished"] > count / 10
    for asked, ticket in finished:
        assert torch.equal(ticket.result().samples, alone.run(asked).samples)
    for _, ticket in made:
        assert ticket.cancelled() or ticket.exception() is None or isinstance(ticket.exception(), pf.DeadlineMissed)


@pytest.mark.filterwarnings("ignore:the grid starts")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_previews_are_the_estimates_that_a_call_alone_shows(own, alone):
    """Of requests in a batch, or in none; with an `on_step` of their own too; samples of several lengths among them."""
    plans, seeds = [PLANS[0], PLANS[5], PLANS[4]], [5, 6, 7]
    source = {"noise_sampler": lambda index: torch.full((3, *SHAPE), 0.1 * index)} if alone else {}
    wanted, steps, seen = {}, [], []
    asked = pf.Request(plan=plans, seeds=seeds, **source)
    watched = pf.Request(
        plan=plans, seeds=seeds, **source, on_step=lambda step: wanted.__setitem__(step.index, step.x0)
    )
    samples = pf.Sampler(network, shape=(1, *SHAPE)).run(watched).samples
    if own:
        asked = pf.Request(plan=plans, seeds=seeds, **source, on_step=lambda step: steps.append(step.index))
    gate = Gate()

    def held(x, t):
        gate(())
        return network(x, t)

    with pf.Worker(engine(held)) as worker, concurrent.futures.ThreadPoolExecutor(1) as pool:
        beside = worker.submit(pf.Request(plan=PLANS[5], seeds=[1]))
        ticket = worker.submit(asked)
        reader = pool.submit(lambda: list(ticket.previews()))
        while not ticket._asking:
            time.sleep(0.001)
        gate.let()
        seen = reader.result(60)
        assert torch.equal(ticket.result(60).samples, samples) and beside.result(60)
    assert seen and all(torch.equal(one.x0, wanted[one.index]) and one.nfe == 20 for one in seen)
    assert steps == (list(range(20)) if own else [])


@pytest.mark.filterwarnings("ignore:the grid starts")
def test_a_look_does_not_end_with_a_group():
    """Guidance in an interval takes a request from one group to another, and back."""
    seen, asked = [], pf.Request(
        plan=PLANS[4], seeds=[3], cond={"y": torch.ones(1)}, uncond={"y": torch.zeros(1)},
        guidance=pf.Guidance(2.0, interval=(0.3, 2.0)),
    )  # fmt: skip
    wanted = pf.Sampler(network, shape=(1, *SHAPE)).run(asked).samples
    lanes = engine()
    lanes.add(pf.Request(plan=PLANS[5], seeds=[1]))
    lanes.step()  # a group that has run before
    number, done = lanes.add(asked), []
    while not done:
        lanes.watch(number, lambda step: seen.append((step.index, step.x0.sum().item())))
        before = lanes.done(number)
        done = [ended for ended in lanes.step() if ended.id == number]
        assert done or lanes.done(number) in (before, before + 1)
    assert [index for index, _ in seen] == list(range(12)) and torch.equal(done[0].result.samples, wanted)


@pytest.mark.filterwarnings("ignore:the grid starts")
@pytest.mark.parametrize("error, goes_on", [(RuntimeError("no memory"), True), (KeyboardInterrupt("stop"), False)])
def test_a_network_that_raises_ends_its_batch_or_the_worker(error, goes_on):
    gate, fails = Gate(), iter([False] * 3 + [True] + [False] * 1000)

    def failing(x, t):
        gate(())
        if next(fails):
            raise error
        return network(x, t)

    worker = pf.Worker(engine(failing, capacity=2))
    tickets = [worker.submit(pf.Request(plan=PLANS[2], seeds=[seed])) for seed in range(4)]
    gate.let()
    assert tickets[0].exception(60) is error
    wanted = pf.Sampler(network, PLANS[2], shape=(1, *SHAPE))
    if goes_on:
        assert torch.equal(tickets[3].result(60).samples, wanted(seeds=[3]))
        assert worker.metrics()["failed"] in (1, 2) and worker.close()
        return
    assert all(ticket.exception(60) is error for ticket in tickets)
    worker._service._thread.join(60)
    with pytest.raises(pf.EngineDown, match="the engine is down: KeyboardInterrupt: stop") as down:
        worker.submit(pf.Request(plan=PLANS[2]))
    assert down.value.__cause__ is error
