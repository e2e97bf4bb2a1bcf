// Memory on the device and beside it, for tests and benchmarks.
#ifndef LATTICEKV_TESTS_GPU_DEVICE_BATCH_H_
#define LATTICEKV_TESTS_GPU_DEVICE_BATCH_H_

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "core/codec/cuda/cuda_decoder.h"

namespace latticekv::testing {

// Empty when there is a device, else why not.
inline std::string WhyNoDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no CUDA device: ") + cudaGetErrorString(error);
  return count > 0 ? "" : "no CUDA device on this machine";
}

// Device or page-locked memory, freed at the end. Aborts the test when there is none.
template <bool kDevice>
class CudaBuffer {
 public:
  CudaBuffer() = default;
  explicit CudaBuffer(size_t size) : size_(size) {
    void* p = nullptr;
    const cudaError_t error = kDevice ? cudaMalloc(&p, size) : cudaMallocHost(&p, size);
    if (error != cudaSuccess) std::abort();
    data_ = static_cast<std::byte*>(p);
  }
  CudaBuffer(CudaBuffer&& other) noexcept { *this = std::move(other); }
  CudaBuffer& operator=(CudaBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~CudaBuffer() {
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
using DeviceBuffer = CudaBuffer<true>;
using PinnedBuffer = CudaBuffer<false>;

inline ByteVector ToHost(const DeviceBuffer& buffer) {
  ByteVector out(buffer.size());
  if (cudaMemcpy(out.data(), buffer.data(), out.size(), cudaMemcpyDeviceToHost) != cudaSuccess) {
    std::abort();
  }
  return out;
}

// Planes of a contiguous chunk, [layer][plane] one behind the other as RawChunkViews has
// them.
inline std::vector<std::vector<DevicePlane>> ContiguousPlanes(const Layout& layout, uint32_t tokens,
                                                              std::byte* data_dev) {
  std::vector<std::vector<DevicePlane>> out;
  for (const LayerSpec& layer : layout.layers) {
    std::vector<DevicePlane>& planes = out.emplace_back();
    for (const PlaneSpec& plane : layer.planes) {
      planes.push_back({data_dev, plane.token_bytes(), plane.head_dim * DTypeBytes(plane.dtype)});
      data_dev += plane.token_bytes() * tokens;
    }
  }
  return out;
}

// Memory for one run of `plan`, a CudaDecodePlan or a CudaEncodePlan.
struct OwnedArena {
  template <typename Plan>
  explicit OwnedArena(const Plan& plan) : device(plan.device_bytes()), pinned(plan.pinned_bytes()) {
    cudaMemset(device.data(), 0xA5, device.size());
  }
  CudaArena arena() const { return {device.data(), device.size(), pinned.data(), pinned.size()}; }
  DeviceBuffer device;
  PinnedBuffer pinned;
};

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_GPU_DEVICE_BATCH_H_
