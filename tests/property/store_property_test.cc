// Random operations against a plain model. LATTICEKV_SEED sets the seed.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <set>

#include "core/store/tiered_store.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

TEST(StorePropertyTest, RandomOperationsAgreeWithTheModel) {
  const char* text = std::getenv("LATTICEKV_SEED");
  const uint64_t seed = text ? std::strtoull(text, nullptr, 10) : 77;
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  testing::Random random(seed);
  for (int round = 0; round < 20; ++round) {
    ManualClock clock;
    StoreOptions options;
    options.memory_bytes = 20'000 + random.Below(20'000);
    options.clock = &clock;
    auto store = *TieredStore::Open(options);
    // What is present, learnt from puts and from what the listener says left.
    struct Model {
      std::optional<BlockKey> parent;
      uint32_t rank;
      size_t bytes;
    };
    std::map<BlockKey, Model> present;
    std::map<BlockKey, int> pins;
    bool evicting = false;
    store->SetRemovalListener([&](const StoredBlockPtr& block) {
      ASSERT_EQ(present.count(block->key), 1u);
      if (evicting) {
        // Never a pinned one, never one with a child that is still there.
        EXPECT_EQ(pins[block->key], 0);
        for (const auto& [key, model] : present) {
          EXPECT_FALSE(model.parent == block->key) << "a parent left before its child";
        }
      }
      present.erase(block->key);
      pins.erase(block->key);
    });
    const auto key_of = [](uint32_t n) { return Sha256Of(AsBytes(std::to_string(n))); };
    for (int step = 0; step < 2000; ++step) {
      const uint32_t n = random.Below(60);
      const BlockKey key = key_of(n);
      switch (random.Below(8)) {
        case 0:
        case 1:
        case 2: {
          const size_t frame_bytes = 100 + random.Below(1500);
          const size_t bytes = TieredStore::EntryBytes(frame_bytes, 0);
          evicting = true;
          auto reservation = store->Reserve(bytes);
          evicting = false;
          if (!reservation.ok()) {
            EXPECT_EQ(reservation.status().code(), absl::StatusCode::kResourceExhausted);
            break;
          }
          StoredBlock block;
          block.key = key;
          if (n >= 10) block.parent = key_of(n - 10);
          block.frame.assign(frame_bytes, static_cast<std::byte>(n));
          block.quality_rank = random.Below(4);
          block.reservation = *std::move(reservation);
          const Model model{block.parent, block.quality_rank, bytes};
          const auto old = present.find(key);
          const bool expect = old == present.end() || old->second.rank < model.rank;
          const auto result = store->Put(std::move(block));
          ASSERT_TRUE(result.ok());
          EXPECT_EQ(result->stored, expect);
          if (result->stored) present[key] = model;
          break;
        }
        case 3: {
          const StoredBlockPtr block = store->Get(key);
          EXPECT_EQ(block != nullptr, present.count(key) == 1);
          if (block != nullptr) {
            EXPECT_EQ(block->frame[0], static_cast<std::byte>(n));
          }
          break;
        }
        case 4:
          EXPECT_EQ(store->Touch(key), present.count(key) == 1);
          break;
        case 5:
          if (random.Below(4) == 0) {
            const bool was = present.count(key) == 1;
            EXPECT_EQ(store->Delete(key), was);
          }
          break;
        case 6:
          if (store->Pin(key, 0).ok()) ++pins[key];
          break;
        default:
          if (store->Unpin(key).ok()) --pins[key];
      }
      size_t bytes = 0;
      for (const auto& [k, model] : present) bytes += model.bytes;
      const StoreStats stats = store->Stats();
      ASSERT_EQ(stats.blocks, present.size());
      ASSERT_EQ(stats.stored_bytes, bytes);
      ASSERT_EQ(stats.memory_used_bytes, bytes);
      ASSERT_LE(stats.memory_peak_bytes, options.memory_bytes);
    }
  }
}

}  // namespace
}  // namespace latticekv
