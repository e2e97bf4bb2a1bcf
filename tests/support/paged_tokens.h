// Tokens in the image of a paged cache, for tests and benchmarks of GPU memory.
#ifndef LATTICEKV_TESTS_SUPPORT_PAGED_TOKENS_H_
#define LATTICEKV_TESTS_SUPPORT_PAGED_TOKENS_H_

#include <cstring>
#include <vector>

#include "latticekv/gpu_memory.h"

namespace latticekv::testing {

// Lays contiguous [layer][plane][tokens, heads, head_dim] of tokens from sequence position
// `position` on out in `image`, the bytes of a cache of one memory.
inline void LayTokens(const GpuCacheSpec& spec, const std::vector<uint32_t>& table,
                      uint64_t position, ByteSpan raw, std::byte* image) {
  const uint64_t tokens = raw.size() / spec.layout.layout->token_bytes();
  const std::byte* from = raw.data();
  for (size_t l = 0; l < spec.planes.size(); ++l) {
    for (size_t p = 0; p < spec.planes[l].size(); ++p) {
      const PlaneSpec& plane = spec.layout.layout->layers[l].planes[p];
      const GpuPlane& place = spec.planes[l][p];
      const size_t bytes = plane.head_dim * DTypeBytes(plane.dtype);
      for (uint64_t at = position; at < position + tokens; ++at) {
        std::byte* const slot = image + place.offset +
                                table[at / spec.block_tokens] * place.block_stride +
                                at % spec.block_tokens * place.token_stride;
        for (uint32_t h = 0; h < plane.heads; ++h, from += bytes) {
          std::memcpy(slot + h * place.head_stride, from, bytes);
        }
      }
    }
  }
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_PAGED_TOKENS_H_
