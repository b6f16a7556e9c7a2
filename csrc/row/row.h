// The layouts of a plan's table. The same as pndm_fast/row/table.py; a test compares the two.
#pragma once

#include <cstdint>

namespace pndm {

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

// What stands where in the lines of a table.
struct Layout {
  int width;       // numbers of a line
  int components;  // of a sample: 2 are position and momentum
  int slots;       // that there are coefficients for
  int second;      // the column of 1 + the slot of the unconditional output; 0 where none is kept

  // Where Y begins, and what is behind it, as columns of one component. X, which begins at kX, and
  // Y are coefficients of x, y, the slots and z.
  constexpr int y() const { return kX + 3 + slots; }
  constexpr int end() const { return y() + 3 + slots; }
};

constexpr int kMaxSlots = 12;
constexpr Layout kLayouts[] = {{32, 1, 6, 0}, {64, 1, kMaxSlots, 63}, {128, 2, 6, 0}};

constexpr bool holds(const Layout& layout) {
  return column(layout.end(), layout.components) <= (layout.second ? layout.second : layout.width);
}
static_assert(holds(kLayouts[0]) && holds(kLayouts[1]) && holds(kLayouts[2]));

constexpr int64_t slot_offset(int64_t slot, int64_t sample, int64_t batch, int64_t stride) {
  return (slot * batch + sample) * stride;
}

}  // namespace pndm
