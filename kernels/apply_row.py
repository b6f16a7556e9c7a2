"""`apply_row` as one Triton kernel; `pndm_fast.row.reference` says what it computes, bit for bit.

A program has a block of a sample, at two components the same block of position and of momentum: it reads and writes
each element once. What stands for an operand is a tuple of its components.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from pndm_fast.kernels.matrix2 import add, added, both, coefficient, entries, number, scaled, takes
from pndm_fast.kernels.philox import normals_block
from torch import Tensor

from pndm_fast.row import table as columns
from pndm_fast.row.registers import Registers

# Elements of all components. With 4 warps the smallest block whose 16-bit operands are read 128 bits at a time, and of
# two components the fp32 ones: a larger one would not fit in registers.
BLOCK = 1024
OPTIONS = {
    "num_warps": 4,
    "maxnreg": 128,  # four programs an SM; uncapped the compiler takes up to 162, capped at 104 it spills
    "enable_fp_fusion": False,  # a fused multiply-add would not be the reference's bits
}
# Of wide lines, whose operands are twice as many: the smallest whose fp32 operands are read 128 bits at a time. 1024
# would take 158 to 205 registers, two or three programs an SM in place of four or five.
WIDE_BLOCK = 512
# Uncapped the compiler takes 93 to 96, five programs an SM, and of guided rows on 10.0 up to 111, four, for which a cap
# that binds is paid in spills.
WIDE_OPTIONS = {**OPTIONS, "maxnreg": None}

HALT, T, SLOT, CLAMP, GUIDANCE, NOISE, WRITE_X, WRITE_Y, IN_SCALE, P, Q, P2, Q2, X = (
    tl.constexpr(getattr(columns, name))
    for name in "HALT T SLOT CLAMP GUIDANCE NOISE WRITE_X WRITE_Y IN_SCALE P Q P2 Q2 X".split()
)
FIRST_SLOT = tl.constexpr(2)  # operands are x, y, the slots and z
EXPONENT = tl.constexpr(0x7F800000)
INTERPRETED = tl.constexpr(not isinstance(normals_block, triton.JITFunction))  # TRITON_INTERPRET=1


@triton.jit
def _place(pid, length, BLOCK: tl.constexpr):
    """The program's sample, the first element of its block there, both int64, and the blocks of a sample."""
    blocks = (length - 1) // BLOCK + 1
    return (pid // blocks).to(tl.int64), (pid % blocks).to(tl.int64) * BLOCK, blocks


@triton.jit
def _read_all(ptr, component_stride, lane, left, COMPONENTS: tl.constexpr):
    """Of each component the first `left` elements, then zeros."""
    components = ()
    for j in tl.static_range(COMPONENTS):
        components += (tl.load(ptr + j * component_stride + lane, mask=lane < left, other=0.0).to(tl.float32),)
    return components


@triton.jit
def _read(ptr, lane, left, needed):
    """The first `left` elements at ptr, then zeros; no traffic unless they are needed."""
    # Triton's interpreter cannot broadcast one bit; in machine code this is the predicate of one branchless load.
    wanted = tl.zeros_like(lane) + needed.to(tl.int32)
    return tl.load(ptr + lane, mask=(lane < left) & (wanted != 0), other=0.0).to(tl.float32)


@triton.jit
def _operand(ptr, component_stride, lane, left, held, when, COMPONENTS: tl.constexpr):
    """The components of which its coefficients take anything."""
    components = ()
    for j in tl.static_range(COMPONENTS):
        components += (_read(ptr + j * component_stride, lane, left, when & takes(held, j)),)
    return components


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
def _guided(e, u, guidance, COMPONENTS: tl.constexpr):
    components = ()
    for j in tl.static_range(COMPONENTS):  # at scale 1 a sample owes nothing to the unconditional output
        components += (tl.where(guidance == 1, e[j], (e[j] - u[j]) * guidance + u[j]),)
    return components


@triton.jit
def _any_bad(values):
    """Not zero where an element is not finite."""
    bad = (values[0].to(tl.int32, bitcast=True) & EXPONENT) == EXPONENT
    for j in tl.static_range(1, len(values)):
        bad = bad | ((values[j].to(tl.int32, bitcast=True) & EXPONENT) == EXPONENT)
    return tl.max(bad.to(tl.int32), 0)


@triton.jit
def _converted(e, y, p, q, p2, q2, clamp, COMPONENTS: tl.constexpr):
    """From what the network predicts to what the solver combines."""
    clamped = ()
    for i in tl.static_range(COMPONENTS):
        value = added(scaled(e, q, i, COMPONENTS), y, p, i, COMPONENTS)
        value = tl.where(value > clamp, clamp, value)  # minimum and maximum would lose a NaN
        clamped += (tl.where(value < -clamp, -clamp, value),)
    components = ()
    for i in tl.static_range(COMPONENTS):
        components += (added(scaled(clamped, q2, i, COMPONENTS), y, p2, i, COMPONENTS),)
    return components


@triton.jit
def _write(ptr, component_stride, lane, left, values, COMPONENTS: tl.constexpr):
    """Write the components in the buffer's dtype, and return them as they now are."""
    components = ()
    for i in tl.static_range(COMPONENTS):
        rounded = _round(values[i], ptr.dtype.element_ty)
        tl.store(ptr + i * component_stride + lane, rounded, mask=lane < left)
        components += (rounded.to(tl.float32),)
    return components


@triton.jit
def _replaced(slots, at, values, COMPONENTS: tl.constexpr):
    """The slots once values are written to one of them, or to none."""
    read = ()
    for k in tl.static_range(len(slots)):
        components = ()
        for j in tl.static_range(COMPONENTS):
            components += (tl.where(at == k, values[j], slots[k][j]),)
        read += (components,)
    return read


@triton.jit
def _combine(ptr, component_stride, lane, left, operands, forms, RESULT: tl.constexpr, COMPONENTS: tl.constexpr):
    """Write the operands' sum in the table's order, from zero, each step rounded."""
    components = ()
    for i in tl.static_range(COMPONENTS):
        total = tl.zeros_like(operands[0][0])
        for k in tl.static_range(len(operands)):
            row = entries(forms[k][RESULT], i, COMPONENTS)
            for j in tl.static_range(COMPONENTS):
                total = add(total, operands[k][j], row[j])
        # at once: its registers are free for the other's
        tl.store(ptr + i * component_stride + lane, total, mask=lane < left)
        components += (total,)
    return components


@triton.jit
def scaled_all(values, held, COMPONENTS: tl.constexpr):
    """coefficient values."""
    components = ()
    for i in tl.static_range(COMPONENTS):
        components += (scaled(values, held, i, COMPONENTS),)
    return components


@triton.jit(do_not_specialize=["batch", "channels"])
def _apply_row_kernel(
    x_ptr,  # the registers, in the order of pndm_fast/row/schema.py: anchor, fp32 [batch, stride]
    y_ptr,  # state, the same
    slots_ptr,  # past converted outputs [slots, batch, stride]
    row_ptr,  # int32 [batch]
    t_ptr,  # the network's time input [CFG_COPIES * batch]
    net_in_ptr,  # the network's input [CFG_COPIES * batch, COMPONENTS * n], or None
    seeds_ptr,  # int64 [batch]
    first_bad_ptr,  # int32 [batch]
    active_ptr,  # int32 [1]
    done_ptr,  # tickets, int32 [batch], or None where somebody else advances row, t and active
    table_ptr,  # fp32 [rows, WIDTH]
    out_ptr,  # the network's output [batch, COMPONENTS * n]
    uncond_ptr,  # its unconditional output, or None
    z_ptr,  # standard normals [batch, COMPONENTS * n] in place of Philox, or None
    n,  # elements of a component
    stride,
    batch,
    channels,
    WIDTH: tl.constexpr,  # of the table: the form of its rows follows
    CFG_COPIES: tl.constexpr,
    SCATTERED: tl.constexpr,  # of `normals_block`
    BLOCK: tl.constexpr,  # elements of a component
):
    COMPONENTS: tl.constexpr = number("components", WIDTH)
    SLOTS: tl.constexpr = number("slots", WIDTH)
    OPERANDS: tl.constexpr = number("operands", WIDTH)
    Y: tl.constexpr = number("y", WIDTH)
    SECOND: tl.constexpr = number("second", WIDTH) if uncond_ptr is not None else None
    if COMPONENTS > 1 and not SCATTERED:
        n = n // 4 * 4  # the same, but known to be a multiple: the second component is as aligned as the first
    # a single component's padding is written too: its accesses are whole vectors
    length = stride if COMPONENTS == 1 else n
    b, start, blocks = _place(tl.program_id(0), length, BLOCK)
    batch = batch.to(tl.int64)
    row = tl.load(row_ptr + b)
    lane = tl.arange(0, BLOCK)
    component_stride = tl.cast(n, tl.int64)
    own = b * stride + start  # in our buffers
    outer = b * COMPONENTS * n + start  # in the network's
    left = length - start
    inside = n - start
    e = _read_all(out_ptr + outer, component_stride, lane, inside, COMPONENTS)
    if uncond_ptr is not None:
        u = _read_all(uncond_ptr + outer, component_stride, lane, inside, COMPONENTS)

    line = table_ptr + row.to(tl.int64) * WIDTH
    if tl.load(line + HALT) != 0:
        return
    slot = tl.load(line + SLOT).to(tl.int32)
    second = -1  # the slot of the unconditional output, where one is kept
    if SECOND is not None:
        second = tl.load(line + SECOND).to(tl.int32) - 1
    p = coefficient(line, P, WIDTH)
    q = coefficient(line, Q, WIDTH)
    p2 = coefficient(line, P2, WIDTH)
    q2 = coefficient(line, Q2, WIDTH)
    store_y = both(p, p2, True, True, COMPONENTS)
    clamp = tl.load(line + CLAMP)
    guidance = tl.load(line + GUIDANCE)
    next_line = line + WIDTH
    next_halt = tl.load(next_line + HALT)
    next_t = tl.load(next_line + T)
    next_scale = coefficient(next_line, IN_SCALE, WIDTH)
    write_x = tl.load(line + WRITE_X) != 0
    write_y = tl.load(line + WRITE_Y) != 0
    noise = tl.load(line + NOISE).to(tl.int32)
    forms = ()
    for k in tl.static_range(OPERANDS):
        forms += (both(coefficient(line, X + k, WIDTH), coefficient(line, Y + k, WIDTH), write_x, write_y, COMPONENTS),)

    # Before the loads, whose results would have to be kept in registers beside Philox's.
    z = ()
    for j in tl.static_range(COMPONENTS):
        normals = tl.zeros([BLOCK], tl.float32)
        noisy = (noise != 0) & takes(forms[OPERANDS - 1], j)
        if z_ptr is not None:
            normals = _read(z_ptr + outer + j * component_stride, lane, inside, noisy)
        elif noisy:
            normals = normals_block(
                tl.load(seeds_ptr + b), noise, start + j * component_stride, n, channels, SCATTERED, BLOCK
            )
        z += (normals,)

    # Every load is issued before the first result is needed; one that the row does not need is masked off.
    needs_y = ()
    for j in tl.static_range(COMPONENTS):
        needed = takes(forms[1], j, takes(store_y, j))
        if net_in_ptr is not None:
            needed = needed | (write_y == 0)
        needs_y += (needed,)
    x = _operand(x_ptr + own, component_stride, lane, left, forms[0], True, COMPONENTS)
    y = ()
    for j in tl.static_range(COMPONENTS):
        y += (_read(y_ptr + own + j * component_stride, lane, left, needs_y[j]),)
    slots_ptr += own
    plane = batch * stride
    slots = ()
    for k in tl.static_range(SLOTS):
        place, old = slots_ptr + plane * k, (k != slot) & (k != second)  # the row's own are taken from what it stores
        slots += (_operand(place, component_stride, lane, left, forms[FIRST_SLOT + k], old, COMPONENTS),)

    # The last ticket of a sample says that all its programs have read `row`. Taken here, its latency passes while
    # the loads are under way; the barrier keeps it behind this program's own reads. Relaxed is enough: a thread comes
    # to the barrier because of the `row` that it read, so that read is over, and what the last one writes only the
    # next launch reads. Anything stronger waits for all memory traffic and empties the L1 cache.
    if done_ptr is not None:
        tl.debug_barrier()
        ticket = tl.atomic_add(done_ptr + b, 1, sem="relaxed")

    if uncond_ptr is not None:
        e = _guided(e, u, guidance, COMPONENTS)
    checked = e
    if SECOND is not None:
        checked += (tl.where(second >= 0, u[0], e[0]),)
    if _any_bad(checked) != 0:
        tl.atomic_min(first_bad_ptr + b, row, sem="relaxed")

    if SECOND is not None:
        kept = _converted(u, y, p, q, p2, q2, clamp, COMPONENTS)
        held = tl.where(second >= 0, left, 0)
        kept = _write(slots_ptr + second * plane, component_stride, lane, held, kept, COMPONENTS)
        slots = _replaced(slots, second, kept, COMPONENTS)
    new = _converted(e, y, p, q, p2, q2, clamp, COMPONENTS)
    new = _write(slots_ptr + slot * plane, component_stride, lane, left, new, COMPONENTS)
    operands = (x, y) + _replaced(slots, slot, new, COMPONENTS) + (z,)

    following = y
    if write_x:
        _combine(x_ptr + own, component_stride, lane, left, operands, forms, 0, COMPONENTS)
    if write_y:
        following = _combine(y_ptr + own, component_stride, lane, left, operands, forms, 1, COMPONENTS)
    if net_in_ptr is not None:
        values = scaled_all(following, next_scale, COMPONENTS)
        for copy in tl.static_range(CFG_COPIES):
            place = net_in_ptr + copy * batch * COMPONENTS * n + outer
            _write(place, component_stride, lane, inside, values, COMPONENTS)

    if done_ptr is not None:
        if ticket == blocks - 1:
            tl.store(done_ptr + b, 0)
            tl.store(row_ptr + b, row + 1)
            t = next_t.to(t_ptr.dtype.element_ty)
            for copy in tl.static_range(CFG_COPIES):
                tl.store(t_ptr + copy * batch + b, t)
            if next_halt != 0:
                tl.atomic_add(active_ptr, -1, sem="relaxed")


def _check_device(name: str, tensor: Tensor) -> None:
    if not (tensor.is_cuda or INTERPRETED.value):
        raise ValueError(
            f"{name} must be on a CUDA device for the Triton backend, got {tensor.device}; "
            "on the CPU it runs only in Triton's interpreter (TRITON_INTERPRET=1)"
        )


def _check_components(components: int, r: Registers) -> None:
    if components > 1 and (r.n % components or r.channels > 1):
        raise ValueError(f"a table of 2x2 matrices must have an even n and channels 1, got {r.n} and {r.channels}")


def check_operand(name: str, tensor: Tensor | None, r: Registers) -> None:
    if tensor is not None and (
        tensor.numel() != r.row.shape[0] * r.n or not tensor.is_contiguous() or tensor.device != r.x.device
    ):
        raise ValueError(
            f"{name} must be contiguous [{r.batch}, {r.n}] on {r.x.device}, got {list(tensor.shape)} with strides "
            f"{tensor.stride()} on {tensor.device}"
        )


def form_of(layout: columns.Layout) -> tuple[int, dict[str, Any]]:
    """Elements of a component in a program, and the compiler's options."""
    return (WIDE_BLOCK, WIDE_OPTIONS) if layout is columns.WIDE else (BLOCK // layout.components, OPTIONS)


class Launch(NamedTuple):
    """How a kernel over all elements of registers is launched.

    Attributes:
        numbers: its arguments n, stride, batch and channels.
    """

    grid: tuple[int]
    numbers: tuple[int, int, int, int]
    options: dict[str, Any]

    @classmethod
    def of(cls, r: Registers, table: Tensor) -> "Launch":
        """For those registers and that table.

        Raises:
            ValueError: they are not on a CUDA device, x is not float32, or samples cannot be two components for a table
                of 2x2 matrices.
        """
        _check_device("x", r.x)
        if r.x.dtype != torch.float32:
            raise ValueError(f"x must be float32 for the Triton backend, got {r.x.dtype}")
        layout = columns.layout_of(table)
        components, (block, compiler) = layout.components, form_of(layout)
        _check_components(components, r)
        batch, stride, n = r.row.shape[0], r.x.shape[1], r.n // components
        length = stride if components == 1 else n
        options = {
            "WIDTH": layout.width,
            "CFG_COPIES": r.t.shape[0] // batch,
            "SCATTERED": r.channels > 1 or (components > 1 and n % 4 != 0),
            "BLOCK": block,
            **compiler,
        }
        return cls((triton.cdiv(length, block) * batch,), (n, stride, batch, r.channels), options)


def apply_row(
    registers: Registers, table: Tensor, out: Tensor, uncond: Tensor | None = None, z: Tensor | None = None
) -> None:
    """`reference.apply_row` in one kernel launch on the current stream, without a host read or an allocation.

    The checks cost 3.5 us of host time (guided; EPYC 9005), Triton's launcher several times that; in a captured graph
    neither remains.

    Raises:
        ValueError: as `Launch.of`, or an operand is not a dense [B, n].
    """
    launch = Launch.of(registers, table)
    check_operand("out", out, registers)
    check_operand("uncond", uncond, registers)
    check_operand("z", z, registers)
    _apply_row_kernel[launch.grid](*registers.tensors(), table, out, uncond, z, *launch.numbers, **launch.options)
