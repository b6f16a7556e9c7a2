"""The widest row of every deterministic solver against a plain loop with as many operands, both on one thread."""

import ctypes

import pytest
import torch
from speed.harness import Side, Target, contest
from speed.steps import Steps
from speed.test_stream import library  # noqa: F401

import pndm_fast as pf
from pndm_fast.plan.plan import MAX_SLOTS, SAME_X, SAME_Y
from pndm_fast.solvers import SOLVER_INFO

ELEMENTS = 196_608
BOUND = Target(1.25, at_most=True)
SOLVERS = [name for name in pf.SOLVERS if not (SOLVER_INFO[name].stochastic or SOLVER_INFO[name].inverts)]


def operands(row):
    """How many arrays a row reads, and writes."""
    x, y = row.x != SAME_X, row.y != SAME_Y
    read = [a or b for a, b in zip(row.x if x else row.y, row.y if y else row.x, strict=True)]
    slots = sum(bool(read[2 + k]) for k in range(MAX_SLOTS) if k != row.slot)
    return 1 + bool(read[0]) + bool(read[1] or row.store.p or row.store.p2) + slots, 1 + x + y


def widest(plan):
    """The index of the row with most operands."""
    return max(range(plan.nfe), key=lambda i: sum(operands(plan.rows[i])))


@pytest.mark.parametrize("solver", SOLVERS)
def test_widest_row(benchmark, rounds, one_thread, library, solver):  # noqa: F811
    plan = pf.make_plan(solver, steps=20)
    row = widest(plan)
    reads, writes = operands(plan.rows[row])
    steps = Steps((1, ELEMENTS), plan=plan, row=row)
    steps.check(rows=3)
    arrays = [torch.randn(ELEMENTS) for _ in range(reads + writes)]
    pointers = [
        (ctypes.c_void_p * len(part))(*(t.data_ptr() for t in part)) for part in (arrays[:reads], arrays[reads:])
    ]
    weights = (ctypes.c_float * reads)(*[1 / reads] * reads)

    def stream(calls):
        for _ in range(calls):
            assert library.any(reads, writes, ctypes.c_int64(ELEMENTS), weights, *pointers) == 0

    moved = 4 * ELEMENTS * (reads + writes)
    contest(
        benchmark, steps.side(), {"stream": Side(stream)}, BOUND, rounds=rounds, moved=moved, reads=reads, writes=writes
    )
