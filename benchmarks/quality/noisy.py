"""Solvers that add noise: they have no fine solution from the same noise, so distributions are compared."""

from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from quality.judge import Judge, train_judge
from quality.phase import floor, frechet
from quality.solvers import Artist, Line, Network
from torch import Tensor

import pndm_fast as pf
from pndm_fast.plan.warn import Notice

BUDGETS = (20, 50)
OWN = "own"  # each on its own grid
# by how much they are asked for; the first two add none, to compare with
LINES = {
    "auto": Line("auto"),
    "ddim": Line("ddim"),
    "euler-ancestral": Line("euler-ancestral"),
    "dpmpp-2m-sde": Line("dpmpp-2m-sde"),
    "er-sde": Line("er-sde"),
    "sa-solver": Line("sa-solver"),
    "dpmpp-sde": Line("dpmpp-sde"),
    "dpmpp-3m-sde": Line("dpmpp-3m-sde"),
    "res-multistep-ancestral": Line("res-multistep-ancestral"),
    "seeds-2": Line("seeds-2"),
    "ddpm": Line("ddpm"),
}


def plan_of(network: Network, line: Line, budget: int) -> pf.Plan:
    """The plan with the most calls within the budget."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        for nfe in (budget, budget - 1):
            try:
                how = {"nfe": nfe, "prediction": network.prediction, **line.options}
                return pf.make_plan(line.solver, network.schedule, **how)
            except ValueError as error:
                if not str(error).startswith("nfe must") or nfe < budget:
                    raise
    raise AssertionError(line)


_artist: Artist
_judge: Judge
_real: Tensor


def _open(network: str, samples: int, judge: dict[str, Tensor], real: Tensor) -> None:
    global _artist, _judge, _real
    _artist, _judge, _real = Artist(network, samples, 0), Judge(), real
    _judge.load_state_dict(judge)
    _judge.eval()


def _measure(name: str, budget: int, samples: int, until: float) -> dict[str, Any] | None:
    if time.time() > until:
        return None
    plan = plan_of(_artist.about, LINES[name], budget)
    drawn = _artist.run(plan, samples).nan_to_num().clamp(-1, 1)
    with torch.no_grad():
        features, logits = _judge(drawn)
    return {
        "calls": plan.nfe,
        "recognized": round(float((logits.argmax(1) == _artist.labels[:samples]).float().mean()), 4),
        "frechet": round(frechet(features, _real), 3),
    }


def run(store: Any, network: str, data: Path, samples: int, minutes: float) -> None:
    """What is not in the store yet; nothing is begun after so many minutes."""
    done = {key for key, one in store.found["noisy"].items() if one["samples"] == samples}
    todo = [(name, budget) for budget in BUDGETS for name in LINES if (name, OWN, budget) not in done]
    calls = samples * sum(budget for _, budget in todo)
    print(f"noisy: at most {calls} calls of one image, nothing begun after {minutes:g} minutes", file=sys.stderr)
    began, until = time.monotonic(), time.time() + 60 * minutes
    judge, real, digits = train_judge(data)
    store.tree["noisy_floor"] = {"samples": samples, **floor(real, digits, samples)}
    context, workers = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(workers, context, _open, (network, samples, judge, real)) as pool:
        jobs = {pool.submit(_measure, *one, samples, until): one for one in todo}
        try:
            for job in as_completed(jobs):
                name, budget = jobs[job]
                values = job.result()
                if values is not None:
                    store.add("noisy", (name, OWN, budget), {**values, "samples": samples, "note": ""})
                    print(f"{time.monotonic() - began:6.0f} s  {budget} calls, {name}", file=sys.stderr)
        finally:
            pool.shutdown(cancel_futures=True)
            store.write()
    left = [f"{name} at {budget}" for name, budget in todo if (name, OWN, budget) not in store.found["noisy"]]
    if left:
        print(f"not begun in {minutes:g} minutes: {', '.join(left)}; run it again to go on", file=sys.stderr)
