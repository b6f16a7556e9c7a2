// The columns of a plan's table. The same as pndm_fast/row/table.py; a test compares the two.
#pragma once

#include <cstdint>

namespace pndm {

constexpr int kMaxParts = 2;  // of a sample: position and momentum
constexpr int kMaxSlots = 6;
constexpr int kForm = 2 + kMaxSlots + 1;  // coefficients of x, y, the slots and z

enum Column : int {
  kHalt,
  kTime,
  kSlot,
  kClamp,
  kGuidance,
  kNoise,
  kWriteX,
  kWriteY,
  kBlocks,  // from here on, coefficients: blocks of parts x parts numbers
  kInScale = kBlocks,
  kP,
  kQ,
  kP2,
  kQ2,
  kX,
  kY = kX + kForm,
  kEnd = kY + kForm,
};

// Where a coefficient begins, given its column in a line of one part.
constexpr int column(int first, int parts) { return kBlocks + (first - kBlocks) * parts * parts; }

constexpr int width(int parts) { return parts == 1 ? 32 : 128; }

static_assert(column(kEnd, 1) <= width(1) && column(kEnd, kMaxParts) <= width(kMaxParts));

constexpr int64_t slot_offset(int64_t slot, int64_t sample, int64_t batch, int64_t stride) {
  return (slot * batch + sample) * stride;
}

}  // namespace pndm
