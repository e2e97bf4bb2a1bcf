#include "core/codec/codec.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "core/codec/frame_format.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::ElementAt;
using testing::KeepsItsContract;
using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::SampleChunk;

RopeSpec Rope(uint32_t dims, RopeStyle style = RopeStyle::kNeox) { return {style, dims, 10000.0}; }

ByteVector Encode(const SampleChunk& chunk, const EncodeOptions& options) {
  auto frame = EncodeFrame(chunk.layout, chunk.tokens, chunk.views(), options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  return frame.ok() ? *frame : ByteVector();
}

ByteVector Decode(const SampleChunk& chunk, ByteSpan frame, const ModelProfile* profile) {
  auto decoder = FrameDecoder::Open(frame, chunk.layout, profile);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  // Poisoned, so that an element that is not written shows.
  ByteVector raw(chunk.raw.size(), std::byte{0xA5});
  if (!decoder.ok()) return raw;
  const absl::Status status = DecodeFrame(*decoder, chunk.layout, raw);
  EXPECT_TRUE(status.ok()) << status;
  return raw;
}

// rms over (layer, head, token) of the logit error (with energy) or relative error, from the
// original and the decoded bytes alone, exact tokens left out.
double MeasureError(const SampleChunk& chunk, const ByteVector& decoded, PlaneRole role,
                    const ModelProfile* profile, uint32_t first_token) {
  const auto a = chunk.views();
  const auto b = RawChunkViews(chunk.layout, chunk.tokens, decoded);
  double sum = 0;
  size_t vectors = 0;
  for (size_t l = 0; l < a.size(); ++l) {
    for (size_t p = 0; p < a[l].size(); ++p) {
      const PlaneSpec& plane = chunk.layout.layers[l].planes[p];
      if (plane.role != role) continue;
      const auto order = CanonicalChannels(plane);
      for (uint32_t t = first_token; t < chunk.tokens; ++t) {
        for (uint32_t h = 0; h < plane.heads; ++h) {
          const size_t at = t * a[l][p].token_stride + h * a[l][p].head_stride;
          double error = 0, norm = 0;
          for (uint32_t c = 0; c < plane.head_dim; ++c) {
            const double x = ElementAt(plane.dtype, a[l][p].data + at, order[c]);
            const double d = ElementAt(plane.dtype, b[l][p].data + at, order[c]) - x;
            const double w = profile ? profile->layers[l][p].heads[h].query_energy[c] : 1;
            error += w * d * d;
            norm += x * x;
          }
          sum += profile ? error / plane.head_dim : error / norm;
          ++vectors;
        }
      }
    }
  }
  return std::sqrt(sum / vectors);
}

struct Shape {
  uint32_t heads, head_dim, tokens;
  DType dtype;
  RopeSpec rope;
};

class CodecShapes : public ::testing::TestWithParam<Shape> {};

TEST_P(CodecShapes, EveryPresetKeepsItsContract) {
  const Shape& s = GetParam();
  const Layout layout = MakeUniformLayout("test", 2, s.heads, s.head_dim, s.dtype, s.rope);
  ASSERT_TRUE(ValidateLayout(layout).ok()) << ValidateLayout(layout);
  const SampleChunk chunk = MakeSampleChunk(layout, s.tokens, 7);
  const ModelProfile profile = MakeSampleProfile(layout, 3, true);
  for (const Preset& preset : AllPresets()) {
    for (StatsMode stats : {StatsMode::kOwn, StatsMode::kProfile, StatsMode::kAuto}) {
      SCOPED_TRACE(std::string(preset.name) + " stats " + std::to_string(static_cast<int>(stats)));
      EncodeOptions options;
      options.preset = preset.id;
      options.stats = stats;
      options.profile = &profile;
      options.start_position = 4096;
      const ByteVector frame = Encode(chunk, options);
      const ByteVector decoded = Decode(chunk, frame, &profile);
      if (preset.id == PresetId::kExact) {
        EXPECT_EQ(decoded, chunk.raw);
        continue;
      }
      const Quality quality = ReadFrameInfo(frame)->quality;
      EXPECT_TRUE(quality.profiled);
      const double noise = MeasureError(chunk, decoded, PlaneRole::kKey, &profile, 0);
      const double error = MeasureError(chunk, decoded, PlaneRole::kValue, nullptr, 0);
      // What the frame says is what is there, and both are what was asked for.
      EXPECT_NEAR(quality.logit_noise, noise, 0.03 * noise + 1e-4);
      EXPECT_NEAR(quality.value_error, error, 0.03 * error + 1e-4);
      EXPECT_TRUE(KeepsItsContract(frame));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CodecShapes,
    ::testing::Values(Shape{2, 64, 256, DType::kF16, Rope(64)},
                      Shape{1, 128, 100, DType::kBF16, Rope(128, RopeStyle::kInterleaved)},
                      Shape{3, 80, 33, DType::kF32, Rope(40)},
                      Shape{1, 96, 64, DType::kF16, Rope(48, RopeStyle::kInterleaved)},
                      Shape{1, 192, 31, DType::kF16, Rope(64)},
                      Shape{1, 256, 16, DType::kBF16, Rope(256)},
                      Shape{5, 8, 1, DType::kF32, RopeSpec{}},
                      Shape{2, 64, 1, DType::kF16, Rope(64)}));

// A thread for each layer.
class ThreadForEach : public LayerRunner {
 public:
  void Run(size_t count, const std::function<void(size_t)>& work) const override {
    std::vector<std::thread> threads;
    for (size_t i = count; i-- > 0;) threads.emplace_back([&work, i] { work(i); });
    for (std::thread& thread : threads) thread.join();
  }
};

TEST(CodecTest, LayersMayBeEncodedSideBySide) {
  const Layout layout = MakeUniformLayout("test", 6, 2, 64, DType::kF16, Rope(64));
  const SampleChunk chunk = MakeSampleChunk(layout, 96, 17);
  const ModelProfile profile = MakeSampleProfile(layout, 18, true);
  const ThreadForEach threads;
  for (PresetId preset :
       {PresetId::kExact, PresetId::kBalanced, PresetId::kTiny, PresetId::kSeed}) {
    EncodeOptions options;
    options.preset = preset;
    options.profile = &profile;
    options.stats = StatsMode::kAuto;
    const ByteVector alone = Encode(chunk, options);
    options.runner = &threads;
    EXPECT_EQ(Encode(chunk, options), alone) << PresetName(preset);
  }
}

TEST(CodecTest, SinksAndAskedTokensAreBitForBit) {
  const Layout layout = MakeUniformLayout("test", 1, 2, 64, DType::kF16, Rope(64));
  const SampleChunk chunk = MakeSampleChunk(layout, 40, 11);
  EncodeOptions options;
  options.preset = PresetId::kTiny;
  options.start_position = 2;  // two of the four sinks are in this chunk
  options.exact_tokens = {7, 39};
  const ByteVector decoded = Decode(chunk, Encode(chunk, options), nullptr);
  const size_t row = layout.layers[0].planes[0].token_bytes();
  for (size_t plane = 0; plane < 2; ++plane) {
    for (uint32_t t = 0; t < chunk.tokens; ++t) {
      const size_t at = (plane * chunk.tokens + t) * row;
      const bool same =
          std::equal(chunk.raw.begin() + at, chunk.raw.begin() + at + row, decoded.begin() + at);
      EXPECT_EQ(same, t < 2 || t == 7 || t == 39) << "plane " << plane << " token " << t;
    }
  }
}

TEST(CodecTest, NonFiniteVectorsAreBitForBitAndTheRestKeepsTheContract) {
  const Layout layout = MakeUniformLayout("test", 1, 2, 64, DType::kF16, Rope(64));
  SampleChunk chunk = MakeSampleChunk(layout, 64, 5);
  const size_t row = layout.layers[0].planes[0].token_bytes();
  const uint16_t bad[] = {0x7C00, 0xFC00, 0x7E01, 0xFFFF};  // inf, -inf, NaNs
  for (size_t i = 0; i < 4; ++i) {
    StoreLe<uint16_t>(chunk.raw.data() + (10 + i) * row + 2 * i, bad[i]);
    StoreLe<uint16_t>(chunk.raw.data() + (64 + 20 + i) * row + 128 + 2 * i, bad[i]);
  }
  EncodeOptions options;
  options.start_position = 256;
  const ByteVector decoded = Decode(chunk, Encode(chunk, options), nullptr);
  for (size_t i = 0; i < 4; ++i) {
    const size_t key = (10 + i) * row, value = (64 + 20 + i) * row + 128;
    EXPECT_TRUE(std::equal(&chunk.raw[key], &chunk.raw[key] + 128, &decoded[key]));
    EXPECT_TRUE(std::equal(&chunk.raw[value], &chunk.raw[value] + 128, &decoded[value]));
  }
  for (size_t i = 0; i < decoded.size() / 2; ++i) {
    const float x = ElementAt(DType::kF16, chunk.raw.data(), i);
    if (!std::isfinite(x)) continue;
    EXPECT_NEAR(ElementAt(DType::kF16, decoded.data(), i), x, 4.0f);
  }
}

TEST(CodecTest, HardInputNeverBreaksTheContractForCodedVectors) {
  const Layout layout = MakeUniformLayout("test", 1, 1, 64, DType::kF32, Rope(64));
  const size_t elements = 2 * 50 * 64;
  const std::vector<SampleChunk> chunks = testing::MakeHardChunks(layout, 50);
  for (const SampleChunk& chunk : chunks) {
    for (PresetId preset : {PresetId::kNear, PresetId::kHigh, PresetId::kTiny}) {
      EncodeOptions options;
      options.preset = preset;
      options.start_position = 512;
      const ByteVector frame = Encode(chunk, options);
      EXPECT_LE(frame.size(), chunk.raw.size() * 1.01 + 256);
      const ByteVector decoded = Decode(chunk, frame, nullptr);
      EXPECT_TRUE(KeepsItsContract(frame));
      for (size_t i = 0; i < elements; ++i) {
        EXPECT_TRUE(std::isfinite(LoadLe<float>(&decoded[4 * i])));
      }
    }
  }
}

TEST(CodecTest, OneLayerDecodesAloneIntoStridedMemory) {
  const Layout layout = MakeUniformLayout("test", 3, 2, 64, DType::kF16, Rope(64));
  const SampleChunk chunk = MakeSampleChunk(layout, 20, 9);
  EncodeOptions options;
  ByteVector frame = Encode(chunk, options);
  const ByteVector whole = Decode(chunk, frame, nullptr);
  auto info = ReadFrameInfo(frame);
  ASSERT_TRUE(info.ok());
  // Damage the other layers: layer 1 must not look at them.
  frame[frame.size() - 1] ^= std::byte{1};
  frame[frame.size() - info->layer_bytes[2] - info->layer_bytes[1] - 1] ^= std::byte{1};
  auto decoder = FrameDecoder::Open(frame, layout, nullptr);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  // Head-major memory with gaps, as paged engines have.
  const size_t head_bytes = 20 * 160;
  std::vector<ByteVector> planes(2, ByteVector(2 * head_bytes));
  ASSERT_TRUE(decoder
                  ->DecodeLayer(
                      1, {{planes[0].data(), 160, head_bytes}, {planes[1].data(), 160, head_bytes}})
                  .ok());
  const auto expected = RawChunkViews(layout, 20, whole);
  for (int p = 0; p < 2; ++p) {
    for (uint32_t t = 0; t < 20; ++t) {
      for (uint32_t h = 0; h < 2; ++h) {
        const std::byte* want = expected[1][p].data + t * 256 + h * 128;
        EXPECT_TRUE(std::equal(want, want + 128, &planes[p][h * head_bytes + t * 160]));
      }
    }
  }
  EXPECT_EQ(decoder
                ->DecodeLayer(
                    0, {{planes[0].data(), 160, head_bytes}, {planes[1].data(), 160, head_bytes}})
                .code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(decoder->DecodeLayer(3, {}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CodecTest, OpaquePlanesAndDifferentHeadDims) {
  Layout layout;
  layout.model = "hybrid";
  LayerSpec layer;
  layer.planes.push_back({"k", PlaneRole::kKey, 2, 64, DType::kF16, Rope(64)});
  layer.planes.push_back({"state", PlaneRole::kOpaque, 1, 13, DType::kF32, RopeSpec{}});
  layer.planes.push_back({"v", PlaneRole::kValue, 1, 128, DType::kBF16, RopeSpec{}});
  layout.layers.assign(2, layer);
  ASSERT_TRUE(ValidateLayout(layout).ok());
  const SampleChunk chunk = MakeSampleChunk(layout, 30, 2);
  const ByteVector decoded = Decode(chunk, Encode(chunk, {}), nullptr);
  const auto a = chunk.views(), b = RawChunkViews(layout, 30, decoded);
  for (int l = 0; l < 2; ++l) {
    EXPECT_TRUE(std::equal(a[l][1].data, a[l][1].data + 30 * 52, b[l][1].data));
    EXPECT_FALSE(std::equal(a[l][2].data, a[l][2].data + 30 * 256, b[l][2].data));
  }
}

TEST(CodecTest, AutoStatisticsAreNeverMuchLargerThanEither) {
  const Layout layout = MakeUniformLayout("test", 2, 3, 64, DType::kF16, Rope(64));
  const ModelProfile profile = MakeSampleProfile(layout, 3, true);
  for (uint32_t tokens : {16u, 64u, 256u}) {
    const SampleChunk chunk = MakeSampleChunk(layout, tokens, 21);
    size_t size[3];
    for (int mode = 0; mode < 3; ++mode) {
      EncodeOptions options;
      options.profile = &profile;
      options.stats = static_cast<StatsMode>(mode);
      size[mode] = Encode(chunk, options).size();
    }
    EXPECT_LE(size[2], std::min(size[0], size[1]) * 1.001 + 8) << tokens;
  }
}

TEST(CodecTest, FramesThatNeedAProfileNameIt) {
  const Layout layout = MakeUniformLayout("test", 1, 2, 64, DType::kF16, Rope(64));
  const SampleChunk chunk = MakeSampleChunk(layout, 32, 1);
  const ModelProfile profile = MakeSampleProfile(layout, 3, true);
  const ModelProfile other = MakeSampleProfile(layout, 4, true);
  EncodeOptions options;
  options.profile = &profile;
  options.stats = StatsMode::kProfile;
  const ByteVector frame = Encode(chunk, options);
  const std::string hash = ToHex(ProfileHash(profile));
  for (const ModelProfile* wrong : {static_cast<const ModelProfile*>(nullptr), &other}) {
    const auto decoder = FrameDecoder::Open(frame, layout, wrong);
    EXPECT_EQ(decoder.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(decoder.status().message().find(hash), std::string::npos) << decoder.status();
  }
  // Own statistics with the profile's query energy: decodes without it.
  options.stats = StatsMode::kOwn;
  const ByteVector own = Encode(chunk, options);
  EXPECT_FALSE(ReadFrameInfo(own)->needs_profile);
  EXPECT_EQ(Decode(chunk, own, nullptr), Decode(chunk, own, &profile));
}

TEST(CodecTest, BadRequestsAreRefused) {
  const Layout layout = MakeUniformLayout("test", 1, 2, 64, DType::kF16, Rope(64));
  const SampleChunk chunk = MakeSampleChunk(layout, 4, 1);
  const auto code = [&](uint32_t tokens, const EncodeOptions& options) {
    return EncodeFrame(layout, tokens, chunk.views(), options).status().code();
  };
  EXPECT_EQ(code(0, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(257, {}), absl::StatusCode::kInvalidArgument);
  EncodeOptions options;
  options.exact_tokens = {4};
  EXPECT_EQ(code(4, options), absl::StatusCode::kInvalidArgument);
  options = {};
  options.stats = StatsMode::kProfile;
  EXPECT_EQ(code(4, options), absl::StatusCode::kFailedPrecondition);
  const Layout wider = MakeUniformLayout("test", 1, 2, 128, DType::kF16, Rope(64));
  EXPECT_EQ(FrameDecoder::Open(Encode(chunk, {}), wider, nullptr).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(CodecTest, UnknownStageAndVersionAreNamed) {
  FrameHeader header;
  header.stages = kStageLattice | 1u << 20;
  header.preset = 4;
  header.tokens = 1;
  header.layers.resize(1);
  EXPECT_EQ(ReadFrameInfo(SerializeFrameHeader(header)).status().code(),
            absl::StatusCode::kUnimplemented);
  header.stages = kStageLattice;
  ByteVector frame = SerializeFrameHeader(header);
  EXPECT_TRUE(ReadFrameInfo(frame).ok()) << ReadFrameInfo(frame).status();
  frame[4] = std::byte{2};
  EXPECT_EQ(ReadFrameInfo(frame).status().code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace latticekv
