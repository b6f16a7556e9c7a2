#include "cuda/graph.h"

#include <array>
#include <stdexcept>
#include <vector>

#include "cuda/condition.h"

namespace pndm::cuda {
namespace {

std::string name_of(int type) {
  static constexpr std::array<const char*, 14> names = {
      "kernel",           "memcpy",         "memset",     "host",
      "child graph",      "empty",          "event wait", "event record",
      "semaphore signal", "semaphore wait", "mem alloc",  "mem free",
      "batch mem op",     "conditional"};
  const bool known = type >= 0 && type < static_cast<int>(names.size());
  return known ? names[type] : "type " + std::to_string(type);
}

// A context for as long as this lives; destroying modules needs one on whatever thread that is.
class Current {
 public:
  Current(const Driver& driver, Context context)
      : driver_(driver), pushed_(driver.CtxPushCurrent(context) == kSuccess) {}
  ~Current() {
    Context popped;
    if (pushed_) driver_.CtxPopCurrent(&popped);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const Driver& driver_;
  bool pushed_;
};

// Why a node cannot stand in a WHILE body; by the time it is in a child graph there, conditional
// nodes cannot either.
std::string obstacle_of(const Driver& driver, Node node, int type) {
  if (type == kKernelNode || type == kMemsetNode || type == kEmptyNode || type == kChildGraphNode) {
    return "";
  }
  if (type != kMemcpyNode) return "a WHILE body cannot hold a " + name_of(type) + " node";
  MemcpyParams copy{};
  driver.check(driver.GraphMemcpyNodeGetParams(node, &copy), "cuGraphMemcpyNodeGetParams");
  const bool host = copy.source.memory == kHostMemory || copy.target.memory == kHostMemory;
  return host ? "a WHILE body cannot hold a memcpy node that touches host memory" : "";
}

void walk(const Driver& driver, Graph graph, Census& found) {
  size_t count = 0;
  driver.check(driver.GraphGetNodes(graph, nullptr, &count), "cuGraphGetNodes");
  std::vector<Node> nodes(count);
  if (count) driver.check(driver.GraphGetNodes(graph, nodes.data(), &count), "cuGraphGetNodes");
  for (Node node : nodes) {
    int type = 0;
    driver.check(driver.GraphNodeGetType(node, &type), "cuGraphNodeGetType");
    ++found.nodes[name_of(type)];
    if (found.obstacle.empty()) found.obstacle = obstacle_of(driver, node, type);
    if (type == kChildGraphNode) {
      Graph child = nullptr;
      driver.check(driver.GraphChildGraphNodeGetGraph(node, &child),
                   "cuGraphChildGraphNodeGetGraph");
      walk(driver, child, found);
    }
  }
}

Owned<Module> load(const Driver& driver, const char* image) {
  std::array<char, 4096> log{};
  int options[] = {kErrorLog, kErrorLogSize};
  void* values[] = {log.data(), reinterpret_cast<void*>(log.size())};
  Module module = nullptr;
  const Status status = driver.ModuleLoadDataEx(&module, image, 2, options, values);
  const std::string call = "cuModuleLoadDataEx of the loop's condition";
  driver.check(status, (log[0] ? call + " (" + log.data() + ")" : call).c_str());
  return {module, driver.ModuleUnload};
}

// Compiled by the driver, else assembled: containers may lack the driver's compiler, or have an
// older one than the PTX asks for.
Owned<Module> load_condition(const Driver& driver, const Assemble& assemble) {
  std::string refusal;
  try {
    return load(driver, kConditionPtx);
  } catch (const std::runtime_error& error) {
    if (!assemble) throw;
    refusal = error.what();
  }
  try {
    return load(driver, assemble(kConditionPtx).c_str());
  } catch (const std::exception& error) {
    throw std::runtime_error(refusal + "; assembled: " + error.what());
  }
}

}  // namespace

Census census(const Driver& driver, Graph graph) {
  Census found;
  walk(driver, graph, found);
  return found;
}

Iteration::Iteration(std::shared_ptr<const Driver> driver, Graph graph, const Control* control,
                     const Assemble& assemble)
    : made_of(census(*driver, graph)), driver_(std::move(driver)) {
  driver_->check(driver_->CtxGetCurrent(&context_), "cuCtxGetCurrent");
  if (!context_) throw std::runtime_error("cuCtxGetCurrent: no context on this thread");
  if (control) build_loop(graph, *control, assemble);
  Exec exec = nullptr;
  driver_->check(driver_->GraphInstantiateWithFlags(&exec, control ? loop_.get() : graph, 0),
                 "cuGraphInstantiateWithFlags");
  exec_ = {exec, driver_->GraphExecDestroy};
}

void Iteration::build_loop(Graph body, const Control& control, const Assemble& assemble) {
  const Driver& driver = *driver_;
  const std::string lacking = driver.without_while();
  if (!lacking.empty()) throw std::runtime_error(lacking);
  if (!made_of.obstacle.empty()) throw std::runtime_error(made_of.obstacle);
  module_ = load_condition(driver, assemble);
  Function condition = nullptr;
  driver.check(driver.ModuleGetFunction(&condition, module_.get(), kConditionName),
               "cuModuleGetFunction");
  Graph loop = nullptr;
  driver.check(driver.GraphCreate(&loop, 0), "cuGraphCreate");
  loop_ = {loop, driver.GraphDestroy};

  ConditionalHandle handle = 0;  // at each launch it is 1 again, so the first row always runs
  driver.check(driver.GraphConditionalHandleCreate(&handle, loop, context_, 1, kAssignDefault),
               "cuGraphConditionalHandleCreate");
  NodeParams params{};
  params.type = kConditionalNode;
  params.conditional.handle = handle;
  params.conditional.type = kWhile;
  params.conditional.size = 1;
  params.conditional.context = context_;
  Node node = nullptr, iteration = nullptr, decision = nullptr;
  driver.check(driver.GraphAddNode(&node, loop, nullptr, nullptr, 0, &params), "cuGraphAddNode");
  const Graph inside = params.conditional.bodies[0];
  driver.check(driver.GraphAddChildGraphNode(&iteration, inside, nullptr, 0, body),
               "cuGraphAddChildGraphNode");

  Address active = control.active, budget = control.budget, cancel = control.cancel;
  void* parameters[] = {&handle, &active, &budget, &cancel};
  KernelNodeParams kernel{};
  kernel.function = condition;
  for (int axis = 0; axis < 3; ++axis) kernel.grid[axis] = kernel.block[axis] = 1;
  kernel.parameters = parameters;
  driver.check(driver.GraphAddKernelNode(&decision, inside, &iteration, 1, &kernel),
               "cuGraphAddKernelNode");
  budget_ = budget;
}

int64_t Iteration::launch(int64_t rows, Stream stream, bool cancelable) const {
  if (!exec_.get()) throw std::runtime_error("launch: the graph is closed");
  if (rows < 1 || rows >= kCancelable) {
    throw std::invalid_argument("launch: rows must be in [1, 2^30), got " + std::to_string(rows));
  }
  if (cancelable && !budget_) {
    throw std::invalid_argument("launch: cancelable must be False without control words, got True");
  }
  const Driver& driver = *driver_;
  if (budget_) {
    const auto budget = static_cast<unsigned>(rows) | (cancelable ? kCancelable : 0u);
    driver.check(driver.MemsetD32Async(budget_, budget, 1, stream), "cuMemsetD32Async");
  }
  const int64_t launches = budget_ ? 1 : rows;
  for (int64_t row = 0; row < launches; ++row) {
    driver.check(driver.GraphLaunch(exec_.get(), stream), "cuGraphLaunch");
  }
  return launches;
}

void Iteration::close() {
  if (!exec_.get() && !loop_.get() && !module_.get()) return;
  const Current current(*driver_, context_);
  exec_.reset();
  loop_.reset();
  module_.reset();
}

}  // namespace pndm::cuda
