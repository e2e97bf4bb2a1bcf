// The disk tier: what goes there, what comes back, and what a disk that fails does.
#include <errno.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <map>
#include <thread>

#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/mutex.h"
#include "core/io/fault_file_system.h"
#include "core/io/memory_file_system.h"
#include "core/store/segment_format.h"
#include "core/store/tiered_store.h"
#include "tests/support/temp_dir.h"

namespace latticekv {
namespace {

BlockKey KeyOf(int n) { return Sha256Of(AsBytes(std::to_string(n))); }

ByteVector FrameOf(int n, size_t bytes) {
  ByteVector out(bytes);
  for (size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>(n * 31 + i * 7 + (i >> 8));
  return out;
}

enum class Backend { kMemory, kPosix, kUring };

// Runs on the in-memory twin and on the real disk in both ways.
class DiskStoreTest : public ::testing::TestWithParam<Backend> {
 protected:
  DiskStoreTest()
      : base_(GetParam() == Backend::kMemory  ? &memory_
              : GetParam() == Backend::kPosix ? FileSystem::Posix()
                                              : FileSystem::Uring()),
        dir_(GetParam() == Backend::kMemory ? "/disk" : real_.File("disk")),
        faults_(base_, 7) {
    options_.memory_bytes = 1 << 20;
    options_.disk_dir = dir_;
    options_.disk_bytes = 16 << 20;
    options_.segment_bytes = 256 << 10;
    options_.clock = &clock_;
    options_.file_system = &faults_;
    options_.disk_retry_ms = 20;
  }

  void SetUp() override {
    if (base_ == nullptr) GTEST_SKIP() << "there is no io_uring here";
  }

  void Open() {
    store_.reset();
    auto store = TieredStore::Open(options_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    store_->SetRemovalListener([this](const BlockKey& key, RemovalReason reason) {
      MutexLock lock(mutex_);
      removed_[key] = reason;
    });
  }

  absl::Status Put(int n, size_t bytes = 10'000, uint32_t rank = 1, std::optional<int> parent = {},
                   bool durable = false) {
    const ByteVector metadata = FrameOf(n + 1, 100);
    auto reservation = store_->Reserve(TieredStore::EntryBytes(bytes, metadata.size()));
    if (!reservation.ok()) return reservation.status();
    StoredBlock block;
    block.key = KeyOf(n);
    if (parent) block.parent = KeyOf(*parent);
    block.frame = FrameOf(n + static_cast<int>(rank) * 1000, bytes);
    block.metadata = metadata;
    block.quality_rank = rank;
    block.reservation = *std::move(reservation);
    PutOptions options;
    auto done = std::make_shared<std::promise<absl::Status>>();
    if (durable) {
      options.durability = Durability::kDurable;
      options.on_durable = [done](const absl::Status& status) { done->set_value(status); };
    }
    const auto put = store_->Put(std::move(block), std::move(options));
    if (!put.ok()) return put.status();
    return durable ? done->get_future().get() : absl::OkStatus();
  }
  absl::Status PutDurable(int n, size_t bytes = 10'000) { return Put(n, bytes, 1, {}, true); }

  // The block is there and right.
  void ExpectBlock(int n, size_t bytes = 10'000, uint32_t rank = 1) {
    const StoredBlockPtr block = store_->Get(KeyOf(n));
    ASSERT_NE(block, nullptr) << n;
    ExpectContents(*block, n, bytes, rank);
  }
  void ExpectContents(const StoredBlock& block, int n, size_t bytes = 10'000, uint32_t rank = 1) {
    EXPECT_EQ(block.quality_rank, rank);
    EXPECT_EQ(block.metadata, FrameOf(n + 1, 100));
    EXPECT_EQ(block.frame_bytes, bytes);
    ByteVector frame(block.frame_bytes);
    ASSERT_TRUE(block.ReadFrame(0, frame).ok());
    EXPECT_EQ(frame, FrameOf(n + static_cast<int>(rank) * 1000, bytes)) << n;
  }

  std::string SegmentPath(uint32_t id) { return JoinPath(dir_, SegmentFileName(id)); }
  ByteVector Contents(const std::string& path) {
    const auto file = base_->Open(path, OpenMode::kRead);
    EXPECT_TRUE(file.ok()) << file.status();
    ByteVector out(*(*file)->Size());
    EXPECT_EQ(*(*file)->ReadAt(0, out), out.size());
    return out;
  }
  void SetContents(const std::string& path, const ByteVector& bytes) {
    const auto file = base_->Open(path, OpenMode::kReadWrite);
    EXPECT_TRUE((*file)->Truncate(bytes.size()).ok());
    EXPECT_TRUE((*file)->WriteAt(0, bytes).ok());
  }
  // What a power loss or a small disk does is known of the twin only.
  bool OnMemory() const { return GetParam() == Backend::kMemory; }
  // Without a deadline of its own: ctest has one, and a real disk may take its time.
  void WaitForHealth(StoreHealth::State state) {
    while (store_->Health().state != state) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  std::optional<RemovalReason> RemovedBecause(int n) {
    MutexLock lock(mutex_);
    const auto it = removed_.find(KeyOf(n));
    return it == removed_.end() ? std::nullopt : std::optional(it->second);
  }

  MemoryFileSystem memory_;
  const testing::TempDir real_;
  FileSystem* const base_;
  const std::string dir_;
  FaultFileSystem faults_;
  ManualClock clock_;
  StoreOptions options_;
  Mutex mutex_;
  std::map<BlockKey, RemovalReason> removed_;
  std::unique_ptr<TieredStore> store_;
};

TEST_P(DiskStoreTest, BlocksLeaveMemoryForDiskAndComeBack) {
  Open();
  for (int n = 0; n < 400; ++n) ASSERT_TRUE(Put(n).ok()) << n;
  EXPECT_TRUE(removed_.empty());
  StoreStats stats = store_->Stats();
  EXPECT_EQ(stats.blocks, 400u);
  EXPECT_EQ(stats.evicted_blocks, 0u);
  EXPECT_GT(stats.evicted_to_disk, 250u);
  EXPECT_LE(stats.memory_peak_bytes, stats.memory_capacity_bytes);
  const StoredBlockPtr peeked = store_->Peek(KeyOf(0));
  ASSERT_NE(peeked, nullptr);
  EXPECT_EQ(peeked->tier(), Tier::kDisk);
  EXPECT_TRUE(peeked->frame.empty());
  ByteVector part(100);
  ASSERT_TRUE(peeked->ReadFrame(5000, part).ok());
  const ByteVector whole = FrameOf(1000, 10'000);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 5000));
  EXPECT_FALSE(peeked->ReadFrame(9'901, part).ok());
  for (int n = 0; n < 400; ++n) ExpectBlock(n);
  EXPECT_EQ(store_->Get(KeyOf(1000)), nullptr);
  stats = store_->Stats();
  EXPECT_EQ(stats.blocks, 400u);
  EXPECT_EQ(stats.hits, 400u);
  EXPECT_EQ(stats.misses, 1u);
  EXPECT_GT(stats.promoted_blocks, 250u);
  EXPECT_EQ(stats.corrupt_dropped, 0u);
}

TEST_P(DiskStoreTest, EverythingSurvivesARestart) {
  Open();
  for (int n = 0; n < 50; ++n) {
    ASSERT_TRUE(Put(n, 1000 + n * 100, 1, n > 0 ? std::optional(n - 1) : std::nullopt).ok());
  }
  ASSERT_TRUE(store_->Pin(KeyOf(3), 0).ok());
  ASSERT_TRUE(store_->Pin(KeyOf(3), 5'000).ok());
  ASSERT_TRUE(store_->SetTtl(KeyOf(4), 10'000).ok());
  ASSERT_TRUE(store_->Delete(KeyOf(49)));
  Open();
  EXPECT_EQ(store_->Stats().recovered_blocks, 49u);
  EXPECT_EQ(store_->Stats().blocks, 49u);
  for (int n = 0; n < 49; ++n) ExpectBlock(n, 1000 + n * 100);
  EXPECT_EQ(store_->Get(KeyOf(49)), nullptr);
  EXPECT_TRUE(store_->HasChildren(KeyOf(7)));
  ASSERT_EQ(store_->Children(KeyOf(7)).size(), 1u);
  EXPECT_EQ(store_->Children(KeyOf(7))[0]->key, KeyOf(8));
  EXPECT_FALSE(store_->HasChildren(KeyOf(48)));
  EXPECT_TRUE(store_->IsPinned(KeyOf(3)));
  // On disk now: changes go there, and last.
  ASSERT_TRUE(store_->Unpin(KeyOf(3)).ok());
  ASSERT_TRUE(store_->Pin(KeyOf(5), 20'000).ok());
  ASSERT_TRUE(store_->SetTtl(KeyOf(6), 30'000).ok());
  ASSERT_TRUE(store_->Delete(KeyOf(7)));
  Open();
  EXPECT_TRUE(store_->IsPinned(KeyOf(3)));
  EXPECT_TRUE(store_->IsPinned(KeyOf(5)));
  EXPECT_FALSE(store_->Contains(KeyOf(7)));
  EXPECT_TRUE(store_->Contains(KeyOf(4)));
  clock_.Advance(10'000);
  EXPECT_FALSE(store_->Contains(KeyOf(4)));
  EXPECT_FALSE(store_->IsPinned(KeyOf(3)));
  EXPECT_TRUE(store_->IsPinned(KeyOf(5)));
  clock_.Advance(10'000);
  EXPECT_FALSE(store_->IsPinned(KeyOf(5)));
  Open();
  EXPECT_TRUE(store_->Contains(KeyOf(6)));
  clock_.Advance(10'000);
  EXPECT_FALSE(store_->Contains(KeyOf(6)));
  EXPECT_EQ(store_->Stats().corrupt_dropped, 0u);
}

TEST_P(DiskStoreTest, ABetterBlockReplacesTheOneOnDiskAndStaysAfterARestart) {
  Open();
  ASSERT_TRUE(Put(1, 5000, 1).ok());
  Open();
  ASSERT_TRUE(Put(1, 6000, 1).ok());  // not better
  ExpectBlock(1, 5000, 1);
  Open();
  ASSERT_TRUE(Put(1, 7000, 2).ok());
  ExpectBlock(1, 7000, 2);
  Open();
  ExpectBlock(1, 7000, 2);
  EXPECT_EQ(store_->Stats().blocks, 1u);
  ASSERT_TRUE(store_->Delete(KeyOf(1)));
  Open();
  EXPECT_EQ(store_->Get(KeyOf(1)), nullptr);
  ASSERT_TRUE(Put(1, 3000, 1).ok());
  Open();
  ExpectBlock(1, 3000, 1);
}

TEST_P(DiskStoreTest, DurableBlocksOutliveAPowerLoss) {
  if (!OnMemory()) GTEST_SKIP() << "for the in-memory twin";
  std::mt19937_64 random(5);
  Open();
  for (int n = 0; n < 60; ++n) ASSERT_TRUE(PutDurable(n).ok());
  ASSERT_TRUE(PutDurable(7).ok());  // there already
  EXPECT_GE(store_->Stats().durable_blocks, 61u);
  const auto after = memory_.AfterPowerLoss(random);
  options_.file_system = after.get();
  Open();
  for (int n = 0; n < 60; ++n) ExpectBlock(n);
  EXPECT_EQ(store_->Stats().corrupt_dropped, 0u);
  store_.reset();
}

TEST_P(DiskStoreTest, ManyDurablePutsShareASync) {
  Open();
  constexpr int kPuts = 64;
  std::atomic<int> acknowledged{0};
  for (int n = 0; n < kPuts; ++n) {
    StoredBlock block;
    block.key = KeyOf(n);
    block.frame = FrameOf(n, 1000);
    block.reservation = *store_->Reserve(TieredStore::EntryBytes(1000, 0));
    PutOptions options;
    options.durability = Durability::kDurable;
    options.on_durable = [&](const absl::Status& status) {
      EXPECT_TRUE(status.ok()) << status;
      ++acknowledged;
    };
    ASSERT_TRUE(store_->Put(std::move(block), std::move(options)).ok());
  }
  ASSERT_TRUE(store_->Flush().ok());
  EXPECT_EQ(acknowledged, kPuts);
  EXPECT_EQ(store_->Stats().durable_blocks, static_cast<uint64_t>(kPuts));
}

TEST_P(DiskStoreTest, TheDisksCapHoldsAndColdBlocksGo) {
  options_.disk_bytes = 2 << 20;
  Open();
  for (int n = 0; n < 1000; ++n) ASSERT_TRUE(Put(n).ok()) << n;
  ASSERT_TRUE(store_->Flush().ok());
  const StoreStats stats = store_->Stats();
  EXPECT_LE(stats.disk_peak_bytes, options_.disk_bytes);
  EXPECT_LE(memory_.used_bytes(), options_.disk_bytes);
  EXPECT_GT(stats.reclaimed_segments, 10u);
  EXPECT_GT(stats.disk_evicted_blocks, 500u);
  EXPECT_EQ(stats.lost_blocks, 0u);
  ExpectBlock(999);
  for (int n = 0; n < 1000; ++n) {
    if (const StoredBlockPtr block = store_->Get(KeyOf(n))) ExpectContents(*block, n);
  }
  // What is not there was reported, and what is there is counted: when the writer has ended what
  // the reads made it write.
  uint64_t present;
  const auto accounted_for = [&] {
    present = 0;
    for (int n = 0; n < 1000; ++n) {
      const bool there = store_->Contains(KeyOf(n));
      if (there == RemovedBecause(n).has_value()) return false;
      present += there ? 1 : 0;
    }
    return present == store_->Stats().blocks;
  };
  while (!accounted_for()) std::this_thread::yield();
  EXPECT_GT(present, 100u);
  // Memory and disk together held more than the disk alone can.
  Open();
  EXPECT_LE(store_->Stats().blocks, present);
  EXPECT_GT(store_->Stats().blocks, 100u);
  EXPECT_LE(store_->Stats().disk_used_bytes, options_.disk_bytes);
}

TEST_P(DiskStoreTest, PinnedBlocksOutliveReclaim) {
  options_.disk_bytes = 2 << 20;
  Open();
  for (int n = 0; n < 20; ++n) {
    ASSERT_TRUE(Put(n).ok());
    ASSERT_TRUE(store_->Pin(KeyOf(n), 0).ok());
  }
  ASSERT_TRUE(Put(20).ok());
  ASSERT_TRUE(store_->Delete(KeyOf(20)));
  for (int n = 100; n < 1000; ++n) ASSERT_TRUE(Put(n).ok()) << n;
  for (int n = 0; n < 20; ++n) ExpectBlock(n);
  Open();
  for (int n = 0; n < 20; ++n) {
    EXPECT_TRUE(store_->IsPinned(KeyOf(n)));
    ExpectBlock(n);
  }
  EXPECT_FALSE(store_->Contains(KeyOf(20)));
}

TEST_P(DiskStoreTest, ABlockThatSeveralThreadsAskForIsReadOnce) {
  Open();
  for (int n = 0; n < 50; ++n) ASSERT_TRUE(Put(n).ok());
  Open();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int n = 0; n < 60; ++n) {
        const StoredBlockPtr block = store_->Get(KeyOf(n));
        EXPECT_EQ(block != nullptr, n < 50) << n;
        if (block) {
          EXPECT_EQ(block->tier(), Tier::kMemory);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->Stats().promoted_blocks, 50u);
  EXPECT_EQ(store_->Stats().hits, 200u);
  EXPECT_EQ(store_->Stats().misses, 40u);
}

TEST_P(DiskStoreTest, ListGoesThroughBothTiersInOrder) {
  Open();
  for (int n = 0; n < 300; ++n) ASSERT_TRUE(Put(n).ok());
  std::set<BlockKey> expected;
  for (int n = 0; n < 300; ++n) expected.insert(KeyOf(n));
  std::vector<BlockKey> seen;
  std::optional<BlockKey> after;
  for (;;) {
    size_t page = 0;
    store_->List(after, 37, [&](const StoredBlockPtr& block) {
      seen.push_back(block->key);
      ++page;
      return true;
    });
    if (page < 37) break;
    after = seen.back();
  }
  EXPECT_EQ(seen, std::vector<BlockKey>(expected.begin(), expected.end()));
}

TEST_P(DiskStoreTest, TwoStoresCannotOpenOneDirectory) {
  Open();
  const auto second = TieredStore::Open(options_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(DiskStoreTest, AnUnknownFormatVersionIsRefused) {
  Open();
  ASSERT_TRUE(PutDurable(1).ok());
  store_.reset();
  ByteVector bytes = Contents(SegmentPath(1));
  StoreLe<uint32_t>(bytes.data() + 8, 2);
  StoreLe<uint32_t>(bytes.data() + 60, Crc32c(ByteSpan(bytes).first(60)));
  SetContents(SegmentPath(1), bytes);
  const auto store = TieredStore::Open(options_);
  EXPECT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(store.status().message().find("version 2"), std::string::npos) << store.status();
}

TEST_P(DiskStoreTest, DamageCostsOnlyItsOwnRecord) {
  Open();
  for (int n = 0; n < 10; ++n) ASSERT_TRUE(PutDurable(n).ok());
  store_.reset();
  ByteVector bytes = Contents(SegmentPath(1));
  // In the middle of the fourth record's frame, and the fifth's header.
  const uint64_t record = (128 + 100 + 10'000 + 63) / 64 * 64;
  bytes[64 + 3 * record + 5000] ^= std::byte{1};
  bytes[64 + 4 * record + 20] ^= std::byte{1};
  SetContents(SegmentPath(1), bytes);
  Open();
  EXPECT_EQ(store_->Stats().recovered_blocks, 10u);
  for (int n = 0; n < 10; ++n) {
    if (n == 3 || n == 4) {
      EXPECT_EQ(store_->Get(KeyOf(n)), nullptr);
      EXPECT_EQ(removed_.at(KeyOf(n)), RemovalReason::kCorrupt);
    } else {
      ExpectBlock(n);
    }
  }
  EXPECT_EQ(store_->Stats().corrupt_dropped, 2u);
  // Without the index, too.
  Open();
  store_.reset();
  bytes.resize(bytes.size() - 1);
  SetContents(SegmentPath(1), bytes);
  Open();
  for (int n = 0; n < 10; ++n) {
    if (n != 3 && n != 4) ExpectBlock(n);
  }
  EXPECT_FALSE(store_->Contains(KeyOf(3)));
  EXPECT_FALSE(store_->Contains(KeyOf(4)));
}

TEST_P(DiskStoreTest, ScrubDropsWhatIsDamaged) {
  Open();
  for (int n = 0; n < 60; ++n) ASSERT_TRUE(PutDurable(n).ok());
  auto report = store_->Scrub({}, nullptr);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->records, 60u);
  EXPECT_EQ(report->corrupt, 0u);
  Open();
  ByteVector bytes = Contents(SegmentPath(1));
  bytes[64 + 5000] ^= std::byte{1};
  SetContents(SegmentPath(1), bytes);
  report = store_->Scrub({}, nullptr);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->corrupt, 1u);
  EXPECT_FALSE(store_->Contains(KeyOf(0)));
  EXPECT_EQ(removed_.at(KeyOf(0)), RemovalReason::kCorrupt);
  EXPECT_EQ(store_->Stats().corrupt_dropped, 1u);
  for (int n = 1; n < 60; ++n) ExpectBlock(n);
  EXPECT_FALSE(store_->Scrub({}, [](const ScrubReport&) { return false; })->records >= 60);
}

TEST_P(DiskStoreTest, AFailedSyncIsNeverAcknowledgedAndIsWrittenElsewhere) {
  if (!OnMemory()) GTEST_SKIP() << "for the in-memory twin";
  Open();
  ASSERT_TRUE(PutDurable(1).ok());
  faults_.Fail(FileOp::kSync, EIO, 0, 1);
  EXPECT_TRUE(PutDurable(2).ok());  // in another segment
  EXPECT_EQ(store_->Health().state, StoreHealth::State::kOk);
  EXPECT_EQ(store_->Stats().disk_errors, 1u);
  std::mt19937_64 random(9);
  const auto after = memory_.AfterPowerLoss(random);
  options_.file_system = after.get();
  Open();
  ExpectBlock(1);
  ExpectBlock(2);
  store_.reset();
}

TEST_P(DiskStoreTest, ADiskThatFailsLeavesMemoryOnlyAndComesBack) {
  Open();
  ASSERT_TRUE(PutDurable(1).ok());
  ASSERT_TRUE(store_->Pin(KeyOf(1), 0).ok());  // a full disk evicts
  for (const FileOp op : {FileOp::kWrite, FileOp::kSync, FileOp::kCreate}) {
    for (const int error : {EIO, ENOSPC, EROFS}) {
      faults_.Fail(op, error);
      if (op == FileOp::kCreate) faults_.Fail(FileOp::kWrite, error);
      const absl::Status status = PutDurable(2 + static_cast<int>(op) * 1000 + error);
      EXPECT_FALSE(status.ok());
      WaitForHealth(StoreHealth::State::kMemoryOnly);
      EXPECT_NE(store_->Health().reason.find("memory only"), std::string::npos);
      ExpectBlock(2 + static_cast<int>(op) * 1000 + error);           // from memory
      for (int n = 200; n < 400; ++n) ASSERT_TRUE(Put(n).ok()) << n;  // and goes on serving
      faults_.Heal();
      WaitForHealth(StoreHealth::State::kOk);
      ASSERT_TRUE(PutDurable(500).ok());
      ASSERT_TRUE(store_->Delete(KeyOf(500)));
    }
  }
  ExpectBlock(1);
  Open();
  ExpectBlock(1);
  EXPECT_FALSE(store_->Contains(KeyOf(500)));
}

TEST_P(DiskStoreTest, AReadOnlyDiskIsServedFrom) {
  Open();
  for (int n = 0; n < 20; ++n) ASSERT_TRUE(Put(n).ok());
  store_.reset();
  faults_.MakeReadOnly();
  Open();
  WaitForHealth(StoreHealth::State::kMemoryOnly);
  for (int n = 0; n < 20; ++n) ExpectBlock(n);
  ASSERT_TRUE(Put(30).ok());
  EXPECT_EQ(PutDurable(31).code(), absl::StatusCode::kUnavailable);
  ExpectBlock(30);
  faults_.Heal();
  WaitForHealth(StoreHealth::State::kOk);
  EXPECT_TRUE(PutDurable(31).ok());
}

TEST_P(DiskStoreTest, AFullDiskKeepsServing) {
  if (!OnMemory()) GTEST_SKIP() << "for the in-memory twin";
  memory_.set_capacity_bytes(1 << 20);
  Open();
  for (int n = 0; n < 600; ++n) ASSERT_TRUE(Put(n).ok()) << n;
  EXPECT_TRUE(PutDurable(600).ok());
  EXPECT_LE(memory_.used_bytes(), 1u << 20);
  ExpectBlock(600);
  ExpectBlock(599);
  EXPECT_GT(store_->Stats().reclaimed_segments, 0u);
}

TEST_P(DiskStoreTest, ADirectoryThatIsRemovedIsNoticedAndTakenAgain) {
  if (OnMemory()) GTEST_SKIP() << "for real directories";
  Open();
  for (int n = 0; n < 20; ++n) ASSERT_TRUE(PutDurable(n).ok());
  Open();
  ExpectBlock(3);  // in memory again
  // By another name first: the store notices a file that has gone, and must not find the others, or
  // make new ones, while they are being removed.
  const std::string gone = dir_ + ".gone";
  std::filesystem::rename(dir_, gone);
  std::filesystem::remove_all(gone);
  EXPECT_EQ(PutDurable(40).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(store_->Health().state, StoreHealth::State::kMemoryOnly);
  // All of them, if it had noticed the first one already.
  for (int n = 0; n < 20; ++n) {
    while (n != 3 && !RemovedBecause(n)) std::this_thread::yield();
  }
  ExpectBlock(40);
  ExpectBlock(3);
  EXPECT_EQ(store_->Get(KeyOf(5)), nullptr);
  EXPECT_EQ(RemovedBecause(5), RemovalReason::kLost);
  EXPECT_EQ(store_->Stats().lost_blocks, 19u);
  std::filesystem::create_directories(dir_);
  WaitForHealth(StoreHealth::State::kOk);
  EXPECT_TRUE(PutDurable(41).ok());
  Open();
  ExpectBlock(3);  // written again
  ExpectBlock(40);
  ExpectBlock(41);
}

TEST_P(DiskStoreTest, BlocksLargerThanASegmentGetTheirOwn) {
  options_.memory_bytes = 4 << 20;
  Open();
  ASSERT_TRUE(PutDurable(1, 1 << 20).ok());
  ASSERT_TRUE(PutDurable(2, 100).ok());
  Open();
  ExpectBlock(1, 1 << 20);
  ExpectBlock(2, 100);
}

TEST_P(DiskStoreTest, TheIndexTakesAtMost64BytesABlock) {
  if (!OnMemory()) GTEST_SKIP() << "for the in-memory twin";
  options_.memory_bytes = 8 << 20;
  options_.disk_bytes = 64 << 20;
  options_.segment_bytes = 1 << 20;
  Open();
  constexpr int kBlocks = 10'000;
  // A chain for every ten blocks; small frames, so that there are many.
  for (int n = 0; n < kBlocks; ++n) {
    ASSERT_TRUE(Put(n, 16, 1, n % 10 == 0 ? std::nullopt : std::optional(n - 1)).ok());
  }
  Open();
  const StoreStats stats = store_->Stats();
  EXPECT_EQ(stats.disk_blocks, static_cast<uint64_t>(kBlocks));
  EXPECT_LE(stats.disk_index_bytes, uint64_t{64} * kBlocks);
  printf("%.1f bytes of index a block\n", static_cast<double>(stats.disk_index_bytes) / kBlocks);
}

// What a layer costs: reading one part of a block reads that part alone.
TEST_P(DiskStoreTest, PartsOfABlockAreReadByThemselves) {
  options_.memory_bytes = 4 << 20;
  Open();
  ASSERT_TRUE(PutDurable(1, 1 << 20).ok());
  Open();
  const StoredBlockPtr block = store_->Peek(KeyOf(1));
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(block->tier(), Tier::kDisk);
  const uint64_t described = store_->Stats().disk_read_bytes;
  EXPECT_LE(described, 8192u);
  ByteVector part(1000);
  ASSERT_TRUE(block->ReadFrame(500'000, part).ok());
  EXPECT_EQ(store_->Stats().disk_read_bytes - described, 1000u);
  const ByteVector whole = FrameOf(1001, 1 << 20);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 500'000));
  // The frame's beginning came along with the description.
  const ByteVector head = block->source->TakeHead();
  ASSERT_GT(head.size(), 4096u);
  EXPECT_TRUE(std::equal(head.begin(), head.end(), whole.begin()));
  EXPECT_TRUE(block->source->TakeHead().empty());
}

TEST_P(DiskStoreTest, ManyDescriptionsAtOnce) {
  options_.memory_bytes = 8 << 20;
  Open();
  std::vector<BlockKey> keys;
  for (int n = 0; n < 400; ++n) {
    if (n % 7 != 0) {
      ASSERT_TRUE(Put(n, 100 + n * 30).ok());
    }
    keys.push_back(KeyOf(n));
  }
  Open();
  for (int n = 0; n < 20; ++n) store_->Get(KeyOf(n));
  const std::vector<StoredBlockPtr> found = store_->PeekMany(keys);
  ASSERT_EQ(found.size(), keys.size());
  for (int n = 0; n < 400; ++n) {
    ASSERT_EQ(found[n] != nullptr, n % 7 != 0) << n;
    if (!found[n]) continue;
    EXPECT_EQ(found[n]->key, KeyOf(n));
    EXPECT_EQ(found[n]->metadata, FrameOf(n + 1, 100));
    EXPECT_EQ(found[n]->tier(), n < 20 ? Tier::kMemory : Tier::kDisk);
  }
  std::set<BlockKey> visited;
  uint32_t cursor = 0;
  do {
    cursor = store_->VisitDisk(cursor, 50, [&](const StoredBlockPtr& block) {
      EXPECT_TRUE(visited.insert(block->key).second);
    });
  } while (cursor != 0);
  EXPECT_EQ(visited.size(), store_->Stats().blocks);
}

TEST_P(DiskStoreTest, ScrubKeepsToItsRate) {
  Open();
  for (int n = 0; n < 40; ++n) ASSERT_TRUE(PutDurable(n).ok());
  ScrubOptions options;
  options.bytes_per_second = 1 << 20;
  const auto start = std::chrono::steady_clock::now();
  const auto report = store_->Scrub(options, nullptr);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->records, 40u);
  EXPECT_GE(report->bytes, 400'000u);
  EXPECT_GE(took.count(), static_cast<double>(report->bytes) / (1 << 20));
}

// Segments are allocated ahead; what others need of the file system stays free.
TEST_P(DiskStoreTest, SegmentsLeaveRoomOnASmallDisk) {
  if (!OnMemory()) GTEST_SKIP() << "for the in-memory twin";
  constexpr uint64_t kSmall = 4 << 20;
  memory_.set_capacity_bytes(kSmall);
  options_.segment_bytes = 0;
  options_.disk_bytes = 64 << 20;  // sixteen times the disk
  Open();
  for (int n = 0; n < 1000; ++n) {
    ASSERT_TRUE(Put(n).ok()) << n;
    ASSERT_LE(memory_.used_bytes(), kSmall - kSmall / 8) << n;
  }
  ASSERT_TRUE(store_->Flush().ok());
  EXPECT_EQ(store_->Health().state, StoreHealth::State::kOk);
  EXPECT_GT(store_->Stats().reclaimed_segments, 0u);
  EXPECT_GT(store_->Stats().disk_blocks, 150u);
  Open();
  EXPECT_GT(store_->Stats().recovered_blocks, 150u);
  ASSERT_TRUE(PutDurable(2000).ok());
}

INSTANTIATE_TEST_SUITE_P(Backends, DiskStoreTest,
                         ::testing::Values(Backend::kMemory, Backend::kPosix, Backend::kUring),
                         [](const auto& info) {
                           return info.param == Backend::kMemory  ? "Memory"
                                  : info.param == Backend::kPosix ? "Posix"
                                                                  : "Uring";
                         });

}  // namespace
}  // namespace latticekv
