// Tables and arithmetic of the encode kernels that the scalar encoder has in forms that device code
// cannot use. The originals are core/codec/fixed_point.h and core/codec/cpu/step_planner.cc.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ENCODE_CONSTANTS_CUH_
#define LATTICEKV_CORE_CODEC_CUDA_ENCODE_CONSTANTS_CUH_

#include <cstdint>

#include "core/codec/entropy_tables.h"
#include "core/codec/side_arithmetic.h"

namespace latticekv::cuda {

inline constexpr int kSymbolSpan = 2 * kSymbolOffset + 1;

struct EncodeConstants {
  uint32_t entry[kTableIds][kSymbolSpan];  // frequency | start << 16; 0: not in the table
  uint16_t cost[kTableIds][kSymbolSpan];   // 1/256 bit
  uint16_t coset_cost[kProbabilityTotal + 1];
  uint32_t log_thresholds[16];  // less 2^32
  uint32_t down_factors[16];
  int8_t sigma_with_noise_16[sizeof(kSigmaWithNoise16)];
  uint8_t limit[kEntropyTables];
};

constexpr EncodeConstants MakeEncodeConstants() {
  EncodeConstants out{};
  for (int id = 0; id < kTableIds; ++id) {
    const EntropyTableHead head = kEntropyTableHeads[id];
    uint32_t start = 0;
    for (int i = 0; i < head.count; ++i) {
      const int at = head.first + i * head.stride + kSymbolOffset;
      const uint32_t frequency = kEntropyFrequencies[head.at + i];
      out.entry[id][at] = frequency | start << 16;
      out.cost[id][at] = kCost256[frequency];
      start += frequency;
    }
  }
  for (uint32_t f = 0; f <= kProbabilityTotal; ++f) out.coset_cost[f] = kCost256[f];
  for (int i = 0; i < 16; ++i) {
    out.log_thresholds[i] = static_cast<uint32_t>(kLogThresholds[i] - (uint64_t{1} << 32));
    out.down_factors[i] = kDownFactors[i];
  }
  for (unsigned i = 0; i < sizeof(kSigmaWithNoise16); ++i) {
    out.sigma_with_noise_16[i] = kSigmaWithNoise16[i];
  }
  for (int s = 0; s < kEntropyTables; ++s) {
    out.limit[s] = static_cast<uint8_t>(-kEntropyTableHeads[TableId(s, 1, kAll)].first);
  }
  return out;
}

// round(16 log2 v) for v >= 1.
__device__ inline int Log2Sixteenths(const EncodeConstants& constants, uint64_t v) {
  const int top = 63 - __clzll(static_cast<long long>(v));
  const uint32_t rest = static_cast<uint32_t>(top >= 32 ? v >> (top - 32) : v << (32 - top));
  // How many of the increasing thresholds are reached.
  int j = 0;
#pragma unroll
  for (int half = 8; half > 0; half >>= 1) {
    if (rest >= constants.log_thresholds[j + half - 1]) j += half;
  }
  j += rest >= constants.log_thresholds[j];
  return 16 * top + j;
}

__device__ inline int32_t RoundSmall(float v) {
  return __float_as_int(__fadd_rn(v, 12582912.0f)) - 0x4B400000;
}
inline constexpr int32_t kRoundLimitInteger = 1 << 21;
__device__ inline int32_t RoundClamped(float v, float limit = kRoundLimitInteger) {
  return RoundSmall(fmaxf(fminf(v, limit), -limit));
}

// From the bits of the largest magnitude: e such that every |x| < 2^e.
__device__ inline int ExponentOfBits(uint32_t bits) { return static_cast<int>(bits >> 23) - 126; }
__device__ inline int ScaleBits(int exponent) { return ClampValue(127 + 14 - exponent, 1, 254); }
__device__ inline float IntegerScale(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(ScaleBits(exponent)) << 23);
}
__device__ inline int ScaledExponent(int exponent) { return 14 - (ScaleBits(exponent) - 127); }

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_ENCODE_CONSTANTS_CUH_
