// The kernels on all vectors of a unit with AVX-512 F, BW, VL and DQ: 32 channels of four vectors
// at a time, so that what belongs to a channel stays in registers from vector to vector and what
// four groups of 8 decide is decided in one register. Compiled with flags of its own: see
// kernels.h.
#include <immintrin.h>

#include <algorithm>

#include "core/codec/cpu/avx512_points.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/fixed_point.h"

namespace latticekv {
namespace {

constexpr uint32_t kColumns = 32, kBlockRows = 4;
// Doubled points up to here are right: of numbers in 16 bits, and in 32. Squares of the latter and
// their sums over 256 vectors fit 32 bits.
constexpr int kNarrowLimit = 250, kWideLimit = 2040;
// Means up to here leave numbers that kWideLimit lets through below the clamp of add_sixteenths.
constexpr float kMeanLimit = 1 << 24;
// Sums of floats' bits: adding 1.5 * 2^23 rounds to an integer, which then is in the low bits.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4B400000;

using Block = __m512i[kBlockRows];

__m512i Exchange4(__m512i a, __m512i b) { return _mm512_unpackhi_epi64(a, b); }
__m512i Keep4(__m512i a, __m512i b) { return _mm512_unpacklo_epi64(a, b); }
// Of two registers of two quadwords each, the words of which are spoken for: even and odd
// doublewords.
__m512i EvenDoublewords(__m512i a, __m512i b) {
  return _mm512_castps_si512(
      _mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88));
}
__m512i OddDoublewords(__m512i a, __m512i b) {
  return _mm512_castps_si512(
      _mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0xDD));
}

// Combines each group's eight words. Doubleword j of every 128 bits has, in its low word, register
// j's group; the high word is left over.
template <typename Operation>
LKV_INLINE __m512i CombineWords(const Block& v, Operation operation) {
  const __m512i a = operation(Keep4(v[0], v[1]), Exchange4(v[0], v[1]));
  const __m512i b = operation(Keep4(v[2], v[3]), Exchange4(v[2], v[3]));
  const __m512i both = operation(EvenDoublewords(a, b), OddDoublewords(a, b));
  return operation(both, _mm512_srli_epi32(both, 16));
}

// What nearest points of 16 groups (e8.h) come down to: in the low word of doubleword j of every
// 128 bits, for register j's group, a bit for the coordinate that moves the other way, if one does,
// and bit 15 for the half coset. `z` are coordinates in 1/256.
LKV_INLINE __m512i Decide(const Block& z, uint32_t& halves) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i place = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7));
  Block rising, falling, sum;
#pragma GCC unroll 4
  for (uint32_t j = 0; j < kBlockRows; ++j) {
    // The error of the nearest integer, times 256.
    const __m512i error = _mm512_abs_epi16(_mm512_slli_epi16(z[j], 8));
    rising[j] = _mm512_or_si512(error, place);
    falling[j] = _mm512_xor_si512(rising[j], _mm512_set1_epi16(7));
    sum[j] = _mm512_sad_epu8(error, zero);
  }
  const __m512i most =
      CombineWords(falling, [](__m512i a, __m512i b) { return _mm512_max_epu16(a, b); });
  const __m512i least =
      CombineWords(rising, [](__m512i a, __m512i b) { return _mm512_min_epu16(a, b); });
  const __m512i parity =
      CombineWords(z, [](__m512i a, __m512i b) { return _mm512_xor_si512(a, b); });
  const __m512i error_sum =
      EvenDoublewords(_mm512_add_epi64(Keep4(sum[0], sum[1]), Exchange4(sum[0], sum[1])),
                      _mm512_add_epi64(Keep4(sum[2], sum[3]), Exchange4(sum[2], sum[3])));
  // Bit 8 is that of the numbers rounded down, bit 7 how many of them the nearest is above.
  const __mmask16 odd_half = _mm512_test_epi32_mask(parity, _mm512_set1_epi32(1 << 8));
  const __mmask16 odd_whole = odd_half ^ _mm512_test_epi32_mask(parity, _mm512_set1_epi32(1 << 7));
  // The squared distance to the half coset less that to the integers, in 2^-8.
  const __m512i twice = _mm512_set1_epi32(0x1FE);
  __m512i difference = _mm512_sub_epi32(_mm512_set1_epi32(512), error_sum);
  difference = _mm512_mask_add_epi32(difference, odd_half, difference,
                                     _mm512_and_si512(_mm512_srli_epi32(least, 7), twice));
  difference =
      _mm512_mask_add_epi32(difference, odd_whole, difference,
                            _mm512_sub_epi32(_mm512_and_si512(_mm512_srli_epi32(most, 7), twice),
                                             _mm512_set1_epi32(256)));
  const __mmask16 half = _mm512_movepi32_mask(difference);
  halves += static_cast<uint32_t>(__builtin_popcount(half));
  const __mmask16 moves = (half & odd_half) | (~half & odd_whole);
  const __m512i seven = _mm512_set1_epi32(7);
  const __m512i at =
      _mm512_and_si512(_mm512_mask_blend_epi32(half, _mm512_xor_si512(most, seven), least), seven);
  const __m512i move = _mm512_maskz_sllv_epi32(moves, _mm512_set1_epi32(1), at);
  return _mm512_mask_or_epi32(move, half, move, _mm512_set1_epi32(1 << 15));
}

// The decision about a register's groups at each of their words.
LKV_INLINE __m512i Spread(__m512i decision, uint32_t j) {
  const __m512i pattern = _mm512_set1_epi16(static_cast<int16_t>(0x0100 + 0x0404 * j));
  return _mm512_shuffle_epi8(decision, pattern);
}

// Twice the points. `above`: floor of the coordinates where they do not fit 16 bits.
template <bool kWide>
LKV_INLINE __m512i Point(__m512i z, __m512i floor, __m512i decision) {
  const __m512i bits = _mm512_broadcast_i32x4(_mm_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128));
  const __mmask32 half = _mm512_movepi16_mask(decision);
  const __mmask32 up = _mm512_movepi16_mask(_mm512_slli_epi16(z, 8));
  const __m512i one = _mm512_set1_epi16(1), two = _mm512_set1_epi16(2);
  const __m512i odd = _mm512_srli_epi16(decision, 15);
  __m512i out;
  if (kWide) {
    const __m512i twice = _mm512_adds_epi16(floor, floor);
    out = _mm512_or_si512(_mm512_mask_adds_epi16(twice, up & ~half, twice, two), odd);
  } else {
    const __m512i nearest = _mm512_mask_add_epi16(z, ~half, z, _mm512_set1_epi16(128));
    // (nearest >> 7 & ~1) | odd
    out = _mm512_ternarylogic_epi32(_mm512_srai_epi16(nearest, 7), one, odd, 0xBA);
  }
  const __m512i step = _mm512_mask_blend_epi16(up ^ half, two, _mm512_set1_epi16(-2));
  return _mm512_mask_add_epi16(out, _mm512_test_epi16_mask(decision, bits), out, step);
}

// 32 doublewords as words: saturated, or the low words.
LKV_INLINE __m512i Saturated(__m512i a, __m512i b) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7),
                                  _mm512_packs_epi32(a, b));
}
LKV_INLINE __m512i LowWords(__m512i a, __m512i b) {
  const __m512i even =
      _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                       24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_epi16(a, even, b);
}

// What belongs to 32 channels, from vector to vector.
struct Columns {
  __m512 inverse[2], offset[2];
  __m512i sixteenths[2], squares[2];
  __m512i low, high;
};

LKV_INLINE __m512i AddMagic(__m512i sum, __m512 y) {
  // The product is exact, so this rounds once.
  const __m512 rounded = _mm512_fmadd_ps(y, _mm512_set1_ps(0.0625f), _mm512_set1_ps(kMagic));
  return _mm512_add_epi32(sum, _mm512_castps_si512(rounded));
}

// 32 channels of 1 to 4 vectors; `x` [kRows], `q2` [kRows].
template <bool kKeys, bool kSixteenths, bool kSquares, bool kWide, uint32_t kRows>
LKV_INLINE void QuantizeBlock(const float* const* x, const float* row_inverse, int16_t* const* q2,
                              Columns& of, uint32_t& halves) {
  Block z, floor;
#pragma GCC unroll 4
  for (uint32_t j = 0; j < kBlockRows; ++j) {
    if (j >= kRows) {
      z[j] = floor[j] = _mm512_setzero_si512();
      continue;
    }
    __m512i units[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512 inverse = kKeys ? of.inverse[h] : _mm512_set1_ps(row_inverse[j]);
      const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(x[j] + 16 * h), inverse);
      if (kSixteenths) of.sixteenths[h] = AddMagic(of.sixteenths[h], y);
      units[h] = _mm512_cvtps_epi32(_mm512_sub_ps(y, of.offset[h]));
    }
    if (kWide) {
      z[j] = LowWords(units[0], units[1]);
      floor[j] = Saturated(_mm512_srai_epi32(units[0], 8), _mm512_srai_epi32(units[1], 8));
    } else {
      z[j] = floor[j] = Saturated(units[0], units[1]);
    }
  }
  const __m512i decision = Decide(z, halves);
  Block out;
#pragma GCC unroll 4
  for (uint32_t j = 0; j < kRows; ++j) {
    out[j] = Point<kWide>(z[j], floor[j], Spread(decision, j));
    of.low = _mm512_min_epi16(of.low, out[j]);
    of.high = _mm512_max_epi16(of.high, out[j]);
    _mm512_storeu_si512(q2[j], out[j]);
  }
  if (!kSquares) return;
#pragma GCC unroll 2
  for (uint32_t j = 0; j < kRows; j += 2) {
    const __m512i a = out[j], b = j + 1 < kRows ? out[j + 1] : _mm512_setzero_si512();
    const __m512i first = _mm512_unpacklo_epi16(a, b), second = _mm512_unpackhi_epi16(a, b);
    of.squares[0] = _mm512_add_epi32(of.squares[0], _mm512_madd_epi16(first, first));
    of.squares[1] = _mm512_add_epi32(of.squares[1], _mm512_madd_epi16(second, second));
  }
}

// All vectors' channels from `c` on. False: some point is beyond what this handles.
template <bool kKeys, bool kSixteenths, bool kSquares, bool kWide>
bool QuantizeColumns(const UnitRun& run, uint32_t c, const UnitSums& sums, uint32_t& halves) {
  const __m512i zero = _mm512_setzero_si512();
  Columns of{{}, {}, {zero, zero}, {zero, zero}, zero, zero};
  for (uint32_t h = 0; h < 2; ++h) {
    if (kKeys) of.inverse[h] = _mm512_loadu_ps(run.inverse + c + 16 * h);
    of.offset[h] = _mm512_loadu_ps(run.offset + c + 16 * h);
  }
  const float* x[kBlockRows];
  int16_t* q2[kBlockRows];
  const auto point_at = [&](uint32_t row, uint32_t j) {
    x[j] = run.x + size_t{run.rows[row + j]} * run.dim + c;
    q2[j] = run.q2 + size_t{row + j} * run.dim + c;
  };
  uint32_t r = 0;
  for (; r + kBlockRows <= run.count; r += kBlockRows) {
    for (uint32_t j = 0; j < kBlockRows; ++j) point_at(r, j);
    QuantizeBlock<kKeys, kSixteenths, kSquares, kWide, kBlockRows>(
        x, kKeys ? nullptr : run.row_inverse + r, q2, of, halves);
  }
  for (; r < run.count; ++r) {
    point_at(r, 0);
    QuantizeBlock<kKeys, kSixteenths, kSquares, kWide, 1>(x, kKeys ? nullptr : run.row_inverse + r,
                                                          q2, of, halves);
  }
  const int limit = kWide ? kWideLimit : kNarrowLimit;
  if (_mm512_cmpgt_epi16_mask(of.high, _mm512_set1_epi16(static_cast<int16_t>(limit))) |
      _mm512_cmplt_epi16_mask(of.low, _mm512_set1_epi16(static_cast<int16_t>(-limit)))) {
    return false;
  }
  _mm512_storeu_si512(sums.low + c, of.low);
  _mm512_storeu_si512(sums.high + c, of.high);
  if (kSixteenths) {
    const auto bias = static_cast<int32_t>(run.count * static_cast<uint32_t>(kMagicBits));
    for (int h = 0; h < 2; ++h) {
      _mm512_storeu_si512(sums.sixteenths + c + 16 * h,
                          _mm512_sub_epi32(of.sixteenths[h], _mm512_set1_epi32(bias)));
    }
  }
  if (kSquares) {
    // Unpacking left the first and the second four of each group apart.
    const __m512i a = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i b = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(sums.squares + c,
                        _mm512_permutex2var_epi64(of.squares[0], a, of.squares[1]));
    _mm512_storeu_si512(sums.squares + c + 16,
                        _mm512_permutex2var_epi64(of.squares[0], b, of.squares[1]));
  }
  return true;
}

template <bool kKeys, bool kSixteenths, bool kSquares>
bool QuantizeBy(const UnitRun& run, UnitSums& sums) {
  for (uint32_t c = 0; c < run.dim; c += kColumns) {
    uint32_t halves = 0;
    if (!QuantizeColumns<kKeys, kSixteenths, kSquares, false>(run, c, sums, halves)) {
      halves = 0;
      if (!QuantizeColumns<kKeys, kSixteenths, kSquares, true>(run, c, sums, halves)) return false;
    }
    sums.halves += halves;
  }
  return true;
}

bool Beyond(const float* v, uint32_t dim, float limit) {
  __mmask16 beyond = 0;
  for (uint32_t c = 0; c < dim; c += 16) {
    beyond |= _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_loadu_ps(v + c)), _mm512_set1_ps(limit),
                                 _CMP_GT_OQ);
  }
  return beyond != 0;
}

}  // namespace

bool QuantizeUnitAvx512(const UnitRun& run, UnitSums& sums) {
  if (run.dim % kColumns != 0) return false;
  const bool sixteenths = sums.sixteenths != nullptr, squares = sums.squares != nullptr;
  if (sixteenths && Beyond(run.offset, run.dim, kMeanLimit)) return false;
  sums.halves = 0;
  if (run.inverse != nullptr) {
    return sixteenths ? QuantizeBy<true, true, false>(run, sums)
           : squares  ? QuantizeBy<true, false, true>(run, sums)
                      : QuantizeBy<true, false, false>(run, sums);
  }
  return sixteenths ? QuantizeBy<false, true, false>(run, sums)
         : squares  ? QuantizeBy<false, false, true>(run, sums)
                    : QuantizeBy<false, false, false>(run, sums);
}

bool SumUnitAvx512(const UnitRun& run, int32_t* sixteenths) {
  if (run.dim % kColumns != 0) return false;
  const auto bias = static_cast<int32_t>(run.count * static_cast<uint32_t>(kMagicBits));
  for (uint32_t c = 0; c < run.dim; c += kColumns) {
    __m512i sum[2] = {_mm512_set1_epi32(-bias), _mm512_set1_epi32(-bias)};
    __m512 most = _mm512_setzero_ps();
    for (uint32_t r = 0; r < run.count; ++r) {
      const float* x = run.x + size_t{run.rows[r]} * run.dim + c;
      for (uint32_t h = 0; h < 2; ++h) {
        const __m512 inverse = run.inverse ? _mm512_loadu_ps(run.inverse + c + 16 * h)
                                           : _mm512_set1_ps(run.row_inverse[r]);
        const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(x + 16 * h), inverse);
        most = _mm512_max_ps(most, _mm512_abs_ps(y));
        sum[h] = AddMagic(sum[h], y);
      }
    }
    if (_mm512_reduce_max_ps(most) > kMeanLimit) return false;
    for (int h = 0; h < 2; ++h) _mm512_storeu_si512(sixteenths + c + 16 * h, sum[h]);
  }
  return true;
}

}  // namespace latticekv
