#include "core/codec/cpu/unit_encoder.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "core/codec/cpu/float_cast.h"
#include "core/codec/cpu/quantizer.h"
#include "core/codec/cpu/reconstruct.h"
#include "core/codec/fixed_point.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// An error in steps as an integer in 1/256 step. The lattice's errors are at most one step;
// clamping at 16 keeps the sum of 256 squares within 32 bits.
int16_t RoundError(float steps) {
  return static_cast<int16_t>(RoundClamped(steps * 256.0f, 4095.0f));
}

// Adds the squared errors of one row, in steps, channel by channel.
void AddSquares(const float* __restrict error, const float* __restrict inverse_step, uint32_t dim,
                uint32_t* __restrict squares) {
  for (uint32_t c = 0; c < dim; ++c) {
    const int32_t e = RoundError(error[c] * inverse_step[c]);
    squares[c] += static_cast<uint32_t>(e * e);
  }
}

// Bounds that keep sums over a frame within 64 bits: far beyond any error that means something.
constexpr uint64_t kMaxVectorError = uint64_t{1} << 40;
constexpr uint64_t kMaxChannelError = uint64_t{1} << 50;
constexpr double kMaxLogitWeight = 1 << 24;

// Squared error of one vector relative to its squared norm, units of 2^-28, saturated.
uint64_t RelativeError(const float* error, const float* exact, uint32_t dim, float inverse_step) {
  uint64_t e = 0, v = 0;
  for (uint32_t c = 0; c < dim; c += 8) {
    uint32_t block = 0;
    for (uint32_t i = c; i < c + 8; ++i) {
      const int32_t ei = RoundError(error[i] * inverse_step);
      block += static_cast<uint32_t>(ei * ei);
      const uint32_t vi =
          static_cast<uint32_t>(std::abs(RoundClamped(exact[i] * inverse_step * 256.0f)));
      v += uint64_t{vi} * vi;
    }
    e += block;
  }
  const uint64_t ratio =
      (std::min<uint64_t>(e, (uint64_t{1} << 36) - 1) << 28) / std::max<uint64_t>(v, 1);
  return std::min(ratio, kMaxVectorError);
}

// Weights of squared errors in steps: query energy times squared step, units of 2^-12.
std::vector<uint64_t> LogitWeights(const HeadProfile& profile, const UnitPlan& plan,
                                   const std::vector<uint32_t>& order) {
  std::vector<uint64_t> out(plan.step.size());
  for (size_t c = 0; c < out.size(); ++c) {
    const double step = StepFloat(plan.step[c]);
    const double weight = profile.query_energy[c] * step * step * 4096.0 + 0.5;
    out[order[c]] = static_cast<uint64_t>(std::min(weight, kMaxLogitWeight));
  }
  return out;
}

}  // namespace

bool UsesProfile(const UnitHeader& h) {
  return h.mean_source >= MeanSource::kProfile || h.spread_source >= SpreadSource::kProfile ||
         h.step_source == StepSource::kProfile;
}

UnitData LoadUnit(const LatticeContext& context, const LatticeChoices& choices, const UnitRef& unit,
                  const PlaneView& view) {
  const ScopedStage timer(CodecStage::kLoad);
  const PlaneSpec& spec = *unit.spec;
  const uint32_t dim = spec.head_dim, pairs = spec.rope.rotary_dims / 2;
  const std::vector<uint32_t> order = CanonicalChannels(spec);
  const SinCos* angle = pairs > 0 ? context.rope.Table(spec.rope) : nullptr;
  UnitData data;
  data.original.resize(size_t{context.tokens} * dim);
  data.canonical.resize(data.original.size());
  data.raw = choices.raw_tokens;
  data.all_zero = true;
  const bool identity = spec.rope.style != RopeStyle::kInterleaved;
  for (uint32_t t = 0; t < context.tokens; ++t) {
    float* x = &data.original[size_t{t} * dim];
    float* y = &data.canonical[size_t{t} * dim];
    LoadRow(spec.dtype, view.data + t * view.token_stride + unit.head * view.head_stride, dim, x);
    if (identity) {
      std::copy_n(x, dim, y);
    } else {
      for (uint32_t c = 0; c < dim; ++c) y[c] = x[order[c]];
    }
    const SinCos* r = angle + size_t{t} * pairs;
    for (uint32_t i = 0; i < pairs; ++i) {
      const float a = y[i], b = y[i + pairs];
      y[i] = a * r[i].cos + b * r[i].sin;
      y[i + pairs] = b * r[i].cos - a * r[i].sin;
    }
    // Sums of huge f32 values may leave the range of a float, so the rotated row is looked at too.
    uint32_t any = 0, infinite = 0;
    for (uint32_t c = 0; c < dim; ++c) {
      const uint32_t before = std::bit_cast<uint32_t>(x[c]), after = std::bit_cast<uint32_t>(y[c]);
      any |= before;
      infinite |= ((before & 0x7F800000) == 0x7F800000) | ((after & 0x7F800000) == 0x7F800000);
    }
    data.all_zero &= any == 0;
    data.raw[t] |= static_cast<uint8_t>(infinite);
  }
  return data;
}

CodedUnit EncodeUnit(const LatticeContext& context, const LatticeChoices& choices,
                     const UnitRef& unit, UnitData& data) {
  if (data.all_zero) {
    CodedUnit zero;
    zero.plan.unit = unit;
    zero.plan.header.all_zero = true;
    ResolveRows(context.tokens, zero.plan);
    return zero;
  }
  const HeadProfile* profile = context.head_profile(unit.plane, unit.head);
  const StepPlan steps = PlanSteps(context, choices, unit, profile, data);
  return ChooseCoding(context, choices.stats, unit, profile, data, steps);
}

void MeasureUnit(const LatticeContext& context, const UnitData& data, const CodedUnit& unit,
                 LayerErrors& errors) {
  const ScopedStage timer(CodecStage::kMeasure);
  const UnitPlan& plan = unit.plan;
  if (plan.coded.empty()) return;
  const PlaneSpec& spec = *plan.unit.spec;
  const uint32_t dim = spec.head_dim;
  const bool key = spec.role == PlaneRole::kKey;
  const HeadProfile* profile = context.head_profile(plan.unit.plane, plan.unit.head);
  const bool profiled = key && profile != nullptr && !profile->query_energy.empty();
  const std::vector<uint32_t> order = CanonicalChannels(spec);
  std::vector<uint64_t> weights;
  std::vector<uint32_t> squares(dim, 0);
  std::vector<float> inverse(dim, 1.0f);
  if (key) {
    if (profiled) weights = LogitWeights(*profile, plan, order);
    for (uint32_t c = 0; c < dim; ++c) inverse[order[c]] = StepFloat(-plan.step[c]);
  }
  UnitReconstructor reconstruct(plan, context.rope.Table(spec.rope));
  std::vector<float> row(dim), back(dim);
  ByteVector stored(dim * DTypeBytes(spec.dtype));
  uint64_t sum = 0;
  for (size_t i = 0; i < plan.coded.size(); ++i) {
    const float* exact = &data.original[size_t{plan.coded[i]} * dim];
    reconstruct.Row(i, &unit.q2[i * dim], row.data());
    StoreRow(spec.dtype, row.data(), dim, stored.data());
    LoadRow(spec.dtype, stored.data(), dim, back.data());
    for (uint32_t c = 0; c < dim; ++c) back[c] = back[c] - exact[c];
    if (!profiled) {
      sum += RelativeError(back.data(), exact, dim, key ? inverse[0] : StepFloat(-plan.step[i]));
      continue;
    }
    AddSquares(back.data(), inverse.data(), dim, squares.data());
  }
  if (profiled) {
    for (uint32_t c = 0; c < dim; ++c) sum += std::min(squares[c] * weights[c], kMaxChannelError);
    sum /= dim;
  }
  const uint32_t vectors = static_cast<uint32_t>(plan.coded.size());
  (key ? errors.key_error_sum : errors.value_error_sum) += sum;
  (key ? errors.key_vectors : errors.value_vectors) += vectors;
}

}  // namespace latticekv
