// How a running server reads from its disk tier: ahead of what it sends, and in nobody's way.
#include <chrono>
#include <climits>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "core/io/memory_file_system.h"
#include "tests/support/service_fixture.h"
#include "tests/support/watched_file_system.h"

namespace latticekv::testing {
namespace {

constexpr auto kLongest = std::chrono::seconds(60);  // before a test gives up

class ServerReadTest : public ServiceFixture {
 protected:
  static constexpr size_t kLayerBytes = 64 << 10;  // of a block; as many bytes of mantissas as of
  static constexpr size_t kLayers = 4;             // the rest, so over half of it on disk

  void SetUp() override {
    ServiceFixture::SetUp();
    layout_ =
        MakeUniformLayout("wide", kLayers, 8, 128, DType::kF16, {RopeStyle::kNeox, 128, 10000.0});
    Restart(16 << 20);
    blocks_ = MakeBlocks(Ids(1, 6 * kTestChunk));
    v1::PutOpen open = Open(v1::PRESET_EXACT, "s");
    open.set_wait_for(v1::BLOCK_STATE_DURABLE);
    for (const v1::BlockAck& ack : Put(open, blocks_)) {
      ASSERT_FALSE(ack.has_error()) << ack.error().message();
    }
    for (const TestBlock& block : blocks_) hashes_.push_back(block.hash());
  }
  void Restart(size_t memory_bytes) {
    StartServer([&](ServerConfig& config) {
      config.memory_bytes = memory_bytes;
      config.disk_dir = "/disk";
      config.disk_bytes = 64 << 20;
      config.file_system = &files_;
      config.codec_threads = 1;
      config.read_threads = 2;
    });
  }
  void TearDown() override {
    files_.Watch({});
    ServiceFixture::TearDown();
  }

  // Holds up reads of at least `bytes` from now on, until `count` of them are under way at once;
  // those after that are not held up.
  void HoldUntil(int count, uint64_t bytes) {
    files_.Watch([this, count, bytes](uint64_t size) {
      if (size < bytes) return;
      std::unique_lock lock(mutex_);
      ++begun_;
      changed_.notify_all();
      changed_.wait_for(lock, kLongest, [&] { return begun_ >= count || released_; });
      if (begun_ < count && !released_) ++given_up_;
    });
  }
  // Holds up the first read of at least `bytes` from now on, and no other.
  void HoldFirst(uint64_t bytes) {
    files_.Watch([this, bytes](uint64_t size) {
      if (size < bytes) return;
      std::unique_lock lock(mutex_);
      if (begun_++ > 0) return;
      if (!changed_.wait_for(lock, kLongest, [&] { return released_; })) ++given_up_;
    });
  }
  void Release() {
    const std::lock_guard lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }
  void WaitForRead() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kLongest, [&] { return begun_ > 0; }));
  }
  void ExpectPayloads(const GetResult& got, uint32_t layers = kLayers) const {
    ASSERT_TRUE(got.status.ok()) << got.status.message;
    ASSERT_EQ(got.payloads.size(), blocks_.size());
    for (size_t i = 0; i < blocks_.size(); ++i) {
      EXPECT_EQ(got.payloads[i].substr(0, layers * kLayerBytes),
                blocks_[i].payload.substr(0, layers * kLayerBytes))
          << i;
    }
  }

  MemoryFileSystem disk_;
  WatchedFileSystem files_{&disk_};
  std::vector<TestBlock> blocks_;
  std::vector<std::string> hashes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int begun_ = 0, given_up_ = 0;
  bool released_ = false;
};

// The first part that is sent is of the first block: while its read is held up nothing is.
TEST_F(ServerReadTest, TheNextBlockIsReadBeforeTheFirstIsSent) {
  Restart(16 << 20);
  HoldUntil(2, kLayers * kLayerBytes / 2);  // whole blocks
  ExpectPayloads(GetHashes(hashes_));
  EXPECT_GE(begun_, 6);
  EXPECT_EQ(given_up_, 0) << "a block was read only after the one before it";
}

// All layers of the blocks that are there come while one block is still read.
TEST_F(ServerReadTest, UnorderedLayersDoNotWaitForABlockThatIsStillRead) {
  Restart(16 << 20);
  HoldFirst(kLayers * kLayerBytes / 2);
  v1::GetBlocksRequest request;
  request.set_session("s");
  request.set_unordered_layers(true);
  auto call = client_->GetBlocks(request);
  std::vector<std::string> payloads(blocks_.size());
  size_t bytes = 0;
  v1::GetBlocksResponse response;
  while (call->Read(&response)) {
    if (!response.has_part()) continue;
    const v1::GetPart& part = response.part();
    ASSERT_LT(part.index(), payloads.size());
    EXPECT_EQ(part.offset(), payloads[part.index()].size()) << "a block's layers out of order";
    payloads[part.index()] += part.data();
    bytes += part.data().size();
    if (bytes == (blocks_.size() - 1) * kLayers * kLayerBytes) Release();
  }
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_EQ(given_up_, 0) << "nothing came while a block was read";
  for (size_t i = 0; i < blocks_.size(); ++i) EXPECT_EQ(payloads[i], blocks_[i].payload) << i;
}

TEST_F(ServerReadTest, UnorderedLayersWithoutMemoryForWholeBlocks) {
  Restart(1 << 20);
  v1::GetBlocksRequest request;
  request.set_session("s");
  request.set_unordered_layers(true);
  ExpectPayloads(Get(request));
  request.set_layer_count(3);
  ExpectPayloads(Get(request), 3);
  EXPECT_LE(engine().store().Stats().memory_peak_bytes, 1u << 20);
}

TEST_F(ServerReadTest, LayersAreReadAheadToo) {
  Restart(16 << 20);
  HoldUntil(2, kLayerBytes / 2);
  v1::GetBlocksRequest request;
  request.set_session("s");
  request.set_layer_count(2);
  ExpectPayloads(Get(request), 2);
  EXPECT_GE(begun_, 12);
  EXPECT_EQ(given_up_, 0) << "a layer was read only after the one before it";
}

// Without memory to bring them into, whole blocks are read by layers.
TEST_F(ServerReadTest, BlocksThatDoNotFitIntoMemoryAreReadAheadByLayers) {
  Restart(1 << 20);
  HoldUntil(2, kLayerBytes / 2);
  ExpectPayloads(GetHashes(hashes_));
  EXPECT_GE(begun_, 5 * 4);  // one block fits
  EXPECT_EQ(given_up_, 0);
  EXPECT_LE(engine().store().Stats().memory_peak_bytes, 1u << 20);
}

TEST_F(ServerReadTest, AGetThatWaitsForTheDiskHoldsUpNoOther) {
  Restart(16 << 20);
  const auto others = MakeBlocks(Ids(5000, 2 * kTestChunk));
  for (const TestBlock& block : others) ASSERT_FALSE(PutOne(Open(), block).has_error());
  HoldUntil(INT_MAX, kLayers * kLayerBytes / 2);
  GetResult slow;
  std::thread reader([&] { slow = GetHashes(hashes_); });
  WaitForRead();
  // The one thread that decodes is not where the first get waits.
  const GetResult quick = GetHashes({others[0].hash(), others[1].hash()});
  ASSERT_TRUE(quick.status.ok()) << quick.status.message;
  EXPECT_EQ(quick.payloads[1], others[1].payload);
  EXPECT_EQ(given_up_, 0);
  Release();
  reader.join();
  ExpectPayloads(slow);
}

TEST_F(ServerReadTest, WhatRequestsBringIntoMemoryTogetherIsLimited) {
  Restart(16 << 20);
  const size_t half = engine().promotions().capacity();
  EXPECT_EQ(half, size_t{8} << 20);
  Reservation others;
  ASSERT_TRUE(engine().promotions().TryReserve(half, &others));
  ExpectPayloads(GetHashes(hashes_));
  EXPECT_EQ(engine().store().Stats().promoted_blocks, 0u);
  others.Release();
  ExpectPayloads(GetHashes(hashes_));
  EXPECT_EQ(engine().store().Stats().promoted_blocks, 6u);
  WaitUntil([&] { return engine().promotions().used() == 0; });
}

TEST_F(ServerReadTest, AClientThatGoesAwayLeavesNothingBehind) {
  Restart(16 << 20);
  HoldUntil(INT_MAX, kLayers * kLayerBytes / 2);
  v1::GetBlocksRequest request;
  request.set_session("s");
  auto call = client_->GetBlocks(request);
  WaitForRead();
  call->Cancel();
  EXPECT_FALSE(call->Finish().ok());
  Release();
  WaitUntil([&] { return engine().metrics().open_streams == 0; });
  WaitUntil([&] { return engine().promotions().used() == 0; });
  files_.Watch({});
  ExpectPayloads(GetHashes(hashes_));
}

}  // namespace
}  // namespace latticekv::testing
