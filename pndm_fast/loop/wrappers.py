"""What is not linear in a network's output goes around it: dynamic thresholding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pndm_fast.loop.network import Wrapped
from pndm_fast.loop.told import check_told
from pndm_fast.plan.hints import in_words
from pndm_fast.plan.levels import Level
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import Row


@in_words("Thresholded", dynamic_thresholding_ratio="quantile", p="quantile", sample_max_value="limit")
class Thresholded(Wrapped):
    """A network whose x_0 estimate is clamped to [-s, s] and divided by s, sample by sample.

    s = the quantile of |x_0| over a sample's elements, at least 1 and at most `limit`. Saharia et al. 2022,
    arXiv:2205.11487, section 2.3. A fixed range needs no wrapper: `make_plan` has `clip=`.

    Args:
        plan: what it will be sampled with: it says which levels the times have, and what the network predicts. A plan
            with others is refused; at a time that the plan does not have, the prediction is NaN.
    """

    def __init__(
        self, model: Callable[..., Any], plan: Plan, quantile: float = 0.995, limit: float = float("inf")
    ) -> None:
        super().__init__(model)
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
        if not 0 < quantile <= 1 or not limit >= 1:
            raise ValueError(f"quantile must be in (0, 1] and limit at least 1, got {quantile} and {limit}")
        if plan.components > 1:
            raise ValueError("plan must be of one part: what is thresholded in phase space is not known")
        if plan.prediction not in ("eps", "v", "x0") or any(row.in_scale != 1 for row in plan.rows):
            raise ValueError(f"prediction must be eps, v or x0 of the unscaled state, got a plan for {plan.prediction}")
        check_told(plan, [model])
        self.prediction, self.quantile, self.limit = plan.prediction, quantile, limit
        levels = self._known = _levels(plan)
        self.times = nn.Buffer(torch.tensor(sorted(levels), dtype=torch.float64), persistent=False)
        ordered = [levels[t] for t in sorted(levels)]
        self.levels = nn.Buffer(torch.tensor(ordered, dtype=torch.float64), persistent=False)

    def check_rows(self, rows: Iterable[Row]) -> None:
        """Refuse to be called by rows at other times or levels than those of its plan.

        Raises:
            ValueError: naming the first such time.
        """
        for row in rows:
            level, known = row.levels.call.position, self._known.get(row.t)
            if row.in_scale != 1 or known is None or not all(map(_close, level, known)):
                raise ValueError(
                    f"plan must call pf.Thresholded as the plan that it was made with, got t = {row.t:g} at {level}"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Thresholded:
        kept = self.times, self.levels
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # of a time that `.half()` has rounded nothing would be known
        self.times, self.levels = (nn.Buffer(one.to(self.times.device), persistent=False) for one in kept)
        return self

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The prediction whose x_0 estimate is the clamped one, [B, ...]."""
        out = self.ask(x, t, cond)
        exact = torch.float64 if x.dtype is torch.float64 else torch.float32
        times, levels = (buffer.to(x.device, exact) for buffer in (self.times, self.levels))
        told = t.to(exact)
        at = torch.searchsorted(times, told).clamp(max=len(times) - 1)
        ones = [1] * (x.dim() - 1)
        alpha, sigma = levels[at].T.reshape(2, -1, *ones)
        value = self._clamped(x.to(exact), out.to(exact), alpha, sigma)
        known = (times[at] == told).view(-1, *ones)
        return torch.where(known, value, torch.nan).to(out.dtype)

    def _clamped(self, y: Tensor, value: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        square = alpha**2 + sigma**2
        x0 = {"x0": value, "eps": (y - sigma * value) / alpha, "v": (alpha * y - sigma * value) / square}
        estimate = x0[self.prediction]
        bound = estimate.abs().flatten(1).quantile(self.quantile, dim=1).clamp(1, self.limit)
        bound = bound.reshape(-1, *[1] * (y.dim() - 1))
        estimate = torch.minimum(torch.maximum(estimate, -bound), bound) / bound
        back = {
            "x0": estimate,
            "eps": (y - alpha * estimate) / sigma,
            "v": (alpha * y - square * estimate) / sigma,
        }
        return back[self.prediction]


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _levels(plan: Plan) -> dict[float, Level]:
    """The level of each time that the network is told.

    Raises:
        ValueError: a time has two, or one at which x_0 and the prediction do not tell of each other.
    """
    levels: dict[float, Level] = {}
    for row in plan.rows:
        called = row.levels.call.position
        level = levels.setdefault(row.t, called)
        if level != called:
            raise ValueError(f"plan must have one level for each time, got {level} and {called} at {row.t:g}")
        if plan.prediction != "x0" and (level.sigma == 0 or (level.alpha == 0 and plan.prediction == "eps")):
            raise ValueError(f"plan must be called at alpha and sigma above 0, got {level} at {row.t:g}")
    return levels
