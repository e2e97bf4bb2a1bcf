// What the row kernels and the coder with AVX-512 share. Internal linkage, as all that is compiled
// with flags of its own. Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_AVX512_POINTS_H_
#define LATTICEKV_CORE_CODEC_CPU_AVX512_POINTS_H_

#include <immintrin.h>

#include "core/codec/cpu/kernels.h"
#include "core/codec/entropy_tables.h"

// For what the coder's loops must keep in registers.
#define LKV_INLINE inline __attribute__((always_inline))

namespace latticekv {

bool QuantizeUnitAvx512(const UnitRun& run, UnitSums& sums);
bool SumUnitAvx512(const UnitRun& run, int32_t* sixteenths);
void EncodeRoundsAvx512(EncodeRun& run);
void DecodeRoundsAvx512(DecodeRun& run);

namespace {

// Places in EntropyTables::points of 16 coordinates.
LKV_INLINE __m512i PointPlaces(__m512i code, __m512i q2) {
  const __m512i at =
      _mm512_and_si512(_mm512_srav_epi32(q2, _mm512_srli_epi32(code, kEncodeShiftAt)),
                       _mm512_set1_epi32(kPointEntries - 1));
  return _mm512_add_epi32(at, _mm512_and_si512(code, _mm512_set1_epi32(0xFFFF)));
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

}  // namespace
}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_AVX512_POINTS_H_
