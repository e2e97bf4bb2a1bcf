// Golden frames: the format does not change by accident. Frames under tests/golden/frames must
// decode to the bytes whose SHA-256 the manifest gives, and the encoder must write the lattice
// frames again bit for bit (exact frames hold zstd data, which differs between zstd versions, and
// are only decoded). LATTICEKV_WRITE_GOLDEN=1 writes them anew: a change of format, to be explained
// in the commit.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "core/base/sha256.h"
#include "core/codec/codec.h"
#include "core/codec/frame_format.h"
#include "tests/support/sample_chunk.h"
#include "tests/support/stage_settings.h"

namespace latticekv {
namespace {

using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::SampleChunk;

const std::string kFolder = std::string(LATTICEKV_SOURCE_DIR) + "/tests/golden/";

struct Case {
  std::string name;
  SampleChunk chunk;
  std::vector<float> mass;  // [layers][tokens], or empty
  EncodeOptions options;
  std::shared_ptr<ModelProfile> profile;
};

Case MakeCase(std::string name, const Layout& layout, uint32_t tokens, PresetId preset,
              StatsMode stats, bool profile, uint64_t start) {
  Case c{std::move(name), MakeSampleChunk(layout, tokens, 2026), {}, {}, nullptr};
  if (profile) c.profile = std::make_shared<ModelProfile>(MakeSampleProfile(layout, 5, true));
  c.options.preset = preset;
  c.options.stats = stats;
  c.options.profile = c.profile.get();
  c.options.start_position = start;
  return c;
}

Case WithMass(Case c) {
  testing::Random random(7);
  for (size_t i = 0; i < c.chunk.layout.layers.size() * c.chunk.tokens; ++i) {
    c.mass.push_back(static_cast<float>(random.Below(1 << (random.Below(16) + 1))) / 256.0f);
  }
  // Vectors keep their storage when a case moves.
  c.options.mass = {c.mass.data(), c.chunk.tokens, c.chunk.tokens + 100};
  return c;
}

std::vector<Case> Cases() {
  const auto layout = [](uint32_t heads, uint32_t dim, DType dtype, RopeSpec rope) {
    return MakeUniformLayout("golden", 2, heads, dim, dtype, rope);
  };
  const RopeSpec neox{RopeStyle::kNeox, 64, 100000.0};
  const RopeSpec interleaved{RopeStyle::kInterleaved, 32, 10000.0};
  Layout hybrid = layout(1, 64, DType::kBF16, interleaved);
  hybrid.layers[1].planes.push_back({"state", PlaneRole::kOpaque, 1, 7, DType::kF32, RopeSpec{}});
  std::vector<Case> out;
  out.push_back(MakeCase("exact_f16", layout(2, 64, DType::kF16, neox), 12, PresetId::kExact,
                         StatsMode::kOwn, false, 0));
  for (PresetId preset : {PresetId::kNear, PresetId::kFine, PresetId::kHigh, PresetId::kBalanced,
                          PresetId::kSmall, PresetId::kTiny}) {
    out.push_back(MakeCase("own_" + std::string(PresetName(preset)),
                           layout(2, 64, DType::kF16, neox), 40, preset, StatsMode::kOwn, false,
                           0));
    out.push_back(MakeCase("profile_" + std::string(PresetName(preset)),
                           layout(2, 64, DType::kF16, neox), 16, preset, StatsMode::kProfile, true,
                           256));
  }
  out.push_back(MakeCase("auto_bf16_partial_rotary", hybrid, 33, PresetId::kHigh, StatsMode::kAuto,
                         true, 131072));
  out.push_back(MakeCase("f32_no_rotary", layout(3, 8, DType::kF32, RopeSpec{}), 5, PresetId::kNear,
                         StatsMode::kOwn, false, 16));
  out.push_back(MakeCase("one_token", layout(1, 80, DType::kF16, {RopeStyle::kNeox, 80, 1e6}), 1,
                         PresetId::kBalanced, StatsMode::kOwn, true, 1024));
  const Layout uniform = layout(2, 64, DType::kF16, neox);
  for (PresetId preset : {PresetId::kNear, PresetId::kSmall}) {
    const std::string name(PresetName(preset));
    out.push_back(
        WithMass(MakeCase("mass_own_" + name, uniform, 40, preset, StatsMode::kOwn, false, 0)));
    out.push_back(WithMass(
        MakeCase("mass_profile_" + name, uniform, 24, preset, StatsMode::kProfile, true, 256)));
  }
  out.push_back(WithMass(MakeCase("mass_auto_bf16_partial_rotary", hybrid, 33, PresetId::kBalanced,
                                  StatsMode::kAuto, true, 131072)));
  // The seed stages, whose zstd parts are only decoded: scales of vectors and of groups, with and
  // without differences between tokens, a head dim that is no power of two, state beside them.
  const auto seed = [&](std::string name, const Layout& l, SeedOptions settings) {
    out.push_back(MakeCase(std::move(name), l, 24, PresetId::kSeed, StatsMode::kOwn, false, 256));
    out.back().options.seed = settings;
    out.back().options.exact_tokens = {3, 20};
  };
  seed("seed_k3v2_vector", layout(2, 64, DType::kF16, neox), {3, 2, false, true});
  seed("seed_k2v4_group", hybrid, {2, 4, true, false});
  seed("seed_k6v1_f32", layout(1, 24, DType::kF32, RopeSpec{}), {6, 1, true, true});
  const auto evict = [](Case c, uint32_t one_of) {
    for (uint32_t t = 0; t < c.chunk.tokens; ++t) c.options.keep.push_back(t % one_of == 1);
    return c;
  };
  out.push_back(evict(MakeCase("evicted_exact_bf16", layout(1, 64, DType::kBF16, interleaved), 13,
                               PresetId::kExact, StatsMode::kOwn, false, 0),
                      2));
  out.push_back(evict(
      MakeCase("evicted_own_high", uniform, 50, PresetId::kHigh, StatsMode::kOwn, false, 0), 3));
  seed("evicted_seed_k3v2", layout(2, 64, DType::kF16, neox), {3, 2, false, true});
  out.back() = evict(std::move(out.back()), 3);
  out.push_back(evict(
      WithMass(MakeCase("evicted_mass_profile_balanced", layout(2, 64, DType::kBF16, interleaved),
                        30, PresetId::kBalanced, StatsMode::kProfile, true, 512)),
      2));
  // The combinations of stages that none of the above has.
  for (uint32_t stages : {2u | 8, 2u | 16, 2u | 8 | 16, 2u | 32, 2u | 8 | 32, 2u | 16 | 32,
                          2u | 8 | 16 | 32, 2u | 4 | 8 | 32, 2u | 4 | 16 | 32, 64u | 32}) {
    const RopeSpec rope =
        stages & kStageRope ? RopeSpec{RopeStyle::kNeox, 16, 10000.0} : RopeSpec{};
    Case c = MakeCase("stages_" + std::to_string(stages), layout(1, 16, DType::kF16, rope), 13,
                      PresetId::kBalanced, StatsMode::kOwn, true, 0);
    for (uint32_t t = 0; t < 13; ++t) c.mass.push_back(static_cast<float>(t * t % 37));
    c.options = testing::OptionsForStages(stages, 13, *c.profile, c.mass);
    out.push_back(std::move(c));
  }
  return out;
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

ByteVector DecodeWhole(const Case& c, ByteSpan frame) {
  ByteVector raw(c.chunk.raw.size());
  auto decoder = FrameDecoder::Open(frame, c.chunk.layout, c.profile.get());
  EXPECT_TRUE(decoder.ok()) << c.name << ": " << decoder.status();
  if (!decoder.ok()) return raw;
  const absl::Status status = DecodeFrame(*decoder, c.chunk.layout, raw);
  EXPECT_TRUE(status.ok()) << c.name << ": " << status;
  return raw;
}

TEST(GoldenTest, FramesDecodeToTheSameBytesAndEncodeToThemselves) {
  const bool write = std::getenv("LATTICEKV_WRITE_GOLDEN") != nullptr;
  std::map<std::string, std::string> manifest;
  std::istringstream lines(ReadFile(kFolder + "manifest.txt"));
  for (std::string name, hash; lines >> name >> hash;) manifest[name] = hash;
  std::ofstream written;
  if (write) written.open(kFolder + "manifest.txt");
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    const auto encoded = EncodeFrame(c.chunk.layout, c.chunk.tokens, c.chunk.views(), c.options);
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    const std::string path = kFolder + "frames/" + c.name + ".frame";
    if (write) {
      std::ofstream(path, std::ios::binary) << AsText(*encoded);
      written << c.name << " " << ToHex(Sha256Of(DecodeWhole(c, *encoded))) << "\n";
      continue;
    }
    const std::string golden = ReadFile(path);
    ASSERT_FALSE(golden.empty()) << path;
    EXPECT_EQ(ToHex(Sha256Of(DecodeWhole(c, AsBytes(golden)))), manifest[c.name]);
    if (c.options.preset == PresetId::kSeed) {
      EXPECT_EQ(ToHex(Sha256Of(DecodeWhole(c, *encoded))), manifest[c.name]);
    } else if (c.options.preset != PresetId::kExact) {
      EXPECT_TRUE(golden == AsText(*encoded)) << "the encoder writes another frame";
    } else {
      EXPECT_EQ(c.options.keep.empty(), DecodeWhole(c, AsBytes(golden)) == c.chunk.raw);
    }
  }
}

TEST(GoldenTest, EveryCombinationOfStagesThatTheFormatAllowsHasAFrame) {
  std::set<uint32_t> found;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder + "frames")) {
    const std::string frame = ReadFile(entry.path());
    const auto parsed = ParseFrameHeader(AsBytes(frame));
    ASSERT_TRUE(parsed.ok()) << entry.path() << ": " << parsed.status();
    found.insert(parsed->header.stages);
  }
  const std::vector<uint32_t> allowed = testing::AllowedStages();
  // Exact and seed frames with and without eviction, the latter with and without rotary embedding
  // too; lattice frames with any of four stages.
  EXPECT_EQ(allowed.size(), 2u + 4u + 16u);
  EXPECT_EQ(found, std::set<uint32_t>(allowed.begin(), allowed.end()));
}

// The worked example of the format document: one layer, one head of 8 channels, two tokens.
TEST(GoldenTest, TheDocumentsExampleIsWhatTheEncoderWrites) {
  const Layout layout =
      MakeUniformLayout("example", 1, 1, 8, DType::kF16, {RopeStyle::kNeox, 8, 10000.0});
  SampleChunk chunk{layout, 2, ByteVector(layout.token_bytes() * 2)};
  for (int i = 0; i < 32; ++i) {
    // 1.0, 1.25, ... as f16: exponent 15, mantissa in quarters, then 2.0 and so on.
    const float value = 1.0f + 0.25f * static_cast<float>(i % 11);
    const int exponent = value >= 2 ? 1 : 0;
    const int mantissa = static_cast<int>((value / (1 << exponent) - 1) * 1024);
    StoreLe<uint16_t>(&chunk.raw[2 * i], static_cast<uint16_t>((15 + exponent) << 10 | mantissa));
  }
  EncodeOptions options;
  options.preset = PresetId::kBalanced;
  options.start_position = 256;
  const auto frame = EncodeFrame(layout, 2, chunk.views(), options);
  ASSERT_TRUE(frame.ok()) << frame.status();
  const std::string document =
      ReadFile(std::string(LATTICEKV_SOURCE_DIR) + "/docs/format/frame.md");
  const size_t begin = document.find("```hex\n"), end = document.find("\n```", begin + 7);
  ASSERT_NE(begin, std::string::npos) << ToHex(*frame);
  std::string hex;
  std::istringstream rows(document.substr(begin + 7, end - begin - 7));
  for (std::string row; std::getline(rows, row);) {
    row.resize(std::min(row.find('#'), row.size()));
    for (char ch : row) {
      if (!isspace(static_cast<unsigned char>(ch))) hex.push_back(ch);
    }
  }
  EXPECT_EQ(hex, ToHex(*frame));
  ByteVector raw(chunk.raw.size());
  auto decoder = FrameDecoder::Open(*frame, layout, nullptr);
  ASSERT_TRUE(decoder.ok());
  ASSERT_TRUE(DecodeFrame(*decoder, layout, raw).ok());
  EXPECT_NE(document.find(ToHex(raw)), std::string::npos) << ToHex(raw);
}

}  // namespace
}  // namespace latticekv
