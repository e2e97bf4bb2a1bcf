// Where callers of the CUDA codec keep data and working memory, and errors of the CUDA runtime.
#ifndef LATTICEKV_CORE_CODEC_CUDA_CUDA_MEMORY_H_
#define LATTICEKV_CORE_CODEC_CUDA_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/codec/cuda/decode_tasks.h"
#include "core/layout/layout.h"

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

// Memory that the caller owns and keeps until the stream is through. Aligned to 256 bytes.
struct CudaArena {
  std::byte* device_dev = nullptr;
  size_t device_bytes = 0;
  std::byte* pinned = nullptr;  // page-locked host memory
  size_t pinned_bytes = 0;
};

// OK, or the runtime's error with what failed.
absl::Status CudaStatus(cudaError_t error, const char* what);
// Of the current device.
absl::StatusOr<uint32_t> Multiprocessors();
// INVALID_ARGUMENT unless `arena` has that much, aligned.
absl::Status CheckArena(const CudaArena& arena, size_t device_bytes, size_t pinned_bytes);

// INVALID_ARGUMENT unless `planes` [layer][plane] fit the layout.
absl::Status CheckDevicePlanes(const Layout& layout,
                               const std::vector<std::vector<DevicePlane>>& planes);
// Appends where the chunk's `tokens` tokens lie; INVALID_ARGUMENT when the table does not hold
// them.
absl::Status AppendPlaces(const BlockTable& table, uint32_t tokens,
                          std::vector<cuda::TokenPlace>& places);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_CUDA_MEMORY_H_
