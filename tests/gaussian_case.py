"""One Gaussian as data: diffusers' trajectories and direct loops on a network and a flow known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transcriptions as direct
from peers import Level, Peer, trajectory

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
RHO = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)
START = np.random.default_rng(0).standard_normal((2, 3, 2, 2))
NORMALS = np.random.default_rng(1).standard_normal((128, *START.shape))
MODEL = direct.Gaussian()
SPACINGS = ("leading", "linspace", "trailing")
MIN = {"final_sigmas_type": "sigma_min"}
SDE = {"algorithm_type": "sde-dpmsolver++"}


def relative(got: Any, wanted: Any) -> float:
    got, wanted = torch.as_tensor(got), torch.as_tensor(wanted)
    return float((got - wanted).abs().max() / wanted.abs().max())


def level(t: float) -> Level:
    """diffusers interpolates sigma / alpha linearly in t."""
    rho = np.interp(t, np.arange(1000), RHO)
    return Level(1 / np.hypot(1, rho), rho / np.hypot(1, rho))


def eps(x: np.ndarray, t: float) -> np.ndarray:
    return MODEL.eps(x, *level(t))


def network(kind: str = "eps"):
    def predict(x, t):
        y, (alpha, sigma) = x.numpy(), level(float(t[0]))
        e = MODEL.eps(y, alpha, sigma)
        x0 = (y - sigma * e) / alpha
        return torch.from_numpy({"eps": e, "v": alpha * e - sigma * x0, "x0": x0}[kind])

    return predict


def normal(k: int) -> np.ndarray:
    return NORMALS[k]


def run(scheduler: str, steps: int, kind: str = "eps", **config: Any) -> Peer:
    return trajectory(
        scheduler, network(kind), torch.from_numpy(START), steps, config, lambda k: torch.from_numpy(NORMALS[k])
    )


def grid(peer: Peer, stages: int = 1) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """The calls after which steps of `stages` calls end (the last one has one), told times, alpha and sigma in VP."""
    levels = [peer.seen[0], *peer.levels]
    ends = [*range(0, len(levels) - 1, stages), len(levels) - 1]
    alpha, sigma = np.array([np.array(levels[i]) / np.hypot(*levels[i]) for i in ends]).T
    return [i - 1 for i in ends[1:]], np.array(peer.times)[::stages], alpha, sigma


def start_of(peer: Peer) -> np.ndarray:
    return peer.start.numpy() / np.hypot(*peer.seen[0])


def difference(peer: Peer, solver, *options: Any, stages: int = 1, model: direct.Network = eps) -> float:
    """The largest relative difference between the peer's states and the direct loop's at the ends of steps."""
    ends, times, alpha, sigma = grid(peer, stages)
    states = solver(model, start_of(peer), times, alpha, sigma, *options)
    return max(relative(peer.vp_states[i], state) for i, state in zip(ends, states, strict=True))


def error(peer: Peer) -> float:
    """RMS distance of the last state from the exact flow, in VP coordinates."""
    _, _, alpha, sigma = grid(peer)
    exact = MODEL.flow(start_of(peer), (alpha[0], sigma[0]), (alpha[-1], sigma[-1]))
    return float(np.sqrt(np.mean((peer.vp_states[-1].numpy() - exact) ** 2)))
