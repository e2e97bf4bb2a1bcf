// Launch of the decode kernels. Internal to core/codec/cuda; no absl here, so that nvcc need not
// read it.
#ifndef LATTICEKV_CORE_CODEC_CUDA_DECODE_KERNEL_H_
#define LATTICEKV_CORE_CODEC_CUDA_DECODE_KERNEL_H_

#include <cuda_runtime_api.h>

#include "core/codec/cuda/decode_tasks.h"

namespace latticekv::cuda {

// Enqueues the kernel that computes rotary tables, RopeTask [tasks] at `tasks_at`.
cudaError_t LaunchRope(unsigned char* arena_dev, uint64_t tasks_at, uint32_t tasks,
                       cudaStream_t stream);
// Enqueues the rotary tables and then the tiles on `stream`.
cudaError_t LaunchDecode(const DecodeLaunch& launch, cudaStream_t stream);

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_DECODE_KERNEL_H_
