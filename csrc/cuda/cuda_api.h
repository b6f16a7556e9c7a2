// The component of the CUDA driver's interface that graphs need, declared here so that building
// needs no toolkit. tests/test_cuda_api.py compares it with cuda.h where one is found.
#pragma once

#include <cstddef>

namespace pndm::cuda {

using Status = int;
constexpr Status kSuccess = 0;

using Graph = struct GraphObject*;
using Node = struct NodeObject*;
using Exec = struct ExecObject*;
using Module = struct ModuleObject*;
using Function = struct FunctionObject*;
using Kernel = struct KernelObject*;
using Context = struct ContextObject*;
using Stream = struct StreamObject*;
using Array = struct ArrayObject*;
using Address = unsigned long long;
using ConditionalHandle = unsigned long long;

enum NodeType : int {
  kKernelNode = 0,
  kMemcpyNode = 1,
  kMemsetNode = 2,
  kHostNode = 3,
  kChildGraphNode = 4,
  kEmptyNode = 5,
  kConditionalNode = 13,
};

constexpr int kHostMemory = 1;          // CU_MEMORYTYPE_HOST
constexpr int kWhile = 1;               // CU_GRAPH_COND_TYPE_WHILE
constexpr unsigned kAssignDefault = 1;  // CU_GRAPH_COND_ASSIGN_DEFAULT
constexpr int kErrorLog = 5;            // CU_JIT_ERROR_LOG_BUFFER
constexpr int kErrorLogSize = 6;        // CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES

struct KernelNodeParams {  // CUDA_KERNEL_NODE_PARAMS_v2
  Function function;
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  void** parameters;
  void** extra;
  Kernel kernel;
  Context context;
};

struct ConditionalNodeParams {  // CUDA_CONDITIONAL_NODE_PARAMS
  ConditionalHandle handle;
  int type;
  unsigned size;
  Graph* bodies;
  Context context;
};

struct NodeParams {  // CUgraphNodeParams
  int type;
  int reserved0[3];
  union {
    long long padding[29];
    ConditionalNodeParams conditional;
  };
  long long reserved2;
};

struct MemcpySide {
  size_t x, y, z, lod;
  int memory;
  void* host;
  Address device;
  Array array;
  void* reserved;
  size_t pitch, height;
};

struct MemcpyParams {  // CUDA_MEMCPY3D_v2
  MemcpySide source, target;
  size_t width, height, depth;
};

}  // namespace pndm::cuda
