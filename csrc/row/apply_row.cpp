#include "row/apply_row.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "row/tile.h"
#include "row/work_tile.h"

namespace pndm {
namespace {

constexpr int32_t kNever = INT32_MAX;            // first_bad of a sample that stayed finite
constexpr uint32_t kInitial = 0, kPrologue = 1;  // noise indices: x_T, and the prologue's z

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

// One sample's start on one tile: the same elements of each component.
template <int kComponents>
struct StartTile {
  const Registers& r;
  const Sources& sources;
  const int64_t b, component_stride, at, count;
  const float* const line;
  const Loops& loops = *active_set.loops;

  void run() const {
    alignas(64) Buffer first, second;
    Tile y = first, other = second;
    if (sources.state) {
      copy(sources.state, y);
    } else {
      normals(sources.noise, kInitial, y);
      scale(sources.image ? kEntrySigma : kP0, y, other);
    }
    if (sources.image) {
      copy(sources.image, other);
      add(kEntryAlpha, other, y);
    }
    scale(kA0, y, other);
    if (any(kC0)) {
      normals(sources.z, kPrologue, other);
      add(kC0, other, y);
    }
    for (int k = 0; k < kComponents; ++k) {
      std::copy_n(y[k], count, r.x + b * r.stride + place(k));
      std::copy_n(y[k], count, r.y + b * r.stride + place(k));
    }
  }

 private:
  using Buffer = float[kComponents][kTile];
  using Tile = float (*)[kTile];

  int64_t place(int component) const { return component * component_stride + at; }

  void copy(const float* samples, Tile to) const {
    for (int k = 0; k < kComponents; ++k) {
      std::copy_n(samples + b * r.n + place(k), count, to[k]);
    }
  }

  void normals(const float* samples, uint32_t index, Tile to) const {
    if (samples) return copy(samples, to);
    for (int k = 0; k < kComponents; ++k) {
      loops.normals(r.seeds[b], index, place(k), count, r.n, r.channels, to[k]);
    }
  }

  const float* matrix(int first) const { return line + column(first, kComponents); }

  bool any(int first) const {
    const float* m = matrix(first);
    return std::any_of(m, m + kComponents * kComponents, [](float c) { return c != 0.0f; });
  }

  bool is_one(int first) const {
    bool one = true;
    for (int k = 0; k < kComponents * kComponents; ++k) {
      one &= matrix(first)[k] == (k % (kComponents + 1) ? 0.0f : 1.0f);
    }
    return one;
  }

  // y <- matrix y, in one of both tiles; one times y is y.
  void scale(int first, Tile& y, Tile& other) const {
    constexpr int kFloat = static_cast<int>(Dtype::kFloat32);
    if (is_one(first)) return;
    for (int i = 0; i < kComponents; ++i) {
      loops.scale[kFloat](y[i], matrix(first)[i * kComponents + i], 0, count, other[i]);
      add_others(first, i, y, other);
    }
    std::swap(y, other);
  }

  // to <- to + matrix from, a component's own first
  void add(int first, const Tile from, Tile to) const {
    for (int i = 0; i < kComponents; ++i) {
      add_one(first, i, i, from, to);
      add_others(first, i, from, to);
    }
  }

  void add_others(int first, int i, const Tile from, Tile to) const {
    for (int j = 0; j < kComponents; ++j) {
      if (j != i) add_one(first, i, j, from, to);
    }
  }

  void add_one(int first, int i, int j, const Tile from, Tile to) const {
    const float c = matrix(first)[i * kComponents + j];
    if (c != 0.0f) loops.add(from[j], c, count, to[i]);
  }
};

template <int kComponents>
void begin_all(const Registers& r, const int32_t* lines, const Sources& sources) {
  const int64_t component_stride = r.n / kComponents, each = kTile / kComponents;
  for (int64_t b = 0; b < r.batch; ++b) {
    const Feed<kComponents> feed(r, b, line_of(r, r.row[b]));
    for (int64_t at = 0; at < component_stride; at += each) {
      const int64_t count = std::min(each, component_stride - at);
      StartTile<kComponents>{r, sources, b, component_stride, at, count, line_of(r, lines[b])}
          .run();
      feed.run(at, count);
    }
  }
}

[[noreturn]] void refuse(const char* name, int64_t b, const std::string& rule, int64_t got) {
  throw std::out_of_range("RowOp: " + std::string(name) + "[" + std::to_string(b) + "] must be " +
                          rule + ", got " + std::to_string(got));
}

// Whether the registers have each slot that the row names or takes of.
bool fits(const Registers& r, const float* line) {
  const auto slots = static_cast<float>(r.n_slots);
  const float second = second_of(r, line);
  bool all = line[kSlot] >= 0.0f && line[kSlot] < slots;
  all &= second == 0.0f || (second >= 1.0f && second < slots + 1.0f);
  for (const int form : {kX + kFront, r.layout.y() + kFront}) {
    const float* end = line + column(form + r.layout.slots, r.layout.components);
    const float* missing = line + column(form + static_cast<int>(r.n_slots), r.layout.components);
    for (; missing < end; ++missing) all &= *missing == 0.0f;
  }
  return all;
}

}  // namespace

void begin(const Registers& r, const int32_t* lines, const Sources& sources) {
  const std::string rule = "in [0, " + std::to_string(r.table_rows) + ")";
  for (int64_t b = 0; b < r.batch; ++b) {
    if (r.row[b] < 0 || r.row[b] >= r.table_rows) refuse("row", b, rule, r.row[b]);
    if (lines[b] < 0 || lines[b] >= r.table_rows) refuse("lines", b, rule, lines[b]);
  }
  r.layout.components == 1 ? begin_all<1>(r, lines, sources) : begin_all<2>(r, lines, sources);
}

void check_rows(const Registers& r, const Inputs& in) {
  for (int64_t b = 0; b < r.batch; ++b) {
    const int64_t row = r.row[b], rows = r.table_rows;
    if (row < 0 || row >= rows) refuse("row", b, "in [0, " + std::to_string(rows) + ")", row);
    const float* line = line_of(r, row);
    if (line[kHalt] != 0.0f) continue;
    if (row + 1 == rows) refuse("row", b, "a halt row where it is the last", row);
    if (!fits(r, line))
      refuse("row", b, "a row of slots in [0, " + std::to_string(r.n_slots) + ")", row);
    const int second = static_cast<int>(second_of(r, line));
    if (second == 0) continue;
    if (second - 1 == static_cast<int>(line[kSlot]))
      refuse("row", b, "a row of two slots where it keeps both outputs", row);
    if (!in.uncond)
      refuse("row", b, "a row of one slot where there is no unconditional output", row);
  }
}

void apply_row(const Registers& r, const Inputs& in) {
  Job job{r.layout.components == 1 ? run_tiles<1> : run_tiles<2>, r, in, r.batch * tiles_of(r)};
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
