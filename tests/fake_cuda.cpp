// The fake driver's graphs: nodes, child graphs, bodies.
#include "fake_cuda.h"

#include <cstring>
#include <iterator>

namespace fake {
namespace {

bool holds(Id graph, const std::set<int>& types) {
  for (Id node : world.graphs[graph].nodes) {
    const NodeData& data = world.nodes[node];
    if (types.count(data.type) || (data.inner && holds(id(data.inner), types))) return true;
  }
  return false;
}

Id clone(Id graph, Id owner) {
  const Id copy = new_graph(owner);
  std::map<Id, Id> twin;
  for (Id node : std::vector<Id>(world.graphs[graph].nodes)) {
    NodeData data = world.nodes[node];
    data.graph = copy;
    for (Id& before : data.after) before = twin[before];
    const Id made = twin[node] = ++world.last;
    if (data.inner) data.inner = handle<Graph>(clone(id(data.inner), made));
    world.graphs[copy].nodes.push_back(made);
    world.nodes[made] = data;
  }
  return copy;
}

bool zero_outside_of_conditional(const NodeParams& params) {
  NodeParams rest = params;
  std::memset(&rest.conditional, 0, sizeof rest.conditional);
  bool zero = !rest.reserved2;
  for (int word : rest.reserved0) zero = zero && !word;
  for (long long word : rest.padding) zero = zero && !word;
  return zero;
}

}  // namespace

Id new_graph(Id owner) {
  world.graphs[++world.last].owner = owner;
  return world.last;
}

Status add(NodeData node, const Node* after, size_t count, Id* out) {
  const auto graph = world.graphs.find(node.graph);
  if (graph == world.graphs.end()) return kInvalidHandle;
  for (size_t i = 0; i < count; ++i) {
    const auto found = world.nodes.find(id(after[i]));
    if (found == world.nodes.end() || found->second.graph != node.graph) return kInvalidValue;
    node.after.push_back(found->first);
  }
  *out = ++world.last;
  graph->second.nodes.push_back(*out);
  world.nodes[*out] = std::move(node);
  return kSuccess;
}

void erase(Id graph) {
  for (Id node : world.graphs[graph].nodes) {
    if (world.nodes[node].inner) erase(id(world.nodes[node].inner));
    world.nodes.erase(node);
  }
  for (auto it = world.conditions.begin(); it != world.conditions.end();) {
    it = it->second.graph == graph ? world.conditions.erase(it) : std::next(it);
  }
  world.graphs.erase(graph);
}

Status add_child(Id graph, const Node* after, size_t count, Id child, Id* out) {
  if (!world.graphs.count(child)) return kInvalidHandle;
  if (child == graph) return kInvalidValue;
  if (holds(child, {kAllocNode, kFreeNode, kConditionalNode})) return kNotSupported;
  NodeData node;
  node.graph = graph;
  node.type = kChildGraphNode;
  if (const Status status = add(node, after, count, out)) return status;
  world.nodes[*out].inner = handle<Graph>(clone(child, *out));
  return kSuccess;
}

Status GraphCreate(Graph* out, unsigned flags) {
  ENTER("GraphCreate");
  if (!out || flags) return kInvalidValue;
  *out = handle<Graph>(new_graph(0));
  return kSuccess;
}

Status GraphDestroy(Graph graph) {
  ENTER("GraphDestroy");
  const auto found = world.graphs.find(id(graph));
  if (found == world.graphs.end()) return kInvalidHandle;
  if (found->second.owner || found->second.captured) return kInvalidValue;
  erase(id(graph));
  world.destroyed.push_back("graph");
  return kSuccess;
}

Status GraphGetNodes(Graph graph, Node* nodes, size_t* count) {
  ENTER("GraphGetNodes");
  const auto found = world.graphs.find(id(graph));
  if (found == world.graphs.end()) return kInvalidHandle;
  const std::vector<Id>& all = found->second.nodes;
  for (size_t i = 0; nodes && i < *count; ++i) {
    nodes[i] = i < all.size() ? handle<Node>(all[i]) : nullptr;
  }
  if (!nodes || *count > all.size()) *count = all.size();
  return kSuccess;
}

Status GraphNodeGetType(Node node, int* type) {
  ENTER("GraphNodeGetType");
  const auto found = world.nodes.find(id(node));
  if (found == world.nodes.end()) return kInvalidHandle;
  *type = found->second.type;
  return kSuccess;
}

Status GraphChildGraphNodeGetGraph(Node node, Graph* graph) {
  ENTER("GraphChildGraphNodeGetGraph");
  const auto found = world.nodes.find(id(node));
  if (found == world.nodes.end()) return kInvalidHandle;
  if (found->second.type != kChildGraphNode) return kInvalidValue;
  *graph = found->second.inner;
  return kSuccess;
}

Status GraphMemcpyNodeGetParams(Node node, MemcpyParams* params) {
  ENTER("GraphMemcpyNodeGetParams");
  const auto found = world.nodes.find(id(node));
  if (found == world.nodes.end()) return kInvalidHandle;
  if (found->second.type != kMemcpyNode) return kInvalidValue;
  *params = found->second.copy;
  return kSuccess;
}

Status GraphAddChildGraphNode(Node* out, Graph graph, const Node* after, size_t count,
                              Graph child) {
  ENTER("GraphAddChildGraphNode");
  Id made = 0;
  const Status status = add_child(id(graph), after, count, id(child), &made);
  *out = handle<Node>(made);
  return status;
}

Status GraphAddKernelNode(Node* out, Graph graph, const Node* after, size_t count,
                          const KernelNodeParams* params) {
  ENTER("GraphAddKernelNode");
  const auto function = world.functions.find(id(params->function));
  if (function == world.functions.end()) return kInvalidHandle;
  if (!params->parameters || params->extra || params->kernel) return kInvalidValue;
  NodeData node;
  node.graph = id(graph);
  node.type = kKernelNode;
  node.function = function->first;
  for (unsigned size : params->grid) node.threads *= size;
  for (unsigned size : params->block) node.threads *= size;
  if (!node.threads) return kInvalidValue;
  for (size_t i = 0; i < function->second.sizes.size(); ++i) {
    node.parameters.push_back(0);
    std::memcpy(&node.parameters.back(), params->parameters[i], function->second.sizes[i]);
  }
  Id made = 0;
  const Status status = add(node, after, count, &made);
  *out = handle<Node>(made);
  return status;
}

Status GraphConditionalHandleCreate(ConditionalHandle* out, Graph graph, Context context,
                                    unsigned initial, unsigned flags) {
  ENTER("GraphConditionalHandleCreate");
  if (!world.graphs.count(id(graph))) return kInvalidHandle;
  if (flags > kAssignDefault) return kInvalidValue;
  if ((context ? context : current()) != kContext) return kInvalidContext;
  *out = ++world.last;
  world.conditions[*out] = {id(graph), initial, flags, 0, false};
  return kSuccess;
}

Status GraphAddNode(Node* out, Graph graph, const Node* after, const void* edges, size_t count,
                    NodeParams* params) {
  ENTER("GraphAddNode");
  if (params->type != kConditionalNode || edges) return kNotSupported;
  const ConditionalNodeParams& given = params->conditional;
  const auto condition = world.conditions.find(given.handle);
  if (condition == world.conditions.end() || condition->second.used) return kInvalidValue;
  if (condition->second.graph != id(graph) || !zero_outside_of_conditional(*params) ||
      given.type != kWhile || given.size != 1 || given.bodies) {
    return kInvalidValue;
  }
  if ((given.context ? given.context : current()) != kContext) return kInvalidContext;
  NodeData node;
  node.graph = id(graph);
  node.type = kConditionalNode;
  node.condition = given.handle;
  Id made = 0;
  if (const Status status = add(node, after, count, &made)) return status;
  condition->second.used = true;
  world.nodes[made].inner = handle<Graph>(new_graph(made));
  params->conditional.bodies = &world.nodes[made].inner;
  *out = handle<Node>(made);
  return kSuccess;
}

}  // namespace fake
