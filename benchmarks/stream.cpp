// The memory traffic of a steady PLMS row in a plain loop: the floor that the C++ row is compared with.
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
void row(int64_t n, const float* c, float* __restrict y, const T* __restrict out, T* __restrict slot,
         const T* __restrict s1, const T* __restrict s2, const T* __restrict s3, T* __restrict net_in) {
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

}  // namespace

#define STREAM(NAME, T, SEPARATE)                                                                  \
  extern "C" void NAME(int64_t n, const float* c, float* y, const void* out, void* slot,           \
                       const void* s1, const void* s2, const void* s3, void* net_in) {             \
    row<T, SEPARATE>(n, c, y, static_cast<const T*>(out), static_cast<T*>(slot),                   \
                     static_cast<const T*>(s1), static_cast<const T*>(s2),                         \
                     static_cast<const T*>(s3), static_cast<T*>(net_in));                          \
  }

STREAM(direct_float32, float, false)
STREAM(separate_float32, float, true)
STREAM(separate_bfloat16, BFloat16, true)
