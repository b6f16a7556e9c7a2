"""What `benchmarks serving` simulates and measures: queues by their laws, and the engine's by the engine itself."""

# ruff: noqa: E402
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
sys.path.append(str(FOLDER))

from hypothesis import given
from hypothesis import strategies as st
from serving import contest, report, run
from serving.load import SCALES, Arrival, Mix, arrivals
from serving.simulate import engine, highest_rate, latencies, quantile, static

import pndm_fast as pf
from pndm_fast.engine.policy import Policy


def costs(law, sizes=range(1, 17)):
    return {(form, size): float(law(size * (1 + form))) for form in (False, True) for size in sizes}


SEEDS = st.integers(0, 10**6)


def test_arrivals_are_seeded_and_as_many_as_asked_for():
    mix = Mix(guided=0.3, burst=4)
    asked = arrivals(mix, 5.0, 20_000, 1)
    assert asked == arrivals(mix, 5.0, 20_000, 1) != arrivals(mix, 5.0, 20_000, 2)
    assert len(asked) / asked[-1].at == pytest.approx(5, rel=0.05)
    times = [one.at for one in asked]
    assert times == sorted(times) and len(asked) / len(set(times)) == pytest.approx(4, rel=0.05)
    assert sum(one.form for one in asked) / len(asked) == pytest.approx(0.3, rel=0.05)
    assert {one.scale for one in asked} == {None, *SCALES} and {one.rows for one in asked} == set(mix.steps)
    assert sum(one.rows for one in asked) / len(asked) == pytest.approx(mix.mean_rows, rel=0.03)


@given(SEEDS)
def test_one_after_another_is_lindleys_recursion(seed):
    asked, now = arrivals(Mix(guided=0.5), 0.05, 50, seed), 0.0
    trace = static(1)(asked, costs(lambda b: 0.5 + 0.5 * b))
    for one, done in zip(asked, trace.done, strict=True):
        now = max(now, one.at) + one.rows * (1.5 if one.form else 1.0)
        assert done == pytest.approx(now)


def test_waiting_is_as_pollaczek_and_khinchine_say():
    """E W = rate E S^2 / (2 (1 - rate E S)); S is the number of rows."""
    mix, rate = Mix(), 0.03
    asked = arrivals(mix, rate, 60_000, 0)
    trace = static(1)(asked, costs(lambda b: 1.0))
    mean, square = mix.mean_rows, sum(n * n for n in mix.steps) / len(mix.steps)
    waited = [late - one.rows for late, one in zip(latencies(asked, trace.done), asked, strict=True)]
    assert sum(waited) / len(waited) == pytest.approx(rate * square / (2 * (1 - rate * mean)), rel=0.06)


@given(SEEDS, st.sampled_from([lambda b: 1 + 0.05 * b, lambda b: 0.5 + 0.5 * b, float]))
def test_no_way_loses_requests_or_is_faster_than_they_are_alone(seed, law):
    asked, table = arrivals(Mix(guided=0.4, burst=3), 0.2, 60, seed), costs(law)
    for way in (
        static(1),
        static(4),
        static(16),
        static(8, alike=True),
        engine(range(1, 17)),
        engine((1, 2, 4, 8, 16)),
    ):
        trace = way(asked, table)
        for one, done in zip(asked, trace.done, strict=True):
            assert done >= one.at + one.rows * table[one.form, 1] - 1e-9
        assert trace.samples >= sum(one.rows for one in asked)
        assert max(trace.done) >= trace.busy - 1e-9 and trace.busy <= max(trace.done)


class Clock:
    """A network that takes what is told on a clock of its own, and notes its batches."""

    def __init__(self, law):
        self.law, self.now, self.batches = law, 0.0, []

    def __call__(self, x, t, y):
        self.now += self.law(len(x))
        self.batches.append(len(x))
        return 0.5 * x


@pytest.mark.filterwarnings("ignore:the grid starts")
@pytest.mark.parametrize("buckets", [(1, 2, 4), (1, 2, 3, 4)])
@pytest.mark.parametrize("law", [lambda b: 1 + 0.05 * b, lambda b: 0.5 + 0.5 * b, float])
def test_the_simulated_engine_calls_the_network_as_the_engine_does(law, buckets):
    """Batch by batch: `pf.Engine` in the simulation's time, told the same costs."""
    mix = Mix(steps=(4, 6, 10), solvers=("ddim",), guided=0.4)
    asked, table = arrivals(mix, 0.25, 40, 3), costs(law, buckets)
    clock = Clock(law)
    real = pf.Engine(clock, shape=(4, 8), device="cpu", buckets=buckets)
    for form in (False, True):
        real.prepare(contest.request_of([Arrival(0, 4, "ddim", 2.0 if form else None, seed) for seed in range(4)]))
    policies(real, table, buckets)
    clock.now, clock.batches, coming, done, numbers = 0.0, [], 0, {}, {}
    while coming < len(asked) or not real.idle:
        if real.idle:
            clock.now = max(clock.now, asked[coming].at)
        while coming < len(asked) and asked[coming].at <= clock.now:
            numbers[real.add(contest.request_of([asked[coming]]))] = coming
            coming += 1
        for ended in real.step():
            done[numbers[ended.id]] = clock.now
    trace = engine(buckets)(asked, table)
    assert [done[i] for i in range(len(asked))] == pytest.approx(trace.done)
    assert len(clock.batches) == trace.rows


def policies(real, table, buckets):
    """The engine's, with these costs."""
    for key, group in real._groups._groups.items():
        group.policy = Policy({size: table[key.kind.guided, size] for size in buckets})


def test_quantiles_and_rates():
    assert quantile([3, 1, 2], 0.99) == 3 and quantile(range(1, 101), 0.99) == 99 and quantile([5], 0.5) == 5
    assert highest_rate(lambda rate: rate, 0.7, 0.01, 10) == pytest.approx(0.7, rel=0.01)


@pytest.mark.filterwarnings("ignore:the grid starts")
@pytest.mark.parametrize("guided", [0.0, 0.5])
def test_contestants_draw_what_requests_are_alone(guided):
    """Each of them, for the same arrivals; the numbers that are told are those of the calls that were made."""
    network = contest.Counted(contest.halved)
    asked = arrivals(Mix(steps=(4, 6), guided=guided), 400.0, 30, 5)
    lanes = pf.Engine(network, shape=(4, 8), device="cpu")
    for make in (
        lambda done: contest.Static(network, (8,), 1, False, done),
        lambda done: contest.Static(network, (8,), 4, False, done),
        lambda done: contest.Static(network, (8,), 4, True, done),
        lambda done: contest.Lanes(lanes, done),
    ):
        told = contest.raced(make, asked, network)
        contest.check(told["drawn"], asked, network, exact=True)
        assert len(told["drawn"]) == 5 and told["requests"] == 30 and told["p50"] <= told["p99"] <= told["seconds"]
        assert told["samples"] >= sum(one.rows * (1 + one.form) for one in asked) >= told["calls"]
    wrong = {0: told["drawn"][0] + 1e-6}
    with pytest.raises(AssertionError, match="request 0 has other bits"):
        contest.check(wrong, asked, network, exact=True)


def test_a_page_is_made_of_results(tmp_path, monkeypatch):
    at = {"rate": 2.0, "p50": 0.1, "p99": 0.4, "short_p50": 0.1, "short_p99": 0.2, "calls": 10, "samples": 25}
    contestants = {
        run.SERIAL: {"simulated": {"rate": 1.0}, "measured": None, "tried": [at | {"rate": 0.5}]},
        run.ENGINE: {"simulated": {"rate": 2.5}, "measured": at, "tried": [at]},
    }
    result = {
        "name": "cost B", "limit": 0.4, "costs": {1: 0.001}, "contestants": contestants,
        "ratios": {run.SERIAL: None, run.ENGINE: 1.0}, "simulated_ratios": {run.SERIAL: 2.5, run.ENGINE: 1.0},
        "target": {"rival": run.SERIAL, "least": 0.95, "ratio": 0.9, "met": False},
    }  # fmt: skip
    result |= {"machine": {"cpu": "a", "torch": "b", "commit": None}, "load": 0.1}
    page = report.text({"lanes": run.LANES, "results": [result]})
    assert "| engine | 2.50 | 2.00 | 0.80 | 1.00 (1.00) | 100 | 400 | 100 | 200 | 10 | 2.50 |" in page
    assert "below 0.50" in page and "0.90, missed" in page
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    for ratio in (0.9, 1.0):
        result["target"]["ratio"] = ratio
        run.keep(result)
    assert (tmp_path / "serving.md").read_text() == page.replace("0.90, missed", "1.00, missed")
