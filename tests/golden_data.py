"""The golden numbers (float64) and the exact model behind them: tests/golden/README.md tells their origin."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pndm_fast as pf
from pndm_fast.demo import gaussian_mixture
from pndm_fast.solvers import SOLVER_INFO

DATA = np.load(Path(__file__).parent / "golden" / "pndm.npz")
GUIDED = sorted(name for name in pf.SOLVERS if name.endswith("-cfg-pp"))  # whose calls have two outputs
SCALAR = sorted(name for name in pf.SOLVERS if SOLVER_INFO[name].space != "phase" and name not in GUIDED)
PHASE = sorted(name for name in pf.SOLVERS if SOLVER_INFO[name].space != "scalar")
# samplers by others' names, each of which `test_named_solvers.py` holds to its loop: general laws are `stress` for them
NAMED = {
    *("alphafold-3", "restart"),
    *("consistency", "dpm-2", "dpm-2-ancestral", "dpm-fast", "dpmpp-2s-ancestral", "dpmpp-3s", "er-sde"),
    *("exp-heun-2-x0", "exp-heun-2-x0-sde", "gradient-estimation", "heunpp2", "res-2m", "res-2s", "res-3m", "res-3s"),
    *("res-multistep-ancestral", "rk", "sa-solver", "sa-solver-pece", "seeds-2", "seeds-3", "tcd", *GUIDED),
}
FROM_NOISE = sorted(name for name in SCALAR if not SOLVER_INFO[name].inverts)
START = torch.from_numpy(DATA["meta_x_T"])


def schedule(name):
    return pf.Schedule.from_alphas_cumprod(DATA[f"meta_abar64_{name}"])


def mixture(noise_schedule, prediction="eps"):
    means, variances, weights = (DATA[f"meta_mix_{part}"] for part in ("means", "vars", "weights"))
    return gaussian_mixture(noise_schedule, means, variances, weights, prediction=prediction)


def named_stress(names):
    """Parameters of a test that takes long, `stress` for those of `NAMED`."""
    return [pytest.param(name, marks=pytest.mark.stress) if name in NAMED else name for name in names]


class Recorder:
    """A network that writes down the times at which it was called."""

    def __init__(self, network):
        self.network, self.times = network, []

    def __call__(self, x, t, **cond):
        self.times.append(float(t[0]))
        return self.network(x, t, **cond)


def relative(got, wanted):
    return float((torch.as_tensor(got) - torch.as_tensor(wanted)).abs().max() / torch.as_tensor(wanted).abs().max())
