// Launches of the encode kernels, in the order in which they run, behind LaunchRope. Internal to
// core/codec/cuda; no absl here, so that nvcc need not read it.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ENCODE_KERNELS_H_
#define LATTICEKV_CORE_CODEC_CUDA_ENCODE_KERNELS_H_

#include <cuda_runtime_api.h>

#include "core/codec/cuda/encode_tasks.h"

namespace latticekv::cuda {

// Lattice points, side values and errors of every unit.
cudaError_t LaunchUnits(const EncodeLaunch& launch, cudaStream_t stream);
// The symbol streams of every tile.
cudaError_t LaunchEntropy(const EncodeLaunch& launch, cudaStream_t stream);
// Places tiles and layers, copies them there, takes the layers' checksums; gathers planes that the
// host codes.
cudaError_t LaunchAssembly(const EncodeLaunch& launch, cudaStream_t stream);

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_ENCODE_KERNELS_H_
