"""diffusers 0.42 schedulers in float64, as oracles of whole trajectories.

Stock diffusers keeps its tables in float32 and casts to float32 inside `step`. Here float32 means float64 inside the
scheduler's module while it is built, gets its grid and steps, so its formulas run to the rounding of float64. Nothing
else of it is changed: its grids, its lowered orders and its defects are what a comparison is about.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# diffusers' defaults differ from scheduler to scheduler (betas) and clip in some: one set for all
DEFAULTS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
# what a call of `step` reads for the level of its state, in schedulers with a table of sigmas
MIDPOINT_TABLE = {"KDPM2Discrete": 0, "KDPM2AncestralDiscrete": -1}


class Level(NamedTuple):
    """x = alpha x_0 + sigma eps. Schedulers that work in sigma have alpha = 1."""

    alpha: float
    sigma: float


@dataclass
class Peer:
    """One trajectory of a scheduler: lists have one entry for each network call.

    Attributes:
        start: the state before the first call.
        times: what the network was told.
        inputs, outputs: what the network saw (after `scale_model_input`) and said.
        states: what `step` returned, in the scheduler's own coordinates: stages of Runge-Kutta steps included.
        seen: the level that the call's coefficients take its state to stand at.
        levels: the level at which the same coefficients leave the returned state. Where `levels[i]` is not
            `seen[i + 1]`, the scheduler's stride has lost its grid.
        corrected: the state that a predictor-corrector went on from, else None.
        noises: the normals drawn, in order.
        draws: for each of them, the index of the call that drew it.
        scheduler: as it stands after the last step, for a look at its tables.
    """

    start: torch.Tensor
    scheduler: Any
    times: list[float] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)
    seen: list[Level] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    corrected: list[torch.Tensor | None] = field(default_factory=list)
    noises: list[torch.Tensor] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)

    @property
    def nfe(self) -> int:
        return len(self.times)

    @property
    def final(self) -> torch.Tensor:
        """The last state: at sigma = 0 the same in every coordinates."""
        return self.states[-1]

    @property
    def vp_states(self) -> list[torch.Tensor]:
        """The states rescaled to alpha^2 + sigma^2 = 1."""
        return [x / math.hypot(*level) for x, level in zip(self.states, self.levels, strict=True)]


def trajectory(
    scheduler: str,
    network: Network,
    x_T: torch.Tensor,
    steps: int | None,
    config: dict[str, Any] | None = None,
    noises: Callable[[int], torch.Tensor] | None = None,
    *,
    scaled: bool = False,
    stock: bool = False,
) -> Peer:
    """Run a diffusers scheduler from its first to its last told time.

    Args:
        scheduler: the class's name without its last word, "DPMSolverMultistep".
        network: called as network(x, t) with float64 x and a float64 t of shape [B].
        x_T: standard normals, to be multiplied by the scheduler's `init_noise_sigma`; with `scaled` the state itself.
        steps: num_inference_steps; None where config has `timesteps` or `sigmas`.
        config: arguments of the scheduler's constructor (over DEFAULTS), of its `set_timesteps` and of its `step`,
            told apart by their names.
        noises: noises(k) is the k-th normal that the scheduler draws; without it they come from seed 0.
        stock: diffusers as it is installed, in float32; the result is widened.
    """
    module, cls = _find(scheduler)
    run = _Run(module, noises, stock)
    build, grid, options = _split(cls, {**_known(cls, DEFAULTS), **(config or {})})
    with run.patched(), warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):  # names it will drop; numpy 2 and torch tensors
            warnings.simplefilter("ignore", kind)
        made = cls(**build)
        made.set_timesteps(steps, **grid)
        x = x_T.to(run.dtype)
        peer = run.peer = Peer(x if scaled else x * getattr(made, "init_noise_sigma", 1.0), made)
        x = peer.start
        for t in made.timesteps:
            seen = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
            out = network(seen.double(), t.double().expand(len(x)))
            peer.times.append(float(t))
            x = made.step(out.to(run.dtype), t, x, **options).prev_sample
            for kept, value in ((peer.inputs, seen), (peer.outputs, out), (peer.states, x)):
                kept.append(value.double())
            peer.corrected.append(getattr(made, "last_sample", None))
        peer.start = peer.start.double()
        peer.seen, peer.levels = _levels(scheduler, made, len(peer.times))
    return peer


class _Widened:
    """A module whose float32 is float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Run:
    """The changed names of the scheduler's module, for one trajectory."""

    def __init__(self, module: ModuleType, noises: Callable[[int], torch.Tensor] | None, stock: bool) -> None:
        self.module, self.noises, self.stock = module, noises, stock
        self.dtype = torch.float32 if stock else torch.float64
        self.generator = torch.Generator().manual_seed(0)
        self.peer: Peer | None = None

    def draw(self, shape: torch.Size, **_: Any) -> torch.Tensor:
        """In place of diffusers' randn_tensor."""
        assert self.peer is not None
        if self.noises is None:
            z = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        else:
            z = self.noises(len(self.peer.noises)).double()
        assert z.shape == shape, f"noise must have shape {tuple(shape)}, got {tuple(z.shape)}"
        self.peer.noises.append(z)
        self.peer.draws.append(len(self.peer.times) - 1)
        return z.to(self.dtype)

    def sampler(self, x: torch.Tensor, *_: Any, **__: Any) -> Callable[..., torch.Tensor]:
        """In place of the Brownian tree: independent normals."""
        return lambda *_: self.draw(x.shape)

    @contextmanager
    def patched(self) -> Iterator[None]:
        names: dict[str, Any] = {"randn_tensor": self.draw, "BrownianTreeNoiseSampler": self.sampler}
        if not self.stock:
            names |= {"torch": _Widened(torch), "np": _Widened(np)}
        default = torch.get_default_dtype()
        with ExitStack() as stack:
            for name, value in names.items():
                if hasattr(self.module, name):
                    stack.enter_context(mock.patch.object(self.module, name, value))
            stack.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(self.dtype)
            yield


def _find(scheduler: str) -> tuple[ModuleType, Any]:
    diffusers = importlib.import_module("diffusers")
    name = f"{scheduler}Scheduler"
    if scheduler != "DPMSolverSDE":
        cls = getattr(diffusers, name)
        return sys.modules[cls.__module__], cls
    # torchsde gives it the Brownian tree alone, which is replaced
    missing = "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None
    if missing:
        sys.modules["torchsde"] = ModuleType("torchsde")
    try:
        module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    finally:
        if missing:
            del sys.modules["torchsde"]
    return module, getattr(module, name)


def _known(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


def _split(cls: Any, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    parts = _known(cls.__init__, config), _known(cls.set_timesteps, config), _known(cls.step, config)
    unknown = set(config).difference(*parts)
    if unknown:
        raise TypeError(f"{cls.__name__} has no argument {', '.join(sorted(unknown))}")
    return parts


def _levels(name: str, scheduler: Any, nfe: int) -> tuple[list[Level], list[Level]]:
    """For each call, where its coefficients take the state from and to."""
    if hasattr(scheduler, "sigmas"):
        ends = [_level_of_sigma(name, scheduler, i) for i in range(nfe + 1)]
        return ends[:-1], ends[1:]
    if name == "IPNDM":
        ends = [Level(float(a), float(s)) for a, s in zip(scheduler.alphas, scheduler.betas, strict=True)]
        return ends[:-1], ends[1:]
    told = [int(t) for t in scheduler.timesteps]
    sources, targets = _indices(name, scheduler, told)
    return [_level_at(scheduler, t) for t in sources], [_level_at(scheduler, t) for t in targets]


def _level_of_sigma(name: str, scheduler: Any, i: int) -> Level:
    sigma = scheduler.sigmas[i]
    if i % 2 and name in MIDPOINT_TABLE:
        sigma = scheduler.sigmas_interpol[i + MIDPOINT_TABLE[name]]
    elif i % 2 and name == "DPMSolverSDE":
        sigma = (scheduler.sigmas[i - 1] * sigma).sqrt()
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
    else:
        alpha = 1 - sigma if name.startswith("FlowMatch") else 1.0
    return Level(float(alpha), float(sigma))


def _level_at(scheduler: Any, t: int) -> Level:
    if t >= 0:
        alpha_bar = float(scheduler.alphas_cumprod[t])
    else:  # DDIM and PNDM, DDIMInverse; the others end at 1
        names = ("final_alpha_cumprod", "initial_alpha_cumprod")
        alpha_bar = float(next((getattr(scheduler, name) for name in names if hasattr(scheduler, name)), 1.0))
    return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def _indices(name: str, scheduler: Any, told: list[int]) -> tuple[list[int], list[int]]:
    """Indices of alpha-bar: sources and targets of the calls."""
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    if name == "DDIM":
        return told, [t - stride for t in told]
    if name == "DDIMInverse":
        return [min(t - stride, scheduler.config.num_train_timesteps - 1) for t in told], told
    if name == "PNDM":
        warm = len(scheduler.prk_timesteps)
        targets = [t - (0 if k % 2 else stride // 2) if k < warm else t - stride for k, t in enumerate(told)]
        if not warm and len(told) > 1:
            targets[1] = told[1]
        return told, targets
    return told, [*told[1:], -1]
