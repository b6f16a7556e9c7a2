"""Samples and distances of any plan on a packaged network, from pairs as `pndm_fast.tune` counts them."""

from __future__ import annotations

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from quality.solvers import distance
from torch import Tensor

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.plan.warn import Notice

NETWORKS = {"mnist": demo.mnist_unet, "mnist_flow": demo.mnist_flow_unet}
TEACHER = 60  # calls of auto's plan, as a fit has by default
PART = 64  # images of a job


class PlanStudio:
    """One single-threaded process for each core. Pair i has the noise of seed i and the digit i mod 10."""

    def __init__(self, network: str, guidance: float) -> None:
        self.network = NETWORKS[network]()
        schedule, prediction = self.network.schedule, self.network.prediction
        self.teacher = pf.make_plan("auto", schedule, nfe=TEACHER, prediction=prediction)
        self.ends: dict[int, Tensor] = {}
        self.processes, context = torch.get_num_threads(), multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(self.processes, context, _open, (network, guidance))

    def __enter__(self) -> PlanStudio:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def samples(self, plan: pf.Plan, pairs: range) -> Tensor:
        """[len(pairs), 1, 28, 28]."""
        size = min(PART, -(-len(pairs) // self.processes))
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        jobs = [self.pool.submit(_draw, plan.to_json(), part) for part in parts]
        return torch.cat([torch.from_numpy(job.result()) for job in jobs])

    def distances(self, plan: pf.Plan, pairs: range) -> Tensor:
        """Of each image from the teacher's of the same noise: root mean square over its pixels."""
        missing = [i for i in pairs if i not in self.ends]
        if missing:
            span = range(missing[0], missing[-1] + 1)
            self.ends |= zip(span, self.samples(self.teacher, span), strict=True)
        return distance(self.samples(plan, pairs), torch.stack([self.ends[i] for i in pairs]))


_network: Any
_guidance: float


def _open(network: str, guidance: float) -> None:
    global _network, _guidance
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", Notice)
    _network, _guidance = NETWORKS[network](), guidance


def _draw(tree: dict[str, Any], pairs: range) -> Any:
    plan, size = pf.Plan.from_json(tree), _network.config.sample_size
    labels = torch.tensor([i % demo.null_class for i in pairs])
    more: dict[str, Any] = {}
    if _guidance != 1:
        more = {"uncond": {"class_labels": torch.full_like(labels, demo.null_class)}, "guidance": _guidance}
    sampler = pf.Sampler(_network, plan, shape=(len(pairs), 1, size, size))
    return sampler(seeds=list(pairs), cond={"class_labels": labels}, on_nan="ignore", **more).numpy()
