// Nearest point of the E8 lattice, D8 and its half-integer coset (Conway and Sloane 1982), in integers.
// Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_E8_H_
#define LATTICEKV_CORE_CODEC_CPU_E8_H_

#include <cstdint>

namespace latticekv {

// Nearest point of E8 to z / 256, z = 256 k + fraction, for one group of 8: coordinate i becomes
// q2[i] / 2. Where rounded coordinates have an odd sum, the one with the largest error moves the other
// way (the first of equals; an error of zero moves up). The integer coset wins ties.
//
// The two cosets need only one look at the errors: with a = |z / 256 - nearest integer| in 1/256, the
// distance to the nearest half-integer is 128 - a, so the squared distances differ by a sum of a.
inline void NearestE8(const int16_t* k, const int16_t* fraction, int16_t* q2) {
  int16_t whole[8], worst[8], best[8];
  int16_t sum_whole = 0, sum_half = 0, sum_error = 0;
  for (int16_t i = 0; i < 8; ++i) {
    const int16_t up = fraction[i] >> 7;  // 1: the nearest integer is k + 1
    const int16_t a = static_cast<int16_t>(up ? 256 - fraction[i] : fraction[i]);
    whole[i] = static_cast<int16_t>(k[i] + up);
    worst[i] = static_cast<int16_t>(a * 8 + (7 - i));
    best[i] = static_cast<int16_t>(a * 8 + i);
    sum_whole = static_cast<int16_t>(sum_whole + whole[i]);
    sum_half = static_cast<int16_t>(sum_half + k[i]);
    sum_error = static_cast<int16_t>(sum_error + a);
  }
  int16_t largest = worst[0], smallest = best[0];
  for (int i = 1; i < 8; ++i) {
    largest = worst[i] > largest ? worst[i] : largest;
    smallest = best[i] < smallest ? best[i] : smallest;
  }
  const bool odd_whole = sum_whole & 1, odd_half = sum_half & 1;
  // Squared distance to the half coset less that to the integers, in 2^-16.
  const int32_t difference = 131072 - 256 * sum_error + (odd_half ? 512 * (smallest >> 3) : 0) -
                             (odd_whole ? 65536 - 512 * (largest >> 3) : 0);
  // Selected without branches, which would be mispredicted half of the time.
  const int16_t half = difference < 0 ? 1 : 0;
  for (int i = 0; i < 8; ++i) {
    q2[i] = static_cast<int16_t>(half ? 2 * k[i] + 1 : 2 * whole[i]);
  }
  const int at = half ? smallest & 7 : 7 - (largest & 7);
  const bool odd = half ? odd_half : odd_whole;
  const bool up = (fraction[at] >= 128) == static_cast<bool>(half);
  q2[at] = static_cast<int16_t>(q2[at] + (odd ? (up ? 2 : -2) : 0));
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_E8_H_
