// Decodes frames on a CUDA device, byte for byte as FrameDecoder does, from host memory into device
// memory, many chunks and all their layers at once.
//
// The host checks a whole frame before any of it reaches the device: header, checksums, tables,
// unit headers, sizes. What only decoding can tell (a damaged symbol stream) is bounded in the
// kernel and reported for each chunk afterwards.
//
//   LKV_ASSIGN_OR_RETURN(CudaDecodePlan plan, CudaDecodePlan::Make(layout, profile, chunks));
//   ... arena with plan.device_bytes() and plan.pinned_bytes() ...
//   LKV_RETURN_IF_ERROR(plan.DecodeAsync(arena, stream));
//   ... the stream has come so far (cudaStreamSynchronize, an event) ...
//   LKV_RETURN_IF_ERROR(plan.Result(arena));
#ifndef LATTICEKV_CORE_CODEC_CUDA_CUDA_DECODER_H_
#define LATTICEKV_CORE_CODEC_CUDA_CUDA_DECODER_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/cuda/decode_tasks.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"

namespace latticekv {

// One plane of one layer in device memory. Element (token, head, d) lies at
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

struct CudaDecodeChunk {
  // In host memory until the upload is done; copied asynchronously where it is pinned.
  ByteSpan frame;
  std::vector<std::vector<DevicePlane>> planes;  // [layer][plane], destinations
  BlockTable table;
};

// Memory that the caller owns and keeps until the stream is through. Aligned to 256 bytes.
struct CudaArena {
  std::byte* device_dev = nullptr;
  size_t device_bytes = 0;
  std::byte* pinned = nullptr;  // page-locked host memory
  size_t pinned_bytes = 0;
};

// A checked batch. Allocates host memory when made and nothing afterwards; never synchronises but
// in Decode. An arena serves one run at a time. Const methods are thread-safe.
class CudaDecodePlan {
 public:
  // Errors of FrameDecoder, of the first chunk that has one, with its number; INVALID_ARGUMENT when
  // destinations do not fit the layout. `layout`, `profile` (may be null) and frames must outlive
  // the plan; destinations are taken as they are.
  static absl::StatusOr<CudaDecodePlan> Make(const Layout& layout, const ModelProfile* profile,
                                             std::span<const CudaDecodeChunk> chunks);

  size_t device_bytes() const { return device_bytes_; }
  size_t pinned_bytes() const { return pinned_bytes_; }

  // Enqueues upload and kernels. At most `max_multiprocessors` are used, 0: all there are.
  absl::Status DecodeAsync(const CudaArena& arena, cudaStream_t stream,
                           uint32_t max_multiprocessors = 0) const;
  // The two parts of DecodeAsync: copies frames and tasks; runs the kernels on them.
  absl::Status UploadAsync(const CudaArena& arena, cudaStream_t stream) const;
  absl::Status LaunchAsync(const CudaArena& arena, cudaStream_t stream,
                           uint32_t max_multiprocessors = 0) const;
  // Once the stream is through: DATA_LOSS when a chunk's symbols were damaged (what its
  // destinations hold is then unspecified), naming the first.
  absl::Status Result(const CudaArena& arena) const;
  // The same of one chunk.
  absl::Status ChunkResult(const CudaArena& arena, size_t chunk) const;
  // DecodeAsync, waits, Result.
  absl::Status Decode(const CudaArena& arena, cudaStream_t stream) const;

 private:
  friend class PlanBuilder;
  CudaDecodePlan() = default;
  absl::Status CheckArena(const CudaArena& arena) const;

  struct FrameCopy {
    ByteSpan frame;
    size_t at;
  };
  ByteVector tasks_;  // what precedes the frames in the arena
  std::vector<FrameCopy> frames_;
  cuda::DecodeLaunch launch_{};
  size_t chunks_ = 0;
  size_t device_bytes_ = 0, pinned_bytes_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_CUDA_DECODER_H_
