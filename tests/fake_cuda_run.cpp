// The fake driver's contexts, modules and executable graphs, and their execution.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../csrc/cuda/condition.h"
#include "fake_cuda.h"

namespace fake {

// Never destroyed: a test's objects may outlive this library's globals.
World& world = *new World;
const Context kContext = reinterpret_cast<Context>(uintptr_t{0xC0});

namespace {

thread_local std::vector<Context> pushed;

void write_log(unsigned count, const int* options, void* const* values, const std::string& text) {
  char* log = nullptr;
  size_t size = 0;
  for (unsigned i = 0; i < count; ++i) {
    if (options[i] == kErrorLog) log = static_cast<char*>(values[i]);
    if (options[i] == kErrorLogSize) size = reinterpret_cast<uintptr_t>(values[i]);
  }
  if (log && size) log[text.copy(log, size - 1)] = 0;
}

// Whether PTX holds an entry of that name, and its parameters' sizes.
bool find_entry(const std::string& ptx, const std::string& name, std::vector<size_t>& sizes) {
  size_t at = ptx.find(".entry " + name + " (");
  if (at == std::string::npos) return false;
  const std::string list = ptx.substr(at, ptx.find(')', at) - at), word = ".param .";
  for (at = list.find(word); at != std::string::npos; at = list.find(word, at + 1)) {
    sizes.push_back(std::strtoul(&list[at + word.size() + 1], nullptr, 10) /
                    8);  // after b, s, u, f
  }
  return true;
}

// PTX as it is; of machine code for NVIDIA's GPUs, which an ELF header names, the only source that
// there is.
std::string source_of(const char* image) {
  constexpr char kElf[] = {0x7f, 'E', 'L', 'F'};
  constexpr uint16_t kCudaMachine = 190;
  if (std::strncmp(image, kElf, sizeof kElf)) return image;
  uint16_t machine = 0;
  std::memcpy(&machine, image + 18, sizeof machine);
  return machine == kCudaMachine ? kConditionPtx : "";
}

bool loaded(Id function) {
  const auto found = world.functions.find(function);
  return found != world.functions.end() && world.modules.count(found->second.module);
}

// A node whose edges were forgotten runs too early here: of all that may run, the last one does.
std::vector<Id> order(const GraphData& graph) {
  std::vector<Id> waiting = graph.nodes, done;
  while (!waiting.empty()) {
    const auto ready = std::find_if(waiting.rbegin(), waiting.rend(), [&](Id node) {
      const std::vector<Id>& after = world.nodes[node].after;
      return std::all_of(after.begin(), after.end(), [&](Id before) {
        return std::find(done.begin(), done.end(), before) != done.end();
      });
    });
    done.push_back(*ready);
    waiting.erase(std::next(ready).base());
  }
  return done;
}

Status snapshot(Id graph, bool inside_body, ExecData& exec, std::vector<Step>& steps) {
  static const std::set<int> in_bodies = {kKernelNode,     kMemcpyNode, kMemsetNode,
                                          kChildGraphNode, kEmptyNode,  kConditionalNode};
  for (Id node : order(world.graphs[graph])) {
    const NodeData& data = world.nodes[node];
    if (inside_body && !in_bodies.count(data.type)) return kNotSupported;
    if (data.function && !loaded(data.function)) return kInvalidHandle;
    steps.push_back({data, {}});
    if (!data.inner) continue;
    const bool body = inside_body || data.type == kConditionalNode;
    const Status bad = snapshot(id(data.inner), body, exec, steps.back().inner);
    if (bad) return bad;
  }
  for (const auto& [handle, condition] : world.conditions) {
    if (condition.graph == graph && !condition.used) return kInvalidValue;
    if (condition.graph == graph) exec.conditions[handle] = condition;
  }
  return kSuccess;
}

// What csrc/cuda/condition.h says in PTX, by each thread.
Status decide(const Step& step, ExecData& exec) {
  const std::vector<uint64_t>& given = step.node.parameters;
  const auto condition = exec.conditions.find(given[0]);
  if (condition == exec.conditions.end()) return kLaunchFailed;
  const auto* active = reinterpret_cast<const int32_t*>(given[1]);
  auto* budget = reinterpret_cast<int32_t*>(given[2]);
  const auto* cancel = reinterpret_cast<const volatile int32_t*>(given[3]);
  for (uint64_t thread = 0; thread < step.node.threads; ++thread) --*budget;
  const int32_t left = *budget & (kCancelable - 1);
  const bool cancelled = *budget != left && *cancel;
  condition->second.value = *active > 0 && left > 0 && !cancelled;
  return kSuccess;
}

Status run(const std::vector<Step>& steps, ExecData& exec);

Status run_while(const Step& step, ExecData& exec) {
  const Condition& condition = exec.conditions.at(step.node.condition);
  for (int done = 0; condition.value; ++done) {
    if (done == kMostIterations) return kLaunchTimeout;
    if (const Status bad = run(step.inner, exec)) return bad;
  }
  return kSuccess;
}

Status run_function(const Step& step, ExecData& exec) {
  {
    std::lock_guard<std::mutex> lock(world.mutex);
    if (!loaded(step.node.function)) return kInvalidHandle;
    if (world.functions[step.node.function].name != "pndm_continue") return kNotSupported;
  }
  return decide(step, exec);
}

Status run(const std::vector<Step>& steps, ExecData& exec) {
  for (const Step& step : steps) {
    Status status = kSuccess;
    if (step.node.callback) status = step.node.callback(step.node.argument);
    if (step.node.function) status = run_function(step, exec);
    if (step.node.type == kChildGraphNode) status = run(step.inner, exec);
    if (step.node.condition) status = run_while(step, exec);
    if (status) return status;
  }
  return kSuccess;
}

}  // namespace

Context current() {
  if (!pushed.empty()) return pushed.back();
  return world.has_context ? kContext : nullptr;
}

Status CtxGetCurrent(Context* out) {
  ENTER("CtxGetCurrent");
  *out = current();
  return kSuccess;
}

Status CtxPushCurrent(Context context) {
  ENTER("CtxPushCurrent");
  if (context != kContext) return kInvalidContext;
  pushed.push_back(context);
  ++world.contexts;
  return kSuccess;
}

Status CtxPopCurrent(Context* out) {
  ENTER("CtxPopCurrent");
  if (pushed.empty()) return kInvalidContext;
  *out = pushed.back();
  pushed.pop_back();
  --world.contexts;
  return kSuccess;
}

Status ModuleLoadDataEx(Module* out, const void* image, unsigned count, int* options,
                        void** values) {
  std::unique_lock<std::mutex> lock(world.mutex);
  const Status planned = world.called("cuModuleLoadDataEx");
  if (planned) write_log(count, options, values, "fake: this module is refused");
  if (planned) return planned;
  if (!current()) return kInvalidContext;
  const std::string text = source_of(static_cast<const char*>(image));
  if (text.find(".version") == std::string::npos) return kInvalidPtx;
  world.modules[++world.last] = text;
  *out = handle<Module>(world.last);
  return kSuccess;
}

Status ModuleGetFunction(Function* out, Module module, const char* name) {
  ENTER("ModuleGetFunction");
  const auto found = world.modules.find(id(module));
  if (found == world.modules.end()) return kInvalidHandle;
  FunctionData function{id(module), name, {}};
  if (!find_entry(found->second, name, function.sizes)) return kNotFound;
  world.functions[++world.last] = function;
  *out = handle<Function>(world.last);
  return kSuccess;
}

Status ModuleUnload(Module module) {
  ENTER("ModuleUnload");
  if (!current()) return kInvalidContext;
  if (!world.modules.erase(id(module))) return kInvalidHandle;
  world.destroyed.push_back("module");
  return kSuccess;
}

Status MemsetD32Async(Address target, unsigned value, size_t count, Stream stream) {
  ENTER("MemsetD32Async");
  if (!target || target % 4) return kInvalidValue;
  world.stream = id(stream);
  std::fill_n(reinterpret_cast<uint32_t*>(target), count, value);
  return kSuccess;
}

Status GraphInstantiateWithFlags(Exec* out, Graph graph, unsigned long long flags) {
  ENTER("GraphInstantiateWithFlags");
  if (!world.graphs.count(id(graph))) return kInvalidHandle;
  if (flags) return kNotSupported;
  auto exec = std::make_shared<ExecData>();
  if (const Status status = snapshot(id(graph), false, *exec, exec->steps)) return status;
  world.execs[++world.last] = exec;
  *out = handle<Exec>(world.last);
  return kSuccess;
}

Status GraphLaunch(Exec handle, Stream stream) {
  ENTER("GraphLaunch");
  const auto found = world.execs.find(id(handle));
  if (found == world.execs.end()) return kInvalidHandle;
  const std::shared_ptr<ExecData> exec = found->second;
  if (exec->running) return kIllegalState;
  exec->running = true;
  world.stream = id(stream);
  lock.unlock();
  for (auto& [key, condition] : exec->conditions) {
    if (condition.flags & kAssignDefault) condition.value = condition.initial;
  }
  const Status status = run(exec->steps, *exec);
  lock.lock();
  exec->running = false;
  return status;
}

Status GraphExecDestroy(Exec exec) {
  ENTER("GraphExecDestroy");
  const auto found = world.execs.find(id(exec));
  if (found == world.execs.end()) return kInvalidHandle;
  if (found->second->running) return kIllegalState;
  world.execs.erase(found);
  world.destroyed.push_back("exec");
  return kSuccess;
}

}  // namespace fake
