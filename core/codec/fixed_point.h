// The integer arithmetic that encoder and decoder share: every backend must compute exactly this.
// Internal to core/codec; docs/format/frame.md, "Arithmetic".
#ifndef LATTICEKV_CORE_CODEC_FIXED_POINT_H_
#define LATTICEKV_CORE_CODEC_FIXED_POINT_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/codec/entropy_tables.h"

namespace latticekv {

// Step indices: i means 2^(i/4).
inline constexpr int kMaxStepIndex = 400;
inline constexpr int kMaxMeanQuarters = 1 << 20;

// rms error per coordinate of the E8 lattice with unit step: sqrt(0.0716821) (Conway and Sloane
// 1982).
inline constexpr double kE8Rms = 0.26773508;

// round(16 log2 ratio), for the presets' constants: none is near a half, so libm's last bit is no
// matter.
inline int Sixteenths(double ratio) { return static_cast<int>(std::lround(16 * std::log2(ratio))); }

// 2^(i/4) as a float: one of four constants times a power of two.
inline float StepFloat(int i) {
  constexpr float kQuarter[4] = {1.0f, 1.18920711500272107f, 1.41421356237309505f,
                                 1.68179283050742909f};
  return kQuarter[i & 3] * std::bit_cast<float>(static_cast<uint32_t>(127 + (i >> 2)) << 23);
}

// round(16 log2 v) for v >= 1, from integer comparisons alone.
inline int Log2Sixteenths(uint64_t v) {
  const int top = 63 - std::countl_zero(v);
  const uint64_t mantissa = top >= 32 ? v >> (top - 32) : v << (32 - top);  // 2^32 <= m < 2^33
  int j = 0;
  while (j < 16 && mantissa >= kLogThresholds[j]) ++j;
  return 16 * top + j;
}

// Rounds |v| < 2^21 to the nearest integer, ties to even, by adding 1.5 * 2^23.
inline int32_t RoundSmall(float v) { return std::bit_cast<int32_t>(v + 12582912.0f) - 0x4B400000; }
inline constexpr int32_t kRoundLimitInteger = 1 << 21;
inline constexpr float kRoundLimit = kRoundLimitInteger;
inline int32_t RoundClamped(float v, float limit = kRoundLimit) {
  // Selections by value, which compilers vectorise where std::min's references keep them from it.
  v = v < limit ? v : limit;
  v = v > -limit ? v : -limit;
  return RoundSmall(v);
}

// Mean mantissa * 2^exponent in quarter steps of a step 2^(step_16 / 16), rounded half up, clamped.
inline int32_t MeanInQuarterSteps(int32_t mantissa, int exponent, int step_16) {
  const int whole = step_16 >> 4;
  const int64_t product = static_cast<int64_t>(mantissa) * kDownFactors[step_16 & 15];
  const int shift = 31 + whole - exponent - 2;
  if (product == 0 || shift > 62) return 0;
  if (shift < 1) return product > 0 ? kMaxMeanQuarters : -kMaxMeanQuarters;
  const int64_t rounded = (product + (int64_t{1} << (shift - 1))) >> shift;
  return static_cast<int32_t>(std::clamp<int64_t>(rounded, -kMaxMeanQuarters, kMaxMeanQuarters));
}

// Sigma index of a channel whose spread is 2^(log2_sigma_16 / 16) under a step of 2^(step_16 / 16),
// the lattice's own noise added.
inline int SigmaIndexOf(int log2_sigma_16, int step_16) {
  const int s = log2_sigma_16 - step_16;
  const int noisy = s < -64 ? kSigmaWithNoise16[0] : s > 48 ? s : kSigmaWithNoise16[s + 64];
  return std::clamp((noisy + 60) >> 3, 0, kMaxSigmaIndex);
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_FIXED_POINT_H_
