"""Laws that rows obey on any grid."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pndm_fast as pf
from pndm_fast import table
from pndm_fast.plan import MAX_SLOTS

# Rows of the exponential family transport (alpha x_0 + sigma eps, eps) exactly. fon and fon-rk4 are classical
# methods, their rows are only consistent to their order; ddpm and ddim with eta add noise (the variance law).
EXACT = ("ddim", "s-pndm", "f-pndm", "plms", "ipndm")
SCHEDULES = {
    "linear": pf.Schedule.linear(),
    "scaled-linear": pf.Schedule.scaled_linear(),
    "cosine": pf.Schedule.cosine(),
    "vp": pf.Schedule.vp(),
}


@st.composite
def grids(draw, fewest=4):
    """A schedule with a random decreasing grid of it that may end at alpha = 1."""
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    schedule = SCHEDULES[name]
    last = schedule.last if name != "cosine" else 990.0  # alpha-bar is 2e-9 at 999: rounding, not the law
    fractions = draw(st.lists(st.integers(1, 10**6), min_size=fewest, max_size=12, unique=True))
    span = last - schedule.first
    times = sorted((schedule.first + span * f / 10**6 for f in fractions), reverse=True)
    end = draw(st.sampled_from([schedule.first, None]))
    return schedule, (*times, end) if end is not None else tuple(times)


def evaluate(form, x, y, slots, z=0.0):
    operands = [x, y, *slots, z]
    return sum(c * v for c, v in zip(form, operands, strict=True) if c)


def transported(plan, x0, eps):
    """Run the plan on one point whose network output is the true one; yield what each row saw and left."""
    start = plan.start
    x = y = start.alpha * x0 + start.sigma * eps
    slots = [math.nan] * MAX_SLOTS
    for row in plan.rows:
        alpha, sigma = row.levels.call
        out = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[plan.prediction]
        p, q, p2, q2, _ = row.store
        slots[row.slot] = p2 * y + q2 * (p * y + q * out)
        seen = y
        x, y = evaluate(row.x, x, y, slots), evaluate(row.y, x, y, slots)
        yield row, seen, x, y, slots[row.slot]


@settings(max_examples=60, deadline=None)
@given(grids(), st.sampled_from(EXACT), st.sampled_from(["eps", "v"]))
def test_rows_are_exact_on_one_point(grid, solver, prediction):
    schedule, times = grid
    if len(times) < 6:
        times = (*times[:-1], *np.linspace(times[-2], times[-1], 6)[1:])
    plan = pf.make_plan(solver, schedule, times=times, prediction=prediction)
    x0, eps = 0.7, -1.3
    grown = 1.0  # rounding grows with the rows' coefficients
    for i, (row, seen, x, y, slot) in enumerate(transported(plan, x0, eps)):
        grown *= max(1.0, max(map(abs, row.x)), max(map(abs, row.y)))
        for value, level in ((x, row.levels.x), (y, row.levels.y)):
            wanted = level.alpha * x0 + level.sigma * eps
            assert abs(value - wanted) <= 1e-12 * grown, (solver, i, value, wanted)
        assert slot == pytest.approx(eps, rel=1e-11 * grown)
        preview = row.preview[0] * seen + row.preview[1] * slot
        assert preview == pytest.approx(x0, abs=1e-9 * grown / row.levels.call.alpha), (solver, i)


@settings(max_examples=60, deadline=None)
@given(grids(fewest=2), st.floats(0, 1), st.sampled_from(["ddim", "ddpm"]))
def test_variance(grid, eta, solver):
    """carried sigma squared plus the noise's square is the target's: (c_y sigma + c_eps)^2 + c_z^2 = sigma_s^2."""
    schedule, times = grid
    options = {"eta": eta} if solver == "ddim" else {}
    plan = pf.make_plan(solver, schedule, times=times, **options)
    for i, row in enumerate(plan.rows):
        carried = row.y[1] * row.levels.call.sigma + row.y[2]
        target = row.levels.y.sigma
        assert math.isclose(carried**2 + row.y[-1] ** 2, target**2, rel_tol=1e-9, abs_tol=1e-12), i
        assert row.y[1] * row.levels.call.alpha == pytest.approx(row.levels.y.alpha, rel=1e-12)


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


@pytest.mark.parametrize("solver", sorted(pf.SOLVERS))
@pytest.mark.parametrize("steps", [4, 5, 7, 50, 333, 1000])
def test_calls(solver, steps):
    """len(plan) == nfe == what the solver says of itself; nfe= finds the same plan."""
    plan = pf.make_plan(solver, steps=steps)
    facts = pf.solvers.FACTS[solver]
    assert len(plan) == plan.nfe == steps + facts.extra_calls
    assert pf.make_plan(solver, nfe=plan.nfe) == plan


@pytest.mark.parametrize("solver", sorted(pf.SOLVERS))
def test_slots_are_written_before_they_are_read(solver):
    plan = pf.make_plan(solver, steps=12)
    written = set()
    for row in plan.rows:
        written.add(row.slot)
        assert row.reads <= written
    assert plan.n_slots <= MAX_SLOTS


@pytest.mark.parametrize("solver", ["s-pndm", "f-pndm", "plms", "ipndm", "fon", "fon-rk4"])
def test_multistep_rows_are_five_reads_two_writes(solver):
    """A steady row reads y, the output and three or fewer past slots, and leaves the anchor alone."""
    row = pf.make_plan(solver, steps=50).rows[-1]
    assert row.y[0] == 0.0 and row.x == tuple(pf.plan.ANCHOR)
    assert len(row.reads) == (2 if solver == "s-pndm" else 4)


def test_table_lines():
    plan = pf.make_plan("ddim", steps=4, eta=1.0)
    lines = table.lines(plan)
    assert lines.shape == (5, table.WIDTH)
    assert lines[:4, table.T].tolist() == [750, 500, 250, 0] and lines[4, table.T] == 0
    assert lines[:, table.HALT].tolist() == [0, 0, 0, 0, 1]
    assert lines[:4, table.NOISE].tolist() == [2, 3, 4, 0]  # the step to sigma = 0 draws none
    assert lines[0, table.Y + 1] == plan.rows[0].y[1]
