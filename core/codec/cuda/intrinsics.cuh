// Instructions that the language has no words for. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_INTRINSICS_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_INTRINSICS_CUH_

#include <cstdint>

namespace latticekv::cuda {

// Two f16, the first in the lower half: to nearest even, beyond the largest number to that.
__device__ inline uint32_t PackHalves(float a, float b) {
  uint32_t packed;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(b), "f"(a));
  return packed;
}

// Zero, unknown to the compiler: adding it to something loaded waits for that load here, in the
// rare branch, and not where branches meet, together with the loads of the common one.
__device__ inline uint32_t OpaqueZero() {
  uint32_t lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane >> 5;
}

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_INTRINSICS_CUH_
