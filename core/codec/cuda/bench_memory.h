// Memory that benchmarks own. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_BENCH_MEMORY_H_
#define LATTICEKV_CORE_CODEC_CUDA_BENCH_MEMORY_H_

#include <cuda_runtime_api.h>

#include <utility>

#include "core/base/status_macros.h"
#include "core/codec/cuda/cuda_memory.h"

namespace latticekv {

// Device or page-locked memory, freed at the end.
template <bool kDevice>
class BenchMemory {
 public:
  static absl::StatusOr<BenchMemory> Make(size_t size) {
    void* memory = nullptr;
    LKV_RETURN_IF_ERROR(kDevice ? CudaStatus(cudaMalloc(&memory, size), "no memory on the device")
                                : CudaStatus(cudaHostAlloc(&memory, size, cudaHostAllocDefault),
                                             "no page-locked memory"));
    BenchMemory out;
    out.data_ = static_cast<std::byte*>(memory);
    out.size_ = size;
    return out;
  }
  BenchMemory() = default;
  BenchMemory(BenchMemory&& other) noexcept { *this = std::move(other); }
  BenchMemory& operator=(BenchMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~BenchMemory() {
    if (data_ == nullptr) return;
    if (kDevice) {
      cudaFree(data_);
    } else {
      cudaFreeHost(data_);
    }
  }
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};
using DeviceMemory = BenchMemory<true>;
using PinnedMemory = BenchMemory<false>;

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_BENCH_MEMORY_H_
