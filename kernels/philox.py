"""Standard normals on the device: `pndm_fast.row.noise` operation by operation, so the same bits.

Compile callers with enable_fp_fusion=False: a fused multiply-add changes the last bit.
"""

import triton
import triton.language as tl

from pndm_fast.row import noise

TAG = tl.constexpr(noise.TAG)
STREAM = tl.constexpr(noise.SAMPLING_STREAM)
MULTIPLIER_0, MULTIPLIER_1 = map(tl.constexpr, noise._MULTIPLIERS)
WEYL_0, WEYL_1 = map(tl.constexpr, noise._WEYL)
LOG_0, LOG_1, LOG_2, LOG_3, LOG_4, LOG_5, LOG_6, LOG_7 = map(tl.constexpr, noise.LOG)
SIN_0, SIN_1, SIN_2, SIN_3 = map(tl.constexpr, noise.SIN)
COS_0, COS_1, COS_2, COS_3 = map(tl.constexpr, noise.COS)
LN2_HIGH, LN2_LOW = tl.constexpr(noise.LN2_HIGH), tl.constexpr(noise.LN2_LOW)
SQRT_HALF_BITS = tl.constexpr(noise._SQRT_HALF_BITS)
TWO_M31, TWO_M32, TWO_M33 = tl.constexpr(2.0**-31), tl.constexpr(2.0**-32), tl.constexpr(2.0**-33)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on uint32 words."""
    for _ in tl.static_range(10):
        high_0, low_0 = tl.umulhi(c0, MULTIPLIER_0), c0 * MULTIPLIER_0
        high_1, low_1 = tl.umulhi(c2, MULTIPLIER_1), c2 * MULTIPLIER_1
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = k0 + WEYL_0, k1 + WEYL_1
    return c0, c1, c2, c3


@triton.jit
def _words(j, seed, index):
    zero = j ^ j
    return philox(
        j,
        zero + index.to(tl.uint32),
        zero + STREAM,
        zero + TAG,
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )


@triton.jit
def _log(u):
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = exponent.to(tl.float32)
    square = f * f
    p = LOG_7 * f + LOG_6
    p = (((((p * f + LOG_5) * f + LOG_4) * f + LOG_3) * f + LOG_2) * f + LOG_1) * f + LOG_0
    tail = p * (square * f) + e * LN2_LOW
    tail = tail - square * 0.5
    return (f + tail) + e * LN2_HIGH


@triton.jit
def _box_muller(k1, k2):
    """Radius, cosine and sine of one pair of words."""
    u = k1.to(tl.float32) * TWO_M32 + TWO_M33
    a = k2.to(tl.int32, bitcast=True).to(tl.float32) * TWO_M31
    radius = tl.sqrt_rn(_log(u) * -2.0)
    quarter = tl.floor(a * 2.0 + 0.5)
    r = a - quarter * 0.5
    square = r * r
    sine = (((SIN_3 * square + SIN_2) * square + SIN_1) * square + SIN_0) * r
    cosine = (((COS_3 * square + COS_2) * square + COS_1) * square + COS_0) * square + 1.0
    q = quarter.to(tl.int32)
    odd = (q & 1) != 0
    cos_a = tl.where(odd, sine, cosine).to(tl.int32, bitcast=True)
    sin_a = tl.where(odd, cosine, sine).to(tl.int32, bitcast=True)
    cos_a = cos_a ^ (((q + 1) & 2) << 30)  # Triton's unary minus is 0 - x, which loses the sign of zero
    sin_a = sin_a ^ ((q & 2) << 30)
    return radius, cos_a.to(tl.float32, bitcast=True), sin_a.to(tl.float32, bitcast=True)


@triton.jit
def _contiguous(seed, index, start, BLOCK: tl.constexpr):
    j = (start // 4).to(tl.uint32) + tl.arange(0, BLOCK // 4).to(tl.uint32)
    w0, w1, w2, w3 = _words(j, seed, index)
    r1, c1, s1 = _box_muller(w0, w1)
    r2, c2, s2 = _box_muller(w2, w3)
    return tl.interleave(tl.interleave(r1 * c1, r2 * c2), tl.interleave(r1 * s1, r2 * s2))


@triton.jit
def _scattered(seed, index, start, spatial, channels, BLOCK: tl.constexpr):
    first = (start % channels).to(tl.uint32) + tl.arange(0, BLOCK).to(tl.uint32)
    channel = first % channels.to(tl.uint32)
    position = start // channels + (first // channels.to(tl.uint32)).to(tl.int64)
    logical = channel.to(tl.int64) * spatial + position
    w0, w1, w2, w3 = _words((logical >> 2).to(tl.uint32), seed, index)
    second, sine = (logical & 2) != 0, (logical & 1) != 0
    radius, c, s = _box_muller(tl.where(second, w2, w0), tl.where(second, w3, w1))
    return radius * tl.where(sine, s, c)


@triton.jit
def normals_block(seed, index, start, n, channels, SCATTERED: tl.constexpr, BLOCK: tl.constexpr):
    """Normals of one sample's physical elements start .. start + BLOCK - 1; start is int64.

    SCATTERED where one counter's four normals are not four neighbors from a multiple of four on: samples are
    channels-last, or start is no multiple of 4. Else channels is 1.
    """
    if SCATTERED:
        z = _scattered(seed, index, start, n // channels, channels, BLOCK)
    else:
        z = _contiguous(seed, index, start, BLOCK)
    return z
