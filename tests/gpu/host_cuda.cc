// Stands in for the CUDA runtime and the kernels where the seed stages' device code is to run on
// the host: device memory is memory, a stream is always through, and threads run one after the
// other. Kernels of the lattice stages are not there; of what they share with the seed stages
// (rotary tables, copies), this has its own.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "core/codec/cuda/decode_kernel.h"
#include "core/codec/cuda/encode_kernels.h"
#include "core/codec/cuda/seed_kernel.h"
#include "core/layout/rotary_phase.h"
#include "tests/support/host_seed_kernels.h"

namespace {

constexpr size_t kAlignment = 256;
// Some, so that units and rows are dealt to several blocks.
constexpr int kMultiprocessors = 3;

cudaError_t Allocate(void** out, size_t size) {
  *out = std::aligned_alloc(kAlignment, (size + kAlignment) / kAlignment * kAlignment);
  return *out != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t Copy(void* to, const void* from, size_t size) {
  if (size > 0) std::memcpy(to, from, size);
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = kMultiprocessors;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "refused by the stand-in"; }
cudaError_t cudaMalloc(void** out, size_t size) { return Allocate(out, size); }
cudaError_t cudaHostAlloc(void** out, size_t size, unsigned int) { return Allocate(out, size); }
cudaError_t cudaFree(void* p) {
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaMemset(void* to, int value, size_t size) {
  std::memset(to, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  return cudaMemset(to, value, size);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  return Copy(to, from, size);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  return Copy(to, from, size);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind) {
  for (size_t i = 0; i < height; ++i) {
    Copy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch,
         width);
  }
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

}  // extern "C"

namespace latticekv::cuda {
namespace {

cudaError_t OnlyWithout(uint32_t tasks) { return tasks == 0 ? cudaSuccess : cudaErrorNotSupported; }

unsigned char* Address(uint64_t data, uint64_t block_stride, uint64_t token_stride,
                       TokenPlace place) {
  return reinterpret_cast<unsigned char*>(data + place.block * block_stride +
                                          place.slot * token_stride);
}

}  // namespace

cudaError_t LaunchRope(unsigned char* arena, uint64_t tasks_at, uint32_t tasks, cudaStream_t) {
  for (uint32_t n = 0; n < tasks; ++n) {
    const RopeTask task = ArenaArray<const RopeTask>(arena, tasks_at)[n];
    const auto* frequencies = ArenaArray<const uint64_t>(arena, task.frequencies_at);
    const auto* tokens = ArenaArray<const uint8_t>(arena, task.tokens_at);
    auto* out = ArenaArray<SinCos>(arena, task.out_at);
    for (uint32_t i = 0; i < task.rows * task.pairs; ++i) {
      const uint64_t position = task.start_position + tokens[i / task.pairs];
      out[i] = RopeSinCos(position * frequencies[i % task.pairs]);
    }
  }
  return cudaSuccess;
}

// Tiles without symbols: raw vectors and zeros alone.
cudaError_t LaunchDecode(const DecodeLaunch& launch, cudaStream_t stream) {
  unsigned char* arena = launch.arena_dev;
  LaunchRope(arena, launch.rope_tasks_at, launch.rope_tasks, stream);
  for (uint32_t n = 0; n < launch.tiles; ++n) {
    const TileTask& tile = ArenaArray<const TileTask>(arena, launch.tiles_at)[n];
    if (tile.groups > 0) return cudaErrorNotSupported;
    for (uint32_t u = 0; u < tile.units; ++u) {
      const UnitTask& unit =
          ArenaArray<const UnitTask>(arena, launch.units_at)[tile.first_unit + u];
      const uint32_t vectors = unit.all_zero ? tile.tokens : unit.raw_count;
      for (uint32_t i = 0; i < vectors; ++i) {
        const uint32_t token = unit.all_zero ? i : arena[unit.order_at + i];
        const TokenPlace place = ArenaArray<const TokenPlace>(arena, tile.places_at)[token];
        unsigned char* dst = Address(unit.dst, unit.block_stride, unit.token_stride, place);
        if (unit.all_zero) {
          std::memset(dst, 0, unit.vector_bytes);
        } else {
          Copy(dst, arena + unit.raw_at + uint64_t{i} * unit.vector_bytes, unit.vector_bytes);
        }
      }
    }
  }
  return cudaSuccess;
}

template <bool kPaired, bool kSingle>
cudaError_t LaunchShape(const EncodeLaunch& launch, int shape, cudaStream_t) {
  return OnlyWithout(launch.unit_lists[shape]);
}
template cudaError_t LaunchShape<true, true>(const EncodeLaunch&, int, cudaStream_t);
template cudaError_t LaunchShape<true, false>(const EncodeLaunch&, int, cudaStream_t);
template cudaError_t LaunchShape<false, true>(const EncodeLaunch&, int, cudaStream_t);
template cudaError_t LaunchShape<false, false>(const EncodeLaunch&, int, cudaStream_t);

cudaError_t LaunchFused(const EncodeLaunch& launch, cudaStream_t) {
  return OnlyWithout(launch.units);
}
cudaError_t LaunchEntropy(const EncodeLaunch& launch, cudaStream_t) {
  return OnlyWithout(launch.tiles);
}
// Gathers alone.
cudaError_t LaunchAssembly(const EncodeLaunch& launch, cudaStream_t) {
  unsigned char* arena = launch.arena_dev;
  for (uint32_t n = 0; n < launch.gathers; ++n) {
    const GatherTask& task = ArenaArray<const GatherTask>(arena, launch.gathers_at)[n];
    unsigned char* out = arena + task.out_at;
    for (uint32_t t = 0; t < task.tokens; ++t) {
      const TokenPlace place = ArenaArray<const TokenPlace>(arena, task.places_at)[t];
      for (uint32_t h = 0; h < task.heads; ++h, out += task.vector_bytes) {
        Copy(out,
             Address(task.src, task.block_stride, task.token_stride, place) + h * task.head_stride,
             task.vector_bytes);
      }
    }
  }
  return OnlyWithout(launch.layers);
}

cudaError_t LaunchSeedEncode(const SeedLaunch& launch, cudaStream_t) {
  if (launch.units > 0) testing::RunSeedEncode(launch);
  return cudaSuccess;
}
cudaError_t LaunchSeedDecode(const SeedLaunch& launch, cudaStream_t) {
  if (launch.units > 0) testing::RunSeedDecode(launch);
  return cudaSuccess;
}

}  // namespace latticekv::cuda
