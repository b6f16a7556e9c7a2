// A fake CUDA driver, for tests without a GPU: graphs are host objects, kernels are callbacks, and
// all work is done before a call returns. Where CUDA leaves behavior undefined, this is an error.
// Functions named fake_ are the tests' own; fake_cuda.py gives them a Python face.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../csrc/cuda/driver.h"

namespace fake {

using namespace pndm::cuda;
using Id = uint64_t;  // handles are numbers, never used twice, so that stale ones are recognized
using Callback = Status (*)(void*);

enum : Status {
  kInvalidValue = 1,
  kInvalidContext = 201,
  kInvalidPtx = 218,
  kInvalidHandle = 400,
  kIllegalState = 401,
  kNotFound = 500,
  kLaunchTimeout = 702,
  kLaunchFailed = 719,
  kNotSupported = 801,
};

constexpr int kAllocNode = 10, kFreeNode = 11;
constexpr int kMostIterations = 1 << 20;  // a condition that is never false ends in a time-out

struct NodeData {
  Id graph = 0;
  int type = kEmptyNode;
  std::vector<Id> after;
  Callback callback = nullptr;
  void* argument = nullptr;
  Id function = 0;
  std::vector<uint64_t> parameters;
  uint64_t threads = 1;
  MemcpyParams copy{};
  ConditionalHandle condition = 0;
  Graph inner = nullptr;  // child graph or body; GraphAddNode gives out its address
};

struct GraphData {
  std::vector<Id> nodes;
  Id owner = 0;           // the node whose child or body it is
  bool captured = false;  // made by a test, as torch makes it
};

struct FunctionData {
  Id module;
  std::string name;
  std::vector<size_t> sizes;  // of its parameters, in bytes
};

struct Condition {
  Id graph;
  unsigned initial, flags, value;
  bool used;
};

struct Step {
  NodeData node;
  std::vector<Step> inner;
};

struct ExecData {
  std::vector<Step> steps;
  std::map<ConditionalHandle, Condition> conditions;
  bool running = false;
};

struct World {
  std::mutex mutex;  // never held while callbacks run
  Id last = 0x1000;
  std::map<Id, GraphData> graphs;
  std::map<Id, NodeData> nodes;
  std::map<Id, std::shared_ptr<ExecData>> execs;
  std::map<Id, std::string> modules;
  std::map<Id, FunctionData> functions;
  std::map<ConditionalHandle, Condition> conditions;
  std::map<std::string, int64_t> counts;
  std::map<std::string, std::pair<int64_t, Status>> failures;  // after that many calls more
  std::vector<std::string> destroyed;
  std::set<std::string> hidden;
  uint64_t stream = 0;
  int64_t contexts = 0;  // pushed and not popped
  int version = 13000;
  bool has_context = true;

  Status called(const char* name) {
    ++counts[name];
    const auto planned = failures.find(name);
    if (planned == failures.end() || --planned->second.first > 0) return kSuccess;
    const Status status = planned->second.second;
    failures.erase(planned);
    return status;
  }
};

extern World& world;
extern const Context kContext;

#define ENTER(name)                               \
  std::unique_lock<std::mutex> lock(world.mutex); \
  if (const Status planned = world.called("cu" name)) return planned

template <class Handle>
Id id(Handle handle) {
  return reinterpret_cast<uintptr_t>(handle);
}

template <class Handle>
Handle handle(Id id) {
  return reinterpret_cast<Handle>(static_cast<uintptr_t>(id));
}

Context current();  // of this thread

// Build graphs; the caller holds the lock.
Id new_graph(Id owner);
Status add(NodeData node, const Node* after, size_t count, Id* out);
Status add_child(Id graph, const Node* after, size_t count, Id child, Id* out);
void erase(Id graph);

// The driver's functions, under the names that csrc/driver.h gives them.
#define FAKE_DECLARE(name, interface, parameters) Status name parameters;
PNDM_DRIVER_FUNCTIONS(FAKE_DECLARE)
PNDM_CONDITIONAL_FUNCTIONS(FAKE_DECLARE)
#undef FAKE_DECLARE

}  // namespace fake
