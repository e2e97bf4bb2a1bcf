// Layouts of every kind that the codec takes, for property tests.
#ifndef LATTICEKV_TESTS_SUPPORT_RANDOM_LAYOUT_H_
#define LATTICEKV_TESTS_SUPPORT_RANDOM_LAYOUT_H_

#include "core/layout/layout.h"
#include "tests/support/sample_chunk.h"

namespace latticekv::testing {

// One to three equal layers with a key plane, a value plane and, one time in four unless `opaque`
// is false, an opaque one. Small, so that many fit into a test.
inline Layout RandomLayout(Random& random, bool opaque = true) {
  constexpr uint32_t kDims[] = {8, 24, 64, 80, 128};
  constexpr DType kTypes[] = {DType::kF16, DType::kBF16, DType::kF32};
  const DType dtype = kTypes[random.Below(3)];
  const uint32_t heads = 1 + random.Below(3), key_dim = kDims[random.Below(5)];
  RopeSpec rope;
  if (random.Below(4) != 0) {
    rope.style = random.Below(2) ? RopeStyle::kNeox : RopeStyle::kInterleaved;
    rope.rotary_dims = random.Below(2) ? key_dim : 2 * (1 + random.Below(key_dim / 2));
    rope.base = random.Below(2) ? 10000.0 : 500000.0;
  }
  LayerSpec layer;
  layer.planes.push_back({"k", PlaneRole::kKey, heads, key_dim, dtype, rope});
  layer.planes.push_back(
      {"v", PlaneRole::kValue, heads, kDims[random.Below(5)], dtype, RopeSpec{}});
  if (opaque && random.Below(4) == 0) {
    layer.planes.push_back({"state", PlaneRole::kOpaque, 1, 7, DType::kF32, RopeSpec{}});
  }
  Layout out;
  out.model = "random";
  out.layers.assign(1 + random.Below(3), layer);
  return out;
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_RANDOM_LAYOUT_H_
