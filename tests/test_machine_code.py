"""What the compiler makes of the row kernel, read without a GPU: wide accesses, no spills, the row protocol, no fma."""

import re
from collections import Counter

import pytest
from aot import ARCHITECTURES, VARIANTS, compile_all

HARDEST = ("fp32-guided", "mixed-guided", "bf16", "channels-last", "odd-bf16")  # most registers, most conversions
EVERY = [(name, arch) for arch in ARCHITECTURES for name in VARIANTS if arch == 90 or name in HARDEST]
THREADS, BLOCK = 128, 1024
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_all(EVERY, tmp_path_factory.mktemp("triton"))


def opcodes(code):
    return [re.sub(r"^@!?U?P\w+ ", "", line).split()[0] for line in code["sass"]]


def vectors(dtype):
    """128-bit accesses a thread needs for one operand."""
    return BLOCK * BYTES[dtype] // (THREADS * 16)


def expected(name):
    """(loads, stores) of 128 bits, (loads, stores) that may be narrow: one bulk access per operand."""
    v = VARIANTS[name]
    network, slot = v.get("network", "fp32"), v.get("slots", "fp32")
    halves = 1 + v.get("guided", False)
    loads = 2 * vectors("fp32") + 6 * vectors(slot)  # x, y, slots
    stores = 2 * vectors("fp32") + vectors(slot)
    if v.get("aligned", True):
        loads += halves * vectors(network) + v.get("z", False) * vectors("fp32")
        stores += halves * vectors(network) * v.get("net_in", False)
        return loads, stores, 0, 0
    return loads, stores, BLOCK // THREADS, BLOCK // THREADS * v.get("net_in", False)


@pytest.mark.parametrize("name, architecture", EVERY)
def test_every_bulk_access_is_128_bits_wide(name, architecture, compiled):
    """The padded buffers stay so where n is no multiple of the vector width; only the network's own then do not."""
    count = Counter(op for op in opcodes(compiled[name, architecture]) if op.startswith(("LDG", "STG")))
    wide_loads, wide_stores, narrow_loads, narrow_stores = expected(name)
    assert count["LDG.E.128"] == wide_loads
    assert count["STG.E.128"] == wide_stores
    scalar_loads = sum(c for op, c in count.items() if op.startswith("LDG") and op != "LDG.E.128") - narrow_loads
    scalar_stores = sum(c for op, c in count.items() if op.startswith("STG") and op != "STG.E.128") - narrow_stores
    assert scalar_loads <= 35  # row, seed and coefficients
    assert scalar_stores <= 4  # done, row, t of both halves


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
    lanes = set(re.findall(r"(%\w+) = tt\.make_range \{end = 1024", ir))
    offsets = re.findall(r"tt\.addptr (%\w+), (%\w+) : (\S+), (\S+)", ir)
    assert len(offsets) > 40
    for pointer, offset, _, kind in offsets:
        constant = re.fullmatch(r"%c\d+_i32(_\d+)?", offset)
        assert kind == "i64" or constant or offset in lanes, f"{pointer} + {offset}: {kind}"
    assert not re.search(r"arith\.muli %\w+, %(?!c)\w+ : i32\b", ir)  # by a constant: Philox
