// Where callers of the CUDA codec keep data and working memory, and errors of the CUDA runtime.
#ifndef LATTICEKV_CORE_CODEC_CUDA_CUDA_MEMORY_H_
#define LATTICEKV_CORE_CODEC_CUDA_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/cuda/decode_tasks.h"
#include "core/codec/gpu/device_planes.h"
#include "core/layout/layout.h"

namespace latticekv {

// Memory that the caller owns and keeps until the stream is through. Aligned to 256 bytes.
struct CudaArena {
  std::byte* device_dev = nullptr;
  size_t device_bytes = 0;
  std::byte* pinned = nullptr;  // page-locked host memory
  size_t pinned_bytes = 0;
  // Which planner's tables the arena holds since an earlier run; runs with plans of the same
  // planner then upload less. Kept beside the memory by its owner, who sets it to 0 at first and
  // whenever something else wrote there. Null: not known.
  uint64_t* tables_id = nullptr;
};

// What all plans of a planner have at the start of their arenas.
struct ArenaTables {
  uint64_t id = 0;   // of no other in this process, not 0
  ByteVector bytes;  // a multiple of the arena's alignment
};
std::shared_ptr<const ArenaTables> MakeArenaTables(ByteVector bytes);

// OK, or the runtime's error with what failed.
absl::Status CudaStatus(cudaError_t error, const char* what);
// Of the current device.
absl::StatusOr<uint32_t> Multiprocessors();
// INVALID_ARGUMENT unless `arena` has that much, aligned.
absl::Status CheckArena(const CudaArena& arena, size_t device_bytes, size_t pinned_bytes);

// Enqueues the upload of a plan's tables, unless the arena has them, and of `tasks` to `tasks_at`,
// by way of the arena's pinned memory, where the tasks lie behind the tables.
absl::Status UploadTasks(const CudaArena& arena, const ArenaTables& tables, ByteSpan tasks,
                         uint64_t tasks_at, cudaStream_t stream);

// [layer][plane] of layers [first_layer, end_layer) of a chunk that lies from `data_dev` on as
// RawChunkViews has it; the planes of others are empty.
std::vector<std::vector<DevicePlane>> ContiguousPlanes(const Layout& layout, uint32_t tokens,
                                                       uint32_t first_layer, uint32_t end_layer,
                                                       std::byte* data_dev);
// The same of all layers.
std::vector<std::vector<DevicePlane>> ContiguousPlanes(const Layout& layout, uint32_t tokens,
                                                       std::byte* data_dev);
// INVALID_ARGUMENT unless `planes` [layer][plane] fit the layout; those of layers outside
// [first_layer, end_layer) are not looked at.
absl::Status CheckDevicePlanes(const Layout& layout,
                               const std::vector<std::vector<DevicePlane>>& planes,
                               uint32_t first_layer, uint32_t end_layer);
// Appends where the chunk's `tokens` tokens lie; INVALID_ARGUMENT when the table does not hold
// them.
absl::Status AppendPlaces(const BlockTable& table, uint32_t tokens,
                          std::vector<cuda::TokenPlace>& places);
// Copies a plane's vectors at `places` to `out`, one behind the other as [token][head], and waits.
absl::Status DownloadPlane(const PlaneSpec& spec, const DevicePlane& plane,
                           std::span<const cuda::TokenPlace> places, MutableByteSpan out);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_CUDA_MEMORY_H_
