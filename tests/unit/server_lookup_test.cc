// The longest stored prefix: whole chunks, partial ones, bounds, other layouts.
#include "server/block_metadata.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

using LookupTest = ServiceFixture;

TEST_F(LookupTest, WholeAndPartialChunks) {
  const auto ids = Ids(1, 2 * kTestChunk + 5);
  const auto blocks = MakeBlocks(ids);
  Put(Open(), blocks);
  v1::LookupResponse found = LookupIds(ids);
  EXPECT_EQ(found.usable_tokens(), ids.size());
  EXPECT_EQ(found.miss_reason(), v1::REASON_UNSPECIFIED);
  EXPECT_EQ(found.chunk_tokens(), kTestChunk);
  ASSERT_EQ(found.blocks_size(), 3);
  EXPECT_EQ(found.blocks(2).block().content_hash(), blocks[2].hash());
  EXPECT_EQ(found.blocks(2).usable_tokens(), 5u);

  // A longer request: the partial tail counts, then nothing.
  found = LookupIds(Ids(1, 4 * kTestChunk));
  EXPECT_EQ(found.usable_tokens(), 2 * kTestChunk + 5);
  EXPECT_EQ(found.miss_reason(), v1::REASON_NOT_STORED);

  // A shorter one ends within a stored chunk: its leading tokens are usable.
  found = LookupIds(Ids(1, kTestChunk + 7));
  EXPECT_EQ(found.usable_tokens(), kTestChunk + 7);
  EXPECT_EQ(found.miss_reason(), v1::REASON_UNSPECIFIED);
  EXPECT_EQ(found.blocks(1).block().content_hash(), blocks[1].hash());
  EXPECT_EQ(found.blocks(1).usable_tokens(), 7u);

  // One that leaves the sequence within the first chunk.
  auto other = Ids(1, kTestChunk);
  other[3] = 9999;
  found = LookupIds(other);
  EXPECT_EQ(found.usable_tokens(), 3u);
  EXPECT_EQ(found.miss_reason(), v1::REASON_NOT_STORED);

  found = LookupIds(Ids(5000, kTestChunk));
  EXPECT_EQ(found.usable_tokens(), 0u);
  EXPECT_EQ(found.miss_reason(), v1::REASON_NOT_STORED);
}

TEST_F(LookupTest, TheLongestOfManyBranchesWins) {
  for (uint32_t branch = 1; branch < kTestChunk; branch += 3) {
    auto ids = Ids(1, kTestChunk);
    for (uint32_t i = branch; i < kTestChunk; ++i) ids[i] = 1000 * branch + i;
    Put(Open(), MakeBlocks(ids, branch));
  }
  auto wanted = Ids(1, kTestChunk);
  wanted[11] = 77;
  EXPECT_EQ(LookupIds(wanted).usable_tokens(), 11u);  // with the branch that leaves at 13
}

TEST_F(LookupTest, ByChainHashes) {
  const auto blocks = MakeBlocks(Ids(1, 3 * kTestChunk));
  Put(Open(), {blocks[0], blocks[1]});
  v1::LookupRequest request;
  request.set_fingerprint(fingerprint_);
  for (const TestBlock& block : blocks) request.add_chain_hashes(block.hash());
  const auto called = client_->Lookup(request);
  ASSERT_TRUE(called.status.ok());
  EXPECT_EQ(called.response.blocks_size(), 2);
  EXPECT_EQ(called.response.usable_tokens(), 2 * kTestChunk);
  EXPECT_EQ(called.response.miss_reason(), v1::REASON_NOT_STORED);
  request.add_token_ids(1);
  EXPECT_EQ(client_->Lookup(request).status.code, absl::StatusCode::kInvalidArgument);
}

TEST_F(LookupTest, ALongerChunkSupersedesAShorterOne) {
  const auto shorter = MakeBlocks(Ids(1, kTestChunk + 5));
  const auto longer = MakeBlocks(Ids(1, kTestChunk + 9));
  Put(Open(v1::PRESET_HIGH), shorter);
  Put(Open(v1::PRESET_TINY), longer);  // worse: both stay
  EXPECT_EQ(client_->Stats().response.blocks(), 3u);
  Put(Open(v1::PRESET_HIGH), longer);
  EXPECT_EQ(client_->Stats().response.blocks(), 2u);
  const v1::LookupResponse found = LookupIds(Ids(1, kTestChunk + 5));
  EXPECT_EQ(found.usable_tokens(), kTestChunk + 5);
  EXPECT_EQ(found.blocks(1).block().content_hash(), longer[1].hash());
}

TEST_F(LookupTest, ASessionKeepsItsShorterChunk) {
  const auto shorter = MakeBlocks(Ids(1, 5));
  const auto longer = MakeBlocks(Ids(1, 9));
  Put(Open(v1::PRESET_HIGH, "a"), shorter);
  Put(Open(v1::PRESET_HIGH, "b"), longer);
  EXPECT_EQ(client_->Stats().response.blocks(), 2u);
  // The session's own growth replaces its tail.
  Put(Open(v1::PRESET_HIGH, "a"), longer);
  v1::GetSessionRequest request;
  request.set_name("a");
  const auto session = client_->GetSession(request).response;
  ASSERT_EQ(session.blocks_size(), 1);
  EXPECT_EQ(session.summary().tokens(), 9u);
  EXPECT_EQ(session.summary().missing_blocks(), 0u);
}

TEST_F(LookupTest, QualityBounds) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  Put(Open(v1::PRESET_HIGH), blocks);
  v1::LookupRequest request;
  request.set_fingerprint(fingerprint_);
  for (const uint32_t id : Ids(1, kTestChunk)) request.add_token_ids(id);
  request.mutable_bounds()->set_require_exact(true);
  v1::LookupResponse found = client_->Lookup(request).response;
  EXPECT_EQ(found.usable_tokens(), 0u);
  EXPECT_EQ(found.miss_reason(), v1::REASON_QUALITY_BELOW_BOUND);
  Put(Open(v1::PRESET_EXACT), blocks);
  found = client_->Lookup(request).response;
  EXPECT_EQ(found.usable_tokens(), kTestChunk);
  EXPECT_EQ(found.miss_reason(), v1::REASON_UNSPECIFIED);
}

TEST_F(LookupTest, OtherAndUnknownLayouts) {
  const auto ids = Ids(1, 2 * kTestChunk);
  Put(Open(), MakeBlocks(ids));
  const std::string stored_under = fingerprint_;
  Layout other = layout_;
  other.revision = "2";
  fingerprint_ = Register(other);
  EXPECT_EQ(LookupIds(ids).miss_reason(), v1::REASON_OTHER_LAYOUT);
  EXPECT_EQ(LookupIds(Ids(900, 3)).miss_reason(), v1::REASON_NOT_STORED);
  // Half of it under the new layout: the second chunk is still only under the old one.
  Put(Open(), {MakeBlocks(ids)[0]});
  const v1::LookupResponse half = LookupIds(ids);
  EXPECT_EQ(half.usable_tokens(), kTestChunk);
  EXPECT_EQ(half.miss_reason(), v1::REASON_OTHER_LAYOUT);
  fingerprint_ = std::string(32, 'f');
  EXPECT_EQ(LookupIds(ids).miss_reason(), v1::REASON_UNKNOWN_LAYOUT);
}

TEST_F(LookupTest, NamespacesAndSaltsStayApart) {
  const auto ids = Ids(1, kTestChunk);
  Put(Open(), MakeBlocks(ids));
  Register(layout_, "other");
  v1::LookupRequest request;
  request.set_namespace_("other");
  request.set_fingerprint(fingerprint_);
  request.mutable_token_ids()->Add(ids.begin(), ids.end());
  EXPECT_EQ(client_->Lookup(request).response.usable_tokens(), 0u);
  request.set_namespace_("");
  request.set_salt("lora-7");
  EXPECT_EQ(client_->Lookup(request).response.usable_tokens(), 0u);
  request.set_salt("");
  EXPECT_EQ(client_->Lookup(request).response.usable_tokens(), kTestChunk);
}

TEST_F(LookupTest, ChunkSizeIsTheNamespaces) {
  v1::RegisterLayoutRequest request;
  request.set_chunk_tokens(32);
  auto* plane = request.mutable_layout()->add_layers()->add_planes();
  plane->set_name("s");
  plane->set_role(v1::PLANE_ROLE_OPAQUE);
  plane->set_heads(1);
  plane->set_head_dim(64);
  plane->set_dtype(v1::DTYPE_F16);
  request.mutable_layout()->set_model("m");
  EXPECT_EQ(client_->RegisterLayout(request).status.code, absl::StatusCode::kFailedPrecondition);
  request.set_chunk_tokens(15);
  EXPECT_EQ(client_->RegisterLayout(request).status.code, absl::StatusCode::kInvalidArgument);
  request.set_chunk_tokens(0);
  EXPECT_EQ(client_->RegisterLayout(request).response.chunk_tokens(), kTestChunk);
}

}  // namespace
}  // namespace latticekv::testing
