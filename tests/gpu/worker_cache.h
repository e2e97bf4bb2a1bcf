// A worker's paged KV cache on the device, handed over to a daemon.
#ifndef LATTICEKV_TESTS_GPU_WORKER_CACHE_H_
#define LATTICEKV_TESTS_GPU_WORKER_CACHE_H_

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "tests/gpu/device_batch.h"
#include "tests/gpu/gpu_daemon.h"

namespace latticekv::testing {

// One allocation, plane behind plane, in NHD or HND order; of layouts whose planes are all alike.
class WorkerCache {
 public:
  static constexpr uint32_t kBlockTokens = 16;
  static constexpr std::byte kEmpty{0x5A};

  WorkerCache(const Layout& layout, uint32_t blocks, bool hnd)
      : spec_(layout.layers[0].planes[0]),
        planes_(layout.layers.size() * layout.layers[0].planes.size()),
        blocks_(blocks),
        hnd_(hnd),
        memory_(plane_bytes() * planes_) {
    cudaMemset(memory_.data(), static_cast<int>(kEmpty), memory_.size());
  }
  size_t bytes() const { return memory_.size(); }

  v1::CudaRegion Region(const std::string& name_space, const std::string& fingerprint) const {
    v1::CudaRegion region;
    region.set_namespace_(name_space);
    region.set_fingerprint(fingerprint);
    cudaIpcMemHandle_t handle{};
    cudaDeviceProp properties{};
    if (cudaIpcGetMemHandle(&handle, memory_.data()) != cudaSuccess ||
        cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
      abort();
    }
    v1::CudaMemory* memory = region.add_memories();
    memory->set_ipc_handle(&handle, sizeof(handle));
    memory->set_device_uuid(properties.uuid.bytes, sizeof(properties.uuid.bytes));
    memory->set_bytes(memory_.size());
    region.set_blocks(blocks_);
    region.set_block_tokens(kBlockTokens);
    for (size_t i = 0; i < planes_; ++i) {
      v1::CudaPlane* plane = region.add_planes();
      plane->set_offset(i * plane_bytes());
      plane->set_block_stride(block_bytes());
      plane->set_token_stride(token_stride());
      plane->set_head_stride(head_stride());
    }
    return region;
  }

  // Lays a contiguous payload of tokens from `position` on out in `cache`, an image of this one.
  void Lay(std::string_view payload, const v1::BlockTable& table, uint64_t position,
           ByteVector* cache) const {
    const size_t tokens = payload.size() / (planes_ * spec_.token_bytes());
    size_t at = 0;
    for (size_t i = 0; i < planes_; ++i) {
      for (size_t t = 0; t < tokens; ++t) {
        const uint64_t token = position + t;
        std::byte* slot = cache->data() + i * plane_bytes() +
                          table.blocks(static_cast<int>(token / kBlockTokens)) * block_bytes() +
                          token % kBlockTokens * token_stride();
        for (uint32_t h = 0; h < spec_.heads; ++h, at += vector_bytes()) {
          std::memcpy(slot + h * head_stride(), payload.data() + at, vector_bytes());
        }
      }
    }
  }
  void Upload(const ByteVector& cache) {
    cudaMemcpy(memory_.data(), cache.data(), cache.size(), cudaMemcpyHostToDevice);
    cudaDeviceSynchronize();
  }
  ByteVector Download() const { return ToHost(memory_); }
  ByteVector Empty() const { return ByteVector(memory_.size(), kEmpty); }

 private:
  size_t vector_bytes() const { return spec_.head_dim * DTypeBytes(spec_.dtype); }
  size_t block_bytes() const { return spec_.token_bytes() * kBlockTokens; }
  size_t plane_bytes() const { return block_bytes() * blocks_; }
  size_t token_stride() const { return hnd_ ? vector_bytes() : spec_.token_bytes(); }
  size_t head_stride() const { return hnd_ ? kBlockTokens * vector_bytes() : vector_bytes(); }

  const PlaneSpec spec_;
  const size_t planes_;
  const uint32_t blocks_;
  const bool hnd_;
  DeviceBuffer memory_;
};

// The first `count` of the cache's blocks in an order that `seed` gives.
inline v1::BlockTable ShuffledTable(uint32_t blocks, uint32_t count, uint64_t seed) {
  std::vector<uint32_t> order(blocks);
  for (uint32_t b = 0; b < blocks; ++b) order[b] = b;
  Random random(seed);
  for (uint32_t b = blocks - 1; b > 0; --b) std::swap(order[b], order[random.Below(b + 1)]);
  v1::BlockTable table;
  table.mutable_blocks()->Add(order.begin(), order.begin() + count);
  return table;
}

// The region's id; 0 with a message on stderr when it is refused.
inline uint64_t HandOver(GpuDaemonClient& client, const v1::CudaRegion& region,
                         std::unique_ptr<RegionCall>* lease) {
  v1::OpenRegionRequest request;
  *request.mutable_cuda() = region;
  *lease = client.stub().OpenRegion(request);
  v1::RegionGrant grant;
  if ((*lease)->Read(&grant)) return grant.region_id();
  fprintf(stderr, "no region: %s\n", (*lease)->Finish().message.c_str());
  return 0;
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_GPU_WORKER_CACHE_H_
