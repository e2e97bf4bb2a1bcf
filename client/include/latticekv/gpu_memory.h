// GPU memory of a worker, handed over to the daemon of its host: puts read blocks out of it and
// gets write decoded blocks into it, so that KV leaves the GPU only as compressed frames. This
// library needs no CUDA; what the worker's runtime says is passed on as bytes.
//
//   latticekv::GpuMemory memory;                    // around what cudaMalloc returned
//   cudaIpcMemHandle_t handle;
//   cudaIpcGetMemHandle(&handle, kv_cache_dev);
//   std::memcpy(memory.ipc_handle.data(), &handle, sizeof(handle));
//   std::memcpy(memory.device_uuid.data(), properties.uuid.bytes, 16);
//   memory.bytes = kv_cache_bytes;
//   auto cache = client.OpenGpuCache(latticekv::PagedGpuCache(
//       *layout, {memory}, blocks, block_tokens, latticekv::GpuCacheOrder::kNhd));
//   auto put = client.PutPrefix({.layout = *layout, .tokens = ids, .gpu = {*cache, block_table}});
#ifndef LATTICEKV_GPU_MEMORY_H_
#define LATTICEKV_GPU_MEMORY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "latticekv/blocks.h"

namespace latticekv {

inline constexpr size_t kCudaIpcHandleBytes = 64;  // sizeof(cudaIpcMemHandle_t)
inline constexpr size_t kCudaUuidBytes = 16;       // sizeof(cudaUUID_t)

// Memory of one device, from cudaMalloc (memory of pools and of the virtual memory functions has no
// such handle).
struct GpuMemory {
  std::array<std::byte, kCudaIpcHandleBytes>
      ipc_handle{};                                     // cudaIpcGetMemHandle, of the allocation
  std::array<std::byte, kCudaUuidBytes> device_uuid{};  // cudaDeviceProp::uuid
  uint64_t offset = 0;                                  // of the memory in its allocation, in bytes
  uint64_t bytes = 0;                                   // of the memory, from `offset` on
};

// Where one plane of the layout lies. Element (block, slot, head, d) is at offset + block *
// block_stride + slot * token_stride + head * head_stride + d * element size of its memory; all in
// bytes, multiples of the element size.
struct GpuPlane {
  uint32_t memory = 0;  // index in GpuCacheSpec::memories
  uint64_t offset = 0;
  uint64_t block_stride = 0, token_stride = 0, head_stride = 0;
};

// A paged KV cache. One that is not paged is one block of all its tokens.
struct GpuCacheSpec {
  RegisteredLayout layout;
  std::vector<GpuMemory> memories;            // at most one a plane, each given once
  std::vector<std::vector<GpuPlane>> planes;  // [layer][plane] in the layout's order
  uint32_t blocks = 0;                        // of the cache
  uint32_t block_tokens = 0;                  // slots of a block
};

enum class GpuCacheOrder {
  kNhd,  // [blocks, block_tokens, heads, head_dim]
  kHnd,  // [blocks, heads, block_tokens, head_dim]
};

// The usual caches: one memory with all planes one behind the other in the layout's order, or one
// memory for each layer with that layer's planes, each plane contiguous in `order`.
GpuCacheSpec PagedGpuCache(RegisteredLayout layout, std::vector<GpuMemory> memories,
                           uint32_t blocks, uint32_t block_tokens, GpuCacheOrder order);

// A cache that the daemon has mapped (Client::OpenGpuCache), for as long as the object lives, at
// most kMaxRegions of all workers of a daemon. A daemon that was started anew has lost it: the next
// request that names it hands it over again by itself. When the worker dies the daemon unmaps it,
// and nothing of a block that was half put stays. Thread-safe; requests of several threads may name
// it at a time.
//
// Its memory must stay allocated for as long as the object and calls that name it live. Destroy the
// object before cudaFree.
class GpuCache {
 public:
  explicit GpuCache(GpuCacheSpec spec) : spec_(std::move(spec)) {}
  virtual ~GpuCache() = default;
  GpuCache(const GpuCache&) = delete;
  GpuCache& operator=(const GpuCache&) = delete;

  const GpuCacheSpec& spec() const { return spec_; }

 private:
  const GpuCacheSpec spec_;
};

// What became of one block of a get into GPU memory.
struct PlacedBlock {
  BlockInfo block;      // of a miss only its hash
  absl::Status status;  // OK: it is in its place. A miss, or why it could not be placed
};

struct PlacedBlocks {
  std::vector<PlacedBlock> blocks;  // in the order asked for, or of the session
  // The first block's error; OK when all blocks are in their places.
  absl::Status status() const;
  // Tokens of the blocks before the first one that is not in its place.
  uint64_t placed_tokens() const;
};

}  // namespace latticekv

#endif  // LATTICEKV_GPU_MEMORY_H_
