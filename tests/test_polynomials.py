"""Weights from what they are for, on random grids: no peer, and no loop written down once more.

A network that ignores its state and says p(v) of the time, v the variable of a solver's paper, p a polynomial of a
degree that the step's values determine. The exact step is then one integral, taken here by Gauss's rule in t; a wrong
weight, or one of another variable, shows in the row where it stands.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial

import pndm_fast as pf
from pndm_fast.plan.row import MAX_SLOTS

pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect", "ignore:.* diverges in")
VP = pf.Schedule.vp(0.1, 20.0)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(80)
VARIABLES = {
    "t": lambda t: np.asarray(t),
    "rho": lambda t: VP.sigma(t) / VP.alpha(t),
    "lam": VP.lam,
    "log_rho": lambda t: -VP.lam(t),
}
LAST = {"lower_order_final": False}
# solver, options, variable, what the slots hold, values that a step has in the end
MULTISTEP = [
    ("deis", {"order": 1}, "t", "eps", 1),
    *(("deis", {"variable": v, "order": k, **(LAST if v == "log_rho" else {})}, v, "eps", k)
      for v in ("t", "rho", "log_rho") for k in (2, 3, 4)),
    *(("lms", {"order": k}, "rho", "eps", k) for k in (1, 2, 3, 4)),
    *(("conjugate", {"order": k}, "t", "eps", k) for k in (1, 2, 3, 4)),
    ("dpm-solver-1", {}, "lam", "eps", 1),
    ("res-2m", {}, "lam", "x0", 2),
    ("res-3m", {}, "lam", "x0", 3),
    *(("sa-solver", {"order": k, "corrector_order": 0, "tau": 0.0, **LAST}, "lam", "x0", k) for k in (1, 2, 3, 4)),
    *(("sa-solver", {"order": k, "corrector_order": 0, "tau": 1.0, **LAST}, "lam", "x0", k) for k in (2, 4)),
    ("ddim", {}, "t", "eps", 1),
    ("euler", {}, "rho", "eps", 1),
    ("dpm-solver-2", {"multistep": True, "solver_type": "heun", **LAST}, "lam", "eps", 2),
    ("dpm-solver-3", {"multistep": True, "solver_type": "heun", "exact": True, **LAST}, "lam", "eps", 3),
    ("dpmpp-2m", {"solver_type": "heun", **LAST}, "lam", "x0", 2),
    ("dpmpp-3m", {"solver_type": "heun", "exact": True, **LAST}, "lam", "x0", 3),
    *(("dpmpp-2m-sde", {"solver_type": "heun", "eta": eta, **LAST}, "lam", "x0", 2) for eta in (0.0, 0.6, 1.0)),
    *(("dpmpp-3m-sde", {"solver_type": "heun", "exact": True, "eta": eta, **LAST}, "lam", "x0", 3)
      for eta in (0.6, 1.0)),
]  # fmt: skip


@st.composite
def grids(draw, least=5, most=9):
    gaps = draw(st.lists(st.floats(0.3, 1.0), min_size=least, max_size=most))
    return tuple(float(t) for t in 1.0 - 0.9 * np.append(0, np.cumsum(gaps)) / sum(gaps))


def exact(t, s, p, variable, kind, eta=0.0):
    """int p(v) d rho, and for x_0 int p(v) d exp((1 + eta) lam) in units of its own end, from t to s."""
    r = (t + s) / 2 + (t - s) / 2 * NODES
    value = p(VARIABLES[variable](r)) * WEIGHTS * (s - t) / 2
    alpha, sigma = VP.alpha(r), VP.sigma(r)
    slope = np.array([VP.log_alpha_slope(float(time)) for time in r])  # d log alpha / dt = sigma^2 d lam / dt
    lam = slope / sigma**2
    if kind == "eps":
        return float(value @ (-sigma / alpha * lam))
    return float(value @ ((1 + eta) * lam * np.exp((1 + eta) * (VP.lam(r) - VP.lam(s)))))


def moved(x, t, s, p, variable, kind, eta=0.0):
    """The exact step from x: x_s/alpha_s - x_t/alpha_t = int eps d rho, or with x_0 by exp(lam) in place of rho."""
    whole = exact(t, s, p, variable, kind, eta)
    if kind == "eps":
        return float(VP.alpha(s)) * (x / float(VP.alpha(t)) + whole)
    keep = float(VP.sigma(s) / VP.sigma(t)) * math.exp(-eta * float(VP.lam(s) - VP.lam(t)))
    return keep * x + float(VP.alpha(s)) * whole


def polynomial(degree, variable):
    """1, 2, 3, ... in a variable that is about 1 over the grid."""
    low, high = VARIABLES[variable](np.array([0.1, 1.0]))
    return Polynomial(np.arange(1.0, degree + 2), domain=sorted((low, high)), window=[-1, 1])


def states(plan, p, variable):
    """Each row with y before it, and x and y after it, without noise."""
    x = y = 0.7
    slots = [math.nan] * MAX_SLOTS
    for row in plan:
        before = y
        slots[row.slot] = rows.store(row, y, float(p(VARIABLES[variable](row.t))))
        x, y = rows.evaluate(row.x, x, y, slots), rows.evaluate(row.y, x, y, slots)
        yield row, before, x, y


@pytest.mark.parametrize("solver, options, variable, kind, values", MULTISTEP, ids=str)
@given(grids())
@settings(max_examples=5)
def test_multistep_weights(solver, options, variable, kind, values, times):
    plan = pf.make_plan(solver, VP, times=times, prediction=kind, final="min", **options)
    for degree in range(values):
        p = polynomial(degree, variable)
        for i, (row, before, _, after) in enumerate(states(plan, p, variable)):
            if i >= degree:  # the first steps have fewer values
                wanted = moved(
                    before, times[i], times[i + 1], p, variable, kind, options.get("eta", options.get("tau", 0.0) ** 2)
                )
                assert after == pytest.approx(wanted, rel=1e-9, abs=1e-9), (i, degree, row)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("kind", ["eps", "x0"])
@given(grids())
@settings(max_examples=5)
def test_unipc_weights(kind, variant, times):
    """Where there are two values besides the present one B(h) cancels: arXiv:2302.04867, and both are exact."""
    options = {"order": 3, "variant": variant, "predict": kind, "lower_order_final": False, "final": "min"}
    plan = pf.make_plan("unipc", VP, times=times, prediction=kind, **options)
    for degree in range(4):
        p, corrected = polynomial(degree, "lam"), None
        for i, (_, _, x, after) in enumerate(states(plan, p, "lam")):
            if i >= 2 and degree <= 2:  # from the corrected state, by the values at i, i - 1, i - 2
                assert after == pytest.approx(moved(x, times[i], times[i + 1], p, "lam", kind), rel=1e-9, abs=1e-9)
            if i >= 2 and degree <= min(i, 3):  # and that from the one before, by the value at i too
                assert x == pytest.approx(moved(corrected, times[i - 1], times[i], p, "lam", kind), rel=1e-9, abs=1e-9)
            corrected = x


@pytest.mark.parametrize(
    "solver, kind, size", [("dpm-solver-2", "eps", 2), ("dpmpp-2s", "x0", 2), ("dpm-solver-3", "eps", 3)]
)
@given(grids(6, 6))
@settings(max_examples=5)
def test_singlestep_weights(solver, kind, size, times):
    """The "heun" form: at a group's end the polynomial through the values at its start and its stages."""
    plan = pf.make_plan(solver, VP, times=times, prediction=kind, solver_type="heun", final="min")
    for degree in range(size):
        p = polynomial(degree, "lam")
        start = 0.7
        for i, (row, _, _, after) in enumerate(states(plan, p, "lam")):
            if row.ends_step:
                wanted = moved(start, times[i - size + 1], times[i + 1], p, "lam", kind)
                assert after == pytest.approx(wanted, rel=1e-9, abs=1e-9), (i, degree)
                start = after


@given(grids())
def test_heun_is_exact_for_lines_in_rho(times):
    """arXiv:2206.00364, algorithm 1: the trapezoidal rule."""
    p = polynomial(1, "rho")
    ends = [s for s in states(pf.make_plan("heun", VP, times=times, prediction="eps", final="min"), p, "rho")][1::2]
    start = 0.7
    for i, (_, _, _, after) in enumerate(ends):
        assert after == pytest.approx(moved(start, times[i], times[i + 1], p, "rho", "eps"), rel=1e-9)
        start = after


@pytest.mark.parametrize(
    "solver, options, orders",
    [
        ("s-pndm", {}, (2, 2)),
        ("f-pndm", {}, (4, 4, 4, 4)),
        ("plms", {}, (2, 2, 3, 4)),
        ("ipndm", {}, (1, 2, 3, 4)),
        *(("ipndm-v", {"order": k}, tuple(range(1, k + 1))) for k in (1, 2, 3, 4)),
    ],
    ids=str,
)
def test_the_gradient_part_is_a_mean(solver, options, orders):
    """PNDM's phi takes the mean of e over the step; integers give that of cubics and less on equal steps of t.

    arXiv:2202.09778, eq. 9; `orders` are those of the first steps, the last one stays.
    """
    times = np.linspace(1.0, 0.1, 10) if solver != "ipndm-v" else np.array([1.0, 0.9, 0.75, 0.7, 0.5, 0.42, 0.2, 0.1])
    plan = pf.make_plan(solver, VP, times=times, final="min", **options)
    for degree in range(max(orders)):
        p, start = polynomial(degree, "t"), 0.7
        ends = [after for row, _, _, after in states(plan, p, "t") if row.ends_step]
        for i, after in enumerate(ends):
            t, s = times[i], times[i + 1]
            if degree < orders[min(i, len(orders) - 1)]:
                mean = (p.integ()(s) - p.integ()(t)) / (s - t)
                scale = float(VP.alpha(s) / VP.alpha(t))
                wanted = scale * start + (float(VP.sigma(s)) - scale * float(VP.sigma(t))) * mean
                assert after == pytest.approx(wanted, rel=1e-11), (i, degree)
            start = after


@given(grids(3, 3), st.floats(0.0, 1.0))
def test_midpoint_forms_are_the_papers(times, eta):
    """arXiv:2211.01095: algorithm 1 (2S), algorithm 2 (2M) and SDE-DPM-Solver++(2M), letter by letter; and
    arXiv:2206.00927, algorithm 1 (DPM-Solver-2) with r_1 in place of 1/2 (its appendix)."""
    t0, t1, t2, _ = times
    (a0, a1, a2), (s0, s1, s2) = (f(np.array([t0, t1, t2])) for f in (VP.alpha, VP.sigma))
    l0, l1, l2 = np.log([a0 / s0, a1 / s1, a2 / s2])

    def row(solver, which, kind, **options):
        coefficients = pf.make_plan(solver, VP, times=times, prediction=kind, final="min", **options).rows[which].y
        return coefficients[:4] + coefficients[-1:]

    h, r = l2 - l1, (l1 - l0) / (l2 - l1)
    phi = -a2 * math.expm1(-h)
    wanted = (0, s2 / s1, -phi / (2 * r), (1 + 1 / (2 * r)) * phi, 0)
    assert row("dpmpp-2m", 1, "x0", lower_order_final=False) == pytest.approx(wanted, rel=1e-10)
    phi, tau = -a2 * math.expm1(-(1 + eta) * h), s2 * math.sqrt(-math.expm1(-2 * eta * h))
    wanted = (0, s2 / s1 * math.exp(-eta * h), -phi / (2 * r), (1 + 1 / (2 * r)) * phi, tau)
    assert row("dpmpp-2m-sde", 1, "x0", eta=eta, lower_order_final=False) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    h, r = l2 - l0, (l1 - l0) / (l2 - l0)
    phi = -a2 * math.expm1(-h)
    wanted = (s2 / s0, 0, (1 - 1 / (2 * r)) * phi, phi / (2 * r), 0)
    assert row("dpmpp-2s", 1, "x0") == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    phi = -s2 * math.expm1(h)
    wanted = (a2 / a0, 0, (1 - 1 / (2 * r)) * phi, phi / (2 * r), 0)
    assert row("dpm-solver-2", 1, "eps") == pytest.approx(wanted, rel=1e-10, abs=1e-12)


FLOWS = {name: 0.5 for name in ("nse", "rse", "nvv", "rvv", "cse", "cvv", "euler", "conjugate")}
REVERSE = {name: 1.0 for name in ("em", "sscs", "noba", "roba", "coba", "obab", "nobab")}


@pytest.mark.parametrize("solver, part", [*FLOWS.items(), *REVERSE.items()])
@pytest.mark.parametrize("process", [pf.phase_space.PSLD(), pf.phase_space.PSLD(gamma=0.5, nu=3.0, beta=(2.0, 9.0))])
def test_a_short_step_in_phase_space_is_the_equation(solver, part, process):
    """What the parts of a splitting add up to, per unit of the clock: -F z + part G G^T S eps, and noise of G G^T.

    S eps is the score; part is 1/2 for the probability flow, 1 for the reverse SDE. arXiv:2303.01748.
    """
    t, h = 0.6, 1e-6
    process = replace(process, jitter=0.0)  # which the authors add to each half of sscs
    plan = pf.make_plan(solver, process, times=[t, t - h], final="min")
    span = float(process.unit(t) - process.unit(t - h))

    def end(state, eps, normals):
        x = y = rows.times(plan.prologue.a0, state) + rows.times(plan.prologue.c0, normals[0])
        slots = [np.zeros((2, 2))] * MAX_SLOTS
        for row, z in zip(plan, normals[1:], strict=True):
            slots[row.slot] = rows.store(row, y, eps)
            x, y = rows.evaluate(row.x, x, y, slots, z), rows.evaluate(row.y, x, y, slots, z)
        return y

    none, eye, near = np.zeros((2, 2)), np.eye(2), {"abs": 1e3 * span}  # h is not 0
    quiet = [none] * (plan.nfe + 1)
    assert (end(eye, none, quiet) - eye) / span == pytest.approx(-process.F, **near)
    assert end(none, eye, quiet) / span == pytest.approx(part * process.GG @ process.score(t), **near)
    each = [end(none, none, [*quiet[:k], eye, *quiet[k + 1 :]]) for k in range(plan.nfe + 1)]
    assert sum(own @ own.T for own in each) / span == pytest.approx(process.GG if part == 1 else none, **near)
