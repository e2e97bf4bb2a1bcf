// Nearest point of the E8 lattice, D8 and its half-integer coset (Conway and Sloane 1982), in integers.
// Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_E8_H_
#define LATTICEKV_CORE_CODEC_CPU_E8_H_

#include <cstdint>

namespace latticekv {

// Nearest point of D8 (integer coordinates, even sum) to z / 256. Where the rounded coordinates have an
// odd sum, the one with the largest error moves the other way (the first of equals; an error of zero
// moves up). Returns the squared distance in units of 2^-16.
inline int32_t NearestD8(const int32_t* z, int32_t offset, int32_t* point) {
  int32_t error[8], sum = 0, distance = 0;
  for (int i = 0; i < 8; ++i) {
    const int32_t v = z[i] - offset;
    point[i] = (v + 128) >> 8;
    error[i] = v - point[i] * 256;
    sum += point[i];
    distance += error[i] * error[i];
  }
  if (sum & 1) {
    int worst = 0, size = -1;
    for (int i = 0; i < 8; ++i) {
      const int32_t a = error[i] < 0 ? -error[i] : error[i];
      if (a > size) {
        size = a;
        worst = i;
      }
    }
    point[worst] += error[worst] >= 0 ? 1 : -1;
    distance += 65536 - 512 * size;
  }
  return distance;
}

// Nearest point of E8 to z / 256: coordinate i is k[i], or k[i] + 1/2 where true is returned. The
// integer coset wins ties. The sum of k is even.
inline bool NearestE8(const int32_t* z, int16_t* k) {
  int32_t whole[8], half[8];
  const bool use_half = NearestD8(z, 128, half) < NearestD8(z, 0, whole);
  for (int i = 0; i < 8; ++i) k[i] = static_cast<int16_t>(use_half ? half[i] : whole[i]);
  return use_half;
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_E8_H_
