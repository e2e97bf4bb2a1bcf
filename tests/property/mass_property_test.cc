// Steps scaled by attention, on random layouts: every vector keeps the error that its token's share
// of the attention allows, and what a frame says of its errors is what they are. LATTICEKV_SEED
// sets the seed, LATTICEKV_ROUNDS the number of layouts.
#include <gtest/gtest.h>

#include <cmath>

#include "core/codec/attention_mass.h"
#include "core/codec/frame_format.h"
#include "tests/support/mutation.h"
#include "tests/support/random_layout.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::ElementAt;
using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::Random;
using testing::RandomLayout;
using testing::RandomMass;
using testing::SampleChunk;

struct Trial {
  SampleChunk chunk;
  ModelProfile profile;
  std::vector<float> mass;  // [layers][tokens]
  EncodeOptions options;
  std::vector<float> levels;  // [layers], or empty
};

Trial MakeTrial(Random& random) {
  const Layout layout = RandomLayout(random);
  const uint32_t tokens = 1 + random.Below(70);
  Trial out{MakeSampleChunk(layout, tokens, random.Next()),
            MakeSampleProfile(layout, random.Next(), true),
            RandomMass(layout.layers.size() * tokens, random),
            {}};
  constexpr PresetId kPresets[] = {PresetId::kNear, PresetId::kHigh, PresetId::kSmall,
                                   PresetId::kTiny};
  out.options.preset = kPresets[random.Below(4)];
  out.options.stats = static_cast<StatsMode>(random.Below(3));
  out.options.start_position = random.Below(2) * 1024;
  if (random.Below(3) == 0) out.options.exact_tokens = {random.Below(tokens)};
  if (random.Below(2)) {
    // Of a text whose other chunks get up to eight times more or less.
    const AttentionMass mass{out.mass.data(), tokens, tokens};
    out.levels = MassLevels(mass, layout.layers.size(), tokens, out.options.start_position);
    for (float& level : out.levels) level += static_cast<float>(random.Below(7)) - 3;
  }
  return out;
}

ByteVector Encode(const Trial& trial) {
  EncodeOptions options = trial.options;
  options.profile = &trial.profile;
  options.mass = {trial.mass.data(), trial.chunk.tokens, trial.chunk.tokens,
                  trial.levels.empty() ? nullptr : trial.levels.data()};
  auto frame = EncodeFrame(trial.chunk.layout, trial.chunk.tokens, trial.chunk.views(), options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  return frame.ok() ? *frame : ByteVector();
}

ByteVector Decode(const Trial& trial, ByteSpan frame) {
  ByteVector raw(trial.chunk.raw.size(), std::byte{0xA5});
  auto decoder = FrameDecoder::Open(frame, trial.chunk.layout, &trial.profile);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  if (!decoder.ok()) return raw;
  const absl::Status status = DecodeFrame(*decoder, trial.chunk.layout, raw);
  EXPECT_TRUE(status.ok()) << status;
  return raw;
}

// Squared error of one vector, weighted for keys by the query energy; 0 for equal bytes.
double VectorError(const Trial& trial, const ByteVector& decoded, size_t l, size_t p, uint32_t t,
                   uint32_t h) {
  const PlaneSpec& plane = trial.chunk.layout.layers[l].planes[p];
  const PlaneView a = trial.chunk.views()[l][p];
  const PlaneView b = RawChunkViews(trial.chunk.layout, trial.chunk.tokens, decoded)[l][p];
  const size_t at = t * a.token_stride + h * a.head_stride;
  const std::vector<uint32_t> order = CanonicalChannels(plane);
  double error = 0, norm = 0;
  for (uint32_t c = 0; c < plane.head_dim; ++c) {
    const double x = ElementAt(plane.dtype, a.data + at, order[c]);
    const double d = ElementAt(plane.dtype, b.data + at, order[c]) - x;
    const bool key = plane.role == PlaneRole::kKey;
    error += d * d * (key ? trial.profile.layers[l][p].heads[h].query_energy[c] : 1);
    norm += x * x;
  }
  return plane.role == PlaneRole::kKey ? error / plane.head_dim : error / norm;
}

TEST(MassPropertyTest, FramesSayWhatTheirErrorsAreAndExactTokensStayExact) {
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 20260311);
  const uint64_t rounds = testing::FromEnvironment("LATTICEKV_ROUNDS", 60);
  printf("seed %llu, %llu rounds\n", static_cast<unsigned long long>(seed),
         static_cast<unsigned long long>(rounds));
  Random random(seed);
  for (uint64_t round = 0; round < rounds; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const Trial trial = MakeTrial(random);
    const ByteVector frame = Encode(trial);
    const ByteVector decoded = Decode(trial, frame);
    const FrameInfo info = *ReadFrameInfo(frame);
    ASSERT_TRUE(info.quality.mass_scaled);
    const FrameHeader header = ParseFrameHeader(frame)->header;
    double sums[2] = {0, 0};  // keys, values
    const Layout& layout = trial.chunk.layout;
    for (size_t l = 0; l < layout.layers.size(); ++l) {
      for (size_t p = 0; p < layout.layers[l].planes.size(); ++p) {
        const PlaneSpec& plane = layout.layers[l].planes[p];
        if (plane.role == PlaneRole::kOpaque) continue;
        for (uint32_t t = 0; t < trial.chunk.tokens; ++t) {
          bool exact = trial.options.start_position + t < kSinkTokens;
          for (uint32_t e : trial.options.exact_tokens) exact |= e == t;
          for (uint32_t h = 0; h < plane.heads; ++h) {
            const double error = VectorError(trial, decoded, l, p, t, h);
            if (exact) {
              ASSERT_EQ(error, 0);
            }
            sums[plane.role == PlaneRole::kValue] += error;
          }
        }
      }
    }
    const auto told = [](uint64_t a, uint64_t b) {
      return (static_cast<double>(a) + static_cast<double>(b)) / (1 << 28);
    };
    const double keys = told(header.errors.key_error_sum, header.coarse.key_error_sum);
    const double values = told(header.errors.value_error_sum, header.coarse.value_error_sum);
    EXPECT_NEAR(keys, sums[0], 0.03 * sums[0] + 1e-4);
    EXPECT_NEAR(values, sums[1], 0.03 * sums[1] + 1e-4);
  }
}

// Keys of tokens with 4096 times the attention get an eighth of the error, and the mean of the
// logarithms stays what the preset says.
TEST(MassPropertyTest, ErrorsGoWithTheFourthRootOfTheAttention) {
  const Layout layout =
      MakeUniformLayout("test", 1, 2, 64, DType::kF32, {RopeStyle::kNeox, 64, 10000.0});
  Trial trial{MakeSampleChunk(layout, 200, 5), MakeSampleProfile(layout, 3, true), {}, {}};
  for (uint32_t t = 0; t < 200; ++t) {
    // Each query gives a token as much as any other, but for the factor.
    const float per_query = t % 2 ? 64.0f : 1.0f / 64;
    trial.mass.push_back(per_query * static_cast<float>(200 - t + 32));
  }
  trial.options.preset = PresetId::kFine;
  trial.options.start_position = 4096;
  const ByteVector decoded = Decode(trial, Encode(trial));
  double sums[2] = {0, 0};
  for (uint32_t t = 0; t < 200; ++t) {
    for (uint32_t h = 0; h < 2; ++h) sums[t % 2] += VectorError(trial, decoded, 0, 0, t, h) / 200;
  }
  const double rare = std::sqrt(sums[0]), frequent = std::sqrt(sums[1]);
  EXPECT_NEAR(rare / frequent, 8, 0.5);
  EXPECT_NEAR(std::sqrt(rare * frequent), GetPreset(PresetId::kFine).logit_noise, 0.01);
}

// A text cut into two chunks, of which the second gets 256 times the attention: with the text's
// levels its keys get a quarter of the error, without them both are alike.
TEST(MassPropertyTest, LevelsOfATextAreSharedByItsChunks) {
  const Layout layout =
      MakeUniformLayout("test", 1, 2, 64, DType::kF32, {RopeStyle::kNeox, 64, 10000.0});
  constexpr uint32_t kTokens = 128;
  std::vector<float> mass;
  for (uint32_t t = 0; t < 2 * kTokens; ++t) {
    mass.push_back((t < kTokens ? 1.0f : 256.0f) * static_cast<float>(2 * kTokens - t + 32));
  }
  const AttentionMass text{mass.data(), 2 * kTokens, 2 * kTokens};
  const std::vector<float> levels = MassLevels(text, 1, 2 * kTokens, 4096);
  EXPECT_NEAR(levels[0], 4, 0.01);
  std::vector<uint8_t> keep(2 * kTokens, 1);
  std::fill_n(keep.begin(), kTokens, 0);
  EXPECT_NEAR(MassLevels(text, 1, 2 * kTokens, 4096, keep)[0], 8, 0.01);
  double noise[2][2];  // [with levels][chunk]
  for (int i = 0; i < 2; ++i) {
    Trial trial{MakeSampleChunk(layout, kTokens, 5), MakeSampleProfile(layout, 3, true), {}, {}};
    trial.options.preset = PresetId::kFine;
    for (int with : {0, 1}) {
      EncodeOptions options = trial.options;
      options.start_position = 4096 + i * kTokens;
      options.profile = &trial.profile;
      options.mass = {mass.data() + i * kTokens, 2 * kTokens, (2u - i) * kTokens,
                      with ? levels.data() : nullptr};
      const ByteVector decoded =
          Decode(trial, *EncodeFrame(layout, kTokens, trial.chunk.views(), options));
      double sum = 0;
      for (uint32_t t = 0; t < kTokens; ++t) {
        for (uint32_t h = 0; h < 2; ++h) sum += VectorError(trial, decoded, 0, 0, t, h);
      }
      noise[with][i] = std::sqrt(sum / (2 * kTokens));
    }
  }
  EXPECT_NEAR(noise[0][0] / noise[0][1], 1, 0.05);
  EXPECT_NEAR(noise[1][0] / noise[1][1], 4, 0.2);
  EXPECT_NEAR(std::sqrt(noise[1][0] * noise[1][1]), GetPreset(PresetId::kFine).logit_noise, 0.01);
}

TEST(MassPropertyTest, EqualAttentionChangesNothingButTheDescription) {
  Random random(11);
  const Layout layout =
      MakeUniformLayout("test", 2, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
  Trial trial{MakeSampleChunk(layout, 64, 5), MakeSampleProfile(layout, 3, true), {}, {}};
  for (uint32_t i = 0; i < 128; ++i) trial.mass.push_back(static_cast<float>(64 - i % 64 + 32));
  trial.options.start_position = 4096;
  const FrameInfo with = *ReadFrameInfo(Encode(trial));
  EncodeOptions options = trial.options;
  options.profile = &trial.profile;
  const FrameInfo without = *ReadFrameInfo(*EncodeFrame(layout, 64, trial.chunk.views(), options));
  EXPECT_NEAR(with.quality.logit_noise, without.quality.logit_noise, 0.002);
  EXPECT_LT(with.frame_bytes, without.frame_bytes + without.frame_bytes / 50);
}

}  // namespace
}  // namespace latticekv
