"""Phase-space integrators side by side on the packaged networks, with variance-preserving ones on the same data.

`python benchmarks phase --data DIR` (idx files of MNIST) writes results/phase/mnist.json and .md, and resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from quality.judge import Judge, train_judge
from quality.solvers import distance
from torch import Tensor

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.phase_space import position
from pndm_fast.plan.atomic import atomic_path
from pndm_fast.solvers import SOLVER_INFO

OUT = Path(__file__).parents[1] / "results" / "phase"
BUDGETS = (10, 25, 50, 100)
ONES = ((1.0, 1.0), (1.0, 1.0))


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        space: psld, or vp for the other network.
        spacing: of the grid, None for the solver's own.
    """

    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    spacing: str | None = "quadratic"
    space: str = "psld"


LINES = {
    "conjugate R 1 (gDDIM)": Line("conjugate"),
    "conjugate R 2": Line("conjugate", {"order": 2}),
    "conjugate R 3": Line("conjugate", {"order": 3}),
    "conjugate R 3, uniform": Line("conjugate", {"order": 3}, "uniform"),
    "conjugate R pndm 4": Line("conjugate", {"order": 4, "weights": "pndm"}),
    "conjugate L 1": Line("conjugate", {"frame": "L"}),
    "conjugate L 1, B = ones": Line("conjugate", {"frame": "L", "B": ONES}),
    "conjugate L 2": Line("conjugate", {"frame": "L", "order": 2}),
    "conjugate L pndm 4": Line("conjugate", {"frame": "L", "order": 4, "weights": "pndm"}),
    "euler": Line("euler"),
    "rse": Line("rse"),
    "rvv": Line("rvv"),
    "rvv, uniform": Line("rvv", {}, "uniform"),
    "nvv": Line("nvv"),
    "cvv": Line("cvv"),
    "em": Line("em"),
    "sscs": Line("sscs"),
    "sscs, uniform": Line("sscs", {}, "uniform"),
    "roba": Line("roba"),
    "noba": Line("noba"),
    "obab": Line("obab"),
    "coba": Line("coba"),
    "vp f-pndm": Line("f-pndm", {}, None, "vp"),
    "vp ddim": Line("ddim", {}, "trailing", "vp"),
    "vp auto": Line("auto", {}, None, "vp"),
    "vp ddpm": Line("ddpm", {}, None, "vp"),
}
REFERENCES = {
    "psld": Line("conjugate", {"order": 3}),
    "vp": Line("dpmpp-3m", {"exact": True}, "logsnr", "vp"),
}
FINE = 200
DRAWS = 200


def plan_of(line: Line, budget: int) -> pf.Plan | None:
    """The plan with the most calls within the budget; None where that is too few for the solver."""
    schedule = demo.psld if line.space == "psld" else pf.Schedule.linear()
    for nfe in (budget, budget - 1, budget - 2):
        try:
            return pf.make_plan(line.solver, schedule, nfe=nfe, spacing=line.spacing, **line.options)
        except ValueError as error:
            if not str(error).startswith("nfe must"):
                raise
    return None


class Artist:
    """Both networks, the digits in turn, and the noise of each space."""

    def __init__(self, images: int, judge: dict[str, Tensor], real: Tensor) -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        self.networks = {"psld": demo.mnist_psld_unet(), "vp": demo.mnist_unet()}
        self.labels = torch.arange(images) % demo.null_class
        self.judge, self.real = Judge(), real
        self.judge.load_state_dict(judge)
        self.judge.eval()

    def draw(self, line: Line, plan: pf.Plan) -> Tensor:
        """[images, 1, 28, 28], the data's part of the samples."""
        network, images = self.networks[line.space], len(self.labels)
        shape = images, network.config.in_channels, network.config.sample_size, network.config.sample_size
        samples = pf.Sampler(network, plan, shape=shape)(cond={"class_labels": self.labels}, on_nan="ignore")
        return position(samples) if plan.components > 1 else samples

    def score(self, samples: Tensor) -> dict[str, float]:
        """What the judge says of the samples, and their two moments."""
        samples = samples.nan_to_num().clamp(-1, 1)
        with torch.no_grad():
            features, logits = self.judge(samples)
        return {
            "recognized": round(float((logits.argmax(1) == self.labels).float().mean()), 4),
            "frechet": round(frechet(features, self.real), 3),
            "mean": round(float(samples.mean()), 4),
            "deviation": round(float(samples.std()), 4),
        }


def frechet(features: Tensor, real: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of Gaussians fitted to both. Heusel et al. 2017, arXiv:1706.08500."""
    first, second = features.double().numpy(), real.double().numpy()
    a, b = np.cov(first.T), np.cov(second.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)


_artist: Artist
_fine: dict[str, Tensor]


def _open(*arguments: Any) -> None:
    global _artist, _fine
    _artist, _fine = Artist(*arguments), {}


def _reference(space: str) -> np.ndarray:
    line = REFERENCES[space]
    plan = plan_of(line, FINE)
    assert plan is not None
    return _artist.draw(line, plan).numpy()


def _measure(name: str, budget: int, fine: np.ndarray) -> dict[str, Any] | None:
    line = LINES[name]
    plan = plan_of(line, budget)
    if plan is None:
        return None
    samples = _artist.draw(line, plan)
    values: dict[str, Any] = {"line": name, "budget": budget, "nfe": plan.nfe, **_artist.score(samples)}
    if not SOLVER_INFO[plan.solver].stochastic:
        distances = distance(samples, torch.from_numpy(fine))
        finite = bool(distances.isfinite().all())
        values["rms"] = round(float(distances.square().mean().sqrt()), 4) if finite else None
        values["median"] = round(float(distances.median()), 4) if finite else None
    return values


def measure(tree: dict[str, Any], path: Path, judge: dict[str, Tensor], real: Tensor, images: int) -> None:
    """Everything that is not in the tree yet, one single-threaded process for each core; written as it comes."""
    context = multiprocessing.get_context("spawn")
    done = {(one["line"], one["budget"]) for one in tree["results"]}
    todo = [(name, budget) for budget in BUDGETS for name in LINES if (name, budget) not in done]
    with ProcessPoolExecutor(torch.get_num_threads(), context, _open, (images, judge, real)) as pool:
        fine = dict(zip(REFERENCES, pool.map(_reference, REFERENCES), strict=True))
        jobs = [pool.submit(_measure, name, budget, fine[LINES[name].space]) for name, budget in todo]
        for count, job in enumerate(as_completed(jobs), 1):
            one = job.result()
            if one is not None:
                tree["results"].append(one)
                write(tree, path)
            print(f"\r{count} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def floor(real: Tensor, digits: Tensor, images: int) -> dict[str, float]:
    """The Frechet distance from the data of as many of its own images, digits in turn: mean and deviation of draws."""
    generator = torch.Generator().manual_seed(0)
    each = torch.bincount(torch.arange(images) % demo.null_class).tolist()

    def draw() -> float:
        order = torch.randperm(len(real), generator=generator)
        chosen = [order[digits[order] == digit][:count] for digit, count in enumerate(each)]
        return frechet(real[torch.cat(chosen)], real)

    draws = [draw() for _ in range(DRAWS)]
    return {"mean": round(float(np.mean(draws)), 2), "deviation": round(float(np.std(draws)), 2)}


def write(tree: dict[str, Any], path: Path) -> None:
    """The results, whole or not at all, in the order of the lines."""
    names = list(LINES)
    tree["results"].sort(key=lambda one: (one["budget"], names.index(one["line"])))
    rows = ",\n  ".join(json.dumps(one) for one in tree["results"])
    head = json.dumps({name: tree[name] for name in ("setting", "machine", "floor")}, indent=1).removesuffix("\n}")
    with atomic_path(path) as temporary:
        temporary.write_text(f'{head},\n "results": [\n  {rows}\n ]\n}}\n')


def text(tree: dict[str, Any]) -> str:
    """The results in Markdown."""
    found = {(one["line"], one["budget"]): one for one in tree["results"]}
    setting, floor = tree["setting"], tree["floor"]
    parts = [
        "# Phase space: quality for a number of network calls",
        f"`python benchmarks phase --data DIR` makes this page: {setting['images']} digits in turn, no guidance, "
        f"float32, on the packaged networks of PSLD (`demo:psld`) and of the variance-preserving diffusion "
        f"(`demo:mnist`, lines vp). Written on {tree['machine']['cpu']}, torch {tree['machine']['torch']}.",
        "- RMS: distance of an image to the fine solution of the same network from the same noise (pixels are in "
        f"[-1, 1]); over the images. Fine: {FINE} calls of conjugate R 3, or of dpmpp-3m on vp.\n"
        "- Recognized: the part of the samples that a small classifier, trained on the same data, takes for the digit "
        "that was asked for.\n"
        f"- Frechet: distance of that classifier's 16 features from the test set's. {setting['images']} digits in turn "
        f"of the test set itself are {floor['mean']:g} away, give or take {floor['deviation']:g}.\n"
        "- Solvers that take several calls a step have the most calls within the budget.",
    ]
    for title, key, form in (
        ("RMS", "rms", "{:.3f}"),
        ("Frechet", "frechet", "{:.2f}"),
        ("Recognized", "recognized", "{:.0%}"),
    ):
        lines = [f"| | {' | '.join(map(str, BUDGETS))} |", "| --- |" + " --- |" * len(BUDGETS)]
        for name in LINES:
            ones = [found.get((name, budget)) for budget in BUDGETS]
            if any(one is not None and key in one for one in ones):
                lines.append(f"| {name} | {' | '.join(_cell(one, key, form) for one in ones)} |")
        parts.append(f"## {title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(one: dict[str, Any] | None, key: str, form: str) -> str:
    if one is None:
        return ""
    value = one.get(key)
    return "diverged" if value is None or value > 1e3 else form.format(value)


def demo_weights() -> list[str]:
    """The first digits of the SHA-256 of both networks' files: results of others are not gone on with."""
    folder = Path(demo.__file__).parent
    files = folder / "mnist.safetensors", folder / "mnist_psld.safetensors"
    return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of MNIST's idx files; not needed with --report")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="write the page anew from the .json alone")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "mnist.json"
    setting = {"images": arguments.images, "fine": FINE, "weights": demo_weights()}
    tree = json.loads(path.read_text()) if path.is_file() else {}
    if arguments.report:
        if not tree:
            parser.error(f"--out must hold mnist.json, got {arguments.out}")
    else:
        if arguments.data is None:
            parser.error("--data must be given")
        if tree.get("setting") != setting:
            tree = {"setting": setting, "floor": {}, "results": []}
        tree["machine"] = describe()
        began = time.monotonic()
        judge, real, digits = train_judge(arguments.data)
        tree["floor"] = floor(real, digits, arguments.images)
        print(f"judge trained in {time.monotonic() - began:.0f} s", file=sys.stderr)
        try:
            measure(tree, path, judge, real, arguments.images)
        except KeyboardInterrupt:
            print("stopped; what was measured is kept", file=sys.stderr)
            return 130
    with atomic_path(arguments.out / "mnist.md") as temporary:
        temporary.write_text(text(tree))
    return 0


if __name__ == "__main__":
    sys.exit(main())
