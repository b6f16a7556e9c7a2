// The memory traffic of a steady PLMS row in a plain loop: the floor that the C++ row is compared
// with.
#include <cstdint>
#include <cstring>

namespace {

struct BFloat16 {
  uint16_t bits;

  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }

  BFloat16& operator=(float value) {  // ties to even; NaN not kept
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    bits = static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
    return *this;
  }
};

template <typename T, bool kSeparate>
void row(int64_t n, const float* c, float* __restrict y, const T* __restrict out,
         T* __restrict slot, const T* __restrict s1, const T* __restrict s2, const T* __restrict s3,
         T* __restrict net_in) {
  const float cy = c[0], c0 = c[1], c1 = c[2], c2 = c[3], c3 = c[4];
  for (int64_t i = 0; i < n; ++i) {
    const T e = out[i];
    const float next = cy * y[i] + c0 * static_cast<float>(e) + c1 * static_cast<float>(s1[i]) +
                       c2 * static_cast<float>(s2[i]) + c3 * static_cast<float>(s3[i]);
    slot[i] = e;
    y[i] = next;
    if constexpr (kSeparate) net_in[i] = next;
  }
}

// Any row: so many operands are read, so many registers are written, all float32. Named pointers,
// without which the compiler sees aliases and makes no vectors of the loop.
template <int kReads, int kWrites>
void any_row(int64_t n, const float* c, const float* const* in, float* const* out) {
  const float* __restrict a0 = in[0];
  const float* __restrict a1 = in[1];
  const float* __restrict a2 = in[kReads > 2 ? 2 : 0];
  const float* __restrict a3 = in[kReads > 3 ? 3 : 0];
  const float* __restrict a4 = in[kReads > 4 ? 4 : 0];
  const float* __restrict a5 = in[kReads > 5 ? 5 : 0];
  const float* __restrict a6 = in[kReads > 6 ? 6 : 0];
  float* __restrict o0 = out[0];
  float* __restrict o1 = out[1];
  float* __restrict o2 = out[kWrites > 2 ? 2 : 0];
  float w[7] = {};
  for (int k = 0; k < kReads; ++k) w[k] = c[k];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    float sum = w[0] * a0[i] + w[1] * a1[i];
    if constexpr (kReads > 2) sum += w[2] * a2[i];
    if constexpr (kReads > 3) sum += w[3] * a3[i];
    if constexpr (kReads > 4) sum += w[4] * a4[i];
    if constexpr (kReads > 5) sum += w[5] * a5[i];
    if constexpr (kReads > 6) sum += w[6] * a6[i];
    o0[i] = sum;
    o1[i] = sum + 1;
    if constexpr (kWrites > 2) o2[i] = sum + 2;
  }
}

template <int kReads>
void any_row(int writes, int64_t n, const float* c, const float* const* in, float* const* out) {
  if (writes == 2) any_row<kReads, 2>(n, c, in, out);
  if (writes == 3) any_row<kReads, 3>(n, c, in, out);
}

}  // namespace

extern "C" int any(int reads, int writes, int64_t n, const float* c, const float* const* in,
                   float* const* out) {
  if (writes < 2 || writes > 3) return 1;
  switch (reads) {
    case 2:
      any_row<2>(writes, n, c, in, out);
      return 0;
    case 3:
      any_row<3>(writes, n, c, in, out);
      return 0;
    case 4:
      any_row<4>(writes, n, c, in, out);
      return 0;
    case 5:
      any_row<5>(writes, n, c, in, out);
      return 0;
    case 6:
      any_row<6>(writes, n, c, in, out);
      return 0;
    case 7:
      any_row<7>(writes, n, c, in, out);
      return 0;
    default:
      return 1;
  }
}

#define STREAM(NAME, T, SEPARATE)                                                        \
  extern "C" void NAME(int64_t n, const float* c, float* y, const void* out, void* slot, \
                       const void* s1, const void* s2, const void* s3, void* net_in) {   \
    row<T, SEPARATE>(n, c, y, static_cast<const T*>(out), static_cast<T*>(slot),         \
                     static_cast<const T*>(s1), static_cast<const T*>(s2),               \
                     static_cast<const T*>(s3), static_cast<T*>(net_in));                \
  }

STREAM(direct_float32, float, false)
STREAM(separate_float32, float, true)
STREAM(separate_bfloat16, BFloat16, true)
