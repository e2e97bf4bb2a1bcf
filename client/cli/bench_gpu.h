// latticekv bench codec --backend cuda: speed of the GPU codec beside plain copies.
#ifndef LATTICEKV_CLIENT_CLI_BENCH_GPU_H_
#define LATTICEKV_CLIENT_CLI_BENCH_GPU_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "client/cli/arguments.h"
#include "core/base/bytes.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"

namespace latticekv {

// A model and chunks of its cache of limits::kMaxChunkTokens tokens, chunk i from token i *
// kMaxChunkTokens on.
struct GpuBenchModel {
  Layout layout;
  ModelProfile profile;
  std::vector<ByteVector> chunks;
};
using MakeGpuBenchModel = std::function<GpuBenchModel(const Layout& layout)>;
// The made-up cache that the CPU's benchmark uses as well.
GpuBenchModel MakeSyntheticModel(const Layout& layout);

// Measures and prints. UsageError for flags of the other backends; FAILED_PRECONDITION where there
// is no device or the build knows no CUDA.
absl::Status BenchCodecOnGpu(const Arguments& arguments, const MakeGpuBenchModel& make);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_BENCH_GPU_H_
