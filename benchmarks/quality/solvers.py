"""What `survey.py` compares: solvers with the options that matter, A-FloPS among them, and grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.plan.grids import make_grid
from pndm_fast.row.noise import normals, seed_tensor

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
# name: spacing and the time of the last call, where the spacing has one
GRIDS: dict[str, tuple[str, float | None]] = {
    "leading": ("leading", None),
    "trailing": ("trailing", None),
    "linspace": ("linspace", None),
    "quadratic": ("quadratic", None),
    "beta": ("beta", None),
    "logsnr": ("logsnr", None),
    "logsnr to 10": ("logsnr", 10.0),
    "karras": ("karras", None),
    "karras to 10": ("karras", 10.0),
}


@dataclass(frozen=True)
class Line:
    """A row of the table: a solver with options. `guard` is A-FloPS's, which is no solver of the package."""

    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    guard: float | None = None


LINES = {
    "ddim": Line("ddim"),  # also euler, dpm-solver-1, deis and lms of order 1: the same step
    "lambda-ddim": Line("lambda-ddim"),
    "s-pndm": Line("s-pndm"),
    "f-pndm": Line("f-pndm"),
    "fon": Line("fon"),
    "fon-rk4": Line("fon-rk4"),
    "plms": Line("plms"),
    "ipndm": Line("ipndm"),
    "ipndm-v": Line("ipndm-v"),
    "lms": Line("lms"),
    "deis 2": Line("deis", {"order": 2}),
    "deis 3": Line("deis"),
    "deis 3 log-rho": Line("deis", {"variable": "log_rho"}),
    "dpm-solver-2": Line("dpm-solver-2"),
    "dpm-solver-2 multistep": Line("dpm-solver-2", {"multistep": True}),
    "dpm-solver-3": Line("dpm-solver-3"),
    "dpm-solver-3 multistep": Line("dpm-solver-3", {"multistep": True}),
    "dpmpp-2s": Line("dpmpp-2s"),
    "dpmpp-2m": Line("dpmpp-2m"),
    "dpmpp-3m": Line("dpmpp-3m"),
    "dpmpp-3m exact": Line("dpmpp-3m", {"exact": True}),
    "heun": Line("heun"),
    "unipc 1": Line("unipc", {"order": 1}),
    "unipc 2": Line("unipc"),
    "unipc 3": Line("unipc", {"order": 3}),
    "a-flops": Line("a-flops", guard=1.0),
    "a-flops, c = 0": Line("a-flops", guard=0.0),
}
# schedules have a kink at every training time: coarser references stop agreeing at 0.0015
REFERENCES = {
    "dpmpp-3m exact": {"solver": "dpmpp-3m", "steps": 500, "spacing": "logsnr", "exact": True},
    "unipc 3": {"solver": "unipc", "steps": 1000, "spacing": "trailing", "order": 3},
}


def make_plan(line: Line, grid: str, nfe: int) -> pf.Plan | None:
    """The plan of exactly `nfe` calls; None where the solver or the grid has none."""
    spacing, t_min = GRIDS[grid]
    try:
        return pf.make_plan(line.solver, nfe=nfe, spacing=spacing, t_min=t_min, **line.options)
    except ValueError as error:
        if not str(error).startswith(("nfe must", "delta must")):
            raise
        return None


class Artist:
    """The packaged network, as many images of each digit and their noise; draws by name."""

    def __init__(self, images: int, first_seed: int) -> None:
        torch.set_num_threads(1)  # one process for each core: two threads stall each other where a core is busy
        self.network, self.schedule = demo.mnist_unet(), pf.Schedule.linear()
        size = self.network.config.sample_size
        self.labels = torch.arange(images) % demo.null_class
        seeds = seed_tensor(list(range(first_seed, first_seed + images)))
        self.noise = normals(seeds, 0, size * size).view(images, 1, size, size)

    def reference(self, name: str) -> Tensor:
        """A fine solution."""
        return self._draw(pf.make_plan(**REFERENCES[name]))

    def draw(self, line: Line, grid: str, nfe: int) -> Tensor | None:
        """The samples; None where nothing takes exactly that many calls."""
        if line.guard is None:
            plan = make_plan(line, grid, nfe)
            return None if plan is None else self._draw(plan)
        spacing, t_min = GRIDS[grid]
        times = make_grid(self.schedule, nfe, spacing, t_min=t_min)
        with torch.inference_mode():
            return aflops(self._eps, self.schedule, times, self.noise, guard=line.guard)

    def _draw(self, plan: pf.Plan) -> Tensor:
        cond = {"class_labels": self.labels}
        sampler = pf.Sampler(self.network, plan, shape=self.noise.shape)
        return sampler(start=pf.Noise(self.noise), cond=cond, on_nan="ignore")

    def _eps(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.network(x, t, self.labels)
        return out if isinstance(out, Tensor) else out.sample


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


def aflops(
    network: Callable[[Tensor, Tensor], Tensor],
    schedule: pf.Schedule,
    times: Sequence[float],
    noise: Tensor,
    *,
    guard: float = 1.0,
) -> Tensor:
    """A-FloPS, arXiv:2509.00036. No plan: its coefficient depends on the samples.

    Second order in flow coordinates, the linear part of the velocity taken exactly.

    z = x / (alpha + sigma) and T = alpha / (alpha + sigma) make the path a flow, dz/dT = v = x_0 - eps. Each sample's
    v = c z + r, c = <v - v', z - z'> / (|z - z'|^2 + 1e-8) with ' the step before, r linear in T:
    z <- exp(c d) z + d phi_1(c d) r + d^2 phi_2(c d) (r - r') / (T - T'), d the step. Euler (which is DDIM) at first.

    Args:
        network: eps of x at times [B].
        guard: samples with |c d| above it take c = 0, which is Adams-Bashforth of order 2; 0 is that everywhere.
    """
    x, past = noise.double(), None
    for t, s in pairwise(times):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        eps = network(x.float(), torch.full((len(x),), t)).double()
        z, at = x / (alpha + sigma), alpha / (alpha + sigma)
        v = (x - sigma * eps) / alpha - eps
        after = float(schedule.alpha(s)), float(schedule.sigma(s))
        d = after[0] / sum(after) - at
        if past is None:
            z_after = z + d * v
        else:
            z_after = _second(z, v, at, past, d, guard)
        past, x = (z, v, at), sum(after) * z_after
    return x.float()


def _second(z: Tensor, v: Tensor, at: float, past: tuple[Tensor, Tensor, float], d: float, guard: float) -> Tensor:
    z_past, v_past, before = past
    moved = (z - z_past).flatten(1)
    c = ((v - v_past).flatten(1) * moved).sum(1) / (moved.square().sum(1) + 1e-8)
    c = torch.where((c * d).abs() <= guard, c, 0.0).view(-1, *[1] * (z.dim() - 1))
    r, r_past = v - c * z, v_past - c * z_past
    u = c * d
    small = u.abs() < 1e-4
    safe = torch.where(small, 1.0, u)
    phi_1 = torch.where(small, 1 + u / 2, torch.expm1(safe) / safe)
    phi_2 = torch.where(small, 0.5 + u / 6, (torch.expm1(safe) - safe) / safe**2)
    return torch.exp(u) * z + d * phi_1 * r + d * d * phi_2 * (r - r_past) / (at - before)
