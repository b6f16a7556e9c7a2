"""`reference.begin` as one Triton kernel, bit for bit: x, y and the network's input before the first row."""

import triton
import triton.language as tl
from pndm_fast.kernels.apply_row import IN_SCALE, Launch, _place, _read, _read_all, _write, check_operand, scaled_all
from pndm_fast.kernels.matrix2 import added, coefficient, entries, number
from pndm_fast.kernels.philox import normals_block
from torch import Tensor

from pndm_fast.row import noise
from pndm_fast.row import table as columns
from pndm_fast.row.reference import Sources
from pndm_fast.row.registers import Registers

P0, ENTRY_SIGMA, ENTRY_ALPHA, A0, C0 = (
    tl.constexpr(getattr(columns, name)) for name in "P0 ENTRY_SIGMA ENTRY_ALPHA A0 C0".split()
)
INITIAL, PROLOGUE = tl.constexpr(noise.INITIAL), tl.constexpr(noise.PROLOGUE)


@triton.jit
def _added_all(total, values, held, COMPONENTS: tl.constexpr):
    components = ()
    for i in tl.static_range(COMPONENTS):
        components += (added(total[i], values, held, i, COMPONENTS),)
    return components


@triton.jit
def _any(held, COMPONENTS: tl.constexpr):
    found = False
    for i in tl.static_range(COMPONENTS):
        row = entries(held, i, COMPONENTS)
        for j in tl.static_range(COMPONENTS):
            found = found | (row[j] != 0)
    return found


@triton.jit(do_not_specialize=["batch", "channels"])
def _begin_kernel(
    x_ptr,  # registers: anchor, fp32 [batch, stride]
    y_ptr,  # state, the same
    row_ptr,  # int32 [batch]
    net_in_ptr,  # the network's input [CFG_COPIES * batch, COMPONENTS * n], or None
    seeds_ptr,  # int64 [batch]
    table_ptr,  # fp32 [rows, WIDTH]
    lines_ptr,  # int32 [batch]
    noise_ptr,  # the sources, fp32 [batch, COMPONENTS * n], or None
    state_ptr,
    image_ptr,
    z_ptr,
    n,  # elements of a component
    stride,
    batch,
    channels,
    WIDTH: tl.constexpr,  # of the table: its layout says how many components a sample has
    CFG_COPIES: tl.constexpr,
    SCATTERED: tl.constexpr,  # of `normals_block`
    BLOCK: tl.constexpr,  # elements of a component
):
    COMPONENTS: tl.constexpr = number("components", WIDTH)
    if COMPONENTS > 1 and not SCATTERED:
        n = n // 4 * 4  # the same, but known to be a multiple, as in the row
    length = stride if COMPONENTS == 1 else n
    b, start, _ = _place(tl.program_id(0), length, BLOCK)
    lane = tl.arange(0, BLOCK)
    component_stride = tl.cast(n, tl.int64)
    own, outer = b * stride + start, b * COMPONENTS * n + start  # in our buffers, and in others'
    left, inside = length - start, n - start
    line = table_ptr + tl.load(lines_ptr + b).to(tl.int64) * WIDTH
    following = table_ptr + tl.load(row_ptr + b).to(tl.int64) * WIDTH
    seed = tl.load(seeds_ptr + b)

    if state_ptr is not None:
        y = _read_all(state_ptr + outer, component_stride, lane, inside, COMPONENTS)
    elif noise_ptr is not None:
        y = _read_all(noise_ptr + outer, component_stride, lane, inside, COMPONENTS)
    else:
        y = ()
        for j in tl.static_range(COMPONENTS):
            index = tl.full([], INITIAL, tl.int32)
            y += (normals_block(seed, index, start + j * component_stride, n, channels, SCATTERED, BLOCK),)
    if state_ptr is None:
        y = scaled_all(y, coefficient(line, P0 if image_ptr is None else ENTRY_SIGMA, WIDTH), COMPONENTS)
    if image_ptr is not None:
        image = _read_all(image_ptr + outer, component_stride, lane, inside, COMPONENTS)
        y = _added_all(y, image, coefficient(line, ENTRY_ALPHA, WIDTH), COMPONENTS)
    y = scaled_all(y, coefficient(line, A0, WIDTH), COMPONENTS)

    c0 = coefficient(line, C0, WIDTH)
    noisy = _any(c0, COMPONENTS)
    z = ()
    for j in tl.static_range(COMPONENTS):
        value = tl.zeros([BLOCK], tl.float32)
        if z_ptr is not None:
            value = _read(z_ptr + outer + j * component_stride, lane, inside, noisy)
        elif noisy:
            index = tl.full([], PROLOGUE, tl.int32)
            value = normals_block(seed, index, start + j * component_stride, n, channels, SCATTERED, BLOCK)
        z += (value,)
    y = _added_all(y, z, c0, COMPONENTS)

    _write(x_ptr + own, component_stride, lane, left, y, COMPONENTS)
    _write(y_ptr + own, component_stride, lane, left, y, COMPONENTS)
    if net_in_ptr is not None:
        seen = scaled_all(y, coefficient(following, IN_SCALE, WIDTH), COMPONENTS)
        for copy in tl.static_range(CFG_COPIES):
            place = net_in_ptr + copy * batch.to(tl.int64) * COMPONENTS * n + outer
            _write(place, component_stride, lane, inside, seen, COMPONENTS)


def begin(registers: Registers, table: Tensor, lines: Tensor, sources: Sources) -> None:
    """`reference.begin` in one kernel launch on the current stream, without a host read or an allocation.

    Raises:
        ValueError: as `apply_row`.
    """
    launch = Launch.of(registers, table)
    for name, source in zip(Sources._fields, sources, strict=True):
        check_operand(name, source, registers)
    r = registers
    _begin_kernel[launch.grid](
        r.x, r.y, r.row, r.net_in, r.seeds, table, lines, *sources, *launch.numbers, **launch.options
    )
