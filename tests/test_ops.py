"""The row operation as a torch operator."""

import subprocess
import sys

import pytest
import torch
from rowcase import assert_same, clone, random_case

import pndm_fast as pf
import pndm_fast.row.op  # registers torch.ops.pndm_fast.apply_row
from pndm_fast.row import reference, schema


def arguments(case):
    r, (out, uncond, z) = case.registers, case.calls[0]
    return *r.tensors(), r.n, r.channels, case.table, out, uncond, z


CASES = [
    random_case(1, 3, 48),
    random_case(2, 2, 7, guidance=True, net_dtype=torch.bfloat16, out_dtype=torch.bfloat16),
    random_case(3, 4, 12, channels=3, z=True, net_dtype=torch.float32),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_opcheck(case):
    # NaN marks memory that must not be read; opcheck compares with plain equality
    quiet = [a.nan_to_num() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments(case)]
    quiet[-4] = case.table  # its infinite clamps mean none
    torch.library.opcheck(torch.ops.pndm_fast.apply_row.default, tuple(quiet))


@pytest.mark.parametrize("case", CASES)
def test_the_operator_is_the_reference(case):
    assert_same(case.run(pf.ops.apply_row), case.run(reference.apply_row), pads=False)


def test_version_counters_rise():
    """A raw write that autograd does not see would give wrong gradients in silence."""
    registers = clone(CASES[0].registers)
    y = registers.y.clone().requires_grad_()
    kept = (y * registers.y.nan_to_num()).sum()
    before = {name: getattr(registers, name)._version for name in ("x", "y", "slots", "row", "t", "active")}
    pf.ops.apply_row(registers, CASES[0].table, *CASES[0].calls[0])
    assert all(getattr(registers, name)._version > version for name, version in before.items())
    scaled = registers.y.clone().requires_grad_()
    product = (scaled * registers.y).sum()
    pf.ops.apply_row(registers, CASES[0].table, *CASES[0].calls[1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    kept.backward()


def test_compile_has_no_graph_break():
    case = CASES[0]

    def three_rows(registers, outputs):
        for out, uncond, z in outputs:
            pf.ops.apply_row(registers, case.table, out * 1.0, uncond, z)
        return registers.y * 1.0

    compiled = torch.compile(three_rows, fullgraph=True, backend="aot_eager")
    ours, wanted = clone(case.registers), clone(case.registers)
    y = compiled(ours, case.calls[:3])
    assert torch.equal(y.nan_to_num(), three_rows(wanted, case.calls[:3]).nan_to_num())
    assert_same(ours, wanted, pads=False)


def test_the_schema_needs_the_standard_library_alone():
    """A build reads it where nothing is installed."""
    code = f"import runpy; print(*runpy.run_path({schema.__file__!r})['REGISTERS'])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(schema.REGISTERS)
