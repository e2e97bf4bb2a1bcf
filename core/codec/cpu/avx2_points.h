// What the row kernels and the coder with AVX2 share. Internal linkage, as all that is compiled
// with flags of its own. Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_AVX2_POINTS_H_
#define LATTICEKV_CORE_CODEC_CPU_AVX2_POINTS_H_

#include <immintrin.h>

#include "core/codec/cpu/kernels.h"
#include "core/codec/entropy_tables.h"

// For what the coder's loops must keep in registers.
#define LKV_INLINE inline __attribute__((always_inline))

namespace latticekv {

void EncodeRoundsAvx2(EncodeRun& run);
void DecodeRoundsAvx2(DecodeRun& run);

namespace {

LKV_INLINE uint32_t SetOf(__m256i lanes) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}
LKV_INLINE __m256i Load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
LKV_INLINE void Store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
LKV_INLINE __m256i Set32(uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }

// 16 numbers of 16 bits from two times eight that fit.
LKV_INLINE __m256i Pack(__m256i a, __m256i b) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), _MM_SHUFFLE(3, 1, 2, 0));
}

// Places in EntropyTables::points of eight coordinates.
LKV_INLINE __m256i PointPlaces(__m256i code, __m256i q2) {
  const __m256i at =
      _mm256_and_si256(_mm256_srav_epi32(q2, _mm256_srli_epi32(code, kEncodeShiftAt)),
                       _mm256_set1_epi32(kPointEntries - 1));
  return _mm256_add_epi32(at, _mm256_and_si256(code, _mm256_set1_epi32(0xFFFF)));
}

LKV_INLINE __m256i Gather(const uint32_t* table, __m256i places) {
  return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), places, 4);
}

}  // namespace
}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_AVX2_POINTS_H_
