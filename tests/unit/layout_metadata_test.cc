// Layouts from the metadata of safetensors caches, and back.
#include "client/src/layout_metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/layout/rope.h"

namespace latticekv {
namespace {

using ::testing::HasSubstr;

Layout Plain(uint32_t layers) {
  return MakeUniformLayout("m", layers, 1, 64, DType::kF16, RopeSpec{});
}

absl::StatusOr<Layout> Read(const SafetensorsMetadata& metadata, uint32_t layers = 2,
                            uint32_t tokens = 100) {
  Layout layout = Plain(layers);
  std::vector<std::string> notices;
  const absl::Status status = ReadRopeMetadata(metadata, tokens, layout, notices);
  if (!status.ok()) return status;
  return layout;
}

RopeSpec Rope(const SafetensorsMetadata& metadata, uint32_t tokens = 100) {
  const auto layout = Read(metadata, 2, tokens);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return layout.ok() ? layout->layers[1].planes[0].rope : RopeSpec{};
}

// Writes and reads again.
void ExpectRoundTrip(const Layout& layout) {
  ASSERT_TRUE(ValidateLayout(layout).ok()) << ValidateLayout(layout);
  EXPECT_TRUE(CheckFitsMetadata(layout).ok());
  SafetensorsMetadata metadata;
  WriteRopeMetadata(layout, metadata);
  Layout again = layout;
  for (LayerSpec& layer : again.layers) {
    for (PlaneSpec& plane : layer.planes) plane.rope = RopeSpec{};
  }
  std::vector<std::string> notices;
  ASSERT_TRUE(ReadRopeMetadata(metadata, 5, again, notices).ok());
  EXPECT_EQ(again, layout);
}

TEST(LayoutMetadataTest, ScalingsAsConfigurationsWriteThem) {
  const SafetensorsMetadata base = {{"rope_base", "500000.0"}, {"rope_layout", "neox"}};
  const auto scaled = [&](const std::string& text) {
    SafetensorsMetadata m = base;
    m["rope_scaling"] = text;
    return m;
  };
  const RopeSpec llama3 = Rope(scaled(
      R"({"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 8192, "rope_type": "llama3"})"));
  EXPECT_EQ(llama3.scaling.kind, RopeScalingKind::kLlama3);
  EXPECT_EQ(llama3.scaling.original_positions, 8192u);
  EXPECT_EQ(llama3.scaling.high_freq_factor, 4.0);
  const RopeSpec yarn = Rope(scaled(
      R"({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
          "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.707})"));
  EXPECT_EQ(yarn.scaling.kind, RopeScalingKind::kYarn);
  EXPECT_TRUE(yarn.scaling.truncate);
  EXPECT_NEAR(RopeAttentionFactor(yarn), 1.0857263992561355, 1e-12);
  EXPECT_EQ(Rope(scaled(R"({"type":"linear","factor":2.5})")).scaling.factor, 2.5);
  // A dynamic scaling without a length takes the cache's.
  const auto dynamic =
      scaled(R"({"rope_type":"dynamic","factor":2,"original_max_position_embeddings":2048})");
  EXPECT_EQ(Rope(dynamic, 100).scaling.sequence_positions, 2048u);
  EXPECT_EQ(Rope(dynamic, 5000).scaling.sequence_positions, 5000u);
  for (const char* none : {"none", "default", "null", R"({"rope_type":"default"})"}) {
    EXPECT_EQ(Rope(scaled(none)).scaling, RopeScaling{}) << none;
  }
  const auto error = [&](const std::string& text) {
    return std::string(Read(scaled(text)).status().message());
  };
  EXPECT_THAT(error("fast"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error(R"({"rope_type":"longrope","factor":2,
                        "original_max_position_embeddings":4096})"),
              HasSubstr("longrope"));
  EXPECT_THAT(error(R"({"rope_type":"yarn","factor":2})"),
              HasSubstr("original_max_position_embeddings"));
  EXPECT_THAT(error(R"({"rope_type":"linear","factor":"two"})"), HasSubstr("factor"));
}

TEST(LayoutMetadataTest, LayersMayHaveBasesOfTheirOwn) {
  // Sliding layers with a small base, a global one scaled, one without positions.
  const auto layout =
      Read({{"rope_layout", "neox"},
            {"rope_base", "[10000.0, 1000000.0, null]"},
            {"rope_dims", "[64, 32, null]"},
            {"rope_scaling", R"([null, {"rope_type":"linear","factor":8.0}, null])"}},
           3);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->layers[0].planes[0].rope, (RopeSpec{RopeStyle::kNeox, 64, 10000.0}));
  EXPECT_EQ(layout->layers[1].planes[0].rope,
            (RopeSpec{RopeStyle::kNeox, 32, 1e6, {RopeScalingKind::kLinear, 8}}));
  EXPECT_EQ(layout->layers[2].planes[0].rope, RopeSpec{});
  ExpectRoundTrip(*layout);
  EXPECT_THAT(std::string(Read({{"rope_base", "[1e4, 1e6]"}}, 3).status().message()),
              HasSubstr("2 items for 3 layers"));
}

TEST(LayoutMetadataTest, EveryScalingComesBack) {
  RopeScaling dynamic{RopeScalingKind::kDynamicNtk, 2, 2048, 8192};
  RopeScaling llama3{RopeScalingKind::kLlama3, 8, 8192};
  llama3.low_freq_factor = 1;
  llama3.high_freq_factor = 4;
  RopeScaling yarn{RopeScalingKind::kYarn, 4.5, 4096};
  yarn.beta_fast = 31.7;
  yarn.beta_slow = 1;
  yarn.attention_factor = 1.1;
  for (const RopeScaling& s :
       {RopeScaling{}, RopeScaling{RopeScalingKind::kLinear, 3.1}, dynamic, llama3, yarn}) {
    for (RopeStyle style : {RopeStyle::kNeox, RopeStyle::kInterleaved}) {
      ExpectRoundTrip(MakeUniformLayout("m", 3, 2, 64, DType::kBF16, {style, 48, 123456.7, s}));
    }
  }
  ExpectRoundTrip(Plain(1));
}

TEST(LayoutMetadataTest, PlanesByNameAndRole) {
  using Names = std::vector<std::pair<std::string, PlaneRole>>;
  EXPECT_EQ(*ReadPlaneNames({}), (Names{{"k", PlaneRole::kKey}, {"v", PlaneRole::kValue}}));
  const auto names =
      ReadPlaneNames({{"planes", R"({"state":"opaque","latent":"value","k_rope":"key"})"}});
  ASSERT_TRUE(names.ok()) << names.status();
  EXPECT_EQ(*names, (Names{{"k_rope", PlaneRole::kKey},
                           {"latent", PlaneRole::kValue},
                           {"state", PlaneRole::kOpaque}}));
  for (const char* bad : {"k,v", "{}", R"(["k"])", R"({"k":"keys"})", R"({"k":1})"}) {
    EXPECT_FALSE(ReadPlaneNames({{"planes", bad}}).ok()) << bad;
  }
}

TEST(LayoutMetadataTest, LayersOfAnotherShapeOrStyleAreRefused) {
  Layout layout = Plain(2);
  layout.layers[1].planes[1].head_dim = 128;
  EXPECT_FALSE(CheckFitsMetadata(layout).ok());
  layout = MakeUniformLayout("m", 2, 1, 64, DType::kF16, {RopeStyle::kNeox, 64, 1e4});
  layout.layers[1].planes[0].rope.base = 1e6;
  EXPECT_TRUE(CheckFitsMetadata(layout).ok());
  layout.layers[1].planes[0].rope.style = RopeStyle::kInterleaved;
  EXPECT_FALSE(CheckFitsMetadata(layout).ok());
}

}  // namespace
}  // namespace latticekv
