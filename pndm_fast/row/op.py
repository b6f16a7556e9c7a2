"""`torch.ops.pndm_fast.apply_row`: the row operation as a torch operator, for code under torch.compile.

`Sampler` calls the same functions directly: an operator costs several times what a small row does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pndm_fast.row.backends import choose_backend
from pndm_fast.row.registers import FLOATS, Registers, check, check_tensor
from pndm_fast.row.schema import REGISTERS
from pndm_fast.row.table import LAYOUTS

_CHANGED = [name for name, register in REGISTERS.items() if register.changed]


def _signature() -> str:
    def typed(index: int, name: str) -> str:
        alias = f"(a{index}!)" if name in _CHANGED else ""
        return f"Tensor{alias}{'?' * REGISTERS[name].optional} {name}"

    registers = ", ".join(typed(index, name) for index, name in enumerate(REGISTERS))
    return f"({registers}, SymInt n, SymInt channels, Tensor table, Tensor out, Tensor? uncond, Tensor? z) -> ()"


@torch.library.custom_op("pndm_fast::apply_row", mutates_args=_CHANGED, schema=_signature())
def _operator(*given: Any) -> None:
    registers, operands = Registers(*given[:-4]), given[-4:]
    check(registers)
    _check_operands(registers, *operands)
    choose_backend("auto", registers.y.device, registers.y.dtype).apply_row(registers, *operands)


@_operator.register_fake
def _(*_args: object) -> None:
    return None


def apply_row(
    registers: Registers, table: Tensor, out: Tensor, uncond: Tensor | None = None, z: Tensor | None = None
) -> None:
    """Execute each sample's row in place; see `pndm_fast.row.reference.apply_row` for what that is.

    C++ on the CPU, Triton on CUDA, the reference for float64. Traceable by torch.compile without a graph break.

    Rows that keep the unconditional output need `uncond`: on the CPU they are refused without it; on a GPU, where no
    row is read on the host, it is not kept.

    Raises:
        ValueError: a tensor's shape, dtype, device or layout is not what `Registers` says, naming it.
    """
    _operator(*registers.tensors(), registers.n, registers.channels, table, out, uncond, z)


def _check_operands(r: Registers, table: Tensor, out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
    state, device, outputs = r.y.dtype, r.y.device, (r.batch, r.n)
    width = table.shape[-1]
    if width not in LAYOUTS:
        raise ValueError(f"apply_row: table must have lines of {', '.join(map(str, LAYOUTS))} numbers, got {width}")
    if LAYOUTS[width].components > 1 and (r.n % 2 or r.channels > 1):
        raise ValueError(
            f"apply_row: a table of 2x2 matrices must have an even n and channels 1, got {r.n} and {r.channels}"
        )
    check_tensor("table", table, (table.shape[0], width), (state,), device)
    check_tensor("out", out, outputs, (*FLOATS, state), device)
    if uncond is not None:
        check_tensor("uncond", uncond, outputs, (out.dtype,), device)
    if z is not None:
        check_tensor("z", z, outputs, (state,), device)
