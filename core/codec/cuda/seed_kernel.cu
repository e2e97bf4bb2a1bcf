// The seed stages but for zstd, a vector a thread. What a thread does is in seed_rows.h.
#include "core/codec/cuda/seed_kernel.h"
#include "core/codec/cuda/seed_rows.h"

namespace latticekv::cuda {
namespace {

extern __shared__ float scratch[];

__device__ SeedThread ThisThread() { return {blockIdx.x, gridDim.x, threadIdx.x, blockDim.x}; }
__device__ float* Scratch(const SeedLaunch& launch) {
  return scratch + threadIdx.x * SeedPitch(launch.max_dim);
}

__global__ void EncodeRowsKernel(SeedLaunch launch) {
  EncodeSeedRows(launch, ThisThread(), Scratch(launch));
}
__global__ void TakeDifferencesKernel(SeedLaunch launch) {
  TakeAllSeedDifferences(launch, ThisThread());
}
__global__ void SumDifferencesKernel(SeedLaunch launch) {
  SumAllSeedDifferences(launch, ThisThread());
}
__global__ void DecodeRowsKernel(SeedLaunch launch) {
  DecodeSeedRows(launch, ThisThread(), Scratch(launch));
}

template <typename Kernel>
cudaError_t LaunchRows(Kernel kernel, const SeedLaunch& launch, cudaStream_t stream) {
  const uint32_t threads = SeedRowThreads(launch.max_dim);
  const size_t bytes = sizeof(float) * threads * SeedPitch(launch.max_dim);
  kernel<<<launch.blocks, threads, bytes, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchSeedEncode(const SeedLaunch& launch, cudaStream_t stream) {
  if (launch.units == 0) return cudaSuccess;
  const cudaError_t error = LaunchRows(EncodeRowsKernel, launch, stream);
  if (error != cudaSuccess) return error;
  TakeDifferencesKernel<<<launch.blocks, kSeedThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

cudaError_t LaunchSeedDecode(const SeedLaunch& launch, cudaStream_t stream) {
  if (launch.units == 0) return cudaSuccess;
  SumDifferencesKernel<<<launch.blocks, kSeedThreads, 0, stream>>>(launch);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return LaunchRows(DecodeRowsKernel, launch, stream);
}

}  // namespace latticekv::cuda
