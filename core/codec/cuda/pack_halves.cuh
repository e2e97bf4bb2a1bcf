// Casts to f16 by the instruction that saturates. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_PACK_HALVES_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_PACK_HALVES_CUH_

#include <cstdint>

namespace latticekv::cuda {

// Two f16, the first in the lower half: to nearest even, beyond the largest number to that.
__device__ inline uint32_t PackHalves(float a, float b) {
  uint32_t packed;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(b), "f"(a));
  return packed;
}

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_PACK_HALVES_CUH_
