// Element formats, rounding and rotary embedding of one row. Plain C++17 constexpr functions, so
// that device code compiles these very ones; internal linkage, since files with different
// instruction sets include this. Internal to core/codec.
#ifndef LATTICEKV_CORE_CODEC_ROW_ARITHMETIC_H_
#define LATTICEKV_CORE_CODEC_ROW_ARITHMETIC_H_

#include <cstdint>

#include "core/layout/rotary_phase.h"

namespace latticekv {

// The builtin, since C++17 has no std::bit_cast.
static constexpr uint32_t BitsOf(float f) { return __builtin_bit_cast(uint32_t, f); }
static constexpr float FloatOf(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// f16 and bf16 to float and back: round to nearest even, saturating at the largest finite value.
// All cases are computed and one is selected, so that loops over rows vectorise.
static constexpr float HalfToFloat(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7FFF;
  // Exact for normals and denormals alike: place the bits 112 exponents too low, then scale.
  const uint32_t finite = BitsOf(FloatOf(magnitude << 13) * FloatOf(0x77800000u));
  const uint32_t infinite = 0x7F800000 | magnitude << 13;
  return FloatOf(sign | (magnitude >= 0x7C00 ? infinite : finite));
}

static constexpr uint16_t FloatToHalf(float f) {
  const uint32_t bits = BitsOf(f), magnitude = bits & 0x7FFFFFFF;
  const uint32_t sign = bits >> 16 & 0x8000;
  // A denormal result: adding 0.5 leaves its bits at the bottom.
  const uint32_t denormal = BitsOf(FloatOf(magnitude) + 0.5f) - 0x3F000000;
  const uint32_t normal = (magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  uint32_t out = magnitude < 0x38800000 ? denormal : normal;
  out = magnitude >= 0x477FF000 ? 0x7BFF : out;
  out = magnitude > 0x7F800000 ? 0x7E00 : out;
  return static_cast<uint16_t>(sign | out);
}

static constexpr float Bf16ToFloat(uint16_t h) { return FloatOf(static_cast<uint32_t>(h) << 16); }

static constexpr uint16_t FloatToBf16(float f) {
  const uint32_t bits = BitsOf(f), magnitude = bits & 0x7FFFFFFF;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7F800000) return sign | 0x7FC0;
  const uint32_t rounded = (magnitude + 0x7FFF + (magnitude >> 16 & 1)) >> 16;
  return sign | static_cast<uint16_t>(rounded > 0x7F7F ? 0x7F7F : rounded);
}

// An f32 as it is stored. Infinite ones saturate as the narrow types do: a lossy codec must not
// turn large into infinite.
static constexpr uint32_t FloatToStored(float f) {
  const uint32_t bits = BitsOf(f);
  return (bits & 0x7FFFFFFF) == 0x7F800000 ? bits - 1 : bits;
}

static constexpr bool IsFinite(float f) { return (BitsOf(f) & 0x7F800000) != 0x7F800000; }

// Rounds |v| < 2^21 to the nearest integer, ties to even, by adding 1.5 * 2^23.
static constexpr int32_t RoundSmall(float v) {
  return static_cast<int32_t>(BitsOf(v + 12582912.0f)) - 0x4B400000;
}

// Rotary embedding of a row in canonical order, and its removal; `angle` has `pairs` entries.
static constexpr void Rotate(const SinCos* angle, uint32_t pairs, float* __restrict x) {
  for (uint32_t i = 0; i < pairs; ++i) {
    const float a = x[i], b = x[i + pairs];
    x[i] = a * angle[i].cos - b * angle[i].sin;
    x[i + pairs] = b * angle[i].cos + a * angle[i].sin;
  }
}
static constexpr void Unrotate(const SinCos* angle, uint32_t pairs, float* __restrict y) {
  for (uint32_t i = 0; i < pairs; ++i) {
    const float a = y[i], b = y[i + pairs];
    y[i] = a * angle[i].cos + b * angle[i].sin;
    y[i + pairs] = b * angle[i].cos - a * angle[i].sin;
  }
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_ROW_ARITHMETIC_H_
