// Sine and cosine of a rotary phase. Apart from rope.h, and plain constexpr arithmetic, so that
// device code compiles this very function.
#ifndef LATTICEKV_CORE_LAYOUT_ROTARY_PHASE_H_
#define LATTICEKV_CORE_LAYOUT_ROTARY_PHASE_H_

#include <cstdint>

namespace latticekv {

inline constexpr double kTwoPi = 6.28318530717958647693;

struct SinCos {
  float cos;
  float sin;
};

// Of an angle of phase / 2^64 turns. Only +, -, *, / on doubles, each correctly rounded: compile
// without contraction.
constexpr SinCos RopeSinCos(uint64_t phase) {
  // Nearest quarter turn, and what is left of it: between -1/8 and 1/8 turn.
  const uint64_t quarter = (phase + (uint64_t{1} << 61)) >> 62;
  const int64_t rest = static_cast<int64_t>(phase - (quarter << 62));
  const double x = static_cast<double>(rest) * (1.0 / 18446744073709551616.0) * kTwoPi;
  const double x2 = x * x;
  double s = 1.0, c = 1.0;
  for (int k = 16; k >= 2; k -= 2) s = 1.0 - x2 * s / (k * (k + 1));
  for (int k = 17; k >= 1; k -= 2) c = 1.0 - x2 * c / (k * (k + 1));
  const float sine = static_cast<float>(x * s), cosine = static_cast<float>(c);
  switch (quarter & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_LAYOUT_ROTARY_PHASE_H_
