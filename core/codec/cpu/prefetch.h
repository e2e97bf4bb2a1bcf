// Rows of a head, one every token_stride bytes, asked for before they are needed. Internal to
// core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_PREFETCH_H_
#define LATTICEKV_CORE_CODEC_CPU_PREFETCH_H_

#include <cstddef>

namespace latticekv {

inline constexpr size_t kRowsAhead = 8;

// kWrite 1: the row will be written.
template <int kWrite>
inline void PrefetchRow(const std::byte* row, size_t bytes) {
  constexpr size_t kCacheLineBytes = 64;
  for (size_t at = 0; at < bytes; at += kCacheLineBytes) __builtin_prefetch(row + at, kWrite);
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_PREFETCH_H_
