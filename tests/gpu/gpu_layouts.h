// Layouts that between them take every path of the device code.
#ifndef LATTICEKV_TESTS_GPU_GPU_LAYOUTS_H_
#define LATTICEKV_TESTS_GPU_GPU_LAYOUTS_H_

#include <string>
#include <vector>

#include "core/layout/layout.h"
#include "tests/support/sample_chunk.h"

namespace latticekv::testing {

// Head dims, dtypes and rotary styles of their own; `model` says which.
inline std::vector<Layout> NamedLayouts() {
  struct Shape {
    uint32_t heads, head_dim;
    DType dtype;
    RopeSpec rope;
  };
  const RopeStyle neox = RopeStyle::kNeox, woven = RopeStyle::kInterleaved;
  const Shape shapes[] = {
      {2, 64, DType::kF16, {neox, 64, 10000.0, {}}},
      {2, 128, DType::kF16, {neox, 128, 500000.0, {}}},
      {1, 128, DType::kBF16, {woven, 128, 1e4, {}}},
      {3, 80, DType::kF32, {neox, 40, 10000.0, {}}},
      {1, 96, DType::kF16, {woven, 48, 10000.0, {}}},
      {1, 192, DType::kF16, {neox, 64, 10000.0, {}}},
      {1, 256, DType::kBF16, {neox, 256, 1e6, {}}},
      {2, 80, DType::kBF16, {neox, 80, 10000.0, {}}},
      {1, 64, DType::kF32, {woven, 32, 10000.0, {}}},
      {1, 576, DType::kBF16, {neox, 64, 10000.0, {}}},
      {5, 8, DType::kF32, RopeSpec{}},
      {3, 24, DType::kF16, {woven, 6, 10000.0, {}}},
      {2, 256, DType::kF16, {neox, 64, 10000.0, {}}},
      {2, 16, DType::kF16, {neox, 16, 10000.0, {}}},
  };
  std::vector<Layout> out;
  for (const Shape& s : shapes) {
    const std::string name = std::to_string(s.head_dim) + " " + std::string(DTypeName(s.dtype)) +
                             " rotary " + std::to_string(s.rope.rotary_dims);
    out.push_back(MakeUniformLayout(name, 2, s.heads, s.head_dim, s.dtype, s.rope));
  }
  return out;
}

inline Layout RandomLayout(Random& random) {
  Layout layout;
  layout.model = "random";
  const DType dtypes[] = {DType::kF16, DType::kBF16, DType::kF32};
  const RopeStyle styles[] = {RopeStyle::kNone, RopeStyle::kNeox, RopeStyle::kInterleaved};
  const uint32_t layers = 1 + random.Below(3);
  for (uint32_t l = 0; l < layers; ++l) {
    LayerSpec layer;
    for (PlaneRole role : {PlaneRole::kKey, PlaneRole::kOpaque, PlaneRole::kValue}) {
      if (role == PlaneRole::kOpaque && random.Below(3) > 0) continue;
      PlaneSpec plane{role == PlaneRole::kKey     ? "k"
                      : role == PlaneRole::kValue ? "v"
                                                  : "state",
                      role,
                      1 + random.Below(6),
                      8 * (1 + random.Below(24)),
                      dtypes[random.Below(3)],
                      RopeSpec{}};
      // Even, so that what lies behind it is aligned to the elements of any dtype.
      if (role == PlaneRole::kOpaque) plane.head_dim = 2 * (1 + random.Below(20));
      if (role == PlaneRole::kKey) {
        plane.rope.style = styles[random.Below(3)];
        if (plane.rope.style != RopeStyle::kNone) {
          plane.rope.rotary_dims = 2 * (1 + random.Below(plane.head_dim / 2));
          plane.rope.base = random.Below(2) ? 10000.0 : 500000.0;
        }
      }
      layer.planes.push_back(plane);
    }
    layout.layers.push_back(layer);
  }
  return layout;
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_GPU_GPU_LAYOUTS_H_
