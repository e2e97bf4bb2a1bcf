// From lattice points back to vectors: the normative floating-point steps of the decoder, shared
// with the encoder, which measures what it wrote. Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_RECONSTRUCT_H_
#define LATTICEKV_CORE_CODEC_CPU_RECONSTRUCT_H_

#include <cstdint>
#include <vector>

#include "core/codec/fixed_point.h"
#include "core/codec/tile_format.h"
#include "core/layout/rope.h"

namespace latticekv {

// Rebuilds vectors of one unit. Not thread-safe (owns scratch).
class UnitReconstructor {
 public:
  // `rope`: table of the plane, or null. `plan` must outlive this.
  UnitReconstructor(const UnitPlan& plan, const SinCos* rope)
      : plan_(plan),
        rope_(rope),
        key_(plan.unit.spec->role == PlaneRole::kKey),
        identity_(plan.unit.spec->rope.style != RopeStyle::kInterleaved),
        order_(CanonicalChannels(*plan.unit.spec)),
        canonical_(plan.unit.spec->head_dim) {
    if (key_) {
      for (int16_t s : plan.step) step_.push_back(StepFloat(s) * 0.25f);
    }
  }

  // `q2` [head_dim]: twice the lattice point of coded row `row`, canonical order. Writes [head_dim]
  // in the layout's channel order, rotated to the row's position.
  void Row(size_t row, const int16_t* q2, float* out) {
    const uint32_t dim = plan_.unit.spec->head_dim;
    const uint32_t pairs = rope_ ? plan_.unit.spec->rope.rotary_dims / 2 : 0;
    // Without a permutation to undo, canonical order is the output's.
    float* x = identity_ ? out : canonical_.data();
    if (key_) {
      for (uint32_t c = 0; c < dim; ++c) x[c] = Quarters(q2[c], c) * step_[c];
    } else {
      const float step = StepFloat(plan_.step[row]) * 0.25f;
      for (uint32_t c = 0; c < dim; ++c) x[c] = Quarters(q2[c], c) * step;
    }
    const SinCos* angle = rope_ + size_t{plan_.coded[row]} * pairs;
    for (uint32_t i = 0; i < pairs; ++i) {
      const float a = x[i], b = x[i + pairs];
      x[i] = a * angle[i].cos - b * angle[i].sin;
      x[i + pairs] = b * angle[i].cos + a * angle[i].sin;
    }
    if (identity_) return;
    for (uint32_t c = 0; c < dim; ++c) out[order_[c]] = x[c];
  }

 private:
  float Quarters(int16_t q2, uint32_t c) const {
    return static_cast<float>(2 * q2 + plan_.mean[c]);
  }

  const UnitPlan& plan_;
  const SinCos* rope_;
  const bool key_;
  const bool identity_;
  const std::vector<uint32_t> order_;
  std::vector<float> canonical_, step_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_RECONSTRUCT_H_
