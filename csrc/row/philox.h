// Counter-based standard normals, operation by operation as in pndm_fast/row/noise.py: the same
// bits.
#pragma once

#include <cstdint>

#include "row/half.h"

namespace pndm {

constexpr uint32_t kTag = 0x504E444D;
constexpr int64_t kCounters = 128;  // per pass: the words of one pass stay in the first-level cache

struct Words {
  alignas(64) uint32_t w[4][kCounters];
};

PNDM_INLINE void philox(uint32_t first, int64_t count, uint32_t index, uint64_t seed, Words& out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    uint32_t c0 = first + static_cast<uint32_t>(i), c1 = index, c2 = 0, c3 = kTag;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{c0} * 0xD2511F53u, p1 = uint64_t{c2} * 0xCD9E8D57u;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(p1);
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    out.w[0][i] = c0;
    out.w[1][i] = c1;
    out.w[2][i] = c2;
    out.w[3][i] = c3;
  }
}

PNDM_INLINE float log_of(float u) {
  const int32_t bits = static_cast<int32_t>(to_bits(u));
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  const float f =
      from_bits(static_cast<uint32_t>(bits) - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  const float e = static_cast<float>(exponent), square = f * f;
  float p = -0.07634429633617401f;
  p = p * f + 0.12761549651622772f;
  p = p * f + -0.131601944565773f;
  p = p * f + 0.14201761782169342f;
  p = p * f + -0.16623356938362122f;
  p = p * f + 0.20001226663589478f;
  p = p * f + -0.250008225440979f;
  p = p * f + 0.3333333134651184f;
  const float tail = p * (square * f) + e * -2.12194440e-4f - square * 0.5f;
  return (f + tail) + e * 0.693359375f;
}

// A uint32 as the nearest float: both components and the shifted one are exact, the sum rounds
// once.
PNDM_INLINE float unsigned_to_float(uint32_t k) {
  return static_cast<float>(static_cast<int32_t>(k >> 16)) * 65536.0f +
         static_cast<float>(static_cast<int32_t>(k & 0xffffu));
}

PNDM_INLINE void box_muller(uint32_t k1, uint32_t k2, float& first, float& second) {
  const float u = unsigned_to_float(k1) * 0x1p-32f + 0x1p-33f;
  const float a = static_cast<float>(static_cast<int32_t>(k2)) * 0x1p-31f;
  const float radius = __builtin_sqrtf(log_of(u) * -2.0f);
  const float twice = a * 2.0f + 0.5f;
  const int32_t toward_zero = static_cast<int32_t>(twice);
  const int32_t q = toward_zero - (twice < static_cast<float>(toward_zero) ? 1 : 0);
  const float r = a - static_cast<float>(q) * 0.5f, square = r * r;
  float sine = -0.5889958143234253f;
  sine = sine * square + 2.549759864807129f;
  sine = sine * square + -5.167707443237305f;
  sine = sine * square + 3.1415927410125732f;
  sine = sine * r;
  float cosine = 0.23135781288146973f;
  cosine = cosine * square + -1.3350498676300049f;
  cosine = cosine * square + 4.0587077140808105f;
  cosine = cosine * square + -4.934802055358887f;
  cosine = cosine * square + 1.0f;
  const uint32_t odd = 0u - (static_cast<uint32_t>(q) & 1u), bits = static_cast<uint32_t>(q);
  const uint32_t s = to_bits(sine), c = to_bits(cosine);
  first = radius * from_bits(((s & odd) | (c & ~odd)) ^ (((bits + 1u) & 2u) << 30));
  second = radius * from_bits(((c & odd) | (s & ~odd)) ^ ((bits & 2u) << 30));
}

// The normals of `count` counters from `first` on: 4 * count floats.
PNDM_INLINE void normals_of_counters(uint32_t first, int64_t count, uint32_t index, uint64_t seed,
                                     float* out) {
  Words words;
  philox(first, count, index, seed, words);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    float values[4];
    box_muller(words.w[0][i], words.w[1][i], values[0], values[1]);
    box_muller(words.w[2][i], words.w[3][i], values[2], values[3]);
    out[4 * i] = values[0];
    out[4 * i + 1] = values[1];
    out[4 * i + 2] = values[2];
    out[4 * i + 3] = values[3];
  }
}

// Logical elements [first, first + count) of a sample to out[0], out[step], out[2 step], ...
PNDM_INLINE void normals_run(uint64_t seed, uint32_t index, int64_t first, int64_t count,
                             int64_t step, float* out) {
  alignas(64) float buffer[4 * kCounters];
  for (int64_t done = 0; done < count;) {
    const int64_t counter = (first + done) / 4, skip = (first + done) % 4;
    const int64_t room = 4 * kCounters - skip, left = count - done;
    const int64_t take = left < room ? left : room;
    normals_of_counters(static_cast<uint32_t>(counter), (skip + take + 3) / 4, index, seed, buffer);
    if (step == 1) {
      std::memcpy(out + done, buffer + skip, static_cast<size_t>(take) * sizeof(float));
    } else {
      for (int64_t i = 0; i < take; ++i) out[(done + i) * step] = buffer[skip + i];
    }
    done += take;
  }
}

}  // namespace pndm
