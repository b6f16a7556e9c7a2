"""Options that do nothing, or mean nothing, are refused; times of lcm are training times on any schedule."""

import math

import pytest

import pndm_fast as pf

REFUSED = [
    ("dpm-solver-3", {"exact": True}, "exact must be False without multistep=True, got True"),
    ("dpm-solver-3", {"lower_order_final": True}, "lower_order_final must be None without multistep=True, got True"),
    ("dpm-solver-2", {"lower_order_final": False}, "lower_order_final must be None without multistep=True, got False"),
    ("deis", {"lower_order_final": True}, "lower_order_final must be None unless variable='log_rho', got True"),
    ("deis", {"variable": "rho", "lower_order_final": False}, "lower_order_final must be None unless"),
    ("edm", {"churn_min": 2.0, "churn_max": 1.0}, "churn_min must be at most churn_max, got 2.0 and 1.0"),
    ("lambda-ddim", {"lam": 1e5}, r"lam must be in \[-100, 100\], got 100000"),
    ("lambda-ddim", {"lam": math.nan}, r"lam must be in \[-100, 100\], got nan"),
    ("lcm", {"schedule": pf.Schedule.edm()}, "schedule must have training times for lcm, got edm"),
]


@pytest.mark.parametrize("solver, options, message", REFUSED)
def test_refused(solver, options, message):
    with pytest.raises(ValueError, match=message):
        pf.make_plan(solver, steps=6, **options)


@pytest.mark.filterwarnings("ignore:edm adds no noise")  # none of its levels is 1
@pytest.mark.parametrize(
    "solver, options",
    [
        ("dpm-solver-2", {"multistep": True, "lower_order_final": False, "final": "min"}),
        ("dpm-solver-3", {"multistep": True, "lower_order_final": True, "exact": True}),
        ("deis", {"variable": "log_rho", "lower_order_final": False}),
        ("edm", {"churn_min": 1.0, "churn_max": 1.0, "t_min": 10.0}),
        ("lambda-ddim", {"lam": -20.0}),
    ],
)
def test_accepted(solver, options):
    assert pf.make_plan(solver, steps=6, **options).nfe >= 6


@pytest.mark.filterwarnings("ignore:.* diverges in")
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("lam", [100.0, -100.0])
def test_lam_at_its_limits(lam, steps):
    """Built, or refused as too large for float32; never an overflow."""
    try:
        pf.make_plan("lambda-ddim", steps=steps, lam=lam)
    except ValueError as error:
        assert "float32" in str(error)


@pytest.mark.parametrize(
    "schedule, unit",
    [(pf.Schedule.linear(), 1), (pf.Schedule.vp(), 1000), (pf.Schedule.flow(), 1000), (pf.Schedule.flow(T=1000), 1)],
)
def test_lcm_counts_training_times(schedule, unit):
    """c_skip = d^2/(u^2 + d^2), c_out = u/sqrt(u^2 + d^2), u = 10 times the training time."""
    t = 2.0 / unit
    row = pf.make_plan("lcm", schedule, times=[t, schedule.first]).rows[0]
    assert row.y[1:3] == pytest.approx((0.25 / (400 + 0.25), 20 / math.hypot(20, 0.5)), rel=1e-12)
