// Hadamard rotation and rebuilding of vectors for the seed stages: the normative floating-point
// steps, shared by encoder and decoder. Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_SEED_TRANSFORM_H_
#define LATTICEKV_CORE_CODEC_CPU_SEED_TRANSFORM_H_

#include <bit>
#include <cstdint>
#include <vector>

#include "core/codec/cpu/float_cast.h"
#include "core/layout/rope.h"

namespace latticekv {

// In place, orthonormal, its own inverse: blocks of the largest power of two that divides `dim`.
// Sums of elements at distance 1, 2, 4 ..., then one multiplication.
inline void Hadamard(float* x, uint32_t dim) {
  const uint32_t block = dim & (~dim + 1);
  const int log2 = std::countr_zero(block);
  // 2^(-log2 / 2)
  const float scale = std::bit_cast<float>(static_cast<uint32_t>(127 - (log2 + 1) / 2) << 23) *
                      (log2 % 2 ? 1.41421356237309505f : 1.0f);
  for (uint32_t at = 0; at < dim; at += block) {
    for (uint32_t h = 1; h < block; h *= 2) {
      for (uint32_t i = at; i < at + block; i += 2 * h) {
        for (uint32_t j = i; j < i + h; ++j) {
          const float a = x[j], b = x[j + h];
          x[j] = a + b;
          x[j + h] = a - b;
        }
      }
    }
    for (uint32_t i = at; i < at + block; ++i) x[i] *= scale;
  }
}

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
    for (uint32_t c = 0; c < dim; ++c) {
      x_[c] = static_cast<float>(points[c]) * (HalfToFloat(scales[c / group_]) * 0.5f);
    }
    Hadamard(x_.data(), dim);
    const SinCos* angle = rope_ + size_t{token} * pairs;
    for (uint32_t i = 0; i < pairs; ++i) {
      const float a = x_[i], b = x_[i + pairs];
      x_[i] = a * angle[i].cos - b * angle[i].sin;
      x_[i + pairs] = b * angle[i].cos + a * angle[i].sin;
    }
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
