// Rebuilding of vectors for the seed stages, shared by encoder and decoder. Internal to
// core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_SEED_TRANSFORM_H_
#define LATTICEKV_CORE_CODEC_CPU_SEED_TRANSFORM_H_

#include <cstdint>
#include <vector>

#include "core/codec/cpu/float_cast.h"
#include "core/codec/seed_arithmetic.h"
#include "core/layout/rope.h"

namespace latticekv {

// Rebuilds vectors of one plane in the layout's channel order, rotated to their positions. Not
// thread-safe (owns scratch).
class SeedReconstructor {
 public:
  // `rope`: table of the plane, or null. `group`: coordinates that share a scale.
  SeedReconstructor(const PlaneSpec& spec, const SinCos* rope, uint32_t group)
      : spec_(spec),
        rope_(rope),
        group_(group),
        order_(CanonicalChannels(spec)),
        x_(spec.head_dim) {}

  // `points` are twice the lattice points, `scales` f16 bits.
  void Row(uint32_t token, const int8_t* points, const uint16_t* scales, float* out) {
    const uint32_t dim = spec_.head_dim, pairs = rope_ ? spec_.rope.rotary_dims / 2 : 0;
    ReconstructSeedRow(points, scales, dim, group_, rope_ + size_t{token} * pairs, pairs,
                       x_.data());
    for (uint32_t c = 0; c < dim; ++c) out[order_[c]] = x_[c];
  }

 private:
  const PlaneSpec& spec_;
  const SinCos* rope_;
  const uint32_t group_;
  const std::vector<uint32_t> order_;
  std::vector<float> x_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_SEED_TRANSFORM_H_
