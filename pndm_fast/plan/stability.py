"""Whether a plan keeps its samples in bounds: its exact action on Gaussian data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pndm_fast.plan.curves import Array
from pndm_fast.plan.levels import AnyLevel
from pndm_fast.plan.matrix2 import stacked
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import WIDTH_FORM
from pndm_fast.plan.warn import warn

DEVIATION = 0.5  # of the data: images in [-1, 1] have about as much
MOST = 2.0


def gaussian_spread(plan: Plan, deviation: float = DEVIATION) -> float:
    """How much the plan's samples deviate, in units of how much they should, for data N(0, deviation^2).

    For such data the network is linear and known, x_0 = E[x_0 | y], so that all registers are linear in the noises;
    1 is exact, and what is far above it diverges. In phase space, of the position. Guidance and clamps are left out.

    Returns:
        The ratio; NaN for a plan with a row whose slot says nothing of x_0, as at sigma = 0.
    """
    k = plan.components
    if not all(row.preview[1] for row in plan):
        return float("nan")
    estimates, to_x, to_y = _estimates(plan, deviation), _forms(plan, "x"), _forms(plan, "y")
    # what x, y, the slots and the row's z take of the noises so far: the start's, the prologue's, and each row's
    operands = np.zeros((WIDTH_FORM, k, k * (2 + sum(row.noisy for row in plan))))
    _, covariance = _moments([plan.entry], k, deviation)
    start = stacked([plan.prologue.a0], k)[0] @ np.linalg.cholesky(covariance[0])
    operands[:2, :, : 2 * k] = np.concatenate([start, stacked([plan.prologue.c0], k)[0]], axis=1)
    drawn = 2 * k
    for i, row in enumerate(plan):
        for slot in row.writes:  # without guidance both outputs are one
            operands[2 + slot] = estimates[i] @ operands[1]
        operands[-1] = 0
        if row.noisy:
            operands[-1, :, drawn : drawn + k] = np.eye(k)
            drawn += k
        flat = operands.reshape(WIDTH_FORM * k, -1)
        operands[0], operands[1] = to_x[i] @ flat, to_y[i] @ flat
    _, wanted = _moments([plan.rows[-1].levels.y], k, deviation)
    return float(np.linalg.norm(operands[1, 0]) / np.sqrt(wanted[0, 0, 0]))


def warn_of_divergence(plan: Plan) -> None:
    """A warning where the plan takes Gaussian data far out of its bounds: too few steps for its integrator.

    Not of the reverse: first-order solvers at few steps shrink what they draw, and are still used.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = gaussian_spread(plan)
    if ratio > MOST:
        warn(
            f"{plan.solver} diverges in {plan.steps} steps on this grid: samples of N(0, {DEVIATION:g}^2) would "
            f"deviate {ratio:.2g} times as much; take more steps, or another solver"
        )


def _forms(plan: Plan, register: str) -> Array:
    """[rows, k, WIDTH_FORM k]: X or Y against all operands' components, one after another."""
    k = plan.components
    matrices = stacked([c for row in plan for c in getattr(row, register)], k).reshape(plan.nfe, WIDTH_FORM, k, k)
    return matrices.swapaxes(1, 2).reshape(plan.nfe, k, WIDTH_FORM * k)


def _estimates(plan: Plan, deviation: float) -> Array:
    """[rows, k, k]: the slot of each row from its y, for the preview a y + b slot must be E[x_0 | y]."""
    mean, covariance = _moments([row.levels.call for row in plan], plan.components, deviation)
    on_y, on_slot = (stacked([row.preview[j] for row in plan], plan.components) for j in range(2))
    return np.asarray(np.linalg.solve(on_slot, mean @ np.linalg.inv(covariance) - on_y))


def _moments(levels: Iterable[AnyLevel], k: int, deviation: float) -> tuple[Array, Array]:
    """E[x_0 y^T] and the covariance of y at each level."""
    levels = list(levels)
    data = np.diag([deviation**2, 0.0][:k])
    alpha, sigma = (stacked([level[j] for level in levels], k) for j in range(2))
    cross = data @ alpha.swapaxes(1, 2)
    return cross, np.asarray(alpha @ cross + sigma @ sigma.swapaxes(1, 2))
