// The coder's kernels with AVX-512 F, BW, VL and DQ: half of the lanes in a register. Compiled with
// flags of its own: see kernels.h.
#include "core/codec/cpu/avx512_points.h"
#include "core/codec/tile_format.h"

namespace latticekv {
namespace {

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

LKV_INLINE void PushLowBits(const EncodeCode* codes, const __m512i q2[2], bool last, __m512i x[2],
                            uint16_t*& out) {
  for (int h = 0; h < 2; ++h) {
    const __m512i shift = _mm512_srli_epi32(_mm512_loadu_si512(codes + 16 * h), kEncodeShiftAt);
    const __mmask16 split = _mm512_test_epi32_mask(shift, shift);
    const __m512i count = _mm512_maskz_sub_epi32(split, shift, _mm512_set1_epi32(last ? 2 : 1));
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
  const uint32_t* table = Tables().points.data();
  const __m512i ten = _mm512_set1_epi32(1023);
  const __m512i reverse = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i x[2] = {_mm512_permutexvar_epi32(reverse, _mm512_loadu_si512(run.state + 16)),
                  _mm512_permutexvar_epi32(reverse, _mm512_loadu_si512(run.state))};
  uint16_t* out = run.out;
  for (uint32_t r = run.rounds; r-- > 0;) {
    const uint32_t group = (run.phase + r * kLanes) % run.groups;
    const EncodeCode* window = run.codes + (run.groups - group) % run.groups;
    __m512i points[8];
    for (int j = 0; j < 8; ++j) points[j] = LoadGroups(run.q2 + size_t{r} * 8 * kLanes, j);
    Transpose8x8(points);
    __m512i frequency[2], start[2];
#pragma GCC unroll 8
    for (int i = 7; i >= 0; --i) {
      const EncodeCode* codes = window + static_cast<uint32_t>(i) * run.stride;
      // Only low bits need the numbers themselves.
      const __m512i entries = _mm512_and_si512(points[i], _mm512_set1_epi16(kPointEntries - 1));
      const auto part = [](__m512i v, int h) {
        return h == 0 ? _mm512_castsi512_si256(v) : _mm512_extracti64x4_epi64(v, 1);
      };
      __m512i q2[2];
      for (int h = 0; h < 2; ++h) {
        const __m512i code = _mm512_loadu_si512(codes + 16 * h);
        if (kLowBits) q2[h] = _mm512_cvtepi16_epi32(part(points[i], h));
        const __m512i place = kLowBits
                                  ? PointPlaces(code, q2[h])
                                  : _mm512_add_epi32(code, _mm512_cvtepu16_epi32(part(entries, h)));
        const __m512i entry = _mm512_i32gather_epi32(place, table, 4);
        frequency[h] = _mm512_and_si512(_mm512_srli_epi32(entry, kPointFrequencyShift), ten);
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

}  // namespace

void DecodeRoundsAvx512(DecodeRun& run) {
  run.any_low_bits ? DecodeRun512<true>(run) : DecodeRun512<false>(run);
}

void EncodeRoundsAvx512(EncodeRun& run) {
  run.any_low_bits ? EncodeRun512<true>(run) : EncodeRun512<false>(run);
}

}  // namespace latticekv
