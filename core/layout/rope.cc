#include "core/layout/rope.h"

#include <bit>
#include <cmath>

namespace latticekv {
namespace {

// Only +, -, *, / and bit operations on doubles below: each is correctly rounded by IEEE 754, so
// the results do not depend on a maths library. The constants are part of the frame format.
constexpr double kLn2High = 6.93147180369123816490e-01;
constexpr double kLn2Low = 1.90821492927058770002e-10;

// Natural logarithm of x >= 1 by 2 atanh((m - 1) / (m + 1)) of the mantissa.
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

}  // namespace

std::vector<uint64_t> RopeFrequencies(const RopeSpec& rope) {
  std::vector<uint64_t> out(rope.style == RopeStyle::kNone ? 0 : rope.rotary_dims / 2);
  const double log_base = Log(rope.base);
  for (size_t i = 0; i < out.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / rope.rotary_dims * log_base;
    const double turns = ExpMinus(exponent) / kTwoPi;
    out[i] = static_cast<uint64_t>(turns * 18446744073709551616.0 + 0.5);
  }
  return out;
}

std::vector<SinCos> RopeTable(const RopeSpec& rope, uint64_t start, uint32_t tokens) {
  const std::vector<uint64_t> frequencies = RopeFrequencies(rope);
  std::vector<SinCos> table;
  table.reserve(tokens * frequencies.size());
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint64_t f : frequencies) table.push_back(RopeSinCos((start + t) * f));
  }
  return table;
}

}  // namespace latticekv
