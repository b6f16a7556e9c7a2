// The columns of a plan's table. The same as pndm_fast/table.py; a test compares the two.
#pragma once

#include <cstdint>

namespace pndm {

constexpr int kMaxSlots = 6;
constexpr int kForm = 2 + kMaxSlots + 1;  // coefficients of x, y, the slots and z

enum Column : int {
  kHalt,
  kTime,
  kInScale,
  kSlot,
  kP,
  kQ,
  kP2,
  kQ2,
  kClamp,
  kGuidance,
  kNoise,
  kWriteX,
  kWriteY,
  kX,
  kY = kX + kForm,
  kWidth = 32,
};

constexpr int64_t slot_offset(int64_t slot, int64_t sample, int64_t batch, int64_t stride) {
  return (slot * batch + sample) * stride;
}

}  // namespace pndm
