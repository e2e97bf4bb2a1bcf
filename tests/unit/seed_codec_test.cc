// The seed stages: their transform against its definition, errors, sizes, settings.
#include <gtest/gtest.h>

#include <cmath>

#include "core/codec/codec.h"
#include "core/codec/cpu/seed_transform.h"
#include "core/codec/frame_format.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::ElementAt;
using testing::MakeSampleChunk;
using testing::SampleChunk;

TEST(SeedTransformTest, HadamardIsOrthonormalAndItsOwnInverse) {
  testing::Random random(1);
  for (uint32_t dim : {8u, 16u, 24u, 64u, 80u, 96u, 128u, 192u, 256u}) {
    const uint32_t block = dim & (~dim + 1);
    std::vector<float> x(dim);
    for (float& v : x) v = random.Bell();
    std::vector<float> y = x;
    Hadamard(y.data(), dim);
    for (uint32_t i = 0; i < dim; ++i) {
      double sum = 0;  // rows of signs: parity of the common bits
      for (uint32_t j = 0; j < block; ++j) {
        const int sign = __builtin_popcount(i % block & j) % 2 ? -1 : 1;
        sum += sign * double{x[i / block * block + j]};
      }
      EXPECT_NEAR(y[i], sum / std::sqrt(block), 1e-5) << dim;
    }
    Hadamard(y.data(), dim);
    for (uint32_t i = 0; i < dim; ++i) EXPECT_NEAR(y[i], x[i], 1e-5);
  }
}

Layout MakeLayout(DType dtype = DType::kF16) {
  return MakeUniformLayout("test", 2, 2, 64, dtype, {RopeStyle::kInterleaved, 32, 10000.0});
}

struct Outcome {
  size_t bytes;
  Quality quality;
  double key_error, value_error;  // rms, relative, measured here
};

Outcome EncodeAndMeasure(const SampleChunk& chunk, const SeedOptions& seed) {
  EncodeOptions options;
  options.preset = PresetId::kSeed;
  options.seed = seed;
  options.start_position = 100;
  const auto frame = EncodeFrame(chunk.layout, chunk.tokens, chunk.views(), options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  ByteVector raw(chunk.raw.size(), std::byte{0xA5});
  const auto decoder = FrameDecoder::Open(*frame, chunk.layout, nullptr);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  EXPECT_TRUE(DecodeFrame(*decoder, chunk.layout, raw).ok());
  Outcome out{frame->size(), decoder->info().quality, 0, 0};
  const auto a = chunk.views(), b = RawChunkViews(chunk.layout, chunk.tokens, raw);
  const size_t rows = size_t{2} * chunk.tokens;
  for (int p = 0; p < 2; ++p) {
    double sum = 0;
    for (int l = 0; l < 2; ++l) {
      for (size_t r = 0; r < rows; ++r) {
        double e = 0, n = 0;
        for (size_t c = 64 * r; c < 64 * (r + 1); ++c) {
          const DType dtype = chunk.layout.layers[0].planes[0].dtype;
          const double x = ElementAt(dtype, a[l][p].data, c);
          const double d = ElementAt(dtype, b[l][p].data, c) - x;
          e += d * d;
          n += x * x;
        }
        sum += e / n;
      }
    }
    (p == 0 ? out.key_error : out.value_error) = std::sqrt(sum / (2.0 * static_cast<double>(rows)));
  }
  return out;
}

TEST(SeedCodecTest, MoreBitsMeanLessErrorAndTheFrameSaysWhichError) {
  const SampleChunk chunk = MakeSampleChunk(MakeLayout(), 128, 4);
  double last_key = 10, last_value = 10;
  size_t last_bytes = 0;
  for (int bits = 1; bits <= kMaxSeedBits; ++bits) {
    const Outcome run = EncodeAndMeasure(chunk, {bits, bits, false, true});
    EXPECT_NEAR(run.quality.logit_noise, run.key_error, 1e-3 * run.key_error + 1e-6);
    EXPECT_NEAR(run.quality.value_error, run.value_error, 1e-3 * run.value_error + 1e-6);
    EXPECT_FALSE(run.quality.profiled);
    EXPECT_LT(run.key_error, 0.75 * last_key) << bits;
    EXPECT_LT(run.value_error, 0.75 * last_value) << bits;
    EXPECT_GT(run.bytes, last_bytes);
    last_key = run.key_error;
    last_value = run.value_error;
    last_bytes = run.bytes;
  }
}

TEST(SeedCodecTest, KeysAndValuesHaveBitsOfTheirOwnAndGroupsScalesOfTheirOwn) {
  const SampleChunk chunk = MakeSampleChunk(MakeLayout(), 128, 4);
  const Outcome k3v2 = EncodeAndMeasure(chunk, {3, 2, false, true});
  const Outcome k3v3 = EncodeAndMeasure(chunk, {3, 3, false, true});
  EXPECT_EQ(k3v2.key_error, k3v3.key_error);
  EXPECT_GT(k3v2.value_error, 1.5 * k3v3.value_error);
  EXPECT_LT(k3v2.bytes, k3v3.bytes);
  const Outcome groups = EncodeAndMeasure(chunk, {3, 2, true, true});
  EXPECT_LT(groups.key_error, k3v2.key_error);
  // 16 bits more for every 8 elements, less 16 for every 64.
  const size_t vectors = size_t{2} * 2 * 2 * 128;
  EXPECT_GT(groups.bytes, k3v2.bytes + vectors * 14 * 9 / 10);
  // Differences change the size, not what comes back.
  const Outcome plain = EncodeAndMeasure(chunk, {3, 2, false, false});
  EXPECT_EQ(plain.key_error, k3v2.key_error);
  EXPECT_EQ(plain.value_error, k3v2.value_error);
  EXPECT_NE(plain.bytes, k3v2.bytes);
}

TEST(SeedCodecTest, BadSettingsAndMixedStagesAreRefused) {
  const SampleChunk chunk = MakeSampleChunk(MakeLayout(), 16, 4);
  EncodeOptions options;
  options.preset = PresetId::kSeed;
  for (SeedOptions seed : {SeedOptions{0, 2, false, true}, SeedOptions{3, 7, false, true}}) {
    options.seed = seed;
    EXPECT_EQ(EncodeFrame(chunk.layout, 16, chunk.views(), options).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  FrameHeader header;
  header.tokens = 1;
  header.layers.resize(1);
  header.preset = 8;
  header.stages = kStageSeed;
  EXPECT_TRUE(ReadFrameInfo(SerializeFrameHeader(header)).ok());
  header.stages = kStageSeed | kStageLattice;
  EXPECT_FALSE(ReadFrameInfo(SerializeFrameHeader(header)).ok());
  header.stages = kStageLattice;
  EXPECT_FALSE(ReadFrameInfo(SerializeFrameHeader(header)).ok());
  EXPECT_EQ(*ParsePreset("seed"), PresetId::kSeed);
  EXPECT_EQ(PresetName(PresetId::kSeed), "seed");
}

}  // namespace
}  // namespace latticekv
