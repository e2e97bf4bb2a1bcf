// What is remembered of blocks that left: the newest, in memory that does not grow.
#include "server/removal_memory.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <string>

#include "core/base/sha256.h"

namespace latticekv {
namespace {

BlockKey KeyOf(uint64_t n) { return Sha256Of(AsBytes(std::to_string(n))); }

TEST(RemovalMemoryTest, WhatLeftIsKnownUntilItIsStoredAgain) {
  RemovalMemory memory;
  EXPECT_EQ(memory.Find(KeyOf(1)), std::nullopt);
  memory.Remember(KeyOf(1), Removal::kEvicted);
  memory.Remember(KeyOf(2), Removal::kDeleted);
  EXPECT_EQ(memory.Find(KeyOf(1)), Removal::kEvicted);
  memory.Remember(KeyOf(1), Removal::kExpired);
  EXPECT_EQ(memory.Find(KeyOf(1)), Removal::kExpired);
  memory.Forget(KeyOf(1));
  EXPECT_EQ(memory.Find(KeyOf(1)), std::nullopt);
  EXPECT_EQ(memory.Find(KeyOf(2)), Removal::kDeleted);
  EXPECT_EQ(TextOf(Removal::kDeleted).reason, v1::REASON_NOT_STORED);
  EXPECT_EQ(TextOf(Removal::kExpired).reason, v1::REASON_EXPIRED);
}

// Four times the limit: the last half of it is there but for a few, of which eight newer ones fell
// into the same set; the oldest are gone; and not one byte was taken on the way.
TEST(RemovalMemoryTest, MillionsOfRemovalsTakeNoMore) {
  RemovalMemory memory;
  constexpr uint64_t kRemovals = 4 * limits::kMaxRememberedRemovals;
  const size_t before = mallinfo2().uordblks;
  for (uint64_t n = 0; n < kRemovals; ++n) memory.Remember(KeyOf(n), Removal::kEvicted);
  EXPECT_LE(mallinfo2().uordblks, before + 4096);
  uint64_t newest = 0, oldest = 0;
  constexpr uint64_t kHalf = limits::kMaxRememberedRemovals / 2;
  for (uint64_t n = 0; n < kHalf; ++n) {
    newest += memory.Find(KeyOf(kRemovals - 1 - n)) ? 1 : 0;
    oldest += memory.Find(KeyOf(n)) ? 1 : 0;
  }
  printf("%.1f %% of the newest half remembered\n", 100.0 * newest / kHalf);
  EXPECT_GT(newest, kHalf * 95 / 100);
  EXPECT_EQ(oldest, 0u);
}

}  // namespace
}  // namespace latticekv
