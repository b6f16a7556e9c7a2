"""Coefficients of a row in its kernel: numbers, or 2x2 matrices where samples have two components.

Matrices, and the numbers of wide lines, are held as their places in the table and read where they are applied: all of
a row's would not stay in registers beside its operands, or would keep a program off the SM (of wide lines, 109 to 149
registers in place of 93 to 111).
"""

import triton
import triton.language as tl

from pndm_fast.row import table as columns

NARROW = tl.constexpr(columns.NARROW.width)


@triton.constexpr_function
def number(name, width):
    """What `Layout` says, by its name, of tables of that width."""
    return getattr(columns.LAYOUTS[width], name)


@triton.constexpr_function
def column(first, width):
    """Where a coefficient begins in lines of that width."""
    return columns.LAYOUTS[width].column(first)


@triton.jit
def _pair(place):
    """Two numbers, fp32, in one access."""
    bits = tl.load(place.to(tl.pointer_type(tl.int64)))
    return bits.to(tl.int32).to(tl.float32, bitcast=True), (bits >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def coefficient(line, first: tl.constexpr, WIDTH: tl.constexpr):
    """The number at a column of a narrow line, or the place of what stands there."""
    held = line + column(first, WIDTH)
    if WIDTH == NARROW:
        held = tl.load(held)
    return held


@triton.jit
def entries(held, i: tl.constexpr, COMPONENTS: tl.constexpr):
    """What component i of the result takes of each component of the operand."""
    if COMPONENTS > 1:
        row = _pair(held + i * COMPONENTS)
    elif held.dtype.is_ptr():
        row = (tl.load(held),)
    else:
        row = (held,)
    return row


@triton.jit
def both(a, b, use_a, use_b, COMPONENTS: tl.constexpr):
    """An operand's coefficients for two results, of which one that is not used takes nothing.

    Of places it also says which components of the operand they take anything of.
    """
    if not a.dtype.is_ptr():
        held = (tl.where(use_a, a, 0.0), tl.where(use_b, b, 0.0))
    elif COMPONENTS == 1:
        held = (a, b, (use_a & (tl.load(a) != 0)) | (use_b & (tl.load(b) != 0)))
    else:
        held = (a, b)
        a0, a1, b0, b1 = _pair(a), _pair(a + COMPONENTS), _pair(b), _pair(b + COMPONENTS)
        for j in tl.static_range(COMPONENTS):
            held += ((use_a & ((a0[j] != 0) | (a1[j] != 0))) | (use_b & ((b0[j] != 0) | (b1[j] != 0))),)
    return held


@triton.jit
def takes(held, j: tl.constexpr, others=False):
    """Whether one of both coefficients takes anything of the operand's component j, or `others` do."""
    if len(held) == 2:
        answer = others | (held[0] != 0) | (held[1] != 0)
    else:
        answer = others | held[2 + j]
    return answer


@triton.jit
def add(total, values, number):
    """total + number values, but values that are not used may hold anything."""
    if number != 0:
        total += values * number
    return total


@triton.jit
def _add_others(total, operand, row, i: tl.constexpr, COMPONENTS: tl.constexpr):
    for j in tl.static_range(COMPONENTS):
        if j != i:
            total = add(total, operand[j], row[j])
    return total


@triton.jit
def scaled(operand, held, i: tl.constexpr, COMPONENTS: tl.constexpr):
    """Component i of coefficient operand: first what it takes of its own component, which is never left out."""
    row = entries(held, i, COMPONENTS)
    return _add_others(operand[i] * row[i], operand, row, i, COMPONENTS)


@triton.jit
def added(total, operand, held, i: tl.constexpr, COMPONENTS: tl.constexpr):
    """Component i, so far total, plus coefficient operand, in the same order."""
    row = entries(held, i, COMPONENTS)
    return _add_others(add(total, operand[i], row[i]), operand, row, i, COMPONENTS)
