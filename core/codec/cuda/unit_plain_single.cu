#include "core/codec/cuda/unit_kernel.cuh"

namespace latticekv::cuda {

template cudaError_t LaunchShape<false, true>(const EncodeLaunch&, int, cudaStream_t);

}  // namespace latticekv::cuda
