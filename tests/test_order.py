"""Observed orders on the exact model. A wrong letter in a coefficient shows here at once.

`python tests/test_order.py` prints the table of docs/solvers.md; a test compares the two.
"""

import functools
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import rows
import torch
from drawing import draw
from golden_data import NAMED, SCALAR, START, mixture, named_stress
from oracle import probability_flow

import pndm_fast as pf
from pndm_fast.solvers import SOLVER_INFO, source

VP = pf.Schedule.vp(0.1, 20.0)
QUIET = {
    "edm": {"churn": 0.0},
    **{name: {"eta": 0.0} for name in SCALAR if SOLVER_INFO[name].stochastic and name != "edm"},
    "sa-solver": {"tau": 0.0},
    "sa-solver-pece": {"tau": 0.0},
    "restart": {"restarts": ()},
    "alphafold-3": {"gamma": 0.0, "step_scale": 1.0},
}
# Uniform t from 1 to 0.1. To t = 0 the pseudo methods drop to about 1: sigma grows like sqrt(t) there.
CASES = [
    *(
        (name, QUIET.get(name, {}), SOLVER_INFO[name].order)
        for name in SCALAR
        if name not in ("ddpm", "lcm", "consistency")
    ),
    *(("deis", {"order": k, "variable": v}, k) for k in (1, 2, 3) for v in ("t", "rho", "log_rho")),
    *(("rk", {"tableau": name}, 4) for name in ("rk4-38", "etdrk4-b", "strehmel-weiner")),  # others: by Butcher
    *(("lms", {"order": k}, k) for k in (1, 2, 3)),
    *(("ipndm-v", {"order": k}, min(k, 2)) for k in (1, 2, 3)),
    *(("unipc", {"order": k, "corrector": False}, k) for k in (1, 2, 3)),
    *(("unipc", {"order": k}, k + 1) for k in (1, 3)),
    *(("unipc", {"order": k, "variant": "bh1"}, k + 1) for k in (1, 2, 3)),
    *(("unipc", {"order": k, "predict": "eps"}, k + 1) for k in (1, 2, 3)),
    ("dpm-solver-2", {"multistep": True}, 2),
    ("dpm-solver-2", {"solver_type": "heun"}, 2),
    ("dpm-solver-3", {"multistep": True}, 2),
    ("dpm-solver-3", {"multistep": True, "exact": True}, 3),
    ("dpm-solver-3", {"solver_type": "heun"}, 3),
    ("dpmpp-2m", {"solver_type": "heun"}, 2),
    ("dpmpp-2s", {"solver_type": "heun"}, 2),
    ("dpmpp-3m", {"exact": True}, 3),
    ("dpmpp-3m-sde", {"exact": True, "eta": 0.0}, 3),
    ("dpmpp-sde", {"eta": 0.0, "r": 0.7}, 2),
    ("lambda-ddim", {"lam": 2.0}, 1),
    *(("conjugate", {"order": k, "B": 1.0}, 1) for k in (1, 2)),
    *(("conjugate", {"order": k}, k) for k in (2, 3)),
    *(("conjugate", {"order": k, "weights": "pndm"}, 2) for k in (2, 4)),
]


# whose rows are others' where they are quiet, by `test_named_solvers.py::test_names_of_one_method`
ALIASES = (
    *("alphafold-3", "restart", "dpm-2-ancestral", "dpmpp-2s-ancestral", "exp-heun-2-x0-sde", "res-2m", "res-3m"),
    "res-multistep-ancestral",
)


def late(solver, options, order):
    """The marks of a case."""
    return pytest.mark.stress if solver in ALIASES or order == 1 and solver in NAMED else ()


@functools.cache
def exact():
    return probability_flow(mixture(VP), VP, START, end=0.1, rtol=1e-12)


def slope(error, steps):
    """Of log error against log n."""
    errors = [error(n) for n in steps]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0], errors


def error(solver, steps, **options):
    plan = pf.make_plan(solver, VP, times=np.linspace(1.0, 0.1, steps + 1), final="min", **options)
    start, end = (exact(), START) if SOLVER_INFO[solver].inverts else (START, exact())
    return float((rows.run(plan, mixture(VP), start) - end).square().mean().sqrt())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* has no effect")  # a variable at order 1
@pytest.mark.parametrize("steps", [(96, 192), pytest.param((96, 192, 384), marks=pytest.mark.stress)], ids=str)
@pytest.mark.parametrize("solver, options, order", [pytest.param(*c, marks=late(*c)) for c in CASES], ids=str)
def test_observed_order(solver, options, order, steps):
    # the released third-order multistep only comes down to its second order late
    late = 4 if order == 2 and solver in ("dpmpp-3m", "dpmpp-3m-sde") else 1
    seen, errors = slope(lambda n: error(solver, n, **options), [late * n for n in steps])
    assert order - 0.3 <= seen <= order + 0.35, (errors, seen)


@pytest.mark.slow
def test_difference_quotient_has_a_floor():
    """A derivative taken over 1/1000 of the time is wrong by a fixed amount, however many steps there are."""
    assert error("fon-rk4", 256, delta=1e-3) > 30 * error("fon-rk4", 256)


@pytest.mark.slow
def test_fon_rk4_beats_fon():
    assert error("fon-rk4", 256) < error("fon", 256) / 10


ELSEWHERE = {"edm": (pf.Schedule.edm(), 10.0, 0.5), "flow": (pf.Schedule.flow(3.0), 0.9, 0.2)}


@functools.cache
def exact_elsewhere(name):
    """The first state and the last."""
    schedule, start, end = ELSEWHERE[name]
    state = START * float(schedule.sigma(start))
    return state, probability_flow(mixture(schedule), schedule, state, start=start, end=end, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* has no effect")  # a variable at order 1
@pytest.mark.parametrize("steps", [(96, 192), pytest.param((48, 96, 192), marks=pytest.mark.stress)], ids=str)
@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize(
    "solver, order",
    [
        ("euler", 1),
        ("heun", 2),
        ("lms", 2),
        ("ipndm-v", 2),
        ("s-pndm", 2),
        ("dpmpp-2m", 2),
        ("unipc", 3),
        ("f-pndm", 2),
        ("deis", 2),
        ("dpm-solver-2", 2),
        ("dpm-solver-3", 3),
        ("dpmpp-2s", 2),
        ("dpmpp-3m", 2),
    ],
)
def test_observed_order_elsewhere(name, solver, order, steps):
    """alpha = 1, and flow matching, where f-pndm is Runge-Kutta and Adams-Bashforth on dx/dt = flow, of order 4.

    The first, Euler step of lms and ipndm-v leaves an error of order 2 here; from t = 1 of VP it is too small to see.
    """
    (schedule, start, end), (state, reference) = ELSEWHERE[name], exact_elsewhere(name)
    order = {("flow", "f-pndm"): 4, ("edm", "deis"): 3}.get((name, solver), order)

    def error(n):
        times = np.linspace(start, end, n + 1)
        if schedule.scale == "sigma":  # uniform steps of log sigma
            times = schedule.time_at(np.linspace(schedule.lam(start), schedule.lam(end), n + 1))
        plan = pf.make_plan(solver, schedule, times=times, final="min")
        return float((rows.run(plan, mixture(schedule), state) - reference).square().mean().sqrt())

    seen, errors = slope(error, steps)
    assert order - 0.5 <= seen <= order + 0.5, (errors, seen)


@pytest.mark.parametrize("name", sorted(set(SCALAR) - {"ddpm", "lcm", "consistency"}))
def test_rows_run_here_as_in_the_engine(name):
    plan = pf.make_plan(name, VP, times=np.linspace(1.0, 0.1, 9), final="min", **QUIET.get(name, {}))
    engine = pf.sample(mixture(VP), solver=plan, start=pf.State(START))
    torch.testing.assert_close(rows.run(plan, mixture(VP), START), engine, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("prediction", ["v", *(pytest.param(p, marks=pytest.mark.slow) for p in ("x0", "flow"))])
@pytest.mark.parametrize("solver", named_stress(SCALAR))
def test_predictions_agree(solver, prediction):
    """What the network predicts changes the store map alone: the samples are the same to rounding."""
    times = np.linspace(1.0, 0.1, 11)
    plans = [pf.make_plan(solver, VP, times=times, final="min", prediction=p) for p in ("eps", prediction)]
    if SOLVER_INFO[solver].inverts:  # told another time than the state's: the conversion differs with the network
        return
    by_eps = draw(mixture(VP), solver=plans[0], start=pf.State(START), noise_sampler=lambda i: START)
    other = draw(mixture(VP, prediction), solver=plans[1], start=pf.State(START), noise_sampler=lambda i: START)
    torch.testing.assert_close(other, by_eps, rtol=1e-9, atol=1e-9)


def table():
    """The table of docs/solvers.md."""
    lines = [
        "| name | network calls for n steps | observed order | stores | options | arXiv |",
        "|---|---|---|---|---|---|",
    ]
    for name, info in sorted(SOLVER_INFO.items()):
        order = f"{info.order or ''}{' (SDE)' if info.stochastic else ''}".strip()
        parameters = inspect.signature(pf.SOLVERS[name]).parameters.values()
        own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "prediction"]
        cells = (f"`{name}`", info.formula(), order, info.stores, ", ".join(own), source(name))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_of_solvers():
    page = (Path(__file__).parent.parent / "docs" / "solvers.md").read_text()
    assert re.search(r"\| name \| network calls.*?(?=\n\n)", page, re.DOTALL)[0] == table()


if __name__ == "__main__":
    print(table())
