"""The C++ row against a plain loop over the same operands, both on one thread."""

import ctypes
import subprocess

import pytest
import torch
from speed.harness import Side, Target, contest, skip_unless_full
from speed.steps import Steps, copied

from pndm_fast.row import reference

FORMS = {
    "direct": (torch.float32, True, 1.15),
    "separate": (torch.float32, False, 1.15),
    "bf16": (torch.bfloat16, False, 1.4),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """stream.cpp, compiled."""
    source = __file__.replace("test_stream.py", "stream.cpp")
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


@pytest.mark.parametrize("elements", [196_608, 786_432, 3_145_728])
@pytest.mark.parametrize("form", FORMS)
def test_row_against_stream_loop(benchmark, request, rounds, one_thread, library, form, elements):
    if elements > 196_608:
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
