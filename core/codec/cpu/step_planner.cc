// Steps from the contract: keys by the queries' energy, values by the vector's own norm.
#include <algorithm>
#include <bit>

#include "core/codec/cpu/channel_squares.h"
#include "core/codec/cpu/quantizer.h"
#include "core/codec/fixed_point.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// The exponent that the clamped scale stands for.
int ScaledExponent(int exponent) { return 14 - (std::clamp(127 + 14 - exponent, 1, 254) - 127); }

// 32 log2 of the rms spread of a head's channels around their means, over the vectors not raw.
int HeadSpreadLog32(const CpuKernels& kernels, const UnitData& data, uint32_t tokens,
                    uint32_t dim) {
  uint32_t largest = 0;
  int64_t n = 0;
  for (uint32_t t = 0; t < tokens; ++t) {
    if (data.raw[t]) continue;
    largest = std::max(largest, kernels.largest_bits(&data.canonical[size_t{t} * dim], dim));
    ++n;
  }
  const int exponent = ExponentOf(largest);
  const float scale = IntegerScale(exponent);
  std::vector<int32_t> sum(dim, 0);  // at most 256 * 2^14
  ChannelSquares square(dim);
  for (uint32_t t = 0; t < tokens; ++t) {
    if (data.raw[t]) continue;
    kernels.add_moments(&data.canonical[size_t{t} * dim], scale, dim, sum.data(), square.row());
  }
  const std::vector<uint64_t>& sums = square.sums();
  uint64_t variance = 0, energy = 0;
  for (uint32_t c = 0; c < dim; ++c) {
    const auto squares = static_cast<uint64_t>(n) * sums[c];
    variance += squares - static_cast<uint64_t>(int64_t{sum[c]} * sum[c]);
    energy += squares;
  }
  // One token, or constant channels: there is no spread, and the size of the keys has to serve.
  const uint64_t v = std::max<uint64_t>(variance ? variance : energy, 1);
  const uint64_t count = std::max<uint64_t>(1, static_cast<uint64_t>(n) * n * dim);
  return Log2Sixteenths(v) - Log2Sixteenths(count) + 32 * (ScaledExponent(exponent) - 14);
}

int64_t FloorDivide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// Sixteenths of a quarter octave over `center` / `n`, rounded to offsets; 0 for raw vectors.
std::vector<int16_t> OffsetsAround(const std::vector<int32_t>& wish_16, int64_t center, int64_t n,
                                   const std::vector<uint8_t>& raw) {
  std::vector<int16_t> out(wish_16.size(), 0);
  for (size_t t = 0; t < wish_16.size(); ++t) {
    if (raw[t]) continue;
    const int64_t offset = FloorDivide(wish_16[t] * n - center + 8 * n, 16 * n);
    out[t] = static_cast<int16_t>(ClampValue<int64_t>(offset, -kMaxStepOffset, kMaxStepOffset));
  }
  return out;
}

struct SumOver {
  int64_t sum = 0, n = 0;
};
SumOver SumWhereCoded(const std::vector<int32_t>& values, const std::vector<uint8_t>& raw) {
  SumOver out;
  for (size_t t = 0; t < values.size(); ++t) {
    if (raw[t]) continue;
    out.sum += values[t];
    ++out.n;
  }
  return out;
}

// The level of attention times the number of vectors that are not raw, and that number.
SumOver MassLevelSum(const LatticeChoices& choices, const std::vector<uint8_t>& raw) {
  SumOver out = SumWhereCoded(choices.mass_16, raw);
  if (choices.mass_level_16) out.sum = out.n * *choices.mass_level_16;
  return out;
}

// Value steps with attention mass: the base is that of the tokens' mean norm, and offsets go with
// mass^-1/4 norm^1/2. `norm_32` [tokens] is 32 log2 of the vectors' rms.
void PlanMassSteps(const LatticeContext& context, const LatticeChoices& choices,
                   const UnitData& data, const std::vector<int32_t>& norm_32, StepPlan& out) {
  std::vector<int32_t> wish_16(context.tokens);
  for (uint32_t t = 0; t < context.tokens; ++t) {
    if (!data.raw[t]) wish_16[t] = norm_32[t] - choices.mass_16[t];
  }
  const auto [norm_sum, n] = SumWhereCoded(norm_32, data.raw);
  const int64_t level_sum = MassLevelSum(choices, data.raw).sum;
  out.offset = OffsetsAround(wish_16, norm_sum - level_sum, n, data.raw);
  if (n == 0) return;
  const int64_t base_8 = 2 * context.value_unit_16 + FloorDivide(norm_sum, n);
  constexpr int64_t kMaxBase = kMaxStepIndex - kMaxStepOffset;
  out.value_base = static_cast<int16_t>(ClampValue((base_8 + 4) >> 3, -kMaxBase, kMaxBase));
  for (uint32_t t = 0; t < context.tokens; ++t) {
    out.value[t] = static_cast<int16_t>(out.value_base + out.offset[t]);
  }
}

}  // namespace

int16_t KeyBaseFromEnergy(double logit_noise, const HeadProfile& profile) {
  const int unit_16 = Sixteenths(logit_noise / kE8Rms);
  return static_cast<int16_t>(
      std::clamp((2 * unit_16 - FloatLog2Sixteenths(profile.mean_energy) + 1) >> 1,
                 -4 * kMaxStepIndex, 4 * kMaxStepIndex));
}

std::vector<int16_t> KeyStepsFromEnergy(int16_t key_base, const HeadProfile& profile) {
  std::vector<int16_t> out;
  for (int16_t step_16 : profile.step_16) out.push_back(ProfileStep(key_base, step_16));
  return out;
}

std::vector<int16_t> KeyOffsets(const LatticeChoices& choices) {
  std::vector<int32_t> wish_16;
  for (int32_t m : choices.mass_16) wish_16.push_back(-m);
  const auto [level_sum, n] = MassLevelSum(choices, choices.raw_tokens);
  return OffsetsAround(wish_16, -level_sum, n, choices.raw_tokens);
}

StepPlan PlanSteps(const LatticeContext& context, const LatticeChoices& choices,
                   const UnitRef& unit, const HeadProfile* profile, UnitData& data) {
  const ScopedStage timer(CodecStage::kSteps);
  const uint32_t dim = unit.spec->head_dim;
  StepPlan out;
  if (unit.spec->role == PlaneRole::kKey) {
    out.offset.assign(context.key_offset.begin(), context.key_offset.end());
    if (profile != nullptr && !profile->query_energy.empty()) {
      out.key_from_energy = true;
      out.key_base = KeyBaseFromEnergy(choices.logit_noise, *profile);
      out.key = KeyStepsFromEnergy(out.key_base, *profile);
    } else {
      const int unit_16 = Sixteenths(3 * choices.logit_noise);
      const int log_32 = 2 * unit_16 + HeadSpreadLog32(context.kernels, data, context.tokens, dim);
      out.key_base = ClampStep((log_32 + 4) >> 3);
      out.key.assign(dim, out.key_base);
    }
    return out;
  }
  out.value.assign(context.tokens, 0);
  std::vector<int32_t> norm_32(context.tokens, 0);
  for (uint32_t t = 0; t < context.tokens; ++t) {
    if (data.raw[t]) continue;
    const float* x = &data.canonical[size_t{t} * dim];
    const RowNorm norm = context.kernels.norm(x, dim);
    if (norm.energy == 0) {
      data.raw[t] = 1;  // no norm to be relative to
      continue;
    }
    norm_32[t] = Log2Sixteenths(norm.energy) - Log2Sixteenths(dim) +
                 32 * (ScaledExponent(ExponentOf(norm.largest_bits)) - 14);
    out.value[t] = ClampStep((2 * context.value_unit_16 + norm_32[t] + 4) >> 3);
  }
  if (context.mass) PlanMassSteps(context, choices, data, norm_32, out);
  return out;
}

}  // namespace latticekv
