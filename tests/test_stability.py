"""The exact action of plans on Gaussian data, and the warning where they diverge on it."""

import math
import warnings

import numpy as np
import pytest
import torch
from drawing import draw
from golden_data import FROM_NOISE, PHASE
from phase_case import PROCESSES, Mixture

import pndm_fast as pf
from pndm_fast.demo import gaussian_mixture
from pndm_fast.phase_space import PSLD
from pndm_fast.plan.stability import gaussian_spread

LINEAR, VP, EDM, FLOW = pf.Schedule.linear(), pf.Schedule.vp(), pf.Schedule.edm(), pf.Schedule.flow(3.0)
CASES = [
    *((name, LINEAR, {}) for name in FROM_NOISE),
    *((name, LINEAR, {"prediction": prediction}) for name in ("f-pndm", "dpmpp-2m") for prediction in ("x0", "v")),
    *((name, EDM, {}) for name in ("euler", "heun", "edm", "dpmpp-2m", "dpmpp-sde")),
    *((name, FLOW, {"prediction": "flow"}) for name in ("euler", "f-pndm", "unipc")),
    *((name, VP, {"final": "min"}) for name in ("ddim", "conjugate")),
    *((name, PROCESSES["default"], {"final": final}) for name in PHASE for final in ("zero", "min")),
    *((name, PROCESSES["linear beta"], {}) for name in ("conjugate", "rvv", "sscs")),
    *(
        ("conjugate", PROCESSES["default"], {"frame": frame, "order": 4, "weights": weights, "spacing": "uniform"})
        for frame in "LR"
        for weights in ("deis", "pndm")
    ),
]
REPLACING = {"lcm", "consistency", "tcd"}
IDS = [" ".join([name, space.name, *(f"{k}={v}" for k, v in options.items())]) for name, space, options in CASES]
DIVERGES = {"frame": "L", "order": 4, "weights": "pndm"}


def engine(plan, space, deviation):
    """The same ratio by the engine: what is linear is run on each normal by itself, a sample for each."""
    k = 2 if isinstance(space, PSLD) else 1
    if k == 2:
        network = Mixture(space, np.zeros((1, 1)), [deviation**2], [1.0])
        start = np.linalg.cholesky(space.covariance(1.0, xx0=deviation**2))
        alpha, sigma = (block[0] for block in plan.rows[-1].levels.y)
        wanted = math.hypot(alpha[0] * deviation, *sigma)
    else:
        network = gaussian_mixture(space, [[0.0]], deviation**2, prediction=plan.prediction)
        alpha, sigma = plan.entry
        start = np.array([[math.hypot(alpha * deviation, sigma)]])
        alpha, sigma = plan.rows[-1].levels.y
        wanted = math.hypot(alpha * deviation, sigma)
    drawn = [1] * bool(plan.prologue.c0) + [i + 2 for i, row in enumerate(plan) if row.noisy]
    state = torch.zeros(k * (1 + len(drawn)), k, 1, dtype=torch.float64)
    state[:k, :, 0] = torch.from_numpy(start.T)

    def noises(i):
        normals = torch.zeros_like(state)
        first = k * (1 + drawn.index(i))
        normals[first : first + k, :, 0] = torch.eye(k)
        return normals

    samples = draw(network, solver=plan, start=pf.State(state), noise_sampler=noises)
    return float(samples[:, 0, 0].norm()) / wanted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* diverges in")
@pytest.mark.parametrize("deviation", [0.5, pytest.param(2.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name, space, options", CASES, ids=IDS)
def test_spread_is_the_engines(name, space, options, deviation):
    plan = pf.make_plan(name, space, steps=9, **options)
    wanted = engine(plan, space, deviation)
    assert gaussian_spread(plan, deviation) == pytest.approx(wanted, rel=1e-6 if wanted > 1e3 else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*FROM_NOISE, *PHASE} - REPLACING))
def test_fine_plans_keep_the_spread(name):
    """Those that replace the state by an estimate do not; Euler's method is slow in phase space.

    AlphaFold 3's steps are longer than the path on purpose, which takes spread away.
    """
    space = PROCESSES["default"] if name in PHASE else LINEAR
    options = {"step_scale": 1.0, "noise_scale": 1.0} if name == "alphafold-3" else {}
    assert gaussian_spread(pf.make_plan(name, space, steps=300, **options)) == pytest.approx(
        1, abs=0.2 if name == "euler" else 0.06
    )


def test_inversion_spreads_as_noise_does():
    """From data up to sigma = 80: not a divergence."""
    plan = pf.make_plan("ddim-inverse", EDM, steps=200, final="min")
    assert gaussian_spread(plan) == pytest.approx(1, abs=0.05)


def test_nothing_to_say_where_a_slot_says_nothing():
    assert math.isnan(gaussian_spread(pf.make_plan("ddim-inverse", LINEAR, steps=9)))


@pytest.mark.parametrize("final", ["zero", "min"])
@pytest.mark.parametrize("spacing", ["quadratic", "uniform"])
@pytest.mark.parametrize("steps", [10, 20, 35])
def test_few_steps_of_frame_l_diverge(steps, spacing, final):
    """PLMS4 of the network's own eps; the warning names the plan and points at the caller."""
    with pytest.warns(UserWarning, match=rf"^conjugate diverges in {steps} steps on this grid: .* \d\S* times") as seen:
        pf.make_plan("conjugate", PSLD(), steps=steps, spacing=spacing, final=final, **DIVERGES)
    assert len(seen) == 1 and seen[0].filename == __file__


SILENT = [
    *((DIVERGES, steps) for steps in (75, 100, 200)),
    *(({**DIVERGES, "frame": "R"}, steps) for steps in (5, 10, 35, 75)),
    *(({"order": order}, steps) for order in (1, 2, 3, 4) for steps in (5, 10, 35, 75)),
]


@pytest.mark.parametrize("options, steps", SILENT, ids=str)
def test_others_do_not(options, steps):
    with warnings.catch_warnings(action="error"):
        for spacing in ("quadratic", "uniform"):
            pf.make_plan("conjugate", PSLD(), steps=steps, spacing=spacing, **options)


@pytest.mark.parametrize("name", sorted(pf.SOLVERS))
def test_no_warning_at_50_steps(name):
    with warnings.catch_warnings(action="error"):
        pf.make_plan(name, PSLD() if name in PHASE and name not in FROM_NOISE else LINEAR, steps=50)


def test_the_default_does_not_warn():
    with warnings.catch_warnings(action="error"):
        for steps in (5, 10, 50):
            pf.make_plan(steps=steps)
            pf.make_plan("auto", PSLD(), steps=steps)
