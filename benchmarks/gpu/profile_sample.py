"""Samples for a profiler, warmed up, between cudaProfilerStart and cudaProfilerStop: `nsight.md` has the commands."""

from __future__ import annotations

import argparse
import contextlib

import torch
from gpu.samples import Job, synchronize

import pndm_fast as pf


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", choices=("auto", "while", "replay", "eager"), default="auto")
    parser.add_argument("--network", choices=("small", "cifar", "sd"), default="cifar")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--calls", type=int, default=1, help="profiled samples")
    parser.add_argument("--nvtx", action="store_true", help="ranges in the domain pndm_fast; needs the package nvtx")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    job = Job(arguments.network, arguments.batch, arguments.steps, arguments.device)
    sampler = job.sampler(arguments.graph)
    for _ in range(3):
        job.sample(sampler)
    synchronize(job.device)
    profiler = torch.cuda.profiler.profile() if job.device != "cpu" else contextlib.nullcontext()
    with profiler, pf.nvtx_ranges() if arguments.nvtx else contextlib.nullcontext():
        for _ in range(arguments.calls):
            report = job.run(sampler).report
        synchronize(job.device)
    print(f"{report.graph} ({report.graph_reason or 'no objection'}): {report.nfe} rows, {report.seconds * 1e3:.2f} ms")
    print(f"an iteration's nodes: {report.nodes}; {report.graph_bytes / 2**20:.1f} MiB for the graph")


if __name__ == "__main__":
    main()
