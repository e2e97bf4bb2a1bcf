// From side values to steps, means and sigma indices. Plain C++17 constexpr functions, so that
// device code compiles these very ones. Internal to core/codec; docs/format/frame.md, "Steps,
// means, sigma indices".
#ifndef LATTICEKV_CORE_CODEC_SIDE_ARITHMETIC_H_
#define LATTICEKV_CORE_CODEC_SIDE_ARITHMETIC_H_

#include <cstdint>

#include "core/codec/entropy_tables.h"

namespace latticekv {

// Step indices: i means 2^(i/4).
inline constexpr int kMaxStepIndex = 400;
inline constexpr int kMaxMeanQuarters = 1 << 20;
// Of sent differences of steps and sigma indices: adding them cannot wrap 16 bits.
inline constexpr int kMaxSideDifference = 8192;

// Steps that vary from token to token: quarter octaves over the unit's or the channel's own step.
inline constexpr int kMaxStepOffset = 24;
// What a token's sigma indices (half octaves) gain where its steps are finer by -offset.
constexpr int SigmaShift(int offset) { return (1 - offset) >> 1; }
inline constexpr int kMaxSigmaShift = kMaxStepOffset / 2;

// 2^(i/4) as a float: one of four constants times a power of two. The builtin, since C++17 has no
// std::bit_cast.
constexpr float StepFloat(int i) {
  constexpr float kQuarter[4] = {1.0f, 1.18920711500272107f, 1.41421356237309505f,
                                 1.68179283050742909f};
  return kQuarter[i & 3] * __builtin_bit_cast(float, static_cast<uint32_t>(127 + (i >> 2)) << 23);
}

// By value: std::clamp's references to constants would be host addresses in device code.
template <typename T>
constexpr T ClampValue(T v, T low, T high) {
  return v < low ? low : v > high ? high : v;
}

constexpr int16_t ClampStep(int i) {
  return static_cast<int16_t>(ClampValue(i, -kMaxStepIndex, kMaxStepIndex));
}

// Step index of a channel from the unit's base and the profile's step, both in sixteenths.
constexpr int16_t ProfileStep(int base_16, int step_16) {
  return ClampStep((base_16 + step_16 + 2) >> 2);
}

// Mean mantissa * 2^exponent in quarter steps of a step 2^(step_16 / 16), rounded half up, clamped.
// `down_factors` is kDownFactors wherever the caller keeps it: device code cannot see the host's.
constexpr int32_t MeanInQuarterSteps(int32_t mantissa, int exponent, int step_16,
                                     const uint32_t* down_factors = kDownFactors) {
  const int whole = step_16 >> 4;
  const int64_t product = static_cast<int64_t>(mantissa) * down_factors[step_16 & 15];
  const int shift = 31 + whole - exponent - 2;
  if (product == 0 || shift > 62) return 0;
  if (shift < 1) return product > 0 ? kMaxMeanQuarters : -kMaxMeanQuarters;
  const int64_t rounded = (product + (int64_t{1} << (shift - 1))) >> shift;
  return static_cast<int32_t>(ClampValue<int64_t>(rounded, -kMaxMeanQuarters, kMaxMeanQuarters));
}

// Sigma index of a channel whose spread is 2^(log2_sigma_16 / 16) under a step of 2^(step_16 / 16),
// the lattice's own noise added.
constexpr int SigmaIndexOf(int log2_sigma_16, int step_16,
                           const int8_t* sigma_with_noise_16 = kSigmaWithNoise16) {
  const int s = log2_sigma_16 - step_16;
  const int noisy = s < -64 ? sigma_with_noise_16[0] : s > 48 ? s : sigma_with_noise_16[s + 64];
  return ClampValue((noisy + 60) >> 3, 0, kMaxSigmaIndex);
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_SIDE_ARITHMETIC_H_
