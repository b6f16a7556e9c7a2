"""The Triton kernel equals `reference`, bit for bit: on the GPU, or in Triton's interpreter where there is none."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from pndm_fast.kernels import apply_row
from pndm_fast.kernels.apply_row import BLOCK, WIDE_BLOCK, _apply_row_kernel, _place
from rowcase import Case, assert_same, clone, random_case
from triton.runtime.interpreter import InterpreterBuilder

from pndm_fast.row import reference, table
from pndm_fast.row.noise import normals
from pndm_fast.row.registers import NEVER
from pndm_fast.row.schema import REGISTERS
from pndm_fast.row.table import NARROW, PHASE, WIDE

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # interpreter

DTYPES = {
    "fp32": dict(),
    "fp32-input": dict(net_dtype=F32),
    "fp16": dict(out_dtype=F16, net_dtype=F16),
    "bf16": dict(out_dtype=BF16, net_dtype=BF16),
    "bf16-slots": dict(out_dtype=BF16, net_dtype=BF16, slot_dtype=BF16),
    "fp16-slots": dict(out_dtype=F16, slot_dtype=F16),
    "fp32-bf16-slots": dict(slot_dtype=BF16),
}


def poison(r, data):
    """NaN in all that the samples' next rows must not read."""
    for b, row in enumerate(r.row.tolist()):
        line = data[row]
        if line[table.HALT]:
            continue
        reads, components = read_by(line, r), table.layout_of(data).components
        for k, values in enumerate((r.x[b], r.y[b], *r.slots[:, b])):
            for j, component in enumerate(values[: r.n].chunk(components)):
                if not reads[k, j]:
                    component.fill_(torch.nan)


def read_by(line, r):
    """[operand, component]: whether the row reads it; operands are x, y, the slots and z."""
    layout = table.layout_of(line[None])
    components = layout.components

    def takes(first, count=1):  # from component j of count operands
        begin = layout.column(first)
        return (line[begin : begin + count * components**2].view(count, components, components) != 0).any(dim=1)

    reads = torch.zeros(layout.operands, components, dtype=torch.bool)
    for first, written in ((table.X, table.WRITE_X), (layout.y, table.WRITE_Y)):
        if line[written]:
            reads |= takes(first, layout.operands)
    reads[1] |= takes(table.P)[0] | takes(table.P2)[0]
    if r.net_in is not None and not line[table.WRITE_Y]:
        reads[1] = True
    for slot in written_by(line):
        reads[2 + slot] = False  # overwritten before it is read
    reads[-1] &= line[table.NOISE] != 0
    return reads


def written_by(line):
    """The slots that the row writes, where the unconditional output is given."""
    second = table.layout_of(line[None]).second
    return {int(line[table.SLOT]), *([int(line[second]) - 1] if second and line[second] else ())}


def compare(case: Case, device: str, poisoned: bool = False):
    """Run the kernel beside the reference and compare after every row."""
    expected, calls, data = clone(case.registers), case.calls, case.table.to(device)
    got = clone(case.to(device).registers)
    for call in calls:
        if poisoned:
            before = clone(expected)
            poison(expected, case.table)
            got = clone(Case(expected, case.table, ()).to(device).registers)
        reference.apply_row(expected, case.table, *call)
        apply_row(got, data, *(None if operand is None else operand.to(device) for operand in call))
        assert_same(got, expected, pads=False)
        if poisoned:
            expected = _restore(expected, before)
    return got


def _restore(after, before):
    """Numbers again where `poison` put NaN, so that later rows still compare numbers."""
    for name in ("x", "y", "slots"):
        a, b = getattr(after, name), getattr(before, name)
        a.copy_(torch.where(a.isnan(), b, a))
    return after


def pairs(sizes):
    """(dtypes, size, guided): every dtype at every size, guided and not in turn."""
    return [(name, *size, (i + j) % 2) for i, name in enumerate(DTYPES) for j, size in enumerate(sizes)]


@pytest.mark.slow
@pytest.mark.parametrize("name, n, batch, guidance", pairs([(1, 2), (7, 3), (784, 2), (2100, 1)]))
def test_equals_the_reference(name, n, batch, guidance, triton_device):
    case = random_case(len(name) + 100 * n, batch, n, guidance=bool(guidance), calls=2, **DTYPES[name])
    compare(case, triton_device)


@pytest.mark.slow
@pytest.mark.parametrize("layout, n, channels, guidance", [
    (NARROW, 3072, 3, False), (NARROW, 784, 4, True), (NARROW, 2104, 8, True), (NARROW, 21, 7, False),
    (WIDE, 784, 4, True), (WIDE, 21, 7, False),
])  # fmt: skip
def test_channels_last(layout, n, channels, guidance, triton_device):
    """Every row draws noise, which is numbered as in [C, n / C]."""
    case = random_case(n, 2, n, slots=layout.slots, channels=channels, guidance=guidance, calls=1)
    case.table[:, [table.NOISE, table.WRITE_Y, layout.end - 1]] = torch.tensor([7.0, 1.0, 0.5])
    compare(case, triton_device)


@pytest.mark.parametrize("seed", range(26))
def test_random_rows(seed, triton_device):
    """Halt rows beside live ones, bad outputs, z from a pointer, few slots or many, integer times."""
    wide = seed >= 20
    case = random_case(
        seed, 1 + seed % 3, (33, 1000, 1024, 1040)[seed % 4], z=seed % 3 == 0, guidance=seed % 2 == 0,
        time_dtype=(F32, torch.int64)[seed // 2 % 2], slots=1 + seed % 6 + 6 * wide, halt_some=seed % 4 > 1,
        bad=seed % 5 == 0, calls=3, second=wide and seed % 2 == 0, **DTYPES[list(DTYPES)[seed % len(DTYPES)]],
    )  # fmt: skip
    compare(case, triton_device)


@pytest.mark.slow
@pytest.mark.parametrize("n, batch", [
    (1, 2), (784, 1), *(pytest.param(*size, marks=pytest.mark.stress) for size in [(7, 3), (2 * WIDE_BLOCK + 40, 2)]),
])  # fmt: skip
@pytest.mark.parametrize("name, slots, guidance, second", [
    ("fp32", 7, True, True), ("fp32-input", 10, True, False), ("fp16", 12, True, True), ("bf16", 10, False, False),
    ("bf16-slots", 12, True, True), ("fp16-slots", 7, False, False), ("fp32-bf16-slots", 2, True, True),
])  # fmt: skip
def test_wide_lines_equal_the_reference(name, slots, guidance, second, n, batch, triton_device):
    """More slots than six, and guided rows that keep the unconditional output too."""
    case = random_case(
        len(name) + n, batch, n, slots=slots, guidance=guidance, second=second, calls=1 + (n < 100), **DTYPES[name]
    )
    assert table.layout_of(case.table) is WIDE
    compare(case, triton_device)


@pytest.mark.parametrize("slots", [2, 6, 12])
@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("bad", [None, "uncond"])
def test_the_unconditional_output_is_kept(slots, scale, bad, triton_device):
    """In the last slot, also of a row that guides nothing; where it is not finite, it marks the row."""
    case = random_case(slots, 2, 40, slots=slots, second=True, guidance=True, calls=1, slot_dtype=BF16)
    case.registers.row.zero_()
    line = case.table[0]
    line[[table.GUIDANCE, table.SLOT, WIDE.second, table.WRITE_Y]] = torch.tensor([scale, 0.0, slots, 1.0])
    line[WIDE.y : WIDE.end] = 0.0
    line[WIDE.y + 2 + slots - 1] = 0.5
    [(out, uncond, _)] = case.calls
    if bad:
        uncond[1, 3] = torch.inf
    got = compare(case, triton_device)
    kept = got.slots[slots - 1, :, :40].float()
    assert torch.equal(got.y[:, :40], 0.5 * kept)
    assert got.first_bad.tolist() == [NEVER, 0 if bad else NEVER]


def test_a_wide_row_that_neither_guides_nor_keeps_owes_nothing_to_the_unconditional_output(triton_device):
    case = random_case(1, 2, 40, slots=12, guidance=True, calls=1)
    case.table[:, table.GUIDANCE] = 1.0
    case.calls[0][1].fill_(torch.nan)
    assert compare(case, triton_device).first_bad.tolist() == [NEVER, NEVER]


@pytest.mark.slow
@pytest.mark.parametrize("name, n, batch, guidance", pairs([(2, 2), (14, 2), (784, 1), (2100, 1)]))
def test_two_components_equal_the_reference(name, n, batch, guidance, triton_device):
    """Position and momentum: of one element, of odd length, of a multiple of 4, and of more than a block."""
    case = random_case(
        len(name) + n, batch, n, components=2, guidance=bool(guidance), calls=1 + (n < 1000), **DTYPES[name]
    )
    compare(case, triton_device)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_two_components_of_random_rows(seed, triton_device):
    case = random_case(
        seed, 1 + seed % 3, (34, 1000, 1024, 1046)[seed % 4], components=2, z=seed % 3 == 0, guidance=seed % 2 == 0,
        time_dtype=(F32, torch.int64)[seed // 2 % 2], slots=1 + seed % 6, halt_some=seed % 4 > 1, bad=seed % 5 == 0,
        calls=2, **DTYPES[list(DTYPES)[seed % len(DTYPES)]],
    )  # fmt: skip
    compare(case, triton_device)


@pytest.mark.slow
@pytest.mark.parametrize("block", [((1, 0), (0, 1)), ((0, 0), (0, 1)), ((1, 0), (0, 0)), ((0, 1), (1, 0))])
@pytest.mark.parametrize("n", [2, 10, 14, 1032, 1046])
def test_noise_is_numbered_over_both_components(n, block, triton_device):
    """A momentum's first normal is the middle of a counter where n / 2 is no multiple of 4."""
    case = random_case(1, 2, n, components=2, calls=1)
    line = case.table[case.registers.row[0]]
    line[table.HALT], line[table.NOISE], line[table.WRITE_X], line[table.WRITE_Y] = 0, 7, 0, 1
    case.registers.row[1] = case.registers.row[0]
    z = PHASE.column(PHASE.end - 1)
    line[PHASE.column(PHASE.y) : z] = 0
    line[z : z + 4] = torch.tensor(block).flatten()
    got = compare(case, triton_device).y[:, :n].cpu()
    position, momentum = normals(case.registers.seeds, 7, n).chunk(2, dim=1)
    (a, b), (c, d) = block
    assert torch.equal(got, torch.cat([a * position + b * momentum, c * position + d * momentum], dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("layout", [NARROW, WIDE, PHASE], ids=["narrow", "wide", "phase"])
def test_what_a_row_does_not_use_may_hold_nan(seed, layout, triton_device):
    case = random_case(
        seed, 2 // layout.components, 100, net_dtype=(None, F16)[seed % 2], z=seed % 3 == 0,
        calls=6 if layout is not WIDE else 2, components=layout.components, slots=layout.slots,
        guidance=layout is WIDE, second=layout is WIDE,
    )  # fmt: skip
    compare(case, triton_device, poisoned=True)


@pytest.fixture
def accesses(monkeypatch):
    """What Triton's interpreter loads and stores: two lists of addresses, without what is masked off."""
    loads, stores = [], []

    def recording(addresses, method, mask):
        def call(self, ptrs, *arguments):
            addresses.append(ptrs.data[arguments[mask].data])
            return method(self, ptrs, *arguments)

        return call

    for addresses, name, mask in ((loads, "create_masked_load", 0), (stores, "create_masked_store", 1)):
        monkeypatch.setattr(InterpreterBuilder, name, recording(addresses, getattr(InterpreterBuilder, name), mask))
    return loads, stores


def times(addresses, tensor):
    """How often each element of a tensor is among the addresses."""
    offsets = (np.concatenate(addresses).astype(np.int64) - tensor.data_ptr()) // tensor.element_size()
    inside = offsets[(offsets >= 0) & (offsets < tensor.numel())]
    return torch.from_numpy(np.bincount(inside, minlength=tensor.numel())).view(tensor.shape)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what Triton's interpreter accesses")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout, n", [(NARROW, 1500), (WIDE, 700), (PHASE, 1128), (PHASE, 30)])
def test_a_row_is_one_pass_over_what_it_needs(seed, layout, n, accesses):
    case = random_case(
        seed, 2, n, components=layout.components, slots=layout.slots, second=layout is WIDE, z=True, guidance=True,
        net_dtype=(None, F32)[seed % 2], calls=3,
    )  # fmt: skip
    r = clone(case.registers)
    loads, stores = accesses
    for out, uncond, z in case.calls:
        rows = r.row.tolist()
        loads.clear(), stores.clear()
        apply_row(r, case.table, out, uncond, z)
        for b, row in enumerate(rows):
            if case.table[row, table.HALT]:
                continue
            line = case.table[row]
            for read, operand in zip(read_by(line, r), (r.x, r.y, *r.slots, z), strict=True):
                split = times(loads, operand)[b, :n].chunk(layout.components)
                assert [set(component.tolist()) for component in split] == [{int(needed)} for needed in read]
            assert (times(loads, out)[b] == 1).all() and (times(loads, uncond)[b] == 1).all()
            slots = written_by(line)
            written = [line[table.WRITE_X], line[table.WRITE_Y], *(k in slots for k in range(len(r.slots)))]
            for count, buffer in zip(written, (r.x, r.y, *r.slots), strict=True):
                assert (times(stores, buffer)[b, :n] == int(count)).all()
            if r.net_in is not None:
                assert (times(stores, r.net_in)[[b, r.batch + b]] == 1).all()


@pytest.mark.slow
def test_samples_run_to_their_halts_and_stay(triton_device):
    case = random_case(5, 4, 2500, halt_some=True, calls=4, net_dtype=F32)
    got = compare(replace(case, calls=case.calls + case.calls), triton_device)
    assert case.table[got.row.long().cpu(), table.HALT].all()
    assert got.active.tolist() == [0]
    assert got.done.tolist() == [0] * 4


@pytest.mark.slow
def test_many_programs_per_sample(triton_device):
    """One of many programs that read `row` late would execute the next row; the interpreter runs them in turn."""
    n = 65_537 if triton_device == "cuda" else 4097
    compare(random_case(11, 2, n, calls=2), triton_device)
    compare(random_case(12, 1, n - 1, calls=1, components=2), triton_device)


@pytest.mark.slow
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_the_first_bad_row_is_kept(value, dtype, triton_device):
    case = random_case(2, 3, 1500, out_dtype=dtype, guidance=True, calls=3)
    case.registers.row.copy_(torch.tensor([0, 1, 0]))
    (_, (second, _, _), (third, uncond, _)) = case.calls
    second[1, 1499] = value
    third[1, 0] = uncond[2, 7] = value
    assert compare(case, triton_device).first_bad.tolist() == [NEVER, 2, 2]


def test_clamp_keeps_nan(triton_device):
    case = random_case(3, 1, 100, calls=1)
    case.table[:, table.CLAMP] = 0.5
    case.calls[0][0][0, 5] = torch.nan
    got = compare(case, triton_device)
    slot = int(case.table[case.registers.row[0], table.SLOT])
    assert got.slots[slot, 0, :100].isnan().nonzero().flatten().tolist() == [5]


@triton.jit
def _locate(out_ptr, pid, stride, BLOCK: tl.constexpr):
    b, start, _ = _place(pid, stride, BLOCK)
    tl.store(out_ptr, b)
    tl.store(out_ptr + 1, b * stride + start)


@pytest.mark.parametrize("pid, stride", [(2**31 - 3, 2**20 + 16), (70_001, 2**30), (2**21 + 3, 2**31 - 16), (5, 16)])
def test_offsets_past_2_31_elements(pid, stride, triton_device):
    """`test_machine_code` checks that the kernel adds nothing narrower than this to a pointer."""
    out = torch.zeros(2, dtype=torch.int64, device=triton_device)
    _locate[(1,)](out, pid, stride, BLOCK)
    blocks = -(-stride // BLOCK)
    assert out.tolist() == [pid // blocks, pid // blocks * stride + pid % blocks * BLOCK]


def test_errors(triton_device, monkeypatch):
    on_cpu = random_case(1, 3, 784)
    case = on_cpu.to(triton_device)
    r, data, out = case.registers, case.table, case.calls[0][0]
    with pytest.raises(ValueError, match=r"out must be contiguous \[3, 784\].*got \[3, 783\]"):
        apply_row(r, data, out[:, 1:])
    with pytest.raises(ValueError, match="uncond must be contiguous"):
        apply_row(r, data, out, out.T.contiguous().T)
    with pytest.raises(ValueError, match="x must be float32 .*got torch.float64"):
        apply_row(replace(r, x=r.x.double()), data, out)
    blocks = torch.zeros(3, PHASE.width, device=triton_device)
    with pytest.raises(ValueError, match="matrices must have an even n and channels 1, got 783 and 1"):
        apply_row(replace(r, n=783), blocks, out[:, 1:].contiguous())
    with pytest.raises(ValueError, match="matrices must have an even n and channels 1, got 784 and 4"):
        apply_row(replace(r, channels=4), blocks, out)
    monkeypatch.setattr(sys.modules[apply_row.__module__], "INTERPRETED", tl.constexpr(False))
    with pytest.raises(ValueError, match="x must be on a CUDA device .*got cpu"):
        apply_row(on_cpu.registers, on_cpu.table, on_cpu.calls[0][0])


def test_the_kernel_takes_the_registers_in_the_schema_s_order():
    names = _apply_row_kernel.arg_names[: len(REGISTERS)]
    assert names == [f"{name}_ptr" for name in REGISTERS]


def test_kernels_is_no_top_level_package():
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=root, capture_output=True, text=True)
    assert "ImportError" in done.stderr and "pndm_fast.kernels" in done.stderr
