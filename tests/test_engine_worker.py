"""`Worker`'s laws, on an engine without a network: each ticket ends once, and in what it was asked for."""

import asyncio
import concurrent.futures
import threading
import time

import pytest
from fake_engine import FakeEngine, request
from worker_case import ENDS, Gate, value

import pndm_fast as pf


def test_each_gets_its_own_and_all_are_counted():
    with pf.Worker(FakeEngine(bad=(7,))) as worker:
        tickets = [worker.submit(request(rows, [seed, seed + 100])) for seed, rows in enumerate((5, 1, 8, 3, 2))]
        assert [value(ticket) for ticket in tickets] == [[seed, seed + 100.0] for seed in range(5)]
        with pytest.raises(ArithmeticError, match="bad: \\[7\\]"):
            worker.submit(request(3, 7)).result(timeout=60)
        worker.drain()
        told = worker.metrics()
    assert [told[end] for end in ENDS] == [5, 1, 0, 0] and told["submitted"] == 6
    assert told["queue"] == told["running"] == 0 and sum(told["refused"].values()) == 0
    assert told["rows"] == 2 * (5 + 1 + 8 + 3 + 2) + 3 and told["occupancy"] == told["rows"] / (4 * told["calls"])
    assert told["wait"]["count"] == 6 and told["latency"]["0"]["count"] == 5 and told["late"] == 0


def test_the_first_in_line_goes_first_and_knows_its_place(gated):
    worker, gate = gated
    running = worker.submit(request(1, range(4)))
    gate.wait()
    low = [worker.submit(request(1, range(4)), priority=-1) for _ in range(2)]
    high = [worker.submit(request(1, range(4)), priority=3) for _ in range(2)]
    assert running.position is None and running.running() and not low[0].running()
    assert [ticket.position for ticket in (*high, *low)] == [0, 1, 2, 3]
    assert high[0].cancel() and [ticket.position for ticket in (*high, *low)] == [None, 0, 1, 2]
    gate.let()
    worker.drain()
    assert [numbers for (numbers,) in gate.seen] == [1, 4, 2, 3]  # the cancelled one never came to the engine
    assert low[1].position is None and not low[1].running()


def test_what_is_wrong_is_refused_where_it_is_submitted(gated):
    worker, gate = gated
    with pytest.raises(ValueError, match="plan must be given"):
        worker.submit(pf.Request(seeds=[1]))
    assert worker.drain(0) and worker.metrics()["refused"]["invalid"] == 1 and gate.seen == []


# awaiting


def test_tickets_are_awaited_in_any_loop_and_by_any_thread():
    async def each(worker, seed):
        return [(await worker.submit(request(3, seed + k))).samples.item() for k in range(3)]

    async def together(worker):
        tickets = [worker.submit(request(2, seed)) for seed in range(10)]
        return [result.samples.item() for result in await asyncio.gather(*tickets)]

    with pf.Worker(FakeEngine()) as worker, concurrent.futures.ThreadPoolExecutor(4) as pool:
        told = [pool.submit(lambda seed=seed: asyncio.run(each(worker, seed))) for seed in range(4)]
        assert [one.result(60) for one in told] == [[seed, seed + 1, seed + 2] for seed in range(4)]
        assert asyncio.run(together(worker)) == list(range(10))
        ticket = worker.submit(request(1, 5))
        ticket.result(60)
        assert asyncio.run(twice(ticket)) == [5, 5]


async def twice(ticket):
    return [(await ticket).samples.item() for _ in range(2)]


def test_who_is_cancelled_while_awaiting_cancels_the_request(gated):
    worker, gate = gated
    ticket, other = worker.submit(request(50, 1)), worker.submit(request(2, 2))
    gate.wait()

    async def impatient():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ticket, 0.01)

    asyncio.run(impatient())
    assert ticket.cancelled()
    gate.let()
    assert value(other) == [2] and len(gate.seen) <= 3 and gate.seen[-1] == [2]


def test_errors_come_to_who_awaits():
    async def wait(worker):
        with pytest.raises(ArithmeticError):
            await worker.submit(request(3, 1))

    with pf.Worker(FakeEngine(bad=(1,))) as worker:
        asyncio.run(wait(worker))


def test_tickets_are_futures_for_those_who_wait_for_many(gated):
    worker, gate = gated
    tickets = [worker.submit(request(3, range(2))) for _ in range(4)]
    gate.wait()
    called = []
    for ticket in tickets:
        ticket.add_done_callback(lambda done: called.append(done.cancelled()))
    waiter = threading.Thread(target=lambda: called.append(concurrent.futures.wait(tickets, timeout=60).not_done))
    waiter.start()
    assert tickets[3].cancel() and tickets[0].cancel()
    gate.let()
    waiter.join(60)
    assert sorted(map(str, called)) == ["False", "False", "True", "True", "set()"]
    done = list(concurrent.futures.as_completed(tickets, timeout=60))
    assert sorted(ticket.cancelled() for ticket in done) == [False, False, True, True]


# cancelling


def test_a_request_is_cancelled_while_it_waits_and_while_it_runs(gated):
    worker, gate = gated
    first, second = worker.submit(request(50, range(4))), worker.submit(request(2, range(4)))
    gate.wait()
    assert second.cancel() and second.cancel() and second.cancelled() and second.done()
    assert first.cancel() and not first.running()
    third = worker.submit(request(2, [9]))
    gate.let()
    assert value(third) == [9] and not third.cancel()
    for ticket in (first, second):
        with pytest.raises(concurrent.futures.CancelledError):
            ticket.result()
    assert worker.metrics()["cancelled"] == 2 and gate.seen == [[1], [3], [3]]


def test_threads_that_cancel_at_once_are_one(gated):
    worker, gate = gated
    tickets, barrier = [worker.submit(request(50, 1)) for _ in range(4)], threading.Barrier(4)

    def cancel():
        for ticket in tickets:
            barrier.wait()
            assert ticket.cancel()

    threads = [threading.Thread(target=cancel) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.let()
    assert worker.drain(60) and worker.metrics()["cancelled"] == 4


# deadlines


def test_what_cannot_be_done_in_time_is_refused_at_once():
    gate = Gate()
    worker = pf.Worker(FakeEngine(network=gate, costs={1: 1.0, 4: 2.0}))
    long = worker.submit(request(50, range(4)))
    gate.wait()
    with pytest.raises(pf.DeadlineMissed, match="of 100 s cannot be met: it takes about 104 s, 0 of 2 rows run"):
        worker.submit(request(2, range(4)), deadline=100)
    kept = worker.submit(request(2, range(4)), deadline=105, priority=-1)
    with pytest.raises(pf.DeadlineMissed, match="about 108 s"):
        worker.submit(request(2, range(4)), deadline=105, priority=-1)
    before = worker.submit(request(2, range(4)), deadline=105)  # goes before that one
    told = worker.metrics()
    assert told["refused"]["deadline"] == 2 and told["queue"] == 2 and before.position == 0
    gate.let()
    worker.close()
    assert value(long) == value(kept) == value(before) == [0, 1, 2, 3] and worker.metrics()["late"] == 0


def test_what_is_known_of_costs_is_learned():
    with pf.Worker(FakeEngine(network=lambda numbers: time.sleep(0.002))) as worker:
        worker.submit(request(20, 5)).result(60)
        with pytest.raises(pf.DeadlineMissed, match="cannot be met"):
            worker.submit(request(50, 1), deadline=0.05)
        assert value(worker.submit(request(1, 3), deadline=60)) == [3]


@pytest.mark.parametrize("late", ["refuse", "end"])
def test_what_waits_too_long_is_not_begun(late, gated):
    worker, gate = gated
    worker.submit(request(5, range(4)))
    gate.wait()
    ticket = worker.submit(request(3, 5), deadline=0.25, late=late)
    time.sleep(0.26)
    gate.let(5)
    with pytest.raises(pf.DeadlineMissed, match="of 0.25 s has passed, 0 of 3 rows run"):
        ticket.result(60)
    worker.drain(60)
    assert worker.metrics()["missed"] == 1 and all(numbers == [1] for numbers in gate.seen)


def test_what_runs_is_ended_or_finished_late_as_asked(gated):
    worker, gate = gated
    ended = worker.submit(request(50, 1), deadline=0.5, late="end")
    late = worker.submit(request(3, 2), deadline=0.5)
    gate.wait()
    gate.let(1)
    gate.wait()
    time.sleep(0.51)
    gate.let()
    with pytest.raises(pf.DeadlineMissed, match="has passed, [12] of 50 rows run"):
        ended.result(60)
    assert value(late) == [2]
    worker.drain(60)
    told = worker.metrics()
    assert (told["missed"], told["late"], told["finished"]) == (1, 1, 1)
    assert ended.deadline == late.deadline == 0.5


def test_deadlines_of_what_is_done_are_forgotten():
    """However far away they are."""
    with pf.Worker(FakeEngine()) as worker:
        for _ in range(30):
            tickets = [worker.submit(request(1, 0), deadline=1e6) for _ in range(20)]
            assert [value(ticket) for ticket in tickets] == [[0]] * 20
        assert len(worker._service._own_clock) < 200


# the bound


def test_a_full_queue_refuses_loudly_and_recovers(gated):
    worker, gate = gated
    tickets = [worker.submit(request(2, seed)) for seed in range(12)]  # 4 lanes are idle, 8 may wait
    with pytest.raises(pf.QueueFull, match="12 requests are waiting, and max_queue is 8") as full:
        worker.submit(request(2, 99))
    assert (full.value.length, full.value.bound) == (12, 8)
    gate.wait()
    for _ in range(3):
        with pytest.raises(pf.QueueFull, match="8 requests are waiting"):
            worker.submit(request(2, 99))
    assert tickets[-1].cancel()
    tickets[-1] = worker.submit(request(2, 11))
    gate.let()
    assert [value(ticket) for ticket in tickets] == [[seed] for seed in range(12)]
    told = worker.metrics()
    assert told["refused"]["queue_full"] == 4 and value(worker.submit(request(1, 5))) == [5]


def test_lanes_that_nothing_gains_by_are_not_idle():
    """An engine that runs one at a time has nobody begin beside it."""
    gate, engine = Gate(), FakeEngine()
    engine.network, engine.together = gate, lambda taken: 1
    with pf.Worker(engine, max_queue=2) as worker:
        tickets = [worker.submit(request(2, 0))]
        gate.wait()
        tickets += [worker.submit(request(2, seed)) for seed in (1, 2)]
        with pytest.raises(pf.QueueFull, match="2 requests are waiting, and max_queue is 2"):
            worker.submit(request(2, 3))
        gate.let()
        assert [value(ticket) for ticket in tickets] == [[0], [1], [2]]


# previews


@pytest.mark.parametrize("waits", [False, True])
def test_who_reads_gets_previews_of_every_so_many_rows(waits):
    """A consumer that takes its time gets fewer, each the newest then, and only what it reads is made."""

    asked = threading.Event()

    async def read():
        got = []
        asyncio.get_running_loop().call_soon(asked.set)
        async for preview in ticket.previews(every=5):
            got.append((preview.index, preview.nfe, preview.x0.flatten().tolist()))
            await asyncio.sleep(0.02 if waits else 0)
        return got

    with pf.Worker(FakeEngine(network=lambda numbers: asked.wait(60) and time.sleep(0.002))) as worker:
        ticket = worker.submit(request(50, [3, 4]))
        got = asyncio.run(read())
        assert value(ticket) == [3, 4] and worker._service._engine.estimates == len(got)
    indices = [index for index, _, _ in got]
    assert all(nfe == 50 and x0 == [3, 4] for _, nfe, x0 in got) and indices == sorted(indices)
    assert 0 < len(indices) <= 10 and indices[0] >= 4
    assert len({(index + 1) // 5 for index in indices}) == len(indices)


def test_who_never_reads_costs_nothing():
    engine = FakeEngine()
    with pf.Worker(engine) as worker:
        tickets = [worker.submit(request(20, 3)) for _ in range(10)]
        unread = [ticket.previews(every=1) for ticket in tickets]
        assert [value(ticket) for ticket in tickets] == [[3]] * 10
        worker.drain()
        assert engine.estimates == 0 and list(unread[0]) == []
        assert list(tickets[0].previews()) == []


def test_consumers_of_one_ticket_have_their_own_pace(gated):
    worker, gate = gated
    ticket = worker.submit(request(50, 8))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        read = [pool.submit(lambda every=every: [p.index for p in ticket.previews(every)]) for every in (1, 7, 20)]
        while len(ticket._asking) < 3:
            time.sleep(0.001)
        for _ in range(50):
            gate.let(1)
            gate.wait()
            time.sleep(0.001)
        gate.let()
        every_row, seventh, twentieth = (one.result(60) for one in read)
    assert every_row[0] <= 1 and every_row == sorted(set(every_row))
    assert seventh[0] == 6 and len(seventh) <= 7 and twentieth[0] == 19 and len(twentieth) <= 2


@pytest.mark.parametrize("end", ["cancel", "fail", "close"])
def test_previews_end_with_the_request(end):
    gate = Gate()
    worker = pf.Worker(FakeEngine(network=gate, bad=(1,)))
    ticket = worker.submit(request(2, 1))

    async def read():
        seen = [preview async for preview in ticket.previews(every=50)]
        assert seen == []

    reader = threading.Thread(target=lambda: asyncio.run(read()))
    reader.start()
    gate.wait()
    if end == "cancel":
        ticket.cancel()
    if end == "close":
        worker.close(cancel=True, timeout=0)
    gate.let()
    reader.join(60)
    assert not reader.is_alive() and ticket.done() and worker.close(timeout=60)


def test_who_stops_waiting_for_a_preview_may_ask_again(gated):
    worker, gate = gated
    ticket = worker.submit(request(5, 1))
    gate.wait()

    async def read():
        previews = ticket.previews(every=2)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(previews), 0.001)
        assert len(ticket._asking) == 1 and not ticket.done()
        gate.let(3)
        return (await anext(previews)).index

    assert asyncio.run(read()) in (1, 2)
