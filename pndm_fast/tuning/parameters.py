"""The generalised solver: a table's numbers as functions of parameters that a gradient can move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pndm_fast.plan.agree import NEAR
from pndm_fast.plan.coefficients import level, to_store
from pndm_fast.plan.levels import Level
from pndm_fast.plan.schedule import Schedule
from pndm_fast.tuning.table import Table

# of the learning rate, for each kind of parameter; 4 for times as in trials on the packaged network
PACE = {"theta": 4.0, "told": 4.0, "c": 1.0, "a": 1.0, "scale": 1.0}
TIMES = ("theta", "told")


class Solver(NamedTuple):
    """What does not change while parameters do."""

    schedule: Schedule
    prediction: str
    first_time: float
    nfe: int


class Coefficients(NamedTuple):
    """What a rollout needs, float64 on the CPU: `Table`'s, and how the network is called and read.

    Attributes:
        store: [N, 2], D = store[n] . (y, out).
    """

    times: Tensor
    told: Tensor
    in_scale: Tensor
    store: Tensor
    p0: Tensor
    a: Tensor
    b: Tensor

    def table(self) -> Table:
        """The same numbers without gradients."""
        times, told, _, _, p0, a, b = (part.detach().numpy().copy() for part in self)
        return Table(times, told, float(p0), a, b)


def sizes(nfe: int) -> dict[str, int]:
    """How many parameters of each name there are, in the order in which they lie in one vector."""
    return {"theta": nfe - 1, "told": nfe, "c": nfe * nfe, "a": nfe * nfe, "scale": 1}


def named(vector: Tensor, nfe: int) -> dict[str, Tensor]:
    """The parts of the vector by name."""
    counts = sizes(nfe)
    return dict(zip(counts, torch.split(vector, list(counts.values())), strict=True))


def paces(nfe: int, moving: Sequence[str]) -> Tensor:
    """For each parameter how fast it learns; 0 for those whose names are not among `moving`."""
    return torch.cat(
        [torch.full((n,), PACE[k] if k in moving else 0.0, dtype=torch.float64) for k, n in sizes(nfe).items()]
    )


def start_of(table: Table, solver: Solver) -> Tensor:
    """The vector at which the coefficients are those of a table whose times decrease.

    The additive corrections start at what the table has more than DPM-Solver++(2M) on its times.
    """
    schedule, n = solver.schedule, solver.nfe
    left = (table.times - schedule.first) / (table.times[0] - schedule.first)
    ratio = left[1:] / left[:-1]
    vector = torch.zeros(sum(sizes(n).values()), dtype=torch.float64)
    parts = named(vector, n)
    parts["theta"].copy_(torch.as_tensor(np.log(ratio) - np.log1p(-ratio)))
    away = (_of_network(torch.as_tensor(table.told), solver) - torch.as_tensor(table.times)) / _room(
        torch.as_tensor(table.times), schedule
    )
    parts["told"].copy_(away.clamp(-1, 1))
    alpha, sigma = _with_end(*_levels(torch.as_tensor(table.times), schedule), schedule)
    keep, a, b = sigma[1:] / sigma[:-1], torch.as_tensor(table.a), torch.as_tensor(table.b)
    parts["c"].view(n, n).copy_(b[1:] - keep[:, None] * b[:-1] - _two_m(alpha, sigma, n))
    parts["a"].view(n, n)[:, 0] = a[1:] - keep * a[:-1]  # 0 where the plan is consistent: y_0 is x
    parts["scale"].fill_(table.p0 / _p0(solver) - 1)
    return vector


def coefficients(vector: Tensor, solver: Solver) -> Coefficients:
    """The table of the parameters. Generalised solvers, arXiv:2510.17699: additive corrections on DPM-Solver++.

    y_{n+1} = sum_i (sigma_s/sigma_t [i = n] + a_ni) y_i + sum_j (2M_nj + c_nj) D_j, the 2M of arXiv:2211.01095, eq. 9
    with r = h_last / h; times fall by factors sigmoid(theta), and the network is told up to 2 % of the span away from
    where the state stands. Old states y_i are eliminated here, so what a gradient sees is the table itself.
    """
    n, parts = solver.nfe, named(vector, solver.nfe)
    schedule = solver.schedule
    ratio = torch.cat([vector.new_ones(1), torch.sigmoid(parts["theta"])])
    times = schedule.first + (solver.first_time - schedule.first) * torch.cumprod(ratio, 0)
    alpha, sigma = _levels(times, schedule)
    alphas, sigmas = _with_end(alpha, sigma, schedule)
    two_m, keep = _two_m(alphas, sigmas, n), sigmas[1:] / sigmas[:-1]
    lower = torch.ones(n, n, dtype=torch.float64).tril()
    states = torch.diag(keep) + parts["a"].view(n, n) * lower
    outputs = two_m + parts["c"].view(n, n) * lower
    rows = [torch.cat([vector.new_ones(1), vector.new_zeros(n)])]
    for k in range(n):
        own = torch.cat([vector.new_zeros(1), outputs[k]])
        rows.append(states[k, : k + 1] @ torch.stack(rows) + own)
    both = torch.stack(rows)
    told, in_scale, store = _network(times, parts["told"], alpha, sigma, solver)
    p0 = _p0(solver) * (1 + parts["scale"][0])
    return Coefficients(times, told, in_scale, store, p0, both[:, 0], both[:, 1:])


def coefficients_of(table: Table, solver: Solver) -> Coefficients:
    """A table's own numbers, without parameters."""
    times, told = torch.as_tensor(table.times), torch.as_tensor(table.told)
    alpha, sigma = _levels(times, solver.schedule)
    _, in_scale, store = _network(times, torch.zeros_like(times), alpha, sigma, solver)
    p0 = torch.tensor(table.p0, dtype=torch.float64)
    return Coefficients(times, told, in_scale, store, p0, torch.as_tensor(table.a), torch.as_tensor(table.b))


def projected(vector: Tensor, solver: Solver) -> None:
    """Bring told times back to where the network may be told them."""
    named(vector, solver.nfe)["told"].clamp_(-1.0, 1.0)


def _p0(solver: Solver) -> float:
    return 1.0 if solver.schedule.scale == "vp" else level(solver.schedule, solver.first_time).sigma


def _with_end(alpha: Tensor, sigma: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Levels of the calls and of the end."""
    end = level(schedule, schedule.first)
    return torch.cat([alpha, alpha.new_tensor([end.alpha])]), torch.cat([sigma, sigma.new_tensor([end.sigma])])


def _two_m(alpha: Tensor, sigma: Tensor, n: int) -> Tensor:
    """[N, N]: what DPM-Solver++(2M) takes of each estimate in each step; the first step and the last are of order 1."""
    gain = alpha[1:] - alpha[:-1] * sigma[1:] / sigma[:-1]
    total = torch.diag(gain)
    blind = bool(alpha[0] == 0)  # lam is infinite there, and the second step's slope nothing
    for k in range(1 + blind, n - 1):
        lam = torch.log(alpha[k - 1 : k + 2] / sigma[k - 1 : k + 2])
        slope = gain[k] * (lam[2] - lam[1]) / (2 * (lam[1] - lam[0]))
        places = torch.zeros(n, n, dtype=torch.float64)
        places[k, k], places[k, k - 1] = 1.0, -1.0
        total = total + slope * places
    return total


class _Levels(torch.autograd.Function):
    """alpha and sigma at times, the schedule's own numbers, and their slopes."""

    @staticmethod
    def forward(ctx: Any, times: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        values = times.detach().numpy()
        alpha, sigma = (np.array(f(values), dtype=np.float64) for f in (schedule.alpha, schedule.sigma))
        ctx.slopes = _slopes(schedule, values, alpha, sigma)
        return torch.as_tensor(alpha), torch.as_tensor(sigma)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        of_alpha, of_sigma = map(torch.as_tensor, ctx.slopes)
        return grads[0] * of_alpha + grads[1] * of_sigma, None


def _slopes(schedule: Schedule, times: Any, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    if schedule.scale == "sigma":
        return np.zeros_like(times), np.ones_like(times)
    if schedule.scale == "flow":
        one = np.full_like(times, 1 / schedule.last)
        return -one, one
    # without data, alpha = 0, a state is at the first time, which stays
    slope = np.array([schedule.log_alpha_slope(float(t)) if a > 0 else 0.0 for t, a in zip(times, alpha, strict=True)])
    return alpha * slope, -alpha * alpha * slope / sigma  # alpha^2 + sigma^2 = 1


def _levels(times: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    alpha, sigma = _Levels.apply(times, schedule)
    return alpha, sigma


def _room(times: Tensor, schedule: Schedule) -> Tensor:
    """How far from a state's own time the network may be told another: what `check_told` takes for the same."""
    if schedule.scale == "sigma":
        return NEAR * times
    return torch.full_like(times, NEAR * (schedule.last - schedule.first))


def _network(
    times: Tensor, away: Tensor, alpha: Tensor, sigma: Tensor, solver: Solver
) -> tuple[Tensor, Tensor, Tensor]:
    """What the network is told, by what its input is scaled, and the map to D."""
    schedule = solver.schedule
    told = times + _room(times, schedule) * away
    if schedule.scale != "sigma":
        told = told.clamp(min(schedule.floor, float(times.detach().min())), schedule.last)
    if solver.prediction == "edm":
        data = schedule.sigma_data
        norm = sigma * sigma + data * data
        store = torch.stack([data * data / norm, sigma * data / norm.sqrt()], 1)
        return told.log() / 4, 1 / norm.sqrt(), store
    levels: Any = zip(alpha, sigma, strict=True)  # of tensors: the same formulas hold
    maps = [to_store("x0", solver.prediction, Level(a, s)) for a, s in levels]
    store = torch.stack([torch.stack([_tensor(one.p), _tensor(one.q)]) for one in maps])
    return told, torch.ones_like(times), store


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def _of_network(told: Tensor, solver: Solver) -> Tensor:
    """The time on the schedule that a told one stands for."""
    return torch.exp(4 * told) if solver.prediction == "edm" else told
