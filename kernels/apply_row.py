"""`apply_row` as one Triton kernel; `pndm_fast.reference` says what it computes, bit for bit."""

import torch
import triton
import triton.language as tl
from pndm_fast.kernels.philox import normals_block
from torch import Tensor

from pndm_fast import table as columns
from pndm_fast.registers import Registers

BLOCK = 1024  # with 4 warps the smallest block whose 16-bit operands are read 128 bits at a time
OPTIONS = {
    "num_warps": 4,
    "maxnreg": 128,  # four programs an SM; uncapped the compiler takes up to 162, capped at 104 it spills
    "enable_fp_fusion": False,  # a fused multiply-add would not be the reference's bits
}

HALT, T, IN_SCALE, SLOT, P, Q, P2, Q2, CLAMP, GUIDANCE, NOISE, WRITE_X, WRITE_Y, X, Y, WIDTH = (
    tl.constexpr(getattr(columns, name))
    for name in "HALT T IN_SCALE SLOT P Q P2 Q2 CLAMP GUIDANCE NOISE WRITE_X WRITE_Y X Y WIDTH".split()
)
EXPONENT = tl.constexpr(0x7F800000)
INTERPRETED = tl.constexpr(not isinstance(normals_block, triton.JITFunction))  # TRITON_INTERPRET=1


@triton.jit
def _place(pid, stride, BLOCK: tl.constexpr):
    """The program's sample, the first element of its block there, both int64, and the blocks of a sample."""
    blocks = (stride - 1) // BLOCK + 1
    return (pid // blocks).to(tl.int64), (pid % blocks).to(tl.int64) * BLOCK, blocks


@triton.jit
def _coefficients(line, column, write_x, write_y):
    """What X and Y take of an operand; a register that the row does not write takes nothing."""
    return tl.where(write_x, tl.load(line + X + column), 0.0), tl.where(write_y, tl.load(line + Y + column), 0.0)


@triton.jit
def _read(ptr, left, needed, BLOCK: tl.constexpr):
    """The first `left` elements at ptr, then zeros; no traffic unless they are needed."""
    lane = tl.arange(0, BLOCK)
    # Triton's interpreter cannot broadcast one bit; in machine code this is the predicate of one branchless load.
    wanted = tl.zeros([BLOCK], tl.int32) + needed.to(tl.int32)
    return tl.load(ptr + lane, mask=(lane < left) & (wanted != 0), other=0.0).to(tl.float32)


@triton.jit
def _slot(slots_ptr, plane, left, index, slot, x, y, BLOCK: tl.constexpr):
    """A past slot, if X or Y takes it; the row's own is taken from the value being stored."""
    return _read(slots_ptr + plane * index, left, (index != slot) & ((x != 0) | (y != 0)), BLOCK)


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
def _add(total, operand, coefficient):
    if coefficient != 0:  # an operand that is not used may hold anything
        total += operand * coefficient
    return total


@triton.jit
def _combine(x, y, s0, s1, s2, s3, s4, s5, z, cx, cy, c0, c1, c2, c3, c4, c5, cz):
    """The sum of the operands in the table's order, from zero, each step rounded."""
    total = _add(tl.zeros_like(x), x, cx)
    total = _add(total, y, cy)
    total = _add(total, s0, c0)
    total = _add(total, s1, c1)
    total = _add(total, s2, c2)
    total = _add(total, s3, c3)
    total = _add(total, s4, c4)
    total = _add(total, s5, c5)
    return _add(total, z, cz)


@triton.jit(do_not_specialize=["batch", "channels"])
def _apply_row_kernel(
    x_ptr,  # anchor, fp32 [batch, stride]
    y_ptr,  # state, the same
    slots_ptr,  # past converted outputs [slots, batch, stride]
    row_ptr,  # int32 [batch]
    t_ptr,  # the network's time input [HALVES * batch]
    net_in_ptr,  # the network's input [HALVES * batch, n], or None
    seeds_ptr,  # int64 [batch]
    first_bad_ptr,  # int32 [batch]
    active_ptr,  # int32 [1]
    done_ptr,  # tickets, int32 [batch]
    table_ptr,  # fp32 [rows, WIDTH]
    out_ptr,  # the network's output [batch, n]
    uncond_ptr,  # its unconditional output, or None
    z_ptr,  # standard normals [batch, n] in place of Philox, or None
    n,
    stride,
    batch,
    channels,
    HALVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, start, blocks = _place(tl.program_id(0), stride, BLOCK)
    batch = batch.to(tl.int64)
    row = tl.load(row_ptr + b)
    lane = tl.arange(0, BLOCK)
    own = b * stride + start  # in our buffers, whose rows are padded to whole vectors
    outer = b * n + start  # in the network's
    padded = stride - start
    inside = n - start
    e = tl.load(out_ptr + outer + lane, mask=lane < inside, other=0.0).to(tl.float32)
    if uncond_ptr is not None:
        u = tl.load(uncond_ptr + outer + lane, mask=lane < inside, other=0.0).to(tl.float32)

    line = table_ptr + row.to(tl.int64) * WIDTH
    if tl.load(line + HALT) != 0:
        return
    slot = tl.load(line + SLOT).to(tl.int32)
    p = tl.load(line + P)
    q = tl.load(line + Q)
    p2 = tl.load(line + P2)
    q2 = tl.load(line + Q2)
    clamp = tl.load(line + CLAMP)
    guidance = tl.load(line + GUIDANCE)
    next_halt = tl.load(line + WIDTH + HALT)
    next_t = tl.load(line + WIDTH + T)
    next_scale = tl.load(line + WIDTH + IN_SCALE)
    write_x = tl.load(line + WRITE_X) != 0
    write_y = tl.load(line + WRITE_Y) != 0
    noise = tl.load(line + NOISE).to(tl.int32)
    xx, yx = _coefficients(line, 0, write_x, write_y)
    xy, yy = _coefficients(line, 1, write_x, write_y)
    x0, y0 = _coefficients(line, 2, write_x, write_y)
    x1, y1 = _coefficients(line, 3, write_x, write_y)
    x2, y2 = _coefficients(line, 4, write_x, write_y)
    x3, y3 = _coefficients(line, 5, write_x, write_y)
    x4, y4 = _coefficients(line, 6, write_x, write_y)
    x5, y5 = _coefficients(line, 7, write_x, write_y)
    xz, yz = _coefficients(line, 8, write_x, write_y)

    # Before the loads, whose results would have to be kept in registers beside Philox's.
    z = tl.zeros([BLOCK], tl.float32)
    noisy = (noise != 0) & ((xz != 0) | (yz != 0))
    if z_ptr is not None:
        z = _read(z_ptr + outer, inside, noisy, BLOCK)
    elif noisy:
        z = normals_block(tl.load(seeds_ptr + b), noise, start, n, channels, CHANNELS_LAST, BLOCK)

    # Every load is issued before the first result is needed; one that the row does not need is masked off.
    needs_y = (p != 0) | (p2 != 0) | (xy != 0) | (yy != 0)
    if net_in_ptr is not None:
        needs_y = needs_y | (write_y == 0)
    x = _read(x_ptr + own, padded, (xx != 0) | (yx != 0), BLOCK)
    y = _read(y_ptr + own, padded, needs_y, BLOCK)
    slots_ptr += own
    plane = batch * stride
    s0 = _slot(slots_ptr, plane, padded, 0, slot, x0, y0, BLOCK)
    s1 = _slot(slots_ptr, plane, padded, 1, slot, x1, y1, BLOCK)
    s2 = _slot(slots_ptr, plane, padded, 2, slot, x2, y2, BLOCK)
    s3 = _slot(slots_ptr, plane, padded, 3, slot, x3, y3, BLOCK)
    s4 = _slot(slots_ptr, plane, padded, 4, slot, x4, y4, BLOCK)
    s5 = _slot(slots_ptr, plane, padded, 5, slot, x5, y5, BLOCK)

    # The last ticket of a sample says that all its programs have read `row`. Taken here, its latency passes while
    # the loads are under way; the barrier keeps it behind this program's own reads.
    tl.debug_barrier()
    ticket = tl.atomic_add(done_ptr + b, 1)

    if uncond_ptr is not None:
        e = tl.where(guidance == 1, e, (e - u) * guidance + u)  # at scale 1 a sample owes nothing to the other half
    bad = (e.to(tl.int32, bitcast=True) & EXPONENT) == EXPONENT
    if tl.max(bad.to(tl.int32), 0) != 0:
        tl.atomic_min(first_bad_ptr + b, row, sem="relaxed")

    value = e * q
    if p != 0:
        value = y * p + value
    value = tl.where(value > clamp, clamp, value)  # minimum and maximum would lose a NaN
    value = tl.where(value < -clamp, -clamp, value)
    value = value * q2
    if p2 != 0:
        value = y * p2 + value
    stored = _round(value, slots_ptr.dtype.element_ty)
    tl.store(slots_ptr + slot * plane + lane, stored, mask=lane < padded)
    new = stored.to(tl.float32)
    s0 = tl.where(slot == 0, new, s0)
    s1 = tl.where(slot == 1, new, s1)
    s2 = tl.where(slot == 2, new, s2)
    s3 = tl.where(slot == 3, new, s3)
    s4 = tl.where(slot == 4, new, s4)
    s5 = tl.where(slot == 5, new, s5)

    following = y
    if write_x:
        total = _combine(x, y, s0, s1, s2, s3, s4, s5, z, xx, xy, x0, x1, x2, x3, x4, x5, xz)
        tl.store(x_ptr + own + lane, total, mask=lane < padded)
    if write_y:
        following = _combine(x, y, s0, s1, s2, s3, s4, s5, z, yx, yy, y0, y1, y2, y3, y4, y5, yz)
        tl.store(y_ptr + own + lane, following, mask=lane < padded)
    if net_in_ptr is not None:
        scaled = _round(following * next_scale, net_in_ptr.dtype.element_ty)
        for half in tl.static_range(HALVES):
            tl.store(net_in_ptr + half * batch * n + outer + lane, scaled, mask=lane < inside)

    if ticket == blocks - 1:
        tl.store(done_ptr + b, 0)
        tl.store(row_ptr + b, row + 1)
        t = next_t.to(t_ptr.dtype.element_ty)
        for half in tl.static_range(HALVES):
            tl.store(t_ptr + half * batch + b, t)
        if next_halt != 0:
            tl.atomic_add(active_ptr, -1, sem="relaxed")


@triton.jit(do_not_specialize=["index", "channels"])
def _normals_kernel(z_ptr, seeds_ptr, index, n, stride, channels, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    b, start, _ = _place(tl.program_id(0), stride, BLOCK)
    z = normals_block(tl.load(seeds_ptr + b), index, start, n, channels, CHANNELS_LAST, BLOCK)
    lane = tl.arange(0, BLOCK)
    tl.store(z_ptr + b * stride + start + lane, z, mask=lane < stride - start)


def _check_device(name: str, tensor: Tensor) -> None:
    if not (tensor.is_cuda or INTERPRETED.value):
        raise ValueError(
            f"{name} must be on a CUDA device for the Triton backend, got {tensor.device}; "
            "on the CPU it runs only in Triton's interpreter (TRITON_INTERPRET=1)"
        )


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
        ValueError: tensors are not on a CUDA device, x is not float32, or an operand is not a dense [B, n].
    """
    r = registers
    _check_device("x", r.x)
    if r.x.dtype != torch.float32:
        raise ValueError(f"x must be float32 for the Triton backend, got {r.x.dtype}")
    _check_operand("out", out, r)
    _check_operand("uncond", uncond, r)
    _check_operand("z", z, r)
    batch, stride = r.row.shape[0], r.x.shape[1]
    _apply_row_kernel[(triton.cdiv(stride, BLOCK) * batch,)](
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
        r.n,
        stride,
        batch,
        r.channels,
        HALVES=r.t.shape[0] // batch,
        CHANNELS_LAST=r.channels > 1,
        BLOCK=BLOCK,
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
        CHANNELS_LAST=channels > 1,
        BLOCK=BLOCK,
        **OPTIONS,
    )
    return z
