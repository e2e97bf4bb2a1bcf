// Attention mass and evicted tokens over the wire: who gets such blocks, under which names, and
// what comes back.
#include <algorithm>
#include <cstring>
#include <limits>

#include "core/codec/codec.h"
#include "core/codec/token_eviction.h"
#include "core/layout/chain_hash.h"
#include "server/block_metadata.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

class EvictionTest : public ServiceFixture {
 protected:
  // Names the blocks' chain anew, with every token whose number in the sequence `evict` accepts
  // left out.
  template <typename Evict>
  void EvictFrom(std::vector<TestBlock>* blocks, const Evict& evict) {
    const Digest fingerprint = *DigestFromBytes(fingerprint_, "");
    std::optional<Digest> parent;
    for (TestBlock& block : *blocks) {
      const std::vector<uint8_t> keep = KeepOf(block, evict);
      block.header.mutable_keep()->assign(keep.begin(), keep.end());
      const std::vector<uint32_t> ids(block.header.token_ids().begin(),
                                      block.header.token_ids().end());
      const Digest hash = ChunkHash(fingerprint, parent, ids, block.header.salt(), keep);
      block.header.set_content_hash(DigestToBytes(hash));
      if (parent) block.header.set_parent_hash(DigestToBytes(*parent));
      parent = hash;
    }
  }

  template <typename Evict>
  static std::vector<uint8_t> KeepOf(const TestBlock& block, const Evict& evict) {
    std::vector<uint8_t> keep;
    for (int t = 0; t < block.header.token_ids_size(); ++t) {
      keep.push_back(!evict(block.header.start_position() + static_cast<uint64_t>(t)));
    }
    return keep;
  }

  // What a reader must get, by a local encode and decode.
  std::string Local(const TestBlock& block, EncodeOptions options,
                    ByteVector* frame_out = nullptr) {
    const auto tokens = static_cast<uint32_t>(block.header.token_ids_size());
    options.start_position = block.header.start_position();
    options.keep.assign(block.header.keep().begin(), block.header.keep().end());
    const auto frame = EncodeFrame(layout_, tokens,
                                   RawChunkViews(layout_, tokens, AsBytes(block.payload)), options);
    EXPECT_TRUE(frame.ok()) << frame.status();
    const auto decoder = FrameDecoder::Open(*frame, layout_, nullptr);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    std::string raw(block.payload.size(), '\xA5');
    EXPECT_TRUE(
        DecodeFrame(*decoder, layout_, {reinterpret_cast<std::byte*>(raw.data()), raw.size()})
            .ok());
    if (frame_out != nullptr) *frame_out = *frame;
    return raw;
  }

  v1::LookupResponse Find(const std::vector<uint32_t>& ids, bool accept) {
    v1::LookupRequest request;
    request.set_fingerprint(fingerprint_);
    request.mutable_token_ids()->Add(ids.begin(), ids.end());
    request.set_accept_evicted(accept);
    const auto called = client_->Lookup(request);
    EXPECT_TRUE(called.status.ok()) << called.status.message;
    return called.response;
  }

  GetResult Read(const std::string& hash, bool accept) {
    v1::GetBlocksRequest request;
    request.set_fingerprint(fingerprint_);
    request.add_content_hashes(hash);
    request.set_accept_evicted(accept);
    return Get(request);
  }

  v1::ExplainMissResponse Explain(const std::string& hash) {
    v1::ExplainMissRequest request;
    request.set_key(ToHex(AsBytes(hash)));
    return client_->ExplainMiss(request).response;
  }
};

bool EveryThird(uint64_t position) { return position >= kSinkTokens && position % 3 == 1; }

TEST_F(EvictionTest, ServedOnlyToWhoAcceptsThem) {
  const auto ids = Ids(1, 2 * kTestChunk + 5);
  const auto whole = MakeBlocks(ids);
  auto evicted = whole;
  EvictFrom(&evicted, EveryThird);
  for (size_t i = 0; i < evicted.size(); ++i) EXPECT_NE(evicted[i].hash(), whole[i].hash());
  for (const v1::BlockAck& ack : Put(Open(v1::PRESET_HIGH, "s"), evicted)) {
    ASSERT_FALSE(ack.has_error()) << ack.error().message();
  }

  // A reader that does not accept them misses, by tokens, hashes and session, and learns why.
  v1::LookupResponse found = Find(ids, false);
  EXPECT_EQ(found.usable_tokens(), 0u);
  EXPECT_EQ(found.miss_reason(), v1::REASON_EVICTED_TOKENS) << found.miss_message();
  for (const std::string& hash : {evicted[0].hash(), whole[0].hash()}) {
    const GetResult refused = Read(hash, false);
    EXPECT_EQ(refused.opens[0].miss().reason(), v1::REASON_EVICTED_TOKENS);
    EXPECT_TRUE(refused.order.empty());
    EXPECT_EQ(Explain(hash).reason(), v1::REASON_EVICTED_TOKENS) << Explain(hash).message();
  }
  v1::LookupRequest by_hash;
  by_hash.set_fingerprint(fingerprint_);
  by_hash.add_chain_hashes(evicted[0].hash());
  EXPECT_EQ(client_->Lookup(by_hash).response.miss_reason(), v1::REASON_EVICTED_TOKENS);
  v1::GetBlocksRequest session;
  session.set_session("s");
  for (const v1::BlockOpen& open : Get(session).opens) EXPECT_TRUE(open.has_miss());

  // One that does finds the chain by the tokens alone and gets zeros and the mask.
  found = Find(ids, true);
  EXPECT_EQ(found.usable_tokens(), ids.size());
  EXPECT_EQ(found.miss_reason(), v1::REASON_UNSPECIFIED) << found.miss_message();
  ASSERT_EQ(found.blocks_size(), 3);
  EncodeOptions options;
  options.preset = PresetId::kHigh;
  for (size_t i = 0; i < evicted.size(); ++i) {
    EXPECT_EQ(found.blocks(static_cast<int>(i)).block().content_hash(), evicted[i].hash());
    EXPECT_EQ(found.blocks(static_cast<int>(i)).block().evicted_tokens(),
              std::count(evicted[i].header.keep().begin(), evicted[i].header.keep().end(), 0));
    const GetResult got = Read(evicted[i].hash(), true);
    EXPECT_EQ(got.opens[0].keep(), evicted[i].header.keep());
    EXPECT_TRUE(got.payloads[0] == Local(evicted[i], options)) << i;
  }
  session.set_accept_evicted(true);
  const GetResult all = Get(session);
  ASSERT_EQ(all.opens.size(), 3u);
  EXPECT_TRUE(all.payloads[2] == Local(evicted[2], options));

  // The same tokens whole are another block, and are what everybody gets from then on.
  ASSERT_FALSE(PutOne(Open(v1::PRESET_HIGH), whole[0]).have_it());
  EXPECT_EQ(Find(ids, false).usable_tokens(), kTestChunk);
  EXPECT_EQ(Explain(whole[0].hash()).reason(), v1::REASON_UNSPECIFIED);
  // The longest prefix still goes through the evicted chain.
  EXPECT_EQ(Find(ids, true).usable_tokens(), ids.size());
}

TEST_F(EvictionTest, LookUpFindsPartsOfEvictedTails) {
  auto blocks = MakeBlocks(Ids(1, kTestChunk + 9));
  EvictFrom(&blocks, EveryThird);
  Put(Open(v1::PRESET_HIGH), blocks);
  // A request that goes on where the tail ends.
  v1::LookupResponse found = Find(Ids(1, 3 * kTestChunk), true);
  EXPECT_EQ(found.usable_tokens(), kTestChunk + 9);
  EXPECT_EQ(found.miss_reason(), v1::REASON_NOT_STORED);
  // Two masks of one chunk are two blocks.
  auto other = MakeBlocks(Ids(1, kTestChunk));
  EvictFrom(&other, [](uint64_t position) { return position == 7; });
  EXPECT_FALSE(PutOne(Open(v1::PRESET_HIGH), other[0]).have_it());
  EXPECT_EQ(client_->Stats().response.blocks(), 3u);
  EXPECT_EQ(Read(other[0].hash(), true).opens[0].keep(), other[0].header.keep());
}

TEST_F(EvictionTest, NamesAndMasksMustFit) {
  auto blocks = MakeBlocks(Ids(1, kTestChunk));
  const std::string plain_hash = blocks[0].hash();
  EvictFrom(&blocks, EveryThird);
  TestBlock wrong = blocks[0];
  wrong.header.set_content_hash(plain_hash);  // the tokens' plain name
  EXPECT_EQ(PutOne(Open(v1::PRESET_HIGH), wrong).error().reason(), v1::REASON_BAD_PAYLOAD);
  for (const std::string& keep :
       {std::string(kTestChunk - 1, '\1'), std::string(kTestChunk, '\0'),
        std::string(kTestChunk, '\2'), std::string(kTestChunk + 300, '\0')}) {
    wrong = blocks[0];
    wrong.header.set_keep(keep);
    const v1::BlockAck ack = PutOne(Open(v1::PRESET_HIGH), wrong);
    EXPECT_EQ(ack.error().reason(), v1::REASON_BAD_PAYLOAD) << ack.error().message();
  }
  EXPECT_EQ(client_->Stats().response.blocks(), 0u);
}

TEST_F(EvictionTest, FramesTellTheirMask) {
  auto blocks = MakeBlocks(Ids(1, kTestChunk));
  const TestBlock plain = blocks[0];
  EvictFrom(&blocks, EveryThird);
  ByteVector frame;
  EncodeOptions options;
  options.preset = PresetId::kHigh;
  const std::string expected = Local(blocks[0], options, &frame);
  v1::PutOpen open = Open(v1::PRESET_HIGH);
  open.set_encoding(v1::ENCODING_FRAME);
  TestBlock framed = blocks[0];
  framed.payload = std::string(AsText(frame));
  framed.header.set_payload_bytes(framed.payload.size());
  // Under the plain name, or another mask's, it is refused.
  TestBlock wrong = framed;
  wrong.header.clear_keep();
  wrong.header.set_content_hash(plain.hash());
  EXPECT_EQ(PutOne(open, wrong).error().reason(), v1::REASON_BAD_PAYLOAD);
  std::vector<TestBlock> other = {framed};
  EvictFrom(&other, [](uint64_t position) { return position == 5; });
  EXPECT_EQ(PutOne(open, other[0]).error().reason(), v1::REASON_BAD_PAYLOAD);

  const v1::BlockAck ack = PutOne(open, framed);
  ASSERT_FALSE(ack.has_error()) << ack.error().message();
  const GetResult got = Read(framed.hash(), true);
  EXPECT_TRUE(got.payloads[0] == expected);
  EXPECT_EQ(got.opens[0].keep(), framed.header.keep());
}

TEST_F(EvictionTest, MaskAndNumberSurviveARestart) {
  const auto disk = [&](ServerConfig& config) {
    config.disk_dir = directory_ + "/disk";
    config.disk_bytes = 64 << 20;
  };
  StartServer(disk);
  const auto ids = Ids(1, 2 * kTestChunk);
  auto blocks = MakeBlocks(ids);
  EvictFrom(&blocks, EveryThird);
  v1::PutOpen open = Open(v1::PRESET_HIGH, "s");
  open.set_wait_for(v1::BLOCK_STATE_DURABLE);
  for (const v1::BlockAck& ack : Put(open, blocks)) {
    ASSERT_FALSE(ack.has_error()) << ack.error().message();
  }
  StartServer(disk);
  EXPECT_EQ(Read(blocks[1].hash(), false).opens[0].miss().reason(), v1::REASON_EVICTED_TOKENS);
  EncodeOptions options;
  options.preset = PresetId::kHigh;
  EXPECT_TRUE(Read(blocks[1].hash(), true).payloads[0] == Local(blocks[1], options));
  // The index by tokens is filled in the background.
  WaitUntil([&] { return Find(ids, true).usable_tokens() == ids.size(); });
  EXPECT_EQ(Find(ids, false).miss_reason(), v1::REASON_EVICTED_TOKENS);
}

TEST_F(EvictionTest, MassMakesTheStepsOfTokensFiner) {
  auto blocks = MakeBlocks(Ids(1, kTestChunk));
  std::vector<float> mass(layout_.layers.size() * kTestChunk);
  for (size_t i = 0; i < mass.size(); ++i) mass[i] = i % kTestChunk == 9 ? 40.f : 0.01f;
  TestBlock with_mass = blocks[0];
  with_mass.header.mutable_attention_mass()->Add(mass.begin(), mass.end());
  with_mass.header.set_mass_queries(64);
  EncodeOptions options;
  options.preset = PresetId::kBalanced;
  const std::string without = Local(blocks[0], options);
  options.mass = {mass.data(), kTestChunk, 64};
  const std::string expected = Local(blocks[0], options);
  ASSERT_TRUE(expected != without);
  const v1::BlockAck ack = PutOne(Open(v1::PRESET_BALANCED), with_mass);
  ASSERT_FALSE(ack.has_error()) << ack.error().message();
  EXPECT_TRUE(GetHashes({blocks[0].hash()}).payloads[0] == expected);
  // Levels of the text make the whole chunk coarser.
  const std::vector<float> levels(layout_.layers.size(), -1.0f);
  auto others = MakeBlocks(Ids(300, kTestChunk));
  others[0].header.mutable_attention_mass()->Add(mass.begin(), mass.end());
  others[0].header.set_mass_queries(64);
  others[0].header.mutable_mass_levels()->Add(levels.begin(), levels.end());
  EncodeOptions with_levels = options;
  with_levels.mass.levels = levels.data();
  const std::string coarser = Local(others[0], with_levels);
  ASSERT_TRUE(coarser != Local(others[0], options));
  ASSERT_FALSE(PutOne(Open(v1::PRESET_BALANCED), others[0]).has_error());
  EXPECT_TRUE(GetHashes({others[0].hash()}).payloads[0] == coarser);
  // Eviction and mass together.
  std::vector<TestBlock> both = {with_mass};
  EvictFrom(&both, EveryThird);
  ASSERT_FALSE(PutOne(Open(v1::PRESET_BALANCED), both[0]).has_error());
  EXPECT_TRUE(Read(both[0].hash(), true).payloads[0] == Local(both[0], options));

  // Of another size, or not of numbers, it is refused.
  TestBlock wrong = MakeBlocks(Ids(500, kTestChunk))[0];
  wrong.header.mutable_attention_mass()->Add(mass.begin(), mass.end() - 1);
  EXPECT_EQ(PutOne(Open(v1::PRESET_BALANCED), wrong).error().reason(), v1::REASON_BAD_PAYLOAD);
  wrong.header.add_attention_mass(-1);
  EXPECT_EQ(PutOne(Open(v1::PRESET_BALANCED), wrong).error().reason(), v1::REASON_BAD_PAYLOAD);
  TestBlock wrong_levels = with_mass;
  wrong_levels.header.add_mass_levels(1);
  wrong_levels.header.add_mass_levels(1);
  ASSERT_NE(layout_.layers.size(), 2u);
  EXPECT_EQ(PutOne(Open(v1::PRESET_NEAR), wrong_levels).error().reason(), v1::REASON_BAD_PAYLOAD);
  wrong_levels.header.clear_mass_levels();
  for (size_t l = 0; l < layout_.layers.size(); ++l) {
    wrong_levels.header.add_mass_levels(std::numeric_limits<float>::quiet_NaN());
  }
  EXPECT_EQ(PutOne(Open(v1::PRESET_NEAR), wrong_levels).error().reason(), v1::REASON_BAD_PAYLOAD);
}

TEST_F(EvictionTest, WaitingMassIsBounded) {
  Reservation all_but_little;
  ASSERT_TRUE(engine().mass_budget().TryReserve(limits::kMaxMassBytes - 10, &all_but_little));
  TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  for (size_t i = 0; i < layout_.layers.size() * kTestChunk; ++i) {
    block.header.add_attention_mass(1);
  }
  const v1::BlockAck ack = PutOne(Open(v1::PRESET_HIGH), block);
  EXPECT_EQ(ack.error().limit(), "kMaxMassBytes") << ack.error().message();
  all_but_little.Release();
  EXPECT_FALSE(PutOne(Open(v1::PRESET_HIGH), block).has_error());
  WaitUntil([&] { return engine().mass_budget().used() == 0; });
}

TEST_F(EvictionTest, SeedSettingsGoOverTheWire) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  v1::PutOpen open = Open(v1::PRESET_SEED);
  ASSERT_FALSE(PutOne(open, blocks[0]).has_error());
  EncodeOptions options;
  options.preset = PresetId::kSeed;
  EXPECT_TRUE(GetHashes({blocks[0].hash()}).payloads[0] == Local(blocks[0], options));
  // More bits replace fewer, and not the other way round.
  open.mutable_seed()->set_key_bits(5);
  open.mutable_seed()->set_value_bits(4);
  open.mutable_seed()->set_group_scales(true);
  open.mutable_seed()->set_no_token_delta(true);
  EXPECT_FALSE(PutOne(open, blocks[0]).have_it());
  options.seed = {5, 4, true, false};
  EXPECT_TRUE(GetHashes({blocks[0].hash()}).payloads[0] == Local(blocks[0], options));
  EXPECT_TRUE(PutOne(Open(v1::PRESET_SEED), blocks[0]).have_it());
  EXPECT_FALSE(PutOne(Open(v1::PRESET_TINY), blocks[0]).have_it());

  const auto refused = [&](const v1::PutOpen& wrong) {
    const auto call = client_->PutBlocks();
    call->WriteOpen(wrong);
    v1::PutBlocksResponse response;
    while (call->Read(&response)) {
    }
    return call->Finish().code;
  };
  open.mutable_seed()->set_key_bits(7);
  EXPECT_EQ(refused(open), absl::StatusCode::kInvalidArgument);
  open.mutable_seed()->set_key_bits(3);
  open.set_preset(v1::PRESET_HIGH);
  EXPECT_EQ(refused(open), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace latticekv::testing
