// One row of a plan for every sample: pndm_fast/row/reference.py on raw pointers, in one memory
// pass.
#pragma once

#include <cstdint>

#include "row/row.h"

namespace pndm {

enum class Dtype : int { kFloat32, kFloat16, kBFloat16 };

// What pndm_fast/row/registers.py describes. The pointers belong to the caller.
struct Registers {
  float* x;               // [batch, stride]
  float* y;               // [batch, stride]
  void* slots;            // [n_slots, batch, stride] in `slot`
  int32_t* row;           // [batch]
  void* t;                // [cfg_copies * batch], int64 or float32
  void* net_in;           // [cfg_copies * batch, n] in `net`, or null
  const uint64_t* seeds;  // [batch]
  int32_t* first_bad;     // [batch]
  int32_t* active;        // [1]
  const float* table;     // [table_rows, width(components)]
  int64_t batch, n, stride, n_slots, table_rows, channels, cfg_copies;
  int components;  // of a sample, n / components elements each, one after another
  Dtype out, slot, net;
  bool integer_time;
  int64_t threads;  // at most
};

// Outputs [batch, n] in the dtype `out`; `uncond` and `z` (float32) may be null.
struct Inputs {
  const void* out;
  const void* uncond;
  const float* z;
};

// The threads of the OpenMP runtime that this process has already: torch's, so that the row and the
// network do not fight for cores. GNU's entry points, which LLVM's and Intel's runtimes have too.
struct Pool {
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*index)() = nullptr;
  int (*size)() = nullptr;
};

// Without entry points, everything runs on the calling thread.
extern Pool pool;

// Throws std::out_of_range, with nothing changed, where a row or slot is outside its range.
void check_rows(const Registers& r);

// Needs check_rows first.
void apply_row(const Registers& r, const Inputs& in);

// Standard normals of a noise index: float32 [batch, n] with rows `stride` component_stride.
void normals(float* out, const uint64_t* seeds, int64_t batch, uint32_t index, int64_t n,
             int64_t stride, int64_t channels);

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

inline const float* line_of(const Registers& r, int64_t row) {
  return r.table + row * width(r.components);
}

}  // namespace pndm
