"""The phase-space solvers against numbers of independent loops, float64, through the public `sample`.

tests/golden/README.md tells the numbers' origin; what was recalled of the papers when they were made is as much
recalled in them: they say that the tables are right, not what the papers meant.
"""

import numpy as np
import pytest
import torch
from drawing import draw
from golden_data import Recorder, relative
from phase_case import DATA, START, T_MIN, Mixture, one_a_step, spread, two_a_step
from scipy.integrate import quad

import pndm_fast as pf
from pndm_fast.demo import gaussian_mixture
from pndm_fast.phase_space import PSLD
from pndm_fast.solvers import SOLVER_INFO

pytestmark = pytest.mark.filterwarnings("ignore:.* diverges in")
PROCESS = PSLD()
ONES = ((1.0, 1.0), (1.0, 1.0))
L = {"frame": "L"}
# the name in the file: solver, options, and each call of a step at the start (t) or the end (u) of the step
CASES = {
    "EULER": ("euler", {}, "t"),
    "CONJ0": ("conjugate", L, "t"),
    "CONJ0_denoise": ("conjugate", L, "t"),
    "LAMDDIM_I_0.3": ("conjugate", {**L, "B": 0.3}, "t"),
    "LAMDDIM_I_1.0": ("conjugate", {**L, "B": ((1.0, 0.0), (0.0, 1.0))}, "t"),
    "LAMDDIM_ones_0.3": ("conjugate", {**L, "B": ((0.3, 0.3), (0.3, 0.3))}, "t"),
    "LAMDDIM_ones_1.0": ("conjugate", {**L, "B": ONES}, "t"),
    "CONJ0_PLMS4": ("conjugate", {**L, "order": 4, "weights": "pndm"}, "t"),
    "CONJ0_TAB2": ("conjugate", {**L, "order": 2}, "t"),
    "NSE": ("nse", {}, "tt"),
    "RSE": ("rse", {}, "t"),
    "NVV": ("nvv", {}, "ttt"),
    "NVV_adj": ("nvv", {"last": "end"}, "ttu"),
    "RVV": ("rvv", {}, "tu"),
    "RVV_tn": ("rvv", {"last": "start"}, "tt"),
    "CSE": ("cse", {}, "t"),
    "CSE_0.3": ("cse", {"lam": 0.3}, "t"),
    "CVV": ("cvv", {}, "tu"),
    "CVV_0.3": ("cvv", {"lam": 0.3}, "tu"),
    "EM": ("em", {}, "t"),
    "SSCS": ("sscs", {}, "t"),
    "NOBA": ("noba", {}, "tt"),
    "ROBA": ("roba", {}, "t"),
    "ROBA_tnext": ("roba", {"score_time": "end"}, "u"),
    "ROBA_ls0.3": ("roba", {"lam_s": 0.3}, "t"),
    "COBA": ("coba", {}, "t"),
    "NBAO": ("noba", {"sequence": "BAO"}, "tt"),
    "RBAO": ("roba", {"sequence": "BAO"}, "t"),
    "NOBAB": ("nobab", {}, "ttu"),
    "ROBAB": ("obab", {}, "tu"),
}
POWER = {"uniform": 1, "quadratic": 2}
KEYS = [key for key in DATA.files if key.count("|") == 2]


def plan_of(name, spacing, budget):
    solver, options, calls = CASES[name]
    final = "zero" if name.endswith("denoise") else "min"
    return pf.make_plan(solver, PROCESS, steps=budget // len(calls), spacing=spacing, final=final, **options)


def once(key):
    """100 calls on one grid of the two; the other is `stress`."""
    marks = {"quadratic|25": (), "uniform|100": pytest.mark.stress}
    return pytest.param(key, marks=marks.get(key.partition("|")[2], pytest.mark.slow))


@pytest.mark.slow
@pytest.mark.parametrize("key", [once(key) for key in KEYS])
def test_golden(key):
    name, spacing, budget = key.split("|")
    solver, _, calls = CASES[name]
    plan, network = plan_of(name, spacing, int(budget)), Recorder(Mixture(PROCESS))
    denoised = name.endswith("denoise")
    times = spread(POWER[spacing], int(budget) // len(calls) - denoised)
    noises = one_a_step(plan, len(calls), DATA["noise"])
    if solver == "sscs":
        noises = two_a_step(PROCESS, times, DATA["noise"])
    x = draw(network, solver=plan, start=pf.State(START), noise_sampler=noises)
    assert x.dtype is torch.float64 and relative(x, DATA[key]) < 1e-9
    told = [t if call == "t" else u for t, u in zip(times, times[1:], strict=False) for call in calls]
    assert network.times == pytest.approx([*told, T_MIN] if denoised else told, rel=1e-14)
    assert len(plan) == plan.nfe == len(network.times) == int(budget) // len(calls) * len(calls)


def test_every_key_is_tested():
    assert {key.split("|")[0] for key in KEYS} == set(CASES) and len(KEYS) == 4 * len(CASES)


def composed(name):
    """The file's stages, of which those without a call go to the row of the call before: A, B and times of rows."""
    rows = []
    for A, B, t in zip(*(DATA[f"{part}|{name}"] for part in ("tab_A", "tab_B", "tab_ev")), strict=True):
        if t >= 0:
            rows.append((A, B, t))
        else:
            before, gain, told = rows.pop()
            rows.append((A @ before, A @ gain + B, told))
    return rows


@pytest.mark.parametrize("name", [key.split("|")[1] for key in DATA.files if key.startswith("tab_A")])
def test_golden_tables(name):
    """The rows' matrices, not only what they lead to."""
    plan, rows = plan_of(name, "quadratic", 10), composed(name)
    assert len(rows) == len(plan)
    for row, (A, B, t) in zip(plan, rows, strict=True):
        assert row.t == pytest.approx(t, rel=1e-14) and row.slot == 0
        assert relative(np.array(row.y[1]), A) < 1e-12 and relative(np.array(row.y[2]), B) < 1e-12
        assert not any(row.y[3:]) and row.y[0] == 0 and row.x[0] == 1 and not any(row.x[1:])


# calls, and so rows, of a step; normals beyond one a step; whether one is drawn before the first call; the factor
ROWS = [
    ("euler", {}, 1, None, False, None),
    ("conjugate", {}, 1, None, False, None),
    ("conjugate", {"B": ONES}, 1, None, False, None),
    ("conjugate", {"order": 4, "weights": "pndm", "frame": "L"}, 1, None, False, None),
    ("conjugate", {"order": 3}, 1, None, False, None),
    ("rse", {}, 1, None, False, None),
    ("cse", {}, 1, None, False, None),
    ("nse", {}, 2, None, False, None),
    ("rvv", {}, 2, None, False, None),
    ("cvv", {}, 2, None, False, None),
    ("nvv", {}, 3, None, False, None),
    ("em", {}, 1, 0, False, "diagonal"),
    ("sscs", {}, 1, 1, True, "triangular"),
    ("roba", {}, 1, 0, True, "diagonal"),
    ("roba", {"sequence": "BAO"}, 1, 0, False, "diagonal"),
    ("coba", {}, 1, 0, True, "diagonal"),
    ("noba", {}, 2, 0, True, "diagonal"),
    ("noba", {"sequence": "BAO"}, 2, 0, False, "diagonal"),
    ("obab", {}, 2, 0, True, "diagonal"),
    ("nobab", {}, 3, 0, True, "diagonal"),
]


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("solver, options, calls, normals, before, factor", ROWS, ids=str)
def test_calls_and_rows(solver, options, calls, normals, before, factor, steps):
    """As in the table of Pandey et al.; a last step to t = 0 adds one call, and no noise."""
    plan = pf.SOLVERS[solver](PROCESS, spread(2, steps), **options)
    assert len(plan) == plan.nfe == calls * steps == SOLVER_INFO[solver].calls(steps, "min")
    drawn = 0 if normals is None else steps + normals
    assert before + sum(row.noisy for row in plan) == drawn and bool(plan.prologue.c0) == before
    order = options.get("order", 1)
    assert plan.n_slots == min(order, steps) and plan.components == 2 and plan.steps == steps
    for row in plan:
        if row.noisy:
            (_, corner), (mixed, _) = row.y[-1]
            assert corner == 0 and (mixed == 0) == (factor == "diagonal")
    longer = pf.SOLVERS[solver](PROCESS, (*spread(2, steps), 0.0), **options)
    assert len(longer) == calls * steps + 1 == SOLVER_INFO[solver].calls(steps + 1) and longer.rows[:-1] == plan.rows
    assert longer.times[-1] == T_MIN and not longer.rows[-1].noisy


def test_every_solver_has_its_rows():
    phase = {name for name, facts in SOLVER_INFO.items() if facts.space == "phase"}
    assert {solver for solver, *_ in ROWS} == phase | {"euler", "conjugate"}


VP = pf.Schedule.vp(0.1, 20.0)
SCALAR = [("vp_lam0", 0.0), ("vp_lam05", 0.5), ("vp_lam2", 2.0)]


def scalar_loop(network, lam, guard):
    """x' = (A_t/A_u) (1 - lam h) x + (Phi_u - Phi_t)/A_u eps with A = exp(lam t + b/2), Phi' = A beta / (2 sigma)."""
    x = torch.from_numpy(DATA["vp_x0"])

    def b(t):
        return 0.1 * t + 19.9 * t * t / 2

    def rate(v, u):  # of Phi / A_u, against v = sqrt(t)
        t = v * v
        sigma = np.sqrt(-np.expm1(-b(t))) + guard
        return np.exp(lam * (t - u) + (b(t) - b(u)) / 2) * (0.1 + 19.9 * t) / 2 / sigma * 2 * v

    for t, u in zip(DATA["vp_ts"], DATA["vp_ts"][1:], strict=False):
        integral, _ = quad(rate, np.sqrt(u), np.sqrt(t), args=(u,), epsabs=0, epsrel=1e-13)
        grown = np.exp(lam * (t - u) + (b(t) - b(u)) / 2)
        x = grown * (1 - lam * (t - u)) * x - integral * network(x, torch.tensor([t]))
    return x


@pytest.mark.parametrize("key, lam", SCALAR)
def test_lambda_ddim(key, lam):
    """The file's numbers divide by sigma + 1e-9, as the authors' code does. A loop with that guard equals them to
    rounding; the plans equal the loop without it to rounding; and so the plans the file to 2e-8."""
    network = gaussian_mixture(VP, *(DATA[part] for part in ("mix_mu", "mix_var", "mix_w")))
    assert relative(scalar_loop(network, lam, 1e-9), DATA[key]) < 1e-12
    wanted, times = scalar_loop(network, lam, 0.0), DATA["vp_ts"].tolist()
    for solver, options in (("conjugate", {"B": lam}), ("lambda-ddim", {"lam": lam})):
        plan = pf.make_plan(solver, VP, times=times, final="min", **options)
        x = pf.sample(network, solver=plan, start=pf.State(torch.from_numpy(DATA["vp_x0"])))
        assert relative(x, wanted) < 1e-12
        assert relative(x, DATA[key]) < 2e-8
        if lam == 0:
            assert relative(x, DATA["vp_ddim"]) < 1e-12
