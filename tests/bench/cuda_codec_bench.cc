// `latticekv bench codec --backend cuda`, with its flags, on the chunks that the GPU tests use
// instead of the command's made-up cache: all their units fit the encoder's fused kernel, and their
// profile is rougher (docs/results/cuda_codec.md).
#include <cstdio>
#include <string>
#include <vector>

#include "client/cli/bench_gpu.h"
#include "client/cli/command.h"
#include "core/base/limits.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

GpuBenchModel MakeSampleModel(const Layout& layout) {
  GpuBenchModel out{layout, testing::MakeSampleProfile(layout, 3, true), {}};
  for (const uint64_t seed : {100, 101}) {
    out.chunks.push_back(testing::MakeSampleChunk(layout, limits::kMaxChunkTokens, seed).raw);
  }
  return out;
}

int Main(const std::vector<std::string>& words) {
  const absl::StatusOr<Arguments> arguments = Arguments::Parse(BenchCodecCommand().spec, words);
  const absl::Status status =
      arguments.ok() ? BenchCodecOnGpu(*arguments, MakeSampleModel) : arguments.status();
  if (status.ok()) return 0;
  fprintf(stderr, "cuda_codec_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) { return latticekv::Main({argv + 1, argv + argc}); }
