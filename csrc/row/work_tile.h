// A sample's row on one tile: the same elements of each component.
#pragma once

#include <cstdint>
#include <cstring>

#include "row/work.h"

namespace pndm {

template <int kComponents>
struct WorkTile {
  const Work<kComponents>& w;
  const int64_t at, count;  // in each component

  // Whether the network's output was not finite.
  bool run() const {
    bool bad;
    if (kComponents == 1 && w.kept) {
      bad = store_and_update();
    } else if (w.kept) {
      update();
      bad = store();
    } else {
      bad = store();
      update();
    }
    w.feed.run(at, count);
    return bad;
  }

 private:
  using Buffer = float[kComponents][kTile];

  // The tile's first element of a component.
  int64_t place(int component) const { return component * w.component_stride + at; }

  bool store() const {
    const bool bad = w.second && store_one(w.uncond, nullptr, w.second);
    return store_one(w.out, w.guided ? w.uncond : nullptr, w.slot) || bad;
  }

  bool store_one(const char* out, const char* uncond, char* slot) const {
    alignas(64) Buffer e;
    const bool copied = w.raw && !uncond;
    bool bad = false;
    for (int k = 0; k < kComponents; ++k) {
      bad |= copied ? w.loops.copy[w.out_type][w.slot_type](out, slot, place(k), count)
                    : w.loops.load[w.out_type][uncond != nullptr](out, uncond, w.line[kGuidance],
                                                                  place(k), count, e[k]);
    }
    if (copied) return bad;
    if constexpr (kComponents == 1) {
      w.loops.map[*w.store.p != 0.0f][*w.store.p2 != 0.0f](w.store, w.y + at, count, e[0]);
    } else {
      w.loops.map_two(w.store, w.y + at, w.component_stride, count, e[0]);
    }
    for (int k = 0; k < kComponents; ++k) {
      w.loops.scale[w.slot_type](e[k], 1.0f, place(k), count, slot);
    }
    return bad;
  }

  void update() const {
    alignas(64) Buffer drawn, kept;
    const float* z[kComponents];
    for (int k = 0; k < kComponents; ++k) z[k] = w.noisy[k] ? noise(k, drawn[k]) : nullptr;
    float *x = w.x + at, *y = w.y + at;
    // Y reads the old x: the new one waits in the first-level cache.
    if (w.writes_x && !w.same) {
      w.writes_y ? combine(w.to_x, z, kept[0], kTile) : combine(w.to_x, z, x, w.component_stride);
    }
    if (w.writes_y) combine(w.to_y, z, y, w.component_stride);
    for (int k = 0; w.writes_x && w.writes_y && k < kComponents; ++k) {
      const float* from = w.same ? y + k * w.component_stride : kept[k];
      std::memcpy(x + k * w.component_stride, from, static_cast<size_t>(count) * sizeof(float));
    }
  }

  // A component of the row's z: the caller's, or drawn into the buffer given.
  const float* noise(int component, float* drawn) const {
    if (w.in.z) return w.in.z + w.b * w.r.n + place(component);
    const auto index = static_cast<uint32_t>(w.line[kNoise]);
    w.loops.normals(w.r.seeds[w.b], index, place(component), count, w.r.n, w.r.channels, drawn);
    return drawn;
  }

  void combine(const Form& form, const float* const* z, float* to, int64_t component_stride) const {
    if constexpr (kComponents == 1) {
      w.loops.combine[w.slot_type][form.fronts][form.slots](form, at, count, to);
      if (form.rest) add_rest(form, to);
    } else {
      const auto loop = w.loops.combine_two[w.slot_type][form.fronts][form.slots];
      loop(form, w.component_stride, at, count, to, to + component_stride);
    }
    for (int k = 0; form.z_scale && k < kComponents * kComponents; ++k) {
      const float scale = form.z_scale[k];
      if (scale != 0.0f)
        w.loops.add(z[k % kComponents], scale, count, to + k / kComponents * component_stride);
    }
  }

  // to <- 1 to + the rest: the bits of one sum over all slots. One times a value is that value; and
  // to, a sum that started at +0, is not -0, which the loop's +0 would change: a sum is -0 only
  // where both of its terms are.
  void add_rest(const Form& form, float* to) const {
    static constexpr float kOne = 1.0f;
    Form rest;
    rest.fronts = 1;
    rest.front[0] = to;
    rest.front_scale[0] = &kOne;
    for (; rest.slots < form.rest; ++rest.slots) {
      const int k = form.slots + rest.slots;
      rest.slot[rest.slots] = static_cast<const char*>(form.slot[k]) + at * size_of(w.r.slot);
      rest.slot_scale[rest.slots] = form.slot_scale[k];
    }
    w.loops.combine[w.slot_type][rest.fronts][rest.slots](rest, 0, count, to);
  }

  // The steady row of a multistep solver: store and update in one loop.
  bool store_and_update() const {
    const float* out = reinterpret_cast<const float*>(w.out);
    float *slot = reinterpret_cast<float*>(w.slot), *y = w.y + at;
    const bool bad = w.loops.combine_kept[w.to_y.slots](w.to_y, out, slot, at, count, y);
    if (w.to_y.rest) add_rest(w.to_y, y);
    if (!w.noisy[0]) return bad;
    alignas(64) float drawn[kTile];
    w.loops.add(noise(0, drawn), *w.to_y.z_scale, count, y);
    return bad;
  }
};

}  // namespace pndm
