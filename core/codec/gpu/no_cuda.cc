// In builds without a CUDA compiler.
#include "core/codec/gpu/gpu_bench.h"
#include "core/codec/gpu/gpu_device.h"

namespace latticekv {

absl::StatusOr<std::unique_ptr<GpuDevice>> OpenCudaDevice(const GpuOptions&) {
  return absl::FailedPreconditionError(
      "this build knows no CUDA; build it where a CUDA compiler is found to use a GPU");
}

absl::StatusOr<std::unique_ptr<GpuBench>> OpenCudaBench() {
  return absl::FailedPreconditionError(
      "this build knows no CUDA; build it where a CUDA compiler is found to use a GPU");
}

}  // namespace latticekv
