// A share of a device's multiprocessors.
#ifndef LATTICEKV_CORE_CODEC_CUDA_SM_BUDGET_H_
#define LATTICEKV_CORE_CODEC_CUDA_SM_BUDGET_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/statusor.h"

namespace latticekv {

// Makes streams whose kernels run on a fixed part of the device's multiprocessors (a green context
// of the driver), or on all of them. Lives as long as the process: streams may outlast it.
class SmBudget {
 public:
  // `percent` of the device's multiprocessors, rounded up to what the driver can part. 100: all.
  // UNIMPLEMENTED when the driver knows no green contexts.
  static absl::StatusOr<SmBudget> Make(int device, int percent);

  uint32_t multiprocessors() const { return multiprocessors_; }
  absl::StatusOr<cudaStream_t> MakeStream() const;

 private:
  uint32_t multiprocessors_ = 0;
  void* context_ = nullptr;  // null: the whole device
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_SM_BUDGET_H_
