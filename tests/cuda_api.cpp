// Whether csrc/ declares the CUDA driver's interface as cuda.h does. Compiled, never run.
#include <cuda.h>
#include <cudaTypedefs.h>

#include <type_traits>

#include "../csrc/cuda/driver.cpp"  // its own pointer to cuGetProcAddress too

namespace pndm::cuda {
namespace {

template <class Theirs>
struct Map {
  using type = Theirs;
};
template <class Theirs>
using Ours = typename Map<Theirs>::type;

#define PNDM_MAP(theirs, ours) \
  template <>                  \
  struct Map<theirs> {         \
    using type = ours;         \
  }
PNDM_MAP(CUresult, Status);
PNDM_MAP(CUgraph, Graph);
PNDM_MAP(CUgraphNode, Node);
PNDM_MAP(CUgraphExec, Exec);
PNDM_MAP(CUmodule, Module);
PNDM_MAP(CUfunction, Function);
PNDM_MAP(CUkernel, Kernel);
PNDM_MAP(CUcontext, Context);
PNDM_MAP(CUstream, Stream);
PNDM_MAP(CUarray, Array);
PNDM_MAP(CUgraphNodeType, int);
PNDM_MAP(CUgraphConditionalNodeType, int);
PNDM_MAP(CUmemorytype, int);
PNDM_MAP(CUjit_option, int);
PNDM_MAP(CUdriverProcAddressQueryResult, int);
PNDM_MAP(unsigned long long, unsigned long);  // one width, and cuda.h uses both
PNDM_MAP(CUgraphEdgeData, void);              // never given
PNDM_MAP(CUDA_KERNEL_NODE_PARAMS_v2, KernelNodeParams);
PNDM_MAP(CUDA_MEMCPY3D_v2, MemcpyParams);
PNDM_MAP(CUDA_CONDITIONAL_NODE_PARAMS, ConditionalNodeParams);
PNDM_MAP(CUgraphNodeParams, NodeParams);

template <class Theirs>
struct Map<const Theirs> {
  using type = const Ours<Theirs>;
};
// handles are pointers themselves: their maps are full specializations, which come before this
template <class Theirs>
struct Map<Theirs*> {
  using type = Ours<Theirs>*;
};
template <class Result, class... Parameters>
struct Map<Result (*)(Parameters...)> {
  using type = Ours<Result> (*)(Ours<Parameters>...);
};

static_assert(std::is_same_v<Address, CUdeviceptr>);
static_assert(sizeof(long) == sizeof(long long));
static_assert(sizeof(CUgraphConditionalHandle) == sizeof(ConditionalHandle));
static_assert(sizeof(Status) == sizeof(CUresult) && sizeof(int) == sizeof(CUgraphNodeType) &&
              sizeof(int) == sizeof(CUgraphConditionalNodeType) &&
              sizeof(int) == sizeof(CUmemorytype) && sizeof(int) == sizeof(CUjit_option) &&
              sizeof(int) == sizeof(CUdriverProcAddressQueryResult));

// A name with its version suffix is the type of that very interface.
template <class Mine, class Theirs>
constexpr bool kSame = std::is_same_v<Ours<Mine>, Ours<Theirs>>;
#define PNDM_SAME(name, interface, parameters) \
  static_assert(kSame<Status(*) parameters, PFN_cu##name##_v##interface>);
PNDM_DRIVER_FUNCTIONS(PNDM_SAME)
PNDM_CONDITIONAL_FUNCTIONS(PNDM_SAME)
static_assert(kSame<GetProcAddress, PFN_cuGetProcAddress_v12000>);
static_assert(CU_GET_PROC_ADDRESS_SUCCESS == 0 && CU_GET_PROC_ADDRESS_DEFAULT == 0);

#define PNDM_VALUE(ours, theirs) static_assert(ours == static_cast<int>(theirs))
PNDM_VALUE(kSuccess, CUDA_SUCCESS);
PNDM_VALUE(kKernelNode, CU_GRAPH_NODE_TYPE_KERNEL);
PNDM_VALUE(kMemcpyNode, CU_GRAPH_NODE_TYPE_MEMCPY);
PNDM_VALUE(kMemsetNode, CU_GRAPH_NODE_TYPE_MEMSET);
PNDM_VALUE(kHostNode, CU_GRAPH_NODE_TYPE_HOST);
PNDM_VALUE(kChildGraphNode, CU_GRAPH_NODE_TYPE_GRAPH);
PNDM_VALUE(kEmptyNode, CU_GRAPH_NODE_TYPE_EMPTY);
PNDM_VALUE(kConditionalNode, CU_GRAPH_NODE_TYPE_CONDITIONAL);
PNDM_VALUE(kHostMemory, CU_MEMORYTYPE_HOST);
PNDM_VALUE(kWhile, CU_GRAPH_COND_TYPE_WHILE);
PNDM_VALUE(kAssignDefault, CU_GRAPH_COND_ASSIGN_DEFAULT);
PNDM_VALUE(kErrorLog, CU_JIT_ERROR_LOG_BUFFER);
PNDM_VALUE(kErrorLogSize, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);

// Same place, same size; the types themselves differ in name.
#define PNDM_FIELD(ours, field, theirs, their_field)                      \
  static_assert(offsetof(ours, field) == offsetof(theirs, their_field) && \
                sizeof(ours::field) == sizeof(theirs::their_field))
#define PNDM_SIZE(ours, theirs) \
  static_assert(sizeof(ours) == sizeof(theirs) && alignof(ours) == alignof(theirs))

PNDM_SIZE(KernelNodeParams, CUDA_KERNEL_NODE_PARAMS_v2);
PNDM_FIELD(KernelNodeParams, function, CUDA_KERNEL_NODE_PARAMS_v2, func);
static_assert(offsetof(KernelNodeParams, grid) == offsetof(CUDA_KERNEL_NODE_PARAMS_v2, gridDimX));
static_assert(offsetof(KernelNodeParams, block) == offsetof(CUDA_KERNEL_NODE_PARAMS_v2, blockDimX));
PNDM_FIELD(KernelNodeParams, shared_bytes, CUDA_KERNEL_NODE_PARAMS_v2, sharedMemBytes);
PNDM_FIELD(KernelNodeParams, parameters, CUDA_KERNEL_NODE_PARAMS_v2, kernelParams);
PNDM_FIELD(KernelNodeParams, extra, CUDA_KERNEL_NODE_PARAMS_v2, extra);
PNDM_FIELD(KernelNodeParams, kernel, CUDA_KERNEL_NODE_PARAMS_v2, kern);
PNDM_FIELD(KernelNodeParams, context, CUDA_KERNEL_NODE_PARAMS_v2, ctx);

PNDM_SIZE(ConditionalNodeParams, CUDA_CONDITIONAL_NODE_PARAMS);
PNDM_FIELD(ConditionalNodeParams, handle, CUDA_CONDITIONAL_NODE_PARAMS, handle);
PNDM_FIELD(ConditionalNodeParams, type, CUDA_CONDITIONAL_NODE_PARAMS, type);
PNDM_FIELD(ConditionalNodeParams, size, CUDA_CONDITIONAL_NODE_PARAMS, size);
PNDM_FIELD(ConditionalNodeParams, bodies, CUDA_CONDITIONAL_NODE_PARAMS, phGraph_out);
PNDM_FIELD(ConditionalNodeParams, context, CUDA_CONDITIONAL_NODE_PARAMS, ctx);

PNDM_SIZE(NodeParams, CUgraphNodeParams);
PNDM_FIELD(NodeParams, type, CUgraphNodeParams, type);
PNDM_FIELD(NodeParams, reserved0, CUgraphNodeParams, reserved0);
PNDM_FIELD(NodeParams, padding, CUgraphNodeParams, reserved1);
PNDM_FIELD(NodeParams, conditional, CUgraphNodeParams, conditional);
PNDM_FIELD(NodeParams, reserved2, CUgraphNodeParams, reserved2);

PNDM_SIZE(MemcpyParams, CUDA_MEMCPY3D_v2);
#define PNDM_SIDE(field, source, target)                                        \
  static_assert(offsetof(MemcpyParams, source) + offsetof(MemcpySide, field) == \
                offsetof(CUDA_MEMCPY3D_v2, target))
#define PNDM_SIDES(field, theirs)        \
  PNDM_SIDE(field, source, src##theirs); \
  PNDM_SIDE(field, target, dst##theirs); \
  static_assert(sizeof(MemcpySide::field) == sizeof(CUDA_MEMCPY3D_v2::src##theirs))
PNDM_SIDES(x, XInBytes);
PNDM_SIDES(y, Y);
PNDM_SIDES(z, Z);
PNDM_SIDES(lod, LOD);
PNDM_SIDES(memory, MemoryType);
PNDM_SIDES(host, Host);
PNDM_SIDES(device, Device);
PNDM_SIDES(array, Array);
PNDM_SIDE(reserved, source, reserved0);
PNDM_SIDE(reserved, target, reserved1);
PNDM_SIDES(pitch, Pitch);
PNDM_SIDES(height, Height);
PNDM_FIELD(MemcpyParams, width, CUDA_MEMCPY3D_v2, WidthInBytes);
PNDM_FIELD(MemcpyParams, height, CUDA_MEMCPY3D_v2, Height);
PNDM_FIELD(MemcpyParams, depth, CUDA_MEMCPY3D_v2, Depth);

}  // namespace
}  // namespace pndm::cuda
