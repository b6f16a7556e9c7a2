"""What the compiler makes of the kernels, read without a GPU: wide accesses, no spills, the row protocol, no fma."""

import re
from collections import Counter

import pytest
from aot import ARCHITECTURES, BEGINNINGS, VARIANTS, compile_all
from pndm_fast.kernels.apply_row import form_of

from pndm_fast.row.table import LAYOUTS, NARROW, PHASE, WIDE

pytestmark = pytest.mark.machine_code

# Most registers, most conversions.
HARDEST = ("fp32-guided", "mixed-guided", "bf16", "channels-last", "odd-bf16", "phase", "phase-guided", "phase-z",
           "wide", "wide-bf16", "wide-guided", "wide-guided-bf16", "wide-z-guided")  # fmt: skip
EVERY = [(name, arch) for arch in ARCHITECTURES for name in VARIANTS if arch == 90 or name in HARDEST]
THREADS = 128
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# row, seed and coefficients; of wide lines, and of matrices by pairs, once for what they need and once to be applied
SCALARS = {NARROW: 35, WIDE: 100, PHASE: 100}


FIRST = [(name, arch) for arch in ARCHITECTURES for name in BEGINNINGS]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_all(EVERY + FIRST, tmp_path_factory.mktemp("triton"))


def layout(variant):
    return LAYOUTS[variant.get("width", NARROW.width)]


def opcodes(code):
    return [re.sub(r"^@!?U?P\w+ ", "", line).split()[0] for line in code["sass"]]


def expected(name):
    """Loads and stores of operands by their bytes: one access per thread, operand and component where it fits in 16."""
    v = {"network": "fp32", "slots": "fp32"} | VARIANTS[name]
    network, slot, copies, form = v["network"], v["slots"], 1 + v.get("guided", False), layout(v)
    components, each = form.components, form_of(form)[0] // THREADS
    written = 1 + (copies == 2 and form.second is not None)  # slots
    split = v.get("scattered", False) and components > 1  # the second component begins anywhere
    ragged = split or (components == 1 and not v.get("aligned", True))

    def count(ours, theirs):
        """Our buffers are padded: they stay wide where n is no multiple of the vector width."""
        total = Counter()
        for dtypes, narrow in ((ours, split), (theirs, ragged)):
            for size in map(BYTES.get, dtypes):
                width = size if narrow else min(16, each * size)
                total[width] += components * each * size // width
        return total

    loads = count(["fp32"] * 2 + [slot] * form.slots, [network] * copies + ["fp32"] * v.get("z", False))
    return loads, count(["fp32"] * 2 + [slot] * written, [network] * copies * v.get("net_in", False))


@pytest.mark.parametrize("name, architecture", EVERY)
def test_every_element_is_accessed_once_in_wide_vectors(name, architecture, compiled):
    code, (loads, stores) = compiled[name, architecture], expected(name)
    count = Counter(op for op in opcodes(code) if op.startswith(("LDG", "STG")))
    assert (count["LDG.E.128"], count["STG.E.128"]) == (loads[16], stores[16])
    assert (code["ptx"].count("ld.global.v2.b32"), code["ptx"].count("st.global.v2.b32")) == (loads[8], stores[8])
    scalar_loads = sum(c for op, c in count.items() if op.startswith("LDG")) - loads.total()
    scalar_stores = sum(c for op, c in count.items() if op.startswith("STG")) - stores.total()
    assert 0 < scalar_loads <= SCALARS[layout(VARIANTS[name])]
    assert 0 < scalar_stores <= 4  # done, row, t of both copies


@pytest.mark.parametrize("name, architecture", EVERY)
def test_nothing_spills(name, architecture, compiled):
    code = compiled[name, architecture]
    assert not [op for op in opcodes(code) if op.startswith(("LDL", "STL"))]
    assert code["resources"]["STACK"] == code["resources"]["LOCAL"] == 0
    assert code["resources"]["REG"] <= 128  # four programs of 128 threads an SM


@pytest.mark.parametrize("name, architecture", EVERY)
def test_the_ticket_is_taken_behind_a_barrier(name, architecture, compiled):
    """Else a warp may read `row` after another has taken the ticket and the last program has advanced it."""
    code = compiled[name, architecture]
    ops = opcodes(code)
    row = next(i for i, op in enumerate(ops) if op.startswith("LDG") and ".128" not in op)
    ticket = next(i for i, op in enumerate(ops) if op.startswith(("ATOM", "RED.", "REDG")))
    assert "ADD" in ops[ticket] and "STRONG.GPU" in ops[ticket]
    assert any(op.startswith("BAR.SYNC") for op in ops[row:ticket])
    before = code["ptx"].split("atom.", 1)[0]
    block = re.split(r"^\$L__BB\w+:", before, flags=re.MULTILINE)[-1]
    assert "bar.sync" in block, "the barrier must stand on every path to the ticket"


@pytest.mark.parametrize("name, architecture", EVERY)
def test_the_ticket_s_latency_passes_while_the_loads_are_under_way(name, architecture, compiled):
    """No fence waits for them, and each is issued before it; coefficients that are held in place are loaded again."""
    code = compiled[name, architecture]
    ops = opcodes(code)
    assert not [op for op in ops if op.startswith(("MEMBAR", "CCTL", "ERRBAR", "FENCE"))]
    assert not re.search(r"\b(fence|membar)\b|\.(acquire|release|acq_rel)\b", code["ptx"])
    ticket = next(i for i, op in enumerate(ops) if op.startswith("ATOM"))
    later = Counter(op for op in ops[ticket:] if op.startswith("LDG"))
    assert not later["LDG.E.128"]
    assert not later or layout(VARIANTS[name]) is not NARROW


@pytest.mark.parametrize("name, architecture", EVERY)
def test_nothing_is_fused(name, architecture, compiled):
    """The only FFMA stand in the correctly rounded square root, and without Philox there is none."""
    code = compiled[name, architecture]
    assert not re.search(r"\bfma\.", code["ptx"])
    assert not re.search(r"\b(sqrt|rsqrt|sin|cos|lg2)\.approx", code["ptx"])
    assert "ftz" not in code["ptx"].replace("cvt.rmi.ftz", "")  # floor, of numbers that are never subnormal
    if VARIANTS[name].get("z"):
        assert "FFMA" not in {op.split(".")[0] for op in opcodes(code)}
    else:
        assert "sqrt.rn.f32" in code["ptx"]


@pytest.mark.parametrize("name", VARIANTS)
def test_addresses_are_64_bit(name, compiled):
    """Nothing narrower than int64 is added to a pointer but a lane of the block, and nothing 32-bit is multiplied."""
    ir = compiled[name, 90]["ttir"]
    lanes = set(re.findall(rf"(%\w+) = tt\.make_range \{{end = {form_of(layout(VARIANTS[name]))[0]} ", ir))
    offsets = re.findall(r"tt\.addptr (%\w+), (%\w+) : (\S+), (\S+)", ir)
    assert len(offsets) > 40
    for pointer, offset, _, kind in offsets:
        constant = re.fullmatch(r"%c\d+_i32(_\d+)?", offset)
        assert kind == "i64" or constant or offset in lanes, f"{pointer} + {offset}: {kind}"
    assert not re.search(r"arith\.muli %\w+, %(?!c)\w+ : i32\b", ir)  # by a constant: Philox


@pytest.mark.parametrize("name, architecture", FIRST)
def test_a_start_is_written_in_wide_vectors(name, architecture, compiled):
    """x, y and each copy of the input, once; no spill, nothing fused."""
    code, v = compiled[name, architecture], BEGINNINGS[name]
    copies = v.get("net_in", False) * (1 + v.get("guided", False))
    each = layout(v).components * form_of(layout(v))[0] // THREADS  # of all components
    wide = 2 * each * 4 // 16 + copies * each * BYTES[v.get("network", "fp32")] // 16
    count = Counter(op for op in opcodes(code) if op.startswith(("LDG", "STG")))
    assert (count["STG.E.128"], sum(c for op, c in count.items() if op.startswith("STG"))) == (wide, wide)
    assert count["LDG.E.128"] >= len(v.get("sources", ())) * each * 4 // 16
    assert not [op for op in opcodes(code) if op.startswith(("LDL", "STL", "ATOM", "RED"))]
    assert code["resources"]["STACK"] == code["resources"]["LOCAL"] == 0 and code["resources"]["REG"] <= 128
    assert not re.search(r"\bfma\.", code["ptx"])
