// Every CPU backend gives the scalar one's bytes in both directions. LATTICEKV_SEED sets the seed,
// LATTICEKV_LAYOUTS the number of random layouts.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "core/codec/codec.h"
#include "tests/support/mutation.h"
#include "tests/support/random_layout.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::FromEnvironment;
using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::Random;
using testing::RandomLayout;
using testing::SampleChunk;

// Parameter: a backend. Skipped where the processor lacks it.
class CpuBackendTest : public ::testing::TestWithParam<CodecBackend> {
 protected:
  void SetUp() override {
    const auto resolved = ResolveCodecBackend(GetParam());
    if (!resolved.ok()) GTEST_SKIP() << resolved.status().message();
  }
};

ByteVector Decode(const SampleChunk& chunk, ByteSpan frame, const ModelProfile* profile,
                  CodecBackend backend) {
  // Poisoned, so that an element that is not written shows.
  ByteVector raw(chunk.raw.size(), std::byte{0xA5});
  const auto decoder = FrameDecoder::Open(frame, chunk.layout, profile, backend);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  if (!decoder.ok()) return raw;
  const absl::Status status = DecodeFrame(*decoder, chunk.layout, raw);
  EXPECT_TRUE(status.ok()) << status;
  return raw;
}

void ExpectSameBytes(const SampleChunk& chunk, EncodeOptions options, CodecBackend backend) {
  options.backend = CodecBackend::kScalar;
  const auto scalar = EncodeFrame(chunk.layout, chunk.tokens, chunk.views(), options);
  ASSERT_TRUE(scalar.ok()) << scalar.status();
  options.backend = backend;
  const auto frame = EncodeFrame(chunk.layout, chunk.tokens, chunk.views(), options);
  ASSERT_TRUE(frame.ok()) << frame.status();
  ASSERT_EQ(frame->size(), scalar->size());
  const auto at = std::mismatch(frame->begin(), frame->end(), scalar->begin()).first;
  ASSERT_TRUE(at == frame->end()) << "frames differ at byte " << at - frame->begin();
  const ByteVector expected = Decode(chunk, *scalar, options.profile, CodecBackend::kScalar);
  const ByteVector decoded = Decode(chunk, *scalar, options.profile, backend);
  const auto where = std::mismatch(decoded.begin(), decoded.end(), expected.begin()).first;
  ASSERT_TRUE(where == decoded.end()) << "decoded differs at byte " << where - decoded.begin();
}

// Every preset and source of statistics, without query energy, and with attention mass.
void ExpectSameBytesEveryWay(const SampleChunk& chunk, uint64_t seed, CodecBackend backend) {
  const ModelProfile profile = MakeSampleProfile(chunk.layout, seed, true);
  Random random(seed);
  std::vector<float> mass(chunk.layout.layers.size() * chunk.tokens);
  for (float& m : mass) m = static_cast<float>(1u << random.Below(12)) / 64;
  for (const Preset& preset : AllPresets()) {
    for (int mode = 0; mode < 5; ++mode) {
      SCOPED_TRACE(std::string(preset.name) + " statistics " + std::to_string(mode));
      EncodeOptions options;
      options.preset = preset.id;
      options.profile = mode != 3 ? &profile : nullptr;
      options.stats = mode < 3 ? static_cast<StatsMode>(mode) : StatsMode::kAuto;
      if (mode == 4) options.mass = {mass.data(), chunk.tokens, chunk.tokens + 50};
      options.start_position = mode == 0 ? 0 : 100'003 * static_cast<uint64_t>(mode);
      if (chunk.tokens > 10) options.exact_tokens = {5, 9};
      ExpectSameBytes(chunk, options, backend);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST_P(CpuBackendTest, NamedLayouts) {
  struct Shape {
    uint32_t heads, head_dim, tokens;
    DType dtype;
    RopeSpec rope;
  };
  const RopeStyle neox = RopeStyle::kNeox, woven = RopeStyle::kInterleaved;
  const Shape shapes[] = {
      {2, 64, 100, DType::kF16, {neox, 64, 10000.0}},
      {2, 128, 256, DType::kF16, {neox, 128, 500000.0}},
      {1, 128, 33, DType::kBF16, {woven, 128, 1e4}},
      {3, 80, 50, DType::kF32, {neox, 40, 10000.0}},
      {1, 96, 64, DType::kF16, {woven, 48, 10000.0}},
      {1, 256, 31, DType::kBF16, {neox, 256, 1e6}},
      {1, 576, 17, DType::kBF16, {neox, 64, 10000.0}},
      {5, 8, 70, DType::kF32, RopeSpec{}},
      {3, 24, 40, DType::kF16, {woven, 6, 10000.0}},
      {2, 16, 1, DType::kF16, {neox, 16, 10000.0}},
  };
  for (const Shape& s : shapes) {
    SCOPED_TRACE(std::to_string(s.head_dim) + " " + std::string(DTypeName(s.dtype)) + " rotary " +
                 std::to_string(s.rope.rotary_dims));
    const Layout layout = MakeUniformLayout("test", 1, s.heads, s.head_dim, s.dtype, s.rope);
    ExpectSameBytesEveryWay(MakeSampleChunk(layout, s.tokens, 7), 3, GetParam());
    if (HasFatalFailure()) return;
  }
}

TEST_P(CpuBackendTest, RandomLayoutsAndOutliers) {
  const uint64_t seed = FromEnvironment("LATTICEKV_SEED", 20261124);
  const uint64_t layouts = FromEnvironment("LATTICEKV_LAYOUTS", 12);
  std::printf("LATTICEKV_SEED=%llu\n", static_cast<unsigned long long>(seed));
  Random random(seed);
  for (uint64_t i = 0; i < layouts; ++i) {
    SCOPED_TRACE("layout " + std::to_string(i));
    const Layout layout = RandomLayout(random);
    ASSERT_TRUE(ValidateLayout(layout).ok()) << ValidateLayout(layout);
    SampleChunk chunk = MakeSampleChunk(layout, 1 + random.Below(120), random.Next());
    // Any bits at all here and there: outliers, infinities, numbers that are not any.
    for (uint32_t n = random.Below(40); n > 0; --n) {
      chunk.raw[random.Next() % chunk.raw.size()] = static_cast<std::byte>(random.Below(256));
    }
    ExpectSameBytesEveryWay(chunk, random.Next(), GetParam());
    if (HasFatalFailure()) return;
  }
}

TEST_P(CpuBackendTest, HugeTinyAndConstantInput) {
  const Layout layout =
      MakeUniformLayout("test", 1, 1, 64, DType::kF32, {RopeStyle::kNeox, 64, 1e4});
  const std::vector<SampleChunk> chunks = testing::MakeHardChunks(layout, 50);
  for (const SampleChunk& chunk : chunks) {
    SCOPED_TRACE("chunk " + std::to_string(&chunk - chunks.data()));
    ExpectSameBytesEveryWay(chunk, 5, GetParam());
    if (HasFatalFailure()) return;
  }
}

// Damage is found, or not, by every backend alike.
TEST_P(CpuBackendTest, DamagedFrames) {
  const uint64_t seed = FromEnvironment("LATTICEKV_SEED", 20261124);
  std::printf("LATTICEKV_SEED=%llu\n", static_cast<unsigned long long>(seed));
  Random random(seed);
  const Layout layout =
      MakeUniformLayout("test", 1, 3, 64, DType::kF16, {RopeStyle::kNeox, 64, 1e4});
  const SampleChunk chunk = MakeSampleChunk(layout, 70, 5);
  for (PresetId preset : {PresetId::kNear, PresetId::kTiny}) {
    EncodeOptions options;
    options.preset = preset;
    const auto frame = EncodeFrame(layout, 70, chunk.views(), options);
    ASSERT_TRUE(frame.ok());
    for (int n = 0; n < 300; ++n) {
      ByteVector damaged = *frame;
      damaged[140 + random.Next() % (damaged.size() - 140)] =
          static_cast<std::byte>(random.Below(256));
      testing::Reseal(damaged);
      ByteVector raw[2];
      absl::Status status[2];
      for (int b = 0; b < 2; ++b) {
        raw[b].resize(chunk.raw.size());
        const auto decoder =
            FrameDecoder::Open(damaged, layout, nullptr, b ? GetParam() : CodecBackend::kScalar);
        status[b] = decoder.ok() ? DecodeFrame(*decoder, layout, raw[b]) : decoder.status();
      }
      ASSERT_EQ(status[0].ok(), status[1].ok()) << n << ": " << status[0] << ", " << status[1];
      if (!status[0].ok()) continue;
      ASSERT_EQ(raw[0], raw[1]) << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, CpuBackendTest,
                         ::testing::Values(CodecBackend::kAvx2, CodecBackend::kAvx512),
                         [](const auto& info) {
                           return std::string(CodecBackendName(info.param));
                         });

// Sets LATTICEKV_CPU_LEVEL and puts back what was there.
class CpuLevelTest : public ::testing::Test {
 protected:
  CpuLevelTest() {
    if (const char* level = std::getenv("LATTICEKV_CPU_LEVEL")) before_ = level;
  }
  ~CpuLevelTest() override { setenv("LATTICEKV_CPU_LEVEL", before_.c_str(), 1); }

 private:
  std::string before_;
};

TEST_F(CpuLevelTest, NamesWhatAutoComesTo) {
  setenv("LATTICEKV_CPU_LEVEL", "scalar", 1);
  EXPECT_EQ(*ResolveCodecBackend(CodecBackend::kAuto), CodecBackend::kScalar);
  for (const char* any : {"", "auto"}) {
    setenv("LATTICEKV_CPU_LEVEL", any, 1);
    EXPECT_TRUE(ResolveCodecBackend(CodecBackend::kAuto).ok());
  }
  for (CodecBackend backend : {CodecBackend::kAvx2, CodecBackend::kAvx512}) {
    setenv("LATTICEKV_CPU_LEVEL", std::string(CodecBackendName(backend)).c_str(), 1);
    const auto by_level = ResolveCodecBackend(CodecBackend::kAuto);
    const auto by_option = ResolveCodecBackend(backend);
    ASSERT_EQ(by_level.ok(), by_option.ok());
    if (by_level.ok()) {
      EXPECT_EQ(*by_level, backend);
    } else {
      EXPECT_EQ(by_level.status().code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_NE(by_level.status().message().find("LATTICEKV_CPU_LEVEL"), std::string::npos);
    }
  }
}

TEST_F(CpuLevelTest, AWrongLevelIsAnErrorThatNamesIt) {
  setenv("LATTICEKV_CPU_LEVEL", "sse9", 1);
  const Layout layout = MakeUniformLayout("test", 1, 1, 8, DType::kF16, RopeSpec{});
  const SampleChunk chunk = MakeSampleChunk(layout, 2, 1);
  const auto frame = EncodeFrame(layout, 2, chunk.views(), {});
  EXPECT_EQ(frame.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(frame.status().message().find("'sse9'"), std::string::npos) << frame.status();
  // An option wins over the environment.
  EncodeOptions options;
  options.backend = CodecBackend::kScalar;
  EXPECT_TRUE(EncodeFrame(layout, 2, chunk.views(), options).ok());
}

}  // namespace
}  // namespace latticekv
