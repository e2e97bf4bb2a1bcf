// The kernels on rows with AVX-512 F, BW, VL and DQ: 16 floats or 32 lattice coordinates in a
// register. The coder's are in coder_avx512.cc. Compiled with flags of its own: see kernels.h.
#include <immintrin.h>

#include <algorithm>
#include <array>

#include "core/codec/cpu/avx512_points.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/row_kernels.h"

namespace latticekv {
namespace {

// The first `count` of 16 or 32 elements; kWhole: there are so many, and masks cost nothing.
template <bool kWhole = false>
LKV_INLINE __mmask16 First16(uint32_t count) {
  return static_cast<__mmask16>(kWhole || count >= 16 ? 0xFFFF : (1u << count) - 1);
}
template <bool kWhole>
LKV_INLINE __mmask32 First32(uint32_t count) {
  return kWhole || count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
}
// Calls the function for whole registers where the row is of these alone.
#define LKV_BY_DIM(function, whole, ...) \
  return (whole) ? function<true>(__VA_ARGS__) : function<false>(__VA_ARGS__)
bool Whole(uint32_t dim) { return dim % 32 == 0; }
bool Whole(uint32_t dim, uint32_t pairs) { return dim % 32 == 0 && pairs % 16 == 0; }

// v < limit ? v : limit and then the same from below, as RoundClamped has it.
__m512 Clamp(__m512 v, float limit) {
  v = _mm512_min_ps(v, _mm512_set1_ps(limit));
  return _mm512_max_ps(v, _mm512_set1_ps(-limit));
}
__m512i Round(__m512 v) {
  return _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(v, _mm512_set1_ps(12582912.0f))),
                          _mm512_set1_epi32(0x4B400000));
}

// 16 elements, or those of the mask, as floats.
LKV_INLINE __m512 LoadElements(DType dtype, const std::byte* src, __mmask16 mask) {
  if (dtype == DType::kF32) return _mm512_maskz_loadu_ps(mask, src);
  const __m256i halves = _mm256_maskz_loadu_epi16(mask, src);
  if (dtype == DType::kF16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Signalling NaNs come out quiet; their vectors are stored bit for bit, so it does not show.
LKV_INLINE void StoreElements(DType dtype, __m512 v, std::byte* dst, __mmask16 mask) {
  const __m512i bits = _mm512_castps_si512(v);
  if (dtype == DType::kF16) {
    // Saturating: what the clamp lets through rounds to a finite number.
    _mm256_mask_storeu_epi16(
        dst, mask,
        _mm512_cvtps_ph(Clamp(v, 65504.0f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return;
  }
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF));
  if (dtype == DType::kF32) {
    const __mmask16 infinite = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7F800000));
    _mm512_mask_storeu_epi32(dst, mask,
                             _mm512_mask_sub_epi32(bits, infinite, bits, _mm512_set1_epi32(1)));
    return;
  }
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(magnitude, _mm512_set1_epi32(0x7FFF)), odd);
  rounded = _mm512_min_epu32(_mm512_srli_epi32(rounded, 16), _mm512_set1_epi32(0x7F7F));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x8000));
  _mm256_mask_storeu_epi16(dst, mask, _mm512_cvtepi32_epi16(_mm512_or_si512(sign, rounded)));
}

// cos and sin of 16 pairs apart.
LKV_INLINE void LoadAngles(const SinCos* angle, uint32_t count, __m512& cos, __m512& sin) {
  const float* p = reinterpret_cast<const float*>(angle);
  const __m512 a = _mm512_maskz_loadu_ps(First16(2 * count), p);
  const __m512 b = count > 8 ? _mm512_maskz_loadu_ps(First16(2 * count - 16), p + 16) : a;
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  cos = _mm512_permutex2var_ps(a, even, b);
  sin = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}

// Turns the pairs (x[i], x[i + pairs]) forwards, or backwards.
template <bool kForwards, bool kWhole = false>
void Turn(const SinCos* angle, uint32_t pairs, float* x) {
  for (uint32_t i = 0; i < pairs; i += 16) {
    const __mmask16 mask = First16<kWhole>(pairs - i);
    __m512 cos, sin;
    LoadAngles(angle + i, kWhole || pairs - i >= 16 ? 16 : pairs - i, cos, sin);
    const __m512 a = _mm512_maskz_loadu_ps(mask, x + i);
    const __m512 b = _mm512_maskz_loadu_ps(mask, x + i + pairs);
    const __m512 ac = _mm512_mul_ps(a, cos), bs = _mm512_mul_ps(b, sin);
    const __m512 bc = _mm512_mul_ps(b, cos), as = _mm512_mul_ps(a, sin);
    _mm512_mask_storeu_ps(x + i, mask, kForwards ? _mm512_sub_ps(ac, bs) : _mm512_add_ps(ac, bs));
    _mm512_mask_storeu_ps(x + i + pairs, mask,
                          kForwards ? _mm512_add_ps(bc, as) : _mm512_sub_ps(bc, as));
  }
}

// Bits of all elements and which of them were not finite.
struct Found {
  __m512i any = _mm512_setzero_si512();
  __mmask16 infinite = 0;
  LKV_INLINE void Look(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v), exponent = _mm512_set1_epi32(0x7F800000);
    infinite |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, exponent), exponent);
  }
  LKV_INLINE void LookAtStored(__m512 v) {
    any = _mm512_or_si512(any, _mm512_castps_si512(v));
    Look(v);
  }
  uint32_t flags() const {
    return (_mm512_test_epi32_mask(any, any) ? kRowNotZero : 0) | (infinite ? kRowNotFinite : 0);
  }
};

// Canonical order is the layout's: one pass.
template <DType kType, bool kWhole>
uint32_t LoadInOrder(const SourceRow& row, float* canonical) {
  const size_t bytes = kType == DType::kF32 ? 4 : 2;
  const uint32_t pairs = row.pairs;
  Found found;
  for (uint32_t i = 0; i < pairs; i += 16) {
    const __mmask16 mask = First16<kWhole>(pairs - i);
    __m512 cos, sin;
    LoadAngles(row.angle + i, kWhole || pairs - i >= 16 ? 16 : pairs - i, cos, sin);
    const __m512 a = LoadElements(kType, row.src + i * bytes, mask);
    const __m512 b = LoadElements(kType, row.src + (i + pairs) * bytes, mask);
    found.LookAtStored(a);
    found.LookAtStored(b);
    const __m512 x = _mm512_add_ps(_mm512_mul_ps(a, cos), _mm512_mul_ps(b, sin));
    const __m512 y = _mm512_sub_ps(_mm512_mul_ps(b, cos), _mm512_mul_ps(a, sin));
    found.Look(x);
    found.Look(y);
    _mm512_mask_storeu_ps(canonical + i, mask, x);
    _mm512_mask_storeu_ps(canonical + i + pairs, mask, y);
  }
  for (uint32_t c = 2 * pairs; c < row.dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(row.dim - c);
    const __m512 x = LoadElements(kType, row.src + c * bytes, mask);
    _mm512_mask_storeu_ps(canonical + c, mask, x);
    found.LookAtStored(x);
  }
  return found.flags();
}

uint32_t LoadPermuted(const SourceRow& row, float* canonical) {
  const size_t bytes = DTypeBytes(row.dtype);
  float stored[limits::kMaxHeadDim];
  Found found;
  for (uint32_t c = 0; c < row.dim; c += 16) {
    const __mmask16 mask = First16(row.dim - c);
    const __m512 x = LoadElements(row.dtype, row.src + c * bytes, mask);
    _mm512_mask_storeu_ps(stored + c, mask, x);
    found.LookAtStored(x);
  }
  for (uint32_t c = 0; c < row.dim; c += 16) {
    const __mmask16 mask = First16(row.dim - c);
    const __m512i places = _mm512_maskz_loadu_epi32(mask, row.order + c);
    const __m512 x = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, places, stored, 4);
    _mm512_mask_storeu_ps(canonical + c, mask, x);
  }
  Turn<false>(row.angle, row.pairs, canonical);
  for (uint32_t c = 0; c < row.dim; c += 16) {
    found.Look(_mm512_maskz_loadu_ps(First16(row.dim - c), canonical + c));
  }
  return found.flags();
}

template <bool kWhole>
uint32_t LoadByType(const SourceRow& row, float* canonical) {
  switch (row.dtype) {
    case DType::kF16:
      return LoadInOrder<DType::kF16, kWhole>(row, canonical);
    case DType::kBF16:
      return LoadInOrder<DType::kBF16, kWhole>(row, canonical);
    default:
      return LoadInOrder<DType::kF32, kWhole>(row, canonical);
  }
}

uint32_t LoadVector(const SourceRow& row, float* canonical) {
  if (row.order != nullptr) return LoadPermuted(row, canonical);
  LKV_BY_DIM(LoadByType, Whole(row.dim, row.pairs), row, canonical);
}

// Adds the squares of 16 numbers in two halves.
LKV_INLINE __m512i AddSquaresWide(__m512i sum, __m512i v) {
  const __m512i n = _mm512_abs_epi32(v), odd = _mm512_srli_epi64(n, 32);
  return _mm512_add_epi64(sum,
                          _mm512_add_epi64(_mm512_mul_epu32(n, n), _mm512_mul_epu32(odd, odd)));
}

// Sums of 16 numbers of 32 bits each, unsigned.
LKV_INLINE uint64_t SumUnsigned(__m512i v) {
  const __m512i low = _mm512_and_si512(v, _mm512_set1_epi64(0xFFFFFFFF));
  return static_cast<uint64_t>(
      _mm512_reduce_add_epi64(_mm512_add_epi64(low, _mm512_srli_epi64(v, 32))));
}

template <bool kWhole>
RowNorm NormOf(const float* x, uint32_t dim) {
  __m512i most = _mm512_setzero_si512();
  for (uint32_t c = 0; c < dim; c += 16) {
    const __m512 v = _mm512_abs_ps(_mm512_maskz_loadu_ps(First16<kWhole>(dim - c), x + c));
    most = _mm512_max_epu32(most, _mm512_castps_si512(v));
  }
  const uint32_t largest = _mm512_reduce_max_epu32(most);
  const __m512 scale = _mm512_set1_ps(IntegerScale(ExponentOf(largest)));
  uint64_t energy = 0;
  for (uint32_t begin = 0; begin < dim; begin += 128) {
    __m512i sum = _mm512_setzero_si512();  // each at most 4 * 2 * 2^28
    for (uint32_t c = begin; c < dim && c < begin + 128; c += 32) {
      const auto units = [&](uint32_t at) {
        const __mmask16 mask = kWhole ? 0xFFFF : at < dim ? First16(dim - at) : __mmask16{0};
        return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + at), scale));
      };
      const __m512i v = _mm512_packs_epi32(units(c), units(c + 16));
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(v, v));
    }
    energy += SumUnsigned(sum);
  }
  return {largest, energy};
}
RowNorm Norm(const float* x, uint32_t dim) { LKV_BY_DIM(NormOf, Whole(dim), x, dim); }

// 16 coordinates in 1/256 of steps.
LKV_INLINE __m512 Scaled(const ScaledRow& row, uint32_t c, __mmask16 mask) {
  const __m512 inverse =
      row.inverse ? _mm512_maskz_loadu_ps(mask, row.inverse + c) : _mm512_set1_ps(row.row_inverse);
  return _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row.x + c), inverse);
}

template <bool kWhole>
void AddSixteenthsOf(const ScaledRow& row, int32_t* sum) {
  for (uint32_t c = 0; c < row.dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(row.dim - c);
    const __m512 y = _mm512_mul_ps(Scaled(row, c, mask), _mm512_set1_ps(0.0625f));
    const __m512i z = _mm512_cvtps_epi32(Clamp(y, kRoundLimit));
    _mm512_mask_storeu_epi32(sum + c, mask,
                             _mm512_add_epi32(_mm512_maskz_loadu_epi32(mask, sum + c), z));
  }
}
void AddSixteenths(const ScaledRow& row, int32_t* sum) {
  LKV_BY_DIM(AddSixteenthsOf, Whole(row.dim), row, sum);
}

// The three exchanges that bring each of a group's eight 16-bit numbers to every place.
__m512i Exchange4(__m512i v) { return _mm512_shuffle_epi32(v, _MM_PERM_BADC); }
__m512i Exchange2(__m512i v) { return _mm512_shuffle_epi32(v, _MM_PERM_CDAB); }
__m512i Exchange1(__m512i v) { return _mm512_rol_epi32(v, 16); }

__m512i GroupMax(__m512i v) {
  v = _mm512_max_epi16(v, Exchange4(v));
  v = _mm512_max_epi16(v, Exchange2(v));
  return _mm512_max_epi16(v, Exchange1(v));
}
__m512i GroupMin(__m512i v) {
  v = _mm512_min_epi16(v, Exchange4(v));
  v = _mm512_min_epi16(v, Exchange2(v));
  return _mm512_min_epi16(v, Exchange1(v));
}
__m512i GroupSum(__m512i v) {
  v = _mm512_add_epi16(v, Exchange4(v));
  v = _mm512_add_epi16(v, Exchange2(v));
  return _mm512_add_epi16(v, Exchange1(v));
}

// NearestE8 (e8.h) of four groups. Errors are scaled by 16, with the place below.
LKV_INLINE __m512i NearestPoints(__m512i k, __m512i fraction) {
  const __m512i two = _mm512_set1_epi16(2);
  const __m512i forward = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7));
  const __mmask32 up = _mm512_cmpge_epi16_mask(fraction, _mm512_set1_epi16(128));
  const __m512i a = _mm512_mask_sub_epi16(fraction, up, _mm512_set1_epi16(256), fraction);
  const __m512i a16 = _mm512_slli_epi16(a, 4);
  const __m512i rising = _mm512_or_si512(a16, forward);
  // Less 2048, half a step: how much nearer than half a step the integer is.
  const __m512i falling =
      _mm512_add_epi16(a16, _mm512_sub_epi16(_mm512_set1_epi16(7 - 2048), forward));
  const __m512i largest = GroupMax(falling), smallest = GroupMin(rising);
  // Errors sum to 1024 at most; above them the number of odd k, up to 8, and the parity of the
  // number rounded up.
  const __m512i odd_k = _mm512_slli_epi16(k, 11), up_bit = _mm512_slli_epi16(fraction, 8);
  const __m512i parities =
      _mm512_and_si512(_mm512_ternarylogic_epi32(_mm512_set1_epi16(0x0800), odd_k, up_bit, 0xCA),
                       _mm512_set1_epi16(static_cast<int16_t>(0x8800)));
  const __m512i sums = GroupSum(_mm512_add_epi16(a, parities));
  const __mmask32 odd_half = _mm512_test_epi16_mask(sums, _mm512_set1_epi16(2048));
  const __mmask32 odd_whole = odd_half ^ _mm512_movepi16_mask(sums);
  // The squared distance to the half coset less that to the integers, in 2^-11.
  const __m512i errors_only = _mm512_set1_epi16(-16);
  __m512i difference =
      _mm512_sub_epi16(_mm512_set1_epi16(4096),
                       _mm512_slli_epi16(_mm512_and_si512(sums, _mm512_set1_epi16(2047)), 3));
  difference = _mm512_mask_add_epi16(difference, odd_half, difference,
                                     _mm512_and_si512(smallest, errors_only));
  difference = _mm512_mask_add_epi16(difference, odd_whole, difference,
                                     _mm512_and_si512(largest, errors_only));
  const __mmask32 half = _mm512_movepi16_mask(difference);
  const __m512i k2 = _mm512_add_epi16(k, k);
  const __m512i out = _mm512_mask_blend_epi16(half, _mm512_mask_add_epi16(k2, up, k2, two),
                                              _mm512_add_epi16(k2, _mm512_set1_epi16(1)));
  const __mmask32 fix = _mm512_mask_cmpeq_epi16_mask(half & odd_half, rising, smallest) |
                        _mm512_mask_cmpeq_epi16_mask(~half & odd_whole, falling, largest);
  const __m512i step = _mm512_mask_blend_epi16(up ^ half, two, _mm512_set1_epi16(-2));
  return _mm512_mask_add_epi16(out, fix, out, step);
}

// 16 coordinates less their offset, rounded; `largest` collects what tells that one is too large
// (the conversion makes what is beyond 32 bits the smallest number).
constexpr uint32_t kMostShifted = 2 * kRoundLimitInteger - 2;
LKV_INLINE __m512i Units(const ScaledRow& row, const float* offset, uint32_t c, __mmask16 mask,
                         __m512i& largest) {
  const __m512i z = _mm512_cvtps_epi32(
      _mm512_sub_ps(Scaled(row, c, mask), _mm512_maskz_loadu_ps(mask, offset + c)));
  largest =
      _mm512_max_epu32(largest, _mm512_add_epi32(z, _mm512_set1_epi32(kRoundLimitInteger - 1)));
  return z;
}

template <bool kWhole>
uint32_t QuantizeBy(const ScaledRow& row, const float* offset, int16_t* q2) {
  const __m512i low_words =
      _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                       24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  __m512i largest = _mm512_setzero_si512();
  for (uint32_t c = 0; c < row.dim; c += 32) {
    const uint32_t left = row.dim - c;
    const __m512i a = Units(row, offset, c, First16<kWhole>(left), largest);
    const __m512i b = left > 16 ? Units(row, offset, c + 16, First16<kWhole>(left - 16), largest)
                                : _mm512_setzero_si512();
    const __m512i whole =
        _mm512_permutex2var_epi16(_mm512_srai_epi32(a, 8), low_words, _mm512_srai_epi32(b, 8));
    const __m512i fraction =
        _mm512_and_si512(_mm512_permutex2var_epi16(a, low_words, b), _mm512_set1_epi16(255));
    const __mmask32 mask = First32<kWhole>(left);
    _mm512_mask_storeu_epi16(q2 + c, mask, NearestPoints(whole, fraction));
  }
  return _mm512_cmpgt_epu32_mask(largest, _mm512_set1_epi32(static_cast<int>(kMostShifted)));
}
uint32_t QuantizeVector(const ScaledRow& row, const float* offset, int16_t* q2) {
  LKV_BY_DIM(QuantizeBy, Whole(row.dim), row, offset, q2);
}

template <bool kWhole>
uint32_t CheckRowOf(const int16_t* q2, const PointLimits& limits, uint32_t dim, uint32_t* halves) {
  __mmask32 out = 0;
  uint32_t found = 0;
  for (uint32_t c = 0; c < dim; c += 32) {
    const uint32_t left = dim - c;
    const __mmask32 mask = First32<kWhole>(left);
    const __m512i q = _mm512_maskz_loadu_epi16(mask, q2 + c);
    const __m512i low = _mm512_maskz_loadu_epi16(mask, limits.low + c);
    const __mmask32 half = _mm512_test_epi16_mask(q, _mm512_set1_epi16(1));
    const __m512i high = _mm512_maskz_loadu_epi16(mask, limits.high + c);
    out |= _mm512_cmplt_epi16_mask(q, low) | _mm512_cmpgt_epi16_mask(q, high);
    found += static_cast<uint32_t>(__builtin_popcount(half & 0x01010101));
  }
  *halves += found;
  return out;
}
uint32_t CheckRow(const int16_t* q2, const PointLimits& limits, uint32_t dim, uint32_t* halves) {
  LKV_BY_DIM(CheckRowOf, Whole(dim), q2, limits, dim, halves);
}

template <bool kWhole>
uint64_t RowCostOf(const int16_t* q2, const EncodeCode* codes, uint32_t dim) {
  const uint32_t* points = Tables().points.data();
  __m512i cost = _mm512_setzero_si512();  // each at most 64 * 2^12
  for (uint32_t c = 0; c < dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(dim - c);
    const __m512i q = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, q2 + c));
    const __m512i places = PointPlaces(_mm512_maskz_loadu_epi32(mask, codes + c), q);
    const __m512i entries =
        _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, places, points, 4);
    cost = _mm512_add_epi32(cost, _mm512_srli_epi32(entries, kPointCostShift));
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi32(cost));
}
uint64_t RowCost(const int16_t* q2, const EncodeCode* codes, uint32_t dim) {
  LKV_BY_DIM(RowCostOf, Whole(dim), q2, codes, dim);
}

// The costs of a channel's coordinates in as few registers as hold them.
template <int kRegisters>
struct ChannelCosts {
  __m512i part[kRegisters];
  __m128i shift;
  LKV_INLINE explicit ChannelCosts(EncodeCode code)
      : shift(_mm_cvtsi32_si128(static_cast<int>(code >> kEncodeShiftAt))) {
    const uint16_t* table = Tables().point_costs.data() + (code & 0xFFFF);
    const uint16_t* end = table + kPointEntries;
    if constexpr (kRegisters == 1) {
      // Entries -16 .. 15, which the low five bits tell apart.
      const auto half = [](const uint16_t* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      };
      part[0] = _mm512_inserti64x4(_mm512_castsi256_si512(half(table)), half(end - 16), 1);
    } else {
      for (int i = 0; i < kRegisters; ++i) {
        part[i] =
            _mm512_loadu_si512(i < kRegisters / 2 ? table + 32 * i : end - 32 * (kRegisters - i));
      }
    }
  }
  LKV_INLINE __m512i Of(__m512i q2) const {
    if constexpr (kRegisters == 1) return _mm512_permutexvar_epi16(q2, part[0]);
    const __m512i at = _mm512_sra_epi16(q2, shift);
    if constexpr (kRegisters == 2) return _mm512_permutex2var_epi16(part[0], at, part[1]);
    if constexpr (kRegisters == 4) {
      const __m512i near = _mm512_permutex2var_epi16(part[0], at, part[1]);
      const __m512i far = _mm512_permutex2var_epi16(part[2], at, part[3]);
      return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(at, _mm512_set1_epi16(64)), near, far);
    }
  }
};

// How many registers hold the costs of a table's entries.
int CostRegisters(EncodeCode code) {
  static constexpr auto kReach = [] {
    std::array<uint8_t, kEntropyTables> out{};
    for (int s = 0; s < kEntropyTables; ++s) out[s] = static_cast<uint8_t>(SpreadLimit(s));
    return out;
  }();
  const bool low_bits = code >> kEncodeShiftAt != 0;
  const int reach = kReach[(code & 0xFFFF) / (kPointKinds * kPointEntries)] << !low_bits;
  return reach < 16 && !low_bits ? 1 : reach < 32 ? 2 : 4;
}

// Of eight channels from `c` on: 32 rows at a time, whose coordinates of a channel are looked up at
// once without gathers. At least 32 rows.
template <int kRegisters>
uint64_t GroupCost(const int16_t* q2, uint32_t rows, uint32_t dim, const EncodeCode* codes) {
  const __m512i ones = _mm512_set1_epi16(1);
  // 32 lanes of 8 * 8 costs of 2560 at most in pairs.
  __m512i total = _mm512_setzero_si512();
  __mmask32 mask = ~__mmask32{0};
  for (uint32_t r = 0; r < rows; r += 32) {
    // The last rows share their register with some that are counted already.
    if (r + 32 > rows) {
      mask <<= r + 32 - rows;
      r = rows - 32;
    }
    __m512i v[8];
    for (uint32_t j = 0; j < 8; ++j) {
      const auto row = [&](uint32_t i) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(q2 + size_t{r + j + 8 * i} * dim));
      };
      v[j] = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
      v[j] = _mm512_inserti32x4(v[j], row(2), 2);
      v[j] = _mm512_inserti32x4(v[j], row(3), 3);
    }
    Transpose8x8(v);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 8; ++i) {
      sum = _mm512_add_epi16(sum, ChannelCosts<kRegisters>(codes[i]).Of(v[i]));
    }
    total = _mm512_add_epi32(total, _mm512_madd_epi16(_mm512_maskz_mov_epi16(mask, sum), ones));
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi32(total));
}

uint64_t PointCost(const int16_t* q2, uint32_t rows, uint32_t dim, const EncodeCode* codes) {
  uint64_t total = 0;
  if (rows < 32) {
    for (uint32_t r = 0; r < rows; ++r) total += RowCost(q2 + size_t{r} * dim, codes, dim);
    return total;
  }
  for (uint32_t c = 0; c < dim; c += 8) {
    int registers = 1;
    for (uint32_t i = c; i < c + 8; ++i) registers = std::max(registers, CostRegisters(codes[i]));
    const auto cost = registers == 1 ? GroupCost<1> : registers == 2 ? GroupCost<2> : GroupCost<4>;
    total += cost(q2 + c, rows, dim, codes + c);
  }
  return total;
}

template <bool kWhole>
void RebuildBy(const LatticeRow& row, float* scratch, float* out) {
  float* x = row.order == nullptr ? out : scratch;
  for (uint32_t c = 0; c < row.dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(row.dim - c);
    const __m512i q = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, row.q2 + c));
    const __m512i quarters =
        _mm512_add_epi32(_mm512_add_epi32(q, q), _mm512_maskz_loadu_epi32(mask, row.mean + c));
    const __m512 step =
        row.step ? _mm512_maskz_loadu_ps(mask, row.step + c) : _mm512_set1_ps(row.row_step);
    _mm512_mask_storeu_ps(x + c, mask, _mm512_mul_ps(_mm512_cvtepi32_ps(quarters), step));
  }
  Turn<true, kWhole>(row.angle, row.pairs, x);
  if (row.order == nullptr) return;
  for (uint32_t c = 0; c < row.dim; ++c) out[row.order[c]] = x[c];
}
void RebuildVector(const LatticeRow& row, float* scratch, float* out) {
  LKV_BY_DIM(RebuildBy, Whole(row.dim, row.pairs), row, scratch, out);
}

template <bool kWhole>
void StoreBy(DType dtype, const float* x, uint32_t dim, std::byte* dst) {
  const size_t bytes = DTypeBytes(dtype);
  for (uint32_t c = 0; c < dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(dim - c);
    StoreElements(dtype, _mm512_maskz_loadu_ps(mask, x + c), dst + c * bytes, mask);
  }
}
void StoreVector(DType dtype, const float* x, uint32_t dim, std::byte* dst) {
  LKV_BY_DIM(StoreBy, Whole(dim), dtype, x, dim, dst);
}

template <bool kWhole>
void CastBy(DType dtype, float* x, uint32_t dim) {
  alignas(64) std::byte stored[64];
  for (uint32_t c = 0; c < dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(dim - c);
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + c);
    if (dtype == DType::kF16) {
      const __m256i half =
          _mm512_cvtps_ph(Clamp(v, 65504.0f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm512_mask_storeu_ps(x + c, mask, _mm512_cvtph_ps(half));
      continue;
    }
    StoreElements(dtype, v, stored, 0xFFFF);
    _mm512_mask_storeu_ps(x + c, mask, LoadElements(dtype, stored, 0xFFFF));
  }
}
void CastVector(DType dtype, float* x, uint32_t dim) {
  LKV_BY_DIM(CastBy, Whole(dim), dtype, x, dim);
}

// Squared error in 1/256 step, at most 4095^2. What the conversion cannot hold it makes -2^31.
LKV_INLINE __m512i SquaredErrors(__m512 error, __m512 inverse) {
  const __m512i e = _mm512_min_epu32(
      _mm512_abs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(error, inverse))), _mm512_set1_epi32(4095));
  return _mm512_madd_epi16(e, e);
}

template <bool kWhole>
void AddErrorsOf(const float* back, const float* exact, const float* inverse, uint32_t dim,
                 uint32_t* squares) {
  for (uint32_t c = 0; c < dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(dim - c);
    const __m512 error = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, back + c),
                                       _mm512_maskz_loadu_ps(mask, exact + c));
    const __m512i e = SquaredErrors(error, _mm512_maskz_loadu_ps(mask, inverse + c));
    _mm512_mask_storeu_epi32(squares + c, mask,
                             _mm512_add_epi32(e, _mm512_maskz_loadu_epi32(mask, squares + c)));
  }
}
void AddErrors(const float* back, const float* exact, const float* inverse, uint32_t dim,
               uint32_t* squares) {
  LKV_BY_DIM(AddErrorsOf, Whole(dim), back, exact, inverse, dim, squares);
}

// Squared errors and squared norm of a vector in 1/256 step. The norm is a sum in 32 bits as long
// as the coordinates are small, and is otherwise taken again.
struct RelativeSum {
  static constexpr uint32_t kSmall = 1 << 13;
  const __m512 scale;
  __m512i e = _mm512_setzero_si512(), v = e, most = e;  // e: at most 32 * 2^25 each
  explicit RelativeSum(float inverse) : scale(_mm512_set1_ps(inverse)) {}
  // Two registers of what there will be, and of what there was.
  LKV_INLINE void Add(__m512 back0, __m512 exact0, __m512 back1, __m512 exact1) {
    const __m512i errors =
        _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(back0, exact0), scale)),
                           _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(back1, exact1), scale)));
    const __m512i clamped = _mm512_min_epu16(_mm512_abs_epi16(errors), _mm512_set1_epi16(4095));
    e = _mm512_add_epi32(e, _mm512_madd_epi16(clamped, clamped));
    const __m512i units = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(exact0, scale)),
                                             _mm512_cvtps_epi32(_mm512_mul_ps(exact1, scale)));
    v = _mm512_add_epi32(v, _mm512_madd_epi16(units, units));
    most = _mm512_max_epu16(most, _mm512_abs_epi16(units));
  }
  LKV_INLINE void Add(__m512 back, __m512 exact) {
    Add(back, exact, _mm512_setzero_ps(), _mm512_setzero_ps());
  }
  // False: `norm` is another.
  LKV_INLINE bool AddTo(uint32_t dim, uint64_t* error, uint64_t* norm) const {
    *error += SumUnsigned(e);
    const __mmask32 large =
        _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(static_cast<int16_t>(kSmall)));
    if (large != 0 || dim > 512) return false;
    *norm += SumUnsigned(v);
    return true;
  }
};

// The squared norm, whatever its size.
template <typename LoadExact>
uint64_t LargeNorm(uint32_t dim, float inverse, LoadExact load) {
  __m512i v = _mm512_setzero_si512();
  for (uint32_t c = 0; c < dim; c += 16) {
    const __m512 units = _mm512_mul_ps(load(c, First16(dim - c)), _mm512_set1_ps(inverse));
    v = AddSquaresWide(v, Round(Clamp(units, kRoundLimit)));
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(v));
}

template <bool kWhole>
void AddRelativeOf(const float* back, const float* exact, float inverse, uint32_t dim,
                   uint64_t* error, uint64_t* norm) {
  RelativeSum sum(inverse);
  for (uint32_t c = 0; c < dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(dim - c);
    sum.Add(_mm512_maskz_loadu_ps(mask, back + c), _mm512_maskz_loadu_ps(mask, exact + c));
  }
  if (sum.AddTo(dim, error, norm)) return;
  *norm += LargeNorm(dim, inverse, [&](uint32_t c, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, exact + c);
  });
}
void AddRelative(const float* back, const float* exact, float inverse, uint32_t dim,
                 uint64_t* error, uint64_t* norm) {
  LKV_BY_DIM(AddRelativeOf, Whole(dim), back, exact, inverse, dim, error, norm);
}

// A decoder's cast to a dtype and back.
template <DType kType>
LKV_INLINE __m512 CastBack(__m512 v) {
  if (kType == DType::kF16) {
    return _mm512_cvtph_ps(
        _mm512_cvtps_ph(Clamp(v, 65504.0f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  alignas(64) std::byte stored[64];
  StoreElements(kType, v, stored, 0xFFFF);
  return LoadElements(kType, stored, 0xFFFF);
}

// 16 coordinates of a vector to rebuild, before rotation.
LKV_INLINE __m512 Rebuilt(const LatticeRow& row, uint32_t c, __mmask16 mask) {
  const __m512i q = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, row.q2 + c));
  const __m512i quarters =
      _mm512_add_epi32(_mm512_add_epi32(q, q), _mm512_maskz_loadu_epi32(mask, row.mean + c));
  const __m512 step =
      row.step ? _mm512_maskz_loadu_ps(mask, row.step + c) : _mm512_set1_ps(row.row_step);
  return _mm512_mul_ps(_mm512_cvtepi32_ps(quarters), step);
}

// A register of what the decoder will write and of what there was.
struct RebuiltPart {
  uint32_t first;
  __mmask16 mask;
  __m512 back, exact;
};

// Calls sink(part, part) for the registers of a vector in the layout's own order.
template <DType kType, bool kWhole, typename Sink>
LKV_INLINE void ForRebuilt(const MeasuredRow& m, Sink sink) {
  constexpr size_t kBytes = kType == DType::kF32 ? 4 : 2;
  const LatticeRow& row = m.row;
  const uint32_t pairs = row.pairs;
  const auto part = [&](uint32_t c, __mmask16 mask, __m512 x) {
    return RebuiltPart{c, mask, CastBack<kType>(x), LoadElements(kType, m.src + c * kBytes, mask)};
  };
  for (uint32_t i = 0; i < pairs; i += 16) {
    const __mmask16 mask = First16<kWhole>(pairs - i);
    __m512 cos, sin;
    LoadAngles(row.angle + i, kWhole || pairs - i >= 16 ? 16 : pairs - i, cos, sin);
    const __m512 a = Rebuilt(row, i, mask), b = Rebuilt(row, i + pairs, mask);
    sink(part(i, mask, _mm512_sub_ps(_mm512_mul_ps(a, cos), _mm512_mul_ps(b, sin))),
         part(i + pairs, mask, _mm512_add_ps(_mm512_mul_ps(b, cos), _mm512_mul_ps(a, sin))));
  }
  for (uint32_t c = 2 * pairs; c < row.dim; c += 32) {
    const __mmask16 mask = First16<kWhole>(row.dim - c);
    const __mmask16 mask2 = kWhole             ? 0xFFFF
                            : row.dim - c > 16 ? First16(row.dim - c - 16)
                                               : __mmask16{0};
    sink(part(c, mask, Rebuilt(row, c, mask)), part(c + 16, mask2, Rebuilt(row, c + 16, mask2)));
  }
}

template <DType kType, bool kWhole>
void MeasureErrorsOf(const MeasuredRow& m, const float* inverse, uint32_t* squares) {
  const auto add = [&](const RebuiltPart& p) {
    const __m512i e = SquaredErrors(_mm512_sub_ps(p.back, p.exact),
                                    _mm512_maskz_loadu_ps(p.mask, inverse + p.first));
    uint32_t* to = squares + p.first;
    _mm512_mask_storeu_epi32(to, p.mask, _mm512_add_epi32(e, _mm512_maskz_loadu_epi32(p.mask, to)));
  };
  ForRebuilt<kType, kWhole>(m, [&](const RebuiltPart& a, const RebuiltPart& b) {
    add(a);
    add(b);
  });
}

template <DType kType, bool kWhole>
void MeasureRelativeOf(const MeasuredRow& m, float inverse, uint64_t* error, uint64_t* norm) {
  RelativeSum sum(inverse);
  ForRebuilt<kType, kWhole>(m, [&](const RebuiltPart& a, const RebuiltPart& b) {
    sum.Add(a.back, a.exact, b.back, b.exact);
  });
  if (sum.AddTo(m.row.dim, error, norm)) return;
  *norm += LargeNorm(m.row.dim, inverse, [&](uint32_t c, __mmask16 mask) {
    return LoadElements(kType, m.src + c * (kType == DType::kF32 ? 4 : 2), mask);
  });
}

// The function for the dtype and for whole registers, or, where channels are permuted, the steps
// one by one.
#define LKV_BY_ROW(function, m, ...)                                               \
  const bool whole = Whole((m).row.dim, (m).row.pairs);                            \
  if ((m).dtype == DType::kF16) {                                                  \
    return whole ? function<DType::kF16, true>(m, __VA_ARGS__)                     \
                 : function<DType::kF16, false>(m, __VA_ARGS__);                   \
  }                                                                                \
  return (m).dtype == DType::kBF16 ? function<DType::kBF16, false>(m, __VA_ARGS__) \
                                   : function<DType::kF32, false>(m, __VA_ARGS__)

void PairOf(const MeasuredRow& m, row_kernels::RowPair& out) {
  RebuildVector(m.row, out.exact, out.back);
  CastVector(m.dtype, out.back, m.row.dim);
  LoadRow(m.dtype, m.src, m.row.dim, out.exact);
}
void MeasureErrors(const MeasuredRow& m, const float* inverse, uint32_t* squares) {
  if (m.row.order != nullptr) {
    row_kernels::RowPair pair;
    PairOf(m, pair);
    return AddErrors(pair.back, pair.exact, inverse, m.row.dim, squares);
  }
  LKV_BY_ROW(MeasureErrorsOf, m, inverse, squares);
}
void MeasureRelative(const MeasuredRow& m, float inverse, uint64_t* error, uint64_t* norm) {
  if (m.row.order != nullptr) {
    row_kernels::RowPair pair;
    PairOf(m, pair);
    return AddRelative(pair.back, pair.exact, inverse, m.row.dim, error, norm);
  }
  LKV_BY_ROW(MeasureRelativeOf, m, inverse, error, norm);
}

}  // namespace

const CpuKernels kAvx512Kernels = {CodecBackend::kAvx512,
                                   LoadVector,
                                   row_kernels::LargestBits,
                                   Norm,
                                   row_kernels::AddMoments,
                                   AddSixteenths,
                                   QuantizeVector,
                                   QuantizeUnitAvx512,
                                   SumUnitAvx512,
                                   row_kernels::AddSquares,
                                   CheckRow,
                                   PointCost,
                                   RebuildVector,
                                   StoreVector,
                                   CastVector,
                                   AddErrors,
                                   AddRelative,
                                   MeasureErrors,
                                   MeasureRelative,
                                   EncodeRoundsAvx512,
                                   DecodeRoundsAvx512};

}  // namespace latticekv
