"""What `survey.py` compares: solvers with the options that matter, A-FloPS among them, on the grids of a network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from quality.aflops import aflops
from torch import Tensor

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.plan.grids import make_grid
from pndm_fast.plan.named_grids import OTHER_SPACINGS, named_grid
from pndm_fast.plan.warn import Notice
from pndm_fast.row.noise import normals, seed_tensor
from pndm_fast.solvers import SOLVER_INFO
from pndm_fast.tuning.table import Table, table_of

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
Key = tuple[str, str, int]  # line, grid, network calls
# name: spacing and the time of the last call, where it is not the grid's own
GRIDS: dict[str, tuple[str, float | None]] = {
    **{name: (name, None) for name in ("leading", "trailing", "linspace", "quadratic", "beta", "logsnr")},
    "logsnr to 10": ("logsnr", 10.0),
    "karras": ("karras", None),
    "karras to 10": ("karras", 10.0),
    **{name: (name, None) for name in ("dpm-fast", "kl-optimal", "laplace", "linear-quadratic", "bong-tangent")},
    **{name: (name, None) for name in ("sgm-uniform", "normal", "simple", "ddim-uniform", "beta57")},
    **{name: (name, None) for name in ("ays-sd1", "gits-sd", "oss-flux")},
}


@dataclass(frozen=True)
class Line:
    """A row of the table: a solver with options. `guard` is A-FloPS's, which is no solver of the package."""

    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    guard: float | None = None


LINES = {
    "ddim": Line("ddim"),
    "euler": Line("euler"),
    "dpm-solver-1": Line("dpm-solver-1"),
    "lambda-ddim": Line("lambda-ddim"),
    "s-pndm": Line("s-pndm"),
    "f-pndm": Line("f-pndm"),
    "fon": Line("fon"),
    "fon-rk4": Line("fon-rk4"),
    "plms": Line("plms"),
    "ipndm": Line("ipndm"),
    "ipndm 2": Line("ipndm", {"order": 2}),
    "ipndm-v": Line("ipndm-v"),
    "gradient-estimation": Line("gradient-estimation"),
    "lms": Line("lms"),
    "lms 3": Line("lms", {"order": 3}),
    "deis 2": Line("deis", {"order": 2}),
    "deis 3": Line("deis"),
    "conjugate 3": Line("conjugate", {"order": 3}),
    "deis 3 rho": Line("deis", {"variable": "rho"}),
    "deis 3 log-rho": Line("deis", {"variable": "log_rho"}),
    "dpm-2": Line("dpm-2"),
    "dpm-fast": Line("dpm-fast"),
    "dpm-solver-2": Line("dpm-solver-2"),
    "dpm-solver-2 multistep": Line("dpm-solver-2", {"multistep": True}),
    "dpm-solver-3": Line("dpm-solver-3"),
    "dpm-solver-3 multistep": Line("dpm-solver-3", {"multistep": True}),
    "dpmpp-2s": Line("dpmpp-2s"),
    "dpmpp-3s": Line("dpmpp-3s"),
    "dpmpp-2m": Line("dpmpp-2m"),
    "dpmpp-3m": Line("dpmpp-3m"),
    "dpmpp-3m exact": Line("dpmpp-3m", {"exact": True}),
    "exp-heun-2-x0": Line("exp-heun-2-x0"),
    "res-2m": Line("res-2m"),
    "res-3m": Line("res-3m"),
    "res-2s": Line("res-2s"),
    "res-3s": Line("res-3s"),
    "seeds-2, eta = 0": Line("seeds-2", {"eta": 0.0}),
    "seeds-3, eta = 0": Line("seeds-3", {"eta": 0.0}),
    "heun": Line("heun"),
    "heunpp2": Line("heunpp2"),
    "rk": Line("rk"),
    "sa-solver, tau = 0": Line("sa-solver", {"tau": 0.0}),
    "sa-solver-pece, tau = 0": Line("sa-solver-pece", {"tau": 0.0}),
    "unipc 1": Line("unipc", {"order": 1}),
    "unipc 2": Line("unipc"),
    "unipc 3": Line("unipc", {"order": 3}),
    "unipc 3 bh1": Line("unipc", {"order": 3, "variant": "bh1"}),
    "a-flops": Line("a-flops", guard=1.0),
    "a-flops, c = 0": Line("a-flops", guard=0.0),
}
LEFT_OUT = {  # deterministic solvers of the plane: why
    "ddim-inverse": "it runs from data to noise",
    **dict.fromkeys(
        ("euler-cfg-pp", "dpmpp-2m-cfg-pp", "res-multistep-cfg-pp", "gradient-estimation-cfg-pp"),
        "its calls are guided, and nothing is here",
    ),
}
PROBES = ("deis 3", "dpmpp-2m", "unipc 2")  # lines that are tried on every grid of the network


@dataclass(frozen=True)
class Network:
    """A packaged network and what is tried on it.

    Attributes:
        spacings: of `GRIDS`, for every line beside its own grid; more: for `PROBES` alone.
        without: lines that its schedule has none of, and why.
        references: fine plans; the first is what all are compared with, the second says how far that can be trusted.
    """

    load: Callable[[], demo.UNet]
    schedule: pf.Schedule
    prediction: str
    spacings: tuple[str, ...]
    more: tuple[str, ...]
    without: dict[str, str]
    references: dict[str, dict[str, Any]]


_NO_LIMIT = "it has no limit at alpha = 0"
NETWORKS = {
    "mnist": Network(
        demo.mnist_unet,
        pf.Schedule.linear(),
        "eps",
        ("leading", "trailing", "beta", "beta57", "logsnr to 10", "karras to 10", "ays-sd1"),
        ("linspace", "quadratic", "logsnr", "karras", "kl-optimal", "laplace", "linear-quadratic", "simple",
         "ddim-uniform", "gits-sd"),
        {},
        # schedules have a kink at every training time: coarser references stop agreeing at 0.0015
        {
            "dpmpp-3m exact": {"solver": "dpmpp-3m", "steps": 500, "spacing": "logsnr", "exact": True},
            "unipc 3": {"solver": "unipc", "steps": 1000, "spacing": "trailing", "order": 3},
        },
    ),
    "mnist_flow": Network(
        demo.mnist_flow_unet,
        demo.flow,
        "flow",
        ("trailing", "beta", "normal", "bong-tangent", "beta57"),
        ("leading", "quadratic", "logsnr", "karras", "kl-optimal", "linear-quadratic", "sgm-uniform", "simple",
         "oss-flux"),
        {
            "fon": "its stages keep the state of the start", "conjugate 3": _NO_LIMIT, "lambda-ddim": _NO_LIMIT,
            "a-flops": "written here for networks of eps", "a-flops, c = 0": "written here for networks of eps",
        },
        {
            "deis 3": {"solver": "deis", "steps": 200, "spacing": "beta"},
            "unipc 3": {"solver": "unipc", "steps": 400, "spacing": "trailing", "order": 3},
        },
    ),
}  # fmt: skip


def own_grid(network: Network, line: Line) -> str:
    """The schedule's own grid where it has one, else the solver's."""
    if network.schedule.spacing is not None:
        return network.schedule.spacing
    return SOLVER_INFO[line.solver].spacing if line.guard is None else "trailing"


def grids_of(network: Network, name: str) -> list[str]:
    """On which a line is tried, in the order of `GRIDS`."""
    wanted = {own_grid(network, LINES[name]), *network.spacings, *(network.more if name in PROBES else ())}
    return [grid for grid in GRIDS if grid in wanted]


def make_plan(network: Network, line: Line, grid: str, nfe: int) -> pf.Plan | None:
    """The plan of exactly `nfe` calls; None where the solver or the grid has none."""
    spacing, t_min = GRIDS[grid]
    how = {"spacing": spacing, "t_min": t_min, "prediction": network.prediction, **line.options}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # of plans that diverge: they lose
            return pf.make_plan(line.solver, network.schedule, nfe=nfe, **how)
    except ValueError as error:
        if not str(error).startswith(("nfe must", "delta must", "steps must", "pivot must")):
            raise
        return None


def plans_of(network: Network, nfe: int) -> tuple[list[Key], dict[Key, Key]]:
    """What is measured with so many calls, and which others have the table of one of these to rounding."""
    distinct: list[Key] = []
    tables: list[tuple[Key, Table]] = []
    same: dict[Key, Key] = {}
    for name, grid in ((name, grid) for name in LINES if name not in network.without for grid in GRIDS):
        if grid not in grids_of(network, name):
            continue
        key = name, grid, nfe
        if LINES[name].guard is not None:
            distinct.append(key)
            continue
        plan = make_plan(network, LINES[name], grid, nfe)
        if plan is None:
            continue
        table = table_of(plan, network.schedule)
        twin = next((other for other, one in tables if equal(one, table)), None)
        if twin is None:
            distinct.append(key)
            tables.append((key, table))
        else:
            same[key] = twin
    return distinct, same


def equal(one: Table, other: Table) -> bool:
    """Whether two tables are the same numbers to 1e-9: the same samples to rounding, of every network."""
    if one.nfe != other.nfe or not math.isclose(float(one.told.sum()), float(other.told.sum()), rel_tol=1e-9):
        return False
    parts = ((one.told, other.told), (one.a, other.a), (one.b, other.b))
    return all(np.allclose(x, y, rtol=1e-9, atol=1e-9) for x, y in parts)


class Artist:
    """A packaged network, as many images of each digit and their noise; draws by name, a few images at a time."""

    AT_ONCE = 32  # images

    def __init__(self, network: str, images: int, first_seed: int) -> None:
        torch.set_num_threads(1)  # one process for each core: two threads stall each other where a core is busy
        warnings.simplefilter("ignore", Notice)
        self.about = NETWORKS[network]
        self.network = self.about.load()
        size = self.network.config.sample_size
        self.labels = torch.arange(images) % demo.null_class
        seeds = seed_tensor(list(range(first_seed, first_seed + images)))
        self.noise = normals(seeds, 0, size * size).view(images, 1, size, size)

    def reference(self, name: str, images: range) -> Tensor:
        """A fine solution of some images."""
        how = self.about.references[name]
        return self._draw(pf.make_plan(schedule=self.about.schedule, prediction=self.about.prediction, **how), images)

    def draw(self, key: Key, images: int) -> Tensor:
        """The samples of the first images."""
        line, grid, nfe = LINES[key[0]], *key[1:]
        if line.guard is None:
            plan = make_plan(self.about, line, grid, nfe)
            assert plan is not None, key
            return self.run(plan, images)
        spacing, t_min = GRIDS[grid]
        named = spacing in OTHER_SPACINGS
        schedule = self.about.schedule
        times = named_grid(spacing, schedule, nfe) if named else make_grid(schedule, nfe, spacing, t_min=t_min)
        with torch.inference_mode():
            return aflops(self._eps, self.about.schedule, times, self.noise[:images], guard=line.guard)

    def run(self, plan: pf.Plan, images: int) -> Tensor:
        """The samples of a plan from the first images' noise."""
        return torch.cat([self._draw(plan, part) for part in parts(images, self.AT_ONCE)])

    def _draw(self, plan: pf.Plan, images: range) -> Tensor:
        noise, cond = self.noise[images.start : images.stop], {"class_labels": self.labels[images.start : images.stop]}
        sampler = pf.Sampler(self.network, plan, shape=noise.shape)
        if any(plan.noisy):
            return sampler(seeds=list(images), cond=cond, on_nan="ignore")
        return sampler(start=pf.Noise(noise), cond=cond, on_nan="ignore")

    def _eps(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.network(x, t, self.labels[: len(x)])
        return out if isinstance(out, Tensor) else out.sample


def parts(images: int, at_once: int) -> list[range]:
    """As many images, some at a time."""
    return [range(first, min(first + at_once, images)) for first in range(0, images, at_once)]


def distance(samples: Tensor, reference: Tensor) -> Tensor:
    """RMS over the pixels of each image's difference."""
    return (samples.double() - reference.double()).flatten(1).square().mean(1).sqrt()


def interval(distances: Tensor, resamples: int = 2000) -> tuple[float, float]:
    """90 % of the RMS over the images, by resampling them."""
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(len(distances), (resamples, len(distances)), generator=generator)
    rms = distances.square()[picked].mean(1).sqrt()
    low, high = torch.quantile(rms, torch.tensor([0.05, 0.95], dtype=rms.dtype)).tolist()
    return low, high


def order_of(keys: Iterable[Key]) -> list[Key]:
    """By budget, line and grid, as the table has them."""
    lines, grids = list(LINES), list(GRIDS)
    return sorted(keys, key=lambda key: (BUDGETS.index(key[2]), lines.index(key[0]), grids.index(key[1])))
