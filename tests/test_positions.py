"""Every sample stands at a row of its own: batches whose samples are at different rows of different plans."""

import dataclasses

import pytest
import torch
from drawing import draw
from hypothesis import given
from hypothesis import strategies as st

import pndm_fast as pf
from pndm_fast.loop.call import resolve
from pndm_fast.loop.positions import Kind, Positions, segments_of
from pndm_fast.loop.run import run_segment
from pndm_fast.loop.workspace import OutputSpec, Workspace
from pndm_fast.row.reference import Sources
from pndm_fast.runtime.executor import take_executor

SHAPE = (2, 3, 8, 8)
PLANS = {name: pf.make_plan(name, steps=6) for name in ("unipc", "ddpm", "f-pndm")}


def network(x, t, shift):
    return torch.sin(x * 1.1) * 0.3 + (t / 1000 + shift).view(-1, 1, 1, 1)


def segment_of(sampler, call, positions, kind, length):
    return sampler.machine.segment(call, sampler.machine.evaluations(call)[kind], positions, kind, length, None)


def after(sampler, request, rows):
    """The call with the registers that it has before its row of that index."""
    call = resolve(request, sampler.machine.setup)
    positions = call.positions()
    kind, length = call.segments[0]
    segment = segment_of(sampler, call, positions, kind, length)
    with take_executor(sampler.cache, segment, positions, "eager", 1) as executor:
        executor.rows(rows)
        return call, segment, executor.workspace.snapshot()


def together(sampler, requests, rows):
    """One batch that takes up each request before the row of its own index, run to the end of the longest."""
    parts = [after(sampler, request, count) for request, count in zip(requests, rows, strict=True)]
    calls, segments, snapshots = zip(*parts, strict=True)
    plans = [request.plan for request in requests]
    cond = {"shift": torch.cat([request.cond["shift"] for request in requests])}
    seeds = [request.seeds[0] for request in requests]
    call = resolve(pf.Request(plan=plans, seeds=seeds, cond=cond, noise_sampler=None), sampler.machine.setup)
    positions = Positions(plans, rows)
    kind, length = positions.ahead()
    segment = segment_of(sampler, call, positions, kind, length)
    first = dict(zip(map(id, call.distinct), segment.table.first, strict=True))
    most = max(len(s.slots) for s in snapshots)
    wide = [torch.cat([s.slots, s.slots.new_zeros(most - len(s.slots), *s.slots.shape[1:])]) for s in snapshots]
    joined = dataclasses.replace(
        snapshots[0],
        x=torch.cat([s.x for s in snapshots]),
        y=torch.cat([s.y for s in snapshots]),
        slots=torch.cat([s.to(wide[0].dtype) for s in wide], dim=1),
        seeds=torch.cat([s.seeds for s in snapshots]),
        first_bad=torch.cat([s.first_bad for s in snapshots]),
        row=torch.tensor([first[id(plan)] + i for plan, i in zip(plans, rows, strict=True)], dtype=torch.int32),
        active=torch.tensor([len(rows)], dtype=torch.int32),
    )
    segment = segment._replace(snapshot=joined)
    with take_executor(sampler.cache, segment, positions, "eager", 1) as executor:
        return run_segment(executor.segment, executor.workspace, executor.rows, positions, at_once=length)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_samples_at_different_rows_have_the_bytes_they_have_alone(backend):
    sampler = pf.Sampler(network, shape=SHAPE, backend=backend, graph="eager")
    rows = [0, 4, 7]
    requests = [
        pf.Request(plan=plan, seeds=[seed], cond={"shift": torch.tensor([0.1 * seed])})
        for seed, plan in enumerate(PLANS.values(), 3)
    ]
    got = together(sampler, requests, rows)
    for sample, request in zip(got, requests, strict=True):
        assert torch.equal(sample, sampler.run(request).samples[0])


def test_the_callers_noise_follows_each_sample():
    """Samples at different rows get the normals of their own rows."""
    plan = PLANS["ddpm"]
    call = resolve(
        pf.Request(noise_sampler=lambda index: torch.full(SHAPE, float(index))),
        pf.Sampler(network, plan, shape=SHAPE).machine.setup,
    )
    z = call.noise.of_rows(Positions([plan, plan], [1, 3]))
    assert z[:, 0, 0, 0].tolist() == [3.0, 5.0]
    last = Positions([plan, plan], [plan.nfe - 1, plan.nfe])  # the last row draws none, and the other has ended
    assert call.noise.of_rows(last) is None


def by_hand(plans):
    """The kinds of all rows of plans that begin together, run together."""
    found = []
    for i in range(max(plan.nfe for plan in plans)):
        kinds = [plan.kinds[i] for plan in plans if i < plan.nfe]
        here = Kind(kinds[0][0], any(guided for _, guided in kinds))
        if found and found[-1][0] == here:
            found[-1][1] += 1
        else:
            found.append([here, 1])
    return tuple((kind, count) for kind, count in found)


@given(st.lists(st.lists(st.sampled_from([1.0, 2.0]), min_size=1, max_size=7), min_size=1, max_size=3))
def test_segments_are_runs_of_one_kind(scales):
    plans = [pf.make_plan("ddim", steps=len(row)).with_guidance(row) for row in scales]
    assert segments_of(plans) == by_hand(plans)


def test_what_is_drawn_alone_is_what_a_request_draws():
    """The three ways to ask for one thing."""
    plan = PLANS["unipc"]
    cond = {"shift": torch.zeros(2)}
    sampler = pf.Sampler(network, plan, shape=SHAPE)
    result = sampler.run(pf.Request(seeds=3, cond=cond))
    assert torch.equal(result.samples, sampler(seeds=3, cond=cond))
    assert torch.equal(result.samples, pf.sample(network, solver=plan, shape=SHAPE, seeds=3, cond=cond))
    assert torch.equal(result.samples, draw(network, solver=plan, shape=SHAPE, seeds=3, cond=cond))
    assert (result.report.nfe, result.report.calls, result.bad) == (plan.nfe, plan.nfe, ())


STARTS = {
    "one plan": [pf.make_plan("f-pndm", steps=5)],
    "two plans": [pf.make_plan("ddim", steps=5), pf.make_plan("unipc", steps=4)],
    "scaled noise": [pf.make_plan("heun", pf.Schedule.edm(), steps=14)],
    "churned": [pf.make_plan("edm", pf.Schedule.edm(), steps=18)],
    "two scales": [pf.make_plan("ddim", steps=5), pf.make_plan("heun", pf.Schedule.edm(), steps=14)],
}


@pytest.mark.parametrize("start", [None, pf.Noise(torch.ones(3, 3, 5)), pf.Image(torch.ones(3, 3, 5))], ids=str)
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("prepared", [3, 4])
def test_a_call_begins_with_the_same_bits_on_both_backends(name, start, prepared):
    """Registers, times and inputs before the first row, padded samples among them."""
    plans = [STARTS[name][i % len(STARTS[name])] for i in range(3)]
    seen = []
    for backend in ("cpp", "reference"):
        sampler = pf.Sampler(lambda x, t: x, shape=(3, 3, 5), backend=backend)
        call = resolve(pf.Request(plan=plans, seeds=7, start=start), sampler.machine.setup).padded(prepared)
        positions = call.positions()
        kind, length = call.segments[0]
        segment = segment_of(sampler, call, positions, kind, length)
        workspace = Workspace(segment.buffers(OutputSpec(torch.float32)))
        segment.begin(workspace)
        r = workspace.registers
        seen.append([r.x[:, : r.n], r.y[:, : r.n], r.row, r.t, r.net_in, r.seeds, r.first_bad, r.active, r.done])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*seen, strict=True))


def test_a_row_outside_the_table_is_refused():
    sampler = pf.Sampler(network, PLANS["unipc"], shape=SHAPE)
    call = resolve(pf.Request(), sampler.machine.setup)
    segment = segment_of(sampler, call, call.positions(), *call.segments[0])
    workspace = Workspace(segment.buffers(OutputSpec(torch.float32)))
    segment.begin(workspace)
    begin, lines = workspace.bind(segment.backend).begin, torch.zeros(2, dtype=torch.int32)
    before = workspace.registers.y.clone()
    for wrong in (len(workspace.table), -1):
        for numbers, name in ((workspace.registers.row, "row"), (lines, "lines")):
            numbers[1] = wrong
            with pytest.raises(IndexError, match=rf"{name}\[1\] must be in \[0, {len(workspace.table)}\), got {wrong}"):
                begin(lines, Sources())
            numbers[1] = 0
    assert torch.equal(workspace.registers.y[:, :15], before[:, :15])
