// The integer arithmetic that encoder and decoder share: every backend must compute exactly this.
// Internal to core/codec; docs/format/frame.md, "Arithmetic".
#ifndef LATTICEKV_CORE_CODEC_FIXED_POINT_H_
#define LATTICEKV_CORE_CODEC_FIXED_POINT_H_

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/codec/entropy_tables.h"
#include "core/codec/row_arithmetic.h"
#include "core/codec/side_arithmetic.h"

namespace latticekv {

// rms error per coordinate of the E8 lattice with unit step: sqrt(0.0716821) (Conway and Sloane
// 1982).
inline constexpr double kE8Rms = 0.26773508;

// round(16 log2 ratio), for the presets' constants: none is near a half, so libm's last bit is no
// matter.
inline int Sixteenths(double ratio) { return static_cast<int>(std::lround(16 * std::log2(ratio))); }

// round(16 log2 v) for v >= 1, from integer comparisons alone.
inline int Log2Sixteenths(uint64_t v) {
  // How many thresholds lie below the beginning of each 32nd of an octave, none of which holds two.
  static constexpr std::array<uint8_t, 32> kBelow = [] {
    std::array<uint8_t, 32> out{};
    for (uint64_t i = 0; i < 32; ++i) {
      for (uint64_t threshold : kLogThresholds) out[i] += threshold <= (32 + i) << 27;
    }
    return out;
  }();
  const int top = 63 - std::countl_zero(v);
  const uint64_t mantissa = top >= 32 ? v >> (top - 32) : v << (32 - top);  // 2^32 <= m < 2^33
  const int j = kBelow[mantissa >> 27 & 31];
  return 16 * top + j + (j < 16 && mantissa >= kLogThresholds[j]);
}

// round(16 log2 w) of a positive float.
inline int FloatLog2Sixteenths(float w) {
  const uint32_t bits = std::bit_cast<uint32_t>(w);
  const int exponent = std::max<int>(bits >> 23, 1);
  const uint64_t mantissa = (bits & 0x7FFFFF) | (bits >> 23 ? 0x800000u : 0u);
  return Log2Sixteenths(std::max<uint64_t>(mantissa, 1)) + 16 * (exponent - 127 - 23);
}

// Internal linkage from here on, since files with different instruction sets include this.

inline constexpr int32_t kRoundLimitInteger = 1 << 21;
inline constexpr float kRoundLimit = kRoundLimitInteger;
static inline int32_t RoundClamped(float v, float limit = kRoundLimit) {
  // Selections by value, which compilers vectorise where std::min's references keep them from it.
  v = v < limit ? v : limit;
  v = v > -limit ? v : -limit;
  return RoundSmall(v);
}

// Exponent e such that every |x| < 2^e, from the bits of the largest; -126 for zeros.
static inline int ExponentOf(uint32_t largest_bits) {
  return static_cast<int>(largest_bits >> 23) - 126;
}
// Takes |x| < 2^exponent to integers below 2^14.
static inline float IntegerScale(int exponent) {
  const int biased = 127 + 14 - exponent;
  const int clamped = biased < 1 ? 1 : biased > 254 ? 254 : biased;
  return std::bit_cast<float>(static_cast<uint32_t>(clamped) << 23);
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_FIXED_POINT_H_
