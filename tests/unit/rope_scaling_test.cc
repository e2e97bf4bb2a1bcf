// Scaled rotary embeddings against numbers from the published formulas, computed apart from this
// code (binary64, a maths library's pow and log), and their place in layouts.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/codec/codec.h"
#include "core/layout/layout.h"
#include "core/layout/rope.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

RopeScaling Linear(double factor) { return {RopeScalingKind::kLinear, factor}; }

RopeScaling Dynamic(double factor, uint32_t original, uint32_t sequence) {
  return {RopeScalingKind::kDynamicNtk, factor, original, sequence};
}

RopeScaling Llama3() {
  RopeScaling s{RopeScalingKind::kLlama3, 8, 8192};
  s.low_freq_factor = 1;
  s.high_freq_factor = 4;
  return s;
}

RopeScaling Yarn(double factor, uint32_t original, bool truncate = true) {
  RopeScaling s{RopeScalingKind::kYarn, factor, original};
  s.beta_fast = 32;
  s.beta_slow = 1;
  s.truncate = truncate;
  return s;
}

RopeSpec Spec(uint32_t dims, double base, RopeScaling scaling) {
  return {RopeStyle::kNeox, dims, base, scaling};
}

struct Angle {
  size_t pair;
  double radians;  // per position
};

void ExpectAngles(const RopeSpec& rope, const std::vector<Angle>& expected) {
  const std::vector<uint64_t> got = RopeFrequencies(rope);
  ASSERT_EQ(got.size(), rope.rotary_dims / 2);
  for (const Angle& e : expected) {
    const double radians = std::ldexp(static_cast<double>(got[e.pair]), -64) * 2 * M_PI;
    EXPECT_NEAR(radians, e.radians, 4e-14 * e.radians + 1e-18) << "pair " << e.pair;
  }
}

TEST(RopeScalingTest, FrequenciesAreThoseOfThePublishedFormulas) {
  ExpectAngles(Spec(64, 1e4, Linear(4)), {{0, 0.25},
                                          {1, 0.18747355233311397},
                                          {16, 0.0025000000000000001},
                                          {31, 3.3338035804083099e-05}});
  ExpectAngles(
      Spec(128, 1e4, Dynamic(2, 4096, 16384)),
      {{0, 1}, {1, 0.83962574256431144}, {32, 0.0037217213402149121}, {63, 1.649688549556369e-05}});
  // Llama 3.1: kept up to pair 28, divided from 36 on, blended between.
  ExpectAngles(Spec(128, 5e5, Llama3()), {{0, 1},
                                          {20, 0.016560440080994446},
                                          {28, 0.0032114459947525909},
                                          {29, 0.0021665707635033591},
                                          {32, 0.00052484616099295468},
                                          {35, 9.5562123539646833e-05},
                                          {36, 7.7846552739324498e-05},
                                          {63, 3.0689259889145111e-07}});
  // Qwen's long-context configuration, and one with the ramp's bounds as they come.
  ExpectAngles(Spec(128, 1e6, Yarn(4, 32768)), {{0, 1},
                                                {20, 0.013335214321633241},
                                                {23, 0.0069783058485986633},
                                                {24, 0.0053753214907901019},
                                                {30, 0.0010643609812470019},
                                                {36, 0.00017984115587395421},
                                                {39, 6.4903943208370293e-05},
                                                {40, 4.4456985250973067e-05},
                                                {63, 3.1023444018792988e-07}});
  ExpectAngles(Spec(64, 150000, Yarn(32, 4096, false)), {{0, 1},
                                                         {5, 0.15532298948448497},
                                                         {8, 0.050813274815461475},
                                                         {9, 0.031705696184663769},
                                                         {12, 0.0067949594897322189},
                                                         {17, 0.00012931870124506319},
                                                         {18, 3.8308812373753384e-05},
                                                         {31, 3.0235114281192144e-07}});
}

TEST(RopeScalingTest, SequencesWithinTheOriginalLengthAreNotStretched) {
  EXPECT_EQ(RopeFrequencies(Spec(128, 1e4, Dynamic(4, 2048, 2048))),
            RopeFrequencies(Spec(128, 1e4, {})));
  EXPECT_EQ(RopeFrequencies(Spec(128, 1e4, Linear(1))), RopeFrequencies(Spec(128, 1e4, {})));
}

TEST(RopeScalingTest, AttentionFactor) {
  EXPECT_EQ(RopeAttentionFactor(Spec(64, 1e4, {})), 1.0);
  EXPECT_EQ(RopeAttentionFactor(Spec(64, 1e4, Llama3())), 1.0);
  RopeScaling s = Yarn(4, 4096);
  EXPECT_NEAR(RopeAttentionFactor(Spec(64, 1e4, s)), 1.138629436111989, 1e-14);
  s.attention_factor = 1.25;
  EXPECT_EQ(RopeAttentionFactor(Spec(64, 1e4, s)), 1.25);
  s = Yarn(40, 4096);
  s.mscale = 1;
  s.mscale_all_dim = 0.707;
  EXPECT_NEAR(RopeAttentionFactor(Spec(64, 1e4, s)), 1.0857263992561355, 1e-14);
  s.mscale_all_dim = 1;
  EXPECT_EQ(RopeAttentionFactor(Spec(64, 1e4, s)), 1.0);
}

Layout With(const RopeSpec& rope) {
  return MakeUniformLayout("model", 2, 1, rope.rotary_dims, DType::kF16, rope);
}

TEST(RopeScalingTest, LayoutsComeBackAndEveryFieldCounts) {
  RopeScaling full = Yarn(4, 4096, false);
  full.attention_factor = 1.5;
  full.mscale = 1;
  full.mscale_all_dim = 0.7;
  for (const RopeScaling& s : {Linear(2), Dynamic(2, 2048, 8192), Llama3(), Yarn(4, 4096), full}) {
    Layout layout = With(Spec(64, 1e4, s));
    layout.layers[1].planes[0].rope.scaling = RopeScaling{};  // one layer scaled is enough
    const ByteVector bytes = SerializeLayout(layout);
    EXPECT_EQ(bytes[4], std::byte{2});
    const auto parsed = ParseLayout(bytes);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, layout);
    for (size_t cut = 0; cut < bytes.size(); ++cut) {
      EXPECT_FALSE(ParseLayout(ByteSpan(bytes).first(cut)).ok());
    }
  }
  const Digest base = LayoutFingerprint(With(Spec(64, 1e4, full)));
  const auto changed = [&](auto change) {
    RopeScaling s = full;
    change(s);
    const Layout layout = With(Spec(64, 1e4, s));
    EXPECT_TRUE(ValidateLayout(layout).ok()) << ValidateLayout(layout);
    return LayoutFingerprint(layout) != base;
  };
  EXPECT_TRUE(changed([](RopeScaling& s) { s.factor = 8; }));
  EXPECT_TRUE(changed([](RopeScaling& s) { s.original_positions = 8192; }));
  EXPECT_TRUE(changed([](RopeScaling& s) { s.beta_fast = 16; }));
  EXPECT_TRUE(changed([](RopeScaling& s) { s.beta_slow = 2; }));
  EXPECT_TRUE(changed([](RopeScaling& s) { s.truncate = true; }));
  EXPECT_TRUE(changed([](RopeScaling& s) { s.attention_factor = 0; }));
  EXPECT_TRUE(changed([](RopeScaling& s) { s.mscale = 0.9; }));
  EXPECT_TRUE(changed([](RopeScaling& s) { s.mscale_all_dim = 0; }));
}

TEST(RopeScalingTest, UnscaledLayoutsKeepTheirBytes) {
  const ByteVector bytes = SerializeLayout(With(Spec(64, 1e4, {})));
  EXPECT_EQ(bytes[4], std::byte{1});
  // A version 2 that scales nothing would be a second serialisation of the same layout.
  ByteVector other = bytes;
  other[4] = std::byte{2};
  EXPECT_FALSE(ParseLayout(other).ok());
}

TEST(RopeScalingTest, NonsenseIsRefusedWithTheReason) {
  const auto message = [](const RopeSpec& rope) {
    return std::string(ValidateLayout(With(rope)).message());
  };
  const auto refused = [&](RopeScaling s, const char* word) {
    const std::string m = message(Spec(64, 1e4, s));
    EXPECT_NE(m.find(word), std::string::npos) << m;
  };
  refused(Linear(0.5), "factor");
  refused(Linear(std::nan("")), "scaling");
  refused(Linear(1e9), "factor");
  refused(Yarn(4, 0), "original_positions");
  refused(Dynamic(2, 4096, 100), "sequence_positions");
  RopeScaling s = Linear(2);
  s.beta_fast = 32;
  refused(s, "does not use");
  s = Llama3();
  s.high_freq_factor = 1;
  refused(s, "low_freq_factor");
  s = Yarn(4, 4096);
  s.beta_slow = 64;
  refused(s, "beta_slow");
  s = Yarn(4, 4096);
  s.attention_factor = -1;
  refused(s, "attention_factor");
  s = {static_cast<RopeScalingKind>(9)};
  refused(s, "unknown");
  EXPECT_NE(message(Spec(64, 1.0, Yarn(4, 4096))).find("base"), std::string::npos);
  Layout layout = With(Spec(64, 1e4, Linear(2)));
  layout.layers[0].planes[0].rope.style = RopeStyle::kNone;
  layout.layers[0].planes[0].rope.rotary_dims = 0;
  EXPECT_FALSE(ValidateLayout(layout).ok());
}

// The codec removes what an engine applied: keys that were the same before their rotation are
// coded at the cost of a constant, which only works when the frequencies agree.
TEST(RopeScalingTest, RemovalUndoesTheEnginesRotation) {
  for (const RopeScaling& s :
       {RopeScaling{}, Linear(4), Dynamic(2, 2048, 8192), Llama3(), Yarn(8, 4096)}) {
    const RopeSpec rope = Spec(64, 5e5, s);
    Layout layout = MakeUniformLayout("model", 1, 1, 64, DType::kF32, rope);
    testing::SampleChunk chunk{layout, 64, ByteVector(layout.token_bytes() * 64)};
    const uint64_t start = 70000;
    const auto table = RopeTable(rope, start, 64);
    const double factor = RopeAttentionFactor(rope);
    for (uint32_t t = 0; t < 64; ++t) {
      for (uint32_t i = 0; i < 32; ++i) {
        const double x = 8.0 * (1.0 + i), y = 8.0 * (40.0 - i);
        const SinCos r = table[t * 32 + i];
        StoreLe<float>(&chunk.raw[(t * 64 + i) * 4],
                       static_cast<float>(factor * (x * r.cos - y * r.sin)));
        StoreLe<float>(&chunk.raw[(t * 64 + i + 32) * 4],
                       static_cast<float>(factor * (y * r.cos + x * r.sin)));
      }
    }
    EncodeOptions options;
    options.preset = PresetId::kNear;
    options.start_position = start;
    // Query energy fixes the steps, so that sizes can be compared.
    const ModelProfile profile = testing::MakeSampleProfile(layout, 3, false);
    options.profile = &profile;
    const auto right = EncodeFrame(layout, 64, chunk.views(), options);
    ASSERT_TRUE(right.ok()) << right.status();
    Layout wrong = layout;
    wrong.layers[0].planes[0].rope.scaling = s == RopeScaling{} ? Linear(4) : RopeScaling{};
    const ModelProfile wrong_profile = testing::MakeSampleProfile(wrong, 3, false);
    options.profile = &wrong_profile;
    const auto other = EncodeFrame(wrong, 64, chunk.views(), options);
    ASSERT_TRUE(other.ok());
    EXPECT_LT(right->size() * 2, other->size());
    // What comes back is the engine's key, attention factor and all.
    ByteVector raw(chunk.raw.size());
    const auto decoder = FrameDecoder::Open(*right, layout, nullptr);
    ASSERT_TRUE(decoder.ok() && DecodeFrame(*decoder, layout, raw).ok());
    for (size_t i = 0; i < size_t{64} * 64; ++i) {
      const float x = LoadLe<float>(&chunk.raw[4 * i]);
      EXPECT_NEAR(LoadLe<float>(&raw[4 * i]), x, 1.5f) << i;
    }
  }
}

}  // namespace
}  // namespace latticekv
