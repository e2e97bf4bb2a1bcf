// The kernels with AVX-512 F, BW, VL and DQ: 16 floats, 32 lattice coordinates or half of the
// coder's lanes in a register. Compiled with flags of its own: see kernels.h.
#include <immintrin.h>

#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/row_kernels.h"
#include "core/codec/tile_format.h"

// For what the coder's loops must keep in registers.
#define LKV_INLINE inline __attribute__((always_inline))

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
uint32_t LoadInOrder(const SourceRow& row, float* stored, float* canonical) {
  const size_t bytes = kType == DType::kF32 ? 4 : 2;
  const uint32_t pairs = row.pairs;
  Found found;
  for (uint32_t i = 0; i < pairs; i += 16) {
    const __mmask16 mask = First16<kWhole>(pairs - i);
    __m512 cos, sin;
    LoadAngles(row.angle + i, kWhole || pairs - i >= 16 ? 16 : pairs - i, cos, sin);
    const __m512 a = LoadElements(kType, row.src + i * bytes, mask);
    const __m512 b = LoadElements(kType, row.src + (i + pairs) * bytes, mask);
    _mm512_mask_storeu_ps(stored + i, mask, a);
    _mm512_mask_storeu_ps(stored + i + pairs, mask, b);
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
    _mm512_mask_storeu_ps(stored + c, mask, x);
    _mm512_mask_storeu_ps(canonical + c, mask, x);
    found.LookAtStored(x);
  }
  return found.flags();
}

uint32_t LoadPermuted(const SourceRow& row, float* stored, float* canonical) {
  const size_t bytes = DTypeBytes(row.dtype);
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
uint32_t LoadByType(const SourceRow& row, float* stored, float* canonical) {
  switch (row.dtype) {
    case DType::kF16:
      return LoadInOrder<DType::kF16, kWhole>(row, stored, canonical);
    case DType::kBF16:
      return LoadInOrder<DType::kBF16, kWhole>(row, stored, canonical);
    default:
      return LoadInOrder<DType::kF32, kWhole>(row, stored, canonical);
  }
}

uint32_t LoadVector(const SourceRow& row, float* stored, float* canonical) {
  if (row.order != nullptr) return LoadPermuted(row, stored, canonical);
  LKV_BY_DIM(LoadByType, Whole(row.dim, row.pairs), row, stored, canonical);
}

// Adds the squares of 16 numbers in two halves.
LKV_INLINE __m512i AddSquaresWide(__m512i sum, __m512i v) {
  const __m512i n = _mm512_abs_epi32(v), odd = _mm512_srli_epi64(n, 32);
  return _mm512_add_epi64(sum,
                          _mm512_add_epi64(_mm512_mul_epu32(n, n), _mm512_mul_epu32(odd, odd)));
}

template <bool kWhole>
uint64_t EnergyOf(const float* x, float scale, uint32_t dim) {
  __m512i sum = _mm512_setzero_si512();
  for (uint32_t c = 0; c < dim; c += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(First16<kWhole>(dim - c), x + c);
    sum = AddSquaresWide(sum, Round(_mm512_mul_ps(v, _mm512_set1_ps(scale))));
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
}
uint64_t Energy(const float* x, float scale, uint32_t dim) {
  LKV_BY_DIM(EnergyOf, Whole(dim), x, scale, dim);
}

// 16 coordinates in steps.
LKV_INLINE __m512 Scaled(const ScaledRow& row, uint32_t c, __mmask16 mask) {
  const __m512 inverse =
      row.inverse ? _mm512_maskz_loadu_ps(mask, row.inverse + c) : _mm512_set1_ps(row.row_inverse);
  return _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row.x + c), inverse);
}

template <bool kWhole>
void AddSixteenthsOf(const ScaledRow& row, int32_t* sum) {
  for (uint32_t c = 0; c < row.dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(row.dim - c);
    const __m512 y = _mm512_mul_ps(Scaled(row, c, mask), _mm512_set1_ps(16.0f));
    const __m512i z = Round(Clamp(y, kRoundLimit));
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

// NearestE8 (e8.h) of four groups.
LKV_INLINE __m512i NearestPoints(__m512i k, __m512i fraction) {
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i forward = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7));
  const __mmask32 up = _mm512_cmpge_epi16_mask(fraction, _mm512_set1_epi16(128));
  const __m512i whole = _mm512_mask_add_epi16(k, up, k, one);
  const __m512i a = _mm512_mask_sub_epi16(fraction, up, _mm512_set1_epi16(256), fraction);
  const __m512i a8 = _mm512_slli_epi16(a, 3);
  const __m512i rising = _mm512_add_epi16(a8, forward);
  const __m512i falling = _mm512_add_epi16(a8, _mm512_sub_epi16(_mm512_set1_epi16(7), forward));
  const __m512i largest = GroupMax(falling), smallest = GroupMin(rising);
  // Errors sum to 1024 at most; above them the number of odd k, up to 8.
  const __m512i sums =
      GroupSum(_mm512_add_epi16(a, _mm512_slli_epi16(_mm512_and_si512(k, one), 11)));
  const __m512i sum_error = _mm512_and_si512(sums, _mm512_set1_epi16(2047));
  const __m512i ups = GroupSum(_mm512_maskz_mov_epi16(up, one));
  const __mmask32 odd_half = _mm512_test_epi16_mask(sums, _mm512_set1_epi16(2048));
  const __mmask32 odd_whole = odd_half ^ _mm512_test_epi16_mask(ups, one);
  // The squared distance to the half coset less that to the integers, in 2^-8.
  __m512i difference = _mm512_sub_epi16(_mm512_set1_epi16(512), sum_error);
  difference = _mm512_mask_add_epi16(difference, odd_half, difference,
                                     _mm512_slli_epi16(_mm512_srli_epi16(smallest, 3), 1));
  difference =
      _mm512_mask_sub_epi16(difference, odd_whole, difference,
                            _mm512_sub_epi16(_mm512_set1_epi16(256),
                                             _mm512_slli_epi16(_mm512_srli_epi16(largest, 3), 1)));
  const __mmask32 half = _mm512_movepi16_mask(difference);
  const __m512i out = _mm512_mask_blend_epi16(half, _mm512_add_epi16(whole, whole),
                                              _mm512_add_epi16(_mm512_add_epi16(k, k), one));
  const __mmask32 fix = (half & odd_half & _mm512_cmpeq_epi16_mask(rising, smallest)) |
                        (~half & odd_whole & _mm512_cmpeq_epi16_mask(falling, largest));
  const __m512i step =
      _mm512_mask_blend_epi16(~(up ^ half), _mm512_set1_epi16(-2), _mm512_set1_epi16(2));
  return _mm512_mask_add_epi16(out, fix, out, step);
}

// 16 coordinates less their offset in units of 2^-8; `beyond` collects those too large.
LKV_INLINE __m512i Units(const ScaledRow& row, const float* offset, uint32_t c, __mmask16 mask,
                         __mmask16& beyond) {
  const __m512 y = _mm512_sub_ps(Scaled(row, c, mask), _mm512_maskz_loadu_ps(mask, offset + c));
  const __m512i z = Round(Clamp(_mm512_mul_ps(y, _mm512_set1_ps(256.0f)), kRoundLimit));
  beyond |= _mm512_cmpge_epi32_mask(_mm512_abs_epi32(z), _mm512_set1_epi32(kRoundLimitInteger));
  return z;
}

template <bool kWhole>
uint32_t QuantizeBy(const ScaledRow& row, const float* offset, int16_t* q2) {
  const __m512i low_words =
      _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                       24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  __mmask16 beyond = 0;
  for (uint32_t c = 0; c < row.dim; c += 32) {
    const uint32_t left = row.dim - c;
    const __m512i a = Units(row, offset, c, First16<kWhole>(left), beyond);
    const __m512i b = left > 16 ? Units(row, offset, c + 16, First16<kWhole>(left - 16), beyond)
                                : _mm512_setzero_si512();
    const __m512i whole =
        _mm512_permutex2var_epi16(_mm512_srai_epi32(a, 8), low_words, _mm512_srai_epi32(b, 8));
    const __m512i fraction =
        _mm512_and_si512(_mm512_permutex2var_epi16(a, low_words, b), _mm512_set1_epi16(255));
    const __mmask32 mask = First32<kWhole>(left);
    _mm512_mask_storeu_epi16(q2 + c, mask, NearestPoints(whole, fraction));
  }
  return beyond;
}
uint32_t QuantizeVector(const ScaledRow& row, const float* offset, int16_t* q2) {
  LKV_BY_DIM(QuantizeBy, Whole(row.dim), row, offset, q2);
}

template <bool kWhole>
uint32_t IsOutlierOf(const int16_t* q2, const PointLimits& limits, uint32_t dim) {
  __mmask32 out = 0;
  for (uint32_t c = 0; c < dim; c += 32) {
    const uint32_t left = dim - c;
    const __mmask32 mask = First32<kWhole>(left);
    const __m512i q = _mm512_maskz_loadu_epi16(mask, q2 + c);
    const __m512i low = _mm512_maskz_loadu_epi16(mask, limits.low + c);
    const __m512i high =
        _mm512_mask_blend_epi16(_mm512_test_epi16_mask(q, _mm512_set1_epi16(1)),
                                _mm512_maskz_loadu_epi16(mask, limits.high_whole + c),
                                _mm512_maskz_loadu_epi16(mask, limits.high_half + c));
    out |= _mm512_cmplt_epi16_mask(q, low) | _mm512_cmpgt_epi16_mask(q, high);
  }
  return out;
}
uint32_t IsOutlier(const int16_t* q2, const PointLimits& limits, uint32_t dim) {
  LKV_BY_DIM(IsOutlierOf, Whole(dim), q2, limits, dim);
}

// Places in EntropyTables::packed of 16 coordinates; `last` are those with the last place of their
// group.
LKV_INLINE __m512i PackedPlaces(__m512i code, __m512i q2, __mmask16 last) {
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i k = _mm512_srai_epi32(q2, 1);
  const __m512i low = _mm512_srli_epi32(code, kPointLowBitsShift);
  const __mmask16 plain = _mm512_testn_epi32_mask(low, low);
  __m512i table = _mm512_and_si512(code, _mm512_set1_epi32(255));
  table = _mm512_mask_add_epi32(table, plain & _mm512_test_epi32_mask(q2, one), table,
                                _mm512_set1_epi32(3));
  table = _mm512_mask_add_epi32(table, plain & last, table,
                                _mm512_add_epi32(one, _mm512_and_si512(k, one)));
  static_assert(kPackedStride == 128);
  return _mm512_add_epi32(
      _mm512_slli_epi32(table, 7),
      _mm512_add_epi32(_mm512_srav_epi32(k, low), _mm512_set1_epi32(kSymbolOffset)));
}

template <bool kWhole>
uint64_t PointCostOf(const int16_t* q2, const PointCode* codes, uint32_t dim) {
  const uint32_t* packed = Tables().packed.data();
  __m512i cost = _mm512_setzero_si512();  // each at most 64 * 2^12
  for (uint32_t c = 0; c < dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(dim - c);
    const __m512i q = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, q2 + c));
    const __m512i places = PackedPlaces(_mm512_maskz_loadu_epi32(mask, codes + c), q, 0x8080);
    const __m512i entries =
        _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, places, packed, 4);
    cost = _mm512_add_epi32(cost, _mm512_srli_epi32(entries, kPackedCostShift));
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi32(cost));
}
uint64_t PointCost(const int16_t* q2, const PointCode* codes, uint32_t dim) {
  LKV_BY_DIM(PointCostOf, Whole(dim), q2, codes, dim);
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

// Squared error in 1/256 step, at most 4095^2.
__m512i SquaredErrors(__m512 error, __m512 inverse) {
  const __m512 e = _mm512_mul_ps(_mm512_mul_ps(error, inverse), _mm512_set1_ps(256.0f));
  const __m512i rounded = Round(Clamp(e, 4095.0f));
  return _mm512_mullo_epi32(rounded, rounded);
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

template <bool kWhole>
void AddRelativeOf(const float* back, const float* exact, float inverse, uint32_t dim,
                   uint64_t* error, uint64_t* norm) {
  const __m512 scale = _mm512_set1_ps(inverse);
  __m512i e = _mm512_setzero_si512(), v = e;  // e: at most 64 * 2^24 each
  for (uint32_t c = 0; c < dim; c += 16) {
    const __mmask16 mask = First16<kWhole>(dim - c);
    const __m512 x = _mm512_maskz_loadu_ps(mask, exact + c);
    e = _mm512_add_epi32(
        e, SquaredErrors(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, back + c), x), scale));
    const __m512 units = _mm512_mul_ps(_mm512_mul_ps(x, scale), _mm512_set1_ps(256.0f));
    v = AddSquaresWide(v, Round(Clamp(units, kRoundLimit)));
  }
  const __m512i wide = _mm512_add_epi64(_mm512_srli_epi64(e, 32),
                                        _mm512_and_si512(e, _mm512_set1_epi64(0xFFFFFFFF)));
  *error += static_cast<uint64_t>(_mm512_reduce_add_epi64(wide));
  *norm += static_cast<uint64_t>(_mm512_reduce_add_epi64(v));
}
void AddRelative(const float* back, const float* exact, float inverse, uint32_t dim,
                 uint64_t* error, uint64_t* norm) {
  LKV_BY_DIM(AddRelativeOf, Whole(dim), back, exact, inverse, dim, error, norm);
}

// Rows of eight registers become columns within each 128 bits.
LKV_INLINE void Transpose8x8(__m512i v[8]) {
  __m512i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
    a[i + 4] = _mm512_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int h = 0; h < 2; ++h) {
      b[4 * h + i] = _mm512_unpacklo_epi32(a[4 * h + 2 * i], a[4 * h + 2 * i + 1]);
      b[4 * h + 2 + i] = _mm512_unpackhi_epi32(a[4 * h + 2 * i], a[4 * h + 2 * i + 1]);
    }
  }
  for (int p = 0; p < 4; ++p) {
    v[2 * p] = _mm512_unpacklo_epi64(b[2 * p], b[2 * p + 1]);
    v[2 * p + 1] = _mm512_unpackhi_epi64(b[2 * p], b[2 * p + 1]);
  }
}

// Half of the decoder's lanes.
struct Lanes {
  __m512i x;

  // Lanes below 2^16 take the next words, in order.
  void Renormalise(const std::byte*& next) {
    const __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(1 << 16));
    const __m512i words =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(next)));
    const __m512i taken = _mm512_maskz_expand_epi32(low, words);
    x = _mm512_mask_or_epi32(x, low, _mm512_slli_epi32(x, 16), taken);
    next += 2 * static_cast<uint32_t>(__builtin_popcount(static_cast<uint32_t>(low)));
  }
  __m512i slot() const { return _mm512_and_si512(x, _mm512_set1_epi32(kProbabilityTotal - 1)); }
  // Lanes in the half coset; renormalisation is the caller's.
  __mmask16 Coset(__m512i half_frequency, __m512i whole_frequency) {
    const __m512i s = slot();
    const __mmask16 half = _mm512_cmpge_epu32_mask(s, whole_frequency);
    const __m512i frequency = _mm512_mask_blend_epi32(half, whole_frequency, half_frequency);
    x = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(x, kProbabilityBits)),
                         _mm512_mask_sub_epi32(s, half, s, whole_frequency));
    return half;
  }
  __m512i Symbol(__m512i table, const uint32_t* decode) {
    const __m512i place = _mm512_or_si512(_mm512_slli_epi32(table, kProbabilityBits), slot());
    const __m512i entry = _mm512_i32gather_epi32(place, decode, 4);
    const __m512i ten = _mm512_set1_epi32(1023);
    const __m512i frequency =
        _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(entry, 10), ten), _mm512_set1_epi32(1));
    x = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(x, kProbabilityBits)),
                         _mm512_and_si512(entry, ten));
    return _mm512_srai_epi32(entry, 22);
  }
  __m512i Bits(__m512i count) {
    const __m512i all = _mm512_set1_epi32(-1);
    const __m512i bits = _mm512_andnot_si512(_mm512_sllv_epi32(all, count), x);
    x = _mm512_srlv_epi32(x, count);
    return bits;
  }
};

__m512i Pack(__m512i a, __m512i b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)),
                            _mm512_cvtepi32_epi16(b), 1);
}

// Symbols and raw bits of coordinate `last ? 7 : below 7` of 32 groups.
template <bool kLowBits>
LKV_INLINE void DecodeCoordinate(const PointCode* codes, bool last, const __mmask16 half[2],
                                 const uint32_t* decode, Lanes lanes[2], __m512i sum[2],
                                 const std::byte*& next, __m512i k[2]) {
  const __m512i one = _mm512_set1_epi32(1);
  __m512i low[2];
  __mmask16 split[2] = {0, 0};
  for (int h = 0; h < 2; ++h) {
    __m512i table = _mm512_loadu_si512(codes + 16 * h);
    if (kLowBits) {
      low[h] = _mm512_srli_epi32(table, kPointLowBitsShift);
      split[h] = _mm512_test_epi32_mask(low[h], low[h]);
      table = _mm512_and_si512(table, _mm512_set1_epi32(255));
    }
    const __mmask16 plain = static_cast<__mmask16>(~split[h]);
    table = _mm512_mask_add_epi32(table, half[h] & plain, table, _mm512_set1_epi32(3));
    if (last) {
      table = _mm512_mask_add_epi32(table, plain, table,
                                    _mm512_add_epi32(one, _mm512_and_si512(sum[h], one)));
    }
    k[h] = lanes[h].Symbol(table, decode);
  }
  lanes[0].Renormalise(next);
  lanes[1].Renormalise(next);
  if (kLowBits && (split[0] | split[1])) {
    for (int h = 0; h < 2; ++h) {
      const __m512i count = last ? _mm512_mask_sub_epi32(low[h], split[h], low[h], one) : low[h];
      const __m512i bits = lanes[h].Bits(count);
      lanes[h].Renormalise(next);
      k[h] = _mm512_or_si512(_mm512_sllv_epi32(k[h], count), bits);
      if (last) {
        k[h] = _mm512_mask_add_epi32(k[h], split[h], _mm512_add_epi32(k[h], k[h]),
                                     _mm512_and_si512(sum[h], one));
      }
    }
  }
  for (int h = 0; h < 2; ++h) sum[h] = _mm512_add_epi32(sum[h], k[h]);
}

template <bool kLowBits>
void DecodeRun512(DecodeRun& run) {
  const uint32_t* decode = reinterpret_cast<const uint32_t*>(Tables().decode.data());
  const __m512i half_frequency = _mm512_set1_epi32(static_cast<int>(run.half_frequency));
  const __m512i whole_frequency =
      _mm512_set1_epi32(static_cast<int>(kProbabilityTotal - run.half_frequency));
  Lanes lanes[2] = {{_mm512_loadu_si512(run.state)}, {_mm512_loadu_si512(run.state + 16)}};
  const std::byte* next = run.next;
  uint32_t phase = run.phase;
  int16_t* q2 = run.q2;
  for (uint32_t r = 0; r < run.rounds && next <= run.end; ++r, q2 += 8 * kLanes) {
    __mmask16 half[2];
    for (int h = 0; h < 2; ++h) half[h] = lanes[h].Coset(half_frequency, whole_frequency);
    lanes[0].Renormalise(next);
    lanes[1].Renormalise(next);
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    __m512i points[8];
    const __mmask32 halves = static_cast<__mmask32>(half[0]) | static_cast<__mmask32>(half[1])
                                                                   << 16;
    const PointCode* codes = run.codes + phase;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i, codes += run.stride) {
      __m512i k[2];
      DecodeCoordinate<kLowBits>(codes, i == 7, half, decode, lanes, sum, next, k);
      const __m512i packed = Pack(k[0], k[1]);
      points[i] = _mm512_sub_epi16(_mm512_add_epi16(packed, packed), _mm512_movm_epi16(halves));
    }
    Transpose8x8(points);
    __m128i* out = reinterpret_cast<__m128i*>(q2);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      _mm_storeu_si128(out + j, _mm512_castsi512_si128(points[j]));
      _mm_storeu_si128(out + j + 8, _mm512_extracti32x4_epi32(points[j], 1));
      _mm_storeu_si128(out + j + 16, _mm512_extracti32x4_epi32(points[j], 2));
      _mm_storeu_si128(out + j + 24, _mm512_extracti32x4_epi32(points[j], 3));
    }
    phase = (phase + kLanes) % run.groups;
  }
  _mm512_storeu_si512(run.state, lanes[0].x);
  _mm512_storeu_si512(run.state + 16, lanes[1].x);
  run.next = next;
}

void DecodeRounds(DecodeRun& run) {
  run.any_low_bits ? DecodeRun512<true>(run) : DecodeRun512<false>(run);
}

// Lanes of `mask` give their low words, in order, and keep the high ones.
LKV_INLINE __m512i Emit(__m512i x, __mmask16 mask, uint16_t*& out) {
  const __m512i words = _mm512_maskz_compress_epi32(mask, x);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(words));
  out += __builtin_popcount(static_cast<uint32_t>(mask));
  return _mm512_mask_srli_epi32(x, mask, x, 16);
}

// x after coding a symbol, x < frequency * 2^22.
LKV_INLINE __m512i Push(__m512i x, __m512i frequency, __m512i start) {
  // Rounded down all the way the quotient, below 2^22, is right or one too small.
  constexpr int kDown = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
  const __m512 exact = _mm512_cvt_roundepu32_ps(x, kDown);
  __m512i quotient =
      _mm512_cvttps_epi32(_mm512_div_round_ps(exact, _mm512_cvtepi32_ps(frequency), kDown));
  __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
  const __mmask16 more = _mm512_cmpge_epu32_mask(rest, frequency);
  rest = _mm512_mask_sub_epi32(rest, more, rest, frequency);
  quotient = _mm512_mask_add_epi32(quotient, more, quotient, _mm512_set1_epi32(1));
  return _mm512_add_epi32(_mm512_slli_epi32(quotient, kProbabilityBits),
                          _mm512_add_epi32(rest, start));
}

// States in x[0] and x[1] are those of lanes 31 .. 16 and 15 .. 0: the order in which they give
// words.
LKV_INLINE void PushSymbols(const __m512i frequency[2], const __m512i start[2], __m512i x[2],
                            uint16_t*& out) {
  for (int h = 0; h < 2; ++h) {
    const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x[h], 22), frequency[h]);
    x[h] = Emit(x[h], full, out);
  }
  for (int h = 0; h < 2; ++h) x[h] = Push(x[h], frequency[h], start[h]);
}

LKV_INLINE void PushLowBits(const PointCode* codes, const __m512i q2[2], bool last, __m512i x[2],
                            uint16_t*& out) {
  for (int h = 0; h < 2; ++h) {
    const __m512i low = _mm512_srli_epi32(_mm512_loadu_si512(codes + 16 * h), kPointLowBitsShift);
    const __mmask16 split = _mm512_test_epi32_mask(low, low);
    const __m512i count = last ? _mm512_mask_sub_epi32(low, split, low, _mm512_set1_epi32(1)) : low;
    // A shift by 32, for no bits, gives 0.
    const __m512i top = _mm512_srlv_epi32(x[h], _mm512_sub_epi32(_mm512_set1_epi32(32), count));
    x[h] = Emit(x[h], _mm512_test_epi32_mask(top, top), out);
    const __m512i k = _mm512_srai_epi32(q2[h], last ? 2 : 1);
    const __m512i bits = _mm512_andnot_si512(_mm512_sllv_epi32(_mm512_set1_epi32(-1), count), k);
    x[h] = _mm512_or_si512(_mm512_sllv_epi32(x[h], count), bits);
  }
}

LKV_INLINE __m512i LoadGroups(const int16_t* q2, int j) {
  // Element e is lane 31 - e, so the 128 bits at L hold the groups 31 - 8 L - j.
  const __m128i* groups = reinterpret_cast<const __m128i*>(q2);
  __m512i v = _mm512_castsi128_si512(_mm_loadu_si128(groups + 31 - j));
  v = _mm512_inserti32x4(v, _mm_loadu_si128(groups + 23 - j), 1);
  v = _mm512_inserti32x4(v, _mm_loadu_si128(groups + 15 - j), 2);
  return _mm512_inserti32x4(v, _mm_loadu_si128(groups + 7 - j), 3);
}

template <bool kLowBits>
void EncodeRun512(EncodeRun& run) {
  const uint32_t* packed = Tables().packed.data();
  const __m512i ten = _mm512_set1_epi32(1023);
  const __m512i reverse = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i x[2] = {_mm512_permutexvar_epi32(reverse, _mm512_loadu_si512(run.state + 16)),
                  _mm512_permutexvar_epi32(reverse, _mm512_loadu_si512(run.state))};
  uint16_t* out = run.out;
  for (uint32_t r = run.rounds; r-- > 0;) {
    const uint32_t group = (run.phase + r * kLanes) % run.groups;
    const PointCode* window = run.codes + (run.groups - group) % run.groups;
    __m512i points[8];
    for (int j = 0; j < 8; ++j) points[j] = LoadGroups(run.q2 + size_t{r} * 8 * kLanes, j);
    Transpose8x8(points);
    __m512i frequency[2], start[2];
#pragma GCC unroll 8
    for (int i = 7; i >= 0; --i) {
      const PointCode* codes = window + static_cast<uint32_t>(i) * run.stride;
      const __m512i q2[2] = {_mm512_cvtepi16_epi32(_mm512_castsi512_si256(points[i])),
                             _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(points[i], 1))};
      for (int h = 0; h < 2; ++h) {
        const __m512i places = PackedPlaces(_mm512_loadu_si512(codes + 16 * h), q2[h],
                                            static_cast<__mmask16>(i == 7 ? 0xFFFF : 0));
        const __m512i entry = _mm512_i32gather_epi32(places, packed, 4);
        frequency[h] = _mm512_and_si512(_mm512_srli_epi32(entry, kPackedFrequencyShift), ten);
        start[h] = _mm512_and_si512(entry, ten);
      }
      if (kLowBits) PushLowBits(codes, q2, i == 7, x, out);
      PushSymbols(frequency, start, x, out);
    }
    const __m512i half = _mm512_set1_epi32(static_cast<int>(run.half_frequency));
    const __m512i whole = _mm512_sub_epi32(_mm512_set1_epi32(kProbabilityTotal), half);
    const __mmask32 halves = _mm512_test_epi16_mask(points[0], _mm512_set1_epi16(1));
    for (int h = 0; h < 2; ++h) {
      const auto in_half = static_cast<__mmask16>(halves >> (16 * h));
      frequency[h] = _mm512_mask_blend_epi32(in_half, whole, half);
      start[h] = _mm512_maskz_mov_epi32(in_half, whole);
    }
    PushSymbols(frequency, start, x, out);
  }
  _mm512_storeu_si512(run.state + 16, _mm512_permutexvar_epi32(reverse, x[0]));
  _mm512_storeu_si512(run.state, _mm512_permutexvar_epi32(reverse, x[1]));
  run.out = out;
}

void EncodeRounds(EncodeRun& run) {
  run.any_low_bits ? EncodeRun512<true>(run) : EncodeRun512<false>(run);
}

}  // namespace

const CpuKernels kAvx512Kernels = {CodecBackend::kAvx512,
                                   LoadVector,
                                   row_kernels::LargestBits,
                                   Energy,
                                   row_kernels::AddMoments,
                                   AddSixteenths,
                                   QuantizeVector,
                                   row_kernels::AddSquares,
                                   IsOutlier,
                                   PointCost,
                                   RebuildVector,
                                   StoreVector,
                                   CastVector,
                                   AddErrors,
                                   AddRelative,
                                   EncodeRounds,
                                   DecodeRounds};

}  // namespace latticekv
