// The memory of a row. pndm_fast/row/schema.py says which registers there are; setup.py makes of it
// registers.inc, a line REGISTER(name, element, elements, changed, optional) for each.
#pragma once

#include <cstdint>
#include <type_traits>

#include "row/row.h"

namespace pndm {

enum class Dtype : int { kFloat32, kFloat16, kBFloat16 };

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// What a register holds: a slot, a time and the network's input are in dtypes of the run's
// choosing.
enum class Element { kState, kSlot, kTime, kNetwork, kInt32, kInt64 };

template <Element>
struct TypeOf {
  using type = void;
};
template <>
struct TypeOf<Element::kState> {
  using type = float;
};
template <>
struct TypeOf<Element::kInt32> {
  using type = int32_t;
};
template <>
struct TypeOf<Element::kInt64> {
  using type = int64_t;
};

template <Element kElement, bool kChanged>
using Pointer = std::conditional_t<kChanged, typename TypeOf<kElement>::type,
                                   const typename TypeOf<kElement>::type>*;

// The pointers belong to the caller.
struct Registers {
#define REGISTER(name, element, elements, changed, optional) \
  Pointer<Element::element, changed> name;
#include "registers.inc"
#undef REGISTER
  const float* table;  // [table_rows, layout.width]
  int64_t batch, n, stride, n_slots, table_rows, channels, cfg_copies;
  Layout layout;  // of the table; a sample's components have n / layout.components elements each
  Dtype out, slot, net;
  bool integer_time;
  int64_t threads;  // at most

  // visit(name, pointer, bytes, optional) for each register.
  template <class Visit>
  void each(Visit visit) {
    const int64_t inputs = cfg_copies * batch;  // samples that the network sees
#define REGISTER(name, element, elements, changed, optional) \
  visit(#name, name, (elements) * size_of(Element::element), optional);
#include "registers.inc"
#undef REGISTER
  }

 private:
  int64_t size_of(Element element) const {
    switch (element) {
      case Element::kSlot:
        return pndm::size_of(slot);
      case Element::kNetwork:
        return pndm::size_of(net);
      case Element::kTime:
        return integer_time ? 8 : 4;
      case Element::kInt64:
        return 8;
      default:
        return 4;
    }
  }
};

inline const float* line_of(const Registers& r, int64_t row) {
  return r.table + row * r.layout.width;
}

// 1 + the slot of the line's unconditional output, 0 where it keeps none.
inline float second_of(const Registers& r, const float* line) {
  return r.layout.second ? line[r.layout.second] : 0.0f;
}

}  // namespace pndm
