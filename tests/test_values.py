"""Records that are compared, or remembered by: each of their fields counts."""

import pickle
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

import pndm_fast as pf
from pndm_fast.phase_space import PSLD, Preconditioning
from pndm_fast.plan.curves import Flow, LinearBeta, Nodes, Sigma
from pndm_fast.plan.row import SAME_Y
from pndm_fast.solvers import SolverInfo
from pndm_fast.solvers.grid import GridSpec

LINEAR = pf.Schedule.linear(T=10)
PLAN = pf.make_plan("s-pndm", steps=5)
ROW = PLAN.rows[-1]
NETWORK = Preconditioning(*(lambda t: np.eye(2),) * 3)
CASES = [
    (LINEAR, {"name": "other", "first": -3.0, "last": 8.0, "floor": 1.0, "discrete": False, "curve": Sigma(),
              "spacing": "beta", "shift": 2.0, "sigma_data": 1.0}),
    (LINEAR.curve, {"first": 0.0, "values": LINEAR.curve.values * 1.1, "interp": "sigma"}),
    (LinearBeta(0.1, 20.0), {"low": 0.2, "high": 19.0}),
    (Flow(1.0), {"length": 2.0}),
    (PSLD(), {"gamma": 0.02, "nu": 4.0, "M": 1.0, "beta": 7.0, "kappa": 0.1, "jitter": 0.0, "factor": "upper",
              "time_scale": 2.0, "preconditioning": NETWORK}),
    (NETWORK, {name: abs for name in Preconditioning._fields}),
    (ROW, {"t": 1.5, "slot": 5, "y": SAME_Y, "x": SAME_Y, "levels": PLAN.rows[0].levels,
           "store": pf.OutputMap(p=1.0), "preview": (0.5, 0.5), "in_scale": 2.0, "guidance": 3.0, "model": 1,
           "ends_step": False, "second": 4, "guidance_factor": 2.0}),
    (PLAN, {"rows": PLAN.rows[:2], "solver": "other", "steps": 6, "prediction": "v",
            "prologue": pf.Prologue(2.0)}),
    (pf.Prologue(), {"p0": 2.0, "a0": 2.0, "c0": 2.0}),
    (pf.OutputMap(), {"p": 2.0, "q": 2.0, "p2": 2.0, "q2": 2.0, "clamp": 2.0}),
    (pf.Level(0.6, 0.8), {"alpha": 0.7, "sigma": 0.7}),
    (ROW.levels, {"call": pf.Level(0.1, 0.2), "x": pf.Level(0.1, 0.2), "y": pf.Level(0.1, 0.2)}),
    (GridSpec(), {"steps": 1, "nfe": 1, "times": (1.0,), "sigmas": (1.0,), "spacing": "beta", "final": "min",
                  "t_min": 1.0, "t_start": 1.0, "strength": 0.5, "integer_times": True}),
    (SolverInfo(1), {"order": 2, "min_steps": 2, "extra_calls": 1, "calls_per_step": 2, "final_calls": 1,
                     "spacing": "beta", "inner_steps": 1, "stores": "x0", "stochastic": True, "inverts": True,
                     "space": "phase", "calls_by": "eta"}),
]  # fmt: skip


def changed(record, **field):
    return replace(record, **field) if is_dataclass(record) else record._replace(**field)


@pytest.mark.parametrize("record, others", CASES, ids=lambda c: type(c).__name__)
def test_every_field_counts(record, others):
    """Equality and hash see a change of any one field that is a part of the value, and nothing else."""
    names = [f.name for f in fields(record) if f.compare] if is_dataclass(record) else list(record._fields)
    assert set(others) == set(names), "a new field needs another value here"
    same = changed(record)
    assert same == record and hash(same) == hash(record)
    for name, value in others.items():
        other = changed(record, **{name: value})
        assert other != record and hash(other) != hash(record), name


def test_what_a_plan_was_fitted_to_is_no_part_of_its_value():
    told = replace(PLAN, fitted={"better": True})
    assert told == PLAN and hash(told) == hash(PLAN) and pickle.loads(pickle.dumps(told)).fitted == told.fitted


@pytest.mark.parametrize("record", [LINEAR, PSLD(), PLAN, ROW])
def test_copies_are_equal(record):
    other = pickle.loads(pickle.dumps(record))
    assert other == record and hash(other) == hash(record)


def test_remembered_plans_are_of_their_schedule():
    """Two schedules that differ in one field alone, through pf.sample's memory of plans."""
    calls = []

    def network(x, t):
        calls.append(float(t[0]))
        return x * 0.5

    for spacing in ("karras", "trailing"):
        schedule = replace(pf.Schedule.edm(), spacing=spacing)
        pf.sample(network, 3, solver="euler", schedule=schedule, prediction="x0", shape=(1, 2))
    assert calls[1] != calls[4]


def test_a_schedule_s_table_cannot_be_changed():
    table = np.linspace(0.9, 0.1, 5)
    schedule = pf.Schedule.from_alphas_cumprod(table)
    table[:] = 0.5
    assert schedule.alpha(4) ** 2 == pytest.approx(0.1)
    with pytest.raises(ValueError, match="read-only"):
        schedule.curve.values[2] = -1.0
    assert Nodes(0.0, table) != Nodes(0.0, table * 0.9)


PROCESS = PSLD(gamma=0.0, nu=4.0, beta=(4.0, 12.0)).preconditioned(0.5)


@pytest.mark.parametrize(
    "value, shown",
    [
        (pf.make_plan("f-pndm", steps=1000), "t = 999 to 0>"),
        (pf.make_plan("conjugate", PROCESS, order=4, steps=20), "conjugate: 20 steps, 20 network calls"),
        (
            pf.make_plan("dpmpp-3m", steps=9).rows[5],
            "<Row t = 443.444, s2: from alpha 0.3654 sigma 0.9308 to alpha 0.5657 sigma 0.8246, reads y s0 s1 s2>",
        ),
        (pf.make_plan("conjugate", PROCESS, order=4, steps=20).rows[9], "reads y s0 s1 s2 s3>"),
        (
            pf.make_plan("sscs", steps=9).prologue,
            "Prologue(p0=[1 0; 0 0.5], a0=[0.755534 -0.730784; 0.182696 0.0247496], c0=",
        ),
        (pf.Prologue(), "Prologue(p0=1, a0=1, c0=0)"),
        (pf.Schedule.linear(), "<Schedule linear: vp, training times 999 to -1>"),
        (pf.Schedule.flow(3.0, 1000), "<Schedule flow: flow, times 1000 to 0, shift 3>"),
        (pf.Schedule.from_alphas_cumprod(np.linspace(0.9, 0.1, 5), name="n" * 500), "training times 4 to -1>"),
        (PROCESS, "PSLD(gamma=0.0, nu=4.0, beta=(4.0, 12.0), preconditioning=...)"),
        (PSLD(), "PSLD(gamma=0.01, nu=4.01)"),
    ],
)
def test_reprs_are_one_short_line(value, shown):
    assert shown in repr(value) and len(repr(value)) < 200 and "\n" not in repr(value)
