// Memory on the device and beside it, for tests and benchmarks.
#ifndef LATTICEKV_TESTS_GPU_DEVICE_BATCH_H_
#define LATTICEKV_TESTS_GPU_DEVICE_BATCH_H_

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "core/codec/cuda/cuda_decoder.h"
#include "core/codec/cuda/owned_memory.h"

namespace latticekv::testing {

// Empty when there is a device, else why not.
inline std::string WhyNoDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no CUDA device: ") + cudaGetErrorString(error);
  return count > 0 ? "" : "no CUDA device on this machine";
}

// Owned memory of the codec's. Aborts the test when there is none.
template <typename Memory>
class TestBuffer : public Memory {
 public:
  TestBuffer() = default;
  explicit TestBuffer(size_t size) : Memory(MustMake(size)) {}

 private:
  static Memory MustMake(size_t size) {
    absl::StatusOr<Memory> memory = Memory::Make(size);
    if (!memory.ok()) std::abort();
    return *std::move(memory);
  }
};
using DeviceBuffer = TestBuffer<DeviceMemory>;
using PinnedBuffer = TestBuffer<PinnedMemory>;

inline ByteVector ToHost(const DeviceBuffer& buffer) {
  ByteVector out(buffer.size());
  if (cudaMemcpy(out.data(), buffer.data(), out.size(), cudaMemcpyDeviceToHost) != cudaSuccess) {
    std::abort();
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
