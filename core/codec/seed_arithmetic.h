// The seed stages of one vector: Hadamard rotation, scales, lattice, rebuilding, errors. Plain
// C++17 constexpr functions, so that device code compiles these very ones. Internal to core/codec;
// docs/format/frame.md, "Seed layers".
#ifndef LATTICEKV_CORE_CODEC_SEED_ARITHMETIC_H_
#define LATTICEKV_CORE_CODEC_SEED_ARITHMETIC_H_

#include <cstdint>

#include "core/codec/row_arithmetic.h"
#include "core/codec/side_arithmetic.h"
#include "core/layout/rotary_phase.h"

namespace latticekv {

// Largest scales outside of these lose the vector, which is then stored raw.
inline constexpr float kLeastSeedScale = 6.103515625e-05f;  // 2^-14, the least normal f16
inline constexpr float kLargestSeedScale = 65504.0f;

constexpr float Magnitude(float v) { return FloatOf(BitsOf(v) & 0x7FFFFFFF); }

// In place, orthonormal, its own inverse: blocks of the largest power of two that divides `dim`.
// Sums of elements at distance 1, 2, 4 ..., then one multiplication.
constexpr void Hadamard(float* x, uint32_t dim) {
  const uint32_t block = dim & (~dim + 1);
  uint32_t log2 = 0;
  while (block >> log2 != 1) ++log2;
  // 2^(-log2 / 2)
  const float scale =
      FloatOf((127 - (log2 + 1) / 2) << 23) * (log2 % 2 ? 1.41421356237309505f : 1.0f);
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

// Nearest point, doubled, of a group of 8 in units of its scale. The source's lattice: integers
// with an even sum, or half-integers of any sum, which it found to do better than strict E8.
constexpr void NearestRelaxed(const float* x, int bound, int8_t* points) {
  int32_t whole[8] = {}, half[8] = {};
  int32_t sum = 0;
  int worst = 0;
  float gap = -1;
  for (int i = 0; i < 8; ++i) {
    whole[i] = RoundSmall(x[i]);
    half[i] = 2 * RoundSmall(x[i] - 0.5f) + 1;
    sum += whole[i];
    const float g = Magnitude(x[i] - static_cast<float>(whole[i]));
    if (g > gap) {
      gap = g;
      worst = i;
    }
  }
  if (sum & 1) whole[worst] += x[worst] >= static_cast<float>(whole[worst]) ? 1 : -1;
  float whole_distance = 0, half_distance = 0;
  for (int i = 0; i < 8; ++i) {
    const float a = x[i] - static_cast<float>(whole[i]);
    const float b = x[i] - 0.5f * static_cast<float>(half[i]);
    whole_distance += a * a;
    half_distance += b * b;
  }
  for (int i = 0; i < 8; ++i) {
    const int32_t p = half_distance < whole_distance ? half[i] : 2 * whole[i];
    points[i] = static_cast<int8_t>(ClampValue(p, -bound, bound));
  }
}

// Codes a vector in canonical order, before rotary embedding; overwrites it. `group` coordinates
// share a scale: `scales` is f16 [dim / group]. `points` [dim] are twice the lattice points, up to
// `bound`. False, with outputs unspecified, when the vector must be stored raw.
constexpr bool EncodeSeedRow(float* x, uint32_t dim, uint32_t group, int bound, uint16_t* scales,
                             int8_t* points) {
  Hadamard(x, dim);
  const float steps = static_cast<float>(bound / 2);
  float largest = 0;
  bool finite = true;
  for (uint32_t c = 0; c < dim; ++c) {
    const float magnitude = Magnitude(x[c]);
    largest = largest < magnitude ? magnitude : largest;
    finite = finite && IsFinite(x[c]);  // sums of huge values may not be
  }
  const float scale = largest / steps;
  if (!finite || scale > kLargestSeedScale || (largest > 0 && scale < kLeastSeedScale)) {
    return false;
  }
  for (uint32_t g = 0; g < dim; g += group) {
    float top = 0;
    for (uint32_t c = g; c < g + group; ++c) {
      const float magnitude = Magnitude(x[c]);
      top = top < magnitude ? magnitude : top;
    }
    const uint16_t bits = FloatToHalf(top / steps);
    const float step = HalfToFloat(bits);
    scales[g / group] = bits;
    for (uint32_t c = g; c < g + group; ++c) x[c] = step > 0 ? x[c] / step : 0;
  }
  for (uint32_t c = 0; c < dim; c += 8) NearestRelaxed(x + c, bound, points + c);
  return true;
}

// Rebuilds a vector in canonical order; `angle` is of its token.
constexpr void ReconstructSeedRow(const int8_t* points, const uint16_t* scales, uint32_t dim,
                                  uint32_t group, const SinCos* angle, uint32_t pairs, float* x) {
  for (uint32_t g = 0; g < dim; g += group) {
    const float half_scale = HalfToFloat(scales[g / group]) * 0.5f;
    for (uint32_t c = g; c < g + group; ++c) x[c] = static_cast<float>(points[c]) * half_scale;
  }
  Hadamard(x, dim);
  Rotate(angle, pairs, x);
}

// Squared error of a vector in units of 2^-28: relative, or of a logit where energies are known.
// Sums in binary64 in canonical order.
class SeedRowError {
 public:
  // `energy`: of the channel's queries; 1 where it is not known.
  constexpr void Add(float exact, float back, float energy) {
    const double d = double{back} - exact;
    error_ += energy * d * d;
    norm_ += double{exact} * exact;
  }
  constexpr uint64_t Squared(uint32_t dim, bool energy_known) const {
    const double ratio = energy_known ? error_ / dim : norm_ > 0 ? error_ / norm_ : 0;
    const double scaled = ratio * 268435456.0;                                          // 2^28
    return static_cast<uint64_t>(scaled < 1099511627776.0 ? scaled : 1099511627776.0);  // 2^40
  }

 private:
  double error_ = 0, norm_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_SEED_ARITHMETIC_H_
