// Steps from the contract: keys by the queries' energy, values by the vector's own norm.
#include <algorithm>
#include <bit>

#include "core/codec/cpu/channel_squares.h"
#include "core/codec/cpu/quantizer.h"
#include "core/codec/fixed_point.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// Exponent e such that every |x| < 2^e, from the bits of the largest; -127 for zeros.
int ExponentOf(uint32_t largest_bits) { return static_cast<int>(largest_bits >> 23) - 126; }

// Takes |x| < 2^exponent to integers below 2^14.
float IntegerScale(int exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(std::clamp(127 + 14 - exponent, 1, 254)) << 23);
}
// The exponent that the clamped scale stands for.
int ScaledExponent(int exponent) { return 14 - (std::clamp(127 + 14 - exponent, 1, 254) - 127); }

// round(16 log2 w) of a positive float.
int EnergyLog16(float w) {
  const uint32_t bits = std::bit_cast<uint32_t>(w);
  const int exponent = std::max<int>(bits >> 23, 1);
  const uint64_t mantissa = (bits & 0x7FFFFF) | (bits >> 23 ? 0x800000u : 0u);
  return Log2Sixteenths(std::max<uint64_t>(mantissa, 1)) + 16 * (exponent - 127 - 23);
}

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

}  // namespace

int16_t KeyBaseFromEnergy(double logit_noise, const HeadProfile& profile) {
  const int unit_16 = Sixteenths(logit_noise / kE8Rms);
  return static_cast<int16_t>(std::clamp((2 * unit_16 - EnergyLog16(profile.mean_energy) + 1) >> 1,
                                         -4 * kMaxStepIndex, 4 * kMaxStepIndex));
}

std::vector<int16_t> KeyStepsFromEnergy(int16_t key_base, const HeadProfile& profile) {
  std::vector<int16_t> out;
  for (int16_t step_16 : profile.step_16) out.push_back(ProfileStep(key_base, step_16));
  return out;
}

StepPlan PlanSteps(const LatticeContext& context, const LatticeChoices& choices,
                   const UnitRef& unit, const HeadProfile* profile, UnitData& data) {
  const ScopedStage timer(CodecStage::kSteps);
  const uint32_t dim = unit.spec->head_dim;
  StepPlan out;
  if (unit.spec->role == PlaneRole::kKey) {
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
  for (uint32_t t = 0; t < context.tokens; ++t) {
    if (data.raw[t]) continue;
    const float* x = &data.canonical[size_t{t} * dim];
    const int exponent = ExponentOf(context.kernels.largest_bits(x, dim));
    const uint64_t energy = context.kernels.energy(x, IntegerScale(exponent), dim);
    if (energy == 0) {
      data.raw[t] = 1;  // no norm to be relative to
      continue;
    }
    const int log_32 = 2 * context.value_unit_16 + Log2Sixteenths(energy) - Log2Sixteenths(dim) +
                       32 * (ScaledExponent(exponent) - 14);
    out.value[t] = ClampStep((log_32 + 4) >> 3);
  }
  return out;
}

}  // namespace latticekv
