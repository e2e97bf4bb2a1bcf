// How plans lay out what they upload. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ARENA_LAYOUT_H_
#define LATTICEKV_CORE_CODEC_CUDA_ARENA_LAYOUT_H_

#include <cstring>
#include <vector>

#include "core/base/bytes.h"

namespace latticekv {

inline constexpr uint64_t kArenaAlignment = 256;

inline uint64_t RoundUp(uint64_t v, uint64_t to) { return (v + to - 1) / to * to; }

// Makes room for `values` at an aligned place of `out` and returns where.
template <typename T>
uint64_t MakeRoom(const std::vector<T>& values, ByteVector& out) {
  const uint64_t at = RoundUp(out.size(), kArenaAlignment);
  out.resize(at + values.size() * sizeof(T));
  return at;
}

template <typename T>
void CopyTo(const std::vector<T>& values, uint64_t at, ByteVector& out) {
  if (!values.empty()) std::memcpy(out.data() + at, values.data(), values.size() * sizeof(T));
}

// The same, and copies them.
template <typename T>
uint64_t Place(const std::vector<T>& values, ByteVector& out) {
  const uint64_t at = MakeRoom(values, out);
  CopyTo(values, at, out);
  return at;
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_ARENA_LAYOUT_H_
