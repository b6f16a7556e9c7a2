"""What a `Worker` foresees, and what it counts."""

import random
import time

import pytest
from fake_engine import FakeEngine, request
from hypothesis import given
from hypothesis import strategies as st

import pndm_fast as pf
from pndm_fast.engine import service
from pndm_fast.engine.metrics import CLASSES, EDGES, QUANTILES, Metrics, Rate, Times
from pndm_fast.engine.policy import foreseen
from pndm_fast.engine.queue import Costs


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), max_size=6),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), max_size=8),
    st.integers(1, 4),
)
def test_when_a_newcomer_begins_is_as_predicted(running, ahead, needs):
    """By an engine of 4 lanes that runs what is told, call by call."""
    engine = FakeEngine(capacity=4)
    begun, calls = [], 0
    engine.on_begin = begun.append
    plan = {n: pf.make_plan("ddim", steps=n, spacing="trailing") for n in range(1, 19)}
    kept = []
    for lanes, rows in running:
        if sum(one for one, _ in kept) + lanes <= 4:
            kept.append((lanes, rows))
            engine.enter(engine.checked(pf.Request(plan=plan[rows], seeds=range(lanes)), 0))
    if kept:
        engine.step()
    left = [(lanes, rows - 1) for lanes, rows in kept if rows > 1]
    for lanes, rows in (*ahead, (needs, 1)):
        last = engine.enter(engine.checked(pf.Request(plan=plan[rows], seeds=range(lanes)), 0))
    while last not in begun:
        engine.step()
        calls += 1
    assert foreseen(4, [*left, *ahead], needs, 3) == (calls - 1, calls + 2)


def test_costs_follow_what_is_measured():
    costs = Costs({})
    assert costs.of(3) == costs.least() == 0
    costs.add(4, 2.0)
    assert costs.of(1) == costs.of(16) == costs.least() == 2.0
    costs.add(1, 1.0)
    for _ in range(100):
        costs.add(4, 4.0)
    assert costs.of(3) == pytest.approx(4.0, rel=1e-3) and costs.least() == 1.0
    for _ in range(20):
        costs.add(4, 1.0)
    assert costs.of(3) == pytest.approx(1.0, rel=1e-3)
    costs.forget()
    assert costs.of(3) == costs.least() == 0
    measured = Costs({2: 0.5})
    measured.add(2, 30.0)
    measured.forget()
    assert measured.of(2) == 0.5


def test_one_slow_call_does_not_have_all_refused_for_ever(monkeypatch):
    slow = [0.3]
    with pf.Worker(FakeEngine(network=lambda numbers: time.sleep(slow.pop() if slow else 0))) as worker:
        worker.submit(request(1)).result(60)
        with pytest.raises(pf.DeadlineMissed):
            worker.submit(request(5), deadline=0.5)
        monkeypatch.setattr(service, "FRESH", 0.0)
        for _ in range(9):
            worker.submit(request(5), deadline=0.5, late="refuse").result(60)


def test_quantiles_are_within_a_bucket_of_the_exact_ones():
    random.seed(0)
    times, told = Times(), sorted(random.lognormvariate(-3, 1.5) for _ in range(5000))
    for one in told:
        times.add(one)
    numbers = times.numbers()
    assert numbers["count"] == 5000 and numbers["sum"] == pytest.approx(sum(told))
    for q in QUANTILES:
        exact = told[max(int(-(-q * 5000 // 1)) - 1, 0)]
        assert exact <= numbers["quantiles"][q] <= exact * EDGES[1] / EDGES[0] * (1 + 1e-9)
    assert numbers["buckets"] == [(edge, sum(one <= edge for one in told)) for edge in EDGES]
    assert Times().quantile(0.5) != Times().quantile(0.5)  # NaN


def test_a_rate_is_of_the_last_seconds():
    now = [0.0]
    rate = Rate(lambda: now[0])
    for _ in range(100):
        now[0] += 0.5
        rate.add(5)
    assert rate.per_second() == pytest.approx(10, rel=0.11)
    now[0] += 11
    assert rate.per_second() == 0


def test_classes_are_bounded():
    metrics = Metrics(4)
    for priority in range(1000):
        metrics.finished(priority, 0.5, late=False)
    latency = metrics.numbers(0, 0)["latency"]
    assert len(latency) == CLASSES + 1 and latency["other"]["count"] == 1000 - CLASSES
