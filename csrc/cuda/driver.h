// The CUDA driver, found at run time: nothing is linked, so one build serves machines without it.
#pragma once

#include <memory>
#include <string>

#include "cuda/cuda_api.h"

namespace pndm::cuda {

// name, the version of the interface that is asked for, parameters. A bare dlsym would yield the
// oldest interface of that name.
#define PNDM_DRIVER_FUNCTIONS(F)                                                             \
  F(GetErrorName, 6000, (Status, const char**))                                              \
  F(GetErrorString, 6000, (Status, const char**))                                            \
  F(DriverGetVersion, 2020, (int*))                                                          \
  F(CtxGetCurrent, 4000, (Context*))                                                         \
  F(CtxPushCurrent, 4000, (Context))                                                         \
  F(CtxPopCurrent, 4000, (Context*))                                                         \
  F(GraphCreate, 10000, (Graph*, unsigned))                                                  \
  F(GraphDestroy, 10000, (Graph))                                                            \
  F(GraphGetNodes, 10000, (Graph, Node*, size_t*))                                           \
  F(GraphNodeGetType, 10000, (Node, int*))                                                   \
  F(GraphChildGraphNodeGetGraph, 10000, (Node, Graph*))                                      \
  F(GraphMemcpyNodeGetParams, 10000, (Node, MemcpyParams*))                                  \
  F(GraphAddChildGraphNode, 10000, (Node*, Graph, const Node*, size_t, Graph))               \
  F(GraphAddKernelNode, 12000, (Node*, Graph, const Node*, size_t, const KernelNodeParams*)) \
  F(GraphInstantiateWithFlags, 11040, (Exec*, Graph, unsigned long long))                    \
  F(GraphLaunch, 10000, (Exec, Stream))                                                      \
  F(GraphExecDestroy, 10000, (Exec))                                                         \
  F(ModuleLoadDataEx, 2010, (Module*, const void*, unsigned, int*, void**))                  \
  F(ModuleGetFunction, 2000, (Function*, Module, const char*))                               \
  F(ModuleUnload, 2000, (Module))                                                            \
  F(MemsetD32Async, 3020, (Address, unsigned, size_t, Stream))

// Drivers before 12.4 lack them, or WHILE nodes.
#define PNDM_CONDITIONAL_FUNCTIONS(F)                                                              \
  F(GraphConditionalHandleCreate, 12030, (ConditionalHandle*, Graph, Context, unsigned, unsigned)) \
  F(GraphAddNode, 12030, (Node*, Graph, const Node*, const void*, size_t, NodeParams*))

constexpr int kWhileVersion = 12040;

// Loaded once per library and never unloaded: graphs may outlive whoever asked for it.
class Driver {
 public:
  // Throws std::runtime_error where the library, a function or the driver itself is missing.
  static std::shared_ptr<const Driver> load(const std::string& library);

  // Throws std::runtime_error with the call and the status' name.
  void check(Status status, const char* call) const;

  // Why WHILE nodes cannot be had, or nothing.
  std::string without_while() const;

  int version = 0;

#define PNDM_DECLARE(name, interface, parameters) Status(*name) parameters = nullptr;
  PNDM_DRIVER_FUNCTIONS(PNDM_DECLARE)
  PNDM_CONDITIONAL_FUNCTIONS(PNDM_DECLARE)
#undef PNDM_DECLARE

 private:
  explicit Driver(const std::string& library);
};

}  // namespace pndm::cuda
