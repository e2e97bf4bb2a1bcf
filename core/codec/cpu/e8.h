// Nearest point of the E8 lattice, D8 and its half-integer coset (Conway and Sloane 1982), in
// integers. Internal linkage, since files with different instruction sets include this. Internal to
// core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_E8_H_
#define LATTICEKV_CORE_CODEC_CPU_E8_H_

#include <cstdint>
#include <cstring>

namespace latticekv {

// Eight 16-bit numbers; the compiler maps them to whatever the target has.
using Group = int16_t __attribute__((vector_size(16)));

static inline Group LoadGroup(const int16_t* p) {
  Group out;
  std::memcpy(&out, p, sizeof(out));
  return out;
}

// Combines the eight numbers with an associative, commutative operation.
template <typename Operation>
static int Reduce(Group v, Operation operation) {
  v = operation(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = operation(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  v = operation(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
  return v[0];
}

// Nearest point of E8 to z / 256, z = 256 k + fraction, for one group of 8: coordinate i becomes
// q2[i] / 2. Where rounded coordinates have an odd sum, the one with the largest error moves the
// other way (the first of equals; an error of zero moves up). The integer coset wins ties.
//
// The two cosets need only one look at the errors: with a = |z / 256 - nearest integer| in 1/256,
// the distance to the nearest half-integer is 128 - a, so the squared distances differ by a sum of
// a.
static inline void NearestE8(const int16_t* k_in, const int16_t* fraction_in, int16_t* q2) {
  const Group k = LoadGroup(k_in), fraction = LoadGroup(fraction_in);
  const Group up = fraction >> 7;  // 1: the nearest integer is k + 1
  const Group whole = k + up;
  const Group a = up ? 256 - fraction : fraction;
  // Largest and smallest error with the coordinate's place, so that the first of equals wins.
  const Group forward = {0, 1, 2, 3, 4, 5, 6, 7};
  const int largest = Reduce(a * 8 + (7 - forward), [](Group x, Group y) { return x > y ? x : y; });
  const int smallest = Reduce(a * 8 + forward, [](Group x, Group y) { return x < y ? x : y; });
  const int sum_error = Reduce(a, [](Group x, Group y) { return x + y; });
  const int parities = Reduce((k & 1) | (whole & 1) << 1, [](Group x, Group y) { return x ^ y; });
  const int odd_half = parities & 1, odd_whole = parities >> 1;
  // Squared distance to the half coset less that to the integers, in 2^-16.
  const int difference = 131072 - 256 * sum_error + odd_half * 512 * (smallest >> 3) -
                         odd_whole * (65536 - 512 * (largest >> 3));
  // Selected without branches, which would be mispredicted half of the time.
  const int half = difference < 0;
  const int16_t choose = static_cast<int16_t>(-half);
  const Group out = (((2 * k + 1) & choose) | (2 * whole & static_cast<int16_t>(~choose)));
  std::memcpy(q2, &out, sizeof(out));
  const int at = half ? smallest & 7 : 7 - (largest & 7);
  const int odd = half ? odd_half : odd_whole;
  const int direction = (fraction_in[at] >= 128) == half ? 2 : -2;
  q2[at] = static_cast<int16_t>(q2[at] + odd * direction);
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_E8_H_
