// What encode and decode plans of the seed stages have in common. Host code only. Internal to
// core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_SEED_UNITS_H_
#define LATTICEKV_CORE_CODEC_CUDA_SEED_UNITS_H_

#include <algorithm>
#include <vector>

#include "core/codec/cuda/seed_tasks.h"
#include "core/codec/cuda/unit_shape.h"
#include "core/codec/gpu/device_planes.h"
#include "core/codec/seed_codec.h"

namespace latticekv {

// A head of `plane`, but for what the arena holds.
inline cuda::SeedUnit NewSeedUnit(const PlaneSpec& spec, const DevicePlane& plane, uint32_t head,
                                  const SeedShape& shape) {
  auto unit = NewRows<cuda::SeedUnit>(spec);
  unit.data = reinterpret_cast<uintptr_t>(plane.data_dev) + head * plane.head_stride;
  unit.token_stride = plane.token_stride;
  unit.block_stride = plane.block_stride;
  unit.group = static_cast<uint16_t>(shape.Group(spec.head_dim));
  unit.bound = static_cast<uint8_t>(shape.bound());
  unit.token_delta = shape.token_delta;
  return unit;
}

// Units that the arena has at `units_at`; where results go is not set.
inline cuda::SeedLaunch SeedLaunchOf(const std::vector<cuda::SeedUnit>& units, uint64_t units_at) {
  cuda::SeedLaunch launch{};
  launch.units_at = units_at;
  launch.units = static_cast<uint32_t>(units.size());
  for (const cuda::SeedUnit& unit : units) {
    launch.max_rows = std::max<uint32_t>(launch.max_rows, unit.rows);
    launch.max_dim = std::max<uint32_t>(launch.max_dim, unit.dim);
  }
  return launch;
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_SEED_UNITS_H_
