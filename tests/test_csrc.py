"""The C++ row operation equals `reference`, bit for bit, on every instruction set of this machine."""

import threading

import numpy as np
import pytest
import torch
from rowcase import assert_equal_bits, assert_same, clone, random_case, shapes

from pndm_fast import _C
from pndm_fast.row import cpp, noise, reference, table
from pndm_fast.row.registers import NEVER

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SETS = _C.instruction_sets()
LAYOUTS = tuple(table.LAYOUTS.values())
# rows of wide lines: options of `random_case`
WIDE = [
    *({"slots": slots} for slots in (7, 10, 12)),
    *({"slots": k, "second": True, "guidance": True} for k in (2, 6, 12)),
]


@pytest.fixture(autouse=True)
def best_instruction_set():
    yield
    _C.instruction_sets(SETS[0])


def apply_row(r, plans, out, uncond=None, z=None, threads=1):
    run = _C.RowOp(**cpp.arguments(r, plans, out.dtype, threads))
    assert run(out.data_ptr(), 0 if uncond is None else uncond.data_ptr(), 0 if z is None else z.data_ptr())


def assert_matches(case):
    """On every instruction set."""
    wanted = case.run(reference.apply_row)
    for name in each_set():
        assert_same(case.run(apply_row), wanted, where=f"{name}: ")


def each_set():
    for name in SETS:
        _C.instruction_sets(name)
        yield name


def test_columns_are_those_of_the_table():
    ours = {key: value for key, value in vars(table).items() if key.isupper() and isinstance(value, int)}
    others = ("FIRST_ROW", "MAX_SLOTS", "PHASE_SLOTS")
    assert _C.columns == {key: value for key, value in ours.items() if key not in others}
    names = ("components", "slots", "second", "y", "end")
    layouts = {layout.width: {name: getattr(layout, name) for name in names} for layout in LAYOUTS}
    assert _C.layouts == layouts
    for layout in LAYOUTS:
        for first in range(table.COEFFICIENTS, layout.end):
            assert _C.column(first, layout.components) == layout.column(first)


# every pair of an output's, a slot's and a network input's dtype: the row has loops for two of them at most
PAIRS = [
    ((F32, F16, BF16)[(i + j) % 3], slot, network)
    for i, network in enumerate((None, F32, F16, BF16))
    for j, slot in enumerate((F32, F16, BF16))
]


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("out_dtype, slot_dtype, net_dtype", PAIRS, ids=str)
def test_every_dtype(out_dtype, slot_dtype, net_dtype, components):
    dtypes = {"out_dtype": out_dtype, "slot_dtype": slot_dtype, "net_dtype": net_dtype, "components": components}
    for seed in range(4 * components):
        guidance, z = bool(seed & 1), seed % 4 == 3
        time_dtype = torch.int64 if seed & 1 else F32
        assert_matches(random_case(seed, 3, 784, guidance=guidance, z=z, time_dtype=time_dtype, **dtypes))


@pytest.mark.parametrize("batch, n", [*shapes(), (4, 1024), (2, 1025)], ids=str)
def test_every_size(batch, n):
    for seed in range(6):
        options = {"guidance": bool(seed & 1), "slots": 1 + seed, "halt_some": seed > 2}
        assert_matches(random_case(seed, batch, n, net_dtype=BF16, out_dtype=F16, **options))


# components of one element, of an odd number, of more than one tile, and of more tiles than threads
@pytest.mark.parametrize("batch, n", [(1, 2), (3, 14), (5, 784), (4, 1024), (2, 1026), (2, 65_538)], ids=str)
def test_two_components_of_every_size(batch, n):
    for seed in range(8):
        options = {"guidance": bool(seed & 1), "slots": 1 + seed % 6, "halt_some": seed % 4 > 1, "z": seed % 5 == 4}
        assert_matches(random_case(seed, batch, n, components=2, net_dtype=F32, **options))


@pytest.mark.parametrize("out_dtype, slot_dtype, net_dtype", PAIRS, ids=str)
def test_wide_lines_of_every_dtype(out_dtype, slot_dtype, net_dtype):
    dtypes = {"out_dtype": out_dtype, "slot_dtype": slot_dtype, "net_dtype": net_dtype}
    for seed, options in enumerate(WIDE):
        time_dtype = torch.int64 if seed & 1 else F32
        assert_matches(random_case(seed, 3, 784, z=seed % 4 == 3, time_dtype=time_dtype, **dtypes, **options))


@pytest.mark.parametrize("options", WIDE, ids=str)
@pytest.mark.parametrize("batch, n", [*shapes(), (2, 1025)], ids=str)
def test_wide_lines_of_every_size(batch, n, options):
    for seed in range(2):
        assert_matches(random_case(seed, batch, n, net_dtype=BF16, calls=3, halt_some=seed == 1, **options))


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("reads", range(5, 13))
def test_rows_that_read_many_slots(reads, second, dtype):
    """One loop adds six of them, and a second one the rest; no sum is -0."""
    for seed in range(6):
        options = {"slot_dtype": dtype, "out_dtype": dtype, "second": second, "guidance": second, "z": seed == 3}
        case = random_case(seed, 2, 1300, slots=12, calls=2, **options)
        r, outputs = case.registers, [tensor for call in case.calls for tensor in call[:2] if tensor is not None]
        for tensor in (r.x, r.y, r.slots):
            tensor[..., : r.n] = torch.from_numpy(np.random.default_rng(seed).standard_normal(r.n))
        for tensor in (r.x, r.y, r.slots, *outputs):
            tensor[..., :99] = -0.0
        read_slots(case.table, np.random.default_rng(seed), reads, steady=seed < 3)
        assert_matches(case)


def read_slots(lines, rng, reads, steady):
    """All lines take `reads` of twelve slots; those of steady ones are what the network said, and only Y is written."""
    for line in lines:
        if steady:
            line[[table.WRITE_X, table.WRITE_Y, table.GUIDANCE, table.CLAMP]] = torch.tensor([0, 1, 1, torch.inf])
            line[[table.P, table.Q, table.P2, table.Q2]] = torch.tensor([0.0, 1, 0, 1])
            line[[table.WIDE.y, table.WIDE.y + 1]] = torch.tensor([1.0, 0])
        for first in (table.X, table.WIDE.y):
            line[first + 2 : first + 14] = 0.0
            line[first + 2 + rng.permutation(12)[:reads]] = torch.from_numpy(rng.uniform(0.1, 1, reads)).float()


@pytest.mark.parametrize("components, slots", [(1, 6), (1, 12), (2, 6)])
def test_x_and_y_of_one_value(components, slots):
    """What a row gives to both registers is computed once."""
    for seed in range(6):
        case = random_case(seed, 2, 1300, components=components, slots=slots, calls=2, z=bool(seed & 1))
        layout = table.layout_of(case.table)
        first, last = layout.column(table.X), layout.column(layout.y)
        case.table[:, first:last] = case.table[:, last : 2 * last - first]
        case.table[:, [table.WRITE_X, table.WRITE_Y]] = 1.0
        assert_matches(case)


@pytest.mark.parametrize("net_dtype", [None, F32, BF16], ids=str)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("slots", range(1, 7))
def test_two_components_of_raw_outputs(slots, dtype, net_dtype):
    """The usual row: the slot is the output, and Y takes full matrices of the state and of all slots, and noise."""
    rng = np.random.default_rng(slots)
    case = random_case(
        slots, 2, 1300, components=2, slots=slots, slot_dtype=dtype, out_dtype=dtype, net_dtype=net_dtype
    )
    case.registers.slots.copy_(torch.from_numpy(rng.standard_normal(case.registers.slots.shape)))
    case.table[:, table.COEFFICIENTS :] = 0.0
    case.table[:, [table.WRITE_X, table.WRITE_Y, table.GUIDANCE, table.CLAMP]] = torch.tensor([0, 1, 1, torch.inf])
    for first, value in ((table.Q, np.eye(2)), (table.Q2, np.eye(2)), (table.IN_SCALE, rng.uniform(-1, 1, (2, 2)))):
        put(case.table, first, value)
    for k in (*range(1, 2 + slots), table.PHASE.operands - 1):
        put(case.table, table.PHASE.y + k, rng.uniform(-1, 1, (2, 2)))
    assert_matches(case)


def put(lines, first, matrix):
    """One matrix in all lines."""
    at = table.PHASE.column(first)
    lines[:, at : at + 4] = torch.from_numpy(matrix).float().flatten()


@pytest.mark.parametrize("channels, n", [(3, 3 * 700), (4, 4 * 33), (320, 320 * 9), (5, 5)])
def test_channels_last_numbers_elements_logically(channels, n):
    for seed in range(4):
        assert_matches(random_case(seed, 2, n, channels=channels))
    for options in WIDE[1::2]:
        assert_matches(random_case(4, 2, n, channels=channels, **options))


@pytest.mark.parametrize("options", [{"components": 1}, {"components": 2}, *WIDE[2:4]], ids=str)
def test_not_finite_outputs_are_found_and_survive_the_clamp(options):
    found = 0
    for seed in range(24):
        dtype = (F32, F16, BF16)[seed % 3]
        case = random_case(
            seed, 3, 784, out_dtype=dtype, slot_dtype=dtype, bad=True, **{"guidance": bool(seed & 1)} | options
        )
        assert_matches(case)
        found += int((case.run(apply_row).first_bad != NEVER).sum())
    assert found > 20


@pytest.mark.parametrize("n, channels", [(1, 1), (5, 1), (65_537, 1), (3 * 1111, 3), (1 << 18, 1)])
def test_normals_are_the_reference_s(n, channels):
    seeds = noise.seed_tensor([2**64 - 1, 0, 2**63, 12345])
    for index in (0, 1, 2, 65_537):
        wanted = noise.normals(seeds, index, n, channels)
        for name in each_set():
            out = torch.full((4, n + 3), torch.nan)
            _C.normals(out.data_ptr(), seeds.data_ptr(), 4, index, n, n + 3, channels)
            assert_equal_bits(out[:, :n].contiguous(), wanted, name)
            assert out[:, n:].isnan().all(), name


def convert(values, dtype):
    """One row whose network input is `values`, rounded to dtype; y takes `values` from the output."""
    case = random_case(0, 1, values.numel(), net_dtype=dtype, slots=1)
    line = torch.zeros(2, table.NARROW.width)
    line[0, [table.Q, table.Q2, table.CLAMP, table.WRITE_Y, table.NARROW.y + 2]] = torch.tensor([1, 1, torch.inf, 1, 1])
    line[1, [table.HALT, table.IN_SCALE]] = 1.0
    r = clone(case.registers)
    r.row.zero_()
    apply_row(r, line, values.view(1, -1))
    return r.y[0, : r.n], r.net_in[0]


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_widening_is_exact_for_all_values(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for name in each_set():
        wide, again = convert(every, dtype)
        assert_equal_bits(wide, every.float() + 0.0, name)  # a sum that starts at zero has no -0
        assert_equal_bits(again, (every.float() + 0.0).to(dtype), name)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_narrowing_rounds_to_nearest_even(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    above = torch.nextafter(every, torch.tensor(torch.inf, dtype=dtype))
    middle = ((every.double() + above.double()) / 2).float()
    rng = np.random.default_rng(0)
    anything = torch.from_numpy(rng.integers(-(2**31), 2**31, 1 << 18).astype(np.int32)).view(F32)
    values = torch.cat([middle, bits_around(middle, 1), bits_around(middle, -1), anything])
    for name in each_set():
        assert_equal_bits(convert(values, dtype)[1], (values + 0.0).to(dtype), name)


def bits_around(values, step):
    return (values.view(torch.int32) + step).view(F32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, n", [({}, 1_500_001), ({"components": 2}, 1_500_002), (WIDE[-1], 1_500_001)], ids=str
)
@pytest.mark.skipif(not cpp.share_threads(), reason="torch has no OpenMP runtime here")
def test_threads_do_not_change_the_bits(options, n):
    case = random_case(5, 3, n, **{"guidance": True} | options, net_dtype=F16, calls=2, bad=True)
    one = case.run(apply_row)
    for threads in (2, 3, 64):
        assert_same(case.run(lambda *given, count=threads: apply_row(*given, threads=count)), one)


def test_runs_in_several_python_threads():
    cases = [random_case(seed, 2, 65_537) for seed in range(4)]
    results = [None] * 4
    workers = [threading.Thread(target=lambda i=i: results.__setitem__(i, cases[i].run(apply_row))) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for case, result in zip(cases, results, strict=True):
        assert_same(result, case.run(reference.apply_row))


def test_an_output_in_our_own_memory_is_refused_and_nothing_changes():
    case = random_case(1, 2, 784, net_dtype=F32, guidance=True)
    r, before = case.registers, clone(case.registers)
    run = _C.RowOp(**cpp.arguments(r, case.table, F32, 1))
    elsewhere = torch.zeros(2, 784)
    for own in (*r.tensors(), case.table):
        last = own.data_ptr() + own.nbytes - 1
        for address in (own.data_ptr(), last, own.data_ptr() - elsewhere.nbytes + 1):
            assert run(address) is False
            assert run(elsewhere.data_ptr(), address) is False
    with pytest.raises(ValueError, match="z must be memory of its own"):
        run(elsewhere.data_ptr(), 0, r.y.data_ptr())
    with pytest.raises(ValueError, match="out must be an address, got 0"):
        run(0)
    assert_same(r, before)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.width))
@pytest.mark.parametrize("row, message", [(-1, "in"), (10**6, "in"), (0, "slots"), (1, "slots"), (2, "the last")])
def test_a_row_outside_its_range_raises_before_anything_changes(row, message, layout):
    case = random_case(0, 2, 8, slots=2, components=layout.components)
    lines = torch.zeros(3, layout.width)
    lines[0, table.SLOT] = 2
    lines[1, layout.column(layout.end - 1) - 1] = 1.0  # the last number of the last slot's
    r = case.registers
    r.row[0], r.row[1] = 0, row
    if row > 1:
        lines[0, table.SLOT] = 0
    before = clone(r)
    with pytest.raises(IndexError, match=rf"RowOp: row\[\d\] must be .*{message}"):
        apply_row(r, lines, torch.zeros(2, 8))
    assert_same(r, before)


@pytest.mark.parametrize(
    "second, given, message",
    [
        (1.0, False, "of one slot where there is no unconditional output"),
        (3.0, True, "of two slots where it keeps both outputs"),
        (5.0, True, r"of slots in \[0, 4\)"),
        (-1.0, True, r"of slots in \[0, 4\)"),
        (0.5, True, r"of slots in \[0, 4\)"),
        (torch.nan, True, r"of slots in \[0, 4\)"),
    ],
)
def test_a_second_slot_that_cannot_be_kept_raises_before_anything_changes(second, given, message):
    r = random_case(0, 2, 8, slots=4).registers
    lines = torch.zeros(3, table.WIDE.width)
    lines[1, [table.SLOT, table.WIDE.second]] = torch.tensor([2, second])
    r.row[0], r.row[1] = 0, 1
    before = clone(r)
    with pytest.raises(IndexError, match=rf"RowOp: row\[1\] must be a row {message}, got 1"):
        apply_row(r, lines, torch.zeros(2, 8), torch.zeros(2, 8) if given else None)
    assert_same(r, before)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n": 0}, "RowOp: n must be positive, got 0"),
        ({"batch": -1}, "RowOp: batch must be positive, got -1"),
        ({"cfg_copies": 0}, "RowOp: cfg_copies must be positive, got 0"),
        ({"threads": 0}, "RowOp: threads must be positive, got 0"),
        ({"table_rows": 0}, "RowOp: table_rows must be positive, got 0"),
        ({"table_width": 96}, "RowOp: table_width must be 32, 64 or 128, got 96"),
        ({"table_width": 128, "n": 783}, "RowOp: n must be even in phase space, got 783"),
        ({"table_width": 128, "channels": 2}, "RowOp: channels must be 1 in phase space, got 2"),
        ({"n_slots": 7}, "RowOp: n_slots must be at most 6, got 7"),
        ({"n_slots": 13, "table_width": 64}, "RowOp: n_slots must be at most 12, got 13"),
        ({"stride": 783}, "RowOp: stride must be at least n, got 783"),
        ({"channels": 5}, "RowOp: channels must be a divisor of n, got 5"),
        ({"n": 2**35, "stride": 2**35}, "RowOp: n must be at most 2\\^34, got 34359738368"),
        ({"registers": {"y": 0}}, "RowOp: y must be an address, got 0"),
        ({"registers": {"lane": 1}}, "RowOp: registers must be those that the extension was built with, got lane"),
        ({"out_dtype": "float64"}, "RowOp: out_dtype must be float32, float16 or bfloat16, got float64"),
        ({"time_dtype": "int32"}, "RowOp: time_dtype must be float32 or int64, got int32"),
    ],
)
def test_bad_arguments_are_named(change, message):
    case = random_case(0, 2, 784)
    given = cpp.arguments(case.registers, case.table, F32, 1)
    change = change | {"registers": given["registers"] | change.get("registers", {})}
    with pytest.raises(ValueError, match=message):
        _C.RowOp(**(given | change))


def test_a_register_that_is_not_given_is_named():
    case = random_case(0, 2, 784)
    given = cpp.arguments(case.registers, case.table, F32, 1)
    del given["registers"]["row"]
    with pytest.raises(ValueError, match="RowOp: registers must be given with row, got none"):
        _C.RowOp(**given)


def test_normals_check_their_arguments():
    with pytest.raises(ValueError, match="normals: .*channels a divisor"):
        _C.normals(1, 1, 1, 0, 10, 10, 3)


def test_offsets_pass_2_to_the_31():
    assert _C.slot_offset(5, 3, 4, 2**31) == (5 * 4 + 3) * 2**31
