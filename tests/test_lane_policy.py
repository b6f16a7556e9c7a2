"""Which requests of an engine run, and in how many lanes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lanecase import PLANS, SHAPE, network, pair, plan, same, served

import pndm_fast as pf
from pndm_fast.engine import groups
from pndm_fast.engine.lines import FIRST, Lines
from pndm_fast.engine.policy import Policy, Waiting, admitted, sizes_to
from pndm_fast.loop.positions import Kind

pytestmark = [
    pytest.mark.filterwarnings("ignore:the grid starts"),
    pytest.mark.filterwarnings("ignore:uncond has no effect"),
    pytest.mark.filterwarnings("ignore:guidance has no effect"),
]


class Counting:
    def __init__(self):
        self.batches = []

    def __call__(self, x, t, shift=None):
        self.batches.append(len(x))
        return network(x, t, shift)


def test_default_sizes_are_near_any_number_of_lanes():
    for capacity in (1, 2, 7, 16, 100):
        near, far = sizes_to(capacity, captured=False), sizes_to(capacity, captured=True)
        assert near[-1] == far[-1] == capacity and set(near) >= set(range(1, min(capacity, 16) + 1))
        assert all(b - a <= max(1, a / 8) for a, b in itertools.pairwise(near)) and all(
            b <= 2 * a for a, b in itertools.pairwise(far)
        )
    assert pf.Engine(network, shape=(5, *SHAPE)).buckets == (1, 2, 3, 4, 5)
    assert sizes_to(12, captured=True) == (1, 2, 4, 8, 12)


def test_idle_lanes_cost_no_network_work():
    counting = Counting()
    engine = pf.Engine(counting, shape=(8, *SHAPE), buckets=[1, 2, 4, 8])
    lengths = [2, 3, 5, 9]
    requests = [pf.Request(plan=plan("ddim", n), seeds=[n, n + 1]) for n in lengths]
    served(engine, requests)
    warm = [8, 4, 2]  # one more call for each new size
    sizes = [8] * 2 + [8] * 1 + [4] * 2 + [2] * 4  # of 8, 6, 4 and 2 samples
    assert sorted(counting.batches) == sorted(warm + sizes)
    assert engine.stats.lane_rows == 2 * sum(lengths) and engine.stats.places == sum(sizes)
    assert engine.stats.rows == len(sizes) == engine.stats.network_calls


def test_the_first_in_line_never_waits_and_nobody_starves():
    engine, _ = pair(2, networks=network)
    guided = {"cond": {"shift": torch.ones(1)}, "uncond": {"shift": torch.zeros(1)}, "guidance": 2.0}
    order = []
    kinds = [{}, guided, {}, guided, {}]
    ids = [engine.add(pf.Request(plan=plan("ddim", 4), seeds=[i], **kinds[i])) for i in range(5)]
    while not engine.idle:
        order += [one.id for one in engine.step()]
    assert order == ids
    assert engine.stats.rows == 5 * 4


def test_priority_goes_first_and_a_large_request_is_not_overtaken():
    engine, _ = pair(2, networks=network)
    five = plan("ddim", 5)
    first = engine.add(pf.Request(plan=five, seeds=[0]))
    engine.step()
    large = engine.add(pf.Request(plan=five, seeds=[1, 2]))
    small = engine.add(pf.Request(plan=five, seeds=[3]))
    urgent = engine.add(pf.Request(plan=five, seeds=[4]), priority=1)
    order = [one.id for _ in range(30) for one in engine.step()]
    assert order == [first, urgent, large, small]


def test_costs_decide_how_many_run():
    assert Policy({1: 1.0, 2: 2.0, 4: 4.0}).lanes() == 1
    assert Policy({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.7}).lanes() == 4
    assert Policy({1: 1.0, 2: 1.0, 4: None}).lanes() == 4
    assert [Policy({1: 1.0, 2: 1.0, 6: 1.0}).bucket(n) for n in (1, 2, 3, 6)] == [1, 2, 6, 6]
    assert Policy({1: 1.0, 2: 1.5}).seconds(10, 2) == 15.0 and Policy({1: None}).seconds(10, 1) is None


@pytest.mark.parametrize("law, most", [(lambda batch: batch, 1), (lambda batch: 1 + 0.05 * batch, 4)])
def test_prepare_measures_how_many_run(monkeypatch, law, most):
    clock = [0.0]

    class Timed(Counting):
        def __call__(self, x, t):
            clock[0] += law(len(x))
            return super().__call__(x, t)

    monkeypatch.setattr(groups, "perf_counter", lambda: clock[0])
    counting = Timed()
    engine = pf.Engine(counting, plan("ddim", 4), shape=(4, *SHAPE))
    engine.prepare()
    counting.batches.clear()
    ids = [engine.add(pf.Request(seeds=[s])) for s in range(4)]
    over = [one.id for _ in range(16) for one in engine.step()]
    assert over == ids and set(counting.batches) == {most}


def test_prepare_makes_everything_beforehand():
    counting = Counting()
    engine = pf.Engine(counting, plan("ddim", 4), shape=(4, *SHAPE), buckets=[2, 4])
    engine.prepare(pf.Request(cond={"shift": torch.ones(1)}))
    assert set(counting.batches) == {1, 2, 4}  # 1 for `batch_error`
    assert engine.batch_error == 0
    counting.batches.clear()
    served(engine, [pf.Request(seeds=[s], cond={"shift": torch.ones(1)}) for s in range(3)])
    assert len(counting.batches) == engine.stats.rows


@given(
    running=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=3),
    line=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=5),
)
def test_what_is_left_is_foreseen(running, line):
    """With one batch size and one group the prediction is exact."""
    engine = pf.Engine(network, shape=(3, *SHAPE), buckets=[3])
    engine._groups._costs = {Kind(0, False): {3: 2.0}}
    ids = []
    for number, (batch, rows) in enumerate((*running, *line)):
        ids.append(engine.add(pf.Request(plan=plan("ddim", rows), seeds=range(batch))))
        if number < len(running):
            engine.step()
    foreseen = {i: engine.seconds_left(i) for i in ids}
    engine._over.clear()
    done, ended = 0, {i: 0 for i in ids if i not in engine._known}
    while not engine.idle:
        done += 1
        ended |= {one.id: done for one in engine.step()}
    assert foreseen == {i: 2.0 * rows for i, rows in ended.items()}


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from("ab")), max_size=8),
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 3)),
    st.integers(0, 8),
)
def test_admission(line, running, free):
    """Nobody gets lanes that are not there; who is passed over is passed by other groups alone, and keeps its lanes."""
    line, allowed = [Waiting(*one) for one in line], {"a": 2, "b": 4}
    begin = admitted(line, running, allowed, free)
    assert begin == sorted(begin) and sum(line[i].lanes for i in begin) <= free
    for i, one in enumerate(line):
        if i in begin:
            assert sum(before.lanes for before in line[:i]) + one.lanes <= free
            assert all(j in begin for j in range(i) if line[j].group == one.group)
    if line and line[0].lanes <= free and not running.get(line[0].group):
        assert begin[:1] == [0]


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(12, 40))
def test_lines_of_plans_in_use_never_overlap(asked, rows):
    plans = [plan("ddim", n) for n in (1, 2, 3, 5, 8, 4)]
    lines, held = Lines(rows), []
    for which, turn in zip(asked, itertools.cycle([0, 1, 0]), strict=False):
        if turn and held:
            lines.give(held.pop(which % len(held)))
        entry = lines.take(plans[which])
        if entry is None:
            free = rows - FIRST - sum(one.end - one.base for one in set(held))
            assert held and free < 8 + 3 * sum(1 for _ in set(held)) * 9  # else there was room, whatever the gaps
            continue
        held.append(entry)
        taken = sorted({(one.base, one.end) for one in held})
        assert taken[0][0] >= FIRST and taken[-1][1] <= rows
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(taken))
        assert entry.plan is plans[which] and entry.end - entry.base == entry.plan.nfe + 1


def test_more_plans_than_a_table_holds():
    engine, sampler = pair(8, networks=network)
    plans = [plan("ddim", 140 + i) for i in range(8)]
    requests = [pf.Request(plan=one, seeds=[i]) for i, one in enumerate(plans)]
    for ours, request in zip(served(engine, requests, [0, 1, 2, 3, 4, 5, 60, 70]), requests, strict=True):
        same(ours, sampler.run(request))


def test_many_plans_one_after_another_stay_in_one_table():
    engine, sampler = pair(3, networks=network)
    plans = [plan("ddim", 150 + i) for i in range(12)]
    requests = [pf.Request(plan=one, seeds=[i]) for i, one in enumerate(plans)]
    for ours, request in zip(served(engine, requests, [40 * i for i in range(12)]), requests, strict=True):
        same(ours, sampler.run(request))
    assert [group.lines.rows for group in engine._groups._groups.values()] == [1024]


def test_groups_that_nobody_uses_are_dropped():
    engine, sampler = pair(2, networks=network)
    requests = [pf.Request(plan=plan("ddim", 2), seeds=[1], cond={"scale": float(i)}) for i in range(30)]
    for ours, request in zip(served(engine, requests), requests, strict=True):
        same(ours, sampler.run(request))
    assert len(engine._groups._groups) <= groups.IDLE + 2


def test_one_seed_is_one_sample():
    engine, sampler = pair(4)
    (ours,) = served(engine, [pf.Request(plan=PLANS["ddpm"], seeds=5)])
    same(ours, sampler.run(pf.Request(plan=PLANS["ddpm"], seeds=[5])))


def test_a_full_line_refuses():
    engine, _ = pair(2, max_queue=2)
    for _ in range(2):
        engine.add(pf.Request(plan=PLANS["ddpm"]))
    with pytest.raises(pf.QueueFull, match="^2 requests are waiting, and max_queue is 2$"):
        engine.add(pf.Request(plan=PLANS["ddpm"]))
    engine.step()
    engine.add(pf.Request(plan=PLANS["ddpm"]))


def test_what_is_wrong_is_refused_before_anything_is_in_line():
    engine, _ = pair(2)
    for wrong in ({"seeds": range(3)}, {"seeds": -1}, {"cond": {"shift": torch.ones(5)}}, {"plan": None}):
        with pytest.raises(ValueError):
            engine.add(pf.Request(**({"plan": PLANS["ddpm"]} | wrong)))
    assert engine.idle
