"""Errors of the deterministic integrators on the exact mixture: observed orders, and sizes that were computed apart.

The error is the root mean square of the positions at t = 0.001 against the flow (DOP853 at 1e-12), on quadratic grids.
"""

import functools
from decimal import Decimal

import numpy as np
import pytest
import rows
import torch
from phase_case import DATA, START, T_MIN, Mixture, act, relative, spread
from scipy.integrate import solve_ivp

import pndm_fast as pf
from pndm_fast.phase_space import PSLD
from pndm_fast.solvers import SOLVER_INFO

PROCESS = PSLD()
LINEAR_CLD = PSLD(gamma=0.0, nu=4.0, beta=(0.1, 20.0))
ONES = ((1.0, 1.0), (1.0, 1.0))
L = {"frame": "L"}


@functools.cache
def flow(process):
    """Where the probability flow of the mixture ends."""
    if process == PROCESS:
        return DATA["z_ref_ode"]
    network = Mixture(process)

    def right(unit, z):
        z, t = z.reshape(START.shape), float(process.time_at(unit))
        return (act(process.F, z) - act(process.GG, network.score(z, t)) / 2).ravel()

    ends = process.unit(1.0), process.unit(T_MIN)
    return solve_ivp(right, ends, START.numpy().ravel(), "DOP853", rtol=1e-10, atol=1e-11).y[:, -1].reshape(START.shape)


network_of = functools.cache(Mixture)


def error(solver, steps, process=PROCESS, **options):
    plan = pf.SOLVERS[solver](process, spread(2, steps), **options)
    x = rows.run(plan, network_of(process), START)
    return float((x - torch.from_numpy(flow(process)))[:, 0].square().mean().sqrt())


def order(solver, steps, *args, **options):
    return np.log2(error(solver, steps, *args, **options) / error(solver, 2 * steps, *args, **options))


ORDERS = [
    *((name, {}, 1) for name in ("euler", "nse", "rse", "nvv", "rvv", "cse", "cvv")),
    ("nvv", {"last": "end"}, 1),
    ("rvv", {"last": "start"}, 1),
    ("conjugate", L, 1),
    ("conjugate", {**L, "B": ONES}, 1),
    # of order 2 at most: eps in L varies like sqrt(t)
    *(("conjugate", {**L, "order": k}, 2) for k in (2, 3)),
    ("conjugate", {**L, "order": 4, "weights": "pndm"}, 2),
    *(("conjugate", {"order": k}, k) for k in (1, 2, 3, 4)),
    # the integers are for equal steps
    ("conjugate", {"order": 4, "weights": "pndm"}, 2),
    # what B adds is Euler's at any order
    ("conjugate", {"order": 2, "B": ONES}, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("solver, options, wanted", ORDERS, ids=str)
def test_observed_order(solver, options, wanted):
    late = solver == "cse" or options.get("frame") == "L"
    assert order(solver, 256 if late else 128, **options) == pytest.approx(wanted, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("solver, options, wanted", [("rse", {}, 1), *(("conjugate", {"order": k}, k) for k in (1, 3))])
def test_observed_order_elsewhere(solver, options, wanted):
    """Without friction of the position, and with a beta that grows."""
    assert order(solver, 128, LINEAR_CLD, **options) == pytest.approx(wanted, abs=0.15)


@pytest.mark.parametrize("solver, options, _", ORDERS, ids=str)
def test_rows_run_here_as_in_the_engine(solver, options, _):
    plan = pf.SOLVERS[solver](PROCESS, spread(2, 12), **options)
    engine = pf.sample(network_of(PROCESS), solver=plan, start=pf.State(START))
    assert relative(rows.run(plan, network_of(PROCESS), START), engine) < 1e-9  # the wildest grows 1e5-fold


def test_declared_orders():
    assert {SOLVER_INFO[solver].order for solver, _, _ in ORDERS} == {1}


# At 10, 25, 50 and 100 network calls, to the digits given, by a program of its own.
SIZES = {
    "euler": ("euler", {}, "11.5 2.27 .79 .36"),
    "lambda 0": ("conjugate", L, "22 1.15 .72 .39"),
    "lambda ones": ("conjugate", {**L, "B": ONES}, "12.5 .77 .49 .29"),
    "rse": ("rse", {}, ".63 .24 .115 .055"),
    "rvv": ("rvv", {}, "7.3 .26 .068 .018"),
    "nvv": ("nvv", {}, "30 .43 .17 .073"),
    "cse": ("cse", {}, "147 .93 .67 .39"),
    "cvv": ("cvv", {}, "9e3 1.33 .72 .40"),
    "pndm": ("conjugate", {**L, "order": 4, "weights": "pndm"}, "2e5 905 .69 .0087"),
    "ab2": ("conjugate", {**L, "order": 2}, "37 .32 .13 .042"),
    "gddim 1": ("conjugate", {"order": 1}, ".30 .15 .078 .041"),
    "gddim 2": ("conjugate", {"order": 2}, ".24 .073 .023 .0065"),
    "gddim 3": ("conjugate", {"order": 3}, ".22 .040 .0072 .0011"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    solver, options, sizes = SIZES[name]
    for calls, size in zip((10, 25, 50, 100), map(Decimal, sizes.split()), strict=True):
        seen = error(solver, calls // SOLVER_INFO[solver].calls_per_step, **options)
        assert abs(seen - float(size)) < 0.55 * 10.0 ** size.as_tuple().exponent, calls
