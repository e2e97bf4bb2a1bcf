// Where a chunk lies in memory that a GPU reaches. Plain C++, for callers that know no CUDA.
#ifndef LATTICEKV_CORE_CODEC_GPU_DEVICE_PLANES_H_
#define LATTICEKV_CORE_CODEC_GPU_DEVICE_PLANES_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace latticekv {

// One plane of one layer in memory that the device reaches. Element (token, head, d) lies at
//   data_dev + block * block_stride + slot * token_stride + head * head_stride + d * element size,
// strides in bytes. Without a block table the block is 0 and the slot the chunk's token; so
// contiguous [tokens, heads, head_dim] data are {data, token_bytes, head_dim bytes}. Engines' paged
// caches in NHD order have token_stride > head_stride, in HND order the other way round.
struct DevicePlane {
  std::byte* data_dev = nullptr;
  size_t token_stride = 0;
  size_t head_stride = 0;
  size_t block_stride = 0;
};

// Where a chunk's tokens lie in a paged cache: token t is the sequence's token first_token + t, its
// block is blocks[(first_token + t) / block_tokens]. In host memory, read by Make alone.
struct BlockTable {
  std::span<const uint32_t> blocks;
  uint32_t block_tokens = 0;  // 0: not paged
  uint64_t first_token = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_GPU_DEVICE_PLANES_H_
