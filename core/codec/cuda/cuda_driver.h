// Functions of the CUDA driver, found at run time: the build needs no driver, and older ones lack
// some.
#ifndef LATTICEKV_CORE_CODEC_CUDA_CUDA_DRIVER_H_
#define LATTICEKV_CORE_CODEC_CUDA_CUDA_DRIVER_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace latticekv {

// The driver's `name` as CUDA 12.5 has it; UNIMPLEMENTED when it has none.
template <typename Function>
absl::StatusOr<Function> DriverFunction(const char* name) {
  constexpr unsigned int kVersion = 12050;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &function, kVersion, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr) {
    cudaGetLastError();
    return absl::UnimplementedError(
        absl::StrCat("the driver has no ", name, "; use one of CUDA 12.5 or later"));
  }
  return reinterpret_cast<Function>(function);
}

inline absl::Status DriverStatus(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("CUDA driver: ", what, ": error ", static_cast<int>(result)));
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_CUDA_DRIVER_H_
