// Definitions of tile.h's loops, included once per instruction set inside PNDM_NAMESPACE. No
// template of the standard library may be used here: its one instance would be shared by all sets.

namespace pndm::PNDM_NAMESPACE {
namespace {

constexpr uint32_t kExponent = 0x7f800000u;  // all ones: infinity or NaN

PNDM_INLINE uint32_t not_finite(float value) {
  return (to_bits(value) & kExponent) == kExponent ? 1u : 0u;
}

PNDM_INLINE uint32_t not_finite(BFloat16 value) { return (value.bits & 0x7f80) == 0x7f80; }

PNDM_INLINE uint32_t not_finite(Float16 value) { return (value.bits & 0x7c00) == 0x7c00; }

template <class Out, class Slot>
bool copy(const void* out, void* slot, int64_t at, int64_t count) {
  const Out* from = static_cast<const Out*>(out) + at;
  Slot* to = static_cast<Slot*>(slot) + at;
  std::conditional_t<sizeof(Out) == 4, uint32_t, uint16_t> bad = 0;  // as wide as an element
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    bad |= not_finite(from[i]);
    if constexpr (std::is_same_v<Out, Slot> && sizeof(Out) == 2) {
      to[i].bits = from[i].bits;
    } else {
      narrow(widen(from[i]), to[i]);
    }
  }
  return bad;
}

template <class Out, bool kGuided>
bool load(const void* out, const void* uncond, float guidance, int64_t at, int64_t count,
          float* e) {
  const Out* from = static_cast<const Out*>(out) + at;
  const Out* other = kGuided ? static_cast<const Out*>(uncond) + at : nullptr;
  uint32_t bad = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    float value = widen(from[i]);
    if constexpr (kGuided) value = (value - widen(other[i])) * guidance + widen(other[i]);
    bad |= not_finite(value);
    e[i] = value;
  }
  return bad;
}

// Comparisons with NaN are false, so that NaN stays.
PNDM_INLINE float clamped(float value, float clamp) {
  value = value < -clamp ? -clamp : value;
  return value > clamp ? clamp : value;
}

template <bool kInner, bool kOuter>
void map(const StoreMap& store, const float* y, int64_t count, float* e) {
  const float p = *store.p, q = *store.q, p2 = *store.p2, q2 = *store.q2, clamp = store.clamp;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    float value = e[i] * q;
    if constexpr (kInner) value = y[i] * p + value;
    value = clamped(value, clamp) * q2;
    if constexpr (kOuter) value = y[i] * p2 + value;
    e[i] = value;
  }
}

template <class T>
void scale(const float* from, float factor, int64_t at, int64_t count, void* to_) {
  T* to = static_cast<T*>(to_) + at;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) narrow(from[i] * factor, to[i]);
}

template <class Slot, int kFronts, int kSlots>
void combine(const Form& form, int64_t at, int64_t count, float* to) {
  const float* front[kFronts + 1];  // one more, because an array may not be empty
  const Slot* slot[kSlots + 1];
  float front_scale[kFronts + 1], slot_scale[kSlots + 1];
  for (int k = 0; k < kFronts; ++k) {
    front[k] = form.front[k] + at;
    front_scale[k] = *form.front_scale[k];
  }
  for (int k = 0; k < kSlots; ++k) {
    slot[k] = static_cast<const Slot*>(form.slot[k]) + at;
    slot_scale[k] = *form.slot_scale[k];
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    float total = 0.0f;  // the reference adds to zero: a lone -0 becomes +0
    for (int k = 0; k < kFronts; ++k) total = total + front[k][i] * front_scale[k];
    for (int k = 0; k < kSlots; ++k) total = total + widen(slot[k][i]) * slot_scale[k];
    to[i] = total;
  }
}

// A number of a matrix. Where it is zero, all products are `nothing`: a zero, whatever is
// multiplied.
struct Factor {
  float scale;
  uint32_t used, nothing;  // bits
};

PNDM_INLINE void read_matrix(const float* matrix, uint32_t nothing, Factor* factors) {
  for (int k = 0; k < 4; ++k) {
    const bool used = matrix[k] != 0.0f;
    factors[k] = {matrix[k], used ? ~0u : 0u, used ? 0u : nothing};
  }
}

PNDM_INLINE float product(const Factor& factor, float value) {
  return from_bits((to_bits(value * factor.scale) & factor.used) | factor.nothing);
}

// One component of values and y, mapped: its own value first, and that always.
PNDM_INLINE float map_part(int component, const Factor* q, const float* values, const Factor* p,
                           const float* y) {
  const int own = 3 * component, other = 1 + component;
  float total = values[component] * q[own].scale;
  total = product(q[other], values[1 - component]) + total;
  total = product(p[own], y[component]) + total;
  return product(p[other], y[1 - component]) + total;
}

void map_two(const StoreMap& store, const float* y, int64_t component_stride, int64_t count,
             float* e) {
  constexpr uint32_t kNothing = 0x80000000u;  // -0 changes no sum
  Factor p[4], q[4], p2[4], q2[4];
  read_matrix(store.p, kNothing, p);
  read_matrix(store.q, kNothing, q);
  read_matrix(store.p2, kNothing, p2);
  read_matrix(store.q2, kNothing, q2);
  const float clamp = store.clamp;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float value[2] = {e[i], e[kTile + i]}, state[2] = {y[i], y[component_stride + i]};
    const float inner[2] = {clamped(map_part(0, q, value, p, state), clamp),
                            clamped(map_part(1, q, value, p, state), clamp)};
    e[i] = map_part(0, q2, inner, p2, state);
    e[kTile + i] = map_part(1, q2, inner, p2, state);
  }
}

template <class Slot, int kFronts, int kSlots>
void combine_two(const Form& form, int64_t component_stride, int64_t at, int64_t count,
                 float* first, float* second) {
  constexpr uint32_t kNothing = 0;  // +0: a sum that starts there is never -0
  const float* front[kFronts];
  const Slot* slot[kSlots];
  Factor front_scale[kFronts][4], slot_scale[kSlots][4];
  for (int k = 0; k < kFronts; ++k) {
    front[k] = form.front[k] + at;
    read_matrix(form.front_scale[k], kNothing, front_scale[k]);
  }
  for (int k = 0; k < kSlots; ++k) {
    slot[k] = static_cast<const Slot*>(form.slot[k]) + at;
    read_matrix(form.slot_scale[k], kNothing, slot_scale[k]);
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    float total[2] = {0.0f, 0.0f};
    for (int k = 0; k < 2 * kFronts; ++k) {
      const float value = front[k / 2][k % 2 * component_stride + i];
      for (int j = 0; j < 2; ++j) {
        total[j] = total[j] + product(front_scale[k / 2][2 * j + k % 2], value);
      }
    }
#pragma GCC unroll 12  // otherwise GCC keeps a long loop, and does not vectorize the outer one
    for (int k = 0; k < 2 * kSlots; ++k) {
      const float value = widen(slot[k / 2][k % 2 * component_stride + i]);
      for (int j = 0; j < 2; ++j) {
        total[j] = total[j] + product(slot_scale[k / 2][2 * j + k % 2], value);
      }
    }
    first[i] = total[0];
    second[i] = total[1];
  }
}

template <int kSlots>
bool combine_kept(const Form& form, const float* out, float* slot_, int64_t at, int64_t count,
                  float* to) {
  const float *front = form.front[0] + at, *from = out + at;
  const float front_scale = *form.front_scale[0];
  const float* slot[kSlots + 1];
  float slot_scale[kSlots + 1];
  for (int k = 0; k < kSlots; ++k) {
    slot[k] = static_cast<const float*>(form.slot[k]) + at;
    slot_scale[k] = *form.slot_scale[k];
  }
  float* keep = slot_ + at;
  uint32_t bad = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    bad |= not_finite(from[i]);
    keep[i] = from[i];
    float total = 0.0f + front[i] * front_scale;
    for (int k = 0; k < kSlots; ++k) total = total + slot[k][i] * slot_scale[k];
    to[i] = total;
  }
  return bad;
}

void add(const float* z, float factor, int64_t count, float* to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = to[i] + z[i] * factor;
}

void normals(uint64_t seed, uint32_t index, int64_t at, int64_t count, int64_t n, int64_t channels,
             float* to) {
  if (channels == 1) return normals_run(seed, index, at, count, 1, to);
  // Of channel c, the tile holds the positions rest with at <= rest * channels + c < at + count.
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t first = (at - c + channels - 1) / channels;
    const int64_t last = (at + count - c + channels - 1) / channels;
    if (first >= last) continue;
    normals_run(seed, index, c * (n / channels) + first, last - first, channels,
                to + (first * channels + c - at));
  }
}

#define PNDM_COMBINE(Slot, F)                                                          \
  {combine<Slot, F, 0>, combine<Slot, F, 1>, combine<Slot, F, 2>, combine<Slot, F, 3>, \
   combine<Slot, F, 4>, combine<Slot, F, 5>, combine<Slot, F, 6>}
#define PNDM_COMBINES(Slot) {PNDM_COMBINE(Slot, 0), PNDM_COMBINE(Slot, 1), PNDM_COMBINE(Slot, 2)}
// These are long: 24 in place of 63. Operands of which nothing is taken make up the number.
#define PNDM_TWO(Slot, F)                                                                       \
  {nullptr, combine_two<Slot, F, 1>, combine_two<Slot, F, 2>, nullptr, combine_two<Slot, F, 4>, \
   nullptr, combine_two<Slot, F, 6>}
#define PNDM_TWOS(Slot) {{}, PNDM_TWO(Slot, 1), PNDM_TWO(Slot, 2)}
#define PNDM_COPIES(Out) {copy<Out, float>, copy<Out, Float16>, copy<Out, BFloat16>}

}  // namespace

const Loops loops = {
    {PNDM_COPIES(float), PNDM_COPIES(Float16), PNDM_COPIES(BFloat16)},
    {{load<float, false>, load<float, true>},
     {load<Float16, false>, load<Float16, true>},
     {load<BFloat16, false>, load<BFloat16, true>}},
    {{map<false, false>, map<false, true>}, {map<true, false>, map<true, true>}},
    {scale<float>, scale<Float16>, scale<BFloat16>},
    {PNDM_COMBINES(float), PNDM_COMBINES(Float16), PNDM_COMBINES(BFloat16)},
    {combine_kept<0>, combine_kept<1>, combine_kept<2>, combine_kept<3>, combine_kept<4>,
     combine_kept<5>, combine_kept<6>},
    add,
    normals,
    map_two,
    {PNDM_TWOS(float), PNDM_TWOS(Float16), PNDM_TWOS(BFloat16)},
};

}  // namespace pndm::PNDM_NAMESPACE
