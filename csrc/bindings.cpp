// Python's view of the row operation. What a run is given is checked here, once, before a row.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/graph_bindings.h"
#include "row/apply_row.h"
#include "row/tile.h"
#include "watch.h"

namespace py = pybind11;

namespace pndm {
namespace {

constexpr int64_t kReleaseGil =
    1 << 16;  // elements; below, handing the GIL over costs more than it gives
constexpr int64_t kMostElements = int64_t{1} << 34;  // per sample: four to each 32-bit counter

[[noreturn]] void refuse(const std::string& name, const std::string& rule, const std::string& got) {
  throw py::value_error("RowOp: " + name + " must be " + rule + ", got " + got);
}

// A number of the constructor, checked: `at_least` and what that is called.
int64_t number(const char* name, int64_t value, int64_t at_least, const char* rule) {
  if (value < at_least) refuse(name, rule, std::to_string(value));
  return value;
}

template <class T>
T* pointer(const char* name, uintptr_t address, bool optional = false) {
  if (!address && !optional) refuse(name, "an address", "0");
  return reinterpret_cast<T*>(address);
}

Dtype dtype_of(const char* name, const std::string& text) {
  if (text == "float32") return Dtype::kFloat32;
  if (text == "float16") return Dtype::kFloat16;
  if (text == "bfloat16") return Dtype::kBFloat16;
  refuse(name, "float32, float16 or bfloat16", text);
}

const Layout& layout_of(int64_t table_width) {
  for (const Layout& layout : kLayouts) {
    if (table_width == layout.width) return layout;
  }
  refuse("table_width", "32, 64 or 128", std::to_string(table_width));
}

bool integer_time(const std::string& text) {
  if (text != "float32" && text != "int64") refuse("time_dtype", "float32 or int64", text);
  return text == "int64";
}

struct Range {
  uintptr_t first = 0, last = 0;
};

Range range(const void* start, int64_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(start);
  return {first, start ? first + static_cast<uintptr_t>(bytes) : first};
}

// A row on fixed memory. Python keeps the tensors alive.
class RowOp {
 public:
  explicit RowOp(const Registers& registers) : r_(registers) {
    if (r_.stride < r_.n) refuse("stride", "at least n", std::to_string(r_.stride));
    if (r_.n % r_.channels) refuse("channels", "a divisor of n", std::to_string(r_.channels));
    if (r_.n > kMostElements) refuse("n", "at most 2^34", std::to_string(r_.n));
    if (r_.layout.components > 1 && r_.n % r_.layout.components)
      refuse("n", "even in phase space", std::to_string(r_.n));
    if (r_.layout.components > 1 && r_.channels > 1) {
      refuse("channels", "1 in phase space", std::to_string(r_.channels));
    }
    if (r_.n_slots > r_.layout.slots) {
      refuse("n_slots", "at most " + std::to_string(r_.layout.slots), std::to_string(r_.n_slots));
    }
    r_.each([this](const char*, const void* start, int64_t bytes, bool) {
      ours_.push_back(range(start, bytes));
    });
    ours_.push_back(range(r_.table, r_.table_rows * r_.layout.width * 4));
  }

  // False, with nothing done, where an output overlaps our memory.
  bool operator()(uintptr_t out, uintptr_t uncond, uintptr_t z) const {
    const Inputs in{pointer<void>("out", out), reinterpret_cast<void*>(uncond),
                    reinterpret_cast<float*>(z)};
    const int64_t elements = r_.batch * r_.n;
    if (z && overlaps(range(in.z, elements * 4))) refuse("z", "memory of its own", "the run's");
    if (overlaps(range(in.out, elements * size_of(r_.out)))) return false;
    if (uncond && overlaps(range(in.uncond, elements * size_of(r_.out)))) return false;
    check_rows(r_, in);
    if (elements >= kReleaseGil) {
      py::gil_scoped_release released;
      apply_row(r_, in);
    } else {
      apply_row(r_, in);
    }
    return true;
  }

  // False, with nothing done, where a source overlaps our memory.
  bool begin(uintptr_t lines, uintptr_t noise, uintptr_t state, uintptr_t image,
             uintptr_t z) const {
    const auto at = [](uintptr_t address) { return reinterpret_cast<const float*>(address); };
    const Sources sources{at(noise), at(state), at(image), at(z)};
    for (const float* source : {sources.noise, sources.state, sources.image, sources.z}) {
      if (overlaps(range(source, r_.batch * r_.n * 4))) return false;
    }
    const auto* first = pointer<const int32_t>("lines", lines);
    std::optional<py::gil_scoped_release> released;
    if (r_.batch * r_.n >= kReleaseGil) released.emplace();
    pndm::begin(r_, first, sources);
    return true;
  }

 private:
  bool overlaps(Range other) const {
    for (const Range& own : ours_) {
      if (other.first < own.last && own.first < other.last) return true;
    }
    return false;
  }

  Registers r_;
  std::vector<Range> ours_;
};

using Addresses = std::map<std::string, uintptr_t>;

// Takes the registers from their addresses by name.
void take(Addresses addresses, Registers& r) {
  r.each([&](const char* name, auto*& start, int64_t, bool optional) {
    const auto found = addresses.find(name);
    if (found == addresses.end()) refuse("registers", std::string("given with ") + name, "none");
    using Type = std::remove_pointer_t<std::remove_reference_t<decltype(start)>>;
    start = pointer<Type>(name, found->second, optional);
    addresses.erase(found);
  });
  if (!addresses.empty()) {
    refuse("registers", "those that the extension was built with", addresses.begin()->first);
  }
}

RowOp make_row_op(Addresses registers, uintptr_t table, int64_t batch, int64_t n, int64_t stride,
                  int64_t n_slots, int64_t table_rows, int64_t table_width, int64_t channels,
                  int64_t cfg_copies, const std::string& out_dtype, const std::string& slot_dtype,
                  const std::string& net_dtype, const std::string& time_dtype, int64_t threads) {
  Registers r{};
  take(std::move(registers), r);
  r.table = pointer<const float>("table", table);
  r.batch = number("batch", batch, 1, "positive");
  r.n = number("n", n, 1, "positive");
  r.stride = number("stride", stride, 1, "positive");
  r.n_slots = number("n_slots", n_slots, 1, "positive");
  r.table_rows = number("table_rows", table_rows, 1, "positive");
  r.layout = layout_of(table_width);
  r.channels = number("channels", channels, 1, "positive");
  r.cfg_copies = number("cfg_copies", cfg_copies, 1, "positive");
  r.out = dtype_of("out_dtype", out_dtype);
  r.slot = dtype_of("slot_dtype", slot_dtype);
  r.net = dtype_of("net_dtype", net_dtype);
  r.integer_time = integer_time(time_dtype);
  r.threads = number("threads", threads, 1, "positive");
  return RowOp(r);
}

void fill_normals(uintptr_t out, uintptr_t seeds, int64_t batch, int64_t index, int64_t n,
                  int64_t stride, int64_t channels) {
  if (!out || !seeds || batch < 1 || n < 1 || n > kMostElements || stride < n || channels < 1 ||
      n % channels || index < 0 || index > UINT32_MAX) {
    throw py::value_error(
        "normals: out and seeds must be addresses, batch and n positive, stride at least n, "
        "channels a divisor of n and index in [0, 2^32)");
  }
  py::gil_scoped_release released;
  normals(reinterpret_cast<float*>(out), reinterpret_cast<const uint64_t*>(seeds), batch,
          static_cast<uint32_t>(index), n, stride, channels);
}

py::dict columns() {
  py::dict all;
  const std::pair<const char*, int> named[] = {{"HALT", kHalt},
                                               {"T", kTime},
                                               {"SLOT", kSlot},
                                               {"CLAMP", kClamp},
                                               {"GUIDANCE", kGuidance},
                                               {"NOISE", kNoise},
                                               {"WRITE_X", kWriteX},
                                               {"WRITE_Y", kWriteY},
                                               {"COEFFICIENTS", kCoefficients},
                                               {"IN_SCALE", kInScale},
                                               {"P", kP},
                                               {"Q", kQ},
                                               {"P2", kP2},
                                               {"Q2", kQ2},
                                               {"X", kX},
                                               {"P0", kP0},
                                               {"ENTRY_SIGMA", kEntrySigma},
                                               {"ENTRY_ALPHA", kEntryAlpha},
                                               {"A0", kA0},
                                               {"C0", kC0}};
  for (const auto& [name, column] : named) all[name] = column;
  return all;
}

py::dict layouts() {
  py::dict all;
  for (const Layout& layout : kLayouts) {
    py::dict one;
    one["components"] = layout.components;
    one["slots"] = layout.slots;
    one["second"] = layout.second ? py::cast(layout.second) : py::none();
    one["y"] = layout.y();
    one["end"] = layout.end();
    all[py::int_(layout.width)] = one;
  }
  return all;
}

// Chooses the instruction set for all later calls, if it is named; returns those to choose from.
py::tuple choose_instruction_set(const std::string& name) {
  py::list names;
  for (const InstructionSet* set = instruction_sets(); set->name; ++set) {
    names.append(set->name);
    if (name == set->name) active_set = *set;
  }
  if (!name.empty() && name != active_set.name) {
    throw py::value_error("instruction set must be one of this machine's, got " + name);
  }
  return py::tuple(names);
}

void use_pool(uintptr_t parallel, uintptr_t index, uintptr_t size) {
  if (!parallel || !index || !size) throw py::value_error("use_pool: an address must not be 0");
  pool.parallel = reinterpret_cast<decltype(pool.parallel)>(parallel);
  pool.index = reinterpret_cast<decltype(pool.index)>(index);
  pool.size = reinterpret_cast<decltype(pool.size)>(size);
}

}  // namespace
}  // namespace pndm

PYBIND11_MODULE(_C, m) {
  using namespace pndm;
  using py::literals::operator""_a;
  m.doc() = "The row operation and its noise on the CPU, and CUDA graphs, on raw pointers.";
  m.attr("columns") = columns();
  m.attr("layouts") = layouts();
  m.def("column", &column, "first"_a, "components"_a,
        "Where a coefficient begins, given its column in a line of one component.");
  m.def("normals", &fill_normals, "out"_a, "seeds"_a, "batch"_a, "index"_a, "n"_a, "stride"_a,
        "channels"_a,
        "Fill float32 [batch, n], rows `stride` apart, with a noise index's normals.");
  m.def("use_pool", &use_pool, "parallel"_a, "index"_a, "size"_a,
        "Run large rows on the threads of an OpenMP runtime: GOMP_parallel, omp_get_thread_num and "
        "omp_get_num_threads.");
  m.def("slot_offset", &slot_offset, "slot"_a, "sample"_a, "batch"_a, "stride"_a,
        "Where a sample's slot begins, in elements.");
  m.def("instruction_sets", &choose_instruction_set, "use"_a = "",
        "This machine's instruction sets, best first; a name chooses one. For tests.");
  bind_graph(m);
  bind_watch(m);
  py::class_<RowOp>(m, "RowOp",
                    "One row of the table for every sample, on memory that Python owns.")
      .def(py::init(&make_row_op), "registers"_a, py::kw_only(), "table"_a, "batch"_a, "n"_a,
           "stride"_a, "n_slots"_a, "table_rows"_a, "table_width"_a, "channels"_a, "cfg_copies"_a,
           "out_dtype"_a, "slot_dtype"_a, "net_dtype"_a, "time_dtype"_a, "threads"_a = 1)
      .def("begin", &RowOp::begin, "lines"_a, "noise"_a = 0, "state"_a = 0, "image"_a = 0,
           "z"_a = 0, py::pos_only(),
           "Write the start; False, with nothing done, where a source is our memory.")
      .def("__call__", &RowOp::operator(), "out"_a, "uncond"_a = 0, "z"_a = 0, py::pos_only(),
           "Execute each sample's row; False, with nothing done, where an output is our memory.");
}
