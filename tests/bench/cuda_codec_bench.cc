// How fast the CUDA decoder is: GB/s of f16 output by kernel time (CUDA events, median of the
// runs), with the upload, and beside them a device-to-device copy of the same bytes in the same
// process.
//
//   cuda_codec_bench [PRESET [TOKENS...]]        balanced 4096 16384 by default
//
// Shape of Llama-3.1-8B: 32 layers, 8 key-value heads. Data are synthetic (tests/support); stored
// bits are printed, since the decoder's work grows with them. Every chunk is checked against the
// scalar decoder once.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "tests/gpu/device_batch.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::DeviceBuffer;
using testing::PinnedBuffer;

constexpr uint32_t kChunkTokens = 256;
constexpr int kRuns = 30;
constexpr size_t kDistinctChunks = 2;

void Check(bool good, const std::string& what) {
  if (good) return;
  fprintf(stderr, "cuda_codec_bench: %s\n", what.c_str());
  std::exit(1);
}

// Median milliseconds of `run` on the default stream.
double MedianMs(const std::function<void()>& run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < kRuns + 3; ++i) {
    cudaEventRecord(begin);
    run();
    cudaEventRecord(end);
    Check(cudaEventSynchronize(end) == cudaSuccess, cudaGetErrorString(cudaGetLastError()));
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 3) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  return times[kRuns / 2];
}

struct Case {
  const char* name;
  uint32_t head_dim;
  RopeSpec rope;
  StatsMode stats;
};

std::vector<ByteVector> EncodeChunks(const Layout& layout, const ModelProfile& profile,
                                     PresetId preset, StatsMode stats) {
  std::vector<ByteVector> frames;
  for (size_t i = 0; i < kDistinctChunks; ++i) {
    const auto chunk = testing::MakeSampleChunk(layout, kChunkTokens, 100 + i);
    EncodeOptions options;
    options.preset = preset;
    options.stats = stats;
    options.profile = &profile;
    options.start_position = i * kChunkTokens;
    auto frame = EncodeFrame(layout, kChunkTokens, chunk.views(), options);
    Check(frame.ok(), frame.status().ToString());
    frames.push_back(*std::move(frame));
  }
  return frames;
}

void Measure(const Case& c, const Layout& layout, const ModelProfile& profile,
             const std::vector<ByteVector>& frames, uint32_t tokens) {
  const size_t count = tokens / kChunkTokens;
  const size_t chunk_bytes = layout.token_bytes() * kChunkTokens;
  const DeviceBuffer output(count * chunk_bytes), copy(count * chunk_bytes);
  std::vector<PinnedBuffer> pinned;
  std::vector<CudaDecodeChunk> chunks;
  double stored = 0;
  for (size_t i = 0; i < count; ++i) {
    const ByteVector& frame = frames[i % frames.size()];
    pinned.emplace_back(frame.size());
    std::copy(frame.begin(), frame.end(), pinned.back().data());
    stored += static_cast<double>(frame.size());
    chunks.push_back(
        {ByteSpan(pinned.back().data(), frame.size()),
         testing::ContiguousPlanes(layout, kChunkTokens, output.data() + i * chunk_bytes),
         {}});
  }
  const auto plan = CudaDecodePlan::Make(layout, &profile, chunks);
  Check(plan.ok(), plan.status().ToString());
  const testing::OwnedArena owned(*plan);
  const CudaArena arena = owned.arena();
  const absl::Status status = plan->Decode(arena, nullptr);
  Check(status.ok(), status.ToString());

  ByteVector expected(chunk_bytes), got(output.size());
  cudaMemcpy(got.data(), output.data(), got.size(), cudaMemcpyDeviceToHost);
  for (size_t i = 0; i < count; ++i) {
    if (i < frames.size()) {
      auto decoder = FrameDecoder::Open(frames[i], layout, &profile);
      Check(decoder.ok() && DecodeFrame(*decoder, layout, expected).ok(), "scalar decoder failed");
      Check(std::equal(expected.begin(), expected.end(), got.begin() + i * chunk_bytes),
            "differs from the scalar decoder");
    } else {
      Check(std::equal(got.begin() + i * chunk_bytes, got.begin() + (i + 1) * chunk_bytes,
                       got.begin() + i % frames.size() * chunk_bytes),
            "equal chunks differ");
    }
  }

  const double kernel_ms = MedianMs([&] { (void)plan->LaunchAsync(arena, nullptr); });
  const double all_ms = MedianMs([&] { (void)plan->DecodeAsync(arena, nullptr); });
  const double copy_ms = MedianMs([&] {
    cudaMemcpyAsync(copy.data(), output.data(), output.size(), cudaMemcpyDeviceToDevice);
  });
  const double bytes = static_cast<double>(output.size());
  printf("| %s | %u | %.3f | %.3f | %.0f | %.0f | %.0f |\n", c.name, tokens, stored * 16 / bytes,
         kernel_ms, bytes / kernel_ms / 1e6, bytes / all_ms / 1e6, 2 * bytes / copy_ms / 1e6);
  fflush(stdout);
}

int Main(int argc, char** argv) {
  const std::string why = testing::WhyNoDevice();
  Check(why.empty(), why);
  const auto preset = ParsePreset(argc > 1 ? argv[1] : "balanced");
  Check(preset.ok(), preset.status().ToString());
  std::vector<uint32_t> tokens;
  for (int i = 2; i < argc; ++i) {
    tokens.push_back(static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10)));
    Check(tokens.back() >= kChunkTokens, "TOKENS must be at least 256");
  }
  if (tokens.empty()) tokens = {4096, 16384};
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  printf("%s, %d multiprocessors, preset %s\n\n", properties.name, properties.multiProcessorCount,
         std::string(PresetName(*preset)).c_str());
  printf(
      "| 32 layers, 8 heads, f16 | tokens | bits | kernels ms | kernels GB/s | with upload GB/s "
      "| copy GB/s, read + written |\n|---|---|---|---|---|---|---|\n");
  const Case cases[] = {
      {"head dim 128, neox", 128, {RopeStyle::kNeox, 128, 500000.0}, StatsMode::kProfile},
      {"head dim 128, neox, own statistics",
       128,
       {RopeStyle::kNeox, 128, 500000.0},
       StatsMode::kOwn},
      {"head dim 128, no rotation", 128, RopeSpec{}, StatsMode::kProfile},
      {"head dim 64, neox", 64, {RopeStyle::kNeox, 64, 500000.0}, StatsMode::kProfile},
  };
  for (const Case& c : cases) {
    const Layout layout = MakeUniformLayout("bench", 32, 8, c.head_dim, DType::kF16, c.rope);
    const ModelProfile profile = testing::MakeSampleProfile(layout, 3, true);
    const auto frames = EncodeChunks(layout, profile, *preset, c.stats);
    for (uint32_t t : tokens) Measure(c, layout, profile, frames, t);
  }
  return 0;
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) { return latticekv::Main(argc, argv); }
