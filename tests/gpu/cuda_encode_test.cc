// The CUDA encoder gives the scalar encoder's bytes. Skipped where there is no device.
// LATTICEKV_SEED sets the seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <set>

#include "core/codec/cpu/float_cast.h"
#include "core/codec/cuda/cuda_encoder.h"
#include "tests/gpu/codec_batch.h"
#include "tests/gpu/gpu_layouts.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::CanEvict;
using testing::DeviceBuffer;
using testing::EncodeInput;
using testing::FromEnvironment;
using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::NamedLayouts;
using testing::OwnedArena;
using testing::PinnedBuffer;
using testing::Random;
using testing::RandomKeep;
using testing::RandomLayout;
using testing::SampleChunk;
using testing::Upload;

class CudaEncodeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  }
};

// What a frame's bytes differ by, for the message: the first byte and its place.
std::string Difference(ByteSpan expected, ByteSpan got) {
  const auto at = std::mismatch(expected.begin(), expected.end(), got.begin(), got.end()).first;
  return "scalar " + std::to_string(expected.size()) + " bytes, device " +
         std::to_string(got.size()) + ", first difference at " +
         std::to_string(at - expected.begin());
}

// Encodes chunks as one batch, sources `shift` bytes off their natural alignment, and compares
// every frame with the scalar encoder's.
void ExpectSameFrames(const Layout& layout, const CudaEncodeSettings& settings,
                      const std::vector<EncodeInput>& inputs, size_t shift = 0) {
  std::vector<DeviceBuffer> sources;
  const std::vector<CudaEncodeChunk> chunks = Upload(layout, inputs, shift, sources);
  const auto plan = CudaEncodePlan::Make(layout, settings, chunks);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const OwnedArena owned(*plan);
  const auto frames = plan->Encode(owned.arena(), nullptr);
  ASSERT_TRUE(frames.ok()) << frames.status();
  for (size_t i = 0; i < inputs.size(); ++i) {
    EncodeOptions options;
    options.preset = settings.preset;
    options.stats = settings.stats;
    options.profile = settings.profile;
    options.start_position = inputs[i].start;
    options.exact_tokens = inputs[i].exact_tokens;
    options.keep = inputs[i].keep;
    const auto expected =
        EncodeFrame(layout, inputs[i].chunk->tokens, inputs[i].chunk->views(), options);
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_TRUE((*frames)[i] == *expected)
        << "chunk " << i << " of " << inputs[i].chunk->tokens << " tokens, preset "
        << PresetName(settings.preset) << ", statistics " << static_cast<int>(settings.stats)
        << ": " << Difference(*expected, (*frames)[i]);
  }
}

TEST_F(CudaEncodeTest, SameBytesForNamedLayouts) {
  for (const Layout& layout : NamedLayouts()) {
    SCOPED_TRACE(layout.model);
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    const ModelProfile energy_only = MakeSampleProfile(layout, 3, false);
    // What a daemon learns for a model of which it was told nothing.
    const ModelProfile statistics_only = MakeSampleProfile(layout, 3, true, false);
    std::vector<SampleChunk> chunks;
    for (uint32_t tokens : {1, 33, 256}) chunks.push_back(MakeSampleChunk(layout, tokens, 7));
    const std::vector<EncodeInput> inputs = {
        {&chunks[0], 0, {}}, {&chunks[1], 100'003, {3, 9}}, {&chunks[2], 200'006, {3, 9, 255}}};
    for (const Preset& preset : AllPresets()) {
      for (StatsMode stats : {StatsMode::kProfile, StatsMode::kOwn, StatsMode::kAuto}) {
        ExpectSameFrames(layout, {preset.id, stats, &profile}, inputs);
      }
      ExpectSameFrames(layout, {preset.id, StatsMode::kAuto, nullptr}, inputs);
      ExpectSameFrames(layout, {preset.id, StatsMode::kAuto, &energy_only}, inputs);
      ExpectSameFrames(layout, {preset.id, StatsMode::kAuto, &statistics_only}, inputs);
    }
  }
}

TEST_F(CudaEncodeTest, EvictedTokensGiveTheSameBytes) {
  Random random(FromEnvironment("LATTICEKV_SEED", 20261129));
  for (const Layout& layout : NamedLayouts()) {
    SCOPED_TRACE(layout.model);
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    std::vector<SampleChunk> chunks;
    for (uint32_t tokens : {2, 70, 256}) chunks.push_back(MakeSampleChunk(layout, tokens, 7));
    std::vector<EncodeInput> inputs = {{&chunks[1], 9}};
    for (const SampleChunk& chunk : chunks) {
      const auto keep = RandomKeep(chunk.tokens, random);
      inputs.push_back({&chunk, 0, {}, keep});
      inputs.push_back({&chunk, 100'003, {0, chunk.tokens - 1}, keep});
    }
    for (const Preset& preset : AllPresets()) {
      ExpectSameFrames(layout, {preset.id, StatsMode::kProfile, &profile}, inputs);
      ExpectSameFrames(layout, {preset.id, StatsMode::kAuto, nullptr}, inputs);
    }
  }
}

// Batches of different chunks through planners that are kept, two of them in turns over one arena.
TEST_F(CudaEncodeTest, PlannersAndArenasAreUsedAgain) {
  const Layout layout =
      MakeUniformLayout("test", 2, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0, {}});
  const ModelProfile profile = MakeSampleProfile(layout, 3, true);
  const CudaEncodeSettings settings[] = {{PresetId::kBalanced, StatsMode::kProfile, &profile},
                                         {PresetId::kNear, StatsMode::kAuto, &profile}};
  std::vector<CudaEncodePlanner> planners;
  for (const CudaEncodeSettings& s : settings) {
    auto planner = CudaEncodePlanner::Make(layout, s);
    ASSERT_TRUE(planner.ok()) << planner.status();
    planners.push_back(*std::move(planner));
  }
  const DeviceBuffer device(64 << 20);
  const testing::PinnedBuffer pinned(16 << 20);
  uint64_t tables_id = 0;
  const CudaArena arena{device.data(), device.size(), pinned.data(), pinned.size(), &tables_id};
  CudaEncodePlan plan;
  EXPECT_EQ(plan.EncodeAsync(arena, nullptr).code(), absl::StatusCode::kInvalidArgument);
  size_t round = 0;
  for (const size_t turn : {0, 0, 1, 0, 1, 1}) {
    EncodeOptions options;
    options.preset = settings[turn].preset;
    options.stats = settings[turn].stats;
    options.profile = &profile;
    options.start_position = 1000 * round;
    options.exact_tokens = {static_cast<uint32_t>(round)};
    const auto tokens = static_cast<uint32_t>(9 + 40 * round++);
    const SampleChunk chunk = MakeSampleChunk(layout, tokens, 7 + round);
    const DeviceBuffer source(chunk.raw.size());
    cudaMemcpy(source.data(), chunk.raw.data(), chunk.raw.size(), cudaMemcpyHostToDevice);
    const std::vector<CudaEncodeChunk> chunks(1 + round % 3,
                                              {tokens,
                                               options.start_position,
                                               options.exact_tokens,
                                               ContiguousPlanes(layout, tokens, source.data()),
                                               {}});
    EXPECT_EQ(planners[turn].Plan({}, plan).code(), absl::StatusCode::kInvalidArgument);
    const absl::Status planned = planners[turn].Plan(chunks, plan);
    ASSERT_TRUE(planned.ok()) << planned;
    const auto frames = plan.Encode(arena, nullptr);
    ASSERT_TRUE(frames.ok()) << frames.status();
    const auto expected = EncodeFrame(layout, tokens, chunk.views(), options);
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_EQ(frames->size(), chunks.size());
    for (const ByteVector& frame : *frames) {
      EXPECT_TRUE(frame == *expected) << "round " << round << ": " << Difference(*expected, frame);
    }
  }
}

TEST_F(CudaEncodeTest, SameBytesForRandomLayouts) {
  const uint64_t seed = FromEnvironment("LATTICEKV_SEED", 20260105);
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  Random random(seed);
  for (int n = 0; n < 40; ++n) {
    SCOPED_TRACE("layout " + std::to_string(n));
    const Layout layout = RandomLayout(random);
    ASSERT_TRUE(ValidateLayout(layout).ok()) << ValidateLayout(layout);
    const SampleChunk chunk = MakeSampleChunk(layout, 1 + random.Below(200), random.Next());
    const SampleChunk other = MakeSampleChunk(layout, 1 + random.Below(256), random.Next());
    std::vector<EncodeInput> inputs = {{&chunk, random.Below(2) * 131'071, {}}, {&other, 2, {0}}};
    if (CanEvict(layout)) inputs.push_back({&other, 777, {}, RandomKeep(other.tokens, random)});
    for (const Preset& preset : AllPresets()) {
      ExpectSameFrames(layout, {preset.id, StatsMode::kAuto, nullptr}, inputs);
    }
    // f32 elements are 4 bytes: 4 off is aligned for every dtype, and for no wide load.
    ExpectSameFrames(layout, {PresetId::kBalanced, StatsMode::kAuto, nullptr}, inputs, 4);
  }
}

// Of f16, what is beyond its range is infinite.
void StoreHardElement(DType dtype, float v, std::byte* at) {
  const auto bits = std::bit_cast<uint32_t>(v);
  if (dtype == DType::kF32) {
    StoreLe<float>(at, v);
  } else if (dtype == DType::kBF16) {
    StoreLe<uint16_t>(at, static_cast<uint16_t>(bits >> 16));
  } else if (std::isnan(v) || std::abs(v) > 65504) {
    StoreLe<uint16_t>(at, static_cast<uint16_t>(bits >> 16 & 0x8000) |
                              static_cast<uint16_t>(std::isnan(v) ? 0x7E00 : 0x7C00));
  } else {
    StoreRow(dtype, &v, 1, at);
  }
}

TEST_F(CudaEncodeTest, HardInputGivesTheSameBytes) {
  struct Shape {
    DType dtype;
    uint32_t head_dim, rotary;
  };
  for (const Shape& shape :
       {Shape{DType::kF32, 64, 64}, Shape{DType::kF32, 64, 0}, Shape{DType::kF32, 64, 20},
        Shape{DType::kF16, 64, 64}, Shape{DType::kF16, 128, 64}, Shape{DType::kBF16, 64, 64}}) {
    const RopeSpec rope =
        shape.rotary ? RopeSpec{RopeStyle::kNeox, shape.rotary, 10000.0, {}} : RopeSpec{};
    const Layout layout = MakeUniformLayout("test", 1, 2, shape.head_dim, shape.dtype, rope);
    const size_t element_bytes = DTypeBytes(shape.dtype);
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    std::vector<SampleChunk> chunks;
    Random random(1);
    for (int kind = 0; kind < 8; ++kind) {
      SampleChunk chunk{layout, 50, ByteVector(layout.token_bytes() * 50)};
      for (size_t i = 0; i < chunk.raw.size() / element_bytes; ++i) {
        const float bell = random.Bell();
        const float values[] = {0.0f,
                                -0.0f,
                                3.5f,
                                1e-42f * static_cast<float>(i % 5),
                                3e38f * ((i * 7 % 11) < 5 ? 1.0f : -1.0f),
                                bell * (i % 997 == 0 ? 1e4f : 1.0f),
                                i % 1013 == 0 ? std::numeric_limits<float>::quiet_NaN() : bell,
                                i / 64 % 5 == 0 ? 0.0f : bell * (i % 64 == 7 ? 900.0f : 0.01f)};
        StoreHardElement(shape.dtype, values[kind], &chunk.raw[element_bytes * i]);
      }
      chunks.push_back(std::move(chunk));
    }
    std::vector<EncodeInput> inputs;
    for (const SampleChunk& chunk : chunks) inputs.push_back({&chunk, 512, {}});
    for (PresetId preset : {PresetId::kNear, PresetId::kHigh, PresetId::kTiny}) {
      for (StatsMode stats : {StatsMode::kProfile, StatsMode::kOwn, StatsMode::kAuto}) {
        ExpectSameFrames(layout, {preset, stats, &profile}, inputs);
      }
      ExpectSameFrames(layout, {preset, StatsMode::kAuto, nullptr}, inputs);
    }
  }
}

// What a decoder gives back is beyond the dtype's range now and then, and is cut there.
TEST_F(CudaEncodeTest, LargestNumbersGiveTheSameBytes) {
  Random random(2);
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const Layout layout =
        MakeUniformLayout("test", 1, 2, 64, dtype, {RopeStyle::kNeox, 64, 10000.0, {}});
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    SampleChunk chunk{layout, 100, ByteVector(layout.token_bytes() * 100)};
    const uint32_t largest = dtype == DType::kF16 ? 0x7BFF : 0x7F7F;
    for (size_t i = 0; i < chunk.raw.size() / 2; ++i) {
      const uint32_t bits = (largest - random.Below(100)) | random.Below(2) << 15;
      StoreLe<uint16_t>(&chunk.raw[2 * i], static_cast<uint16_t>(bits));
    }
    const std::vector<EncodeInput> inputs = {{&chunk, 512, {}}};
    for (PresetId preset : {PresetId::kNear, PresetId::kBalanced, PresetId::kTiny}) {
      for (StatsMode stats : {StatsMode::kProfile, StatsMode::kOwn, StatsMode::kAuto}) {
        ExpectSameFrames(layout, {preset, stats, &profile}, inputs);
      }
    }
  }
}

// Units under `auto` take statistics from every source, or the test above shows little.
TEST_F(CudaEncodeTest, AutoTakesStatisticsFromSeveralSources) {
  const Layout layout =
      MakeUniformLayout("test", 4, 4, 128, DType::kF16, {RopeStyle::kNeox, 128, 500000.0, {}});
  // A profile of these data, and one of others.
  std::set<size_t> sizes;
  const SampleChunk chunk = MakeSampleChunk(layout, 256, 7);
  const std::vector<EncodeInput> inputs = {{&chunk, 1000, {}}};
  for (uint64_t seed : {3, 4, 5}) {
    const ModelProfile profile = MakeSampleProfile(layout, seed, true);
    for (StatsMode stats : {StatsMode::kProfile, StatsMode::kOwn, StatsMode::kAuto}) {
      ExpectSameFrames(layout, {PresetId::kBalanced, stats, &profile}, inputs);
      EncodeOptions options;
      options.preset = PresetId::kBalanced;
      options.stats = stats;
      options.profile = &profile;
      options.start_position = 1000;
      sizes.insert(EncodeFrame(layout, 256, chunk.views(), options)->size());
    }
  }
  EXPECT_GT(sizes.size(), 3u);
}

// One chunk whose tokens are all alike: under another's statistics they share one draw of the
// lattice's error.
SampleChunk MakeAlikeChunk(const Layout& layout, uint32_t tokens, float scale) {
  SampleChunk chunk{layout, tokens, ByteVector(layout.token_bytes() * tokens)};
  for (size_t i = 0; i < chunk.raw.size() / 2; ++i) {
    const float value = scale * static_cast<float>(i % 64 * 7 % 64);
    StoreRow(DType::kF16, &value, 1, &chunk.raw[2 * i]);
  }
  return chunk;
}

// A chunk's two planes in a paged cache in pinned memory, [blocks, heads, block_tokens, head_dim]
// (HND) or [blocks, block_tokens, heads, head_dim] (NHD).
struct PagedChunk {
  static constexpr uint32_t kFirst = 7, kBlockTokens = 16, kHeads = 3;
  static constexpr uint32_t kBlocks[] = {5, 0, 3, 6};
  static constexpr size_t kVector = 128, kBlockStride = kBlockTokens * kHeads * kVector;
  PinnedBuffer source{2 * 8 * kBlockStride};
  CudaEncodeChunk task;

  PagedChunk(const SampleChunk& chunk, bool hnd)
      : task{chunk.tokens, 256, {}, {{}}, {kBlocks, kBlockTokens, kFirst}} {
    const size_t token_stride = hnd ? kVector : kHeads * kVector;
    const size_t head_stride = hnd ? kBlockTokens * kVector : kVector;
    std::fill_n(source.data(), source.size(), std::byte{0x5A});
    for (size_t p = 0; p < 2; ++p) {
      std::byte* plane = source.data() + p * 8 * kBlockStride;
      task.planes[0].push_back({plane, token_stride, head_stride, kBlockStride});
      for (uint32_t t = 0; t < chunk.tokens; ++t) {
        for (size_t h = 0; h < kHeads; ++h) {
          const uint32_t at = kFirst + t;
          std::copy_n(&chunk.raw[((p * chunk.tokens + t) * kHeads + h) * kVector], kVector,
                      plane + kBlocks[at / kBlockTokens] * kBlockStride +
                          at % kBlockTokens * token_stride + h * head_stride);
        }
      }
    }
  }
};

// Whether the host encoded the chunk. Its frame has to be the scalar encoder's.
bool EncodedByHost(const SampleChunk& chunk, const CudaEncodeSettings& settings, bool hnd,
                   const std::vector<uint8_t>& keep = {}) {
  EncodeOptions options;
  options.keep = keep;
  options.preset = settings.preset;
  options.stats = settings.stats;
  options.profile = settings.profile;
  options.start_position = 256;
  const auto expected = EncodeFrame(chunk.layout, chunk.tokens, chunk.views(), options);
  EXPECT_TRUE(expected.ok());
  PagedChunk paged(chunk, hnd);
  paged.task.keep = keep;
  const auto plan = CudaEncodePlan::Make(chunk.layout, settings, {&paged.task, 1});
  EXPECT_TRUE(plan.ok()) << plan.status();
  const OwnedArena owned(*plan);
  EXPECT_TRUE(plan->EncodeAsync(owned.arena(), nullptr).ok());
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  const auto batch = plan->Collect(owned.arena());
  EXPECT_TRUE(batch.ok()) << batch.status();
  ByteVector frame(batch->frame_bytes(0));
  EXPECT_TRUE(batch->DownloadAsync(owned.arena(), 0, frame, nullptr).ok());
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  EXPECT_TRUE(frame == *expected) << (hnd ? "HND: " : "NHD: ") << Difference(*expected, frame);
  return batch->encoded_by_host(0);
}

TEST_F(CudaEncodeTest, PagedSourcesInBothOrders) {
  const Layout layout =
      MakeUniformLayout("test", 1, 3, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0, {}});
  const SampleChunk chunk = MakeSampleChunk(layout, 50, 4);
  const CudaEncodeSettings settings{PresetId::kBalanced, StatsMode::kAuto, nullptr};
  Random random(3);
  for (const bool hnd : {false, true}) {
    EXPECT_FALSE(EncodedByHost(chunk, settings, hnd));
    EXPECT_FALSE(EncodedByHost(chunk, settings, hnd, RandomKeep(50, random)));
  }
  PagedChunk paged(chunk, false);
  paged.task.table.blocks = std::span(PagedChunk::kBlocks).first(3);
  EXPECT_EQ(CudaEncodePlan::Make(layout, {}, {&paged.task, 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CudaEncodeTest, TheHostEncodesWhatMissesTheContract) {
  const Layout layout =
      MakeUniformLayout("test", 1, 3, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0, {}});
  const ModelProfile profile = MakeSampleProfile(layout, 3, true);
  int by_host = 0;
  Random random(4);
  constexpr int kChunks = 12;
  for (int i = 0; i < kChunks; ++i) {
    const SampleChunk chunk = MakeAlikeChunk(layout, 50, 0.1f + 0.037f * static_cast<float>(i));
    by_host += EncodedByHost(chunk, {PresetId::kTiny, StatsMode::kProfile, &profile}, i % 2 == 0);
    by_host += EncodedByHost(chunk, {PresetId::kTiny, StatsMode::kProfile, &profile}, i % 2 != 0,
                             RandomKeep(50, random));
  }
  // Both ways there are, or this shows little.
  EXPECT_GT(by_host, 0);
  EXPECT_LT(by_host, 2 * kChunks);
}

TEST_F(CudaEncodeTest, WrongBatchesAreRefused) {
  const Layout layout = MakeUniformLayout("test", 1, 1, 64, DType::kF16, RopeSpec{});
  const SampleChunk chunk = MakeSampleChunk(layout, 8, 1);
  const DeviceBuffer source(chunk.raw.size());
  CudaEncodeChunk task{8, 16, {}, ContiguousPlanes(layout, 8, source.data()), {}};
  EXPECT_EQ(CudaEncodePlan::Make(layout, {}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      CudaEncodePlan::Make(layout, {PresetId::kHigh, StatsMode::kProfile, nullptr}, {&task, 1})
          .status()
          .code(),
      absl::StatusCode::kFailedPrecondition);
  const auto plan = CudaEncodePlan::Make(layout, {}, {&task, 1});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const OwnedArena owned(*plan);
  CudaArena arena = owned.arena();
  --arena.device_bytes;
  EXPECT_EQ(plan->Encode(arena, nullptr).status().code(), absl::StatusCode::kInvalidArgument);
  task.exact_tokens = {8};
  EXPECT_EQ(CudaEncodePlan::Make(layout, {}, {&task, 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  task.exact_tokens = {};
  task.planes[0].pop_back();
  EXPECT_EQ(CudaEncodePlan::Make(layout, {}, {&task, 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace latticekv
