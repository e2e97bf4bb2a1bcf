// The coder's kernels with AVX2: a quarter of the lanes in a register. Compiled with flags of its
// own: see kernels.h.
#include "core/codec/cpu/avx2_points.h"
#include "core/codec/tile_format.h"

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

LKV_INLINE void PushLowBits(const EncodeCode* codes, const __m256i q2[kParts], bool last,
                            __m256i x[kParts], uint16_t*& out) {
  const __m256i zero = _mm256_setzero_si256();
  for (int h = 0; h < kParts; ++h) {
    const __m256i shift = _mm256_srli_epi32(Load(codes + 8 * h), kEncodeShiftAt);
    const __m256i split = _mm256_cmpgt_epi32(shift, zero);
    __m256i count = _mm256_add_epi32(shift, split);
    if (last) count = _mm256_add_epi32(count, split);
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
  const uint32_t* table = Tables().points.data();
  const __m256i ten = _mm256_set1_epi32(1023);
  const uint32_t group = (run.phase + round * kLanes) % run.groups;
  const EncodeCode* window = run.codes + (run.groups - group) % run.groups;
  __m256i points[2][8], q2[kParts], frequency[kParts], start[kParts];
  LoadPoints(run.q2 + size_t{round} * 8 * kLanes, points);
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) {
    const EncodeCode* codes = window + static_cast<uint32_t>(i) * run.stride;
    for (int h = 0; h < kParts; ++h) {
      const auto part = [h](__m256i v) {
        return h % 2 ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v);
      };
      q2[h] = _mm256_cvtepi16_epi32(part(points[h / 2][i]));
      const __m256i place = kLowBits
                                ? PointPlaces(Load(codes + 8 * h), q2[h])
                                : _mm256_add_epi32(Load(codes + 8 * h),
                                                   _mm256_and_si256(q2[h], _mm256_set1_epi32(127)));
      const __m256i entry = Gather(table, place);
      frequency[h] = _mm256_and_si256(_mm256_srli_epi32(entry, kPointFrequencyShift), ten);
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

}  // namespace

void DecodeRoundsAvx2(DecodeRun& run) {
  run.any_low_bits ? DecodeRun256<true>(run) : DecodeRun256<false>(run);
}

void EncodeRoundsAvx2(EncodeRun& run) {
  __m256i x[kParts];
  for (int h = 0; h < kParts; ++h) x[h] = Reversed(Load(run.state + 24 - 8 * h));
  uint16_t* out = run.out;
  for (uint32_t r = run.rounds; r-- > 0;) {
    run.any_low_bits ? EncodeRound256<true>(run, r, x, out) : EncodeRound256<false>(run, r, x, out);
  }
  for (int h = 0; h < kParts; ++h) Store(run.state + 24 - 8 * h, Reversed(x[h]));
  run.out = out;
}

}  // namespace latticekv
