// The fake driver's way in, cuGetProcAddress_v2, and what tests tell it and ask it.
#include <chrono>
#include <sstream>
#include <thread>

#include "fake_cuda.h"

namespace fake {
namespace {

const std::map<Status, const char*> kStatusNames = {
    {0, "CUDA_SUCCESS"},
    {1, "CUDA_ERROR_INVALID_VALUE"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY"},
    {3, "CUDA_ERROR_NOT_INITIALIZED"},
    {4, "CUDA_ERROR_DEINITIALIZED"},
    {201, "CUDA_ERROR_INVALID_CONTEXT"},
    {218, "CUDA_ERROR_INVALID_PTX"},
    {400, "CUDA_ERROR_INVALID_HANDLE"},
    {401, "CUDA_ERROR_ILLEGAL_STATE"},
    {500, "CUDA_ERROR_NOT_FOUND"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT"},
    {719, "CUDA_ERROR_LAUNCH_FAILED"},
    {801, "CUDA_ERROR_NOT_SUPPORTED"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    {999, "CUDA_ERROR_UNKNOWN"},
};

struct Export {
  int since;  // the version in which the interface that this file implements first appeared
  void* address;
};

template <class Pointer>
void* address_of(Pointer function) {
  return reinterpret_cast<void*>(function);
}

#define EXPORT(name, since)                 \
  {                                         \
    "cu" #name, { since, address_of(name) } \
  }

const std::map<std::string, Export> kExports = {
    EXPORT(GetErrorName, 6000),
    EXPORT(GetErrorString, 6000),
    EXPORT(DriverGetVersion, 2020),
    EXPORT(CtxGetCurrent, 4000),
    EXPORT(CtxPushCurrent, 4000),
    EXPORT(CtxPopCurrent, 4000),
    EXPORT(GraphCreate, 10000),
    EXPORT(GraphDestroy, 10000),
    EXPORT(GraphGetNodes, 10000),
    EXPORT(GraphNodeGetType, 10000),
    EXPORT(GraphChildGraphNodeGetGraph, 10000),
    EXPORT(GraphMemcpyNodeGetParams, 10000),
    EXPORT(GraphAddChildGraphNode, 10000),
    EXPORT(GraphAddKernelNode, 12000),
    EXPORT(GraphInstantiateWithFlags, 11040),
    EXPORT(GraphLaunch, 10000),
    EXPORT(GraphExecDestroy, 10000),
    EXPORT(ModuleLoadDataEx, 2010),
    EXPORT(ModuleGetFunction, 2000),
    EXPORT(ModuleUnload, 2000),
    EXPORT(MemsetD32Async, 3020),
    EXPORT(GraphConditionalHandleCreate, 12030),
    EXPORT(GraphAddNode, 12030),
};

int status_name(Status status, const char** out, bool text) {
  const auto found = kStatusNames.find(status);
  *out = found == kStatusNames.end() ? nullptr : text ? "of the fake driver" : found->second;
  return *out ? kSuccess : kInvalidValue;
}

}  // namespace

Status GetErrorName(Status status, const char** out) {
  ENTER("GetErrorName");
  return status_name(status, out, false);
}

Status GetErrorString(Status status, const char** out) {
  ENTER("GetErrorString");
  return status_name(status, out, true);
}

Status DriverGetVersion(int* out) {
  ENTER("DriverGetVersion");
  *out = world.version;
  return kSuccess;
}

}  // namespace fake

using namespace fake;

extern "C" {

#define VISIBLE __attribute__((visibility("default")))

VISIBLE Status cuGetProcAddress_v2(const char* name, void** out, int version,
                                   unsigned long long flags, int* found) {
  enum { kFound = 0, kMissing = 1, kVersionTooOld = 2 };
  std::lock_guard<std::mutex> lock(world.mutex);
  *out = nullptr;
  if (flags) return kInvalidValue;
  const auto it = kExports.find(name);
  const bool has = it != kExports.end() && !world.hidden.count(name);
  *found = !has || world.version < it->second.since ? kMissing
           : version < it->second.since             ? kVersionTooOld
                                                    : kFound;
  if (*found == kFound) *out = it->second.address;
  return kSuccess;
}

VISIBLE uint64_t fake_graph() {
  std::lock_guard<std::mutex> lock(world.mutex);
  const Id graph = new_graph(0);
  world.graphs[graph].captured = true;
  return graph;
}

// The node, or 0 where the graph, a dependency or the child is refused.
VISIBLE uint64_t fake_add(uint64_t graph, int type, const uint64_t* after, size_t count,
                          Callback callback, void* argument, uint64_t child) {
  std::lock_guard<std::mutex> lock(world.mutex);
  std::vector<Node> nodes;
  for (size_t i = 0; i < count; ++i) nodes.push_back(handle<Node>(after[i]));
  Id made = 0;
  if (type == kChildGraphNode) {
    return add_child(graph, nodes.data(), count, child, &made) ? 0 : made;
  }
  NodeData node;
  node.graph = graph;
  node.type = type;
  node.callback = callback;
  node.argument = argument;
  return add(node, nodes.data(), count, &made) ? 0 : made;
}

VISIBLE void fake_copy(uint64_t node, int source, int target) {
  std::lock_guard<std::mutex> lock(world.mutex);
  world.nodes[node].copy.source.memory = source;
  world.nodes[node].copy.target.memory = target;
}

VISIBLE void fake_destroy(uint64_t graph) {
  std::lock_guard<std::mutex> lock(world.mutex);
  erase(graph);
}

// A node's callback: tells that it runs in the second word and waits for the first, or 10 seconds.
VISIBLE Status fake_wait(void* words) {
  auto* word = static_cast<volatile int32_t*>(words);
  word[1] = 1;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!word[0]) {
    if (std::chrono::steady_clock::now() > end) return kLaunchTimeout;
    std::this_thread::yield();
  }
  return kSuccess;
}

VISIBLE void fake_fail(const char* name, Status status, int64_t call) {
  std::lock_guard<std::mutex> lock(world.mutex);
  world.failures[name] = {call, status};
}

VISIBLE void fake_hide(const char* name) {
  std::lock_guard<std::mutex> lock(world.mutex);
  world.hidden.insert(name);
}

VISIBLE void fake_set(int version, bool has_context) {
  std::lock_guard<std::mutex> lock(world.mutex);
  world.version = version;
  world.has_context = has_context;
}

VISIBLE void fake_reset() {
  std::lock_guard<std::mutex> lock(world.mutex);
  world.counts.clear();
  world.failures.clear();
  world.destroyed.clear();
  world.stream = 0;
}

// Lines of "kind name number".
VISIBLE const char* fake_report() {
  thread_local std::string text;
  std::lock_guard<std::mutex> lock(world.mutex);
  std::ostringstream out;
  int64_t graphs = 0;
  for (const auto& [key, graph] : world.graphs) graphs += !graph.owner && !graph.captured;
  for (const auto& [name, entry] : kExports) out << "name " << name << " " << entry.since << "\n";
  for (const auto& [name, count] : world.counts) out << "count " << name << " " << count << "\n";
  for (const auto& kind : world.destroyed) out << "destroyed " << kind << " 1\n";
  out << "live graph " << graphs << "\nlive exec " << world.execs.size() << "\nlive module "
      << world.modules.size() << "\nlive context " << world.contexts << "\nlast stream "
      << world.stream << "\n";
  text = out.str();
  return text.c_str();
}

}  // extern "C"
