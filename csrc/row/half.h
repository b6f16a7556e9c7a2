// float16 and bfloat16 as bit arithmetic, so that these loops vectorize on every instruction set.
// Narrowing rounds to nearest even; NaN stays NaN; subnormals are exact.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// Internal linkage and forced inlining: each instruction set's translation unit keeps its own copy.
#define PNDM_INLINE static inline __attribute__((always_inline))

namespace pndm {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

PNDM_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

PNDM_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PNDM_INLINE float widen(float value) { return value; }

PNDM_INLINE float widen(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

PNDM_INLINE float widen(Float16 value) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  // A subnormal's fraction, put under the exponent of 2^-14, is 2^-14 too large; the difference is
  // exact.
  const uint32_t small =
      to_bits(from_bits(magnitude + kRebias + (1u << 23)) - from_bits(kRebias + (1u << 23)));
  const uint32_t special = magnitude | 0x7f800000u;
  uint32_t bits = magnitude + kRebias;
  bits = magnitude < (1u << 23) ? small : bits;
  bits = magnitude >= (31u << 23) ? special : bits;
  return from_bits(bits | sign);
}

PNDM_INLINE void narrow(float value, float& to) { to = value; }

PNDM_INLINE void narrow(float value, BFloat16& to) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

PNDM_INLINE void narrow(float value, Float16& to) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t sign = (to_bits(value) >> 16) & 0x8000u;
  const uint32_t bits = to_bits(value) & 0x7fffffffu;
  // Adding 1/2 aligns a float below 2^-14 to float16's subnormal spacing 2^-24: the adder rounds.
  const uint32_t small = to_bits(from_bits(bits) + 0.5f) - to_bits(0.5f);
  const uint32_t normal = (bits - kRebias + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  const uint32_t special = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t half = bits < kRebias + (1u << 23) ? small : normal;
  half = bits >= kRebias + (31u << 23) ? special : half;
  to.bits = static_cast<uint16_t>(half | sign);
}

}  // namespace pndm
