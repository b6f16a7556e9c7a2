"""C++ rows against a plain loop over as many operands, both on one thread."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from speed.harness import Side, Target, contest, skip_unless_full
from speed.steps import Steps, copied

import pndm_fast as pf
from pndm_fast.plan.row import MAX_SLOTS, SAME_X, SAME_Y
from pndm_fast.row import reference
from pndm_fast.solvers import SOLVER_INFO

ELEMENTS = 196_608
BOUND = Target(1.25, at_most=True)
SOLVERS = [name for name in pf.SOLVERS if not (SOLVER_INFO[name].stochastic or SOLVER_INFO[name].inverts)]
FORMS = {
    "direct": (torch.float32, True, 1.15),
    "separate": (torch.float32, False, 1.15),
    "bf16": (torch.bfloat16, False, 1.4),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """stream.cpp, compiled."""
    source = str(Path(__file__).with_name("stream.cpp"))
    built = tmp_path_factory.mktemp("stream") / "stream.so"
    command = ["g++", "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", source, "-o", str(built)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(built))


class Stream:
    """The loop on the registers of a `Steps`, slots rotating as its rows do."""

    def __init__(self, library, steps, registers):
        r = registers
        name = str(steps.out.dtype).removeprefix("torch.")
        self.call = getattr(library, f"{'direct' if r.net_in is None else 'separate'}_{name}")
        slots = [ctypes.c_void_p(slot.data_ptr()) for slot in r.slots]
        first = steps.newest_slot()
        weights = (ctypes.c_float * 5)(*steps.weights())
        net_in = ctypes.c_void_p(None if r.net_in is None else r.net_in.data_ptr())
        self.arguments = [
            (
                ctypes.c_int64(r.batch * r.n),
                weights,
                ctypes.c_void_p(r.y.data_ptr()),
                ctypes.c_void_p(steps.out.data_ptr()),
                *(slots[(newest - age) % 4] for age in range(4)),
                net_in,
            )
            for newest in range(first, first + 4)
        ]

    def run(self, calls):
        for i in range(calls):
            self.call(*self.arguments[i % 4])


def check_stream(library, steps):
    """One row of the loop is the reference's, up to the contractions that -march=native allows."""
    steps.reset()
    expected, got = copied(steps.registers), copied(steps.registers)
    reference.apply_row(expected, steps.table, steps.out.reshape(steps.batch, -1))
    Stream(library, steps, got).run(1)
    torch.testing.assert_close(got.y, expected.y, atol=1e-5, rtol=0)
    assert torch.equal(got.slots, expected.slots)
    if got.net_in is not None:
        torch.testing.assert_close(got.net_in, expected.net_in, atol=1e-5, rtol=2**-7)


@pytest.mark.parametrize("elements", [ELEMENTS, 786_432, 3_145_728])
@pytest.mark.parametrize("form", FORMS)
def test_row_against_stream_loop(benchmark, request, rounds, one_thread, library, form, elements):
    if elements > ELEMENTS:
        skip_unless_full(request, benchmark)
    network, direct, bound = FORMS[form]
    steps = Steps((1, elements), network, direct=direct)
    steps.check(rows=1)
    check_stream(library, steps)
    # the same memory on both sides: where pages lie changes a bandwidth by more than what is compared here
    theirs = Side(Stream(library, steps, steps.registers).run, steps.reset)
    contest(
        benchmark, steps.side(), {"stream": theirs}, Target(bound, at_most=True), rounds=rounds, moved=steps.moved()
    )


def operands(row):
    """How many arrays a row reads, and writes."""
    x, y = row.x != SAME_X, row.y != SAME_Y
    read = [a or b for a, b in zip(row.x if x else row.y, row.y if y else row.x, strict=True)]
    slots = sum(bool(read[2 + k]) for k in range(MAX_SLOTS) if k != row.slot)
    return 1 + bool(read[0]) + bool(read[1] or row.store.p or row.store.p2) + slots, 1 + x + y


def keeps_both(solver):
    """Whether a row stores the unconditional output too."""
    return any(row.second is not None for row in pf.make_plan(solver, steps=20).rows)


def widest(plan):
    """The index of the row with most operands."""
    return max(range(plan.nfe), key=lambda i: sum(operands(plan.rows[i])))


# rows that keep a second output (CFG++) run guided alone, and this loop has one network output
@pytest.mark.parametrize("solver", [name for name in SOLVERS if not keeps_both(name)])
def test_widest_row(benchmark, rounds, one_thread, library, solver):
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

    more = {"moved": 4 * ELEMENTS * (reads + writes), "reads": reads, "writes": writes}
    contest(benchmark, steps.side(), {"stream": Side(stream)}, BOUND, rounds=rounds, **more)
