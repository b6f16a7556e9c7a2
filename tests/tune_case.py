"""Networks that are known in closed form and carry gradients, for fits that take a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import pndm_fast as pf

SHAPE = (8,)
VP = pf.Schedule.vp()
PREDICTIONS = {  # of x_0 ~ a mixture, by eps, x_0, alpha and sigma
    "eps": lambda eps, x0, a, s: eps,
    "x0": lambda eps, x0, a, s: x0,
    "v": lambda eps, x0, a, s: a * eps - s * x0,
    "flow": lambda eps, x0, a, s: eps - x0,
    "edm": lambda eps, x0, a, s: (x0 - 0.25 / (s * s + 0.25) * (x0 + s * eps)) * (s * s + 0.25).sqrt() / (0.5 * s),
}


def vp_levels(t: Tensor) -> tuple[Tensor, Tensor]:
    log = -(0.1 * t + 19.9 * t * t / 2)
    return (log / 2).exp(), (-torch.expm1(log)).sqrt()


def flow_levels(t: Tensor) -> tuple[Tensor, Tensor]:
    return 1 - t, t


def sigma_levels(t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(t), t


class Mixture(nn.Module):
    """The exact prediction for six Gaussians of one width; labels move all of them.

    Computed in float64 from parameters of any dtype, and answered in the input's.
    """

    def __init__(self, levels: Any = vp_levels, prediction: str = "eps", seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.means = nn.Parameter(torch.randn(6, *SHAPE, generator=generator) * 0.8)
        self.levels, self.predicts = levels, prediction
        self.eval()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        time = torch.exp(4 * t.double()) if self.predicts == "edm" else t.double()
        alpha, sigma = (part[:, None, None] for part in self.levels(time))
        y = x.double()[:, None]
        y = y * (sigma * sigma + 0.25).sqrt() if self.predicts == "edm" else y
        means = self.means.double() + (0 if label is None else label.double()[:, None, None] / 4)
        var = alpha * alpha * 0.02 + sigma * sigma
        away = y - alpha * means
        r = torch.softmax(-(away * away / var).sum(2) / 2, 1)[:, :, None]
        eps = (r * sigma * away / var).sum(1)
        x0 = (r * (means + 0.02 * alpha * away / var)).sum(1)
        return PREDICTIONS[self.predicts](eps, x0, alpha[:, 0], sigma[:, 0]).to(x.dtype)


def black_box(x: Tensor, t: Tensor) -> Tensor:
    """The same without a gradient, and without weights to look at."""
    with torch.no_grad():
        return _OWN(x, t)


_OWN = Mixture()

CASES = {
    "vp eps": (VP, Mixture(), "eps"),
    "vp v": (VP, Mixture(prediction="v"), "v"),
    "flow": (pf.Schedule.flow(shift=3.0), Mixture(flow_levels, "flow"), "flow"),
    "edm x0": (pf.Schedule.edm(), Mixture(sigma_levels, "x0"), "x0"),
    "edm raw": (pf.Schedule.edm(), Mixture(sigma_levels, "edm"), "edm"),
}


def tuned(model: Any = _OWN, nfe: int = 4, **changes: Any) -> pf.TunedPlan:
    """A fit of a second."""
    given = dict(schedule=VP, shape=(1, *SHAPE), pairs=256, validation=64, held_out=256, batch=64, teacher=40)
    return pf.tune(model, nfe, **given | {"iterations": 100, "rate": 0.01} | changes)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).abs().max() / wanted.abs().max()).detach())
