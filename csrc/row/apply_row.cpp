#include "row/apply_row.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "row/tile.h"
#include "row/work_tile.h"

namespace pndm {
namespace {

constexpr int32_t kNever = INT32_MAX;  // first_bad of a sample that stayed finite
constexpr uint32_t kInitial = 0;       // the noise index of x_T

constexpr int64_t kElementsPerThread =
    1 << 16;  // about 15 us of work, several times what a team costs

// A tile holds as many elements of each component, kTile in all.
int64_t tiles_of(const Registers& r) { return (r.n + kTile - 1) / kTile; }

// Tiles [first, last) of all samples' tiles, numbered one after another.
template <int kComponents>
void run_tiles(const Registers& r, const Inputs& in, int64_t first, int64_t last) {
  const int64_t tiles = tiles_of(r);
  while (first < last) {
    const int64_t b = first / tiles, end = std::min((b + 1) * tiles, last);
    const Work<kComponents> w(r, in, b);
    bool bad = false;
    for (int64_t tile = first - b * tiles; !w.line[kHalt] && tile < end - b * tiles; ++tile) {
      const int64_t each = kTile / kComponents, at = tile * each,
                    count = std::min(each, w.component_stride - at);
      bad |= WorkTile<kComponents>{w, at, count}.run();
    }
    if (bad) {  // threads on one sample write the same number
      const int32_t seen = __atomic_load_n(r.first_bad + b, __ATOMIC_RELAXED);
      __atomic_store_n(r.first_bad + b, std::min(seen, r.row[b]), __ATOMIC_RELAXED);
    }
    first = end;
  }
}

struct Job {
  void (*run)(const Registers&, const Inputs&, int64_t first, int64_t last);
  const Registers& r;
  const Inputs& in;
  int64_t tiles;
};

// A team's member takes its share of the tiles; the runtime may grant fewer members than asked for.
void run_share(void* data) {
  const Job& job = *static_cast<const Job*>(data);
  const int64_t index = pool.index(), size = pool.size();
  job.run(job.r, job.in, job.tiles * index / size, job.tiles * (index + 1) / size);
}

void tell_time(const Registers& r, int64_t b, float time) {
  for (int64_t at = b; at < r.cfg_copies * r.batch; at += r.batch) {
    if (r.integer_time) {
      static_cast<int64_t*>(r.t)[at] = static_cast<int64_t>(time);
    } else {
      static_cast<float*>(r.t)[at] = time;
    }
  }
}

void advance(const Registers& r) {
  for (int64_t b = 0; b < r.batch; ++b) {
    if (line_of(r, r.row[b])[kHalt] != 0.0f) continue;
    r.row[b] += 1;
    const float* line = line_of(r, r.row[b]);
    *r.active -= line[kHalt] != 0.0f;
    tell_time(r, b, line[kTime]);
  }
}

void draw(const Registers& r, float scale) {
  normals(r.y, reinterpret_cast<const uint64_t*>(r.seeds), r.batch, kInitial, r.n, r.stride,
          r.channels);
  for (int64_t b = 0; b < r.batch; ++b) {
    float* y = r.y + b * r.stride;
    for (int64_t i = 0; scale != 1.0f && i < r.n; ++i) y[i] *= scale;
    std::copy_n(y, r.n, r.x + b * r.stride);
  }
}

[[noreturn]] void refuse(int64_t b, const std::string& rule, int64_t row) {
  throw std::out_of_range("RowOp: row[" + std::to_string(b) + "] must be " + rule + ", got " +
                          std::to_string(row));
}

}  // namespace

void begin(const Registers& r, const std::vector<int32_t>& rows, int32_t active,
           const float* scale) {
  if (static_cast<int64_t>(rows.size()) != r.batch) {
    throw std::invalid_argument("RowOp: rows must be one for each of the " +
                                std::to_string(r.batch) + " samples, got " +
                                std::to_string(rows.size()));
  }
  for (int64_t b = 0; b < r.batch; ++b) {
    const int64_t row = rows[b];
    if (row < 0 || row >= r.table_rows) {
      refuse(b, "in [0, " + std::to_string(r.table_rows) + ")", row);
    }
  }
  for (int64_t b = 0; b < r.batch; ++b) {
    r.row[b] = rows[b];
    r.first_bad[b] = kNever;
    r.done[b] = 0;
    tell_time(r, b, line_of(r, rows[b])[kTime]);
  }
  *r.active = active;
  if (scale) draw(r, *scale);
}

void check_rows(const Registers& r) {
  for (int64_t b = 0; b < r.batch; ++b) {
    const int64_t row = r.row[b], rows = r.table_rows;
    if (row < 0 || row >= rows) refuse(b, "in [0, " + std::to_string(rows) + ")", row);
    const float* line = line_of(r, row);
    if (line[kHalt] != 0.0f) continue;
    if (row + 1 == rows) refuse(b, "a halt row where it is the last", row);
    bool fits = line[kSlot] >= 0.0f && line[kSlot] < static_cast<float>(r.n_slots);
    for (const int form : {kX + kFront, kY + kFront}) {
      const float* end = line + column(form + kMaxSlots, r.components);
      const float* missing = line + column(form + static_cast<int>(r.n_slots), r.components);
      for (; missing < end; ++missing) fits &= *missing == 0.0f;
    }
    if (!fits) refuse(b, "a row of slots in [0, " + std::to_string(r.n_slots) + ")", row);
  }
}

void apply_row(const Registers& r, const Inputs& in) {
  Job job{r.components == 1 ? run_tiles<1> : run_tiles<2>, r, in, r.batch * tiles_of(r)};
  const int64_t threads = std::min(r.threads, r.batch * r.n / kElementsPerThread);
  if (threads > 1 && pool.parallel) {
    pool.parallel(run_share, &job, static_cast<unsigned>(threads), 0);
  } else {
    job.run(r, in, 0, job.tiles);
  }
  advance(r);
}

void normals(float* out, const uint64_t* seeds, int64_t batch, uint32_t index, int64_t n,
             int64_t stride, int64_t channels) {
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t at = 0; at < n; at += kTile) {
      const int64_t count = std::min(kTile, n - at);
      active_set.loops->normals(seeds[b], index, at, count, n, channels, out + b * stride + at);
    }
  }
}

#if PNDM_MULTIVERSION
const InstructionSet* instruction_sets() {
  static const InstructionSet all[] = {{"x86-64-v4", &v4::loops},
                                       {"x86-64-v3", &v3::loops},
                                       {"baseline", &baseline::loops},
                                       {nullptr, nullptr}};
  if (__builtin_cpu_supports("x86-64-v4")) return all;
  return __builtin_cpu_supports("x86-64-v3") ? all + 1 : all + 2;
}
#else
const InstructionSet* instruction_sets() {
  static const InstructionSet all[] = {{"baseline", &baseline::loops}, {nullptr, nullptr}};
  return all;
}
#endif

InstructionSet active_set = *instruction_sets();
Pool pool;

}  // namespace pndm
