"""What the demonstration networks are trained on: a state at time t made of data and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pndm_fast.demo import flow, psld
from pndm_fast.demo.unet import UNetConfig

_T, _BETA_START, _BETA_END = 1000, 1e-4, 0.02
_T_MIN = 1e-5


@dataclass(frozen=True)
class Process:
    """One recipe's part that is not the same in all.

    Attributes:
        file: name of the weights; title, recipe: lines of their card.
        widths: channels of the network's levels.
        parts: channels for each channel of the data.
        draw_times: (count, generator) -> times [count].
        noised: (x0, t, eps) -> the network's input, of eps's shape, the time that it is told, and what its first
            channels are to be.
    """

    file: str
    title: str
    recipe: str
    widths: tuple[int, ...]
    parts: int
    draw_times: Callable[[int, torch.Generator], Tensor]
    noised: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

    @property
    def config(self) -> UNetConfig:
        """Of the network."""
        return UNetConfig(in_channels=self.parts, out_channels=self.parts, block_out_channels=self.widths)


def _vp_times(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(_T, (count,), generator=generator)


def _vp(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, and eps."""
    abar = torch.linspace(_BETA_START, _BETA_END, _T, dtype=torch.float64).neg().add(1).cumprod(0)
    a = abar.to(x0.device, torch.float32)[t][:, None, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * eps, t, eps


def _psld_times(count: int, generator: torch.Generator) -> Tensor:
    """Uniform in sqrt(t), as quadratic grids are."""
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    return _T_MIN + (1 - _T_MIN) * u * u


def _psld(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """into(t) z of z = Psi_t [x0, 0] + L_t eps, and what makes the preconditioned score -L_t^-T eps in out's range."""
    times, network = t.cpu().numpy(), psld.preconditioning
    assert network is not None
    into, out = network.into(times), network.out(times)
    mean, noise = psld.transition(times), psld.cholesky(times)
    score = psld.whole_score(times) - network.skip(times) @ noise, -network.skip(times) @ mean
    # the target is the combination of score's rows along out, which is one column
    along = (out / (out**2).sum((1, 2), keepdims=True)).swapaxes(1, 2)[:, :1]

    def mixed(block: np.ndarray, values: Tensor) -> Tensor:
        weights = torch.from_numpy(block).to(values.device, torch.float32)[..., None, None]
        return (weights * values[:, None]).sum(2)

    data = torch.cat([x0, torch.zeros_like(x0)], dim=1)
    state = mixed(into @ mean, data) + mixed(into @ noise, eps)
    target = mixed(along @ score[0], eps) + mixed(along @ score[1], data)
    return state, (psld.time_scale * t).float(), target


def _flow_times(count: int, generator: torch.Generator) -> Tensor:
    return flow.last * torch.rand(count, generator=generator)


def _flow(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(1 - s) x0 + s eps with s = t / T, and the velocity eps - x0."""
    s = (t / flow.last)[:, None, None, None]
    return (1 - s) * x0 + s * eps, t, eps - x0


PROCESSES = {
    "vp": Process(
        "mnist.safetensors",
        "eps-prediction",
        f"T = {_T}, betas linear {_BETA_START:g}..{_BETA_END:g}; MSE on eps",
        (32, 64, 128),
        1,
        _vp_times,
        _vp,
    ),
    "psld": Process(
        "mnist_psld.safetensors",
        "position and momentum, preconditioned",
        f"{psld.name}.preconditioned(1), sqrt(t) uniform, t >= {_T_MIN:g}, weights of mnist.safetensors at first; "
        "MSE on what is left of x_0",
        (32, 64, 128),
        2,
        _psld_times,
        _psld,
    ),
    "flow": Process(
        "mnist_flow.safetensors",
        "velocity of a straight path, half as wide",
        f"(1 - t/{flow.last:g}) x0 + t/{flow.last:g} eps, t uniform; MSE on eps - x0",
        (16, 32, 64),
        1,
        _flow_times,
        _flow,
    ),
}
