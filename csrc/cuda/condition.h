// The WHILE node's condition as PTX: Triton cannot call cudaGraphSetConditional, which the driver
// binds when it loads this.
#pragma once

#include <cstdint>

namespace pndm::cuda {

// The budget word: rows left, below this bit, and the bit itself where somebody may cancel. Without
// it the loop never reads the cancel word, which lies across PCIe.
constexpr int32_t kCancelable = 1 << 30;

constexpr const char* kConditionName = "pndm_continue";
constexpr const char* kConditionPtx = R"(
.version 8.3
.target sm_80
.address_size 64

.extern .func cudaGraphSetConditional (.param .b64 handle, .param .b32 value);

.visible .entry pndm_continue (
	.param .u64 p_handle, .param .u64 p_active, .param .u64 p_budget, .param .u64 p_cancel)
{
	.reg .pred %p<5>;
	.reg .b32 %r<6>;
	.reg .b64 %d<5>;
	ld.param.u64 %d1, [p_handle];
	ld.param.u64 %d2, [p_active];
	ld.param.u64 %d3, [p_budget];
	ld.param.u64 %d4, [p_cancel];
	cvta.to.global.u64 %d2, %d2;
	cvta.to.global.u64 %d3, %d3;
	cvta.to.global.u64 %d4, %d4;
	ld.global.b32 %r1, [%d2];
	ld.global.b32 %r2, [%d3];
	add.s32 %r2, %r2, -1;
	st.global.b32 [%d3], %r2;
	and.b32 %r3, %r2, 0x3FFFFFFF;
	setp.gt.s32 %p1, %r1, 0;
	setp.gt.and.s32 %p2, %r3, 0, %p1;
	setp.ne.and.s32 %p3, %r2, %r3, %p2;
	mov.b32 %r5, 0;
	@%p3 ld.volatile.global.b32 %r5, [%d4];
	setp.eq.and.s32 %p4, %r5, 0, %p2;
	selp.u32 %r4, 1, 0, %p4;
	{
	.param .b64 a0;
	st.param.b64 [a0], %d1;
	.param .b32 a1;
	st.param.b32 [a1], %r4;
	call.uni cudaGraphSetConditional, (a0, a1);
	}
	ret;
}
)";

}  // namespace pndm::cuda
