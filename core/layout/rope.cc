#include "core/layout/rope.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace latticekv {
namespace {

// Only +, -, *, / and bit operations on doubles below: each is correctly rounded by IEEE 754, so
// the results do not depend on a maths library. The constants are part of the frame format.
constexpr double kLn2High = 6.93147180369123816490e-01;
constexpr double kLn2Low = 1.90821492927058770002e-10;

// Natural logarithm of a normal x > 0 by 2 atanh((m - 1) / (m + 1)) of the mantissa.
double Log(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
  if (m > 1.5) {
    m = m * 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  double sum = 0.0;
  for (int k = 31; k >= 1; k -= 2) sum = sum * s2 + 1.0 / k;
  return exponent * kLn2High + (2.0 * s * sum + exponent * kLn2Low);
}

// exp(-x) for x in [0, 64].
double ExpMinus(double x) {
  const int k = static_cast<int>(x / (kLn2High + kLn2Low) + 0.5);
  const double r = (x - k * kLn2High) - k * kLn2Low;
  double sum = 1.0;
  for (int i = 20; i >= 1; --i) sum = 1.0 - r * sum / i;
  return sum * std::bit_cast<double>(static_cast<uint64_t>(1023 - k) << 52);
}

// Pair indices between which yarn goes over from kept to divided frequencies.
struct YarnRamp {
  double low, high;
};

YarnRamp MakeYarnRamp(const RopeSpec& rope) {
  const RopeScaling& s = rope.scaling;
  // The pair that turns `rotations` times over the original positions.
  const auto pair_of = [&](double rotations) {
    return rope.rotary_dims * Log(s.original_positions / (rotations * kTwoPi)) /
           (2.0 * Log(rope.base));
  };
  double low = pair_of(s.beta_fast), high = pair_of(s.beta_slow);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rope.rotary_dims - 1.0);
  if (low == high) high += 0.001;  // as published, so that the ramp has a slope
  return {low, high};
}

// Angle per position of a pair, from the unscaled one.
double ScaledAngle(const RopeScaling& s, const YarnRamp& ramp, double pair, double angle) {
  switch (s.kind) {
    case RopeScalingKind::kLinear:
      return angle / s.factor;
    case RopeScalingKind::kLlama3: {
      const double wavelength = kTwoPi / angle;
      if (wavelength > s.original_positions / s.low_freq_factor) return angle / s.factor;
      if (wavelength < s.original_positions / s.high_freq_factor) return angle;
      const double keep = (s.original_positions / wavelength - s.low_freq_factor) /
                          (s.high_freq_factor - s.low_freq_factor);
      return (1.0 - keep) * angle / s.factor + keep * angle;
    }
    case RopeScalingKind::kYarn: {
      const double divide = std::clamp((pair - ramp.low) / (ramp.high - ramp.low), 0.0, 1.0);
      return angle / s.factor * divide + angle * (1.0 - divide);
    }
    default:
      return angle;
  }
}

// Logarithm of the base, which dynamic NTK scaling raises.
double LogBase(const RopeSpec& rope) {
  const RopeScaling& s = rope.scaling;
  const double log_base = Log(rope.base);
  if (s.kind != RopeScalingKind::kDynamicNtk) return log_base;
  const double dims = rope.rotary_dims;
  const double stretch = s.factor * s.sequence_positions / s.original_positions - (s.factor - 1.0);
  return log_base + dims / (dims - 2.0) * Log(stretch);
}

// How much yarn sharpens attention for a context longer by `factor`.
double Sharpening(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * Log(factor) + 1.0;
}

// RopeSinCos of several frequencies: the same operations on each, side by side, since every one
// waits for a division.
constexpr size_t kAnglesAtOnce = 16;
void SinCosOf(const uint64_t* frequencies, size_t count, uint64_t position, SinCos* out) {
  uint64_t quarter[kAnglesAtOnce] = {};
  double x[kAnglesAtOnce] = {}, x2[kAnglesAtOnce], s[kAnglesAtOnce], c[kAnglesAtOnce];
  for (size_t i = 0; i < count; ++i) {
    const RotaryAngle angle = SplitPhase(position * frequencies[i]);
    quarter[i] = angle.quarter;
    x[i] = angle.rest;
  }
  for (size_t i = 0; i < kAnglesAtOnce; ++i) {
    x2[i] = x[i] * x[i];
    s[i] = c[i] = 1.0;
  }
  for (int k = 16; k >= 2; k -= 2) {
    const double divisor = k * (k + 1);
    for (size_t i = 0; i < kAnglesAtOnce; ++i) s[i] = 1.0 - x2[i] * s[i] / divisor;
  }
  for (int k = 17; k >= 1; k -= 2) {
    const double divisor = k * (k + 1);
    for (size_t i = 0; i < kAnglesAtOnce; ++i) c[i] = 1.0 - x2[i] * c[i] / divisor;
  }
  for (size_t i = 0; i < count; ++i) {
    out[i] = TurnQuarters(quarter[i], static_cast<float>(x[i] * s[i]), static_cast<float>(c[i]));
  }
}

}  // namespace

std::vector<uint64_t> RopeFrequencies(const RopeSpec& rope) {
  std::vector<uint64_t> out(rope.style == RopeStyle::kNone ? 0 : rope.rotary_dims / 2);
  if (out.empty()) return out;
  const double log_base = LogBase(rope);
  const bool yarn = rope.scaling.kind == RopeScalingKind::kYarn;
  const YarnRamp ramp = yarn ? MakeYarnRamp(rope) : YarnRamp{};
  for (size_t i = 0; i < out.size(); ++i) {
    const double pair = static_cast<double>(i);
    const double exponent = 2.0 * pair / rope.rotary_dims * log_base;
    const double turns = ScaledAngle(rope.scaling, ramp, pair, ExpMinus(exponent)) / kTwoPi;
    out[i] = static_cast<uint64_t>(turns * 18446744073709551616.0 + 0.5);
  }
  return out;
}

double RopeAttentionFactor(const RopeSpec& rope) {
  const RopeScaling& s = rope.scaling;
  if (s.kind != RopeScalingKind::kYarn) return 1.0;
  if (s.attention_factor != 0) return s.attention_factor;
  if (s.mscale == 0 || s.mscale_all_dim == 0) return Sharpening(s.factor, 1.0);
  return Sharpening(s.factor, s.mscale) / Sharpening(s.factor, s.mscale_all_dim);
}

std::vector<SinCos> RopeTable(const RopeSpec& rope, uint64_t start, uint32_t tokens) {
  const std::vector<uint64_t> frequencies = RopeFrequencies(rope);
  std::vector<SinCos> table(tokens * frequencies.size());
  SinCos* out = table.data();
  for (uint32_t t = 0; t < tokens; ++t, out += frequencies.size()) {
    for (size_t i = 0; i < frequencies.size(); i += kAnglesAtOnce) {
      const size_t count = std::min(kAnglesAtOnce, frequencies.size() - i);
      SinCosOf(&frequencies[i], count, start + t, out + i);
    }
  }
  return table;
}

}  // namespace latticekv
