// Runs every thread of the seed stages' kernels on the host, one after the other.
#ifndef LATTICEKV_TESTS_SUPPORT_HOST_SEED_KERNELS_H_
#define LATTICEKV_TESTS_SUPPORT_HOST_SEED_KERNELS_H_

#include <vector>

#include "core/codec/cuda/seed_rows.h"

namespace latticekv::testing {

// Calls run(thread) for every thread of every block.
template <typename Run>
void ForEachThread(uint32_t blocks, uint32_t threads, const Run& run) {
  for (uint32_t b = 0; b < blocks; ++b) {
    for (uint32_t t = 0; t < threads; ++t) run(cuda::SeedThread{b, blocks, t, threads});
  }
}

// As cuda::LaunchSeedEncode and cuda::LaunchSeedDecode.
inline void RunSeedEncode(const cuda::SeedLaunch& launch) {
  std::vector<float> x(cuda::SeedPitch(launch.max_dim));
  ForEachThread(launch.blocks, cuda::SeedRowThreads(launch.max_dim),
                [&](const auto& at) { cuda::EncodeSeedRows(launch, at, x.data()); });
  ForEachThread(launch.blocks, cuda::kSeedThreads,
                [&](const auto& at) { cuda::TakeAllSeedDifferences(launch, at); });
}
inline void RunSeedDecode(const cuda::SeedLaunch& launch) {
  std::vector<float> x(cuda::SeedPitch(launch.max_dim));
  ForEachThread(launch.blocks, cuda::kSeedThreads,
                [&](const auto& at) { cuda::SumAllSeedDifferences(launch, at); });
  ForEachThread(launch.blocks, cuda::SeedRowThreads(launch.max_dim),
                [&](const auto& at) { cuda::DecodeSeedRows(launch, at, x.data()); });
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_HOST_SEED_KERNELS_H_
