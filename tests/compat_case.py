"""A scheduler of diffusers and the plan that stands for it, on one toy network: the same configuration for both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from peers import Peer, trajectory

import pndm_fast as pf
from pndm_fast.solvers.compat import SCHEDULERS

WORDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}
START = torch.tensor([[0.3, -1.1, 0.7]], dtype=torch.float64)
ZERO_SNR = pf.Schedule.linear().zero_terminal_snr()
SCHEDULES: dict[str, tuple[pf.Schedule, dict[str, Any]]] = {
    "linear": (pf.Schedule.linear(), {}),
    "scaled": (
        pf.Schedule.scaled_linear(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (pf.Schedule.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    "zero-snr": (ZERO_SNR, {"rescale_betas_zero_snr": True}),
    "short": (pf.Schedule.linear(100), {"num_train_timesteps": 100}),
    "flow": (pf.Schedule.flow(1.0, 1000), {"shift": 1.0}),
    "flow-3": (pf.Schedule.flow(3.0, 1000), {"shift": 3.0}),
}
DISCRETE, FLOW = ("linear", "scaled", "cosine", "zero-snr", "short"), ("flow", "flow-3")

SPACING = {"spacing": ("leading", "linspace", "trailing"), "steps_offset": (0, 1)}
SIGMAS = {"sigma_spacing": (None, "karras", "exponential", "beta")}
ORDER, BOTH, ENDS = {"solver_order": (1, 2, 3)}, (True, False), {"final_sigmas_type": ("zero", "sigma_min")}
CLIPPED = {"lambda_min_clipped": (-math.inf, -5.1)}
LOWER = {"lower_order_final": BOTH}
ANY = ("eps", "x0", "v", "flow")
OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {  # the values that each scheduler's options may have
    "PNDM": {**SPACING, "set_alpha_to_one": BOTH, "skip_prk_steps": BOTH},
    "DDIM": {**SPACING, "set_alpha_to_one": BOTH, "eta": (0.0, 0.6, 1.0)},
    "DDIMInverse": {"spacing": ("leading", "trailing"), "steps_offset": (0, 1), "set_alpha_to_one": BOTH},
    "DDPM": {**SPACING, "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")},
    "LCM": {"original_inference_steps": (50, 100), "timestep_scaling": (10.0, 2.0)},
    "DPMSolverMultistep": {
        **SPACING, **SIGMAS, **ENDS, **ORDER, **LOWER,
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"), "solver_type": ("midpoint", "heun"),
        "euler_at_final": BOTH, "sigma_spacing": (*SIGMAS["sigma_spacing"], "lu"), **CLIPPED,
    },
    "DPMSolverSinglestep": {
        **CLIPPED, **SIGMAS, **ENDS, **ORDER, **LOWER,
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"), "solver_type": ("midpoint", "heun"),
    },
    "DEISMultistep": {**SPACING, **SIGMAS, **ORDER, **LOWER},
    "UniPCMultistep": {
        **SPACING, **SIGMAS, **ENDS, **ORDER, **LOWER, "solver_type": ("bh1", "bh2"), "predict_x0": BOTH,
        "shift_terminal": (None, 0.05),
    },
    "EulerDiscrete": {**SPACING, **SIGMAS, **ENDS},
    "EulerAncestralDiscrete": SPACING,
    "HeunDiscrete": {**SPACING, **SIGMAS},
    "LMSDiscrete": {**SPACING, **SIGMAS},
    "DPMSolverSDE": {**SPACING, **SIGMAS},
    "KDPM2Discrete": {**SPACING, **SIGMAS},
    "KDPM2AncestralDiscrete": {**SPACING, **SIGMAS},
    "TCD": {"eta": (0.0, 0.3, 1.0)},
    "FlowMatchEulerDiscrete": {
        **SIGMAS, "shift_terminal": (None, 0.05), "use_dynamic_shifting": BOTH,
        "stochastic_sampling": BOTH,
    },
    "FlowMatchHeunDiscrete": {},
}  # fmt: skip
ON_FLOW = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")


class Case(NamedTuple):
    """One configuration: ours says `options` and `prediction`, theirs what `config` makes of them."""

    scheduler: str
    schedule: str
    steps: int
    prediction: str
    options: dict[str, Any]

    def plan(self) -> pf.Plan:
        function = SCHEDULERS[f"{self.scheduler}Scheduler"]
        return function(SCHEDULES[self.schedule][0], self.steps, prediction=self.prediction, **self.options)

    def config(self) -> dict[str, Any]:
        config = dict(SCHEDULES[self.schedule][1])
        shift = config.pop("shift", None)
        for name, value in self.options.items():
            if name == "spacing":
                config["timestep_spacing"] = value
            elif name != "sigma_spacing":
                config[name] = value
            elif value is not None:
                config["use_lu_lambdas" if value == "lu" else f"use_{value}_sigmas"] = True
        if self.scheduler in ON_FLOW and shift is not None:
            config |= {"use_flow_sigmas": True, "flow_shift": shift}
        elif shift is not None:
            config |= {"shift": shift, "num_train_timesteps": 1000}
            if config.get("use_dynamic_shifting"):
                config["mu"] = math.log(shift)
            return config
        return config | {"prediction_type": WORDS[self.prediction]}

    def peer(self, stock: bool = False, told: Sequence[float] | None = None) -> Peer:
        """diffusers' trajectory; with `told` on a network that takes those for the times of its calls."""
        times = iter(told or ())
        told_network = lambda x, t: network(x, torch.full_like(t, next(times)))  # noqa: E731
        used = network if told is None else told_network
        return trajectory(self.scheduler, used, START, self.steps, self.config(), normal, stock=stock)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Affine in x, with weights that change with t."""
    t = t.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return 0.7 * torch.cos(t / 500) * x + 0.3 * torch.sin(t / 200)


def normal(k: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(k).standard_normal(START.shape))


def run(plan: pf.Plan, draws: list[int]) -> torch.Tensor:
    """A plan in NumPy, row by row; the peer's k-th normal goes to the row that made it."""
    noise = {call: normal(k).numpy() for k, call in enumerate(draws)}
    a0, p0 = plan.prologue.a0, plan.prologue.p0
    x = y = a0 * p0 * START.numpy()
    slots: dict[int, Any] = {}
    for i, row in enumerate(plan.rows):
        out = network(torch.from_numpy(row.in_scale * y), torch.tensor([row.t], dtype=torch.float64)).numpy()
        p, q, p2, q2, _ = row.store
        slots[row.slot] = p2 * y + q2 * (p * y + q * out)
        values = [x, y, *(slots.get(k, 0.0) for k in range(len(row.x) - 3)), noise.get(i, 0.0)]
        x, y = (sum(c * v for c, v in zip(form, values, strict=True) if c) + 0 * y for form in (row.x, row.y))
    return torch.from_numpy(y)
