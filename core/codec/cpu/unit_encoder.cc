#include "core/codec/cpu/unit_encoder.h"

#include <algorithm>

#include "core/codec/cpu/float_cast.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/prefetch.h"
#include "core/codec/cpu/quantizer.h"
#include "core/codec/cpu/reconstruct.h"
#include "core/codec/fixed_point.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// Bounds that keep sums over a frame within 64 bits: far beyond any error that means something.
constexpr uint64_t kMaxVectorError = uint64_t{1} << 40;
constexpr uint64_t kMaxChannelError = uint64_t{1} << 50;
constexpr double kMaxLogitWeight = 1 << 24;

// Squared error of a vector relative to its squared norm, units of 2^-28, saturated.
uint64_t RelativeError(uint64_t error, uint64_t norm) {
  const uint64_t ratio =
      (std::min<uint64_t>(error, (uint64_t{1} << 36) - 1) << 28) / std::max<uint64_t>(norm, 1);
  return std::min(ratio, kMaxVectorError);
}

// Squared logit error of a vector whose steps are 2^(offset/4) of the channels' own, from squares
// in its own steps.
uint64_t ShiftedLogitError(const std::vector<uint32_t>& squares, const std::vector<uint32_t>& order,
                           const std::vector<uint64_t>& weights, int offset) {
  uint64_t sum = 0;
  for (size_t c = 0; c < weights.size(); ++c) {
    sum += std::min(squares[order[c]] * weights[c], kMaxChannelError);
  }
  const double scaled = static_cast<double>(sum / weights.size()) * StepFloat(2 * offset);
  return static_cast<uint64_t>(std::min(scaled, static_cast<double>(kMaxVectorError)));
}

}  // namespace

std::vector<uint64_t> LogitWeights(const HeadProfile& profile, const std::vector<int16_t>& steps) {
  std::vector<uint64_t> out(steps.size());
  for (size_t c = 0; c < out.size(); ++c) {
    const double step = StepFloat(steps[c]);
    const double weight = profile.query_energy[c] * step * step * 4096.0 + 0.5;
    out[c] = static_cast<uint64_t>(std::min(weight, kMaxLogitWeight));
  }
  return out;
}

bool UsesProfile(const UnitHeader& h) {
  return h.mean_source >= MeanSource::kProfile || h.spread_source >= SpreadSource::kProfile ||
         h.step_source == StepSource::kProfile;
}

void LoadUnit(const LatticeContext& context, const LatticeChoices& choices, const UnitRef& unit,
              const PlaneView& view, UnitData& data) {
  const ScopedStage timer(CodecStage::kLoad);
  const PlaneSpec& spec = *unit.spec;
  const uint32_t dim = spec.head_dim;
  const std::vector<uint32_t> order = CanonicalChannels(spec);
  SourceRow row{spec.dtype, nullptr, dim, nullptr, nullptr, spec.rope.rotary_dims / 2};
  if (spec.rope.style == RopeStyle::kInterleaved) row.order = order.data();
  const SinCos* angles = row.pairs > 0 ? context.rope.Table(spec.rope) : nullptr;
  data.view = view;
  data.view.data += unit.head * view.head_stride;
  data.canonical.resize(size_t{context.tokens} * dim);
  data.raw = choices.raw_tokens;
  const size_t row_bytes = dim * DTypeBytes(spec.dtype);
  uint32_t found = 0;
  for (uint32_t t = 0; t < context.tokens; ++t) {
    row.src = data.Stored(t);
    row.angle = angles + size_t{t} * row.pairs;
    // A head's vectors lie too far apart for the processor to see where this is going.
    if (t + kRowsAhead < context.tokens) {
      PrefetchRow<0>(row.src + kRowsAhead * view.token_stride, row_bytes);
    }
    const size_t at = size_t{t} * dim;
    const uint32_t flags = context.kernels.load_row(row, &data.canonical[at]);
    found |= flags;
    data.raw[t] |= static_cast<uint8_t>((flags & kRowNotFinite) != 0);
  }
  data.all_zero = !(found & kRowNotZero);
}

namespace {

// Adds the unit's squared errors, measured on what a decoder will write.
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
    if (profiled) weights = LogitWeights(*profile, plan.step);
    for (uint32_t c = 0; c < dim; ++c) inverse[order[c]] = 256.0f * StepFloat(-plan.step[c]);
  }
  const CpuKernels& kernels = context.kernels;
  UnitReconstructor reconstruct(kernels, plan, context.rope.Table(spec.rope));
  std::vector<float> row(dim), exact(dim), shifted_inverse(dim);
  uint64_t sum = 0, coarse_sum = 0;
  uint32_t coarse_vectors = 0;
  for (size_t i = 0; i < plan.coded.size(); ++i) {
    const std::byte* src = data.Stored(plan.coded[i]);
    if (plan.offset.empty()) {
      const MeasuredRow measured{reconstruct.Lattice(i, &unit.q2[i * dim]), spec.dtype, src};
      if (profiled) {
        kernels.measure_errors(measured, inverse.data(), squares.data());
        continue;
      }
      uint64_t error = 0, norm = 0;
      kernels.measure_relative(measured, 256.0f * StepFloat(key ? -plan.step[0] : -plan.step[i]),
                               &error, &norm);
      sum += RelativeError(error, norm);
      continue;
    }
    const int offset = plan.offset[i];
    uint64_t& to = offset > 0 ? coarse_sum : sum;
    coarse_vectors += offset > 0;
    LoadRow(spec.dtype, src, dim, exact.data());
    reconstruct.Row(i, &unit.q2[i * dim], row.data());
    kernels.cast_row(spec.dtype, row.data(), dim);
    if (profiled) {
      const float factor = StepFloat(-offset);
      for (uint32_t c = 0; c < dim; ++c) shifted_inverse[c] = inverse[c] * factor;
      std::fill(squares.begin(), squares.end(), 0);
      kernels.add_errors(row.data(), exact.data(), shifted_inverse.data(), dim, squares.data());
      to += ShiftedLogitError(squares, order, weights, offset);
      continue;
    }
    uint64_t error = 0, norm = 0;
    kernels.add_relative(row.data(), exact.data(),
                         256.0f * StepFloat(key ? -plan.step[0] - offset : -plan.step[i]), dim,
                         &error, &norm);
    to += RelativeError(error, norm);
  }
  if (profiled && plan.offset.empty()) {
    for (uint32_t c = 0; c < dim; ++c) {
      sum += std::min(squares[order[c]] * weights[c], kMaxChannelError);
    }
    sum /= dim;
  }
  const uint32_t within = static_cast<uint32_t>(plan.coded.size()) - coarse_vectors;
  const auto add = [key](uint64_t error, uint32_t vectors, ErrorSums& to) {
    (key ? to.key_error_sum : to.value_error_sum) += error;
    (key ? to.key_vectors : to.value_vectors) += vectors;
  };
  add(sum, within, errors.within);
  add(coarse_sum, coarse_vectors, errors.coarse);
}

// Steps finer by so many quarter octaves.
void MakeFiner(const HeadProfile* profile, int quarter_octaves, StepPlan& steps) {
  if (quarter_octaves == 0) return;
  if (steps.key_from_energy) {
    steps.key_base = static_cast<int16_t>(steps.key_base - 4 * quarter_octaves);
    steps.key = KeyStepsFromEnergy(steps.key_base, *profile);
  }
  for (int16_t& step : steps.value) step = static_cast<int16_t>(ClampStep(step - quarter_octaves));
}

CodedUnit EncodeWithSteps(const LatticeContext& context, const LatticeChoices& choices,
                          const UnitRef& unit, int finer, UnitData& data, PointBuffers& buffers) {
  const HeadProfile* profile = context.head_profile(unit.plane, unit.head);
  StepPlan steps = PlanSteps(context, choices, unit, profile, data);
  MakeFiner(profile, finer, steps);
  return ChooseCoding(context, choices.stats, unit, profile, data, steps, buffers);
}

// A point of E8 is at most 1.32 times the rms away and steps are rounded by 1.09: three are enough,
// but for what the cast to the dtype does.
constexpr int kMostFiner = 8;

}  // namespace

CodedUnit EncodeUnit(const LatticeContext& context, const LatticeChoices& choices,
                     const UnitRef& unit, UnitData& data, PointBuffers& buffers,
                     LayerErrors& errors) {
  if (data.all_zero) {
    CodedUnit zero;
    zero.plan.unit = unit;
    zero.plan.header.all_zero = true;
    ResolveRows(context.tokens, zero.plan);
    return zero;
  }
  for (int finer = 0;; ++finer) {
    if (finer > kMostFiner) std::fill(data.raw.begin(), data.raw.end(), 1);
    CodedUnit coded = EncodeWithSteps(context, choices, unit, finer, data, buffers);
    LayerErrors own;
    MeasureUnit(context, data, coded, own);
    if (own.within.AreWithin(choices.bounds)) {
      errors.within.Add(own.within);
      errors.coarse.Add(own.coarse);
      return coded;
    }
    buffers.Give(std::move(coded.q2));
  }
}

}  // namespace latticekv
