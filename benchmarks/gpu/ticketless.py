"""The row without its ticket: the kernel after it takes all samples to their next rows, as a WHILE node's condition
could. It is measured beside the row as it is, and not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from pndm_fast.kernels import apply_row
from pndm_fast.kernels.apply_row import HALT, T
from speed.steps import Steps, copied
from torch import Tensor

from pndm_fast.row import reference
from pndm_fast.row.registers import Registers

ROWS = 4  # that are compared, while samples come to their halts
FORMS = ("row", "row, condition", "row without ticket, condition that advances")


@triton.jit(do_not_specialize=["batch"])
def _condition_kernel(
    budget_ptr,  # int32 [2]: rows left, and what cudaGraphSetConditional would be told
    row_ptr,  # int32 [batch]
    t_ptr,  # [CFG_COPIES * batch]
    active_ptr,  # int32 [1]
    table_ptr,  # fp32 [rows, WIDTH]
    batch,
    WIDTH: tl.constexpr,
    CFG_COPIES: tl.constexpr,
    LANES: tl.constexpr,  # at least batch: one program has all samples, so that nothing need be atomic
    ADVANCE: tl.constexpr,
):
    active = tl.load(active_ptr)
    if ADVANCE:
        b = tl.arange(0, LANES)
        row = tl.load(row_ptr + b, mask=b < batch, other=0)
        line = table_ptr + row.to(tl.int64) * WIDTH
        runs = (b < batch) & (tl.load(line + HALT) == 0)
        t = tl.load(line + WIDTH + T, mask=runs, other=0.0).to(t_ptr.dtype.element_ty)
        ends = runs & (tl.load(line + WIDTH + HALT, mask=runs, other=0.0) != 0)
        tl.store(row_ptr + b, row + 1, mask=runs)
        for copy in tl.static_range(CFG_COPIES):
            tl.store(t_ptr + copy * batch + b, t, mask=runs)
        active -= tl.sum(ends.to(tl.int32), 0)
        tl.store(active_ptr, active)
    left = tl.load(budget_ptr) - 1
    tl.store(budget_ptr, left)
    tl.store(budget_ptr + 1, ((active > 0) & (left > 0)).to(tl.int32))


def condition(registers: Registers, table: Tensor, budget: Tensor, *, advance: bool) -> None:
    """What stands after a row in a WHILE node's body: it counts, and may advance what the ticket else does."""
    r, lanes = registers, triton.next_power_of_2(registers.batch)
    _condition_kernel[(1,)](
        budget,
        r.row,
        r.t,
        r.active,
        table,
        r.batch,
        WIDTH=table.shape[1],
        CFG_COPIES=r.cfg_copies,
        LANES=lanes,
        ADVANCE=advance,
        num_warps=min(8, max(1, lanes // 128)) if advance else 1,
    )


def apply_row_alone(
    registers: Registers, table: Tensor, out: Tensor, uncond: Tensor | None = None, z: Tensor | None = None
) -> None:
    """`apply_row`, but row, t and active stay."""
    apply_row(dataclasses.replace(registers, done=None), table, out, uncond, z)


def forms(steps: Steps) -> dict[str, Callable[[], None]]:
    """A row by name: as a replay has it, as a WHILE node's body has it, and as that body could."""
    r, table, out = steps.registers, steps.table, steps.out.reshape(steps.batch, -1)
    budget = torch.zeros(2, dtype=torch.int32, device=out.device)

    def replay() -> None:
        apply_row(r, table, out)

    def loop() -> None:
        apply_row(r, table, out)
        condition(r, table, budget, advance=False)

    def ticketless() -> None:
        apply_row_alone(r, table, out)
        condition(r, table, budget, advance=True)

    return dict(zip(FORMS, (replay, loop, ticketless), strict=True))


def check(steps: Steps) -> None:
    """Each form leaves the reference's registers, bit for bit, with samples at rows of their own that halt in turn."""
    r, last = steps.registers, len(steps.table) - 1
    left = torch.arange(steps.batch, dtype=torch.int32, device=r.row.device) % (ROWS + 2)
    for name, row in forms(steps).items():
        steps.reset()
        for tensor in filter(lambda tensor: tensor is not None, (r.t, r.net_in)):  # a halted sample's stay
            tensor.zero_()
        r.row.copy_(last - left)
        r.active.fill_(int((left > 0).sum()))
        expected = copied(r)
        for _ in range(ROWS):
            reference.apply_row(expected, steps.table, steps.out.reshape(steps.batch, -1))
            row()
        for field, wanted in vars(expected).items():
            if isinstance(wanted, Tensor):
                assert torch.equal(getattr(r, field), wanted), f"{name}: {field} is not the reference's"
    steps.reset()
