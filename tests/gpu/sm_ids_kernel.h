// A kernel that notes which multiprocessors it ran on.
#ifndef LATTICEKV_TESTS_GPU_SM_IDS_KERNEL_H_
#define LATTICEKV_TESTS_GPU_SM_IDS_KERNEL_H_

#include <cuda_runtime_api.h>

namespace latticekv::testing {

// Adds each block to seen_dev[its multiprocessor].
cudaError_t LaunchNoteMultiprocessor(unsigned int* seen_dev, int blocks, cudaStream_t stream);

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_GPU_SM_IDS_KERNEL_H_
