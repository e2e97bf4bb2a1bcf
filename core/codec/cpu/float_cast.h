// f16, bf16 and f32 to float and back: round to nearest even, saturating at the largest finite
// value. Internal linkage, since files with different instruction sets include this. Internal to
// core/codec.
#ifndef LATTICEKV_CORE_CODEC_CPU_FLOAT_CAST_H_
#define LATTICEKV_CORE_CODEC_CPU_FLOAT_CAST_H_

#include <bit>
#include <cstdint>

#include "core/base/bytes.h"
#include "core/layout/layout.h"

namespace latticekv {

// All cases are computed and one is selected, so that loops over rows vectorise.
static inline float HalfToFloat(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7FFF;
  // Exact for normals and denormals alike: place the bits 112 exponents too low, then scale.
  const float scaled = std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>(0x77800000u);
  const uint32_t finite = std::bit_cast<uint32_t>(scaled), infinite = 0x7F800000 | magnitude << 13;
  return std::bit_cast<float>(sign | (magnitude >= 0x7C00 ? infinite : finite));
}

static inline uint16_t FloatToHalf(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f), magnitude = bits & 0x7FFFFFFF;
  const uint32_t sign = bits >> 16 & 0x8000;
  // A denormal result: adding 0.5 leaves its bits at the bottom.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  const uint32_t denormal = std::bit_cast<uint32_t>(shifted) - 0x3F000000;
  const uint32_t normal = (magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  uint32_t out = magnitude < 0x38800000 ? denormal : normal;
  out = magnitude >= 0x477FF000 ? 0x7BFF : out;
  out = magnitude > 0x7F800000 ? 0x7E00 : out;
  return static_cast<uint16_t>(sign | out);
}

static inline float Bf16ToFloat(uint16_t h) {
  return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

static inline uint16_t FloatToBf16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f), magnitude = bits & 0x7FFFFFFF;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7F800000) return sign | 0x7FC0;
  const uint32_t rounded = (magnitude + 0x7FFF + (magnitude >> 16 & 1)) >> 16;
  return sign | static_cast<uint16_t>(rounded > 0x7F7F ? 0x7F7F : rounded);
}

// `count` elements of `dtype` at `src`, in order.
static inline void LoadRow(DType dtype, const std::byte* __restrict src, uint32_t count,
                           float* __restrict out) {
  switch (dtype) {
    case DType::kF16:
      for (uint32_t i = 0; i < count; ++i) out[i] = HalfToFloat(LoadLe<uint16_t>(src + 2 * i));
      return;
    case DType::kBF16:
      for (uint32_t i = 0; i < count; ++i) out[i] = Bf16ToFloat(LoadLe<uint16_t>(src + 2 * i));
      return;
    case DType::kF32:
      for (uint32_t i = 0; i < count; ++i) out[i] = LoadLe<float>(src + 4 * i);
      return;
  }
}

// Writes `count` floats as `dtype` to `dst`.
static inline void StoreRow(DType dtype, const float* __restrict in, uint32_t count,
                            std::byte* __restrict dst) {
  switch (dtype) {
    case DType::kF16:
      for (uint32_t i = 0; i < count; ++i) StoreLe<uint16_t>(dst + 2 * i, FloatToHalf(in[i]));
      return;
    case DType::kBF16:
      for (uint32_t i = 0; i < count; ++i) StoreLe<uint16_t>(dst + 2 * i, FloatToBf16(in[i]));
      return;
    case DType::kF32:
      for (uint32_t i = 0; i < count; ++i) {
        const uint32_t bits = std::bit_cast<uint32_t>(in[i]);
        // Saturate as the narrow types do: a lossy codec must not turn large into infinite.
        const bool infinite = (bits & 0x7FFFFFFF) == 0x7F800000;
        StoreLe<uint32_t>(dst + 4 * i, infinite ? bits - 1 : bits);
      }
      return;
  }
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_FLOAT_CAST_H_
