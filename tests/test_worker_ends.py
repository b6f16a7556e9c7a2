"""How a `Worker` ends, and what its tickets then come to."""

import concurrent.futures
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from fake_engine import FakeEngine, request
from worker_case import Gate, value

import pndm_fast as pf


def test_what_was_submitted_is_done_when_the_block_is_left():
    with pf.Worker(FakeEngine(network=lambda numbers: time.sleep(0.0005))) as worker:
        tickets = [worker.submit(request(8, seed)) for seed in range(12)]
    assert all(ticket.done() for ticket in tickets) and [value(ticket) for ticket in tickets] == [
        [k] for k in range(12)
    ]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the worker is closed"):
            worker.submit(request(1))
        assert worker.close() and worker.drain()
    assert worker.metrics()["refused"]["closed"] == 2


def test_an_exception_in_the_block_cancels():
    gate = Gate()
    with pytest.raises(KeyError), pf.Worker(FakeEngine(network=gate)) as worker:
        tickets = [worker.submit(request(50, seed)) for seed in range(6)]
        gate.let(60)
        raise KeyError
    assert all(ticket.cancelled() for ticket in tickets) and worker.metrics()["cancelled"] == 6


def test_close_waits_or_cancels_as_asked(gated):
    worker, gate = gated
    tickets = [worker.submit(request(2, seed)) for seed in range(6)]
    gate.wait()
    assert not worker.close(timeout=0.01) and not worker.drain(0.01)
    with pytest.raises(RuntimeError, match="the worker is closed"):
        worker.submit(request(1))
    assert not worker.close(cancel=True, timeout=0.01)  # a call of the network is not broken off
    assert all(ticket.cancelled() for ticket in tickets) and worker.drain(60)
    gate.let()
    assert worker.close(timeout=60) and len(gate.seen) == 1


def test_callbacks_may_submit_and_close_but_not_drain():
    seen = []

    def done(ticket):
        try:
            worker.drain()
        except RuntimeError as error:
            seen.append(str(error))
        seen.append(worker.submit(request(1, 5)))
        seen.append(worker.close())

    with pf.Worker(FakeEngine()) as worker:
        worker.submit(request(1, 4)).add_done_callback(done)
        worker.drain(60)
    said, ticket, ended = seen
    assert "drain must not be called by a callback" in said and value(ticket) == [5] and ended is False


def test_a_worker_that_nobody_has_ends_its_thread():
    threads = threading.active_count()
    assert value(pf.Worker(FakeEngine()).submit(request(3, 6))) == [6]
    worker = pf.Worker(FakeEngine())
    service = worker._service
    ticket = worker.submit(request(2, 1))
    del worker
    assert value(ticket) == [1]
    del ticket
    gc.collect()
    service._thread.join(60)
    assert not service._thread.is_alive() and threading.active_count() <= threads


def test_a_network_that_fails_ends_its_batch_alone():
    fail = iter([False, True] + [False] * 100)

    def network(numbers):
        if next(fail):
            raise RuntimeError("no memory")

    gate, engine = Gate(), FakeEngine(capacity=2)
    engine.network = lambda numbers: (gate(numbers), network(numbers))
    with pf.Worker(engine) as worker:
        tickets = [worker.submit(request(3, seed)) for seed in range(4)]
        gate.let()
        for ticket in tickets[:2]:
            with pytest.raises(RuntimeError, match="no memory"):
                ticket.result(60)
        assert [value(ticket) for ticket in tickets[2:]] == [[2], [3]]
        worker.drain()
        assert worker.metrics()["failed"] == 2 and worker.metrics()["finished"] == 2


@pytest.mark.parametrize("error", [torch.AcceleratorError("illegal memory access"), SystemExit("killed")])
def test_a_thread_that_ends_takes_all_with_it_and_says_why(error):
    gate = Gate()

    def network(numbers):
        gate(numbers)
        raise error

    worker = pf.Worker(FakeEngine(network=network))
    tickets = [worker.submit(request(5, seed)) for seed in range(9)]
    previews = concurrent.futures.ThreadPoolExecutor(1).submit(lambda: list(tickets[0].previews(50)))
    gate.let()
    for ticket in tickets:
        assert ticket.exception(60) is error
    assert previews.result(60) == []
    worker._service._thread.join(60)
    with pytest.raises(pf.EngineDown, match=f"the engine is down: {type(error).__name__}: {error}") as down:
        worker.submit(request(1))
    assert down.value.__cause__ is error and worker.metrics()["refused"]["down"] == 1
    assert worker.metrics()["failed"] == 9 and worker.drain(1) and worker.close()


def leave(ticket):
    raise SystemExit("from a callback")


@pytest.mark.parametrize("each", [False, True])
def test_a_callback_that_leaves_takes_the_thread_and_nobody_waits_for_ever(each):
    gate = Gate()
    worker = pf.Worker(FakeEngine(network=gate))
    tickets = [worker.submit(request(5, seed)) for seed in range(9)]
    for ticket in tickets if each else tickets[:1]:
        ticket.add_done_callback(leave)
    gate.let()
    assert value(tickets[0]) == [0]
    for ticket in tickets[1:]:
        assert isinstance(ticket.exception(60), SystemExit) or value(ticket)
    assert worker.drain(60) and worker.close(timeout=60)
    numbers = worker.metrics()
    assert numbers["finished"] >= 1 and numbers["finished"] + numbers["failed"] == 9 and numbers["running"] == 0


def test_a_callback_that_leaves_while_its_ticket_is_cancelled(gated):
    worker, gate = gated
    tickets = [worker.submit(request(5, seed)) for seed in range(6)]
    for ticket in tickets[:2]:
        ticket.add_done_callback(leave)
    with pytest.raises(SystemExit):
        tickets[0].cancel()
    with pytest.raises(SystemExit):
        worker.close(cancel=True)
    gate.let()
    assert worker.drain(60) and worker.close(timeout=60)
    assert all(ticket.cancelled() for ticket in tickets) and worker.metrics()["cancelled"] == 6


def test_an_engine_has_one_worker():
    engine = FakeEngine()
    with pf.Worker(engine) as first:
        with pytest.raises(ValueError, match="engine must have no other worker"):
            pf.Worker(engine)
        assert value(first.submit(request(2, 7))) == [7]
    with pf.Worker(engine) as second:
        assert value(second.submit(request(2, 8))) == [8]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_no_worker(gated):
    worker, gate = gated
    done = worker.submit(request(1, 3))
    gate.wait()
    gate.let(1)
    value(done)
    ticket = worker.submit(request(3, 1))
    gate.wait()
    child = os.fork()
    if child == 0:  # which must not go on with pytest
        said = []
        for ask in (
            lambda: worker.submit(request(1)),
            ticket.result,
            worker.metrics,
            worker.drain,
            lambda: ticket.position,
        ):
            try:
                ask()
            except RuntimeError as error:
                said.append("forked" in str(error))
        os._exit(0 if said == [True] * 5 and done.result().samples.item() == 3 and worker.close(timeout=1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.let()
    assert value(ticket) == [1]


EXIT = """
import sys, time
sys.path.append(sys.argv[1])
from fake_engine import FakeEngine, request
import pndm_fast as pf

worker = pf.Worker(FakeEngine(network=lambda numbers: time.sleep(0.01)))
tickets = [worker.submit(request(50, seed)) for seed in range(20)]
tickets[0].add_done_callback(lambda ticket: print("cancelled" if ticket.cancelled() else "?", flush=True))
time.sleep(0.05)
"""


@pytest.mark.slow
def test_the_interpreter_ends_though_requests_run():
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(Path(__file__).parent)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "cancelled\n", "")
