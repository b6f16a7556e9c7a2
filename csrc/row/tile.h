// The vector loops over one tile, as a table of functions for each instruction set.
#pragma once

#include <cstdint>

#include "row/row.h"

// One object per instruction set, because a single file built for AVX-512 would not run elsewhere.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define PNDM_MULTIVERSION 1
#else
#define PNDM_MULTIVERSION 0
#endif

namespace pndm {

constexpr int64_t kTile = 1024;  // elements, of all components
constexpr int kFront = 2;        // operands before the slots: x and y
constexpr int kSlotsAtOnce = 6;  // that one loop adds; rows of more, which are rare, take two
static_assert(kMaxSlots <= 2 * kSlotsAtOnce);

// The operands of X or Y with nonzero coefficients, in the order of the table, where the
// coefficients stand: one number each, or a matrix of two by two.
struct Form {
  int fronts = 0, slots = 0;  // that one loop adds
  int rest = 0;               // slots after those
  const float* front[kFront];
  const void* slot[kMaxSlots];
  const float *front_scale[kFront], *slot_scale[kMaxSlots];
  const float* z_scale = nullptr;  // null where the row has no noise
};

struct StoreMap {
  const float *p, *q, *p2, *q2;
  float clamp;
};

// Arrays are indexed by Dtype. Functions that return bool say whether a value was not finite.
struct Loops {
  // slot <- out
  bool (*copy[3][3])(const void* out, void* slot, int64_t at, int64_t count);
  // e <- out, or uncond + guidance (out - uncond) in [1]
  bool (*load[3][2])(const void* out, const void* uncond, float guidance, int64_t at, int64_t count,
                     float* e);
  // e <- p2 y + q2 clamp(p y + q e), with p = 0 in [0][.] and p2 = 0 in [.][0]
  void (*map[2][2])(const StoreMap& store, const float* y, int64_t count, float* e);
  // to[at + i] <- scale from[i]
  void (*scale[3])(const float* from, float scale, int64_t at, int64_t count, void* to);
  // to[i] <- form at [at + i], without the rest and z; [slot dtype][fronts][slots]
  void (*combine[3][kFront + 1][kSlotsAtOnce + 1])(const Form& form, int64_t at, int64_t count,
                                                   float* to);
  // The same with one front and float32 slots, while slot[at + i] <- out[at + i]; out stands in the
  // form for its slot. One loop over all streams: about 5 % less time beyond the caches.
  bool (*combine_kept[kSlotsAtOnce + 1])(const Form& form, const float* out, float* slot,
                                         int64_t at, int64_t count, float* to);
  // to[i] += scale z[i]
  void (*add)(const float* z, float scale, int64_t count, float* to);
  // the normals of elements [at, at + count) of a sample of n in physical order
  void (*normals)(uint64_t seed, uint32_t index, int64_t at, int64_t count, int64_t n,
                  int64_t channels, float* to);
  // map and combine of two components, which in registers lie `component_stride` and in e kTile
  // component_stride; null where there is none
  void (*map_two)(const StoreMap& store, const float* y, int64_t component_stride, int64_t count,
                  float* e);
  void (*combine_two[3][kFront + 1][kSlotsAtOnce + 1])(const Form& form, int64_t component_stride,
                                                       int64_t at, int64_t count, float* first,
                                                       float* second);
};

struct InstructionSet {
  const char* name;
  const Loops* loops;
};

namespace baseline {
extern const Loops loops;
}
#if PNDM_MULTIVERSION
namespace v3 {
extern const Loops loops;
}
namespace v4 {
extern const Loops loops;
}
#endif

// Those that this machine runs, best first; ends with a null name.
const InstructionSet* instruction_sets();

// The one in use.
extern InstructionSet active_set;

}  // namespace pndm
