// From lattice points back to vectors: the normative floating-point steps of the decoder, shared
// with the encoder, which measures what it wrote. Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_RECONSTRUCT_H_
#define LATTICEKV_CORE_CODEC_CPU_RECONSTRUCT_H_

#include <cstdint>
#include <vector>

#include "core/codec/cpu/kernels.h"
#include "core/codec/fixed_point.h"
#include "core/codec/row_arithmetic.h"
#include "core/codec/tile_format.h"
#include "core/layout/rope.h"

namespace latticekv {

// Rebuilds vectors of one unit. Not thread-safe (owns scratch).
class UnitReconstructor {
 public:
  // `rope`: table of the plane, or null. `plan` must outlive this.
  UnitReconstructor(const CpuKernels& kernels, const UnitPlan& plan, const SinCos* rope)
      : kernels_(kernels),
        plan_(plan),
        rope_(rope),
        order_(CanonicalChannels(*plan.unit.spec)),
        canonical_(plan.unit.spec->head_dim) {
    const PlaneSpec& spec = *plan.unit.spec;
    row_.mean = plan.mean.data();
    row_.dim = spec.head_dim;
    row_.pairs = rope ? spec.rope.rotary_dims / 2 : 0;
    row_.order = spec.rope.style == RopeStyle::kInterleaved ? order_.data() : nullptr;
    row_.step = nullptr;
    if (spec.role == PlaneRole::kKey) {
      for (int16_t s : plan.step) step_.push_back(StepFloat(s) * 0.25f);
      row_.step = step_.data();
    }
  }

  // `q2` [head_dim]: twice the lattice point of coded row `row`, canonical order. Writes [head_dim]
  // in the layout's channel order, rotated to the row's position.
  void Row(size_t row, const int16_t* q2, float* out) {
    Lattice(row, q2);
    if (!plan_.offset.empty()) {
      ShiftedRow(row, out);
      return;
    }
    kernels_.rebuild_row(row_, canonical_.data(), out);
  }

  // What the kernels rebuild the row from, where there are no step offsets.
  const LatticeRow& Lattice(size_t row, const int16_t* q2) {
    row_.q2 = q2;
    row_.angle = rope_ + size_t{plan_.coded[row]} * row_.pairs;
    if (row_.step == nullptr) row_.row_step = StepFloat(plan_.step[row]) * 0.25f;
    return row_;
  }

 private:
  // With step offsets: the lattice is scaled, the mean is not.
  void ShiftedRow(size_t row, float* out) {
    const float factor = StepFloat(plan_.offset[row]);
    const float base = StepFloat(plan_.header.step_base) * 0.25f;  // of values
    float* x = row_.order == nullptr ? out : canonical_.data();
    for (uint32_t c = 0; c < row_.dim; ++c) {
      const float point = static_cast<float>(2 * row_.q2[c]) * factor;
      x[c] = (point + static_cast<float>(row_.mean[c])) * (row_.step ? row_.step[c] : base);
    }
    Rotate(row_.angle, row_.pairs, x);
    for (uint32_t c = 0; c < row_.dim && row_.order != nullptr; ++c) out[row_.order[c]] = x[c];
  }

  const CpuKernels& kernels_;
  const UnitPlan& plan_;
  const SinCos* rope_;
  const std::vector<uint32_t> order_;
  std::vector<float> canonical_, step_;
  LatticeRow row_{};
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_RECONSTRUCT_H_
