// The disk tier against a plain model: restarts, power losses, damage. LATTICEKV_SEED sets the
// seed, LATTICEKV_ROUNDS the number of power losses, LATTICEKV_BLOCKS the puts before each.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <thread>

#include "core/base/mutex.h"
#include "core/io/fault_file_system.h"
#include "core/io/memory_file_system.h"
#include "core/store/segment_format.h"
#include "core/store/tiered_store.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"
#include "tests/support/temp_dir.h"

namespace latticekv {
namespace {

constexpr char kDir[] = "/disk";

BlockKey KeyOf(uint64_t n) { return Sha256Of(AsBytes(std::to_string(n))); }

// What a put of `key` with `rank` holds; nothing else is a right answer.
ByteVector FrameOf(uint64_t key, uint32_t rank) {
  std::mt19937_64 random(key * 8 + rank);
  ByteVector out(200 + random() % 3000);
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  return out;
}

StoreOptions Options(FileSystem* fs, const Clock* clock, const std::string& dir = kDir) {
  StoreOptions options;
  options.memory_bytes = 300'000;
  options.disk_dir = dir;
  options.disk_bytes = 64 << 20;
  options.segment_bytes = 128 << 10;
  options.file_system = fs;
  options.clock = clock;
  options.disk_retry_ms = 5;
  return options;
}

absl::Status Put(TieredStore& store, uint64_t key, uint32_t rank, DurableCallback durable,
                 std::optional<uint64_t> parent = {}) {
  StoredBlock block;
  block.key = KeyOf(key);
  if (parent) block.parent = KeyOf(*parent);
  block.frame = FrameOf(key, rank);
  block.metadata = FrameOf(key, rank + 4);
  block.metadata.resize(60);
  block.quality_rank = rank;
  auto reservation = store.Reserve(TieredStore::EntryBytes(block.frame.size(), 60));
  if (!reservation.ok()) return reservation.status();
  block.reservation = *std::move(reservation);
  PutOptions options;
  if (durable) {
    options.durability = Durability::kDurable;
    options.on_durable = std::move(durable);
  }
  return store.Put(std::move(block), std::move(options)).status();
}

// The rank of a right block, 0 when there is none.
uint32_t Read(TieredStore& store, uint64_t key) {
  const StoredBlockPtr block = store.Get(KeyOf(key));
  if (!block) return 0;
  ByteVector frame(block->frame_bytes);
  EXPECT_TRUE(block->ReadFrame(0, frame).ok());
  EXPECT_EQ(frame, FrameOf(key, block->quality_rank)) << "block " << key << " is wrong";
  EXPECT_EQ(block->key, KeyOf(key));
  return block->quality_rank;
}

// What writers were told, outside of the store.
struct Log {
  Mutex mutex;
  std::map<uint64_t, uint32_t> durable;  // key -> rank acknowledged
  uint64_t acknowledged = 0;
};

TEST(DiskStorePropertyTest, PowerLossesNeverTakeWhatWasAcknowledged) {
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 411);
  const uint64_t rounds = testing::FromEnvironment("LATTICEKV_ROUNDS", 12);
  const uint64_t blocks = testing::FromEnvironment("LATTICEKV_BLOCKS", 150);  // put in a round
  printf("seed %llu, %llu rounds\n", static_cast<unsigned long long>(seed),
         static_cast<unsigned long long>(rounds));
  std::mt19937_64 random(seed);
  auto disk = std::make_unique<MemoryFileSystem>();
  Log log;
  uint64_t next = 0, lost_unsynced = 0;
  // The index of all rounds' blocks counts against the memory; the rest stays as tight as it is.
  const auto options = [rounds, blocks](FileSystem* fs, const Clock* clock) {
    StoreOptions out = Options(fs, clock);
    out.memory_bytes += rounds * blocks * 64;
    return out;
  };
  for (uint64_t round = 0; round < rounds; ++round) {
    std::unique_ptr<MemoryFileSystem> after;
    {
      FaultFileSystem faults(disk.get(), random());
      ManualClock clock;
      auto opened = TieredStore::Open(options(&faults, &clock));
      ASSERT_TRUE(opened.ok()) << opened.status();
      TieredStore& store = **opened;
      for (const auto& [key, rank] : log.durable) {
        ASSERT_GE(Read(store, key), rank) << "block " << key << ", round " << round;
      }
      const uint64_t first = next;
      next += blocks;
      // In one round of four everything is acknowledged, whatever time the disk's writer gets.
      const bool calm = round % 4 == 0;
      if (!calm && random() % 3 == 0) faults.Fail(FileOp::kSync, EIO, random() % 8, 1);
      if (!calm && random() % 3 == 0) faults.Fail(FileOp::kWrite, EIO, random() % 100, 2);
      std::vector<std::thread> writers;
      for (int t = 0; t < 3; ++t) {
        writers.emplace_back([&, t] {
          for (uint64_t key = first + t; key < next; key += 3) {
            const uint32_t rank = 1 + key % 2;
            DurableCallback done = [&log, key, rank](const absl::Status& status) {
              if (!status.ok()) return;
              MutexLock lock(log.mutex);
              log.durable[key] = rank;
              ++log.acknowledged;
            };
            // One in four is not durable.
            static_cast<void>(Put(store, key, rank, key % 4 == 0 ? nullptr : std::move(done),
                                  key > first ? std::optional(key - 1) : std::nullopt));
          }
        });
      }
      std::map<uint64_t, uint32_t> told;
      if (calm || random() % 2 == 0) {
        for (std::thread& writer : writers) writer.join();
        writers.clear();
        if (calm) {
          ASSERT_TRUE(store.Flush().ok());
        }
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(random() % 20));
      }
      {
        // Whoever was told before the power went counts.
        MutexLock lock(log.mutex);
        told = log.durable;
        after = disk->AfterPowerLoss(random);
      }
      for (std::thread& writer : writers) writer.join();
      opened->reset();
      MutexLock lock(log.mutex);
      lost_unsynced += log.durable.size() - told.size();
      log.durable = std::move(told);
    }
    disk = std::move(after);
  }
  ManualClock clock;
  auto store = *TieredStore::Open(options(disk.get(), &clock));
  for (const auto& [key, rank] : log.durable) ASSERT_GE(Read(*store, key), rank);
  printf("%zu blocks acknowledged as durable before a power loss, all there\n", log.durable.size());
  EXPECT_GT(log.durable.size(), rounds * 20);
}

TEST(DiskStorePropertyTest, EveryFlippedByteIsNoticed) {
  ManualClock clock;
  MemoryFileSystem fs;
  const auto options = [&](FileSystem* f) {
    StoreOptions out = Options(f, &clock);
    out.disk_bytes = 4 << 20;
    return out;
  };
  std::map<uint64_t, uint32_t> blocks;
  {
    auto store = *TieredStore::Open(options(&fs));
    for (uint64_t key = 0; key < 4; ++key) {
      ASSERT_TRUE(Put(*store, key, 1, nullptr).ok());
      blocks[key] = 1;
    }
    ASSERT_TRUE(store->Flush().ok());
    ASSERT_TRUE(store->Pin(KeyOf(1), 100'000).ok());
    ASSERT_TRUE(Put(*store, 9, 1, nullptr).ok());
    ASSERT_TRUE(store->Flush().ok());
    ASSERT_TRUE(store->Delete(KeyOf(9)));
  }
  const std::string path = JoinPath(kDir, SegmentFileName(1));
  const ByteVector bytes = fs.Contents(path);
  ASSERT_GT(bytes.size(), 1000u);
  const uint64_t step = testing::FromEnvironment("LATTICEKV_FLIP_STEP", 1);
  std::mt19937_64 random(testing::FromEnvironment("LATTICEKV_SEED", 5));
  size_t flipped = 0;
  for (size_t at = random() % step; at < bytes.size(); at += step, ++flipped) {
    ByteVector damaged = bytes;
    damaged[at] ^= static_cast<std::byte>(1u << (random() % 8));
    MemoryFileSystem copy;
    ASSERT_TRUE(copy.CreateDirectory(kDir).ok());
    copy.SetContents(path, damaged);
    auto store = TieredStore::Open(options(&copy));
    if (!store.ok()) continue;  // refused: noticed
    const auto report = (*store)->Scrub({}, nullptr);
    ASSERT_TRUE(report.ok());
    EXPECT_GT(report->corrupt + (*store)->Stats().corrupt_dropped, 0u) << "byte " << at;
    size_t missing = 0;
    for (const auto& [key, rank] : blocks) missing += Read(**store, key) == 0 ? 1 : 0;
    EXPECT_LE(missing, 1u) << "byte " << at << " costs more than one record";
  }
  printf("%zu of %zu bytes flipped\n", flipped, bytes.size());
}

// Operations with restarts; the disk is large enough that nothing need leave.
void RandomOperations(FileSystem* fs, const std::string& dir) {
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 31);
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  testing::Random random(seed);
  struct Block {
    uint32_t rank = 0;
    std::optional<uint64_t> parent;
    int64_t expires_ms = 0;
    uint32_t pins = 0;
  };
  ManualClock clock;
  std::map<uint64_t, Block> model;
  auto store = *TieredStore::Open(Options(fs, &clock, dir));
  for (int step = 0; step < 6000; ++step) {
    if (random.Below(20) == 0) clock.Advance(random.Below(50));
    std::erase_if(model, [&](const auto& pair) {
      return pair.second.expires_ms != 0 && pair.second.expires_ms <= clock.MonotonicMs();
    });
    const uint64_t key = random.Below(300);
    const auto it = model.find(key);
    Block* block = it == model.end() ? nullptr : &it->second;
    switch (random.Below(9)) {
      case 0:
      case 1:
      case 2: {
        const uint32_t rank = 1 + random.Below(3);
        const std::optional<uint64_t> parent =
            key > 3 ? std::optional<uint64_t>(key * 2 / 3) : std::nullopt;
        ASSERT_TRUE(Put(*store, key, rank, nullptr, parent).ok());
        if (block == nullptr) model[key] = {rank, parent};
        if (block != nullptr && block->rank < rank) block->rank = rank;
        break;
      }
      case 3:
      case 4:
        ASSERT_EQ(Read(*store, key), block ? block->rank : 0) << "step " << step;
        break;
      case 5:
        if (random.Below(3) != 0) break;
        ASSERT_EQ(store->Delete(KeyOf(key)), block != nullptr);
        model.erase(key);
        break;
      case 6: {
        const int64_t ttl_ms = random.Below(2) == 0 ? 0 : 1 + random.Below(300);
        ASSERT_EQ(store->SetTtl(KeyOf(key), ttl_ms).ok(), block != nullptr);
        if (block) block->expires_ms = ttl_ms == 0 ? 0 : clock.MonotonicMs() + ttl_ms;
        break;
      }
      case 7:
        if (block != nullptr && block->pins > 0) {
          ASSERT_TRUE(store->Unpin(KeyOf(key)).ok());
          --block->pins;
        } else if (random.Below(8) == 0 && store->Pin(KeyOf(key), 0).ok()) {
          ASSERT_NE(block, nullptr);
          ++block->pins;
        }
        ASSERT_EQ(store->IsPinned(KeyOf(key)), block != nullptr && block->pins > 0);
        break;
      default:
        if (random.Below(30) == 0) {
          store.reset();
          store = *TieredStore::Open(Options(fs, &clock, dir));
          for (const auto& [k, b] : model) {
            ASSERT_EQ(Read(*store, k), b.rank) << "block " << k << ", step " << step;
            ASSERT_EQ(store->IsPinned(KeyOf(k)), b.pins > 0) << "block " << k;
          }
          ASSERT_EQ(store->Stats().blocks, model.size());
        } else if (random.Below(10) == 0) {
          std::set<BlockKey> expected, children;
          for (const auto& [k, b] : model) {
            if (b.parent == key) expected.insert(KeyOf(k));
          }
          for (const auto& child : store->Children(KeyOf(key))) children.insert(child->key);
          ASSERT_EQ(children, expected);
        }
    }
    ASSERT_FALSE(::testing::Test::HasFailure()) << "step " << step;
  }
  const StoreStats stats = store->Stats();
  EXPECT_LE(stats.memory_peak_bytes, stats.memory_capacity_bytes);
  EXPECT_LE(stats.disk_peak_bytes, stats.disk_capacity_bytes);
  EXPECT_EQ(stats.corrupt_dropped + stats.lost_blocks, 0u);
}

TEST(DiskStorePropertyTest, RandomOperationsAgreeWithTheModelOverRestarts) {
  MemoryFileSystem fs;
  RandomOperations(&fs, kDir);
}

TEST(DiskStorePropertyTest, RandomOperationsAgreeWithTheModelOnTheRealDisk) {
  const testing::TempDir dir;
  RandomOperations(FileSystem::Default(), dir.File("store"));
}

}  // namespace
}  // namespace latticekv
