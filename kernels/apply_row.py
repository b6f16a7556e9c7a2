"""`apply_row` as one Triton kernel; `pndm_fast.row.reference` says what it computes, bit for bit.

A program has a block of a sample, at two parts the same block of position and of momentum: it reads and writes each
element once. What stands for an operand is a tuple of its parts.
"""

import torch
import triton
import triton.language as tl
from pndm_fast.kernels.blocks import add, added, both, coefficient, entries, scaled, takes, width
from pndm_fast.kernels.philox import normals_block
from torch import Tensor

from pndm_fast.plan.plan import MAX_SLOTS, WIDTH_FORM
from pndm_fast.row import table as columns
from pndm_fast.row.registers import Registers

# Elements of all parts. With 4 warps the smallest block whose 16-bit operands are read 128 bits at a time, and of two
# parts the fp32 ones: a larger one would not fit in registers.
BLOCK = 1024
OPTIONS = {
    "num_warps": 4,
    "maxnreg": 128,  # four programs an SM; uncapped the compiler takes up to 162, capped at 104 it spills
    "enable_fp_fusion": False,  # a fused multiply-add would not be the reference's bits
}

HALT, T, SLOT, CLAMP, GUIDANCE, NOISE, WRITE_X, WRITE_Y, IN_SCALE, P, Q, P2, Q2, X, Y = (
    tl.constexpr(getattr(columns, name))
    for name in "HALT T SLOT CLAMP GUIDANCE NOISE WRITE_X WRITE_Y IN_SCALE P Q P2 Q2 X Y".split()
)
SLOTS, OPERANDS = tl.constexpr(MAX_SLOTS), tl.constexpr(WIDTH_FORM)
FIRST_SLOT, LAST = tl.constexpr(2), tl.constexpr(WIDTH_FORM - 1)  # operands are x, y, the slots and z
EXPONENT = tl.constexpr(0x7F800000)
INTERPRETED = tl.constexpr(not isinstance(normals_block, triton.JITFunction))  # TRITON_INTERPRET=1


@triton.jit
def _place(pid, length, BLOCK: tl.constexpr):
    """The program's sample, the first element of its block there, both int64, and the blocks of a sample."""
    blocks = (length - 1) // BLOCK + 1
    return (pid // blocks).to(tl.int64), (pid % blocks).to(tl.int64) * BLOCK, blocks


@triton.jit
def _read_all(ptr, apart, lane, left, PARTS: tl.constexpr):
    """Of each part the first `left` elements, then zeros."""
    parts = ()
    for j in tl.static_range(PARTS):
        parts += (tl.load(ptr + j * apart + lane, mask=lane < left, other=0.0).to(tl.float32),)
    return parts


@triton.jit
def _read(ptr, lane, left, needed):
    """The first `left` elements at ptr, then zeros; no traffic unless they are needed."""
    # Triton's interpreter cannot broadcast one bit; in machine code this is the predicate of one branchless load.
    wanted = tl.zeros_like(lane) + needed.to(tl.int32)
    return tl.load(ptr + lane, mask=(lane < left) & (wanted != 0), other=0.0).to(tl.float32)


@triton.jit
def _operand(ptr, apart, lane, left, held, when, PARTS: tl.constexpr):
    """The parts of which its coefficients take anything."""
    parts = ()
    for j in tl.static_range(PARTS):
        parts += (_read(ptr + j * apart, lane, left, when & takes(held, j, PARTS)),)
    return parts


@triton.jit
def _round(value, dtype: tl.constexpr):
    """To the nearest number of dtype, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:  # Triton's interpreter cuts the low half off
        bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), bits | 0x400000)
        rounded = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = value.to(dtype)
    return rounded


@triton.jit
def _guided(e, u, guidance, PARTS: tl.constexpr):
    parts = ()
    for j in tl.static_range(PARTS):  # at scale 1 a sample owes nothing to the unconditional output
        parts += (tl.where(guidance == 1, e[j], (e[j] - u[j]) * guidance + u[j]),)
    return parts


@triton.jit
def _any_bad(e, PARTS: tl.constexpr):
    """Not zero where an element is not finite."""
    bad = (e[0].to(tl.int32, bitcast=True) & EXPONENT) == EXPONENT
    for j in tl.static_range(1, PARTS):
        bad = bad | ((e[j].to(tl.int32, bitcast=True) & EXPONENT) == EXPONENT)
    return tl.max(bad.to(tl.int32), 0)


@triton.jit
def _converted(e, y, p, q, p2, q2, clamp, PARTS: tl.constexpr):
    """From what the network predicts to what the solver combines."""
    clamped = ()
    for i in tl.static_range(PARTS):
        value = added(scaled(e, q, i, PARTS), y, p, i, PARTS)
        value = tl.where(value > clamp, clamp, value)  # minimum and maximum would lose a NaN
        clamped += (tl.where(value < -clamp, -clamp, value),)
    parts = ()
    for i in tl.static_range(PARTS):
        parts += (added(scaled(clamped, q2, i, PARTS), y, p2, i, PARTS),)
    return parts


@triton.jit
def _write(ptr, apart, lane, left, values, PARTS: tl.constexpr):
    """Write the parts in the buffer's dtype, and return them as they now are."""
    parts = ()
    for i in tl.static_range(PARTS):
        rounded = _round(values[i], ptr.dtype.element_ty)
        tl.store(ptr + i * apart + lane, rounded, mask=lane < left)
        parts += (rounded.to(tl.float32),)
    return parts


@triton.jit
def _combine(ptr, apart, lane, left, operands, forms, RESULT: tl.constexpr, PARTS: tl.constexpr):
    """Write the operands' sum in the table's order, from zero, each step rounded."""
    parts = ()
    for i in tl.static_range(PARTS):
        total = tl.zeros_like(operands[0][0])
        for k in tl.static_range(OPERANDS):
            row = entries(forms[k][RESULT], i, PARTS)
            for j in tl.static_range(PARTS):
                total = add(total, operands[k][j], row[j])
        tl.store(ptr + i * apart + lane, total, mask=lane < left)  # at once: its registers are free for the other's
        parts += (total,)
    return parts


@triton.jit
def _input(y, in_scale, PARTS: tl.constexpr):
    parts = ()
    for i in tl.static_range(PARTS):
        parts += (scaled(y, in_scale, i, PARTS),)
    return parts


@triton.jit(do_not_specialize=["batch", "channels"])
def _apply_row_kernel(
    x_ptr,  # anchor, fp32 [batch, stride]
    y_ptr,  # state, the same
    slots_ptr,  # past converted outputs [slots, batch, stride]
    row_ptr,  # int32 [batch]
    t_ptr,  # the network's time input [HALVES * batch]
    net_in_ptr,  # the network's input [HALVES * batch, PARTS * n], or None
    seeds_ptr,  # int64 [batch]
    first_bad_ptr,  # int32 [batch]
    active_ptr,  # int32 [1]
    done_ptr,  # tickets, int32 [batch]
    table_ptr,  # fp32 [rows, WIDTHS[PARTS]]
    out_ptr,  # the network's output [batch, PARTS * n]
    uncond_ptr,  # its unconditional output, or None
    z_ptr,  # standard normals [batch, PARTS * n] in place of Philox, or None
    n,  # elements of a part
    stride,
    batch,
    channels,
    PARTS: tl.constexpr,
    HALVES: tl.constexpr,
    SCATTERED: tl.constexpr,  # of `normals_block`
    BLOCK: tl.constexpr,  # elements of a part
):
    if PARTS > 1 and not SCATTERED:
        n = n // 4 * 4  # the same, but known to be a multiple: the second part is as aligned as the first
    length = stride if PARTS == 1 else n  # a single part's padding is written too: its accesses are whole vectors
    b, start, blocks = _place(tl.program_id(0), length, BLOCK)
    batch = batch.to(tl.int64)
    row = tl.load(row_ptr + b)
    lane = tl.arange(0, BLOCK)
    apart = tl.cast(n, tl.int64)
    own = b * stride + start  # in our buffers
    outer = b * PARTS * n + start  # in the network's
    left = length - start
    inside = n - start
    e = _read_all(out_ptr + outer, apart, lane, inside, PARTS)
    if uncond_ptr is not None:
        u = _read_all(uncond_ptr + outer, apart, lane, inside, PARTS)

    line = table_ptr + row.to(tl.int64) * width(PARTS)
    if tl.load(line + HALT) != 0:
        return
    slot = tl.load(line + SLOT).to(tl.int32)
    p = coefficient(line, P, PARTS)
    q = coefficient(line, Q, PARTS)
    p2 = coefficient(line, P2, PARTS)
    q2 = coefficient(line, Q2, PARTS)
    store_y = both(p, p2, True, True, PARTS)
    clamp = tl.load(line + CLAMP)
    guidance = tl.load(line + GUIDANCE)
    next_line = line + width(PARTS)
    next_halt = tl.load(next_line + HALT)
    next_t = tl.load(next_line + T)
    next_scale = coefficient(next_line, IN_SCALE, PARTS)
    write_x = tl.load(line + WRITE_X) != 0
    write_y = tl.load(line + WRITE_Y) != 0
    noise = tl.load(line + NOISE).to(tl.int32)
    forms = ()
    for k in tl.static_range(OPERANDS):
        forms += (both(coefficient(line, X + k, PARTS), coefficient(line, Y + k, PARTS), write_x, write_y, PARTS),)

    # Before the loads, whose results would have to be kept in registers beside Philox's.
    z = ()
    for j in tl.static_range(PARTS):
        normals = tl.zeros([BLOCK], tl.float32)
        noisy = (noise != 0) & takes(forms[LAST], j, PARTS)
        if z_ptr is not None:
            normals = _read(z_ptr + outer + j * apart, lane, inside, noisy)
        elif noisy:
            normals = normals_block(tl.load(seeds_ptr + b), noise, start + j * apart, n, channels, SCATTERED, BLOCK)
        z += (normals,)

    # Every load is issued before the first result is needed; one that the row does not need is masked off.
    needs_y = ()
    for j in tl.static_range(PARTS):
        needed = takes(forms[1], j, PARTS, takes(store_y, j, PARTS))
        if net_in_ptr is not None:
            needed = needed | (write_y == 0)
        needs_y += (needed,)
    x = _operand(x_ptr + own, apart, lane, left, forms[0], True, PARTS)
    y = ()
    for j in tl.static_range(PARTS):
        y += (_read(y_ptr + own + j * apart, lane, left, needs_y[j]),)
    slots_ptr += own
    plane = batch * stride
    slots = ()
    for k in tl.static_range(SLOTS):  # the row's own is taken from the value being stored
        slots += (_operand(slots_ptr + plane * k, apart, lane, left, forms[FIRST_SLOT + k], k != slot, PARTS),)

    # The last ticket of a sample says that all its programs have read `row`. Taken here, its latency passes while
    # the loads are under way; the barrier keeps it behind this program's own reads.
    tl.debug_barrier()
    ticket = tl.atomic_add(done_ptr + b, 1)

    if uncond_ptr is not None:
        e = _guided(e, u, guidance, PARTS)
    if _any_bad(e, PARTS) != 0:
        tl.atomic_min(first_bad_ptr + b, row, sem="relaxed")

    new = _converted(e, y, p, q, p2, q2, clamp, PARTS)
    new = _write(slots_ptr + slot * plane, apart, lane, left, new, PARTS)
    operands = (x, y)
    for k in tl.static_range(SLOTS):
        parts = ()
        for j in tl.static_range(PARTS):
            parts += (tl.where(slot == k, new[j], slots[k][j]),)
        operands += (parts,)
    operands += (z,)

    following = y
    if write_x:
        _combine(x_ptr + own, apart, lane, left, operands, forms, 0, PARTS)
    if write_y:
        following = _combine(y_ptr + own, apart, lane, left, operands, forms, 1, PARTS)
    if net_in_ptr is not None:
        values = _input(following, next_scale, PARTS)
        for half in tl.static_range(HALVES):
            _write(net_in_ptr + half * batch * PARTS * n + outer, apart, lane, inside, values, PARTS)

    if ticket == blocks - 1:
        tl.store(done_ptr + b, 0)
        tl.store(row_ptr + b, row + 1)
        t = next_t.to(t_ptr.dtype.element_ty)
        for half in tl.static_range(HALVES):
            tl.store(t_ptr + half * batch + b, t)
        if next_halt != 0:
            tl.atomic_add(active_ptr, -1, sem="relaxed")


@triton.jit(do_not_specialize=["index", "channels"])
def _normals_kernel(z_ptr, seeds_ptr, index, n, stride, channels, SCATTERED: tl.constexpr, BLOCK: tl.constexpr):
    b, start, _ = _place(tl.program_id(0), stride, BLOCK)
    z = normals_block(tl.load(seeds_ptr + b), index, start, n, channels, SCATTERED, BLOCK)
    lane = tl.arange(0, BLOCK)
    tl.store(z_ptr + b * stride + start + lane, z, mask=lane < stride - start)


def _check_device(name: str, tensor: Tensor) -> None:
    if not (tensor.is_cuda or INTERPRETED.value):
        raise ValueError(
            f"{name} must be on a CUDA device for the Triton backend, got {tensor.device}; "
            "on the CPU it runs only in Triton's interpreter (TRITON_INTERPRET=1)"
        )


def _check_parts(parts: int, r: Registers) -> None:
    if parts > 1 and (r.n % parts or r.channels > 1):
        raise ValueError(f"a table of blocks must have an even n and channels 1, got {r.n} and {r.channels}")


def _check_operand(name: str, tensor: Tensor | None, r: Registers) -> None:
    if tensor is not None and (
        tensor.numel() != r.row.shape[0] * r.n or not tensor.is_contiguous() or tensor.device != r.x.device
    ):
        raise ValueError(
            f"{name} must be contiguous [{r.batch}, {r.n}] on {r.x.device}, got {list(tensor.shape)} with strides "
            f"{tensor.stride()} on {tensor.device}"
        )


def apply_row(
    registers: Registers, table: Tensor, out: Tensor, uncond: Tensor | None = None, z: Tensor | None = None
) -> None:
    """`reference.apply_row` in one kernel launch on the current stream, without a host read or an allocation.

    The checks cost 3.5 us of host time (guided; EPYC 9005), Triton's launcher several times that; in a captured graph
    neither remains.

    Raises:
        ValueError: tensors are not on a CUDA device, x is not float32, an operand is not a dense [B, n], or samples
            have no two halves for a table of blocks.
    """
    r = registers
    _check_device("x", r.x)
    if r.x.dtype != torch.float32:
        raise ValueError(f"x must be float32 for the Triton backend, got {r.x.dtype}")
    _check_operand("out", out, r)
    _check_operand("uncond", uncond, r)
    _check_operand("z", z, r)
    batch, stride, parts = r.row.shape[0], r.x.shape[1], columns.parts_of(table)
    _check_parts(parts, r)
    n, block = r.n // parts, BLOCK // parts
    length = stride if parts == 1 else n
    _apply_row_kernel[(triton.cdiv(length, block) * batch,)](
        r.x,
        r.y,
        r.slots,
        r.row,
        r.t,
        r.net_in,
        r.seeds,
        r.first_bad,
        r.active,
        r.done,
        table,
        out,
        uncond,
        z,
        n,
        stride,
        batch,
        r.channels,
        PARTS=parts,
        HALVES=r.t.shape[0] // batch,
        SCATTERED=r.channels > 1 or (parts > 1 and n % 4 != 0),
        BLOCK=block,
        **OPTIONS,
    )


def normals(seeds: Tensor, index: int, n: int, stride: int, channels: int = 1) -> Tensor:
    """`noise.normals` with rows padded to `stride`, a multiple of `registers.ALIGN`; the padding is unspecified.

    Raises:
        ValueError: seeds are not on a CUDA device.
    """
    _check_device("seeds", seeds)
    z = torch.empty(len(seeds), stride, dtype=torch.float32, device=seeds.device)
    _normals_kernel[(triton.cdiv(stride, BLOCK) * len(seeds),)](
        z,
        seeds,
        index,
        n,
        stride,
        channels,
        SCATTERED=channels > 1,
        BLOCK=BLOCK,
        **OPTIONS,
    )
    return z
