#include "core/layout/layout.h"

#include <gtest/gtest.h>

#include "core/layout/chain_hash.h"
#include "core/layout/model_profile.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

Layout Sample() {
  return MakeUniformLayout("model", 4, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
}

TEST(LayoutTest, SerialisationIsCanonicalAndComesBack) {
  Layout layout = Sample();
  layout.layers[2].planes[0].rope.base = 500000;
  const ByteVector bytes = SerializeLayout(layout);
  const auto parsed = ParseLayout(bytes);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, layout);
  EXPECT_NE(LayoutFingerprint(layout), LayoutFingerprint(Sample()));
  for (size_t cut = 0; cut < bytes.size(); ++cut) {
    EXPECT_FALSE(ParseLayout(ByteSpan(bytes).first(cut)).ok());
  }
  ByteVector longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(ParseLayout(longer).ok());
}

TEST(LayoutTest, EveryFieldChangesTheFingerprint) {
  const Digest base = LayoutFingerprint(Sample());
  const auto changed = [&](auto change) {
    Layout layout = Sample();
    change(layout);
    return LayoutFingerprint(layout) != base;
  };
  EXPECT_TRUE(changed([](Layout& l) { l.model = "other"; }));
  EXPECT_TRUE(changed([](Layout& l) { l.revision = "1"; }));
  EXPECT_TRUE(changed([](Layout& l) { l.layers.pop_back(); }));
  EXPECT_TRUE(changed([](Layout& l) { l.layers[3].planes[1].heads = 3; }));
  EXPECT_TRUE(changed([](Layout& l) { l.layers[3].planes[1].head_dim = 72; }));
  EXPECT_TRUE(changed([](Layout& l) { l.layers[0].planes[0].dtype = DType::kBF16; }));
  EXPECT_TRUE(
      changed([](Layout& l) { l.layers[0].planes[0].rope.style = RopeStyle::kInterleaved; }));
  EXPECT_TRUE(changed([](Layout& l) { l.layers[0].planes[0].rope.rotary_dims = 32; }));
}

TEST(LayoutTest, WhatTheCodecCannotDoIsRefusedWithTheReason) {
  const auto message = [](auto change) {
    Layout layout = Sample();
    change(layout.layers[1].planes[0]);
    return std::string(ValidateLayout(layout).message());
  };
  EXPECT_NE(message([](PlaneSpec& p) { p.head_dim = 60; }).find("divisible by 8"),
            std::string::npos);
  EXPECT_NE(message([](PlaneSpec& p) { p.heads = 0; }).find("heads"), std::string::npos);
  EXPECT_NE(message([](PlaneSpec& p) { p.rope.rotary_dims = 66; }).find("rotary_dims"),
            std::string::npos);
  EXPECT_NE(message([](PlaneSpec& p) { p.rope.base = 0; }).find("base"), std::string::npos);
  EXPECT_NE(message([](PlaneSpec& p) { p.role = PlaneRole::kValue; }).find("rotary"),
            std::string::npos);
}

TEST(ProfileTest, SerialisationComesBackAndTheHashIsOfTheDecodingPart) {
  const Layout layout = Sample();
  const ModelProfile profile = testing::MakeSampleProfile(layout, 1, true);
  const ByteVector bytes = SerializeProfile(profile);
  const auto parsed = ParseProfile(bytes, layout);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, profile);
  ModelProfile other = profile;
  other.layers[0][0].heads[0].query_energy[0] *= 2;
  EXPECT_EQ(ProfileHash(other), ProfileHash(profile));
  other.layers[0][0].heads[0].mean[0] += 1;
  EXPECT_NE(ProfileHash(other), ProfileHash(profile));
  for (size_t cut = 0; cut < bytes.size(); cut += 13) {
    EXPECT_FALSE(ParseProfile(ByteSpan(bytes).first(cut), layout).ok());
  }
  Layout wrong = layout;
  wrong.model = "other";
  EXPECT_EQ(ParseProfile(bytes, wrong).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(ProfileTest, BadStatisticsAreRefused) {
  const Layout layout = Sample();
  ProfileStatistics s;
  s.query_energy.assign(4 * 2 * 32, 1.0f);
  EXPECT_TRUE(MakeProfile(layout, s).ok());
  s.query_energy[5] = 0;  // dead channels exist
  EXPECT_TRUE(MakeProfile(layout, s).ok());
  s.query_energy[5] = -1;
  EXPECT_FALSE(MakeProfile(layout, s).ok());
  s.query_energy[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(MakeProfile(layout, s).ok());
  s.query_energy.assign(7, 1.0f);
  EXPECT_FALSE(MakeProfile(layout, s).ok());
}

TEST(ChainHashTest, PrefixesShareAndEverythingElseDiffers) {
  const Digest fingerprint = LayoutFingerprint(Sample());
  std::vector<uint32_t> tokens(100);
  for (uint32_t i = 0; i < 100; ++i) tokens[i] = i * 31;
  const auto a = ChainHashes(fingerprint, tokens, 32, "");
  ASSERT_EQ(a.size(), 4u);
  tokens[40] += 1;
  const auto b = ChainHashes(fingerprint, tokens, 32, "");
  EXPECT_EQ(a[0], b[0]);
  EXPECT_NE(a[1], b[1]);
  EXPECT_NE(a[2], b[2]);
  EXPECT_NE(ChainHashes(fingerprint, tokens, 32, "salt")[0], b[0]);
  EXPECT_NE(TenantKey("a", "bc", a[0]), TenantKey("ab", "c", a[0]));
}

}  // namespace
}  // namespace latticekv
