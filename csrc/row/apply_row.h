// One row of a plan for every sample: pndm_fast/row/reference.py on raw pointers, in one memory
// pass.
#pragma once

#include <cstdint>

#include "row/registers.h"

namespace pndm {

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

// What samples start from, float32 [batch, n]; null where the seeds say it.
struct Sources {
  const float *noise, *state, *image, *z;
};

// x, y and the network's input before the first row; lines [batch] are the table's that describe
// each sample's start. Throws std::out_of_range, with nothing changed, where a line or row is not
// in the table.
void begin(const Registers& r, const int32_t* lines, const Sources& sources);

// Throws std::out_of_range, with nothing changed, where a row or slot is outside its range, or a
// row keeps an unconditional output that is not given.
void check_rows(const Registers& r, const Inputs& in);

// Needs check_rows first.
void apply_row(const Registers& r, const Inputs& in);

// Standard normals of a noise index: float32 [batch, n] with rows `stride` apart.
void normals(float* out, const uint64_t* seeds, int64_t batch, uint32_t index, int64_t n,
             int64_t stride, int64_t channels);

}  // namespace pndm
