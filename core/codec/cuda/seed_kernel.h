// Launch of the seed stages' kernels. Internal to core/codec/cuda; no absl here, so that nvcc need
// not read it.
#ifndef LATTICEKV_CORE_CODEC_CUDA_SEED_KERNEL_H_
#define LATTICEKV_CORE_CODEC_CUDA_SEED_KERNEL_H_

#include <cuda_runtime_api.h>

#include "core/codec/cuda/seed_tasks.h"

namespace latticekv::cuda {

// Enqueue what is between the planes and the points that zstd codes; rotary tables must be there.
cudaError_t LaunchSeedEncode(const SeedLaunch& launch, cudaStream_t stream);
cudaError_t LaunchSeedDecode(const SeedLaunch& launch, cudaStream_t stream);

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_SEED_KERNEL_H_
