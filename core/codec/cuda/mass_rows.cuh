// Rows whose steps vary with the attention that their tokens received: what of decoding differs
// from row to row there. Apart from the common rounds, which it must cost nothing. The scalar
// originals are core/codec/tile_format.cc (ShiftSigmas) and core/codec/cpu/reconstruct.h.
#ifndef LATTICEKV_CORE_CODEC_CUDA_MASS_ROWS_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_MASS_ROWS_CUH_

#include "core/codec/cuda/warp_coder.cuh"

namespace latticekv::cuda {

// With the token, a RowRecord holds its row's shift of sigma indices, and for a step the factor on
// its unit's.
inline constexpr uint32_t kShiftAt = 16;
__device__ inline void SetOffset(int offset, RowRecord& record) {
  record.token |= static_cast<uint32_t>(SigmaShift(offset) + kMaxSigmaShift) << kShiftAt;
  record.step = StepFloat(offset);
}
// Takes the shift out again.
__device__ inline int TakeShift(RowRecord& record) {
  const int shift = static_cast<int>(record.token >> kShiftAt) - kMaxSigmaShift;
  record.token &= (1u << kShiftAt) - 1;
  return shift;
}

// How four channels are coded, a byte each: SigmaCodeOf of their indices, shifted and clamped.
struct ShiftedCodes {
  uint32_t tables;  // 6 * spread index
  uint32_t low_bits;
};
__device__ inline ShiftedCodes ShiftCodes(uint32_t sigmas, int shift) {
  constexpr uint32_t kEach = 0x01010101;
  const uint32_t shifted =
      shift < 0 ? __vsubus4(sigmas, kEach * static_cast<uint32_t>(-shift))
                : __vminu4(sigmas + kEach * static_cast<uint32_t>(shift), kEach * kMaxSigmaIndex);
  static_assert(SigmaCodeOf(kEntropyTables - 1).low_bits == 0 &&
                SigmaCodeOf(kEntropyTables).low_bits == 1 &&
                SigmaCodeOf(kMaxSigmaIndex).low_bits == (kMaxSigmaIndex - kEntropyTables + 2) / 2);
  const uint32_t low_bits = __vsubus4(shifted, kEach * (kEntropyTables - 2)) >> 1 & 0x7F7F7F7F;
  return {(shifted - 2 * low_bits) * 6, low_bits};
}

__device__ inline uint32_t ByteOfTwo(uint32_t low, uint32_t high, int i) {
  return (i < 4 ? low >> 8 * i : high >> 8 * (i - 4)) & 0xFF;
}

// One round: a group of 8 a lane, as numbers in the coder's scale without their means, of channels
// with the indices `sigmas`, a byte each. Words are reserved as for a round without low bits.
__device__ inline void DecodeMassRound(WarpCoder& coder, uint2 sigmas, int shift,
                                       uint32_t half_frequency, bool active, int (&q)[8]) {
  const ShiftedCodes low = ShiftCodes(sigmas.x, shift), high = ShiftCodes(sigmas.y, shift);
  const uint32_t any_low = __reduce_or_sync(kAllLanes, low.low_bits);
  const uint32_t any_high = __reduce_or_sync(kAllLanes, high.low_bits);
  const bool half = coder.Coset(half_frequency, active);
  const int half_step = half ? int{kValueOne} / 2 : 0;
  uint32_t parity = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t split = ByteOfTwo(low.low_bits, high.low_bits, i);
    uint32_t id = ByteOfTwo(low.tables, high.tables, i) + (half || split > 0 ? 3 : 0);
    if (i == 7 && split == 0) id += 1 + (parity & kValueOne) / kValueOne;
    uint32_t packed = coder.Packed(id, active) & kValueMask;
    if (ByteOfTwo(any_low, any_high, i) != 0) {
      coder.Reserve(32 * (8 - i));  // the bits and the coordinates that are left
      // Of the last channel the very lowest bit is the others' parity.
      const bool last = i == 7 && split > 0;
      const uint32_t count = split - last;
      const uint32_t bits = coder.Bits(count, active && count > 0);
      const uint32_t k = ((packed - kValueOffset * kValueOne) << count) + bits * kValueOne;
      packed = (last ? 2 * k + (parity & kValueOne) : k) + kValueOffset * kValueOne;
    }
    parity ^= packed;
    q[i] = static_cast<int>(packed) + half_step;
  }
}

// The round's numbers before rotation: the lattice is scaled by its row's factor, the mean is not.
// `step` [8].
__device__ inline void RebuildMassRound(const int (&q)[8], float factor, const int32_t* mean,
                                        const float (&step)[8], float (&v)[8]) {
  constexpr int kOffset = kValueOffset * static_cast<int>(kValueOne);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float point = __fmul_rn(__int2float_rn(q[i] - kOffset), factor);
    v[i] = __fmul_rn(__fadd_rn(point, __int2float_rn(mean[i] + kOffset)), step[i]);
  }
}

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_MASS_ROWS_CUH_
