// Launches of the encode kernels, in the order in which they run, behind LaunchRope. Internal to
// core/codec/cuda; no absl here, so that nvcc need not read it.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ENCODE_KERNELS_H_
#define LATTICEKV_CORE_CODEC_CUDA_ENCODE_KERNELS_H_

#include <cuda_runtime_api.h>

#include "core/codec/cuda/encode_tasks.h"

namespace latticekv::cuda {

// Lattice points, side values and errors of every unit of one shape of slices.
template <bool kPaired, bool kSingle>
cudaError_t LaunchShape(const EncodeLaunch& launch, int shape, cudaStream_t stream);
extern template cudaError_t LaunchShape<true, true>(const EncodeLaunch&, int, cudaStream_t);
extern template cudaError_t LaunchShape<true, false>(const EncodeLaunch&, int, cudaStream_t);
extern template cudaError_t LaunchShape<false, true>(const EncodeLaunch&, int, cudaStream_t);
extern template cudaError_t LaunchShape<false, false>(const EncodeLaunch&, int, cudaStream_t);
// The fused kernels' units, before the others; LaunchFusedOwn for statistics that are not simply
// the profile's.
cudaError_t LaunchFused(const EncodeLaunch& launch, cudaStream_t stream);
cudaError_t LaunchFusedOwn(const EncodeLaunch& launch, cudaStream_t stream);
inline cudaError_t LaunchUnits(const EncodeLaunch& launch, cudaStream_t stream) {
  cudaError_t error = LaunchFused(launch, stream);
  if (error == cudaSuccess) error = LaunchShape<true, true>(launch, kPairedSingle, stream);
  if (error == cudaSuccess) error = LaunchShape<true, false>(launch, kPairedMulti, stream);
  if (error == cudaSuccess) error = LaunchShape<false, true>(launch, kPlainSingle, stream);
  if (error == cudaSuccess) error = LaunchShape<false, false>(launch, kPlainMulti, stream);
  return error;
}
// The symbol streams of every tile.
cudaError_t LaunchEntropy(const EncodeLaunch& launch, cudaStream_t stream);
// Places tiles and layers, copies them there, takes the layers' checksums; gathers planes that the
// host codes.
cudaError_t LaunchAssembly(const EncodeLaunch& launch, cudaStream_t stream);

}  // namespace latticekv::cuda

#endif  // LATTICEKV_CORE_CODEC_CUDA_ENCODE_KERNELS_H_
