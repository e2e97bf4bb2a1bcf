// What a plane's units have in every chunk. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_UNIT_SHAPE_H_
#define LATTICEKV_CORE_CODEC_CUDA_UNIT_SHAPE_H_

#include <cstdint>

#include "core/layout/layout.h"

namespace latticekv {

// The task of rows of the plane, a cuda::SeedUnit or what NewUnit makes; all else is 0. The plane
// is of a valid layout.
template <typename Task>
Task NewRows(const PlaneSpec& spec) {
  Task unit{};
  unit.dim = static_cast<uint16_t>(spec.head_dim);
  unit.pairs = static_cast<uint16_t>(spec.rope.rotary_dims / 2);
  unit.element_bytes = static_cast<uint8_t>(DTypeBytes(spec.dtype));
  unit.is_bf16 = spec.dtype == DType::kBF16;
  unit.interleaved = spec.rope.style == RopeStyle::kInterleaved;
  return unit;
}

// A cuda::EncodeUnit or a cuda::UnitTask.
template <typename Task>
Task NewUnit(const PlaneSpec& spec) {
  auto unit = NewRows<Task>(spec);
  unit.vector_bytes = uint32_t{unit.dim} * unit.element_bytes;
  unit.is_key = spec.role == PlaneRole::kKey;
  return unit;
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_UNIT_SHAPE_H_
