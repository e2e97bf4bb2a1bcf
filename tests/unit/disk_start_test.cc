// A start on what another process left: it reads, serves, and writes afterwards; and nothing is
// called durable that this process has not seen synced.
#include <errno.h>
#include <gtest/gtest.h>

#include <future>

#include "core/io/fault_file_system.h"
#include "core/io/memory_file_system.h"
#include "core/store/tiered_store.h"

namespace latticekv {
namespace {

constexpr char kDir[] = "/disk";
constexpr size_t kFrameBytes = 10'000;

BlockKey KeyOf(int n) { return Sha256Of(AsBytes(std::to_string(n))); }

ByteVector FrameOf(int n) {
  ByteVector out(kFrameBytes);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(n * 31 + i * 7);
  return out;
}

class DiskStartTest : public ::testing::Test {
 protected:
  DiskStartTest() : faults_(&memory_, 3) {
    options_.memory_bytes = 1 << 20;
    options_.disk_dir = kDir;
    options_.disk_bytes = 16 << 20;
    options_.segment_bytes = 256 << 10;
    options_.file_system = &faults_;
    options_.disk_retry_ms = 20;
  }

  void Open() {
    auto store = TieredStore::Open(options_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  // As kill -9 leaves the files: neither synced nor sealed at the end.
  void Kill() {
    faults_.Fail(FileOp::kSync, EIO);
    faults_.Fail(FileOp::kTruncate, EIO);
    store_.reset();
    faults_.Heal();
  }
  std::future<absl::Status> PutDurable(int n) {
    StoredBlock block;
    block.key = KeyOf(n);
    block.frame = FrameOf(n);
    block.quality_rank = 1;
    block.reservation = *store_->Reserve(TieredStore::EntryBytes(kFrameBytes, 0));
    auto done = std::make_shared<std::promise<absl::Status>>();
    PutOptions options;
    options.durability = Durability::kDurable;
    options.on_durable = [done](const absl::Status& status) { done->set_value(status); };
    EXPECT_TRUE(store_->Put(std::move(block), std::move(options)).ok());
    return done->get_future();
  }
  void Put(int n) {
    StoredBlock block;
    block.key = KeyOf(n);
    block.frame = FrameOf(n);
    block.quality_rank = 1;
    block.reservation = *store_->Reserve(TieredStore::EntryBytes(kFrameBytes, 0));
    EXPECT_TRUE(store_->Put(std::move(block)).ok());
  }
  void ExpectBlock(int n) {
    const StoredBlockPtr block = store_->Get(KeyOf(n));
    ASSERT_NE(block, nullptr) << n;
    ByteVector frame(block->frame_bytes);
    ASSERT_TRUE(block->ReadFrame(0, frame).ok());
    EXPECT_EQ(frame, FrameOf(n)) << n;
  }
  void WaitUntilSettled() {
    while (!store_->Stats().settled) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  // Opens blocks in a segment whose index is whole and was never synced: sealing it failed at the
  // last. The first that is there.
  int OpenAnUnsyncedSegment() {
    for (int attempt = 0; attempt < 20; ++attempt) {
      store_.reset();
      memory_.RemoveDirectory(kDir);
      Open();
      // What nobody waits for is synced a second later.
      EXPECT_TRUE(PutDurable(1000).get().ok());
      faults_.Fail(FileOp::kSync, EIO);
      for (int n = 0; n < 200; ++n) Put(n);  // more than memory and a segment hold
      Kill();
      Open();
      WaitUntilSettled();
      int n = 0;
      while (n < 200 && !store_->Contains(KeyOf(n))) ++n;
      if (store_->Stats().scanned_segments == 0 && n < 200) return n;
    }
    ADD_FAILURE() << "no sync failed where it was to";
    return 0;
  }

  MemoryFileSystem memory_;
  FaultFileSystem faults_;
  StoreOptions options_;
  std::unique_ptr<TieredStore> store_;
};

TEST_F(DiskStartTest, ABusyDiskDelaysNoStart) {
  Open();
  for (int n = 0; n < 10; ++n) ASSERT_TRUE(PutDurable(n).get().ok());
  Kill();
  faults_.HoldWrites();
  Open();
  EXPECT_EQ(store_->Stats().scanned_segments, 1u);
  EXPECT_EQ(store_->Stats().recovered_blocks, 10u);
  for (int n = 0; n < 10; ++n) ExpectBlock(n);
  EXPECT_EQ(store_->Health().state, StoreHealth::State::kOk);
  // New blocks, and those that are there, whose sync by the process before may never have been.
  std::future<absl::Status> fresh = PutDurable(20), there = PutDurable(3);
  EXPECT_EQ(fresh.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  EXPECT_EQ(there.wait_for(std::chrono::milliseconds(0)), std::future_status::timeout);
  EXPECT_FALSE(store_->Stats().settled);
  faults_.Heal();
  EXPECT_TRUE(fresh.get().ok());
  EXPECT_TRUE(there.get().ok());
  EXPECT_TRUE(store_->Stats().settled);
  // It has its index now.
  Kill();
  Open();
  EXPECT_EQ(store_->Stats().scanned_segments, 1u);
  EXPECT_EQ(store_->Stats().recovered_blocks, 11u);
  for (int n = 0; n < 10; ++n) ExpectBlock(n);
  ExpectBlock(20);
}

TEST_F(DiskStartTest, WhatTheProcessBeforeDidNotSyncIsSyncedBeforeItIsCalledDurable) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    options_.file_system = &faults_;
    const int n = OpenAnUnsyncedSegment();
    ASSERT_TRUE(PutDurable(n).get().ok());
    std::mt19937_64 random(seed);
    const auto after = memory_.AfterPowerLoss(random);
    store_.reset();
    options_.file_system = after.get();
    Open();
    ExpectBlock(n);
    store_.reset();
  }
}

TEST_F(DiskStartTest, WhatCannotBeSyncedWhereItLiesIsWrittenElsewhere) {
  const int n = OpenAnUnsyncedSegment();
  faults_.Fail(FileOp::kSync, EIO, 0, 1);
  EXPECT_TRUE(PutDurable(n).get().ok());
  EXPECT_EQ(store_->Stats().disk_errors, 1u);
  EXPECT_EQ(store_->Health().state, StoreHealth::State::kOk);
  std::mt19937_64 random(1);
  const auto after = memory_.AfterPowerLoss(random);
  store_.reset();
  options_.file_system = after.get();
  Open();
  ExpectBlock(n);
  store_.reset();
}

}  // namespace
}  // namespace latticekv
