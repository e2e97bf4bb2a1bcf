// A worker's paged KV cache on the device, handed over to a daemon.
#ifndef LATTICEKV_TESTS_GPU_WORKER_CACHE_H_
#define LATTICEKV_TESTS_GPU_WORKER_CACHE_H_

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "latticekv/client.h"
#include "tests/gpu/device_batch.h"
#include "tests/support/paged_tokens.h"
#include "tests/support/sample_chunk.h"

namespace latticekv::testing {

// One allocation, plane behind plane.
class WorkerCache {
 public:
  static constexpr uint32_t kBlockTokens = 16;
  static constexpr std::byte kEmpty{0x5A};

  WorkerCache(const RegisteredLayout& layout, uint32_t blocks, GpuCacheOrder order)
      : memory_(layout.layout->token_bytes() * kBlockTokens * blocks) {
    cudaMemset(memory_.data(), static_cast<int>(kEmpty), memory_.size());
    cudaDeviceSynchronize();
    cudaIpcMemHandle_t handle{};
    cudaDeviceProp properties{};
    if (cudaIpcGetMemHandle(&handle, memory_.data()) != cudaSuccess ||
        cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
      abort();
    }
    GpuMemory memory;
    static_assert(sizeof(handle) == kCudaIpcHandleBytes);
    static_assert(sizeof(properties.uuid.bytes) == kCudaUuidBytes);
    std::memcpy(memory.ipc_handle.data(), &handle, sizeof(handle));
    std::memcpy(memory.device_uuid.data(), properties.uuid.bytes, sizeof(properties.uuid.bytes));
    memory.bytes = memory_.size();
    spec_ = PagedGpuCache(layout, {memory}, blocks, kBlockTokens, order);
  }
  size_t bytes() const { return memory_.size(); }
  const GpuCacheSpec& spec() const { return spec_; }

  // Lays contiguous tokens from `position` on out in `cache`, an image of this one.
  void Lay(ByteSpan tokens, const std::vector<uint32_t>& table, uint64_t position,
           ByteVector* cache) const {
    LayTokens(spec_, table, position, tokens, cache->data());
  }
  void Upload(const ByteVector& cache) {
    cudaMemcpy(memory_.data(), cache.data(), cache.size(), cudaMemcpyHostToDevice);
    cudaDeviceSynchronize();
  }
  ByteVector Download() const { return ToHost(memory_); }
  ByteVector Empty() const { return ByteVector(memory_.size(), kEmpty); }

 private:
  DeviceBuffer memory_;
  GpuCacheSpec spec_;
};

// The first `count` of the cache's blocks in an order that `seed` gives.
inline std::vector<uint32_t> ShuffledTable(uint32_t blocks, uint32_t count, uint64_t seed) {
  std::vector<uint32_t> order(blocks);
  for (uint32_t b = 0; b < blocks; ++b) order[b] = b;
  Random random(seed);
  for (uint32_t b = blocks - 1; b > 0; --b) std::swap(order[b], order[random.Below(b + 1)]);
  order.resize(count);
  return order;
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_GPU_WORKER_CACHE_H_
