#include "apply_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "tile.h"

namespace pndm {
namespace {

constexpr int64_t kElementsPerThread =
    1 << 16;  // about 15 us of work, several times what a team costs

// One sample's row, read once.
struct Work {
  const Loops& loops;
  const Registers& r;
  const Inputs& in;
  int64_t b;
  const float* line;
  float *x, *y;
  char* slot;
  Form to_x, to_y;
  StoreMap store;
  bool guided;  // at scale 1 a sample owes nothing to the other half
  bool writes_x, writes_y, same, copied, kept;
};

Form form_of(const Registers& r, int64_t b, const float* scales, bool noisy) {
  Form form;
  const float* fronts[kFront] = {r.x + b * r.stride, r.y + b * r.stride};
  for (int k = 0; k < kFront; ++k) {
    if (scales[k] == 0.0f) continue;  // an operand that is not used may hold anything
    form.front[form.fronts] = fronts[k];
    form.front_scale[form.fronts++] = scales[k];
  }
  const char* slots = static_cast<const char*>(r.slots);
  for (int k = 0; k < kMaxSlots; ++k) {
    if (scales[kFront + k] == 0.0f) continue;
    form.slot[form.slots] = slots + slot_offset(k, b, r.batch, r.stride) * size_of(r.slot);
    form.slot_scale[form.slots++] = scales[kFront + k];
  }
  form.z_scale = noisy ? scales[kForm - 1] : 0.0f;
  return form;
}

Work work_of(const Registers& r, const Inputs& in, int64_t b) {
  const float* line = r.table + r.row[b] * int64_t{kWidth};
  const int64_t slot = slot_offset(static_cast<int64_t>(line[kSlot]), b, r.batch, r.stride);
  Work w{*active_set.loops,
         r,
         in,
         b,
         line,
         r.x + b * r.stride,
         r.y + b * r.stride,
         static_cast<char*>(r.slots) + slot * size_of(r.slot),
         {},
         {},
         {line[kP], line[kQ], line[kP2], line[kQ2], line[kClamp]},
         in.uncond && line[kGuidance] != 1.0f,
         line[kWriteX] != 0.0f,
         line[kWriteY] != 0.0f,
         false,
         false,
         false};
  const bool noisy = line[kNoise] != 0.0f;
  if (w.writes_x) w.to_x = form_of(r, b, line + kX, noisy);
  if (w.writes_y) w.to_y = form_of(r, b, line + kY, noisy);
  w.same = w.writes_x && w.writes_y && std::equal(line + kX, line + kX + kForm, line + kY);
  const auto& [p, q, p2, q2, clamp] = w.store;
  w.copied = !w.guided && p == 0 && q == 1 && p2 == 0 && q2 == 1 && !(clamp < INFINITY);
  w.kept = w.copied && r.out == Dtype::kFloat32 && r.slot == Dtype::kFloat32 && w.writes_y &&
           !w.writes_x && w.to_y.fronts == 1;
  if (w.kept) {  // the output stands for its slot, which is written beside it
    const char* out = static_cast<const char*>(in.out) + b * r.n * size_of(r.out);
    std::replace(w.to_y.slot, w.to_y.slot + w.to_y.slots, static_cast<const void*>(w.slot),
                 static_cast<const void*>(out));
  }
  return w;
}

// Whether the network's output was not finite.
bool store_tile(const Work& w, int64_t at, int64_t count) {
  const int out = static_cast<int>(w.r.out), slot = static_cast<int>(w.r.slot);
  const int64_t skip = w.b * w.r.n * size_of(w.r.out);
  const char* first = static_cast<const char*>(w.in.out) + skip;
  if (w.copied) return w.loops.copy[out][slot](first, w.slot, at, count);
  const char* second = w.guided ? static_cast<const char*>(w.in.uncond) + skip : nullptr;
  alignas(64) float e[kTile];
  const bool bad =
      w.loops.load[out][second != nullptr](first, second, w.line[kGuidance], at, count, e);
  w.loops.map[w.store.p != 0][w.store.p2 != 0](w.store, w.y + at, count, e);
  w.loops.scale[slot](e, 1.0f, at, count, w.slot);
  return bad;
}

void combine_tile(const Work& w, const Form& form, const float* z, int64_t at, int64_t count,
                  float* to) {
  w.loops.combine[static_cast<int>(w.r.slot)][form.fronts][form.slots](form, at, count, to);
  if (form.z_scale != 0.0f) w.loops.add(z, form.z_scale, count, to);
}

// The row's z at [at, at + count): the caller's, or drawn into the tile given.
const float* noise_tile(const Work& w, int64_t at, int64_t count, float* drawn) {
  if (w.in.z) return w.in.z + w.b * w.r.n + at;
  const auto index = static_cast<uint32_t>(w.line[kNoise]);
  w.loops.normals(w.r.seeds[w.b], index, at, count, w.r.n, w.r.channels, drawn);
  return drawn;
}

void update_tile(const Work& w, int64_t at, int64_t count) {
  alignas(64) float drawn[kTile], kept[kTile];
  const bool noisy = w.to_x.z_scale != 0.0f || w.to_y.z_scale != 0.0f;
  const float* z = noisy ? noise_tile(w, at, count, drawn) : nullptr;
  float *x = w.x + at, *y = w.y + at;
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  // Y reads the old x: the new one waits in the first-level cache.
  if (w.writes_x && !w.same) combine_tile(w, w.to_x, z, at, count, w.writes_y ? kept : x);
  if (w.writes_y) combine_tile(w, w.to_y, z, at, count, y);
  if (w.writes_x && w.writes_y) std::memcpy(x, w.same ? y : kept, bytes);
}

// The steady row of a multistep solver: store and update in one loop.
bool kept_tile(const Work& w, int64_t at, int64_t count) {
  const float* out = static_cast<const float*>(w.in.out) + w.b * w.r.n;
  float *slot = reinterpret_cast<float*>(w.slot), *y = w.y + at;
  const bool bad = w.loops.combine_kept[w.to_y.slots](w.to_y, out, slot, at, count, y);
  if (w.to_y.z_scale == 0.0f) return bad;
  alignas(64) float drawn[kTile];
  w.loops.add(noise_tile(w, at, count, drawn), w.to_y.z_scale, count, y);
  return bad;
}

void feed_tile(const Work& w, int64_t at, int64_t count) {
  if (!w.r.net_in) return;
  for (int64_t half = 0; half < w.r.halves; ++half) {
    const int64_t skip = (half * w.r.batch + w.b) * w.r.n;
    char* to = static_cast<char*>(w.r.net_in) + skip * size_of(w.r.net);
    const float in_scale = w.line[kWidth + kInScale];  // the next row's
    w.loops.scale[static_cast<int>(w.r.net)](w.y + at, in_scale, at, count, to);
  }
}

// Tiles [first, last) of all samples' tiles, numbered one after another.
void run_tiles(const Registers& r, const Inputs& in, int64_t first, int64_t last) {
  const int64_t each = (r.n + kTile - 1) / kTile;
  while (first < last) {
    const int64_t b = first / each, end = std::min((b + 1) * each, last);
    const Work w = work_of(r, in, b);
    bool bad = false;
    for (int64_t tile = first - b * each; !w.line[kHalt] && tile < end - b * each; ++tile) {
      const int64_t at = tile * kTile, count = std::min(kTile, r.n - at);
      if (w.kept) {
        bad |= kept_tile(w, at, count);
      } else {
        bad |= store_tile(w, at, count);
        update_tile(w, at, count);
      }
      feed_tile(w, at, count);
    }
    if (bad) {  // threads on one sample write the same number
      const int32_t seen = __atomic_load_n(r.first_bad + b, __ATOMIC_RELAXED);
      __atomic_store_n(r.first_bad + b, std::min(seen, r.row[b]), __ATOMIC_RELAXED);
    }
    first = end;
  }
}

struct Job {
  const Registers& r;
  const Inputs& in;
  int64_t tiles;
};

// A team's member takes its share of the tiles; the runtime may grant fewer members than asked for.
void run_share(void* data) {
  const Job& job = *static_cast<const Job*>(data);
  const int64_t index = pool.index(), size = pool.size();
  run_tiles(job.r, job.in, job.tiles * index / size, job.tiles * (index + 1) / size);
}

void advance(const Registers& r) {
  for (int64_t b = 0; b < r.batch; ++b) {
    const float* line = r.table + r.row[b] * int64_t{kWidth};
    if (line[kHalt] != 0.0f) continue;
    line += kWidth;
    r.row[b] += 1;
    *r.active -= line[kHalt] != 0.0f;
    for (int64_t at = b; at < r.halves * r.batch; at += r.batch) {
      if (r.integer_time) {
        static_cast<int64_t*>(r.t)[at] = static_cast<int64_t>(line[kTime]);
      } else {
        static_cast<float*>(r.t)[at] = line[kTime];
      }
    }
  }
}

[[noreturn]] void refuse(int64_t b, const std::string& rule, int64_t row) {
  throw std::out_of_range("Run: row[" + std::to_string(b) + "] must be " + rule + ", got " +
                          std::to_string(row));
}

}  // namespace

int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

void check_rows(const Registers& r) {
  for (int64_t b = 0; b < r.batch; ++b) {
    const int64_t row = r.row[b], rows = r.table_rows;
    if (row < 0 || row >= rows) refuse(b, "in [0, " + std::to_string(rows) + ")", row);
    const float* line = r.table + row * kWidth;
    if (line[kHalt] != 0.0f) continue;
    if (row + 1 == rows) refuse(b, "a halt row where it is the last", row);
    bool fits = line[kSlot] >= 0.0f && line[kSlot] < static_cast<float>(r.n_slots);
    for (int64_t k = r.n_slots; k < kMaxSlots; ++k) {
      fits &= line[kX + kFront + k] == 0.0f && line[kY + kFront + k] == 0.0f;
    }
    if (!fits) refuse(b, "a row of slots in [0, " + std::to_string(r.n_slots) + ")", row);
  }
}

void apply_row(const Registers& r, const Inputs& in) {
  Job job{r, in, r.batch * ((r.n + kTile - 1) / kTile)};
  const int64_t threads = std::min(r.threads, r.batch * r.n / kElementsPerThread);
  if (threads > 1 && pool.parallel) {
    pool.parallel(run_share, &job, static_cast<unsigned>(threads), 0);
  } else {
    run_tiles(r, in, 0, job.tiles);
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
