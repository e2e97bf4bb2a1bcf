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

// An angle of phase / 2^64 turns: quarter turns, and what is left to the nearest of them.
struct RotaryAngle {
  uint64_t quarter;
  double rest;  // radians of at most 1/8 turn, either way
};
constexpr RotaryAngle SplitPhase(uint64_t phase) {
  const uint64_t quarter = (phase + (uint64_t{1} << 61)) >> 62;
  const int64_t rest = static_cast<int64_t>(phase - (quarter << 62));
  return {quarter, static_cast<double>(rest) * (1.0 / 18446744073709551616.0) * kTwoPi};
}
constexpr SinCos TurnQuarters(uint64_t quarter, float sine, float cosine) {
  const bool swap = quarter & 1;
  const float c = swap ? sine : cosine, s = swap ? cosine : sine;
  return {(quarter + 1) & 2 ? -c : c, quarter & 2 ? -s : s};
}

// Only +, -, *, / on doubles, each correctly rounded: compile without contraction.
constexpr SinCos RopeSinCos(uint64_t phase) {
  const RotaryAngle angle = SplitPhase(phase);
  const double x = angle.rest, x2 = x * x;
  double s = 1.0, c = 1.0;
  for (int k = 16; k >= 2; k -= 2) s = 1.0 - x2 * s / (k * (k + 1));
  for (int k = 17; k >= 1; k -= 2) c = 1.0 - x2 * c / (k * (k + 1));
  return TurnQuarters(angle.quarter, static_cast<float>(x * s), static_cast<float>(c));
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_LAYOUT_ROTARY_PHASE_H_
