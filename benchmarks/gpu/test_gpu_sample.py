"""Whole samples on a GPU: against the network alone, against diffusers' loop, and our own modes among themselves."""

import machine
import pytest
import torch
from gpu.samples import Alone, DiffusersLoop, Job, Unrolled, relative, synchronize
from speed.harness import Side, Target, contest

import pndm_fast as pf
from pndm_fast.row.noise import normals, seed_tensor

pytestmark = pytest.mark.gpu

BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # on `relative`: convolutions round to tf32 and bf16
REPORTED = Target(None)


def job_of(case, device="cuda"):
    """From "cifar-B16"; the largest batch takes fewer steps."""
    name, batch = case.split("-B")
    return Job(name, int(batch), steps=10 if batch == "256" else 50, device=device)


def same_start(job):
    """The x_T that our sampler draws."""
    flat = normals(seed_tensor(list(range(job.batch))), 0, torch.Size(job.network.shape).numel())
    return flat.view(job.shape).to(job.device)


def measure(benchmark, job, ours, theirs, target, rounds, **more):
    """A contest whose unit is a sample; more rounds where one is short."""
    rounds = min(rounds, {"small": 31, "cifar": 15}.get(job.name, 7) if job.batch == 1 else 5)
    contest(benchmark, ours, theirs, target, rounds=rounds, nfe=job.plan.nfe, **more)
    benchmark.extra_info |= {"steps": job.steps, "clocks": machine.clocks()}


def distance_of(job, off):
    """A record of how far the rival's image is. One that is too far marks the result, and is measured all the same."""
    return {"relative_distance": off, "apart": not off <= BOUND[job.network.dtype]}


def equal_to_eager(job, sampler):
    """The report of a sampler's call, once its image is the eager one's, bit for bit."""
    got, wanted = job.run(sampler), job.sample(job.sampler("eager", sampler.model))
    assert torch.isfinite(wanted).all() and torch.equal(got.samples, wanted), f"{got.report.graph} is not eager"
    return got.report


@pytest.mark.parametrize("case", ["cifar-B1", "small-B1", "sd-B1"])
def test_over_the_network_alone(benchmark, rounds, case):
    """A sample over as many replays of a graph of the network alone; a row's cost is the slope over twice the steps."""
    job = job_of(case)
    sampler, alone, nfe, longer = job.sampler(), Alone(job), job.plan.nfe, job.plan_of(2 * job.steps)
    report = equal_to_eager(job, sampler)
    job.sample(sampler, longer)
    theirs = {
        "network alone": job.side(lambda: alone(nfe)),
        "network alone, longer": job.side(lambda: alone(longer.nfe)),
        "ours, longer": job.ours(sampler, longer),
    }
    target = Target(1.03, at_most=True) if case == "cifar-B1" else Target(None, at_most=True)
    measure(benchmark, job, job.ours(sampler), theirs, target, rounds, graph=report.graph)
    if not benchmark.disabled:
        info, us = benchmark.extra_info, {name: one["us"] for name, one in benchmark.extra_info["rivals"].items()}
        slope = us["ours, longer"] - info["us"] - (us["network alone, longer"] - us["network alone"])
        info["row_us"] = round(slope / (longer.nfe - nfe), 3)
        info["row_us_with_start_and_end"] = round((info["us"] - us["network alone"]) / nfe, 3)
        info["row_met"] = info["row_us"] <= 5 if case == "cifar-B1" else None


def modes(job):
    """Our modes with an unrolled capture, as calls; and why one cannot be had."""
    calls, missing = {"unrolled": Unrolled(job)}, {}
    for mode in ("while", "replay", "eager"):
        sampler = job.sampler(mode)
        try:
            job.sample(sampler)
        except ValueError as reason:
            missing[mode] = str(reason)
        else:
            calls[mode] = lambda sampler=sampler: job.sample(sampler)
    return calls, missing


@pytest.mark.parametrize("case", ["cifar-B1", "small-B1", "small-B16", "cifar-B16"])
def test_modes(benchmark, rounds, case):
    """The default against every mode by name and against one graph of all rows: it must be the best of them."""
    job = job_of(case)
    sampler = job.sampler()
    report = equal_to_eager(job, sampler)
    calls, missing = modes(job)
    wanted = job.sample(sampler)
    for name, call in calls.items():
        assert torch.equal(call(), wanted), f"{name} is not the default's image"
    theirs = {name: job.side(call) for name, call in calls.items()}
    more = {"graph": report.graph, "missing": missing, "graph_bytes": report.graph_bytes}
    measure(benchmark, job, job.ours(sampler), theirs, Target(1.02, at_most=True), rounds, **more)


@pytest.mark.parametrize("case", ["cifar-B1", "cifar-B16", "cifar-B256", "sd-B1", "sd-B4"])
def test_against_diffusers(benchmark, rounds, case):
    """The same network in the loop of diffusers' pipelines, not compiled on either side."""
    job = job_of(case)
    sampler, theirs = job.sampler(), DiffusersLoop(job)
    report = equal_to_eager(job, sampler)
    start, got = same_start(job), job.sample(sampler)
    off = relative(got, DiffusersLoop(job, state=torch.float32)(start))
    more = {
        "graph": report.graph,
        **distance_of(job, off),
        "relative_distance_in_their_dtype": relative(got, theirs(start)),
    }
    target = Target(2.0) if case == "cifar-B1" else REPORTED
    measure(benchmark, job, job.ours(sampler), {"diffusers": job.side(theirs)}, target, rounds, **more)


class FirstRequest:
    """A sampler's first call, its making and, where asked for, its preparation untimed.

    The process has sampled before: libraries' handles and kernels are there.
    """

    def __init__(self, job, graph="auto", prepared=False):
        self.job, self.graph, self.prepared = job, graph, prepared

    def reset(self):
        self.sampler = self.job.sampler(self.graph)
        if self.prepared:
            conditions = {name: value for name, value in self.job.arguments.items() if name != "seeds"}
            self.sampler.prepare([self.job.batch], pf.Request(**conditions))
        synchronize(self.job.device)

    def run(self, calls):
        for _ in range(calls):
            self.result = self.job.run(self.sampler)
        synchronize(self.job.device)

    def side(self):
        return Side(self.run, self.reset, most=1)


@pytest.mark.parametrize("case", ["cifar-B1", "sd-B1"])
def test_first_request(benchmark, rounds, case):
    """Latency of a sampler's first request, captures included, against that of a prepared one."""
    job = job_of(case)
    prepared, bare, eager = FirstRequest(job, prepared=True), FirstRequest(job), FirstRequest(job, "eager")
    for first in (prepared, bare, eager):
        first.reset()
        first.run(1)
    assert all(torch.equal(first.result.samples, eager.result.samples) for first in (prepared, bare))
    captures = prepared.result.report.captures
    theirs = {"unprepared": bare.side(), "unprepared, eager": eager.side()}
    measure(benchmark, job, prepared.side(), theirs, REPORTED, min(rounds, 5), captures=captures)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", ["cifar-B1", "sd-B1", "cifar-B16", "cifar-B256", "sd-B4"])
def test_against_reduce_overhead(benchmark, rounds, case):
    """torch.compile on both sides: its default mode under ours, its own CUDA graphs under diffusers' loop."""
    job = job_of(case)
    torch._dynamo.reset()
    compiled = torch.compile(job.module, dynamic=False)
    sampler = job.sampler(network=compiled)
    report = equal_to_eager(job, sampler)
    rival = torch.compile(job.module, mode="reduce-overhead", dynamic=False)
    theirs = DiffusersLoop(job, rival, clone=True)
    start = same_start(job)
    off = relative(job.sample(sampler), DiffusersLoop(job, rival, torch.float32, clone=True)(start))
    theirs(start)
    target = Target(1.05) if case == "cifar-B1" else REPORTED
    more = {"graph": report.graph, "graph_reason": report.graph_reason, **distance_of(job, off)}
    measure(benchmark, job, job.ours(sampler), {"reduce-overhead": job.side(theirs)}, target, rounds, **more)
