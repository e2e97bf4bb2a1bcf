// Notes which multiprocessors its blocks ran on.
#include "tests/gpu/sm_ids_kernel.h"

namespace latticekv::testing {
namespace {

__global__ void NoteMultiprocessor(unsigned int* seen) {
  unsigned int id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  // Long enough that no multiprocessor takes all blocks.
  const long long end = clock64() + 20000;
  while (clock64() < end) {
  }
  if (threadIdx.x == 0) atomicAdd(&seen[id], 1u);
}

}  // namespace

cudaError_t LaunchNoteMultiprocessor(unsigned int* seen_dev, int blocks, cudaStream_t stream) {
  NoteMultiprocessor<<<blocks, 1024, 0, stream>>>(seen_dev);
  return cudaGetLastError();
}

}  // namespace latticekv::testing
