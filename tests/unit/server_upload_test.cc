// What can go wrong with an upload, and that nothing of it stays.
#include "server/block_metadata.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

class UploadTest : public ServiceFixture {
 protected:
  // A stream whose first block has been announced and credited.
  std::unique_ptr<PutCall> Credited(const TestBlock& block) {
    auto call = client_->PutBlocks();
    call->WriteOpen(Open());
    call->WriteHeader(block.header);
    v1::PutBlocksResponse response;
    EXPECT_TRUE(call->Read(&response));
    EXPECT_TRUE(response.has_credit()) << response.DebugString();
    return call;
  }
  v1::BlockAck NextAck(PutCall& call) {
    v1::PutBlocksResponse response;
    EXPECT_TRUE(call.Read(&response));
    EXPECT_TRUE(response.has_ack()) << response.DebugString();
    return response.ack();
  }
  bool Stored(const TestBlock& block) {
    return engine().store().Peek(engine().KeyOf("default", *DigestFromBytes(block.hash(), ""))) !=
           nullptr;
  }
};

TEST_F(UploadTest, CancelledHalfwayLeavesNothing) {
  const TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  const size_t used = memory_used();
  auto call = Credited(block);
  EXPECT_GT(memory_used(), used);
  call->WritePart(0, 0, block.payload.substr(0, 5000));
  call->Cancel();
  EXPECT_EQ(call->Finish().code, absl::StatusCode::kCancelled);
  WaitUntil([&] { return memory_used() == used; });
  EXPECT_FALSE(Stored(block));
  WaitUntil([&] { return engine().admission().in_flight_bytes() == 0; });
  EXPECT_FALSE(PutOne(Open(), block).has_error());
}

TEST_F(UploadTest, HalfCloseBeforeTheEndFailsTheBlock) {
  const TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  auto call = Credited(block);
  call->WritePart(0, 0, block.payload.substr(0, 5000));
  call->WritesDone();
  EXPECT_EQ(NextAck(*call).error().reason(), v1::REASON_BAD_PAYLOAD);
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_FALSE(Stored(block));
}

TEST_F(UploadTest, BadChecksumFailsTheBlockOnly) {
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  auto call = Credited(blocks[0]);
  v1::PutBlocksRequest request;
  request.mutable_part()->set_data(blocks[0].payload.substr(0, 5000));
  request.mutable_part()->set_crc32c(12345);
  call->Write(request);
  EXPECT_EQ(NextAck(*call).error().reason(), v1::REASON_BAD_PAYLOAD);
  // Parts that were under way are ignored; the next block goes through.
  call->WritePart(0, 5000, blocks[0].payload.substr(5000));
  call->WriteHeader(blocks[1].header);
  v1::PutBlocksResponse response;
  ASSERT_TRUE(call->Read(&response));
  ASSERT_TRUE(response.has_credit()) << response.DebugString();
  call->WritePart(1, 0, blocks[1].payload);
  EXPECT_FALSE(NextAck(*call).has_error());
  EXPECT_FALSE(Stored(blocks[0]));
  EXPECT_TRUE(Stored(blocks[1]));  // a child may come before its parent
}

TEST_F(UploadTest, PartsOutOfOrderOrTooLongFailTheBlock) {
  const TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  auto call = Credited(block);
  call->WritePart(0, 100, block.payload.substr(100, 100));
  EXPECT_NE(NextAck(*call).error().message().find("in order"), std::string::npos);
  call = Credited(block);
  call->WritePart(0, 0, block.payload + "x");
  EXPECT_NE(NextAck(*call).error().message().find("payload bytes"), std::string::npos);
  call = Credited(block);
  call->WritePart(0, 0, "");
  EXPECT_EQ(NextAck(*call).error().reason(), v1::REASON_BAD_PAYLOAD);
  EXPECT_FALSE(Stored(block));
}

TEST_F(UploadTest, ProtocolErrorsEndTheStream) {
  const TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  v1::PutBlocksResponse response;
  auto call = client_->PutBlocks();
  call->WriteHeader(block.header);
  EXPECT_FALSE(call->Read(&response));
  CallStatus status = call->Finish();
  EXPECT_EQ(status.code, absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message.find("open"), std::string::npos);
  EXPECT_EQ(status.detail.message(), status.message);

  call = client_->PutBlocks();
  call->WriteOpen(Open());
  call->WritePart(7, 0, "abc");
  EXPECT_FALSE(call->Read(&response));
  EXPECT_NE(call->Finish().message.find("without a credit"), std::string::npos);

  call = Credited(block);
  call->WriteHeader(block.header);
  EXPECT_FALSE(call->Read(&response));
  EXPECT_NE(call->Finish().message.find("in use"), std::string::npos);

  call = client_->PutBlocks();
  call->Write(v1::PutBlocksRequest());
  EXPECT_FALSE(call->Read(&response));
  EXPECT_EQ(call->Finish().code, absl::StatusCode::kInvalidArgument);

  v1::PutOpen open = Open();
  open.set_fingerprint(std::string(32, 'f'));
  call = client_->PutBlocks();
  call->WriteOpen(open);
  EXPECT_FALSE(call->Read(&response));
  EXPECT_EQ(call->Finish().detail.reason(), v1::REASON_UNKNOWN_LAYOUT);
}

TEST_F(UploadTest, BadHeadersFailTheirBlock) {
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  const auto error = [&](const std::function<void(v1::BlockHeader&)>& change) {
    TestBlock block = blocks[1];
    change(block.header);
    return PutOne(Open(), block).error().message();
  };
  EXPECT_NE(error([](auto& h) { h.set_content_hash("short"); }).find("32"), std::string::npos);
  EXPECT_NE(error([](auto& h) { h.set_token_ids(3, 99); }).find("content_hash"), std::string::npos);
  EXPECT_NE(error([](auto& h) { h.set_start_position(8); }).find("multiple"), std::string::npos);
  EXPECT_NE(error([](auto& h) { h.set_start_position(0); }).find("parent_hash"), std::string::npos);
  EXPECT_NE(error([](auto& h) { h.set_payload_bytes(77); }).find("payload_bytes"),
            std::string::npos);
  EXPECT_NE(error([](auto& h) { h.add_exact_tokens(16); }).find("exact_tokens"), std::string::npos);
  EXPECT_NE(error([](auto& h) { h.set_salt(std::string(300, 's')); }).find("salt"),
            std::string::npos);
  TestBlock longer = blocks[0];
  for (int i = 0; i < 5; ++i) longer.header.add_token_ids(5);
  EXPECT_NE(PutOne(Open(), longer).error().message().find("at most 16"), std::string::npos);
  PutOne(Open(), blocks[0]);
  EXPECT_NE(error([](auto& h) { h.set_start_position(32); }).find("must meet"), std::string::npos);
  EXPECT_FALSE(Stored(blocks[1]));
}

TEST_F(UploadTest, DurableNeedsADisk) {
  const TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  v1::PutOpen open = Open();
  open.set_wait_for(v1::BLOCK_STATE_DURABLE);
  EXPECT_NE(PutOne(open, block).error().message().find("disk tier"), std::string::npos);
  EXPECT_FALSE(Stored(block));
}

TEST_F(UploadTest, ABlockThatCanNeverFitSaysWhatToDo) {
  StartServer([](ServerConfig& config) { config.memory_bytes = 1 << 20; });
  Layout wide = MakeUniformLayout("wide", 8, 8, 128, DType::kF16, {});
  fingerprint_ = Register(wide);
  layout_ = wide;
  const TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  ASSERT_EQ(block.payload.size(), 512u << 10);
  const v1::BlockAck ack = PutOne(Open(), block);
  EXPECT_EQ(ack.error().reason(), v1::REASON_MEMORY_FULL);
  EXPECT_NE(ack.error().message().find("memory"), std::string::npos);
  WaitUntil([&] { return memory_used() == 0; });
}

TEST_F(UploadTest, HeadersBeyondHalfOfTheCapWaitForCredit) {
  StartServer([](ServerConfig& config) { config.memory_bytes = 1 << 20; });
  UploadAdmission& admission = engine().admission();
  const auto blocks = MakeBlocks(Ids(1, 20 * kTestChunk));
  size_t cost;
  {
    const auto call = Credited(blocks[0]);
    cost = admission.in_flight_bytes();
  }
  WaitUntil([&] { return admission.in_flight_bytes() == 0; });
  const size_t granted_at_once = admission.limit_bytes() / cost;
  ASSERT_GT(granted_at_once, 1u);
  ASSERT_LT(granted_at_once, blocks.size());

  const auto call = client_->PutBlocks();
  call->WriteOpen(Open());
  for (const TestBlock& block : blocks) call->WriteHeader(block.header);
  v1::PutBlocksResponse response;
  std::vector<uint32_t> credited;
  while (credited.size() < granted_at_once) {
    ASSERT_TRUE(call->Read(&response));
    ASSERT_TRUE(response.has_credit());
    credited.push_back(response.credit().index());
  }
  EXPECT_EQ(admission.in_flight_bytes(), granted_at_once * cost);
  for (size_t acknowledged = 0; acknowledged < blocks.size();) {
    if (!credited.empty()) {
      call->WritePart(credited.back(), 0, blocks[credited.back()].payload);
      credited.pop_back();
    }
    ASSERT_TRUE(call->Read(&response));
    EXPECT_LE(admission.in_flight_bytes(), admission.limit_bytes());
    if (response.has_credit()) {
      credited.push_back(response.credit().index());
      continue;
    }
    ASSERT_FALSE(response.ack().has_error()) << response.ack().error().message();
    ++acknowledged;
  }
  EXPECT_LE(engine().store().Stats().memory_peak_bytes, 1u << 20);
}

TEST_F(UploadTest, TooManyUnacknowledgedBlocksEndTheStream) {
  const auto blocks = MakeBlocks(Ids(1, 65 * kTestChunk));
  const auto call = client_->PutBlocks();
  call->WriteOpen(Open());
  for (const TestBlock& block : blocks) call->WriteHeader(block.header);
  v1::PutBlocksResponse response;
  while (call->Read(&response)) EXPECT_TRUE(response.has_credit());
  const CallStatus status = call->Finish();
  EXPECT_EQ(status.code, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.detail.reason(), v1::REASON_LIMIT);
  EXPECT_EQ(status.detail.limit(), "kMaxUnackedBlocksPerStream");
  WaitUntil([&] { return memory_used() == 0; });
}

TEST_F(UploadTest, IdleUploadsAreCancelled) {
  ManualClock clock;
  StartServer([&](ServerConfig& config) { config.clock = &clock; });
  const TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  auto call = Credited(block);
  clock.Advance(limits::kUploadIdleTimeoutMs + 1);
  v1::PutBlocksResponse response;
  EXPECT_FALSE(call->Read(&response));
  const CallStatus status = call->Finish();
  EXPECT_EQ(status.code, absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.detail.limit(), "kUploadIdleTimeoutMs");
  WaitUntil([&] { return memory_used() == 0; });
  client_.reset();
  server_.reset();  // before its clock
}

TEST_F(UploadTest, MemoryStaysUnderTheCapWithEviction) {
  StartServer([](ServerConfig& config) { config.memory_bytes = 1 << 20; });
  const auto first = MakeBlocks(Ids(1, kTestChunk));
  PutOne(Open(), first[0]);
  for (uint32_t i = 1; i <= 60; ++i) {
    const auto blocks = MakeBlocks(Ids(i * 1000, 2 * kTestChunk), i);
    for (const auto& ack : Put(Open(), blocks)) {
      EXPECT_FALSE(ack.has_error()) << ack.error().message();
    }
    const GetResult got = GetHashes({blocks[0].hash(), blocks[1].hash()});
    EXPECT_EQ(got.payloads[0], blocks[0].payload);
    EXPECT_EQ(got.payloads[1], blocks[1].payload);
  }
  const auto stats = client_->Stats().response;
  EXPECT_GT(stats.evicted_blocks(), 0u);
  EXPECT_LE(stats.memory_peak_bytes(), stats.memory_capacity_bytes());
  EXPECT_FALSE(Stored(first[0]));
  const GetResult gone = GetHashes({first[0].hash()});
  EXPECT_EQ(gone.opens[0].miss().reason(), v1::REASON_NOT_STORED);
  EXPECT_NE(gone.opens[0].miss().message().find("evicted"), std::string::npos);
}

TEST_F(UploadTest, DrainFinishesBlocksAndRefusesNewOnes) {
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  auto call = Credited(blocks[0]);
  engine().StartDrain();
  call->WriteHeader(blocks[1].header);
  const v1::BlockAck refused = NextAck(*call);
  EXPECT_EQ(refused.error().reason(), v1::REASON_DRAINING);
  call->WritePart(0, 0, blocks[0].payload);
  EXPECT_FALSE(NextAck(*call).has_error());
  v1::PutBlocksResponse response;
  EXPECT_FALSE(call->Read(&response));
  EXPECT_EQ(call->Finish().detail.reason(), v1::REASON_DRAINING);
  EXPECT_TRUE(Stored(blocks[0]));
  server_->Drain();
}

TEST_F(UploadTest, DrainCancelsWhatDoesNotEnd) {
  StartServer([](ServerConfig& config) { config.drain_timeout_ms = 1; });
  const TestBlock block = MakeBlocks(Ids(1, kTestChunk))[0];
  const auto call = Credited(block);
  server_->Drain();
  v1::PutBlocksResponse response;
  EXPECT_FALSE(call->Read(&response));
  EXPECT_FALSE(call->Finish().ok());
  EXPECT_EQ(memory_used(), 0u);
  EXPECT_FALSE(Stored(block));
}

}  // namespace
}  // namespace latticekv::testing
