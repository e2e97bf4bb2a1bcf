// Blocks in and out of a running server: exact, lossy, as frames; duplicates; layer order.
#include <algorithm>
#include <cstring>

#include "core/codec/codec.h"
#include "server/block_metadata.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

using PutGetTest = ServiceFixture;

// What a reader must get of `block` stored with `preset`, by a local encode and decode.
std::string LocalRoundTrip(const Layout& layout, const TestBlock& block, PresetId preset,
                           ByteVector* frame_out = nullptr) {
  EncodeOptions options;
  options.preset = preset;
  options.start_position = block.header.start_position();
  const auto tokens = static_cast<uint32_t>(block.header.token_ids_size());
  auto frame =
      EncodeFrame(layout, tokens, RawChunkViews(layout, tokens, AsBytes(block.payload)), options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  auto decoder = FrameDecoder::Open(*frame, layout, nullptr);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  std::string raw(block.payload.size(), '\0');
  const auto decoded =
      DecodeFrame(*decoder, layout, {reinterpret_cast<std::byte*>(raw.data()), raw.size()});
  EXPECT_TRUE(decoded.ok()) << decoded;
  if (frame_out != nullptr) *frame_out = *frame;
  return raw;
}

std::vector<std::string> Hashes(const std::vector<TestBlock>& blocks) {
  std::vector<std::string> out;
  for (const TestBlock& block : blocks) out.push_back(block.hash());
  return out;
}

TEST_F(PutGetTest, ExactComesBackBitForBit) {
  const auto blocks = MakeBlocks(Ids(100, 3 * kTestChunk + 5));
  ASSERT_EQ(blocks.size(), 4u);
  for (const v1::BlockAck& ack : Put(Open(v1::PRESET_EXACT), blocks)) {
    EXPECT_FALSE(ack.has_error()) << ack.error().message();
    EXPECT_FALSE(ack.have_it());
    EXPECT_TRUE(ack.quality().exact());
    EXPECT_EQ(ack.state(), v1::BLOCK_STATE_MEMORY);
    EXPECT_EQ(ack.content_hash(), blocks[ack.index()].hash());
    EXPECT_EQ(ack.raw_bytes(), blocks[ack.index()].payload.size());
    EXPECT_GT(ack.stored_bytes(), 0u);
  }
  const GetResult got = GetHashes(Hashes(blocks));
  ASSERT_TRUE(got.status.ok()) << got.status.message;
  ASSERT_EQ(got.payloads.size(), blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(got.payloads[i], blocks[i].payload) << "block " << i;
    EXPECT_EQ(got.opens[i].payload_bytes(), blocks[i].payload.size());
    EXPECT_EQ(got.opens[i].block().preset(), v1::PRESET_EXACT);
    EXPECT_EQ(got.opens[i].token_ids_size(), blocks[i].header.token_ids_size());
  }
  EXPECT_TRUE(got.checksums_ok);
}

TEST_F(PutGetTest, LossyEqualsALocalEncodeAndDecode) {
  const auto blocks = MakeBlocks(Ids(100, 2 * kTestChunk));
  const auto acks = Put(Open(v1::PRESET_HIGH), blocks);
  const GetResult got = GetHashes(Hashes(blocks));
  ASSERT_TRUE(got.status.ok()) << got.status.message;
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_LT(acks[i].stored_bytes(), acks[i].raw_bytes());
    EXPECT_FALSE(acks[i].quality().exact());
    EXPECT_GT(acks[i].quality().value_error(), 0);
    EXPECT_NE(got.payloads[i], blocks[i].payload);
    EXPECT_EQ(got.payloads[i], LocalRoundTrip(layout_, blocks[i], PresetId::kHigh));
  }
}

TEST_F(PutGetTest, LayersComeInOrderOverAllBlocks) {
  const auto blocks = MakeBlocks(Ids(1, 3 * kTestChunk));
  Put(Open(), blocks);
  const GetResult got = GetHashes(Hashes(blocks));
  const std::vector<std::pair<uint32_t, uint32_t>> expected = {
      {0, 0}, {0, 0}, {0, 1}, {0, 1}, {0, 2}, {0, 2}, {1, 0}, {1, 0}, {1, 1},
      {1, 1}, {1, 2}, {1, 2}, {2, 0}, {2, 0}, {2, 1}, {2, 1}, {2, 2}, {2, 2}};
  EXPECT_EQ(got.order, expected);  // two planes each
}

TEST_F(PutGetTest, ChosenLayersOnly) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  Put(Open(), blocks);
  v1::GetBlocksRequest request;
  request.set_fingerprint(fingerprint_);
  request.add_content_hashes(blocks[0].hash());
  request.set_first_layer(1);
  request.set_layer_count(1);
  const GetResult got = Get(request);
  ASSERT_TRUE(got.status.ok()) << got.status.message;
  const size_t layer = blocks[0].payload.size() / 3;
  EXPECT_EQ(got.opens[0].payload_bytes(), layer);
  ASSERT_EQ(got.payloads[0].size(), 2 * layer);  // the first layer's place stays empty
  EXPECT_EQ(got.payloads[0].substr(layer), blocks[0].payload.substr(layer, layer));
  request.set_first_layer(3);
  EXPECT_EQ(Get(request).status.code, absl::StatusCode::kInvalidArgument);
}

TEST_F(PutGetTest, ASmallWindowStillServesEverything) {
  StartServer([](ServerConfig& config) { config.decode_ahead_bytes = 1; });
  const auto blocks = MakeBlocks(Ids(1, 5 * kTestChunk));
  Put(Open(), blocks);
  const GetResult got = GetHashes(Hashes(blocks));
  ASSERT_TRUE(got.status.ok());
  for (size_t i = 0; i < blocks.size(); ++i) EXPECT_EQ(got.payloads[i], blocks[i].payload);
}

TEST_F(PutGetTest, PlanesBeyondAPartAreSplitOnTokens) {
  // 2 * 256 heads * 128 * 4 bytes = 128 KiB a token and plane: 64 tokens are 8 MiB.
  StartServer([](ServerConfig& config) { config.memory_bytes = 256 << 20; });
  v1::RegisterLayoutRequest request;
  request.set_namespace_("wide");
  request.set_chunk_tokens(64);
  auto* plane = request.mutable_layout()->add_layers()->add_planes();
  plane->set_name("s");
  plane->set_role(v1::PLANE_ROLE_OPAQUE);
  plane->set_heads(256);
  plane->set_head_dim(128);
  plane->set_dtype(v1::DTYPE_F32);
  request.mutable_layout()->set_model("wide");
  const auto registered = client_->RegisterLayout(request);
  ASSERT_TRUE(registered.status.ok()) << registered.status.message;
  TestBlock block;
  block.header.set_content_hash(std::string(32, 'x'));  // a caller's own id: no token ids
  block.payload = RandomHalves(64 * 256 * 128 * 4, 7);
  block.header.set_payload_bytes(block.payload.size());
  v1::PutOpen open;
  open.set_namespace_("wide");
  open.set_fingerprint(registered.response.fingerprint());
  open.set_preset(v1::PRESET_EXACT);
  const auto call = client_->PutBlocks();
  call->WriteOpen(open);
  call->WriteHeader(block.header);
  v1::PutBlocksResponse response;
  ASSERT_TRUE(call->Read(&response));
  ASSERT_TRUE(response.has_credit()) << response.DebugString();
  constexpr size_t kPart = 4 << 20;
  for (size_t at = 0; at < block.payload.size(); at += kPart) {
    call->WritePart(0, at, block.payload.substr(at, kPart));
  }
  ASSERT_TRUE(call->Read(&response));
  EXPECT_FALSE(response.ack().has_error()) << response.DebugString();
  v1::GetBlocksRequest get;
  get.set_namespace_("wide");
  get.add_content_hashes(block.hash());
  const GetResult got = Get(get);
  ASSERT_TRUE(got.status.ok()) << got.status.message;
  EXPECT_EQ(got.order.size(), 2u);
  EXPECT_LE(got.largest_part, kPart);
  EXPECT_TRUE(got.payloads[0] == block.payload);
}

TEST_F(PutGetTest, FramesGoInAndOut) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  ByteVector frame;
  const std::string expected = LocalRoundTrip(layout_, blocks[0], PresetId::kHigh, &frame);
  TestBlock framed = blocks[0];
  framed.payload = std::string(AsText(frame));
  framed.header.set_payload_bytes(framed.payload.size());
  v1::PutOpen open = Open(v1::PRESET_HIGH);
  open.set_encoding(v1::ENCODING_FRAME);
  const v1::BlockAck ack = PutOne(open, framed);
  ASSERT_FALSE(ack.has_error()) << ack.error().message();
  EXPECT_EQ(ack.stored_bytes(), frame.size());
  EXPECT_EQ(ack.raw_bytes(), blocks[0].payload.size());
  EXPECT_EQ(GetHashes({framed.hash()}).payloads[0], expected);
  EXPECT_EQ(GetHashes({framed.hash()}, v1::ENCODING_FRAME).payloads[0], framed.payload);
}

TEST_F(PutGetTest, DamagedFramesAreRefused) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  ByteVector frame;
  LocalRoundTrip(layout_, blocks[0], PresetId::kHigh, &frame);
  TestBlock framed = blocks[0];
  framed.payload = std::string(AsText(frame));
  framed.payload[framed.payload.size() - 20] ^= 0x10;
  framed.header.set_payload_bytes(framed.payload.size());
  v1::PutOpen open = Open(v1::PRESET_HIGH);
  open.set_encoding(v1::ENCODING_FRAME);
  const size_t used = memory_used();
  const v1::BlockAck ack = PutOne(open, framed);
  EXPECT_EQ(ack.error().reason(), v1::REASON_BAD_PAYLOAD) << ack.error().message();
  EXPECT_EQ(GetHashes({framed.hash()}).opens[0].miss().reason(), v1::REASON_NOT_STORED);
  WaitUntil([&] { return memory_used() == used; });
}

TEST_F(PutGetTest, HaveItOnlyWhenGoodEnough) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  EXPECT_FALSE(PutOne(Open(v1::PRESET_BALANCED), blocks[0]).have_it());
  EXPECT_TRUE(PutOne(Open(v1::PRESET_BALANCED), blocks[0]).have_it());
  EXPECT_TRUE(PutOne(Open(v1::PRESET_TINY), blocks[0]).have_it());
  const v1::BlockAck better = PutOne(Open(v1::PRESET_EXACT), blocks[0]);
  EXPECT_FALSE(better.have_it());
  EXPECT_TRUE(better.quality().exact());
  EXPECT_EQ(GetHashes({blocks[0].hash()}).payloads[0], blocks[0].payload);
  EXPECT_TRUE(PutOne(Open(v1::PRESET_HIGH), blocks[0]).have_it());
  const auto stats = client_->Stats().response;
  EXPECT_EQ(stats.blocks(), 1u);
  EXPECT_EQ(stats.duplicate_puts(), 3u);
}

TEST_F(PutGetTest, QualityBoundsOfAReader) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  PutOne(Open(v1::PRESET_HIGH), blocks[0]);
  v1::GetBlocksRequest request;
  request.set_fingerprint(fingerprint_);
  request.add_content_hashes(blocks[0].hash());
  request.mutable_bounds()->set_max_value_error(0.5);
  EXPECT_FALSE(Get(request).opens[0].has_miss());
  request.mutable_bounds()->set_max_value_error(0.05);
  EXPECT_EQ(Get(request).opens[0].miss().reason(), v1::REASON_QUALITY_BELOW_BOUND);
  request.mutable_bounds()->clear_max_value_error();
  request.mutable_bounds()->set_max_logit_noise(10);  // without a profile nothing is known
  EXPECT_EQ(Get(request).opens[0].miss().reason(), v1::REASON_QUALITY_BELOW_BOUND);
  request.mutable_bounds()->clear_max_logit_noise();
  request.mutable_bounds()->set_require_exact(true);
  EXPECT_EQ(Get(request).opens[0].miss().reason(), v1::REASON_QUALITY_BELOW_BOUND);
}

TEST_F(PutGetTest, MissesSayWhy) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  PutOne(Open(), blocks[0]);
  GetResult got = GetHashes({std::string(32, 'z'), blocks[0].hash()});
  ASSERT_TRUE(got.status.ok());
  EXPECT_EQ(got.opens[0].miss().reason(), v1::REASON_NOT_STORED);
  EXPECT_EQ(got.payloads[1], blocks[0].payload);

  v1::GetBlocksRequest request;
  request.set_fingerprint(std::string(32, 'f'));
  request.add_content_hashes(blocks[0].hash());
  EXPECT_EQ(Get(request).opens[0].miss().reason(), v1::REASON_UNKNOWN_LAYOUT);
  Layout other = layout_;
  other.revision = "2";
  request.set_fingerprint(Register(other));
  EXPECT_EQ(Get(request).opens[0].miss().reason(), v1::REASON_OTHER_LAYOUT);
}

TEST_F(PutGetTest, ASessionWithAHoleIsServedUpToTheHole) {
  const auto blocks = MakeBlocks(Ids(1, 3 * kTestChunk));
  ASSERT_FALSE(PutOne(Open(v1::PRESET_EXACT, "s"), blocks[0]).has_error());
  ASSERT_FALSE(PutOne(Open(v1::PRESET_EXACT, "s"), blocks[2]).has_error());
  v1::GetBlocksRequest request;
  request.set_session("s");
  GetResult got = Get(request);
  ASSERT_EQ(got.opens.size(), 2u);
  EXPECT_EQ(got.payloads[0], blocks[0].payload);
  EXPECT_EQ(got.opens[1].miss().reason(), v1::REASON_NOT_STORED);
  // By its hash it is served all the same, and once the hole is filled the session is whole.
  EXPECT_EQ(GetHashes({blocks[2].hash()}).payloads[0], blocks[2].payload);
  ASSERT_FALSE(PutOne(Open(v1::PRESET_EXACT, "s"), blocks[1]).has_error());
  got = Get(request);
  ASSERT_EQ(got.opens.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(got.payloads[i], blocks[i].payload);
}

TEST_F(PutGetTest, CorruptBlocksAreNeverServedAsData) {
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  Put(Open(v1::PRESET_HIGH), blocks);
  const Digest hash = *DigestFromBytes(blocks[0].hash(), "");
  const BlockKey key = engine().KeyOf("default", hash);
  // Damage the last layer only: its parts have begun by the time it is seen.
  auto& frame = const_cast<ByteVector&>(engine().store().Peek(key)->frame);
  frame[frame.size() - 20] ^= std::byte{1};
  const GetResult got = GetHashes(Hashes(blocks));
  ASSERT_TRUE(got.status.ok());
  ASSERT_EQ(got.failed.size(), 1u);
  EXPECT_EQ(got.failed[0].index(), 0u);
  EXPECT_EQ(got.failed[0].miss().reason(), v1::REASON_CORRUPT);
  EXPECT_EQ(got.payloads[1].size(), blocks[1].payload.size());
  EXPECT_EQ(engine().store().Peek(key), nullptr);
  EXPECT_EQ(client_->Stats().response.corrupt_blocks(), 1u);
  EXPECT_EQ(GetHashes({blocks[0].hash()}).opens[0].miss().reason(), v1::REASON_CORRUPT);
  // As a frame the checksum is looked at before the first part.
  PutOne(Open(v1::PRESET_HIGH), blocks[0]);
  const_cast<ByteVector&>(engine().store().Peek(key)->frame).back() ^= std::byte{1};
  const GetResult framed = GetHashes({blocks[0].hash()}, v1::ENCODING_FRAME);
  EXPECT_EQ(framed.failed.size() + framed.opens[0].has_miss(), 1u);
  EXPECT_TRUE(framed.payloads[0].empty());
}

TEST_F(PutGetTest, CancelledReaderGivesItsMemoryBack) {
  const auto blocks = MakeBlocks(Ids(1, 40 * kTestChunk));
  Put(Open(), blocks);
  const size_t used = memory_used();
  v1::GetBlocksRequest request;
  request.set_fingerprint(fingerprint_);
  for (const TestBlock& block : blocks) request.add_content_hashes(block.hash());
  const auto call = client_->GetBlocks(request);
  v1::GetBlocksResponse response;
  ASSERT_TRUE(call->Read(&response));
  call->Cancel();
  EXPECT_EQ(call->Finish().code, absl::StatusCode::kCancelled);
  WaitUntil([&] { return memory_used() == used; });
}

TEST_F(PutGetTest, SinksAndChosenTokensAreExact) {
  auto blocks = MakeBlocks(Ids(1, kTestChunk));
  blocks[0].header.add_exact_tokens(9);
  PutOne(Open(v1::PRESET_TINY), blocks[0]);
  const std::string got = GetHashes({blocks[0].hash()}).payloads[0];
  const size_t row = 2 * 64 * 2;  // of one plane
  for (const size_t token : {0, 1, 2, 3, 9}) {
    EXPECT_EQ(got.substr(token * row, row), blocks[0].payload.substr(token * row, row)) << token;
  }
  EXPECT_NE(got.substr(5 * row, row), blocks[0].payload.substr(5 * row, row));
}

}  // namespace
}  // namespace latticekv::testing
