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

// The lowest bytes of two numbers below 2^31, 16 bits each. The language's byte permutation does
// not know that the instruction can also give a byte's sign, here zeros.
__device__ inline uint32_t PackLowestBytes(uint32_t a, uint32_t b) {
  uint32_t packed;
  asm("prmt.b32 %0, %1, %2, 0xF4B0;" : "=r"(packed) : "r"(a), "r"(b));
  return packed;
}

// Of eight bytes, the lowest of `x` first.
__device__ inline uint32_t ByteOf(uint2 bytes, int i) {
  return __byte_perm(bytes.x, bytes.y, 0x4440 | i) & 0xFF;
}

// Bit i: byte i is not zero.
__device__ inline uint32_t BytesNotZero(uint2 bytes) {
  const auto four = [](uint32_t v) { return (__vcmpne4(v, 0) & 0x08040201u) * 0x01010101u >> 24; };
  return four(bytes.x) | four(bytes.y) << 4;
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
