#include "client/src/lkv_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/src/token_codec.h"
#include "core/base/crc32c.h"
#include "tests/support/sample_chunk.h"
#include "tests/support/temp_dir.h"

namespace latticekv {
namespace {

using ::testing::HasSubstr;
using testing::MakeSampleChunk;
using testing::MakeSampleProfile;
using testing::Random;
using testing::SampleChunk;
using testing::TempDir;

constexpr uint32_t kTokens = 50, kChunk = 16;

Layout SampleLayout() {
  return MakeUniformLayout("model", 2, 2, 16, DType::kF16, {RopeStyle::kNeox, 16, 10000.0});
}

LkvHeader SampleHeader() {
  LkvHeader header;
  header.layout = SampleLayout();
  header.metadata = {{"rope_base", "10000.0"}, {"model", "model"}};
  header.tokens = kTokens;
  header.chunk_tokens = kChunk;
  Random random(5);
  for (uint32_t t = 0; t < kTokens; ++t) header.token_ids.push_back(random.Below(49152));
  header.token_dtype = TensorDType::kI64;
  return header;
}

std::vector<ByteVector> SampleFrames(const ModelProfile* profile) {
  const SampleChunk chunk = MakeSampleChunk(SampleLayout(), kTokens, 3);
  std::vector<ByteVector> frames;
  for (uint32_t start = 0; start < kTokens; start += kChunk) {
    auto views = chunk.views();
    for (auto& layer : views) {
      for (PlaneView& plane : layer) plane.data += start * plane.token_stride;
    }
    EncodeOptions options;
    options.start_position = start;
    options.profile = profile;
    if (profile != nullptr) options.stats = StatsMode::kProfile;
    auto frame = EncodeFrame(chunk.layout, std::min(kChunk, kTokens - start), views, options);
    EXPECT_TRUE(frame.ok()) << frame.status();
    frames.push_back(*std::move(frame));
  }
  return frames;
}

ByteVector SampleFile(LkvHeader header, const ModelProfile* profile = nullptr) {
  const std::vector<ByteVector> frames = SampleFrames(profile);
  for (const ByteVector& frame : frames) {
    header.frame_bytes.push_back(static_cast<uint32_t>(frame.size()));
  }
  auto bytes = SerializeLkvHeader(header);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  for (const ByteVector& frame : frames) bytes->insert(bytes->end(), frame.begin(), frame.end());
  return *std::move(bytes);
}

// Makes the header's checksum right again after a change.
void Reseal(ByteVector& file) {
  const auto header_bytes = LoadLe<uint32_t>(file.data() + 8);
  if (header_bytes > file.size() - kLkvFixedHeaderBytes) return;
  const ByteSpan bytes = file;
  StoreLe(file.data() + 12,
          Crc32c(bytes.subspan(kLkvFixedHeaderBytes, header_bytes), Crc32c(bytes.first(12))));
}

TEST(TokenCodecTest, EveryKindComesBack) {
  Random random(1);
  std::vector<uint32_t> rising, wild, few, extreme = {0, UINT32_MAX, 0, 1u << 31, UINT32_MAX};
  for (uint32_t i = 0; i < 3000; ++i) {
    rising.push_back(1000000 + 3 * i);
    wild.push_back(static_cast<uint32_t>(random.Next()));
    few.push_back(random.Below(100));
  }
  for (const auto& ids : {rising, wild, few, extreme, std::vector<uint32_t>{7}}) {
    const CodedTokens coded = EncodeTokens(ids);
    EXPECT_LE(coded.bytes.size(), ids.size() * 4);
    const auto back = DecodeTokens(coded.coding, coded.bytes, static_cast<uint32_t>(ids.size()));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, ids);
    EXPECT_FALSE(
        DecodeTokens(coded.coding, coded.bytes, static_cast<uint32_t>(ids.size()) + 1).ok());
  }
  EXPECT_LT(EncodeTokens(rising).bytes.size(), 100u);
  EXPECT_EQ(EncodeTokens({}).coding, TokenCoding::kNone);
}

TEST(TokenCodecTest, RefusesVarintsThatDoNotFit) {
  const ByteVector longest(5, std::byte{0xFF});
  EXPECT_FALSE(DecodeTokens(TokenCoding::kZstdVarints, ZstdCompress(longest), 1).ok());
  const ByteVector open(2, std::byte{0x80});
  EXPECT_FALSE(DecodeTokens(TokenCoding::kZstdDeltas, ZstdCompress(open), 1).ok());
  EXPECT_FALSE(DecodeTokens(static_cast<TokenCoding>(9), {}, 1).ok());
}

TEST(LkvFileTest, ComesBack) {
  const ByteVector file = SampleFile(SampleHeader());
  const auto parsed = ParseLkv(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const LkvHeader header = SampleHeader();
  EXPECT_EQ(parsed->header.layout, header.layout);
  EXPECT_EQ(parsed->header.metadata, header.metadata);
  EXPECT_EQ(parsed->header.token_ids, header.token_ids);
  EXPECT_EQ(parsed->header.token_dtype, TensorDType::kI64);
  EXPECT_EQ(parsed->frames.size(), 4u);
  uint64_t total = parsed->sizes.total();
  for (ByteSpan frame : parsed->frames) total += frame.size();
  EXPECT_EQ(total, file.size());
  for (size_t i = 0; i < parsed->frames.size(); ++i) {
    const auto decoder = OpenLkvFrame(*parsed, i, nullptr);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
  }
}

TEST(LkvFileTest, TokenIdsAreOptional) {
  LkvHeader header = SampleHeader();
  header.token_ids.clear();
  const ByteVector file = SampleFile(header);
  const auto parsed = ParseLkv(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->header.token_ids.empty());
}

TEST(LkvFileTest, EmbeddedProfileDecodes) {
  const ModelProfile profile = MakeSampleProfile(SampleLayout(), 9, /*statistics=*/true);
  LkvHeader header = SampleHeader();
  header.profile = SerializeProfile(profile);
  const ByteVector file = SampleFile(header, &profile);
  const auto parsed = ParseLkv(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto embedded = ParseProfile(parsed->header.profile, parsed->header.layout);
  ASSERT_TRUE(embedded.ok()) << embedded.status();
  EXPECT_TRUE(OpenLkvFrame(*parsed, 0, &*embedded).ok());
  const auto without = OpenLkvFrame(*parsed, 0, nullptr);
  EXPECT_EQ(without.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(without.status().message()), HasSubstr(ToHex(ProfileHash(profile))));
}

TEST(LkvFileTest, FramesInTheWrongOrderAreRefused) {
  LkvHeader header = SampleHeader();
  std::vector<ByteVector> frames = SampleFrames(nullptr);
  std::swap(frames[0], frames[1]);
  const TempDir dir;
  ASSERT_TRUE(WriteLkv(dir.File("x.lkv"), header, frames).ok());
  const auto file = OpenLkv(dir.File("x.lkv"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(OpenLkvFrame(file->content, 0, nullptr).status().code(), absl::StatusCode::kDataLoss);
}

TEST(LkvFileTest, TruncationAndFlippedHeaderBitsAreRefused) {
  const ByteVector file = SampleFile(SampleHeader());
  const size_t header_bytes = ParseLkv(file)->sizes.total();
  for (size_t cut = 0; cut < file.size(); cut += cut < header_bytes ? 1 : 97) {
    EXPECT_FALSE(ParseLkv(ByteSpan(file).first(cut)).ok()) << cut;
  }
  ByteVector longer = file;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(ParseLkv(longer).ok());
  for (size_t at = 0; at < header_bytes; ++at) {
    ByteVector flipped = file;
    flipped[at] ^= std::byte{1};
    // The minor version alone may differ: readers skip what they do not know.
    if (at == 5) Reseal(flipped);
    EXPECT_EQ(ParseLkv(flipped).ok(), at == 5) << at;
  }
}

TEST(LkvFileTest, ResealedMutantsNeverCrash) {
  const ByteVector file = SampleFile(SampleHeader());
  const auto header_bytes = static_cast<uint32_t>(ParseLkv(file)->sizes.total());
  Random random(11);
  for (int round = 0; round < 20000; ++round) {
    ByteVector mutant = file;
    for (uint32_t flips = 1 + random.Below(3); flips > 0; --flips) {
      mutant[random.Below(header_bytes)] = static_cast<std::byte>(random.Below(256));
    }
    Reseal(mutant);
    const auto parsed = ParseLkv(mutant);
    for (size_t i = 0; parsed.ok() && i < parsed->frames.size(); ++i) {
      (void)OpenLkvFrame(*parsed, i, nullptr).ok();
    }
  }
}

TEST(LkvFileTest, NewerVersionsAreRefusedByName) {
  ByteVector file = SampleFile(SampleHeader());
  file[4] = std::byte{2};
  Reseal(file);
  const auto parsed = ParseLkv(file);
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("version 2.0"));
}

TEST(LkvFileTest, HeaderThatContradictsItselfIsNotWritten) {
  LkvHeader header = SampleHeader();
  EXPECT_FALSE(SerializeLkvHeader(header).ok()) << "no frames";
  header.frame_bytes = {1, 1, 1, 1};
  EXPECT_TRUE(SerializeLkvHeader(header).ok());
  header.token_ids.pop_back();
  EXPECT_FALSE(SerializeLkvHeader(header).ok());
  header = SampleHeader();
  header.frame_bytes = {1, 1, 1, 1};
  header.chunk_tokens = 8;
  EXPECT_FALSE(SerializeLkvHeader(header).ok());
}

}  // namespace
}  // namespace latticekv
