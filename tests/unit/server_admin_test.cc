// What operators see and do: sessions, blocks, pins, deletion, scrubbing, health.
#include <set>

#include "core/base/bytes.h"
#include "server/block_metadata.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

class AdminTest : public ServiceFixture {
 protected:
  Called<v1::SessionDetail> Session(const std::string& name) {
    v1::GetSessionRequest request;
    request.set_name(name);
    return client_->GetSession(request);
  }
  v1::BlockSelector Of(const std::string& session) {
    v1::BlockSelector selector;
    selector.set_session(session);
    return selector;
  }
  static std::string Hex(const TestBlock& block) { return ToHex(AsBytes(block.hash())); }
};

TEST_F(AdminTest, SessionLifecycle) {
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk + 3));
  EXPECT_EQ(Session("chat").status.code, absl::StatusCode::kNotFound);
  Put(Open(v1::PRESET_HIGH, "chat"), blocks);
  const auto listed = client_->ListSessions({}).response;
  ASSERT_EQ(listed.sessions_size(), 1);
  const v1::SessionSummary& summary = listed.sessions(0);
  EXPECT_EQ(summary.name(), "chat");
  EXPECT_EQ(summary.namespace_(), "default");
  EXPECT_EQ(summary.blocks(), 3u);
  EXPECT_EQ(summary.tokens(), 2 * kTestChunk + 3);
  EXPECT_EQ(summary.raw_bytes(), layout_.token_bytes() * (2 * kTestChunk + 3));
  EXPECT_GT(summary.ratio(), 1.0);
  EXPECT_EQ(summary.model(), "test-model");
  EXPECT_FALSE(summary.pinned());

  const auto detail = Session("chat").response;
  ASSERT_EQ(detail.blocks_size(), 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(detail.blocks(i).key(), Hex(blocks[i]));
    EXPECT_EQ(detail.blocks(i).start_position(), i * kTestChunk);
  }
  EXPECT_EQ(detail.fingerprint(), ToHex(AsBytes(fingerprint_)));
  ASSERT_EQ(detail.layout().layers_size(), 1);
  EXPECT_EQ(detail.layout().layers(0).repeat(), 3u);

  v1::GetBlocksRequest get;
  get.set_session("chat");
  EXPECT_EQ(Get(get).payloads.size(), 3u);

  v1::DeleteRequest remove;
  *remove.mutable_blocks() = Of("chat");
  EXPECT_EQ(client_->Delete(remove).response.found(), 3u);
  EXPECT_EQ(client_->ListSessions({}).response.sessions_size(), 0);
  EXPECT_EQ(client_->Stats().response.blocks(), 0u);
  // The stream of Get gives its blocks up a moment after its client saw the end.
  WaitUntil([&] { return memory_used() == 0; });
  EXPECT_EQ(Get(get).status.code, absl::StatusCode::kNotFound);
}

TEST_F(AdminTest, DeletingASessionLeavesSharedBlocks) {
  const auto shared = MakeBlocks(Ids(1, 2 * kTestChunk));
  auto branch_ids = Ids(1, 2 * kTestChunk);
  branch_ids.back() = 777;
  const auto branch = MakeBlocks(branch_ids);
  Put(Open(v1::PRESET_EXACT, "a"), shared);
  const auto acks = Put(Open(v1::PRESET_EXACT, "b"), branch);
  EXPECT_TRUE(acks[0].have_it());
  EXPECT_FALSE(acks[1].have_it());
  v1::GetBlockRequest get;
  get.set_key(Hex(shared[0]));
  EXPECT_EQ(client_->GetBlock(get).response.sessions_size(), 2);
  v1::DeleteRequest remove;
  *remove.mutable_blocks() = Of("a");
  EXPECT_EQ(client_->Delete(remove).response.found(), 1u);
  v1::GetBlocksRequest read;
  read.set_session("b");
  const GetResult got = Get(read);
  EXPECT_EQ(got.payloads[0], shared[0].payload);
  EXPECT_EQ(got.payloads[1], branch[1].payload);
}

TEST_F(AdminTest, ANewContinuationReplacesTheOldOne) {
  Put(Open(v1::PRESET_EXACT, "s"), MakeBlocks(Ids(1, 3 * kTestChunk)));
  auto ids = Ids(1, 2 * kTestChunk);
  ids.back() = 777;
  const auto branch = MakeBlocks(ids);
  Put(Open(v1::PRESET_EXACT, "s"), branch);
  const auto detail = Session("s").response;
  ASSERT_EQ(detail.blocks_size(), 2);
  EXPECT_EQ(detail.blocks(1).key(), Hex(branch[1]));
}

TEST_F(AdminTest, ASessionHoldsOneLayout) {
  Put(Open(v1::PRESET_EXACT, "s"), MakeBlocks(Ids(1, kTestChunk)));
  Layout other = layout_;
  other.revision = "2";
  fingerprint_ = Register(other);
  const v1::BlockAck ack = PutOne(Open(v1::PRESET_EXACT, "s"), MakeBlocks(Ids(1, kTestChunk))[0]);
  EXPECT_EQ(ack.error().reason(), v1::REASON_OTHER_LAYOUT);
}

TEST_F(AdminTest, SessionsAndBlocksArePaged) {
  std::set<std::string> names, keys;
  for (uint32_t i = 0; i < 7; ++i) {
    const auto blocks = MakeBlocks(Ids(1 + 100 * i, kTestChunk));
    Put(Open(v1::PRESET_EXACT, "s" + std::to_string(i)), blocks);
  }
  v1::ListSessionsRequest sessions;
  sessions.set_page_size(3);
  std::vector<int> pages;
  do {
    const auto page = client_->ListSessions(sessions).response;
    pages.push_back(page.sessions_size());
    for (const auto& session : page.sessions()) names.insert(session.name());
    sessions.set_page_token(page.next_page_token());
  } while (!sessions.page_token().empty());
  EXPECT_EQ(pages, (std::vector<int>{3, 3, 1}));
  EXPECT_EQ(names.size(), 7u);

  v1::ListBlocksRequest blocks;
  blocks.set_page_size(3);
  size_t listed = 0;
  do {
    const auto page = client_->ListBlocks(blocks).response;
    for (const auto& block : page.blocks()) {
      keys.insert(block.key());
      ++listed;
    }
    blocks.set_page_token(page.next_page_token());
  } while (!blocks.page_token().empty());
  EXPECT_EQ(keys.size(), 7u);
  EXPECT_EQ(listed, 7u);
  blocks.set_namespace_("nobody's");
  EXPECT_EQ(client_->ListBlocks(blocks).response.blocks_size(), 0);
  blocks.set_page_token("zz");
  EXPECT_EQ(client_->ListBlocks(blocks).status.code, absl::StatusCode::kInvalidArgument);
}

TEST_F(AdminTest, ABlockInDetail) {
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  Put(Open(v1::PRESET_HIGH, "s"), blocks);
  v1::GetBlockRequest request;
  request.set_key(Hex(blocks[1]));
  const auto called = client_->GetBlock(request);
  ASSERT_TRUE(called.status.ok()) << called.status.message;
  const v1::BlockDetail& detail = called.response;
  EXPECT_EQ(detail.summary().parent(), Hex(blocks[0]));
  EXPECT_EQ(detail.summary().preset(), v1::PRESET_HIGH);
  EXPECT_EQ(detail.layers_size(), 3);
  EXPECT_EQ(detail.token_ids_size(), static_cast<int>(kTestChunk));
  EXPECT_EQ(detail.frame_crc32c().size(), 8u);
  EXPECT_EQ(detail.sessions(0), "s");
  request.set_key(std::string(64, 'a'));
  const auto missing = client_->GetBlock(request);
  EXPECT_EQ(missing.status.code, absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.status.detail.reason(), v1::REASON_NOT_STORED);
  request.set_key("nothex");
  EXPECT_EQ(client_->GetBlock(request).status.code, absl::StatusCode::kInvalidArgument);
}

TEST_F(AdminTest, PinsKeepBlocks) {
  StartServer([](ServerConfig& config) { config.memory_bytes = 1 << 20; });
  const auto kept = MakeBlocks(Ids(1, 2 * kTestChunk));
  Put(Open(v1::PRESET_EXACT, "kept"), kept);
  v1::PinRequest pin;
  *pin.mutable_blocks() = Of("kept");
  const auto pinned = client_->Pin(pin);
  ASSERT_TRUE(pinned.status.ok()) << pinned.status.message;
  EXPECT_EQ(pinned.response.found(), 2u);
  EXPECT_TRUE(client_->ListSessions({}).response.sessions(0).pinned());
  const auto flood = [&](uint32_t seed) {
    for (uint32_t i = 1; i <= 40; ++i) {
      Put(Open(), MakeBlocks(Ids(seed + i * 1000, 2 * kTestChunk), i));
    }
  };
  flood(100);
  v1::GetBlocksRequest read;
  read.set_session("kept");
  EXPECT_EQ(Get(read).payloads[1], kept[1].payload);
  v1::UnpinRequest unpin;
  *unpin.mutable_blocks() = Of("kept");
  EXPECT_EQ(client_->Unpin(unpin).response.found(), 2u);
  flood(500);
  const GetResult gone = Get(read);
  EXPECT_EQ(gone.opens[0].miss().reason(), v1::REASON_NOT_STORED);
  const auto summary = client_->ListSessions({}).response.sessions(0);
  EXPECT_EQ(summary.missing_blocks(), 2u);
  EXPECT_EQ(summary.blocks(), 0u);
  EXPECT_TRUE(Session("kept").response.blocks(0).missing());
}

TEST_F(AdminTest, LifetimesEndAndAreExtended) {
  ManualClock clock;
  StartServer([&](ServerConfig& config) { config.clock = &clock; });
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  v1::PutOpen open = Open(v1::PRESET_EXACT, "s");
  open.set_ttl_ms(1000);
  Put(open, blocks);
  v1::TouchRequest touch;
  *touch.mutable_blocks() = Of("s");
  touch.set_ttl_ms(5000);
  EXPECT_EQ(client_->Touch(touch).response.found(), 1u);
  clock.Advance(2000);
  EXPECT_EQ(LookupIds(Ids(1, kTestChunk)).usable_tokens(), kTestChunk);
  EXPECT_TRUE(Session("s").status.ok());
  clock.Advance(4000);
  EXPECT_EQ(LookupIds(Ids(1, kTestChunk)).usable_tokens(), 0u);
  EXPECT_EQ(Session("s").status.code, absl::StatusCode::kNotFound);
  // Someone who wants it for good keeps it from expiring.
  Put(open, blocks);
  EXPECT_TRUE(PutOne(Open(v1::PRESET_EXACT), blocks[0]).have_it());
  clock.Advance(4000);
  EXPECT_EQ(LookupIds(Ids(1, kTestChunk)).usable_tokens(), kTestChunk);
  client_.reset();
  server_.reset();
}

TEST_F(AdminTest, OneStoreCallMayReportManyExpiries) {
  ManualClock clock;
  StartServer([&](ServerConfig& config) { config.clock = &clock; });
  v1::PutOpen open = Open();
  open.set_ttl_ms(1000);
  const auto old = MakeBlocks(Ids(1, 5 * kTestChunk));
  Put(open, old);
  clock.Advance(1001);
  // The first look at the store after the time came is the one of this put.
  const auto fresh = MakeBlocks(Ids(5000, kTestChunk));
  EXPECT_FALSE(PutOne(Open(), fresh[0]).has_error());
  v1::ExplainMissRequest request;
  request.set_key(Hex(old[2]));
  EXPECT_EQ(client_->ExplainMiss(request).response.reason(), v1::REASON_EXPIRED);
  EXPECT_EQ(client_->Stats().response.raw_bytes(), fresh[0].payload.size());
  client_.reset();
  server_.reset();
}

TEST_F(AdminTest, ExplainMissTellsWhatHappened) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  v1::ExplainMissRequest request;
  request.set_key(Hex(blocks[0]));
  EXPECT_NE(client_->ExplainMiss(request).response.message().find("not stored"), std::string::npos);
  Put(Open(), blocks);
  EXPECT_EQ(client_->ExplainMiss(request).response.reason(), v1::REASON_UNSPECIFIED);
  v1::DeleteRequest remove;
  remove.mutable_blocks()->add_content_hashes(blocks[0].hash());
  remove.mutable_blocks()->add_content_hashes(std::string(32, 'q'));
  const auto removed = client_->Delete(remove).response;
  EXPECT_EQ(removed.found(), 1u);
  EXPECT_EQ(removed.missing(), 1u);
  EXPECT_NE(client_->ExplainMiss(request).response.message().find("deleted"), std::string::npos);
}

TEST_F(AdminTest, VerifyFindsDamage) {
  const auto blocks = MakeBlocks(Ids(1, 20 * kTestChunk));
  Put(Open(), blocks);
  auto verified = client_->Verify();
  ASSERT_TRUE(verified.status.ok()) << verified.status.message;
  EXPECT_EQ(verified.response.blocks_checked(), 20u);
  EXPECT_EQ(verified.response.blocks_corrupt(), 0u);
  EXPECT_TRUE(verified.response.done());
  const BlockKey key = engine().KeyOf("default", *DigestFromBytes(blocks[3].hash(), ""));
  const_cast<ByteVector&>(engine().store().Peek(key)->frame)[100] ^= std::byte{4};
  verified = client_->Verify();
  EXPECT_EQ(verified.response.blocks_corrupt(), 1u);
  EXPECT_EQ(client_->Verify().response.blocks_checked(), 19u);
  v1::ExplainMissRequest request;
  request.set_key(Hex(blocks[3]));
  EXPECT_EQ(client_->ExplainMiss(request).response.reason(), v1::REASON_CORRUPT);
}

TEST_F(AdminTest, StatsCount) {
  Put(Open(v1::PRESET_HIGH, "s"), MakeBlocks(Ids(1, 2 * kTestChunk)));
  const auto stats = client_->Stats().response;
  EXPECT_EQ(stats.blocks(), 2u);
  EXPECT_EQ(stats.sessions(), 1u);
  EXPECT_EQ(stats.layouts(), 1u);
  EXPECT_EQ(stats.raw_bytes(), layout_.token_bytes() * 2 * kTestChunk);
  EXPECT_EQ(stats.encode_bytes(), stats.raw_bytes());
  EXPECT_GT(stats.encode_gbps(), 0);
  EXPECT_GT(stats.ratio(), 1);
  EXPECT_EQ(stats.memory_capacity_bytes(), 16u << 20);
  EXPECT_FALSE(stats.version().empty());
}

TEST_F(AdminTest, HealthDrainAndFlush) {
  EXPECT_TRUE(client_->Health("").response);
  EXPECT_TRUE(client_->Health("latticekv.v1.KvCache").response);
  EXPECT_TRUE(client_->Health("latticekv.v1.Admin").response);
  EXPECT_EQ(client_->Health("nobody").status.code, absl::StatusCode::kNotFound);
  const CallStatus flush = client_->Flush();
  EXPECT_EQ(flush.code, absl::StatusCode::kFailedPrecondition);  // there is no disk
  EXPECT_FALSE(flush.message.empty());
  EXPECT_EQ(client_->Drain().code, absl::StatusCode::kUnimplemented);  // nobody to ask here
  bool asked = false;
  StartServer([&](ServerConfig& config) { config.on_drain_requested = [&] { asked = true; }; });
  EXPECT_TRUE(client_->Drain().ok());
  EXPECT_TRUE(asked);
  EXPECT_TRUE(client_->Stats().response.draining());
}

TEST_F(AdminTest, CompressedRequestsAreRefused) {
  v1::LookupRequest request;
  request.set_fingerprint(fingerprint_);
  for (uint32_t i = 0; i < 100'000; ++i) request.add_token_ids(1);
  EXPECT_EQ(client_->CompressedLookup(request).code, absl::StatusCode::kUnimplemented);
}

TEST_F(AdminTest, MessagesBeyondTheLimitAreRefused) {
  v1::LookupRequest request;
  request.set_fingerprint(fingerprint_);
  for (uint32_t i = 0; i < 1'100'000; ++i) request.add_token_ids(1);
  EXPECT_EQ(client_->Lookup(request).status.code, absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace latticekv::testing
