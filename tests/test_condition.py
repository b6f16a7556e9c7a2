"""The WHILE node's condition: what its PTX computes, and that it assembles for every architecture."""

import ctypes
import itertools
import operator
import re
import subprocess
from pathlib import Path

import pytest
import triton
from aot import ARCHITECTURES
from graphcase import CANCELABLE

from pndm_fast import _C

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
NVRTC = sorted(Path(triton.__file__).parents[1].glob("nvidia/*/lib/libnvrtc.so.*"))
HANDLE, ACTIVE, BUDGET, CANCEL = 11, 12, 13, 14

DECLARED = b"""
extern "C" __device__ void cudaGraphSetConditional(unsigned long long, unsigned int);
extern "C" __global__ void pndm_continue(unsigned long long handle) { cudaGraphSetConditional(handle, 1); }
"""


def run(ptx, memory):
    """Interpret the entry; returns the argument pairs of cudaGraphSetConditional. Memory is by address, and a word
    that may not be read is not in it."""
    registers = {"p_handle": HANDLE, "p_active": ACTIVE, "p_budget": BUDGET, "p_cancel": CANCEL}
    calls = []
    body = ptx[ptx.index(".entry") :]
    for line in body[body.index("{") + 1 :].split(";"):
        code, _, rest = line.strip(" \t\n{}").partition(" ")
        if code.startswith("@"):
            if not registers[code[1:]]:
                continue
            code, _, rest = rest.partition(" ")
        names = [name.strip("[]() ") for name in rest.split(",")]
        value = [int(name, 0) if re.fullmatch(r"-?\d+|0x[0-9A-F]+", name) else registers.get(name) for name in names]
        if code.startswith(("ld.param", "cvta")):
            registers[names[0]] = value[1]
        elif code in ("ld.global.b32", "ld.volatile.global.b32"):
            registers[names[0]] = memory[value[1]]
        elif code == "st.global.b32":
            memory[value[0]] = value[1]
        elif code in ("st.param.b64", "st.param.b32", "mov.b32"):
            registers[names[0]] = value[1]
        elif code == "and.b32":
            registers[names[0]] = value[1] & value[2]
        elif code == "add.s32":
            registers[names[0]] = value[1] + value[2]
        elif code.startswith("setp"):
            _, compare, *both, kind = code.split(".")
            assert kind == "s32" and both in ([], ["and"])
            true = getattr(operator, compare)(value[1], value[2])
            registers[names[0]] = true and (not both or value[3])
        elif code == "selp.u32":
            registers[names[0]] = value[1] if value[3] else value[2]
        elif code == "call.uni":
            assert names[0] == "cudaGraphSetConditional"
            calls.append(tuple(value[1:]))
        else:
            assert code in ("", "ret", ".param") or code.startswith(".reg"), line
    return calls


@pytest.mark.parametrize(
    "active, rows, cancel", [*itertools.product((-1, 0, 1, 8), (1, 2, 9, CANCELABLE - 1), (None, 0, 1, -1))]
)
def test_it_goes_on_while_samples_are_active_and_rows_are_left(active, rows, cancel):
    """A budget of so many rows; `cancel` None: nobody can cancel, and that word is not read."""
    cancelable = 0 if cancel is None else CANCELABLE
    memory = {ACTIVE: active, BUDGET: rows | cancelable}
    if cancel is not None and active > 0 and rows > 1:  # else it is not read either
        memory[CANCEL] = cancel
    calls = run(_C.CONDITION_PTX, memory)
    assert calls == [(HANDLE, int(active > 0 and rows > 1 and not cancel))]
    assert memory[BUDGET] == rows - 1 | cancelable and memory[ACTIVE] == active


@pytest.mark.parametrize("cancelable", [0, CANCELABLE])
def test_the_budget_counts_down_beside_the_bit(cancelable):
    memory, went_on = {ACTIVE: 1, BUDGET: 5 | cancelable, CANCEL: 0}, []
    while not went_on or went_on[-1]:
        went_on.append(run(_C.CONDITION_PTX, memory)[0][1])
    assert went_on == [1, 1, 1, 1, 0] and memory[BUDGET] == cancelable


@pytest.mark.machine_code
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_assembles(architecture, tmp_path):
    source, binary = tmp_path / "condition.ptx", tmp_path / "condition.cubin"
    source.write_text(_C.CONDITION_PTX.strip())
    subprocess.run([TOOLS / "ptxas", f"-arch=sm_{architecture}", source, "-o", binary], check=True)
    text = subprocess.run([TOOLS / "nvdisasm", "-c", binary], capture_output=True, text=True, check=True).stdout
    code = [match[1] for match in re.finditer(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", text)]
    loads, stores, calls = (
        [line for line in code if re.search(rf"\b{kind}\b", line)] for kind in ("LDG", "STG", "CALL")
    )
    # a host's write is seen: `cancel`, and only it, is read at system scope, and not by every launch
    system = [line for line in loads if ".STRONG.SYS" in line]
    assert len(loads) == 3 and len(system) == 1 and system[0].startswith("@P")
    assert len(stores) == 1 and len(calls) == 1
    # the call's target is left to the driver
    assert ".dword\tcudaGraphSetConditional" in relocations(binary)
    assert ".text.cudaGraphSetConditional" not in text


def relocations(binary):
    done = subprocess.run([TOOLS / "nvdisasm", binary], capture_output=True, text=True, check=True)
    return re.sub(r"\.dword\s+", ".dword\t", done.stdout)


@pytest.mark.skipif(not NVRTC, reason="no NVRTC beside torch")
def test_the_compiler_declares_the_call_as_the_text_does():
    nvrtc = ctypes.CDLL(str(NVRTC[-1]))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert not nvrtc.nvrtcCreateProgram(ctypes.byref(program), DECLARED, b"condition.cu", 0, None, None)
    options = (ctypes.c_char_p * 1)(b"--gpu-architecture=compute_80")
    assert not nvrtc.nvrtcCompileProgram(program, 1, options)
    assert not nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    assert not nvrtc.nvrtcGetPTX(program, text)
    assert declaration(text.value.decode()) == declaration(_C.CONDITION_PTX) == ["b64", "b32"]


def declaration(ptx):
    found = re.search(r"\.extern \.func\s+cudaGraphSetConditional\s*\((.*?)\)", ptx, re.DOTALL)
    return re.findall(r"\.param \.(\w+)", found[1])
