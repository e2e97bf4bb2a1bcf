// The CUDA decoder gives the scalar decoder's bytes, and damaged frames harm nobody. Skipped where
// there is no device. LATTICEKV_SEED sets the seed, LATTICEKV_MUTATIONS the number of mutants.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "tests/gpu/codec_batch.h"
#include "tests/gpu/gpu_layouts.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::CanEvict;
using testing::DeviceBuffer;
using testing::ExpectMutantsDecodeAsScalar;
using testing::FromEnvironment;
using testing::kGuard;
using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::NamedLayouts;
using testing::OwnedArena;
using testing::Random;
using testing::RandomKeep;
using testing::RandomLayout;
using testing::RandomMass;
using testing::SampleChunk;
using testing::ToHost;

class CudaDecodeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  }
};

ByteVector ScalarDecode(const Layout& layout, const ModelProfile* profile, ByteSpan frame) {
  auto decoder = FrameDecoder::Open(frame, layout, profile);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  ByteVector raw(layout.token_bytes() * decoder->info().tokens);
  const absl::Status status = DecodeFrame(*decoder, layout, raw);
  EXPECT_TRUE(status.ok()) << status;
  return raw;
}

// Decodes frames as one batch, each into a destination of its own between guards; `shift` bytes off
// the natural alignment. Compares every byte with the scalar decoder.
void ExpectSameBytes(const Layout& layout, const ModelProfile* profile,
                     const std::vector<ByteVector>& frames, size_t shift = 0) {
  std::vector<DeviceBuffer> outputs;
  std::vector<CudaDecodeChunk> chunks;
  for (const ByteVector& frame : frames) {
    const uint32_t tokens = ReadFrameInfo(frame)->tokens;
    outputs.emplace_back(layout.token_bytes() * tokens + 2 * kGuard);
    cudaMemset(outputs.back().data(), 0x5A, outputs.back().size());
    chunks.push_back(
        {frame, ContiguousPlanes(layout, tokens, outputs.back().data() + kGuard + shift), {}});
  }
  const auto plan = CudaDecodePlan::Make(layout, profile, chunks);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const OwnedArena owned(*plan);
  const absl::Status status = plan->Decode(owned.arena(), nullptr);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < frames.size(); ++i) {
    const ByteVector expected = ScalarDecode(layout, profile, frames[i]);
    const ByteVector got = ToHost(outputs[i]);
    const auto begin = got.begin() + static_cast<std::ptrdiff_t>(kGuard + shift);
    const auto difference = std::mismatch(expected.begin(), expected.end(), begin);
    ASSERT_TRUE(difference.first == expected.end())
        << "chunk " << i << " differs at byte " << difference.first - expected.begin() << " of "
        << expected.size();
    const auto untouched = [](std::byte b) { return b == std::byte{0x5A}; };
    EXPECT_TRUE(std::all_of(got.begin(), begin, untouched));
    EXPECT_TRUE(
        std::all_of(begin + static_cast<std::ptrdiff_t>(expected.size()), got.end(), untouched));
  }
}

ByteVector Encode(const SampleChunk& chunk, PresetId preset, StatsMode stats,
                  const ModelProfile* profile, uint64_t start,
                  const std::vector<uint8_t>& keep = {}, const std::vector<float>& mass = {}) {
  EncodeOptions options;
  options.preset = preset;
  options.stats = stats;
  options.profile = profile;
  options.start_position = start;
  options.keep = keep;
  if (!mass.empty()) options.mass = {mass.data(), chunk.tokens, chunk.tokens + 50};
  if (chunk.tokens > 10) options.exact_tokens = {3, 9};
  auto frame = EncodeFrame(chunk.layout, chunk.tokens, chunk.views(), options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  return frame.ok() ? *frame : ByteVector();
}

// What frames leave out or code in another way.
enum class Kind { kWhole, kEvicted, kMass, kEvictedMass };

// Every preset and source of statistics of one layout in one batch.
std::vector<ByteVector> AllFrames(const Layout& layout, const ModelProfile& profile,
                                  std::span<const uint32_t> tokens, uint64_t seed,
                                  Kind kind = Kind::kWhole) {
  std::vector<ByteVector> frames;
  Random random(seed);
  for (const Preset& preset : AllPresets()) {
    for (StatsMode stats : {StatsMode::kOwn, StatsMode::kProfile, StatsMode::kAuto}) {
      for (uint32_t t : tokens) {
        const SampleChunk chunk = MakeSampleChunk(layout, t, seed + t);
        const uint64_t start = (frames.size() % 3) * 100'003;
        std::vector<uint8_t> keep;
        if (kind == Kind::kEvicted || kind == Kind::kEvictedMass) keep = RandomKeep(t, random);
        std::vector<float> mass;
        if (kind >= Kind::kMass) mass = RandomMass(layout.layers.size() * t, random);
        frames.push_back(Encode(chunk, preset.id, stats, &profile, start, keep, mass));
      }
    }
  }
  return frames;
}

TEST_F(CudaDecodeTest, SameBytesForNamedLayouts) {
  const uint32_t tokens[] = {1, 33, 256};
  for (const Layout& layout : NamedLayouts()) {
    SCOPED_TRACE(layout.model);
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    ExpectSameBytes(layout, &profile, AllFrames(layout, profile, tokens, 7));
  }
}

TEST_F(CudaDecodeTest, EvictedTokensDecodeToZeros) {
  const uint32_t tokens[] = {2, 70, 256};
  for (const Layout& layout : NamedLayouts()) {
    SCOPED_TRACE(layout.model);
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    ExpectSameBytes(layout, &profile, AllFrames(layout, profile, tokens, 7, Kind::kEvicted));
  }
}

TEST_F(CudaDecodeTest, AttentionMassGivesTheSameBytes) {
  const uint32_t tokens[] = {1, 70, 256};
  for (const Layout& layout : NamedLayouts()) {
    SCOPED_TRACE(layout.model);
    const ModelProfile profile = MakeSampleProfile(layout, 3, true);
    // In one batch with frames without it.
    std::vector<ByteVector> frames = AllFrames(layout, profile, tokens, 7, Kind::kMass);
    const uint32_t some[] = {33};
    for (const Kind kind : {Kind::kWhole, Kind::kEvictedMass}) {
      for (ByteVector& frame : AllFrames(layout, profile, some, 8, kind)) {
        frames.push_back(std::move(frame));
      }
    }
    ExpectSameBytes(layout, &profile, frames);
  }
}

TEST_F(CudaDecodeTest, SameBytesForRandomLayouts) {
  const uint64_t seed = FromEnvironment("LATTICEKV_SEED", 20260102);
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  Random random(seed);
  for (int n = 0; n < 40; ++n) {
    SCOPED_TRACE("layout " + std::to_string(n));
    const Layout layout = RandomLayout(random);
    ASSERT_TRUE(ValidateLayout(layout).ok()) << ValidateLayout(layout);
    const uint32_t tokens = 1 + random.Below(200);
    const SampleChunk chunk = MakeSampleChunk(layout, tokens, random.Next());
    std::vector<ByteVector> frames;
    for (const Preset& preset : AllPresets()) {
      frames.push_back(
          Encode(chunk, preset.id, StatsMode::kOwn, nullptr, random.Below(2) * 131'071));
    }
    const std::vector<float> mass = RandomMass(layout.layers.size() * tokens, random);
    for (PresetId preset : {PresetId::kNear, PresetId::kTiny}) {
      frames.push_back(Encode(chunk, preset, StatsMode::kOwn, nullptr, 99, {}, mass));
    }
    if (CanEvict(layout)) {
      frames.push_back(
          Encode(chunk, PresetId::kHigh, StatsMode::kOwn, nullptr, 77, RandomKeep(tokens, random)));
    }
    ExpectSameBytes(layout, nullptr, frames);
    // f32 elements are 4 bytes: 4 off is aligned for every dtype, and for no wide store.
    ExpectSameBytes(layout, nullptr, {frames[4], frames[AllPresets().size()]}, 4);
  }
}

TEST_F(CudaDecodeTest, HardInputGivesTheSameBytes) {
  const Layout layout =
      MakeUniformLayout("test", 1, 2, 64, DType::kF32, {RopeStyle::kNeox, 64, 10000.0, {}});
  std::vector<ByteVector> frames;
  Random random(1);
  for (int kind = 0; kind < 6; ++kind) {
    SampleChunk chunk{layout, 50, ByteVector(layout.token_bytes() * 50)};
    for (size_t i = 0; i < chunk.raw.size() / 4; ++i) {
      const float bell = random.Bell();
      const float values[] = {0.0f,
                              -0.0f,
                              3.5f,
                              1e-42f * static_cast<float>(i % 5),
                              3e38f * ((i * 7 % 11) < 5 ? 1.0f : -1.0f),
                              bell * (i % 997 == 0 ? 1e4f : 1.0f)};
      StoreLe<float>(&chunk.raw[4 * i], values[kind]);
    }
    for (PresetId preset : {PresetId::kNear, PresetId::kHigh, PresetId::kTiny}) {
      frames.push_back(Encode(chunk, preset, StatsMode::kOwn, nullptr, 512));
      frames.push_back(
          Encode(chunk, preset, StatsMode::kOwn, nullptr, 512, {}, RandomMass(50, random)));
    }
  }
  ExpectSameBytes(layout, nullptr, frames);
}

// A paged cache [blocks, heads, block_tokens, head_dim] (HND) or [blocks, block_tokens, heads,
// head_dim] (NHD), blocks in any order.
TEST_F(CudaDecodeTest, PagedDestinationsInBothOrders) {
  const Layout layout =
      MakeUniformLayout("test", 1, 3, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0, {}});
  const uint32_t tokens = 50, first = 7, block_tokens = 16;
  const uint32_t blocks[] = {5, 0, 3, 6};
  const SampleChunk chunk = MakeSampleChunk(layout, tokens, 4);
  const ByteVector frame = Encode(chunk, PresetId::kBalanced, StatsMode::kOwn, nullptr, 256);
  const ByteVector expected = ScalarDecode(layout, nullptr, frame);
  const size_t vector = 128, block_stride = block_tokens * 3 * vector, cache = 8 * block_stride;
  for (const bool hnd : {false, true}) {
    const size_t token_stride = hnd ? vector : 3 * vector;
    const size_t head_stride = hnd ? block_tokens * vector : vector;
    const DeviceBuffer output(2 * cache);
    cudaMemset(output.data(), 0x5A, output.size());
    CudaDecodeChunk destination{frame, {{}}, {blocks, block_tokens, first}};
    for (size_t p = 0; p < 2; ++p) {
      destination.planes[0].push_back(
          {output.data() + p * cache, token_stride, head_stride, block_stride});
    }
    const auto plan = CudaDecodePlan::Make(layout, nullptr, {&destination, 1});
    ASSERT_TRUE(plan.ok()) << plan.status();
    const OwnedArena owned(*plan);
    ASSERT_TRUE(plan->Decode(owned.arena(), nullptr).ok());
    ByteVector want(output.size(), std::byte{0x5A});
    for (size_t p = 0; p < 2; ++p) {
      for (uint32_t t = 0; t < tokens; ++t) {
        for (size_t h = 0; h < 3; ++h) {
          const uint32_t at = first + t;
          std::copy_n(&expected[((p * tokens + t) * 3 + h) * vector], vector,
                      &want[p * cache + blocks[at / block_tokens] * block_stride +
                            at % block_tokens * token_stride + h * head_stride]);
        }
      }
    }
    EXPECT_EQ(ToHost(output), want) << (hnd ? "HND" : "NHD");
    destination.table.blocks = std::span(blocks).first(3);
    EXPECT_EQ(CudaDecodePlan::Make(layout, nullptr, {&destination, 1}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(CudaDecodeTest, LayersAloneAndNoOthers) {
  const Layout layout =
      MakeUniformLayout("test", 5, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0, {}});
  const SampleChunk chunk = MakeSampleChunk(layout, 100, 8);
  const ByteVector frame = Encode(chunk, PresetId::kBalanced, StatsMode::kOwn, nullptr, 0);
  const ByteVector expected = ScalarDecode(layout, nullptr, frame);
  const size_t layer_bytes = expected.size() / 5;
  for (const auto& [first, layers] : {std::pair(0u, 1u), {2u, 2u}, {4u, 1u}, {0u, 5u}, {3u, 0u}}) {
    SCOPED_TRACE(std::to_string(first) + " and " + std::to_string(layers));
    const DeviceBuffer output(expected.size());
    cudaMemset(output.data(), 0x5A, output.size());
    const uint32_t end = layers == 0 ? 5 : first + layers;
    CudaDecodeChunk some{frame, ContiguousPlanes(layout, 100, output.data()), {}, first, layers};
    for (uint32_t l = 0; l < 5; ++l) {
      if (l < first || l >= end) some.planes[l].clear();
    }
    const auto plan = CudaDecodePlan::Make(layout, nullptr, {&some, 1});
    ASSERT_TRUE(plan.ok()) << plan.status();
    const OwnedArena owned(*plan);
    ASSERT_TRUE(plan->Decode(owned.arena(), nullptr).ok());
    ByteVector want(expected.size(), std::byte{0x5A});
    std::copy(expected.begin() + first * layer_bytes, expected.begin() + end * layer_bytes,
              want.begin() + first * layer_bytes);
    EXPECT_EQ(ToHost(output), want);
  }
  CudaDecodeChunk outside{frame, ContiguousPlanes(layout, 100, nullptr), {}, 4, 2};
  EXPECT_EQ(CudaDecodePlan::Make(layout, nullptr, {&outside, 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CudaDecodeTest, ArenasThatAreTooSmallAreRefused) {
  const Layout layout = MakeUniformLayout("test", 1, 1, 64, DType::kF16, RopeSpec{});
  const ByteVector frame =
      Encode(MakeSampleChunk(layout, 8, 1), PresetId::kHigh, StatsMode::kOwn, nullptr, 16);
  const DeviceBuffer output(layout.token_bytes() * 8);
  const CudaDecodeChunk chunk{frame, ContiguousPlanes(layout, 8, output.data()), {}};
  const auto plan = CudaDecodePlan::Make(layout, nullptr, {&chunk, 1});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const OwnedArena owned(*plan);
  CudaArena arena = owned.arena();
  --arena.device_bytes;
  EXPECT_EQ(plan->Decode(arena, nullptr).code(), absl::StatusCode::kInvalidArgument);
}

// Batches of different sizes and kinds through planners that are kept, two of them in turns over
// one arena: what one leaves there must not serve the other. Frames are uploaded before they are
// checked; one that is refused then does not run.
TEST_F(CudaDecodeTest, PlannersAndArenasAreUsedAgain) {
  const Layout layout =
      MakeUniformLayout("test", 2, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0, {}});
  const ModelProfile profiles[] = {MakeSampleProfile(layout, 3, true),
                                   MakeSampleProfile(layout, 4, true)};
  std::vector<CudaDecodePlanner> planners;
  for (const ModelProfile& profile : profiles) {
    auto planner = CudaDecodePlanner::Make(layout, &profile);
    ASSERT_TRUE(planner.ok()) << planner.status();
    planners.push_back(*std::move(planner));
  }
  const DeviceBuffer device(64 << 20);
  const testing::PinnedBuffer pinned(16 << 20);
  uint64_t tables_id = 0;
  const CudaArena arena{device.data(), device.size(), pinned.data(), pinned.size(), &tables_id};
  CudaDecodePlan plan;
  EXPECT_EQ(plan.LaunchAsync(arena, nullptr).code(), absl::StatusCode::kInvalidArgument);
  for (const size_t turn : {0, 0, 1, 0, 1, 1}) {
    const uint32_t tokens[] = {static_cast<uint32_t>(20 + 50 * turn), 7};
    std::vector<ByteVector> frames = AllFrames(layout, profiles[turn], tokens, 5 + turn);
    if (turn == 1) frames.resize(5);
    std::vector<DeviceBuffer> outputs;
    std::vector<CudaDecodeChunk> chunks;
    for (const ByteVector& frame : frames) {
      const uint32_t n = ReadFrameInfo(frame)->tokens;
      outputs.emplace_back(layout.token_bytes() * n);
      chunks.push_back({frame, ContiguousPlanes(layout, n, outputs.back().data()), {}});
    }
    std::byte& last = frames.back().back();
    last ^= std::byte{1};
    ASSERT_TRUE(planners[turn].Begin(chunks, plan).ok());
    ASSERT_TRUE(plan.UploadFramesAsync(arena, nullptr).ok());
    EXPECT_EQ(planners[turn].Finish(plan).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(plan.LaunchAsync(arena, nullptr).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(plan.UploadTasksAsync(arena, nullptr).code(), absl::StatusCode::kInvalidArgument);
    ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
    last ^= std::byte{1};
    const absl::Status planned = planners[turn].Plan(chunks, plan);
    ASSERT_TRUE(planned.ok()) << planned;
    const absl::Status decoded = plan.Decode(arena, nullptr);
    ASSERT_TRUE(decoded.ok()) << decoded;
    EXPECT_NE(tables_id, 0u);
    for (size_t i = 0; i < frames.size(); ++i) {
      EXPECT_TRUE(ToHost(outputs[i]) == ScalarDecode(layout, &profiles[turn], frames[i]))
          << "turn " << turn << ", chunk " << i;
    }
  }
}

TEST_F(CudaDecodeTest, DamagedFramesAreRefusedAsTheScalarDecoderRefusesThem) {
  Layout layout;
  LayerSpec layer;
  layer.planes.push_back(
      {"k", PlaneRole::kKey, 2, 16, DType::kF16, {RopeStyle::kInterleaved, 8, 10000.0, {}}});
  layer.planes.push_back({"v", PlaneRole::kValue, 2, 24, DType::kBF16, RopeSpec{}});
  layout.layers.assign(2, layer);
  const ModelProfile profile = MakeSampleProfile(layout, 3, true);
  const uint32_t tokens[] = {1, 40};
  Random random(FromEnvironment("LATTICEKV_SEED", 20260103));
  const uint64_t mutants = FromEnvironment("LATTICEKV_MUTATIONS", 20'000);
  for (const Kind kind : {Kind::kWhole, Kind::kEvicted, Kind::kMass, Kind::kEvictedMass}) {
    const std::vector<ByteVector> originals = AllFrames(layout, profile, tokens, 1, kind);
    ExpectMutantsDecodeAsScalar(layout, &profile, originals, 64, mutants / 4, random);
  }
}

}  // namespace
}  // namespace latticekv
