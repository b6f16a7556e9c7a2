// One sample's row, read once: which of tile.h's loops it needs, and on what.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "row/apply_row.h"
#include "row/row.h"
#include "row/tile.h"

namespace pndm {

// The network's input of one sample, from the state.
template <int kComponents>
struct Feed {
  const Loops& loops = *active_set.loops;
  char* const net;  // null where there is none
  const float* const y;
  const int net_type;
  const int64_t component_stride, bytes, copies;  // bytes from a copy of the input to the next
  float in_scale[kComponents * kComponents];

  Feed(const Registers& r, int64_t b, const float* line)
      : net(r.net_in ? static_cast<char*>(r.net_in) + b * r.n * size_of(r.net) : nullptr),
        y(r.y + b * r.stride),
        net_type(static_cast<int>(r.net)),
        component_stride(r.n / kComponents),
        bytes(r.batch * r.n * size_of(r.net)),
        copies(r.cfg_copies) {
    std::copy_n(line + column(kInScale, kComponents), kComponents * kComponents, in_scale);
  }

  // Elements [at, at + count) of each component.
  void run(int64_t at, int64_t count) const {
    for (int k = 0; net && k < kComponents; ++k) {
      alignas(64) float mixed[kTile];
      const float* from = y + k * component_stride + at;
      float own = in_scale[k * kComponents + k];
      if (kComponents > 1 && in_scale[k * kComponents + 1 - k] != 0.0f) {
        loops.scale[static_cast<int>(Dtype::kFloat32)](from, own, 0, count, mixed);
        loops.add(y + (1 - k) * component_stride + at, in_scale[k * kComponents + 1 - k], count,
                  mixed);
        from = mixed;
        own = 1.0f;
      }
      for (int64_t copy = 0; copy < copies; ++copy) {
        loops.scale[net_type](from, own, k * component_stride + at, count, net + copy * bytes);
      }
    }
  }
};

// A template, so that a second component costs nothing where there is none. What each tile needs
// stands here and not behind pointers: beyond the caches that takes up to 20 % less time.
template <int kComponents>
struct Work {
  const Loops& loops = *active_set.loops;
  const Registers& r;
  const Inputs& in;
  const int64_t b;
  const int64_t component_stride;  // from a component to the next
  const float* const line;
  const int out_type, slot_type;
  const char *const out, *const uncond;  // uncond may be null
  const bool guided;
  float *const x, *const y;
  char *const slot, *const second;  // second is null where the unconditional output is not kept
  const bool writes_x, writes_y, same;
  const StoreMap store;
  const bool raw;  // an output is stored as it is
  Form to_x, to_y;
  bool noisy[kComponents] = {};  // components of z that are taken
  const Feed<kComponents> feed;  // of the next row
  bool kept = false;

  Work(const Registers& registers, const Inputs& inputs, int64_t sample)
      : r(registers),
        in(inputs),
        b(sample),
        component_stride(r.n / kComponents),
        line(line_of(r, r.row[b])),
        out_type(static_cast<int>(r.out)),
        slot_type(static_cast<int>(r.slot)),
        out(of_sample(in.out)),
        uncond(in.uncond ? of_sample(in.uncond) : nullptr),
        guided(uncond && line[kGuidance] != 1.0f),  // at scale 1 a sample owes it nothing
        x(r.x + b * r.stride),
        y(r.y + b * r.stride),
        slot(slot_at(static_cast<int>(line[kSlot]))),
        second(second_slot()),
        writes_x(line[kWriteX] != 0.0f),
        writes_y(line[kWriteY] != 0.0f),
        same(writes_x && writes_y &&
             std::equal(matrix(kX), matrix(r.layout.y()), matrix(r.layout.y()))),
        store{matrix(kP), matrix(kQ), matrix(kP2), matrix(kQ2), line[kClamp]},
        raw(is_raw()),
        feed(r, b, line[kHalt] != 0.0f ? line : line + r.layout.width) {
    if (line[kHalt] != 0.0f) return;
    if (writes_x) read_form(kX, to_x);
    if (writes_y) read_form(r.layout.y(), to_y);
    keep_output();
  }

  // matrix(first)[kComponents * i + j] is what component i of the result takes of component j of an
  // operand.
  const float* matrix(int first) const { return line + column(first, kComponents); }

 private:
  static constexpr int kMatrix = kComponents * kComponents;

  const char* of_sample(const void* outputs) const {
    return static_cast<const char*>(outputs) + b * r.n * size_of(r.out);
  }

  char* slot_at(int k) const {
    return static_cast<char*>(r.slots) + slot_offset(k, b, r.batch, r.stride) * size_of(r.slot);
  }

  char* second_slot() const {
    const float second = second_of(r, line);
    return second == 0.0f ? nullptr : slot_at(static_cast<int>(second) - 1);
  }

  // A loop, because GCC makes std::any_of a call.
  static bool any(const float* scales) {
    bool used = false;
    for (int k = 0; k < kMatrix; ++k) used |= scales[k] != 0.0f;
    return used;
  }

  // An operand that is not used may hold anything.
  void read_form(int first, Form& form) {
    const float* fronts[kFront] = {x, y};
    const float* scales = matrix(first);
    for (int k = 0; k < kFront; ++k, scales += kMatrix) {
      if (!any(scales)) continue;
      form.front[form.fronts] = fronts[k];
      form.front_scale[form.fronts++] = scales;
    }
    for (int k = 0; k < r.layout.slots; ++k, scales += kMatrix) {
      if (!any(scales)) continue;
      form.slot[form.slots + form.rest] = slot_at(k);
      form.slot_scale[form.slots + form.rest] = scales;
      ++(form.slots < kSlotsAtOnce ? form.slots : form.rest);
    }
    if constexpr (kComponents == 2) fill(form);
    if (line[kNoise] == 0.0f) return;
    form.z_scale = scales;
    for (int k = 0; k < kMatrix; ++k) noisy[k % kComponents] |= scales[k] != 0.0f;
  }

  // Two components have loops for some numbers of operands only: of those that are added, which the
  // cache holds, nothing is taken.
  void fill(Form& form) const {
    static constexpr float kNothing[kMatrix] = {};
    if (form.fronts == 0) {
      form.front[form.fronts] = y;
      form.front_scale[form.fronts++] = kNothing;
    }
    while (!loops.combine_two[slot_type][form.fronts][form.slots]) {
      form.slot[form.slots] = slot;
      form.slot_scale[form.slots++] = kNothing;
    }
  }

  bool is_raw() const {
    bool all = !(store.clamp < INFINITY);
    for (int k = 0; k < kMatrix; ++k) {
      const float unit = k % (kComponents + 1) == 0;  // of the identity
      all &= store.p[k] == 0 && store.q[k] == unit && store.p2[k] == 0 && store.q2[k] == unit;
    }
    return all;
  }

  // Where the slot is the output, bit by bit, Y takes it from there, and the copy is made beside
  // that or after it, before the rest is added. So no loop waits for another's memory.
  void keep_output() {
    kept = raw && !guided && !second && r.out == r.slot && writes_y && !writes_x &&
           (kComponents > 1 || (r.out == Dtype::kFloat32 && to_y.fronts == 1));
    if (!kept) return;
    std::replace(to_y.slot, to_y.slot + to_y.slots, static_cast<const void*>(slot),
                 static_cast<const void*>(out));
  }
};

}  // namespace pndm
