"""What can be fitted without gradients: times, by dynamic programming, and the last row, by least squares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pndm_fast.plan.coefficients import Transfer, level, network_input, to_store
from pndm_fast.plan.levels import Level
from pndm_fast.tuning.parameters import Solver, coefficients, named, sizes
from pndm_fast.tuning.rollout import Network
from pndm_fast.tuning.table import Array, Table, with_last_row

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2)  # of the mean square of the basis


def optimal_times(
    network: Network, solver: Solver, grid: Array, path: Tensor, advance: Callable[[], None]
) -> list[float]:
    """N of the grid's times, from which first-order steps stay closest to a teacher's path.

    OSS, arXiv:2503.21774: z_k[i] is the state that reached time i in k steps; z_{k+1}[j] is of the step from the i > j
    (here: before j) that leads closest to the path's state at j. Steps are exact for a constant x_0. N times K network
    calls on the whole batch, for a grid of K times.

    Args:
        network: its third argument is the grid's index.
        grid: K + 1 times of the path, decreasing, the end last.
        path: [K + 1, B, *shape], the teacher's states there.
    """
    levels = [level(solver.schedule, float(t)) for t in grid]
    count = len(grid) - 1
    reached: dict[int, Tensor] = {0: path[0]}
    came: list[dict[int, int]] = []
    for k in range(solver.nfe):
        ahead = [i for i in reached if i < count]
        outputs = {i: _x0(network, solver, float(grid[i]), levels[i], reached[i], i) for i in ahead}
        advance()
        left = solver.nfe - k - 1  # steps to come, each of which needs a time of its own
        goals = [count] if left == 0 else range(k + 1, count - left + 1)
        chosen: dict[int, tuple[float, int, Tensor]] = {}
        for j in goals:
            for i in (i for i in ahead if i < j):
                state = _step(levels[i], levels[j], reached[i], outputs[i])
                error = float(((state - path[j]) ** 2).mean())
                if j not in chosen or error < chosen[j][0]:
                    chosen[j] = error, i, state
        reached = {j: state for j, (_, _, state) in chosen.items()}
        came.append({j: i for j, (_, i, _) in chosen.items()})
    at, back = count, []
    for step in reversed(came):
        at = step[at]
        back.append(at)
    return [float(grid[i]) for i in reversed(back)]


def _x0(network: Network, solver: Solver, t: float, at: Level, state: Tensor, i: int) -> Tensor:
    told, in_scale = network_input(solver.prediction, t, at, solver.schedule.sigma_data)
    p, q = map(float, to_store("x0", solver.prediction, at, solver.schedule.sigma_data)[:2])  # type: ignore[arg-type]
    out = network(in_scale * state, torch.tensor(told, dtype=torch.float64), i)
    return p * state + q * out


def _step(source: Level, target: Level, state: Tensor, x0: Tensor) -> Tensor:
    phi = Transfer(source, target, "x0")
    return phi.scale * state + phi.slot * x0


def on_times(times: list[float], solver: Solver) -> Table:
    """DPM-Solver++(2M) on these times, and on to sigma = 0."""
    schedule = solver.schedule
    own = solver._replace(first_time=times[0])
    vector = torch.zeros(sum(sizes(solver.nfe).values()), dtype=torch.float64)
    left = (np.array(times) - schedule.first) / (times[0] - schedule.first)
    ratio = left[1:] / left[:-1]
    named(vector, solver.nfe)["theta"].copy_(torch.as_tensor(np.log(ratio) - np.log1p(-ratio)))
    return coefficients(vector, own).table()


class LastRow:
    """Least squares for the last row: the teacher's ends on [x, D_0, ..., D_{N-1}], pulled towards the plan's own row.

    (G + ridge mean(diag G) I) w = A (end - own end), with A of all elements of all pairs and G = A A^T, in float64.
    """

    def __init__(self, nfe: int) -> None:
        self.gram = torch.zeros(1 + nfe, 1 + nfe, dtype=torch.float64)
        self.right = torch.zeros(1 + nfe, dtype=torch.float64)

    def add(self, basis: list[Tensor], own: Tensor, ends: Tensor) -> None:
        """Take a batch of pairs."""
        rows = torch.stack([part.reshape(-1) for part in basis]).double()
        self.gram += (rows @ rows.T).cpu()
        self.right += (rows @ (ends.to(own.device) - own).reshape(-1).double()).cpu()

    def tables(self, table: Table) -> list[Table]:
        """The table with the last row of each ridge."""
        mean, eye = self.gram.diagonal().mean(), torch.eye(len(self.right), dtype=torch.float64)
        found = [torch.linalg.solve(self.gram + ridge * mean * eye, self.right).numpy() for ridge in RIDGES]
        return [with_last_row(table, weights) for weights in found]
