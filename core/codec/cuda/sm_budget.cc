#include "core/codec/cuda/sm_budget.h"

#include <algorithm>

#include "core/base/status_macros.h"
#include "core/codec/cuda/cuda_driver.h"
#include "core/codec/cuda/cuda_memory.h"

namespace latticekv {
namespace {

absl::StatusOr<uint32_t> DeviceMultiprocessors(int device) {
  int count = 0;
  LKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
                 "cannot ask the device"));
  return static_cast<uint32_t>(count);
}

}  // namespace

absl::StatusOr<SmBudget> SmBudget::Make(int device, int percent) {
  SmBudget budget;
  LKV_ASSIGN_OR_RETURN(const uint32_t all, DeviceMultiprocessors(device));
  budget.multiprocessors_ = all;
  if (percent >= 100) return budget;
  LKV_ASSIGN_OR_RETURN(const auto get_device,
                       DriverFunction<decltype(&cuDeviceGet)>("cuDeviceGet"));
  LKV_ASSIGN_OR_RETURN(const auto get_resource,
                       DriverFunction<decltype(&cuDeviceGetDevResource)>("cuDeviceGetDevResource"));
  LKV_ASSIGN_OR_RETURN(const auto split, DriverFunction<decltype(&cuDevSmResourceSplitByCount)>(
                                             "cuDevSmResourceSplitByCount"));
  LKV_ASSIGN_OR_RETURN(const auto describe, DriverFunction<decltype(&cuDevResourceGenerateDesc)>(
                                                "cuDevResourceGenerateDesc"));
  LKV_ASSIGN_OR_RETURN(const auto create,
                       DriverFunction<decltype(&cuGreenCtxCreate)>("cuGreenCtxCreate"));
  CUdevice handle = 0;
  LKV_RETURN_IF_ERROR(DriverStatus(get_device(&handle, device), "no device"));
  CUdevResource whole{}, part{};
  LKV_RETURN_IF_ERROR(DriverStatus(get_resource(handle, &whole, CU_DEV_RESOURCE_TYPE_SM),
                                   "cannot ask for multiprocessors"));
  const unsigned int wanted = std::max<unsigned int>(1, (all * percent + 99) / 100);
  unsigned int groups = 1;
  LKV_RETURN_IF_ERROR(DriverStatus(split(&part, &groups, &whole, nullptr, 0, wanted),
                                   "cannot part the multiprocessors"));
  CUdevResourceDesc description = nullptr;
  LKV_RETURN_IF_ERROR(DriverStatus(describe(&description, &part, 1), "cannot describe the part"));
  CUgreenCtx context = nullptr;
  LKV_RETURN_IF_ERROR(DriverStatus(
      create(&context, description, handle, CU_GREEN_CTX_DEFAULT_STREAM), "no green context"));
  budget.context_ = context;
  budget.multiprocessors_ = part.sm.smCount;
  return budget;
}

absl::StatusOr<cudaStream_t> SmBudget::MakeStream() const {
  int least = 0, greatest = 0;
  LKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities of streams"));
  cudaStream_t stream = nullptr;
  if (context_ == nullptr) {
    LKV_RETURN_IF_ERROR(CudaStatus(
        cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, least), "no stream"));
    return stream;
  }
  LKV_ASSIGN_OR_RETURN(const auto create,
                       DriverFunction<decltype(&cuGreenCtxStreamCreate)>("cuGreenCtxStreamCreate"));
  LKV_RETURN_IF_ERROR(DriverStatus(
      create(&stream, static_cast<CUgreenCtx>(context_), CU_STREAM_NON_BLOCKING, least),
      "no stream in the green context"));
  return stream;
}

}  // namespace latticekv
