"""What is not linear in a network's outputs goes around it: guidance with rescaling, dynamic thresholding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pndm_fast.conditioning import CannotBatch, batched, complete
from pndm_fast.network import result_tensor
from pndm_fast.plan import Plan


class Guided(nn.Module):
    """A network with classifier-free guidance inside, and its rescaling.

    e = u + scale (c - u);  result = rescale e std(c) / std(e) + (1 - rescale) e, with std over a sample's elements.
    Lin et al. 2023, arXiv:2305.08891, equations 14 to 16. Without rescaling, `guidance=` of the sampler does the same
    in the row, without another pass.

    Args:
        model: called once as model([x, x], [t, t], **[uncond; cond]), or twice where those cannot be one batch.
        uncond: the arguments without condition; keys that it lacks come from those of the call.
    """

    def __init__(
        self, model: Callable[..., Any], uncond: Mapping[str, Any], scale: float, rescale: float = 0.7
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {rescale}")
        self.model, self.uncond, self.scale, self.rescale = model, dict(uncond), float(scale), float(rescale)
        self.config = getattr(model, "config", None)
        self.train(getattr(model, "training", False))

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The guided prediction, [B, ...]."""
        uncond = complete(self.uncond, cond)
        try:
            arguments = batched(uncond, cond, len(x))
        except CannotBatch:
            without = result_tensor(self.model(x, t, **uncond)).clone()
            out = result_tensor(self.model(x, t, **cond))
        else:
            both = result_tensor(self.model(torch.cat([x, x]), torch.cat([t, t]), **arguments))
            without, out = both.chunk(2)
        guided = (out - without) * self.scale + without
        if self.rescale == 0:
            return guided
        inner = tuple(range(1, out.dim()))
        factor = out.float().std(inner, keepdim=True) / guided.float().std(inner, keepdim=True)
        return guided * (factor * self.rescale + (1 - self.rescale)).to(guided.dtype)


class Thresholded(nn.Module):
    """A network whose x_0 estimate is clamped to [-s, s] and divided by s, sample by sample.

    s = the quantile of |x_0| over a sample's elements, at least 1 and at most `limit`. Saharia et al. 2022,
    arXiv:2205.11487, section 2.3. A fixed range needs no wrapper: solvers have `clip=`.

    Args:
        plan: which levels its times have, and what the network predicts.
    """

    def __init__(
        self, model: Callable[..., Any], plan: Plan, quantile: float = 0.995, limit: float = float("inf")
    ) -> None:
        super().__init__()
        if not 0 < quantile <= 1 or not limit >= 1:
            raise ValueError(f"quantile must be in (0, 1] and limit at least 1, got {quantile} and {limit}")
        if plan.prediction not in ("eps", "v", "x0") or any(row.in_scale != 1 for row in plan.rows):
            raise ValueError(f"prediction must be eps, v or x0 of the unscaled state, got a plan for {plan.prediction}")
        self.model, self.prediction, self.quantile, self.limit = model, plan.prediction, quantile, limit
        self.config = getattr(model, "config", None)
        levels = sorted({row.t: row.levels.call for row in plan.rows}.items())
        self.times = nn.Buffer(torch.tensor([t for t, _ in levels], dtype=torch.float32), persistent=False)
        self.levels = nn.Buffer(torch.tensor([level for _, level in levels], dtype=torch.float32), persistent=False)
        self.train(getattr(model, "training", False))

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The prediction whose x_0 estimate is the clamped one, [B, ...]."""
        out = result_tensor(self.model(x, t, **cond))
        times, levels = (buffer.to(x.device) for buffer in (self.times, self.levels))
        at = torch.searchsorted(times, t.to(times.dtype)).clamp(max=len(times) - 1)
        alpha, sigma = levels[at].T.reshape(2, -1, *[1] * (x.dim() - 1))
        y, value = x.float(), out.float()
        if self.prediction == "x0":
            x0 = value
        elif self.prediction == "eps":
            x0 = (y - sigma * value) / alpha
        else:
            x0 = (alpha * y - sigma * value) / (alpha**2 + sigma**2)
        magnitude = x0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(1, self.limit)
        bound = magnitude.reshape(-1, *[1] * (x.dim() - 1))
        x0 = torch.minimum(torch.maximum(x0, -bound), bound) / bound
        if self.prediction == "x0":
            value = x0
        elif self.prediction == "eps":
            value = (y - alpha * x0) / sigma
        else:
            value = (alpha * y - (alpha**2 + sigma**2) * x0) / sigma
        return value.to(out.dtype)
