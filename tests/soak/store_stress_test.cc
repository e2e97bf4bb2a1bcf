// Eight threads on one store at a cap that forces eviction: every byte that comes back is right and
// the cap holds. Meant for ThreadSanitizer. LATTICEKV_STRESS_SECONDS (2 by default) sets the
// length.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "core/codec/codec.h"
#include "core/store/tiered_store.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

constexpr uint32_t kKeys = 400;

BlockKey KeyOf(uint32_t n) { return Sha256Of(AsBytes(std::to_string(n))); }

// The frame is a function of key and rank, so that a reader can check every byte.
ByteVector FrameOf(uint32_t n, uint32_t rank) {
  testing::Random random(n * 31 + rank);
  ByteVector frame(500 + random.Below(4000));
  for (auto& b : frame) b = static_cast<std::byte>(random.Next());
  return frame;
}

void Mix(TieredStore& store, uint64_t seed, const std::atomic<bool>& stop,
         std::atomic<uint64_t>& checked, std::atomic<uint64_t>& full) {
  testing::Random random(seed);
  while (!stop) {
    const uint32_t n = random.Below(kKeys);
    const BlockKey key = KeyOf(n);
    switch (random.Below(10)) {
      case 0:
      case 1:
      case 2: {
        const uint32_t rank = random.Below(3);
        ByteVector frame = FrameOf(n, rank);
        auto reservation = store.Reserve(TieredStore::EntryBytes(frame.size(), 0));
        if (!reservation.ok()) {
          ++full;
          break;
        }
        StoredBlock block;
        block.key = key;
        if (n >= 50) block.parent = KeyOf(n - 50);
        block.frame = std::move(frame);
        block.quality_rank = rank;
        block.reservation = *std::move(reservation);
        ASSERT_TRUE(store.Put(std::move(block)).ok());
        break;
      }
      case 3:
        store.Delete(key);
        break;
      case 4:
        if (store.Pin(key, 1 + random.Below(20)).ok() && random.Below(2)) {
          store.Unpin(key).IgnoreError();
        }
        break;
      case 5:
        store.SetTtl(key, 1 + random.Below(50)).IgnoreError();
        break;
      case 6: {
        const StoreStats stats = store.Stats();
        ASSERT_LE(stats.memory_peak_bytes, stats.memory_capacity_bytes);
        for (const StoredBlockPtr& child : store.Children(key)) {
          ASSERT_TRUE(child->parent == key);
        }
        break;
      }
      default:
        if (const StoredBlockPtr block = store.Get(key)) {
          ASSERT_EQ(block->frame, FrameOf(n, block->quality_rank));
          ++checked;
        }
    }
  }
}

TEST(StoreStressTest, EightThreadsAtTheCap) {
  const char* text = std::getenv("LATTICEKV_STRESS_SECONDS");
  const int seconds = text ? std::atoi(text) : 2;
  StoreOptions options;
  options.memory_bytes = 300'000;  // about a quarter of what the keys need
  auto store = *TieredStore::Open(options);
  std::atomic<uint64_t> removed{0}, checked{0}, full{0};
  store->SetRemovalListener([&](const BlockKey&, RemovalReason) { ++removed; });
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] { Mix(*store, i + 1, stop, checked, full); });
  }
  std::this_thread::sleep_for(std::chrono::seconds(seconds));
  stop = true;
  for (std::thread& t : threads) t.join();
  const StoreStats stats = store->Stats();
  printf("checked %llu, evicted %llu, expired %llu, refused %llu, peak %llu of %zu\n",
         static_cast<unsigned long long>(checked.load()),
         static_cast<unsigned long long>(stats.evicted_blocks),
         static_cast<unsigned long long>(stats.expired_blocks),
         static_cast<unsigned long long>(full.load()),
         static_cast<unsigned long long>(stats.memory_peak_bytes), options.memory_bytes);
  EXPECT_GT(checked, 100u);
  EXPECT_GT(stats.evicted_blocks, 0u);
  EXPECT_EQ(stats.memory_used_bytes, stats.stored_bytes);
  EXPECT_EQ(removed, stats.evicted_blocks + stats.expired_blocks + stats.deleted_blocks);
}

// The codec is used by many threads at once with shared tables.
TEST(CodecStressTest, ThreadsEncodeAndDecodeTheSame) {
  const Layout layout =
      MakeUniformLayout("stress", 1, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
  const auto chunk = testing::MakeSampleChunk(layout, 32, 1);
  const ModelProfile profile = testing::MakeSampleProfile(layout, 2, true);
  std::vector<ByteVector> frames(8);
  std::vector<std::thread> threads;
  for (ByteVector& frame : frames) {
    threads.emplace_back([&] {
      EncodeOptions options;
      options.profile = &profile;
      frame = *EncodeFrame(layout, 32, chunk.views(), options);
      ByteVector raw(chunk.raw.size());
      auto decoder = FrameDecoder::Open(frame, layout, &profile);
      ASSERT_TRUE(decoder.ok() && DecodeFrame(*decoder, layout, raw).ok());
    });
  }
  for (std::thread& t : threads) t.join();
  for (const ByteVector& frame : frames) EXPECT_EQ(frame, frames[0]);
}

}  // namespace
}  // namespace latticekv
