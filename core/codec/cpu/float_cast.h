// Rows of f16, bf16 and f32 to float and back, as row_arithmetic.h converts elements. Internal
// linkage, since files with different instruction sets include this. Internal to core/codec.
#ifndef LATTICEKV_CORE_CODEC_CPU_FLOAT_CAST_H_
#define LATTICEKV_CORE_CODEC_CPU_FLOAT_CAST_H_

#include <cstdint>

#include "core/base/bytes.h"
#include "core/codec/row_arithmetic.h"
#include "core/layout/layout.h"

namespace latticekv {

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
      for (uint32_t i = 0; i < count; ++i) StoreLe<uint32_t>(dst + 4 * i, FloatToStored(in[i]));
      return;
  }
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_FLOAT_CAST_H_
