// How fast the CUDA codec is, on synthetic caches of Llama-3.1-8B's shape: 32 layers, 8 key-value
// heads, f16. Stored bits are printed, since work grows with them. Frames and outputs are compared
// with the scalar codec's before anything is measured.
//
//   cuda_codec_bench codec [PRESET...]      encode and decode at head dims 64 and 128, kernels
//   alone
//                                           (CUDA events) and with transfers and host work (clock),
//                                           beside plain copies; balanced by default
//   cuda_codec_bench offload [TOKENS]       device -> compressed host memory -> device, against
//                                           copies of the raw bytes; 32768 tokens by default
//   cuda_codec_bench restore [TOKENS]       compressed pinned memory -> paged device memory; 100096
//   cuda_codec_bench encode|decode          one case of `codec` alone, for a profiler
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>

#include "core/codec/cuda/cuda_encoder.h"
#include "tests/gpu/device_batch.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::ContiguousPlanes;
using testing::DeviceBuffer;
using testing::PinnedBuffer;

constexpr uint32_t kChunkTokens = 256;
constexpr int kRuns = 20;
constexpr size_t kDistinctChunks = 2;

void Check(bool good, const std::string& what) {
  if (good) return;
  fprintf(stderr, "cuda_codec_bench: %s\n", what.c_str());
  std::exit(1);
}
void Check(const absl::Status& status) { Check(status.ok(), status.ToString()); }
void Check(cudaError_t error) { Check(error == cudaSuccess, cudaGetErrorString(error)); }

double Median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// Median milliseconds of `run` on the default stream.
double EventMs(const std::function<void()>& run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int i = 0; i < kRuns + 3; ++i) {
    cudaEventRecord(begin);
    run();
    cudaEventRecord(end);
    Check(cudaEventSynchronize(end));
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 3) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return Median(times);
}

// Median milliseconds of `run` by the clock; `run` waits for its end.
double ClockMs(int runs, const std::function<void()>& run) {
  std::vector<double> times;
  for (int i = 0; i < runs + 1; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    if (i >= 1) times.push_back(took.count());
  }
  return Median(times);
}

// A model and what its chunks are, raw and encoded by the scalar encoder.
struct Case {
  Layout layout;
  ModelProfile profile;
  CudaEncodeSettings settings;
  std::vector<testing::SampleChunk> chunks;
  std::vector<ByteVector> frames;
  size_t chunk_bytes() const { return layout.token_bytes() * kChunkTokens; }
  double bits() const {
    double stored = 0;
    for (const ByteVector& f : frames) stored += static_cast<double>(f.size());
    return stored * 16 / static_cast<double>(frames.size() * chunk_bytes());
  }
};

std::unique_ptr<Case> MakeCase(uint32_t head_dim, PresetId preset, StatsMode stats) {
  auto out = std::make_unique<Case>();
  out->layout = MakeUniformLayout("bench", 32, 8, head_dim, DType::kF16,
                                  {RopeStyle::kNeox, head_dim, 500000.0, {}});
  out->profile = testing::MakeSampleProfile(out->layout, 3, true);
  out->settings = {preset, stats, &out->profile};
  for (size_t i = 0; i < kDistinctChunks; ++i) {
    out->chunks.push_back(testing::MakeSampleChunk(out->layout, kChunkTokens, 100 + i));
    EncodeOptions options;
    options.preset = preset;
    options.stats = stats;
    options.profile = &out->profile;
    options.start_position = i * kChunkTokens;
    auto frame = EncodeFrame(out->layout, kChunkTokens, out->chunks[i].views(), options);
    Check(frame.status());
    out->frames.push_back(*std::move(frame));
  }
  return out;
}

// `count` chunks one behind the other on the device.
DeviceBuffer Upload(const Case& c, size_t count) {
  DeviceBuffer out(count * c.chunk_bytes());
  for (size_t i = 0; i < count; ++i) {
    Check(cudaMemcpy(out.data() + i * c.chunk_bytes(), c.chunks[i % kDistinctChunks].raw.data(),
                     c.chunk_bytes(), cudaMemcpyHostToDevice));
  }
  return out;
}

CudaEncodeChunk EncodeTask(const Case& c, size_t i, std::byte* at) {
  const uint64_t start = i % kDistinctChunks * kChunkTokens;
  return {kChunkTokens, start, {}, ContiguousPlanes(c.layout, kChunkTokens, at), {}};
}

// Encodes on a lane of its own, all with waiting; the frames lie in `out` one behind the other.
std::vector<ByteSpan> EncodeTo(const CudaEncodePlan& plan, const CudaArena& arena, std::byte* out,
                               size_t room, cudaStream_t stream) {
  Check(plan.EncodeAsync(arena, stream));
  Check(cudaStreamSynchronize(stream));
  const auto batch = plan.Collect(arena);
  Check(batch.status());
  std::vector<ByteSpan> frames;
  size_t at = 0;
  for (size_t i = 0; i < batch->frames(); ++i) {
    Check(at + batch->frame_bytes(i) <= room, "frames are larger than expected");
    const MutableByteSpan frame(out + at, batch->frame_bytes(i));
    Check(batch->DownloadAsync(arena, i, frame, stream));
    frames.push_back(frame);
    at += frame.size();
  }
  Check(cudaStreamSynchronize(stream));
  return frames;
}

struct Speeds {
  double kernels_ms, all_ms;
};

Speeds MeasureEncode(const Case& c, size_t count, const DeviceBuffer& raw, bool kernels_only) {
  std::vector<CudaEncodeChunk> chunks;
  for (size_t i = 0; i < count; ++i) {
    chunks.push_back(EncodeTask(c, i, raw.data() + i * c.chunk_bytes()));
  }
  const auto plan = CudaEncodePlan::Make(c.layout, c.settings, chunks);
  Check(plan.status());
  const testing::OwnedArena owned(*plan);
  const CudaArena arena = owned.arena();
  const PinnedBuffer out(raw.size());
  const auto frames = EncodeTo(*plan, arena, out.data(), out.size(), nullptr);
  for (size_t i = 0; i < count; ++i) {
    const ByteVector& expected = c.frames[i % kDistinctChunks];
    Check(std::equal(expected.begin(), expected.end(), frames[i].begin(), frames[i].end()),
          "the encoder's frame differs from the scalar encoder's");
  }
  Speeds speeds{EventMs([&] { Check(plan->LaunchAsync(arena, nullptr)); }), 0};
  if (kernels_only) return speeds;
  speeds.all_ms = ClockMs(kRuns, [&] { EncodeTo(*plan, arena, out.data(), out.size(), nullptr); });
  return speeds;
}

Speeds MeasureDecode(const Case& c, size_t count, bool kernels_only) {
  const DeviceBuffer output(count * c.chunk_bytes());
  std::vector<PinnedBuffer> pinned;
  std::vector<CudaDecodeChunk> chunks;
  for (size_t i = 0; i < count; ++i) {
    const ByteVector& frame = c.frames[i % kDistinctChunks];
    pinned.emplace_back(frame.size());
    std::copy(frame.begin(), frame.end(), pinned.back().data());
    chunks.push_back({ByteSpan(pinned.back().data(), frame.size()),
                      ContiguousPlanes(c.layout, kChunkTokens, output.data() + i * c.chunk_bytes()),
                      {}});
  }
  const auto plan = CudaDecodePlan::Make(c.layout, &c.profile, chunks);
  Check(plan.status());
  const testing::OwnedArena owned(*plan);
  const CudaArena arena = owned.arena();
  Check(plan->Decode(arena, nullptr));
  const ByteVector got = testing::ToHost(output);
  ByteVector expected(c.chunk_bytes());
  for (size_t i = 0; i < count; ++i) {
    if (i < kDistinctChunks) {
      auto decoder = FrameDecoder::Open(c.frames[i], c.layout, &c.profile);
      Check(decoder.status());
      Check(DecodeFrame(*decoder, c.layout, expected));
      Check(std::equal(expected.begin(), expected.end(), got.begin() + i * c.chunk_bytes()),
            "differs from the scalar decoder");
    } else {
      Check(std::equal(got.begin() + i * c.chunk_bytes(), got.begin() + (i + 1) * c.chunk_bytes(),
                       got.begin() + i % kDistinctChunks * c.chunk_bytes()),
            "equal chunks differ");
    }
  }
  Speeds speeds{EventMs([&] { Check(plan->LaunchAsync(arena, nullptr)); }), 0};
  if (kernels_only) return speeds;
  speeds.all_ms = ClockMs(kRuns, [&] { Check(plan->Decode(arena, nullptr)); });
  return speeds;
}

void PrintCopies() {
  const size_t bytes = size_t{1} << 30;
  const DeviceBuffer a(bytes), b(bytes);
  const PinnedBuffer host(bytes);
  const auto speed = [&](std::byte* to, std::byte* from, cudaMemcpyKind kind) {
    return static_cast<double>(bytes) /
           EventMs([&] { Check(cudaMemcpyAsync(to, from, bytes, kind)); }) / 1e6;
  };
  printf(
      "copies of 1 GiB: device to device %.0f GB/s read and written, host to device %.1f GB/s, "
      "device to host %.1f GB/s\n\n",
      2 * speed(a.data(), b.data(), cudaMemcpyDeviceToDevice),
      speed(a.data(), host.data(), cudaMemcpyHostToDevice),
      speed(host.data(), a.data(), cudaMemcpyDeviceToHost));
}

void CodecTable(const std::vector<PresetId>& presets) {
  PrintCopies();
  printf(
      "| head dim | preset | statistics | tokens | bits | encode kernels GB/s | encode with "
      "transfers | decode kernels GB/s | decode with transfers |\n"
      "|---|---|---|---|---|---|---|---|---|\n");
  for (const uint32_t head_dim : {128u, 64u}) {
    for (const PresetId preset : presets) {
      for (const StatsMode stats : {StatsMode::kProfile, StatsMode::kOwn, StatsMode::kAuto}) {
        const auto c = MakeCase(head_dim, preset, stats);
        for (const size_t tokens : {4096, 16384}) {
          const size_t count = tokens / kChunkTokens;
          const DeviceBuffer raw = Upload(*c, count);
          const Speeds encode = MeasureEncode(*c, count, raw, false);
          const Speeds decode = MeasureDecode(*c, count, false);
          const double gb = static_cast<double>(raw.size()) / 1e6;
          const char* names[] = {"own", "profile", "auto"};
          printf("| %u | %s | %s | %zu | %.3f | %.0f | %.0f | %.0f | %.0f |\n", head_dim,
                 std::string(PresetName(preset)).c_str(), names[static_cast<int>(stats)], tokens,
                 c->bits(), gb / encode.kernels_ms, gb / encode.all_ms, gb / decode.kernels_ms,
                 gb / decode.all_ms);
          fflush(stdout);
        }
      }
    }
  }
}

// Host threads that each work through batches with a stream of their own.
class Lanes {
 public:
  explicit Lanes(size_t count) : streams_(count) {
    for (cudaStream_t& s : streams_) Check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  }
  ~Lanes() {
    for (cudaStream_t s : streams_) cudaStreamDestroy(s);
  }
  size_t count() const { return streams_.size(); }
  void ForEach(size_t batches, const std::function<void(size_t, size_t, cudaStream_t)>& run) {
    std::atomic<size_t> next = 0;
    std::vector<std::thread> threads;
    for (size_t lane = 0; lane < streams_.size(); ++lane) {
      threads.emplace_back([&, lane] {
        for (size_t b = next++; b < batches; b = next++) run(lane, b, streams_[lane]);
      });
    }
    for (std::thread& t : threads) t.join();
  }

 private:
  std::vector<cudaStream_t> streams_;
};

// More lanes than it takes to keep the device busy: half of them check frames and make plans, the
// others wait for the bus and the kernels.
constexpr size_t kLanes = 24;
constexpr size_t kBatchChunks = 2;
// Of the decoder's for a batch, so that batches of several lanes run side by side.
constexpr uint32_t kDecodeMultiprocessors = 16;

// Decodes on a lane of its own, with waiting.
void DecodeFrom(const CudaDecodePlan& plan, const CudaArena& arena, cudaStream_t stream) {
  Check(plan.DecodeAsync(arena, stream, kDecodeMultiprocessors));
  Check(cudaStreamSynchronize(stream));
  Check(plan.Result(arena));
}

// Working memory of every lane, for plans no larger than those it was made for.
struct LaneMemory {
  DeviceBuffer device;
  PinnedBuffer pinned;
  CudaArena arena() const { return {device.data(), device.size(), pinned.data(), pinned.size()}; }
};
template <typename Plan>
std::vector<LaneMemory> MakeLaneMemory(const Plan& plan) {
  std::vector<LaneMemory> out;
  for (size_t i = 0; i < kLanes; ++i) {
    out.push_back({DeviceBuffer(plan.device_bytes() + (1 << 20)),
                   PinnedBuffer(plan.pinned_bytes() + (1 << 20))});
  }
  return out;
}

void Offload(size_t tokens) {
  const auto c = MakeCase(128, PresetId::kBalanced, StatsMode::kProfile);
  const size_t batches = tokens / kChunkTokens / kBatchChunks;
  const size_t count = batches * kBatchChunks;
  const DeviceBuffer raw = Upload(*c, count), back(raw.size());
  const size_t frame_room = std::max(c->frames[0].size(), c->frames[1].size());
  const PinnedBuffer stored(count * frame_room);
  std::vector<std::vector<ByteSpan>> frames(batches);
  Lanes lanes(kLanes);

  const auto encode_plan = [&](size_t b) {
    std::vector<CudaEncodeChunk> chunks;
    for (size_t i = b * kBatchChunks; i < (b + 1) * kBatchChunks; ++i) {
      chunks.push_back(EncodeTask(*c, i, raw.data() + i * c->chunk_bytes()));
    }
    auto plan = CudaEncodePlan::Make(c->layout, c->settings, chunks);
    Check(plan.status());
    return *std::move(plan);
  };
  const auto decode_plan = [&](size_t b) {
    std::vector<CudaDecodeChunk> chunks;
    for (size_t i = 0; i < kBatchChunks; ++i) {
      chunks.push_back({frames[b][i],
                        ContiguousPlanes(c->layout, kChunkTokens,
                                         back.data() + (b * kBatchChunks + i) * c->chunk_bytes()),
                        {}});
    }
    auto plan = CudaDecodePlan::Make(c->layout, &c->profile, chunks);
    Check(plan.status());
    return *std::move(plan);
  };
  const auto encode_memory = MakeLaneMemory(encode_plan(0));
  const auto offload = [&] {
    lanes.ForEach(batches, [&](size_t lane, size_t b, cudaStream_t stream) {
      const size_t room = kBatchChunks * frame_room;
      frames[b] = EncodeTo(encode_plan(b), encode_memory[lane].arena(), stored.data() + b * room,
                           room, stream);
    });
  };
  offload();
  const auto decode_memory = MakeLaneMemory(decode_plan(0));
  const auto restore = [&] {
    lanes.ForEach(batches, [&](size_t lane, size_t b, cudaStream_t stream) {
      DecodeFrom(decode_plan(b), decode_memory[lane].arena(), stream);
    });
  };
  const double offload_ms = ClockMs(5, offload), restore_ms = ClockMs(5, restore);

  const PinnedBuffer host(raw.size());
  const double down_ms = ClockMs(
      5, [&] { Check(cudaMemcpy(host.data(), raw.data(), raw.size(), cudaMemcpyDeviceToHost)); });
  const double up_ms = ClockMs(5, [&] {
    Check(cudaMemcpy(raw.data(), host.data(), raw.size(), cudaMemcpyHostToDevice));
    Check(cudaDeviceSynchronize());
  });
  printf(
      "offload round trip, %zu tokens, %.2f GB raw, %.3f bits, head dim 128, profile: %.1f ms "
      "(device to compressed host %.1f, back %.1f); raw copies %.1f ms (%.1f, %.1f): %.2f times "
      "faster\n",
      count * kChunkTokens, static_cast<double>(raw.size()) / 1e9, c->bits(),
      offload_ms + restore_ms, offload_ms, restore_ms, down_ms + up_ms, down_ms, up_ms,
      (down_ms + up_ms) / (offload_ms + restore_ms));
}

void Restore(size_t tokens) {
  const auto c = MakeCase(128, PresetId::kBalanced, StatsMode::kProfile);
  const size_t count = tokens / kChunkTokens;
  constexpr uint32_t kBlockTokens = 16;
  const size_t blocks = count * kChunkTokens / kBlockTokens;
  const size_t vector_bytes = 128 * 2, block_stride = kBlockTokens * 8 * vector_bytes;
  const DeviceBuffer cache(64 * blocks * block_stride);  // [layer and plane][block][token][head]
  std::vector<uint32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0u);
  testing::Random random(1);
  for (size_t i = blocks - 1; i > 0; --i) {
    std::swap(table[i], table[random.Below(static_cast<uint32_t>(i + 1))]);
  }
  std::vector<PinnedBuffer> stored;
  for (size_t i = 0; i < count; ++i) {
    const ByteVector& frame = c->frames[i % kDistinctChunks];
    stored.emplace_back(frame.size());
    std::copy(frame.begin(), frame.end(), stored.back().data());
  }
  std::vector<std::vector<DevicePlane>> planes(32);
  for (size_t p = 0; p < 64; ++p) {
    planes[p / 2].push_back(
        {cache.data() + p * blocks * block_stride, 8 * vector_bytes, vector_bytes, block_stride});
  }
  const size_t batches = (count + kBatchChunks - 1) / kBatchChunks;
  const auto make = [&](size_t b) {
    std::vector<CudaDecodeChunk> chunks;
    for (size_t i = b * kBatchChunks; i < std::min(count, (b + 1) * kBatchChunks); ++i) {
      chunks.push_back({ByteSpan(stored[i].data(), stored[i].size()),
                        planes,
                        {table, kBlockTokens, i * kChunkTokens}});
    }
    auto plan = CudaDecodePlan::Make(c->layout, &c->profile, chunks);
    Check(plan.status());
    return *std::move(plan);
  };
  const auto memory = MakeLaneMemory(make(0));
  Lanes lanes(kLanes);
  const double ms = ClockMs(5, [&] {
    lanes.ForEach(batches, [&](size_t lane, size_t b, cudaStream_t stream) {
      DecodeFrom(make(b), memory[lane].arena(), stream);
    });
  });
  ByteVector expected(c->chunk_bytes()), got(block_stride);
  for (const size_t i : {size_t{0}, count / 2 + 1, count - 1}) {
    auto decoder = FrameDecoder::Open(c->frames[i % kDistinctChunks], c->layout, &c->profile);
    Check(decoder.status());
    Check(DecodeFrame(*decoder, c->layout, expected));
    for (size_t p = 0; p < 64; ++p) {
      for (size_t b = 0; b < kChunkTokens / kBlockTokens; ++b) {
        const size_t block = table[i * kChunkTokens / kBlockTokens + b];
        Check(cudaMemcpy(got.data(), cache.data() + (p * blocks + block) * block_stride,
                         block_stride, cudaMemcpyDeviceToHost));
        Check(std::equal(got.begin(), got.end(),
                         expected.begin() + (p * kChunkTokens / kBlockTokens + b) * block_stride),
              "a restored block differs from the scalar decoder's");
      }
    }
  }
  const double raw_gb = static_cast<double>(cache.size()) / 1e9;
  printf(
      "restore, %zu tokens, %.2f GB raw, %.3f bits, head dim 128, profile, pinned memory to paged "
      "device memory with frame checks: %.1f ms, %.0f GB/s of f16\n",
      count * kChunkTokens, raw_gb, c->bits(), ms, raw_gb / ms * 1e3);
}

void OneCase(bool encode) {
  const auto c = MakeCase(128, PresetId::kBalanced, StatsMode::kProfile);
  const size_t count = 4096 / kChunkTokens;
  const DeviceBuffer raw = Upload(*c, count);
  const Speeds speeds =
      encode ? MeasureEncode(*c, count, raw, true) : MeasureDecode(*c, count, true);
  printf("%s: %.3f ms\n", encode ? "encode" : "decode", speeds.kernels_ms);
}

int Main(int argc, char** argv) {
  const std::string why = testing::WhyNoDevice();
  Check(why.empty(), why);
  const std::string mode = argc > 1 ? argv[1] : "codec";
  // Lanes that wait leave their core to those that plan.
  if (mode == "offload" || mode == "restore") {
    Check(cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync));
  }
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  const auto tokens = [&](size_t otherwise) {
    const size_t given = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : otherwise;
    Check(given >= kChunkTokens * kBatchChunks, "TOKENS must be at least 512");
    return given;
  };
  if (mode == "codec") {
    std::vector<PresetId> presets;
    for (int i = 2; i < argc; ++i) {
      const auto preset = ParsePreset(argv[i]);
      Check(preset.status());
      presets.push_back(*preset);
    }
    if (presets.empty()) presets.push_back(PresetId::kBalanced);
    CodecTable(presets);
  } else if (mode == "offload") {
    Offload(tokens(32768));
  } else if (mode == "restore") {
    Restore(tokens(100096));
  } else {
    Check(mode == "encode" || mode == "decode",
          "modes are codec, offload, restore, encode and decode");
    OneCase(mode == "encode");
  }
  return 0;
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) { return latticekv::Main(argc, argv); }
