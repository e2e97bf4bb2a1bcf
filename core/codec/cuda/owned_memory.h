// Memory of the current device and page-locked memory, freed by their owner. Internal to
// core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_OWNED_MEMORY_H_
#define LATTICEKV_CORE_CODEC_CUDA_OWNED_MEMORY_H_

#include <cuda_runtime_api.h>

#include <utility>

#include "core/base/status_macros.h"
#include "core/codec/cuda/cuda_memory.h"

namespace latticekv {

// Device or page-locked memory, aligned as an arena wants it.
template <bool kDevice>
class OwnedMemory {
 public:
  // RESOURCE_EXHAUSTED when there is not that much.
  static absl::StatusOr<OwnedMemory> Make(size_t size) {
    void* memory = nullptr;
    LKV_RETURN_IF_ERROR(kDevice ? CudaStatus(cudaMalloc(&memory, size), "no memory on the device")
                                : CudaStatus(cudaHostAlloc(&memory, size, cudaHostAllocDefault),
                                             "no page-locked memory"));
    OwnedMemory out;
    out.data_ = static_cast<std::byte*>(memory);
    out.size_ = size;
    return out;
  }
  OwnedMemory() = default;
  OwnedMemory(OwnedMemory&& other) noexcept { *this = std::move(other); }
  OwnedMemory& operator=(OwnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~OwnedMemory() {
    if (data_ == nullptr) return;
    if (kDevice) {
      cudaFree(data_);
    } else {
      cudaFreeHost(data_);
    }
  }
  // Never frees it, for a device that does not answer any more.
  void Leak() { data_ = nullptr; }
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};
using DeviceMemory = OwnedMemory<true>;
using PinnedMemory = OwnedMemory<false>;

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_OWNED_MEMORY_H_
