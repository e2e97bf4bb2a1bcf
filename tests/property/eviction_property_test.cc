// Evicted tokens on random layouts: zeros where a token was evicted, elsewhere what a chunk of the
// kept rows alone decodes to, at their own positions. LATTICEKV_SEED sets the seed,
// LATTICEKV_ROUNDS the number of layouts.
#include <gtest/gtest.h>

#include <algorithm>

#include "core/codec/token_eviction.h"
#include "tests/support/mutation.h"
#include "tests/support/random_layout.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::Random;
using testing::SampleChunk;

// Row of (plane, head) `t` of a chunk that is laid out contiguously.
ByteSpan Vector(const SampleChunk& chunk, ByteSpan raw, size_t l, size_t p, uint32_t t,
                uint32_t h) {
  const PlaneSpec& plane = chunk.layout.layers[l].planes[p];
  const PlaneView view = RawChunkViews(chunk.layout, chunk.tokens, raw)[l][p];
  return {view.data + t * view.token_stride + h * view.head_stride,
          plane.head_dim * DTypeBytes(plane.dtype)};
}

bool AllZero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

TEST(EvictionPropertyTest, KeptTokensStayWhereTheyWereAndTheOthersAreZero) {
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 20260312);
  const uint64_t rounds = testing::FromEnvironment("LATTICEKV_ROUNDS", 60);
  printf("seed %llu, %llu rounds\n", static_cast<unsigned long long>(seed),
         static_cast<unsigned long long>(rounds));
  Random random(seed);
  for (uint64_t round = 0; round < rounds; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const Layout layout = testing::RandomLayout(random, false);
    const uint32_t tokens = 2 + random.Below(80);
    const SampleChunk chunk = MakeSampleChunk(layout, tokens, random.Next());
    const ModelProfile profile = MakeSampleProfile(layout, random.Next(), true);
    EncodeOptions options;
    options.preset = random.Below(3) == 0 ? PresetId::kExact : PresetId::kNear;
    options.stats = static_cast<StatsMode>(random.Below(3));
    options.profile = &profile;
    options.start_position = 256 * random.Below(3);
    std::vector<float> mass(tokens, 1.0f);
    for (float& m : mass) m += static_cast<float>(random.Below(100));
    if (random.Below(2)) options.mass = {mass.data(), 0, tokens};
    for (uint32_t t = 0; t < tokens; ++t) options.keep.push_back(random.Below(3) != 0);
    options.keep[random.Below(tokens)] = 1;
    const auto frame = EncodeFrame(layout, tokens, chunk.views(), options);
    ASSERT_TRUE(frame.ok()) << frame.status();
    auto decoder = FrameDecoder::Open(*frame, layout, &profile);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    ByteVector decoded(chunk.raw.size(), std::byte{0xA5});
    ASSERT_TRUE(DecodeFrame(*decoder, layout, decoded).ok());
    ASSERT_EQ(decoder->info().evicted_tokens,
              std::count(options.keep.begin(), options.keep.end(), 0));
    for (size_t l = 0; l < layout.layers.size(); ++l) {
      for (size_t p = 0; p < layout.layers[l].planes.size(); ++p) {
        const PlaneSpec& plane = layout.layers[l].planes[p];
        for (uint32_t t = 0; t < tokens; ++t) {
          for (uint32_t h = 0; h < plane.heads; ++h) {
            const ByteSpan got = Vector(chunk, decoded, l, p, t, h);
            if (!options.keep[t]) {
              ASSERT_TRUE(AllZero(got)) << "token " << t;
              continue;
            }
            const ByteSpan exact = Vector(chunk, chunk.raw, l, p, t, h);
            double error = 0, norm = 0;
            for (uint32_t c = 0; c < plane.head_dim; ++c) {
              const double x = testing::ElementAt(plane.dtype, exact.data(), c);
              const double d = testing::ElementAt(plane.dtype, got.data(), c) - x;
              error += d * d;
              norm += x * x;
            }
            // A row at another token's place, or rotated to its angle, would be off by its norm.
            ASSERT_LE(error, options.preset == PresetId::kExact ? 0 : 0.3 * norm) << "token " << t;
          }
        }
      }
    }
  }
}

TEST(EvictionPropertyTest, TheChoiceKeepsFirstRecentAndAttendedTokens) {
  constexpr uint32_t kTokens = 1000, kChunk = 128;
  std::vector<float> mass(2 * kTokens);
  Random random(3);
  for (float& m : mass) m = 0.01f * static_cast<float>(1 + random.Below(10));
  for (uint32_t t : {100u, 333u, 700u}) mass[t] = mass[kTokens + t] = 50;
  const AttentionMass view{mass.data(), kTokens, kTokens};
  const auto keep = ChooseKeptTokens(view, 2, kTokens, 0.25, kChunk);
  ASSERT_TRUE(keep.ok()) << keep.status();
  EXPECT_EQ(std::count(keep->begin(), keep->end(), 1), 250);
  for (uint32_t t = 0; t < kSinkTokens; ++t) EXPECT_TRUE((*keep)[t]);
  for (uint32_t t = kTokens - kRecentTokens; t < kTokens; ++t) EXPECT_TRUE((*keep)[t]);
  for (uint32_t t : {100u, 333u, 700u}) EXPECT_TRUE((*keep)[t]) << t;
  // Almost nothing: still one of every chunk.
  const auto least = *ChooseKeptTokens(view, 2, kTokens, 0.001, kChunk);
  for (uint32_t at = 0; at < kTokens; at += kChunk) {
    const auto end = least.begin() + std::min(at + kChunk, kTokens);
    EXPECT_GE(std::count(least.begin() + at, end, 1), 1) << at;
  }
  const auto all = *ChooseKeptTokens(view, 2, kTokens, 1, kChunk);
  EXPECT_EQ(std::count(all.begin(), all.end(), 1), kTokens);
  EXPECT_FALSE(ChooseKeptTokens(view, 2, kTokens, 0, kChunk).ok());
  EXPECT_FALSE(ChooseKeptTokens(view, 2, kTokens, 1.5, kChunk).ok());
}

TEST(EvictionPropertyTest, MasksThatMakeNoSenseAreRefused) {
  const Layout layout = MakeUniformLayout("test", 1, 1, 16, DType::kF16, RopeSpec{});
  const SampleChunk chunk = MakeSampleChunk(layout, 8, 1);
  EncodeOptions options;
  options.keep.assign(8, 0);
  EXPECT_TRUE(absl::IsInvalidArgument(EncodeFrame(layout, 8, chunk.views(), options).status()));
  options.keep.assign(7, 1);
  EXPECT_TRUE(absl::IsInvalidArgument(EncodeFrame(layout, 8, chunk.views(), options).status()));
  options.keep.assign(8, 1);  // nothing evicted is no eviction
  EXPECT_EQ(*EncodeFrame(layout, 8, chunk.views(), options),
            *EncodeFrame(layout, 8, chunk.views(), EncodeOptions{}));
}

}  // namespace
}  // namespace latticekv
