// The kernels with AVX2 and F16C: 8 floats, 16 lattice coordinates or a quarter of the coder's
// lanes in a register. What is not here the compiler vectorises from row_kernels.h. Compiled with
// flags of its own: see kernels.h.
#include <immintrin.h>

#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/row_kernels.h"
#include "core/codec/tile_format.h"

// For what the coder's loops must keep in registers.
#define LKV_INLINE inline __attribute__((always_inline))

namespace latticekv {
namespace {

constexpr int kParts = kLanes / 8;

// For every set of eight lanes: the places of its lanes in order, and how many of it lie below a
// lane; a byte each.
struct LaneOrders {
  uint64_t compress[256], expand[256];
};
constexpr LaneOrders MakeLaneOrders() {
  LaneOrders out{};
  for (uint32_t set = 0; set < 256; ++set) {
    uint32_t count = 0;
    for (uint32_t lane = 0; lane < 8; ++lane) {
      out.expand[set] |= uint64_t{count} << (8 * lane);
      if (set >> lane & 1) out.compress[set] |= uint64_t{lane} << (8 * count++);
    }
  }
  return out;
}
constexpr LaneOrders kLaneOrders = MakeLaneOrders();

__m256i Order(uint64_t bytes) {
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
}
uint32_t SetOf(__m256i lanes) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}
__m256i Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
void Store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
__m256i Set32(uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }

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

uint32_t LoadVector(const SourceRow& row, float* stored, float* canonical) {
  if (row.dtype == DType::kF16) {
    for (uint32_t c = 0; c < row.dim; c += 8) {
      const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row.src + 2 * c));
      _mm256_storeu_ps(stored + c, _mm256_cvtph_ps(h));
    }
  } else {
    LoadRow(row.dtype, row.src, row.dim, stored);
  }
  for (uint32_t c = 0; c < row.dim && row.order == nullptr; c += 8) {
    _mm256_storeu_ps(canonical + c, _mm256_loadu_ps(stored + c));
  }
  for (uint32_t c = 0; c < row.dim && row.order != nullptr; ++c)
    canonical[c] = stored[row.order[c]];
  Turn<false>(row.angle, row.pairs, canonical);
  return row_kernels::Classify(stored, canonical, row.dim);
}

void RebuildVector(const LatticeRow& row, float* scratch, float* out) {
  float* x = row.order == nullptr ? out : scratch;
  for (uint32_t c = 0; c < row.dim; c += 8) {
    const __m256i q =
        _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row.q2 + c)));
    const __m256i quarters = _mm256_add_epi32(_mm256_add_epi32(q, q), Load(row.mean + c));
    const __m256 step = row.step ? _mm256_loadu_ps(row.step + c) : _mm256_set1_ps(row.row_step);
    _mm256_storeu_ps(x + c, _mm256_mul_ps(_mm256_cvtepi32_ps(quarters), step));
  }
  Turn<true>(row.angle, row.pairs, x);
  for (uint32_t c = 0; c < row.dim && row.order != nullptr; ++c) out[row.order[c]] = x[c];
}

// Eight coordinates in steps.
LKV_INLINE __m256 Scaled(const ScaledRow& row, uint32_t c) {
  const __m256 inverse =
      row.inverse ? _mm256_loadu_ps(row.inverse + c) : _mm256_set1_ps(row.row_inverse);
  return _mm256_mul_ps(_mm256_loadu_ps(row.x + c), inverse);
}

void AddSixteenths(const ScaledRow& row, int32_t* sum) {
  for (uint32_t c = 0; c < row.dim; c += 8) {
    const __m256 y = _mm256_mul_ps(Scaled(row, c), _mm256_set1_ps(16.0f));
    Store(sum + c, _mm256_add_epi32(Load(sum + c), Round(Clamp(y, kRoundLimit))));
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

uint64_t Energy(const float* x, float scale, uint32_t dim) {
  __m256i sum = _mm256_setzero_si256();
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + c), _mm256_set1_ps(scale));
    sum = AddSquaresWide(sum, Round(v));
  }
  return Sum64(sum);
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
// All ones where a bit of `bit`, a power of two, is set.
__m256i HasBit(__m256i v, int bit) {
  const __m256i b = _mm256_set1_epi16(static_cast<int16_t>(bit));
  return _mm256_cmpeq_epi16(_mm256_and_si256(v, b), b);
}

// NearestE8 (e8.h) of two groups.
LKV_INLINE __m256i NearestPoints(__m256i k, __m256i fraction) {
  const __m256i one = _mm256_set1_epi16(1);
  const __m256i forward = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i up = _mm256_cmpgt_epi16(fraction, _mm256_set1_epi16(127));
  const __m256i whole = _mm256_sub_epi16(k, up);
  const __m256i a =
      _mm256_blendv_epi8(fraction, _mm256_sub_epi16(_mm256_set1_epi16(256), fraction), up);
  const __m256i a8 = _mm256_slli_epi16(a, 3);
  const __m256i rising = _mm256_or_si256(a8, forward);
  const __m256i falling = _mm256_or_si256(a8, _mm256_xor_si256(forward, _mm256_set1_epi16(7)));
  const __m256i largest = OverGroup(falling, Max16), smallest = OverGroup(rising, Min16);
  // Errors sum to 1024 at most; above them the number of odd k, up to 8.
  const __m256i sums =
      OverGroup(_mm256_add_epi16(a, _mm256_slli_epi16(_mm256_and_si256(k, one), 11)), Add16);
  const __m256i sum_error = _mm256_and_si256(sums, _mm256_set1_epi16(2047));
  const __m256i odd_half = HasBit(sums, 2048);
  const __m256i odd_whole = _mm256_xor_si256(odd_half, HasBit(OverGroup(up, Add16), 1));
  // The squared distance to the half coset less that to the integers, in 2^-8.
  const __m256i twice_smallest = _mm256_slli_epi16(_mm256_srli_epi16(smallest, 3), 1);
  const __m256i twice_largest = _mm256_slli_epi16(_mm256_srli_epi16(largest, 3), 1);
  __m256i difference = _mm256_sub_epi16(_mm256_set1_epi16(512), sum_error);
  difference = _mm256_add_epi16(difference, _mm256_and_si256(odd_half, twice_smallest));
  difference = _mm256_sub_epi16(
      difference,
      _mm256_and_si256(odd_whole, _mm256_sub_epi16(_mm256_set1_epi16(256), twice_largest)));
  const __m256i half = _mm256_srai_epi16(difference, 15);
  const __m256i out = _mm256_blendv_epi8(_mm256_add_epi16(whole, whole),
                                         _mm256_add_epi16(_mm256_add_epi16(k, k), one), half);
  const __m256i fix =
      _mm256_blendv_epi8(_mm256_and_si256(odd_whole, _mm256_cmpeq_epi16(falling, largest)),
                         _mm256_and_si256(odd_half, _mm256_cmpeq_epi16(rising, smallest)), half);
  // -2 where up and half differ, else 2.
  const __m256i step = _mm256_sub_epi16(
      _mm256_set1_epi16(2), _mm256_and_si256(_mm256_xor_si256(up, half), _mm256_set1_epi16(4)));
  return _mm256_add_epi16(out, _mm256_and_si256(fix, step));
}

// Eight coordinates less their offset in units of 2^-8; `beyond` collects those too large.
LKV_INLINE __m256i Units(const ScaledRow& row, const float* offset, uint32_t c, __m256i& beyond) {
  const __m256 y = _mm256_sub_ps(Scaled(row, c), _mm256_loadu_ps(offset + c));
  const __m256i z = Round(Clamp(_mm256_mul_ps(y, _mm256_set1_ps(256.0f)), kRoundLimit));
  beyond = _mm256_or_si256(
      beyond, _mm256_cmpgt_epi32(_mm256_abs_epi32(z), _mm256_set1_epi32(kRoundLimitInteger - 1)));
  return z;
}

// 16 numbers of 16 bits from two times eight that fit.
__m256i Pack(__m256i a, __m256i b) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), _MM_SHUFFLE(3, 1, 2, 0));
}

uint32_t QuantizeVector(const ScaledRow& row, const float* offset, int16_t* q2) {
  __m256i beyond = _mm256_setzero_si256();
  for (uint32_t c = 0; c < row.dim; c += 16) {
    const bool both = row.dim - c >= 16;
    const __m256i a = Units(row, offset, c, beyond);
    const __m256i b = both ? Units(row, offset, c + 8, beyond) : _mm256_setzero_si256();
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
  return SetOf(beyond);
}

uint32_t IsOutlier(const int16_t* q2, const PointLimits& limits, uint32_t dim) {
  __m128i out = _mm_setzero_si128();
  const __m128i one = _mm_set1_epi16(1);
  const auto load = [](const int16_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  };
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m128i q = load(q2 + c);
    const __m128i half = _mm_cmpeq_epi16(_mm_and_si128(q, one), one);
    const __m128i high =
        _mm_blendv_epi8(load(limits.high_whole + c), load(limits.high_half + c), half);
    out = _mm_or_si128(
        out, _mm_or_si128(_mm_cmpgt_epi16(load(limits.low + c), q), _mm_cmpgt_epi16(q, high)));
  }
  return static_cast<uint32_t>(_mm_movemask_epi8(out));
}

// Squared error in 1/256 step, at most 4095^2.
LKV_INLINE __m256i SquaredErrors(__m256 error, __m256 inverse) {
  const __m256 e = _mm256_mul_ps(_mm256_mul_ps(error, inverse), _mm256_set1_ps(256.0f));
  const __m256i rounded = Round(Clamp(e, 4095.0f));
  return _mm256_mullo_epi32(rounded, rounded);
}

void AddErrors(const float* back, const float* exact, const float* inverse, uint32_t dim,
               uint32_t* squares) {
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m256 error = _mm256_sub_ps(_mm256_loadu_ps(back + c), _mm256_loadu_ps(exact + c));
    const __m256i e = SquaredErrors(error, _mm256_loadu_ps(inverse + c));
    Store(squares + c, _mm256_add_epi32(Load(squares + c), e));
  }
}

void AddRelative(const float* back, const float* exact, float inverse, uint32_t dim,
                 uint64_t* error, uint64_t* norm) {
  const __m256 scale = _mm256_set1_ps(inverse);
  __m256i e = _mm256_setzero_si256(), v = e;  // e: at most 128 * 2^24 each
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m256 x = _mm256_loadu_ps(exact + c);
    const __m256 difference = _mm256_sub_ps(_mm256_loadu_ps(back + c), x);
    e = _mm256_add_epi32(e, SquaredErrors(difference, scale));
    const __m256 units = _mm256_mul_ps(_mm256_mul_ps(x, scale), _mm256_set1_ps(256.0f));
    v = AddSquaresWide(v, Round(Clamp(units, kRoundLimit)));
  }
  *error += Sum64(_mm256_add_epi64(_mm256_srli_epi64(e, 32),
                                   _mm256_and_si256(e, _mm256_set1_epi64x(0xFFFFFFFF))));
  *norm += Sum64(v);
}

// Places in EntropyTables::packed of eight coordinates; `last` are those with the last place of
// their group.
LKV_INLINE __m256i PackedPlaces(__m256i code, __m256i q2, __m256i last) {
  const __m256i one = _mm256_set1_epi32(1);
  const __m256i k = _mm256_srai_epi32(q2, 1);
  const __m256i low = _mm256_srli_epi32(code, kPointLowBitsShift);
  const __m256i plain = _mm256_cmpeq_epi32(low, _mm256_setzero_si256());
  const __m256i coset = _mm256_mullo_epi16(_mm256_and_si256(q2, one), _mm256_set1_epi32(3));
  const __m256i parity = _mm256_and_si256(last, _mm256_add_epi32(one, _mm256_and_si256(k, one)));
  const __m256i table = _mm256_add_epi32(_mm256_and_si256(code, _mm256_set1_epi32(255)),
                                         _mm256_and_si256(plain, _mm256_add_epi32(coset, parity)));
  static_assert(kPackedStride == 128);
  return _mm256_add_epi32(
      _mm256_slli_epi32(table, 7),
      _mm256_add_epi32(_mm256_srav_epi32(k, low), _mm256_set1_epi32(kSymbolOffset)));
}

__m256i Gather(const uint32_t* table, __m256i places) {
  return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), places, 4);
}

uint64_t PointCost(const int16_t* q2, const PointCode* codes, uint32_t dim) {
  const uint32_t* packed = Tables().packed.data();
  const __m256i last = _mm256_setr_epi32(0, 0, 0, 0, 0, 0, 0, -1);
  __m256i cost = _mm256_setzero_si256();  // each at most 128 * 2^12
  for (uint32_t c = 0; c < dim; c += 8) {
    const __m256i q =
        _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q2 + c)));
    const __m256i entries = Gather(packed, PackedPlaces(Load(codes + c), q, last));
    cost = _mm256_add_epi32(cost, _mm256_srli_epi32(entries, kPackedCostShift));
  }
  alignas(32) uint32_t part[8];
  Store(part, cost);
  uint64_t sum = 0;
  for (uint32_t p : part) sum += p;
  return sum;
}

// Rows of eight registers become columns within each 128 bits.
LKV_INLINE void Transpose8x8(__m256i v[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm256_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
    a[i + 4] = _mm256_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int h = 0; h < 2; ++h) {
      b[4 * h + i] = _mm256_unpacklo_epi32(a[4 * h + 2 * i], a[4 * h + 2 * i + 1]);
      b[4 * h + 2 + i] = _mm256_unpackhi_epi32(a[4 * h + 2 * i], a[4 * h + 2 * i + 1]);
    }
  }
  for (int p = 0; p < 4; ++p) {
    v[2 * p] = _mm256_unpacklo_epi64(b[2 * p], b[2 * p + 1]);
    v[2 * p + 1] = _mm256_unpackhi_epi64(b[2 * p], b[2 * p + 1]);
  }
}

// Lanes below 2^16 take the next words, in order.
LKV_INLINE __m256i Renormalise(__m256i x, const std::byte*& next) {
  const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const uint32_t set = SetOf(low);
  const __m256i words =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)));
  const __m256i taken = _mm256_permutevar8x32_epi32(words, Order(kLaneOrders.expand[set]));
  next += 2 * static_cast<uint32_t>(__builtin_popcount(set));
  return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), taken), low);
}

// Takes the coset from eight lanes; renormalisation is the caller's. All ones: half.
LKV_INLINE __m256i PopCoset(uint32_t half_frequency, __m256i& x) {
  const __m256i half = Set32(half_frequency), whole = Set32(kProbabilityTotal - half_frequency);
  const __m256i slot = _mm256_and_si256(x, Set32(kProbabilityTotal - 1));
  const __m256i in_whole = _mm256_cmpgt_epi32(whole, slot);
  const __m256i frequency = _mm256_blendv_epi8(half, whole, in_whole);
  const __m256i start = _mm256_andnot_si256(in_whole, whole);
  x = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32(x, kProbabilityBits)),
                       _mm256_sub_epi32(slot, start));
  return _mm256_andnot_si256(in_whole, _mm256_set1_epi32(-1));
}

LKV_INLINE __m256i PopSymbol(const uint32_t* decode, __m256i table, __m256i& x) {
  const __m256i ten = _mm256_set1_epi32(1023);
  const __m256i place =
      _mm256_or_si256(_mm256_slli_epi32(table, kProbabilityBits), _mm256_and_si256(x, ten));
  const __m256i entry = Gather(decode, place);
  const __m256i frequency =
      _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(entry, 10), ten), _mm256_set1_epi32(1));
  x = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32(x, kProbabilityBits)),
                       _mm256_and_si256(entry, ten));
  return _mm256_srai_epi32(entry, 22);
}

// Symbols and raw bits of one coordinate of 32 groups, the last one of a group or another.
template <bool kLowBits>
LKV_INLINE void DecodeCoordinate(const PointCode* codes, bool last, const __m256i half[kParts],
                                 const uint32_t* decode, __m256i x[kParts], __m256i sum[kParts],
                                 const std::byte*& next, __m256i k[kParts]) {
  const __m256i one = _mm256_set1_epi32(1);
  __m256i low[kParts];
  for (int h = 0; h < kParts; ++h) {
    __m256i table = Load(codes + 8 * h);
    __m256i more = _mm256_and_si256(half[h], _mm256_set1_epi32(3));
    if (last) {
      more = _mm256_add_epi32(more, _mm256_add_epi32(one, _mm256_and_si256(sum[h], one)));
    }
    if (kLowBits) {
      low[h] = _mm256_srli_epi32(table, kPointLowBitsShift);
      more = _mm256_and_si256(more, _mm256_cmpeq_epi32(low[h], _mm256_setzero_si256()));
      table = _mm256_and_si256(table, _mm256_set1_epi32(255));
    }
    k[h] = PopSymbol(decode, _mm256_add_epi32(table, more), x[h]);
  }
  for (int h = 0; h < kParts; ++h) x[h] = Renormalise(x[h], next);
  for (int h = 0; h < kParts && kLowBits; ++h) {
    const __m256i split = _mm256_cmpgt_epi32(low[h], _mm256_setzero_si256());
    const __m256i count = last ? _mm256_add_epi32(low[h], split) : low[h];
    const __m256i bits = _mm256_andnot_si256(_mm256_sllv_epi32(_mm256_set1_epi32(-1), count), x[h]);
    x[h] = Renormalise(_mm256_srlv_epi32(x[h], count), next);
    k[h] = _mm256_or_si256(_mm256_sllv_epi32(k[h], count), bits);
    if (!last) continue;
    const __m256i known =
        _mm256_add_epi32(_mm256_add_epi32(k[h], k[h]), _mm256_and_si256(sum[h], one));
    k[h] = _mm256_blendv_epi8(k[h], known, split);
  }
  for (int h = 0; h < kParts; ++h) sum[h] = _mm256_add_epi32(sum[h], k[h]);
}

template <bool kLowBits>
void DecodeRun256(DecodeRun& run) {
  const uint32_t* decode = reinterpret_cast<const uint32_t*>(Tables().decode.data());
  __m256i x[kParts];
  for (int h = 0; h < kParts; ++h) x[h] = Load(run.state + 8 * h);
  const std::byte* next = run.next;
  uint32_t phase = run.phase;
  int16_t* q2 = run.q2;
  for (uint32_t r = 0; r < run.rounds && next <= run.end; ++r, q2 += 8 * kLanes) {
    __m256i half[kParts], sum[kParts], points[2][8];
    for (int h = 0; h < kParts; ++h) {
      half[h] = PopCoset(run.half_frequency, x[h]);
      sum[h] = _mm256_setzero_si256();
    }
    for (int h = 0; h < kParts; ++h) x[h] = Renormalise(x[h], next);
    const PointCode* codes = run.codes + phase;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i, codes += run.stride) {
      __m256i k[kParts];
      DecodeCoordinate<kLowBits>(codes, i == 7, half, decode, x, sum, next, k);
      for (int p = 0; p < 2; ++p) {
        const __m256i packed = Pack(k[2 * p], k[2 * p + 1]);
        points[p][i] =
            _mm256_sub_epi16(_mm256_add_epi16(packed, packed), Pack(half[2 * p], half[2 * p + 1]));
      }
    }
    __m128i* out = reinterpret_cast<__m128i*>(q2);
    for (int p = 0; p < 2; ++p) {
      Transpose8x8(points[p]);
      for (int j = 0; j < 8; ++j) {
        _mm_storeu_si128(out + 16 * p + j, _mm256_castsi256_si128(points[p][j]));
        _mm_storeu_si128(out + 16 * p + j + 8, _mm256_extracti128_si256(points[p][j], 1));
      }
    }
    phase = (phase + kLanes) % run.groups;
  }
  for (int h = 0; h < kParts; ++h) Store(run.state + 8 * h, x[h]);
  run.next = next;
}

void DecodeRounds(DecodeRun& run) {
  run.any_low_bits ? DecodeRun256<true>(run) : DecodeRun256<false>(run);
}

// Lanes that are all ones in `which` give their low words, in order, and keep the high ones.
LKV_INLINE __m256i Emit(__m256i x, __m256i which, uint16_t*& out) {
  const uint32_t set = SetOf(which);
  const __m256i words = _mm256_permutevar8x32_epi32(_mm256_and_si256(x, Set32(0xFFFF)),
                                                    Order(kLaneOrders.compress[set]));
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(out),
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  out += __builtin_popcount(set);
  return _mm256_blendv_epi8(x, _mm256_srli_epi32(x, 16), which);
}

// x after coding a symbol, x < frequency * 2^22.
LKV_INLINE __m256i Push(__m256i x, __m256i frequency, __m256i start) {
  // Two roundings of 2^-24 each leave the quotient, below 2^22, at most one off.
  const __m256 high =
      _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16)), _mm256_set1_ps(65536.0f));
  const __m256 exact = _mm256_add_ps(high, _mm256_cvtepi32_ps(_mm256_and_si256(x, Set32(0xFFFF))));
  __m256i quotient = _mm256_cvttps_epi32(_mm256_div_ps(exact, _mm256_cvtepi32_ps(frequency)));
  __m256i rest = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, frequency));
  const __m256i less = _mm256_srai_epi32(rest, 31);
  rest = _mm256_add_epi32(rest, _mm256_and_si256(less, frequency));
  quotient = _mm256_add_epi32(quotient, less);
  const __m256i fits = _mm256_cmpgt_epi32(frequency, rest);
  rest = _mm256_sub_epi32(rest, _mm256_andnot_si256(fits, frequency));
  quotient = _mm256_add_epi32(quotient, _mm256_andnot_si256(fits, _mm256_set1_epi32(1)));
  return _mm256_add_epi32(_mm256_slli_epi32(quotient, kProbabilityBits),
                          _mm256_add_epi32(rest, start));
}

// States in x[0] .. x[3] are those of lanes 31 .. 24, 23 .. 16 and so on: the order in which they
// give words.
LKV_INLINE void PushSymbols(const __m256i frequency[kParts], const __m256i start[kParts],
                            __m256i x[kParts], uint16_t*& out) {
  for (int h = 0; h < kParts; ++h) {
    const __m256i fits = _mm256_cmpgt_epi32(frequency[h], _mm256_srli_epi32(x[h], 22));
    x[h] = Emit(x[h], _mm256_xor_si256(fits, _mm256_set1_epi32(-1)), out);
  }
  for (int h = 0; h < kParts; ++h) x[h] = Push(x[h], frequency[h], start[h]);
}

LKV_INLINE void PushLowBits(const PointCode* codes, const __m256i q2[kParts], bool last,
                            __m256i x[kParts], uint16_t*& out) {
  const __m256i zero = _mm256_setzero_si256();
  for (int h = 0; h < kParts; ++h) {
    const __m256i low = _mm256_srli_epi32(Load(codes + 8 * h), kPointLowBitsShift);
    const __m256i count = last ? _mm256_add_epi32(low, _mm256_cmpgt_epi32(low, zero)) : low;
    // A shift by 32, for no bits, gives 0.
    const __m256i top = _mm256_srlv_epi32(x[h], _mm256_sub_epi32(_mm256_set1_epi32(32), count));
    const __m256i fits = _mm256_cmpeq_epi32(top, zero);
    x[h] = Emit(x[h], _mm256_xor_si256(fits, _mm256_set1_epi32(-1)), out);
    const __m256i k = _mm256_srai_epi32(q2[h], last ? 2 : 1);
    const __m256i bits = _mm256_andnot_si256(_mm256_sllv_epi32(_mm256_set1_epi32(-1), count), k);
    x[h] = _mm256_or_si256(_mm256_sllv_epi32(x[h], count), bits);
  }
}

// Lanes 31 .. 24 and so on of the states, and back.
__m256i Reversed(__m256i v) {
  return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

// Points of a round by coordinate; element e of points[p] is lane 31 - 16 p - e.
LKV_INLINE void LoadPoints(const int16_t* q2, __m256i points[2][8]) {
  const __m128i* groups = reinterpret_cast<const __m128i*>(q2);
  for (int p = 0; p < 2; ++p) {
    for (int j = 0; j < 8; ++j) {
      const __m128i* group = groups + 31 - 16 * p - j;
      points[p][j] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(group)),
                                             _mm_loadu_si128(group - 8), 1);
    }
    Transpose8x8(points[p]);
  }
}

template <bool kLowBits>
void EncodeRound256(const EncodeRun& run, uint32_t round, __m256i x[kParts], uint16_t*& out) {
  const uint32_t* packed = Tables().packed.data();
  const __m256i ten = _mm256_set1_epi32(1023);
  const uint32_t group = (run.phase + round * kLanes) % run.groups;
  const PointCode* window = run.codes + (run.groups - group) % run.groups;
  __m256i points[2][8], q2[kParts], frequency[kParts], start[kParts];
  LoadPoints(run.q2 + size_t{round} * 8 * kLanes, points);
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) {
    const PointCode* codes = window + static_cast<uint32_t>(i) * run.stride;
    for (int h = 0; h < kParts; ++h) {
      const __m256i pair = points[h / 2][i];
      q2[h] = _mm256_cvtepi16_epi32(h % 2 ? _mm256_extracti128_si256(pair, 1)
                                          : _mm256_castsi256_si128(pair));
      const __m256i entry = Gather(
          packed, PackedPlaces(Load(codes + 8 * h), q2[h], _mm256_set1_epi32(i == 7 ? -1 : 0)));
      frequency[h] = _mm256_and_si256(_mm256_srli_epi32(entry, kPackedFrequencyShift), ten);
      start[h] = _mm256_and_si256(entry, ten);
    }
    if (kLowBits) PushLowBits(codes, q2, i == 7, x, out);
    PushSymbols(frequency, start, x, out);
  }
  const __m256i half = Set32(run.half_frequency);
  const __m256i whole = Set32(kProbabilityTotal - run.half_frequency);
  for (int h = 0; h < kParts; ++h) {  // q2 still holds the first coordinates
    const __m256i in_half =
        _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_and_si256(q2[h], _mm256_set1_epi32(1)));
    frequency[h] = _mm256_blendv_epi8(whole, half, in_half);
    start[h] = _mm256_and_si256(in_half, whole);
  }
  PushSymbols(frequency, start, x, out);
}

void EncodeRounds(EncodeRun& run) {
  __m256i x[kParts];
  for (int h = 0; h < kParts; ++h) x[h] = Reversed(Load(run.state + 24 - 8 * h));
  uint16_t* out = run.out;
  for (uint32_t r = run.rounds; r-- > 0;) {
    run.any_low_bits ? EncodeRound256<true>(run, r, x, out) : EncodeRound256<false>(run, r, x, out);
  }
  for (int h = 0; h < kParts; ++h) Store(run.state + 24 - 8 * h, Reversed(x[h]));
  run.out = out;
}

}  // namespace

const CpuKernels kAvx2Kernels = {CodecBackend::kAvx2,
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
