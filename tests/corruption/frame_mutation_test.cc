// Damaged frames: whatever the bytes are, decoding ends with a status and touches nothing else. Run
// under ASan and UBSan by deploy/test --sanitizers. LATTICEKV_MUTATIONS sets the number of mutants
// (100,000 by default), LATTICEKV_SEED the seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "core/base/crc32c.h"
#include "core/codec/codec.h"
#include "core/codec/frame_format.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

struct Subject {
  Layout layout;
  ByteVector frame;
};

std::vector<Subject> MakeSubjects(const Layout& layout, const ModelProfile& profile) {
  std::vector<Subject> out;
  for (PresetId preset : {PresetId::kExact, PresetId::kNear, PresetId::kHigh, PresetId::kTiny}) {
    for (StatsMode stats : {StatsMode::kOwn, StatsMode::kProfile}) {
      for (uint32_t tokens : {1u, 9u, 24u}) {
        const auto chunk = testing::MakeSampleChunk(layout, tokens, tokens);
        EncodeOptions options;
        options.preset = preset;
        options.stats = stats;
        options.profile = &profile;
        options.start_position = tokens == 24 ? 0 : 512;
        out.push_back({layout, *EncodeFrame(layout, tokens, chunk.views(), options)});
        if (preset == PresetId::kExact) continue;
        std::vector<float> mass(tokens);  // the same for both layers
        for (uint32_t t = 0; t < tokens; ++t) mass[t] = static_cast<float>(t * t % 37);
        options.mass = {mass.data(), 0, tokens};
        out.push_back({layout, *EncodeFrame(layout, tokens, chunk.views(), options)});
      }
    }
  }
  for (const bool groups : {false, true}) {
    const auto chunk = testing::MakeSampleChunk(layout, 24, 24);
    EncodeOptions options;
    options.preset = PresetId::kSeed;
    options.seed = {3, 2, groups, !groups};
    options.exact_tokens = {5};
    out.push_back({layout, *EncodeFrame(layout, 24, chunk.views(), options)});
  }
  return out;
}

void Mutate(testing::Random& random, ByteVector& frame) {
  const int changes = 1 + static_cast<int>(random.Below(4));
  for (int i = 0; i < changes && !frame.empty(); ++i) {
    // Headers are a small part of a frame and the most interesting: half of the changes go there.
    const size_t span = random.Below(2) ? std::min<size_t>(frame.size(), 260) : frame.size();
    const size_t at = random.Below(static_cast<uint32_t>(span));
    switch (random.Below(6)) {
      case 0:
        frame[at] ^= static_cast<std::byte>(1u << random.Below(8));
        break;
      case 1:
        frame[at] = static_cast<std::byte>(random.Next());
        break;
      case 2:
        frame[at] = random.Below(2) ? std::byte{0xFF} : std::byte{0};
        break;
      case 3:
        frame.resize(at);
        break;
      case 4:
        frame.insert(frame.begin() + static_cast<std::ptrdiff_t>(at), 1 + random.Below(40),
                     static_cast<std::byte>(random.Next()));
        break;
      default:
        std::swap(frame[at], frame[random.Below(static_cast<uint32_t>(frame.size()))]);
    }
  }
}

// True when every layer decodes.
bool DecodesWhole(const Subject& subject, const ModelProfile& profile, ByteSpan frame) {
  auto decoder = FrameDecoder::Open(frame, subject.layout, &profile);
  if (!decoder.ok()) {
    EXPECT_FALSE(decoder.status().message().empty());
    return false;
  }
  // As large as the header's token count says, which is bounded.
  ByteVector raw(subject.layout.token_bytes() * decoder->info().tokens);
  const absl::Status status = DecodeFrame(*decoder, subject.layout, raw);
  EXPECT_TRUE(status.ok() || !status.message().empty());
  return status.ok();
}

TEST(FrameMutationTest, DamagedFramesNeverCrashAndUnsealedOnesNeverDecode) {
  Layout layout;
  LayerSpec layer;
  const RopeSpec rope{RopeStyle::kInterleaved, 8, 10000.0};
  layer.planes.push_back({"k", PlaneRole::kKey, 2, 16, DType::kF16, rope});
  layer.planes.push_back({"state", PlaneRole::kOpaque, 1, 5, DType::kF32, RopeSpec{}});
  layer.planes.push_back({"v", PlaneRole::kValue, 2, 8, DType::kBF16, RopeSpec{}});
  layout.layers.assign(2, layer);
  const ModelProfile profile = testing::MakeSampleProfile(layout, 3, true);
  const std::vector<Subject> subjects = MakeSubjects(layout, profile);
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 20260101);
  const uint64_t mutants = testing::FromEnvironment("LATTICEKV_MUTATIONS", 100'000);
  RecordProperty("seed", std::to_string(seed));
  printf("seed %llu, %llu mutants\n", static_cast<unsigned long long>(seed),
         static_cast<unsigned long long>(mutants));
  testing::Random random(seed);
  uint64_t resealed_decoded = 0;
  for (uint64_t n = 0; n < mutants; ++n) {
    const Subject& subject = subjects[random.Below(static_cast<uint32_t>(subjects.size()))];
    ByteVector frame = subject.frame;
    Mutate(random, frame);
    const bool reseal = n % 2 == 0;
    if (reseal) testing::Reseal(frame);
    const bool decoded = DecodesWhole(subject, profile, frame);
    // Without new checksums only a mutant equal to the original may decode.
    if (!reseal && decoded) {
      ASSERT_EQ(frame, subject.frame) << "mutant " << n;
    }
    resealed_decoded += reseal && decoded;
  }
  // Some resealed mutants must get through (a changed raw vector is still a vector), or they were
  // all stopped at the door and tested nothing behind it.
  EXPECT_GT(resealed_decoded, mutants / 100);
}

TEST(FrameMutationTest, EveryTruncationIsRefused) {
  const Layout layout =
      MakeUniformLayout("test", 2, 1, 16, DType::kF16, {RopeStyle::kNeox, 16, 10000.0});
  const ModelProfile profile = testing::MakeSampleProfile(layout, 3, true);
  for (const Subject& subject : MakeSubjects(layout, profile)) {
    for (size_t size = 0; size < subject.frame.size(); ++size) {
      EXPECT_FALSE(DecodesWhole(subject, profile, ByteSpan(subject.frame).first(size)));
    }
  }
}

}  // namespace
}  // namespace latticekv
