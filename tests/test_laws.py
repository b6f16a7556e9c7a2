"""Laws that rows obey on any grid."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from drawing import draw
from golden_data import NAMED, SCALAR, mixture
from hypothesis import assume, given
from hypothesis import strategies as st
from rows import evaluate, store

import pndm_fast as pf
from pndm_fast.plan.row import MAX_SLOTS, SAME_X
from pndm_fast.row import table
from pndm_fast.solvers import SOLVER_INFO

pytestmark = pytest.mark.filterwarnings(  # any solver with any option on any grid
    "ignore:.* diverges in", "ignore:the grid ends", "ignore:.* has no effect", "ignore:edm adds no noise"
)
# Rows of the exponential family transport (alpha x_0 + sigma eps, eps) exactly. Not so: fon and fon-rk4 are classical
# methods, consistent to their order; lambda-ddim is exact only at lam = 0; lcm and consistency replace the
# state by their estimate.
INEXACT = {"fon", "fon-rk4", "lambda-ddim", "lcm", "consistency"}
STOCHASTIC = sorted(name for name in SCALAR if SOLVER_INFO[name].stochastic and name not in INEXACT)
EXACT = sorted(set(SCALAR) - INEXACT - set(STOCHASTIC))
VARIANTS = [
    *((name, {}) for name in EXACT),
    *(("deis", {"variable": variable, "order": order}) for variable in ("t", "rho", "log_rho") for order in (1, 2, 3)),
    *(
        ("unipc", {"variant": v, "order": k, "predict": p})
        for v in ("bh1", "bh2")
        for k in (1, 3)
        for p in ("x0", "eps")
    ),
    ("unipc", {"corrector": False}),
    ("dpm-solver-2", {"multistep": True}),
    ("dpm-solver-3", {"multistep": True, "exact": True, "lower_order_final": False}),
    ("dpm-solver-3", {"solver_type": "heun"}),
    ("dpmpp-2m", {"solver_type": "heun", "lower_order_final": False}),
    ("dpmpp-3m", {"exact": True, "lower_order_final": False}),
    ("lms", {"order": 2}),
    ("ipndm-v", {"order": 3}),
    ("lambda-ddim", {"lam": 0.0}),
    ("conjugate", {"order": 3}),
    ("conjugate", {"order": 4, "weights": "pndm"}),
    *((name, {"eta": 0.0}) for name in ("euler-ancestral", "dpmpp-sde", "dpmpp-2m-sde", "dpmpp-3m-sde")),
    ("edm", {"churn": 0.0}),
]
SCHEDULES = {
    "linear": pf.Schedule.linear(),
    "scaled-linear": pf.Schedule.scaled_linear(),
    "cosine": pf.Schedule.cosine(),
    "vp": pf.Schedule.vp(),
    "edm": pf.Schedule.edm(),
    "flow": pf.Schedule.flow(3.0),
    "log-sigma": pf.Schedule.linear().interpolate("log_sigma"),
}


@st.composite
def grids(draw, min_steps=4, names=tuple(SCHEDULES)):
    """A schedule with a random decreasing grid of it that may end at sigma = 0."""
    name = draw(st.sampled_from(names))
    schedule = SCHEDULES[name]
    last = {"cosine": 990.0, "flow": 0.99}.get(name, schedule.last)  # alpha-bar of 2e-9 at 999: rounding, not the law
    fractions = draw(st.lists(st.integers(1, 10**4), min_size=min_steps, max_size=12, unique=True))
    span = last - schedule.first
    times = sorted((schedule.first + span * f / 10**4 for f in fractions), reverse=True)
    end = draw(st.sampled_from([schedule.first, None]))
    return schedule, (*times, end) if end is not None else tuple(times)


def output(plan, level, data, x0, eps):
    """What a network says that knows x_0 and eps."""
    alpha, sigma = level
    if plan.prediction == "edm":  # x0 = c_skip y + c_out F
        norm = math.hypot(sigma, data)
        return (x0 - data**2 / norm**2 * (x0 + sigma * eps)) * norm / (sigma * data)
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[plan.prediction]


def transported(plan, x0, eps, data=0.5):
    """Run the plan on one point whose network output is the true one; yield what each row saw and left."""
    start = plan.start
    x = y = start.alpha * x0 + start.sigma * eps
    slots = [math.nan] * MAX_SLOTS
    for row in plan.rows:
        out = output(plan, row.levels.call, data, x0, eps)
        slots[row.slot] = store(row, y, out)
        seen = y
        x, y = evaluate(row.x, x, y, slots), evaluate(row.y, x, y, slots)
        yield row, seen, x, y, slots[row.slot]


def stored(solver, options, schedule):
    """What the slots hold."""
    kind = options.get("predict") or SOLVER_INFO[solver].stores
    straight = not solver.startswith(("deis", "dpm-solver", "dpm-fast", "dpmpp", "unipc"))  # those say eps and mean it
    return "flow" if kind == "eps" and schedule.scale == "flow" and straight else kind


def enough(times):
    return times if len(times) >= 6 else (*times[:-1], *np.linspace(times[-2], times[-1], 6)[1:])


@pytest.mark.slow
@pytest.mark.parametrize("solver, options", VARIANTS, ids=str)
@given(grids(), st.sampled_from(["eps", "v", "flow", "x0"]))
def test_rows_are_exact_on_one_point(solver, options, grid, prediction):
    schedule, times = grid
    if schedule.scale != "vp" and solver in ("lambda-ddim", "conjugate"):
        return
    if solver == "ddim-inverse" and times[-1] == schedule.first:
        times = times[:-1]  # x_0 says nothing of eps at sigma = 0
    plan = pf.make_plan(solver, schedule, times=enough(times), prediction=prediction, **options)
    x0, eps = 0.7, -1.3
    held = {"eps": eps, "x0": x0, "flow": eps - x0}[stored(solver, options, schedule)]
    grown = 1.0  # rounding grows with the rows' coefficients
    for i, (row, seen, x, y, slot) in enumerate(transported(plan, x0, eps)):
        size = max(1.0, row.levels.call.sigma)
        grown *= max(1.0, max(map(abs, row.x)), max(map(abs, row.y)))
        grown = max(grown, max(map(abs, row.store[:2])))
        for value, level in ((x, row.levels.x), (y, row.levels.y)):
            wanted = level.alpha * x0 + level.sigma * eps
            assert abs(value - wanted) <= 1e-12 * grown * size, (i, value, wanted)
        assert slot == pytest.approx(held, abs=1e-11 * grown * max(1.0, *map(abs, row.store[:2]))), i
        preview = row.preview[0] * seen + row.preview[1] * slot
        assert preview == pytest.approx(x0, abs=1e-9 * grown * size / row.levels.call.alpha), i


@pytest.mark.parametrize("solver", sorted(set(EXACT) - {"ddim-inverse", "f-pndm", "deis", "conjugate"}))
def test_raw_edm_networks(solver):
    """prediction="edm": the network sees in_scale y and c_noise, and its F gives the same x_0."""
    schedule = pf.Schedule.edm(sigma_data=0.6)
    plan = pf.make_plan(solver, schedule, steps=7, prediction="edm")
    for row, seen, _, y, slot in transported(plan, 0.7, -1.3, data=0.6):
        sigma = row.levels.call.sigma
        assert row.in_scale == pytest.approx(1 / math.hypot(sigma, 0.6)) and row.t == pytest.approx(math.log(sigma) / 4)
        assert row.preview[0] * seen + row.preview[1] * slot == pytest.approx(0.7, abs=1e-8)
        assert y == pytest.approx(0.7 - 1.3 * row.levels.y.sigma, rel=1e-11)


@pytest.mark.parametrize("solver", STOCHASTIC)
@given(grids(min_steps=2), st.floats(0, 1), st.booleans())
def test_variance(solver, grid, eta, exact):
    """On one point the state stays alpha x_0 + sigma times a unit normal: carried noise and fresh add up to sigma^2."""
    schedule, times = grid
    own = {"ddpm": {}, "edm": {"churn": 30 * eta}, "restart": {"restarts": ((4, 2, 0.3 + eta, 3.0),)}}
    own["alphafold-3"] = {"gamma": eta, "gamma_min": 0.5, "step_scale": 1.0, "noise_scale": 1.0}
    options = own.get(solver, {"tau" if solver.startswith("sa-") else "eta": eta})
    if solver == "dpmpp-3m-sde":
        options["exact"] = exact
    if solver == "er-sde" and exact:
        del options["eta"]
    if schedule.scale == "flow" and "split" in inspect.signature(pf.SOLVERS[solver]).parameters and exact:
        options["split"] = "flow"
    inside = any(schedule.first < t < schedule.time_at(-1.0) for t in times[1:])
    assume(len(times) > 2 and inside or solver != "restart")
    plan = pf.make_plan(solver, schedule, times=times, prediction="x0", **options)
    start = plan.start
    p0, a0, c0 = plan.prologue
    first = schedule.sigma(times[0]) / p0 if schedule.scale != "vp" else schedule.sigma(times[0])
    assert start.sigma**2 == pytest.approx((a0 * p0 * first) ** 2 + c0**2, rel=1e-9)
    assert start.alpha == pytest.approx(a0 * schedule.alpha(times[0]), rel=1e-9)
    width = 2 + plan.nfe  # x_0, then the first and each row's noise
    point = np.eye(width)[0]
    x = y = start.alpha * point + start.sigma * np.eye(width)[1]
    slots, grown = [np.full(width, math.nan)] * MAX_SLOTS, 1.0
    for i, row in enumerate(plan.rows):
        slots[row.slot] = store(row, y, point)
        z = np.eye(width)[2 + i - (i == plan.nfe - 1 and not row.noisy)]
        x, y = evaluate(row.x, x, y, slots, z), evaluate(row.y, x, y, slots, z)
        grown = max(1.0, *map(abs, row.y), *map(abs, row.x), *map(abs, row.store[:2])) * grown
        for value, level in ((x, row.levels.x), (y, row.levels.y)):
            assert value[0] == pytest.approx(level.alpha, rel=1e-11 * grown), i
            assert np.linalg.norm(value[1:]) == pytest.approx(level.sigma, rel=1e-11 * grown, abs=1e-12 * grown), i


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_variance_in_closed_form(eta):
    """(c_y sigma + c_eps)^2 + c_z^2 = sigma_s^2 for eps that says what the state holds."""
    plan = pf.make_plan("ddim", steps=17, eta=eta)
    for row in plan.rows:
        carried = row.y[1] * row.levels.call.sigma + row.y[2]
        assert math.isclose(carried**2 + row.y[-1] ** 2, row.levels.y.sigma**2, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize(
    "one, options, other, same",
    [
        ("euler", {}, "ddim", {}),
        ("dpm-solver-1", {}, "ddim", {}),
        ("euler-ancestral", {}, "ddim", {"eta": 1.0}),
        ("euler-ancestral", {}, "ddpm", {}),
        ("dpmpp-2m-sde", {"eta": 0.0}, "dpmpp-2m", {}),
        ("dpmpp-3m-sde", {"eta": 0.0}, "dpmpp-3m", {}),
        ("edm", {"churn": 0.0}, "heun", {}),
        ("deis", {"order": 1}, "ddim", {}),
        ("deis", {"variable": "rho"}, "lms", {"order": 3}),
        ("unipc", {"corrector": False}, "dpmpp-2m", {}),
        ("lambda-ddim", {"lam": 0.0}, "ddim", {}),
        ("ipndm-v", {"spacing": "trailing"}, "ipndm", {"spacing": "trailing"}),
        ("dpm-solver-2", {"multistep": True, "solver_type": "heun"}, "deis", {"variable": "log_rho", "order": 2}),
        ("dpm-solver-3", {"multistep": True, "solver_type": "heun", "exact": True}, "deis", {"variable": "log_rho"}),
    ],
)
def test_solvers_that_coincide(one, options, other, same):
    """Two derivations of one method give one table."""
    noise = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(solver, spacing="trailing", **options):
        network = mixture(pf.Schedule.linear())
        return draw(
            network,
            11,
            solver=solver,
            spacing=spacing,
            start=pf.Noise(noise),
            noise_sampler=lambda i: noise * (i + 1) / 9,
            **options,
        )

    torch.testing.assert_close(run(one, **options), run(other, **same), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_ddpm_is_ddim_at_eta_one_and_large_variance_is_beta():
    schedule = pf.Schedule.linear()
    small = pf.make_plan("ddpm", steps=1000)
    assert [row.y for row in small] == [row.y for row in pf.make_plan("ddim", steps=1000, eta=1.0)]
    large = pf.make_plan("ddpm", steps=1000, variance="large")
    betas = np.linspace(1e-4, 0.02, 1000)
    for row in large.rows[:-1]:
        assert row.y[-1] == pytest.approx(math.sqrt(betas[int(row.t)]), rel=1e-9)
    assert large.rows[-1].y[-1] == 0.0
    assert schedule.alpha(999) < 0.01


LONG = ("f-pndm", "dpm-solver-3", "nobab")  # with more calls than steps, three a step, and in phase space


def step_counts(*few, some, long):
    """Each solver's; some are slow, and the long ones `stress` but for three solvers."""
    marks = {**dict.fromkeys(few, ()), **dict.fromkeys(some, pytest.mark.slow)}
    for solver in sorted(pf.SOLVERS):
        marks |= dict.fromkeys(long, pytest.mark.slow if solver in LONG else pytest.mark.stress)
        marks |= dict.fromkeys(some, pytest.mark.stress if solver in NAMED else pytest.mark.slow)
        yield from (pytest.param(solver, steps, marks=mark) for steps, mark in marks.items())


@pytest.mark.parametrize("solver, steps", [*step_counts(1, 2, 3, some=[61], long=[1000])])
def test_any_number_of_steps(solver, steps):
    """Fewer steps than the order, non-divisors of T, as many as T: right on one point, or refused."""
    if steps < SOLVER_INFO[solver].min_steps:
        with pytest.raises(
            ValueError, match=f"steps must be at least {SOLVER_INFO[solver].min_steps} for {solver}, got {steps}"
        ):
            pf.make_plan(solver, steps=steps)
        return
    plan = pf.make_plan(solver, steps=steps)
    assert plan.nfe == SOLVER_INFO[solver].calls(steps)
    if solver in EXACT and solver != "ddim-inverse":
        *_, (row, _, _, y, _) = transported(plan, 0.7, -1.3)
        assert row.levels.y.sigma == 0 and y == pytest.approx(0.7, abs=1e-7)


@pytest.mark.parametrize("solver, steps", [*step_counts(4, 5, 7, some=[50], long=[333, 1000])])
def test_calls(solver, steps):
    """len(plan) == nfe == what the solver says of itself; nfe= finds the same plan."""
    plan = pf.make_plan(solver, steps=steps)
    info = SOLVER_INFO[solver]
    assert len(plan) == plan.nfe == info.calls(steps)
    assert pf.make_plan(solver, nfe=plan.nfe) == plan
    if info.calls_per_step > 1:
        near = f"{plan.nfe} or {plan.nfe + info.calls_per_step}"
        with pytest.raises(ValueError, match=f"nfe must be {re.escape(info.formula())} for {solver}, such as {near}"):
            pf.make_plan(solver, nfe=plan.nfe + 1)


@pytest.mark.parametrize("solver", sorted(pf.SOLVERS))
def test_slots_are_written_before_they_are_read(solver):
    plan = pf.make_plan(solver, steps=12)
    written = set()
    for row in plan.rows:
        written |= row.writes
        assert row.reads <= written
    assert plan.n_slots <= MAX_SLOTS


@pytest.mark.parametrize("solver", ["s-pndm", "f-pndm", "plms", "ipndm", "fon", "fon-rk4"])
def test_multistep_rows_are_five_reads_two_writes(solver):
    """A steady row reads y, the output and three or fewer past slots, and leaves the anchor alone."""
    row = pf.make_plan(solver, steps=50).rows[-1]
    assert row.y[0] == 0.0 and row.x == SAME_X
    assert len(row.reads) == (2 if solver == "s-pndm" else 4)


def test_table_lines():
    plan = pf.make_plan("ddim", steps=4, eta=1.0)
    lines = table.lines(plan)
    assert lines.shape == (6, table.NARROW.width)
    assert lines[:4, table.T].tolist() == [750, 500, 250, 0] and lines[4, table.T] == 0
    assert lines[:, table.HALT].tolist() == [0, 0, 0, 0, 1, 1]
    assert lines[:4, table.NOISE].tolist() == [2, 3, 4, 0]  # the step to sigma = 0 draws none
    assert lines[0, table.NARROW.y + 1] == plan.rows[0].y[1]
    start = lines[5, [table.P0, table.ENTRY_SIGMA, table.ENTRY_ALPHA, table.A0, table.C0]]
    assert start.tolist() == [plan.prologue.p0, plan.entry.sigma, plan.entry.alpha, *plan.prologue[1:]]
