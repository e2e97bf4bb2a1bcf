// The kernels on rows with AVX2 and F16C: 8 floats or 16 lattice coordinates in a register. What is
// not here the compiler vectorises from row_kernels.h; the coder's are in coder_avx2.cc. Compiled
// with flags of its own: see kernels.h.
#include <immintrin.h>

#include "core/codec/cpu/avx2_points.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/row_kernels.h"

namespace latticekv {
namespace {

__m256 Clamp(__m256 v, float limit) {
  v = _mm256_min_ps(v, _mm256_set1_ps(limit));
  return _mm256_max_ps(v, _mm256_set1_ps(-limit));
}
__m256i Round(__m256 v) {
  return _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(v, _mm256_set1_ps(12582912.0f))),
                          _mm256_set1_epi32(0x4B400000));
}
__m128i ToHalf(__m256 v) {
  // Saturating: what the clamp lets through rounds to a finite number.
  return _mm256_cvtps_ph(Clamp(v, 65504.0f), _MM_FROUND_TO_NEAREST_INT);
}

void StoreVector(DType dtype, const float* x, uint32_t dim, std::byte* dst) {
  if (dtype != DType::kF16) return StoreRow(dtype, x, dim, dst);
  for (uint32_t c = 0; c < dim; c += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 2 * c), ToHalf(_mm256_loadu_ps(x + c)));
  }
}

void CastVector(DType dtype, float* x, uint32_t dim) {
  if (dtype != DType::kF16) return row_kernels::CastRow(dtype, x, dim);
  for (uint32_t c = 0; c < dim; c += 8) {
    _mm256_storeu_ps(x + c, _mm256_cvtph_ps(ToHalf(_mm256_loadu_ps(x + c))));
  }
}

// cos and sin of eight pairs apart.
LKV_INLINE void LoadAngles(const SinCos* angle, __m256& cos, __m256& sin) {
  const float* p = reinterpret_cast<const float*>(angle);
  const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
  const __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
  cos = _mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
  sin = _mm256_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1));
}

// Turns the pairs (x[i], x[i + pairs]) forwards, or backwards.
template <bool kForwards>
void Turn(const SinCos* angle, uint32_t pairs, float* x) {
  uint32_t i = 0;
  for (; i + 8 <= pairs; i += 8) {
    __m256 cos, sin;
    LoadAngles(angle + i, cos, sin);
    const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + pairs);
    const __m256 ac = _mm256_mul_ps(a, cos), bs = _mm256_mul_ps(b, sin);
    const __m256 bc = _mm256_mul_ps(b, cos), as = _mm256_mul_ps(a, sin);
    _mm256_storeu_ps(x + i, kForwards ? _mm256_sub_ps(ac, bs) : _mm256_add_ps(ac, bs));
    _mm256_storeu_ps(x + i + pairs, kForwards ? _mm256_add_ps(bc, as) : _mm256_sub_ps(bc, as));
  }
  for (; i < pairs; ++i) {
    const float a = x[i], b = x[i + pairs], cos = angle[i].cos, sin = angle[i].sin;
    x[i] = kForwards ? a * cos - b * sin : a * cos + b * sin;
    x[i + pairs] = kForwards ? b * cos + a * sin : b * cos - a * sin;
  }
}

// Bits of all stored elements, and which of them, or of the rotated ones, were not finite.
struct Found {
  __m256i any = _mm256_setzero_si256(), infinite = any;
  LKV_INLINE void Look(__m256 v) {
    const __m256i exponent = _mm256_set1_epi32(0x7F800000);
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(v), exponent);
    infinite = _mm256_or_si256(infinite, _mm256_cmpeq_epi32(bits, exponent));
  }
  LKV_INLINE void LookAtStored(__m256 v) {
    any = _mm256_or_si256(any, _mm256_castps_si256(v));
    Look(v);
  }
  uint32_t flags() const {
    return (_mm256_testz_si256(any, any) ? 0 : kRowNotZero) |
           (_mm256_testz_si256(infinite, infinite) ? 0 : kRowNotFinite);
  }
};

__m256 LoadHalves(const std::byte* src) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
}

// f16 in the layout's own order, whole registers: one pass.
uint32_t LoadInOrder(const SourceRow& row, float* canonical) {
  const uint32_t pairs = row.pairs;
  Found found;
  for (uint32_t i = 0; i < pairs; i += 8) {
    __m256 cos, sin;
    LoadAngles(row.angle + i, cos, sin);
    const __m256 a = LoadHalves(row.src + 2 * i), b = LoadHalves(row.src + 2 * (i + pairs));
    found.LookAtStored(a);
    found.LookAtStored(b);
    const __m256 x = _mm256_add_ps(_mm256_mul_ps(a, cos), _mm256_mul_ps(b, sin));
    const __m256 y = _mm256_sub_ps(_mm256_mul_ps(b, cos), _mm256_mul_ps(a, sin));
    found.Look(x);
    found.Look(y);
    _mm256_storeu_ps(canonical + i, x);
    _mm256_storeu_ps(canonical + i + pairs, y);
  }
  for (uint32_t c = 2 * pairs; c < row.dim; c += 8) {
    const __m256 x = LoadHalves(row.src + 2 * c);
    found.LookAtStored(x);
    _mm256_storeu_ps(canonical + c, x);
  }
  return found.flags();
}

uint32_t LoadVector(const SourceRow& row, float* canonical) {
  if (row.dtype == DType::kF16 && row.order == nullptr && row.pairs % 8 == 0) {
    return LoadInOrder(row, canonical);
  }
  float stored[limits::kMaxHeadDim];
  LoadRow(row.dtype, row.src, row.dim, stored);
  for (uint32_t c = 0; c < row.dim; ++c) {
    canonical[c] = stored[row.order != nullptr ? row.order[c] : c];
  }
  Turn<false>(row.angle, row.pairs, canonical);
  return row_kernels::Classify(stored, canonical, row.dim);
}

// Eight coordinates of a vector to rebuild, before rotation.
LKV_INLINE __m256 Rebuilt(const LatticeRow& row, uint32_t c) {
  const __m256i q =
      _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row.q2 + c)));
  const __m256i quarters = _mm256_add_epi32(_mm256_add_epi32(q, q), Load(row.mean + c));
  const __m256 step = row.step ? _mm256_loadu_ps(row.step + c) : _mm256_set1_ps(row.row_step);
  return _mm256_mul_ps(_mm256_cvtepi32_ps(quarters), step);
}

void RebuildVector(const LatticeRow& row, float* scratch, float* out) {
  float* x = row.order == nullptr ? out : scratch;
  for (uint32_t c = 0; c < row.dim; c += 8) _mm256_storeu_ps(x + c, Rebuilt(row, c));
  Turn<true>(row.angle, row.pairs, x);
  for (uint32_t c = 0; c < row.dim && row.order != nullptr; ++c) out[row.order[c]] = x[c];
}

// Eight coordinates in 1/256 of steps.
LKV_INLINE __m256 Scaled(const ScaledRow& row, uint32_t c) {
  const __m256 inverse =
      row.inverse ? _mm256_loadu_ps(row.inverse + c) : _mm256_set1_ps(row.row_inverse);
  return _mm256_mul_ps(_mm256_loadu_ps(row.x + c), inverse);
}

void AddSixteenths(const ScaledRow& row, int32_t* sum) {
  for (uint32_t c = 0; c < row.dim; c += 8) {
    const __m256 y = _mm256_mul_ps(Scaled(row, c), _mm256_set1_ps(0.0625f));
    Store(sum + c, _mm256_add_epi32(Load(sum + c), _mm256_cvtps_epi32(Clamp(y, kRoundLimit))));
  }
}

// Adds the squares of eight numbers in two halves.
LKV_INLINE __m256i AddSquaresWide(__m256i sum, __m256i v) {
  const __m256i n = _mm256_abs_epi32(v), odd = _mm256_srli_epi64(n, 32);
  return _mm256_add_epi64(sum,
                          _mm256_add_epi64(_mm256_mul_epu32(n, n), _mm256_mul_epu32(odd, odd)));
}
uint64_t Sum64(__m256i v) {
  alignas(32) uint64_t part[4];
  Store(part, v);
  return part[0] + part[1] + part[2] + part[3];
}

// The sum of eight numbers of 32 bits each, unsigned.
uint64_t SumUnsigned(__m256i v) {
  return Sum64(_mm256_add_epi64(_mm256_srli_epi64(v, 32),
                                _mm256_and_si256(v, _mm256_set1_epi64x(0xFFFFFFFF))));
}
// Squares of eight numbers whose magnitude fits 15 bits.
LKV_INLINE __m256i SmallSquares(__m256i v) {
  const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(0xFFFF));
  return _mm256_madd_epi16(low, low);
}

RowNorm Norm(const float* x, uint32_t dim) {
  const uint32_t largest = row_kernels::LargestBits(x, dim);
  const __m256 scale = _mm256_set1_ps(IntegerScale(ExponentOf(largest)));
  uint64_t energy = 0;
  for (uint32_t begin = 0; begin < dim; begin += 64) {
    __m256i sum = _mm256_setzero_si256();  // each at most 8 * 2^28
    for (uint32_t c = begin; c < dim && c < begin + 64; c += 8) {
      const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + c), scale));
      sum = _mm256_add_epi32(sum, SmallSquares(v));
    }
    energy += SumUnsigned(sum);
  }
  return {largest, energy};
}

// Combines each group's eight 16-bit numbers; the result stands in all eight places.
template <typename Operation>
__m256i OverGroup(__m256i v, Operation operation) {
  v = operation(v, _mm256_shuffle_epi32(v, _MM_SHUFFLE(1, 0, 3, 2)));
  v = operation(v, _mm256_shuffle_epi32(v, _MM_SHUFFLE(2, 3, 0, 1)));
  return operation(v, _mm256_or_si256(_mm256_slli_epi32(v, 16), _mm256_srli_epi32(v, 16)));
}
__m256i Max16(__m256i a, __m256i b) { return _mm256_max_epi16(a, b); }
__m256i Min16(__m256i a, __m256i b) { return _mm256_min_epi16(a, b); }
__m256i Add16(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }

// NearestE8 (e8.h) of two groups. Errors are scaled by 16, with the place below.
LKV_INLINE __m256i NearestPoints(__m256i k, __m256i fraction) {
  const __m256i two = _mm256_set1_epi16(2);
  const __m256i forward = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i up = _mm256_cmpgt_epi16(fraction, _mm256_set1_epi16(127));
  // 256 - fraction where it is rounded up.
  const __m256i a = _mm256_sub_epi16(_mm256_xor_si256(fraction, up),
                                     _mm256_and_si256(up, _mm256_set1_epi16(-257)));
  const __m256i a16 = _mm256_slli_epi16(a, 4);
  const __m256i rising = _mm256_or_si256(a16, forward);
  // Less 2048, half a step: how much nearer than half a step the integer is.
  const __m256i falling =
      _mm256_add_epi16(a16, _mm256_sub_epi16(_mm256_set1_epi16(7 - 2048), forward));
  const __m256i largest = OverGroup(falling, Max16), smallest = OverGroup(rising, Min16);
  // Errors sum to 1024 at most; above them the number of odd k, up to 8, and the parity of the
  // number rounded up.
  const __m256i odd_k = _mm256_and_si256(_mm256_slli_epi16(k, 11), _mm256_set1_epi16(0x0800));
  const __m256i sums =
      OverGroup(_mm256_add_epi16(_mm256_add_epi16(a, odd_k), _mm256_slli_epi16(up, 15)), Add16);
  const __m256i odd_half = _mm256_srai_epi16(_mm256_slli_epi16(sums, 4), 15);
  const __m256i odd_whole = _mm256_xor_si256(odd_half, _mm256_srai_epi16(sums, 15));
  // The squared distance to the half coset less that to the integers, in 2^-11.
  const __m256i errors_only = _mm256_set1_epi16(-16);
  __m256i difference =
      _mm256_sub_epi16(_mm256_set1_epi16(4096),
                       _mm256_slli_epi16(_mm256_and_si256(sums, _mm256_set1_epi16(2047)), 3));
  difference = _mm256_add_epi16(
      difference, _mm256_and_si256(_mm256_and_si256(smallest, errors_only), odd_half));
  difference = _mm256_add_epi16(
      difference, _mm256_and_si256(_mm256_and_si256(largest, errors_only), odd_whole));
  const __m256i half = _mm256_srai_epi16(difference, 15);
  const __m256i k2 = _mm256_add_epi16(k, k);
  // Twice the point: 2 k, and 2 more where rounded up, or 1 more of the half coset.
  const __m256i more = _mm256_blendv_epi8(_mm256_and_si256(up, two), _mm256_set1_epi16(1), half);
  const __m256i fix =
      _mm256_blendv_epi8(_mm256_and_si256(odd_whole, _mm256_cmpeq_epi16(falling, largest)),
                         _mm256_and_si256(odd_half, _mm256_cmpeq_epi16(rising, smallest)), half);
  // -2 where up and half differ, else 2.
  const __m256i step =
      _mm256_sub_epi16(two, _mm256_and_si256(_mm256_xor_si256(up, half), _mm256_set1_epi16(4)));
  return _mm256_add_epi16(_mm256_add_epi16(k2, more), _mm256_and_si256(fix, step));
}

// Eight coordinates less their offset, rounded; `largest` collects what tells that one is too large
// (the conversion makes what is beyond 32 bits the smallest number).
LKV_INLINE __m256i Units(const ScaledRow& row, const float* offset, uint32_t c, __m256i& largest) {
  const __m256i z = _mm256_cvtps_epi32(_mm256_sub_ps(Scaled(row, c), _mm256_loadu_ps(offset + c)));
  largest =
      _mm256_max_epu32(largest, _mm256_add_epi32(z, _mm256_set1_epi32(kRoundLimitInteger - 1)));
  return z;
}

uint32_t QuantizeVector(const ScaledRow& row, const float* offset, int16_t* q2) {
  __m256i largest = _mm256_setzero_si256();
  for (uint32_t c = 0; c < row.dim; c += 16) {
    const bool both = row.dim - c >= 16;
    const __m256i a = Units(row, offset, c, largest);
    const __m256i b = both ? Units(row, offset, c + 8, largest) : _mm256_setzero_si256();
    const __m256i whole = Pack(_mm256_srai_epi32(a, 8), _mm256_srai_epi32(b, 8));
    const __m256i byte = _mm256_set1_epi32(255);
    const __m256i fraction = Pack(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
    const __m256i points = NearestPoints(whole, fraction);
    if (both) {
      Store(q2 + c, points);
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q2 + c), _mm256_castsi256_si128(points));
    }
  }
  const __m256i most = _mm256_set1_epi32(2 * kRoundLimitInteger - 2);
  const __m256i fits = _mm256_cmpeq_epi32(_mm256_max_epu32(largest, most), most);
  return SetOf(fits) ^ 255;
}

uint32_t CheckRow(const int16_t* q2, const PointLimits& limits, uint32_t dim, uint32_t* halves) {
  __m128i out = _mm_setzero_si128();
  const auto load = [](const int16_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  };
  uint32_t found = 0;
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m128i q = load(q2 + c);
    found += static_cast<uint32_t>(_mm_cvtsi128_si32(q)) & 1;
    out = _mm_or_si128(out, _mm_or_si128(_mm_cmpgt_epi16(load(limits.low + c), q),
                                         _mm_cmpgt_epi16(q, load(limits.high + c))));
  }
  *halves += found;
  return static_cast<uint32_t>(_mm_movemask_epi8(out));
}

// Squared error in 1/256 step, at most 4095^2. What the conversion cannot hold it makes -2^31.
LKV_INLINE __m256i SquaredErrors(__m256 error, __m256 inverse) {
  const __m256i e = _mm256_min_epu32(
      _mm256_abs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(error, inverse))), _mm256_set1_epi32(4095));
  return _mm256_madd_epi16(e, e);
}

void AddErrors(const float* back, const float* exact, const float* inverse, uint32_t dim,
               uint32_t* squares) {
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m256 error = _mm256_sub_ps(_mm256_loadu_ps(back + c), _mm256_loadu_ps(exact + c));
    const __m256i e = SquaredErrors(error, _mm256_loadu_ps(inverse + c));
    Store(squares + c, _mm256_add_epi32(Load(squares + c), e));
  }
}

// Squared errors and squared norm of a vector in 1/256 step. The norm is a sum in 32 bits as long
// as the coordinates are small, and is otherwise taken again.
struct RelativeSum {
  const __m256 scale;
  __m256i e = _mm256_setzero_si256(), v = e, most = e;  // e: at most 64 * 2^25 each
  explicit RelativeSum(float inverse) : scale(_mm256_set1_ps(inverse)) {}
  // Two registers of what there will be, and of what there was.
  LKV_INLINE void Add(__m256 back0, __m256 exact0, __m256 back1, __m256 exact1) {
    const __m256i errors =
        _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(back0, exact0), scale)),
                           _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(back1, exact1), scale)));
    const __m256i clamped = _mm256_min_epu16(_mm256_abs_epi16(errors), _mm256_set1_epi16(4095));
    e = _mm256_add_epi32(e, _mm256_madd_epi16(clamped, clamped));
    const __m256i units = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(exact0, scale)),
                                             _mm256_cvtps_epi32(_mm256_mul_ps(exact1, scale)));
    v = _mm256_add_epi32(v, _mm256_madd_epi16(units, units));
    most = _mm256_max_epu16(most, _mm256_abs_epi16(units));
  }
  // False: `norm` is another.
  LKV_INLINE bool AddTo(uint32_t dim, uint64_t* error, uint64_t* norm) const {
    *error += SumUnsigned(e);
    const __m256i small = _mm256_set1_epi16((1 << 13) - 1);
    const __m256i is_small = _mm256_cmpeq_epi16(_mm256_max_epu16(most, small), small);
    if (_mm256_movemask_epi8(is_small) != -1 || dim > 256) return false;
    *norm += SumUnsigned(v);
    return true;
  }
};

// The squared norm, whatever its size.
template <typename LoadExact>
uint64_t LargeNorm(uint32_t dim, float inverse, LoadExact load) {
  __m256i v = _mm256_setzero_si256();
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m256 units = _mm256_mul_ps(load(c), _mm256_set1_ps(inverse));
    v = AddSquaresWide(v, Round(Clamp(units, kRoundLimit)));
  }
  return Sum64(v);
}

void AddRelative(const float* back, const float* exact, float inverse, uint32_t dim,
                 uint64_t* error, uint64_t* norm) {
  RelativeSum sum(inverse);
  const __m256 zero = _mm256_setzero_ps();
  for (uint32_t c = 0; c < dim; c += 8) {
    sum.Add(_mm256_loadu_ps(back + c), _mm256_loadu_ps(exact + c), zero, zero);
  }
  if (sum.AddTo(dim, error, norm)) return;
  *norm += LargeNorm(dim, inverse, [&](uint32_t c) { return _mm256_loadu_ps(exact + c); });
}

// f16 vectors in the layout's own order, of whole registers.
bool InOneGo(const MeasuredRow& m) {
  return m.dtype == DType::kF16 && m.row.order == nullptr && m.row.pairs % 8 == 0 &&
         m.row.dim % 16 == 0;
}
// A register of what the decoder will write and of what there was.
struct RebuiltPart {
  uint32_t first;
  __m256 back, exact;
};
// Calls sink(part, part) for the registers of such a vector.
template <typename Sink>
LKV_INLINE void ForRebuilt(const MeasuredRow& m, Sink sink) {
  const LatticeRow& row = m.row;
  const uint32_t pairs = row.pairs;
  const auto part = [&](uint32_t c, __m256 x) {
    return RebuiltPart{c, _mm256_cvtph_ps(ToHalf(x)), LoadHalves(m.src + 2 * c)};
  };
  for (uint32_t i = 0; i < pairs; i += 8) {
    __m256 cos, sin;
    LoadAngles(row.angle + i, cos, sin);
    const __m256 a = Rebuilt(row, i), b = Rebuilt(row, i + pairs);
    sink(part(i, _mm256_sub_ps(_mm256_mul_ps(a, cos), _mm256_mul_ps(b, sin))),
         part(i + pairs, _mm256_add_ps(_mm256_mul_ps(b, cos), _mm256_mul_ps(a, sin))));
  }
  for (uint32_t c = 2 * pairs; c < row.dim; c += 16) {
    sink(part(c, Rebuilt(row, c)), part(c + 8, Rebuilt(row, c + 8)));
  }
}

void PairOf(const MeasuredRow& m, row_kernels::RowPair& out) {
  RebuildVector(m.row, out.exact, out.back);
  CastVector(m.dtype, out.back, m.row.dim);
  LoadRow(m.dtype, m.src, m.row.dim, out.exact);
}

void MeasureErrors(const MeasuredRow& m, const float* inverse, uint32_t* squares) {
  if (!InOneGo(m)) {
    row_kernels::RowPair pair;
    PairOf(m, pair);
    return AddErrors(pair.back, pair.exact, inverse, m.row.dim, squares);
  }
  const auto add = [&](const RebuiltPart& p) {
    const __m256i e =
        SquaredErrors(_mm256_sub_ps(p.back, p.exact), _mm256_loadu_ps(inverse + p.first));
    Store(squares + p.first, _mm256_add_epi32(Load(squares + p.first), e));
  };
  ForRebuilt(m, [&](const RebuiltPart& a, const RebuiltPart& b) {
    add(a);
    add(b);
  });
}

void MeasureRelative(const MeasuredRow& m, float inverse, uint64_t* error, uint64_t* norm) {
  if (!InOneGo(m)) {
    row_kernels::RowPair pair;
    PairOf(m, pair);
    return AddRelative(pair.back, pair.exact, inverse, m.row.dim, error, norm);
  }
  RelativeSum sum(inverse);
  ForRebuilt(m, [&](const RebuiltPart& a, const RebuiltPart& b) {
    sum.Add(a.back, a.exact, b.back, b.exact);
  });
  if (sum.AddTo(m.row.dim, error, norm)) return;
  *norm += LargeNorm(m.row.dim, inverse, [&](uint32_t c) { return LoadHalves(m.src + 2 * c); });
}

uint64_t RowCost(const int16_t* q2, const EncodeCode* codes, uint32_t dim) {
  const uint32_t* points = Tables().points.data();
  __m256i cost = _mm256_setzero_si256();  // each at most 128 * 2^12
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m256i q =
        _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q2 + c)));
    const __m256i entries = Gather(points, PointPlaces(Load(codes + c), q));
    cost = _mm256_add_epi32(cost, _mm256_srli_epi32(entries, kPointCostShift));
  }
  alignas(32) uint32_t part[8];
  Store(part, cost);
  uint64_t sum = 0;
  for (uint32_t p : part) sum += p;
  return sum;
}
uint64_t PointCost(const int16_t* q2, uint32_t rows, uint32_t dim, const EncodeCode* codes) {
  uint64_t total = 0;
  for (uint32_t r = 0; r < rows; ++r) total += RowCost(q2 + size_t{r} * dim, codes, dim);
  return total;
}

}  // namespace

const CpuKernels kAvx2Kernels = {CodecBackend::kAvx2,
                                 LoadVector,
                                 row_kernels::LargestBits,
                                 Norm,
                                 row_kernels::AddMoments,
                                 AddSixteenths,
                                 QuantizeVector,
                                 nullptr,
                                 nullptr,
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
                                 EncodeRoundsAvx2,
                                 DecodeRoundsAvx2};

}  // namespace latticekv
