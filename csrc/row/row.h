// The columns of a plan's table. The same as pndm_fast/row/table.py; a test compares the two.
#pragma once

#include <cstdint>

namespace pndm {

constexpr int kMaxComponents = 2;  // of a sample: position and momentum
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
  kCoefficients,  // from here on, coefficients: matrices of components x components numbers
  kInScale = kCoefficients,
  kP,
  kQ,
  kP2,
  kQ2,
  kX,
  kY = kX + kForm,
  kEnd = kY + kForm,
  // of the line that says how a plan starts
  kP0 = kCoefficients,
  kEntrySigma,
  kEntryAlpha,
  kA0,
  kC0,
};

// Where a coefficient begins, given its column in a line of one component.
constexpr int column(int first, int components) {
  return kCoefficients + (first - kCoefficients) * components * components;
}

constexpr int width(int components) { return components == 1 ? 32 : 128; }

static_assert(column(kEnd, 1) <= width(1) && column(kEnd, kMaxComponents) <= width(kMaxComponents));

constexpr int64_t slot_offset(int64_t slot, int64_t sample, int64_t batch, int64_t stride) {
  return (slot * batch + sample) * stride;
}

}  // namespace pndm
