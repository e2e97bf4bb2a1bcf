#include "core/store/tiered_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "core/base/limits.h"
#include "core/base/sha256.h"

namespace latticekv {
namespace {

constexpr size_t kFrameBytes = 1000;
const size_t kEntryBytes = TieredStore::EntryBytes(kFrameBytes, 0);

BlockKey Key(int n) { return Sha256Of(AsBytes("block " + std::to_string(n))); }

class StoreTest : public ::testing::Test {
 protected:
  // A store with room for `blocks` blocks.
  void Open(size_t blocks) {
    StoreOptions options;
    options.memory_bytes = blocks * kEntryBytes;
    options.clock = &clock_;
    store_ = *TieredStore::Open(options);
    store_->SetRemovalListener(
        [this](const BlockKey& key, RemovalReason) { removed_.push_back(key); });
  }
  absl::StatusOr<PutResult> Put(int n, std::optional<int> parent = std::nullopt,
                                uint32_t rank = 1) {
    auto reservation = store_->Reserve(kEntryBytes);
    if (!reservation.ok()) return reservation.status();
    StoredBlock block;
    block.key = Key(n);
    if (parent) block.parent = Key(*parent);
    block.frame.assign(kFrameBytes, static_cast<std::byte>(n));
    block.quality_rank = rank;
    block.reservation = *std::move(reservation);
    return store_->Put(std::move(block));
  }
  bool Has(int n) { return store_->Peek(Key(n)) != nullptr; }

  ManualClock clock_;
  std::unique_ptr<TieredStore> store_;
  std::vector<BlockKey> removed_;
};

TEST_F(StoreTest, WhatWasPutComesBack) {
  Open(4);
  ASSERT_TRUE(Put(1)->stored);
  const StoredBlockPtr block = store_->Get(Key(1));
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(block->frame, ByteVector(kFrameBytes, std::byte{1}));
  EXPECT_EQ(store_->Get(Key(2)), nullptr);
  const StoreStats stats = store_->Stats();
  EXPECT_EQ(stats.blocks, 1u);
  EXPECT_EQ(stats.stored_bytes, kEntryBytes);
  EXPECT_EQ(stats.memory_used_bytes, kEntryBytes);
  EXPECT_EQ(stats.hits, 1u);
  EXPECT_EQ(stats.misses, 1u);
}

TEST_F(StoreTest, BetterReplacesWorseAndNothingElseDoes) {
  Open(4);
  ASSERT_TRUE(Put(1, std::nullopt, 3)->stored);
  EXPECT_FALSE(Put(1, std::nullopt, 3)->stored);
  EXPECT_FALSE(Put(1, std::nullopt, 2)->stored);
  const StoredBlockPtr held = store_->Get(Key(1));
  const auto better = Put(1, std::nullopt, 4);
  ASSERT_TRUE(better->stored);
  EXPECT_NE(better->block, held);
  EXPECT_EQ(held->quality_rank, 3u);  // a reader keeps what it got
  const StoreStats stats = store_->Stats();
  EXPECT_EQ(stats.duplicates, 2u);
  EXPECT_EQ(stats.replaced, 1u);
  EXPECT_EQ(stats.blocks, 1u);
  EXPECT_EQ(stats.stored_bytes, kEntryBytes);
}

TEST_F(StoreTest, ColdestLeafGoesFirstAndAncestorsLast) {
  Open(4);
  for (int n = 0; n < 4; ++n)
    ASSERT_TRUE(Put(n, n ? std::optional<int>(n - 1) : std::nullopt).ok());
  // 0 <- 1 <- 2 <- 3: only 3 may go although it is the hottest.
  ASSERT_TRUE(Put(10).ok());
  EXPECT_TRUE(Has(0) && Has(1) && Has(2) && !Has(3) && Has(10));
  // 2 became a leaf, as recent as 3 was, and is colder than 10.
  ASSERT_TRUE(Put(11).ok());
  EXPECT_TRUE(Has(0) && Has(1) && !Has(2) && Has(10));
  EXPECT_EQ(removed_, (std::vector<BlockKey>{Key(3), Key(2)}));
  EXPECT_EQ(store_->Stats().evicted_blocks, 2u);
}

TEST_F(StoreTest, UseProtects) {
  Open(3);
  ASSERT_TRUE(Put(1).ok() && Put(2).ok() && Put(3).ok());
  store_->Get(Key(1));
  ASSERT_TRUE(store_->Touch(Key(2)));
  EXPECT_FALSE(store_->Touch(Key(99)));
  store_->Peek(Key(3));  // looking is not using
  ASSERT_TRUE(Put(4).ok());
  EXPECT_TRUE(Has(1) && Has(2) && !Has(3));
}

TEST_F(StoreTest, ScansDoNotFlushWhatWasUsedAgain) {
  Open(40);
  for (int n = 0; n < 4; ++n) ASSERT_TRUE(Put(n).ok() && store_->Touch(Key(n)));
  // 36 would flush an LRU cache; a use is worth half a capacity, 20 blocks, beyond that.
  for (int n = 100; n < 150; ++n) ASSERT_TRUE(Put(n).ok());
  for (int n = 0; n < 4; ++n) EXPECT_TRUE(Has(n)) << n;
  // What is never used again does leave in the end.
  for (int n = 200; n < 220; ++n) ASSERT_TRUE(Put(n).ok());
  for (int n = 0; n < 4; ++n) EXPECT_FALSE(Has(n)) << n;
}

TEST_F(StoreTest, ASharedPrefixOutlivesAConversationUsedAsOften) {
  Open(10);
  // 0 <- 1 is a prompt with two conversations behind it, 10 <- 11 <- 12 one conversation.
  ASSERT_TRUE(Put(0).ok() && Put(1, 0).ok() && Put(2, 1).ok() && Put(3, 1).ok());
  ASSERT_TRUE(Put(10).ok() && Put(11, 10).ok() && Put(12, 11).ok());
  for (int use = 0; use < 3; ++use) {
    for (const int n : {0, 1, 10, 11, 12}) ASSERT_TRUE(store_->Touch(Key(n)));
  }
  for (int n = 100; n < 120; ++n) ASSERT_TRUE(Put(n).ok());
  EXPECT_TRUE(Has(0) && Has(1));
  EXPECT_FALSE(Has(2) || Has(3) || Has(10) || Has(11) || Has(12));
  // Shared uses wear off, too: three of them are worth three capacities.
  for (int n = 200; n < 240; ++n) ASSERT_TRUE(Put(n).ok());
  EXPECT_FALSE(Has(0) || Has(1));
}

TEST_F(StoreTest, ChildrenMayComeBeforeTheirParents) {
  Open(3);
  ASSERT_TRUE(Put(2, 1).ok() && Put(1).ok());
  store_->Touch(Key(2));
  ASSERT_EQ(store_->Children(Key(1)).size(), 1u);
  ASSERT_TRUE(Put(3).ok() && Put(4).ok());
  EXPECT_TRUE(Has(1) && !Has(2));
  EXPECT_TRUE(store_->Children(Key(1)).empty());
}

TEST_F(StoreTest, CyclesNeitherHangNorStay) {
  Open(3);
  ASSERT_TRUE(Put(1, 1).ok());
  ASSERT_TRUE(Put(2, 3).ok() && Put(3, 2).ok());
  for (int n = 10; n < 20; ++n) ASSERT_TRUE(Put(n).ok()) << n;
  EXPECT_FALSE(Has(1) || Has(2) || Has(3));
}

TEST_F(StoreTest, PinnedBlocksAndTheirAncestorsStay) {
  Open(4);
  ASSERT_TRUE(Put(1).ok() && Put(2, 1).ok() && Put(3).ok() && Put(4).ok());
  ASSERT_TRUE(store_->Pin(Key(2), 0).ok());
  ASSERT_TRUE(store_->Pin(Key(2), 0).ok());
  for (int n = 10; n < 20; ++n) ASSERT_TRUE(Put(n).ok());
  EXPECT_TRUE(Has(1) && Has(2));
  ASSERT_TRUE(store_->Unpin(Key(2)).ok());
  EXPECT_TRUE(store_->IsPinned(Key(2)));
  ASSERT_TRUE(store_->Unpin(Key(2)).ok());
  EXPECT_EQ(store_->Unpin(Key(2)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->Unpin(Key(99)).code(), absl::StatusCode::kNotFound);
  for (int n = 20; n < 30; ++n) ASSERT_TRUE(Put(n).ok());
  EXPECT_FALSE(Has(1) || Has(2));
}

TEST_F(StoreTest, PinsMayHoldHalfOfTheMemory) {
  Open(4);
  ASSERT_TRUE(Put(1).ok() && Put(2).ok() && Put(3).ok());
  ASSERT_TRUE(store_->Pin(Key(1), 0).ok() && store_->Pin(Key(2), 0).ok());
  EXPECT_EQ(store_->Pin(Key(3), 0).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store_->Pin(Key(2), 0).ok());  // pinned already
  EXPECT_EQ(store_->Pin(Key(99), 0).code(), absl::StatusCode::kNotFound);
}

TEST_F(StoreTest, PinsAndBlocksLapse) {
  Open(2);
  ASSERT_TRUE(Put(1).ok() && Put(2).ok());
  ASSERT_TRUE(store_->Pin(Key(1), 1000).ok());
  ASSERT_TRUE(store_->SetTtl(Key(2), 5000).ok());
  clock_.Advance(999);
  EXPECT_TRUE(store_->IsPinned(Key(1)));
  clock_.Advance(1);
  EXPECT_FALSE(store_->IsPinned(Key(1)));
  ASSERT_TRUE(store_->SetTtl(Key(2), 0).ok());
  clock_.Advance(10'000);
  EXPECT_TRUE(Has(2));  // the new time to live counts
  ASSERT_TRUE(store_->SetTtl(Key(2), 10).ok());
  clock_.Advance(10);
  EXPECT_FALSE(Has(2));
  EXPECT_EQ(removed_, std::vector<BlockKey>{Key(2)});
  EXPECT_EQ(store_->Stats().expired_blocks, 1u);
}

TEST_F(StoreTest, ReadersKeepWhatTheyHoldAndItCountsUntilTheyLetGo) {
  Open(2);
  ASSERT_TRUE(Put(1).ok() && Put(2).ok());
  StoredBlockPtr held = store_->Get(Key(1));
  ASSERT_TRUE(store_->Delete(Key(1)));
  EXPECT_FALSE(store_->Delete(Key(1)));
  EXPECT_EQ(held->frame[0], std::byte{1});
  EXPECT_EQ(store_->Stats().memory_used_bytes, 2 * kEntryBytes);
  // One place is held by the reader, the other can be made free.
  ASSERT_TRUE(Put(3).ok());
  EXPECT_FALSE(Has(2));
  StoredBlockPtr also = store_->Get(Key(3));
  EXPECT_EQ(Put(4).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Has(3));  // evicting it would have freed nothing
  held.reset();
  EXPECT_TRUE(Put(4).ok());
}

TEST_F(StoreTest, ImpossibleReservationsDoNotFlushTheStore) {
  Open(4);
  ASSERT_TRUE(Put(1).ok() && Put(2).ok());
  EXPECT_EQ(store_->Reserve(5 * kEntryBytes).status().code(), absl::StatusCode::kResourceExhausted);
  auto in_flight = store_->Reserve(kEntryBytes);
  ASSERT_TRUE(in_flight.ok());
  EXPECT_EQ(store_->Reserve(4 * kEntryBytes).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Has(1) && Has(2));
  EXPECT_TRUE(store_->Reserve(3 * kEntryBytes).ok());
  EXPECT_FALSE(Has(1) || Has(2));
}

TEST_F(StoreTest, PutWithTooSmallAReservationIsRefused) {
  Open(4);
  StoredBlock block;
  block.key = Key(1);
  block.frame.resize(kFrameBytes);
  block.reservation = *store_->Reserve(kEntryBytes - 1);
  EXPECT_EQ(store_->Put(std::move(block)).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->Stats().memory_used_bytes, 0u);
}

TEST_F(StoreTest, ReservationsMayHoldMoreThanTheStoreNeeds) {
  Open(4);
  StoredBlock block;
  block.key = Key(1);
  block.frame.reserve(4 * kFrameBytes);
  block.frame.resize(kFrameBytes);
  block.reservation = *store_->Reserve(kEntryBytes + 100);
  const auto put = store_->Put(std::move(block));
  ASSERT_TRUE(put.ok() && put->stored);
  EXPECT_EQ(put->block->frame.capacity(), kFrameBytes);  // the cap counts no slack
  EXPECT_EQ(store_->Stats().memory_used_bytes, kEntryBytes + 100);
  EXPECT_EQ(store_->Stats().stored_bytes, kEntryBytes + 100);
}

TEST_F(StoreTest, InFlightBytesCountAndComeBack) {
  Open(4);
  {
    auto in_flight = store_->Reserve(3 * kEntryBytes);
    ASSERT_TRUE(in_flight.ok());
    EXPECT_EQ(store_->Stats().memory_used_bytes, 3 * kEntryBytes);
    EXPECT_EQ(store_->Reserve(2 * kEntryBytes).status().code(),
              absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(store_->Stats().rejected_full, 1u);
  }
  const StoreStats stats = store_->Stats();
  EXPECT_EQ(stats.memory_used_bytes, 0u);
  EXPECT_EQ(stats.memory_peak_bytes, 3 * kEntryBytes);
  EXPECT_EQ(stats.memory_capacity_bytes, 4 * kEntryBytes);
}

TEST_F(StoreTest, ADuplicateGivesItsMemoryBack) {
  Open(4);
  ASSERT_TRUE(Put(1)->stored);
  const auto again = Put(1);
  ASSERT_TRUE(again.ok());
  EXPECT_FALSE(again->stored);
  EXPECT_EQ(again->block, store_->Peek(Key(1)));
  EXPECT_EQ(store_->Stats().memory_used_bytes, kEntryBytes);
}

TEST_F(StoreTest, ReplacingKeepsPinsTimeToLiveAndChildren) {
  Open(6);
  ASSERT_TRUE(Put(1).ok() && Put(2, 1).ok());
  ASSERT_TRUE(store_->Pin(Key(1), 0).ok() && store_->SetTtl(Key(1), 1000).ok());
  ASSERT_TRUE(Put(1, std::nullopt, 2)->stored);
  EXPECT_TRUE(store_->IsPinned(Key(1)));
  EXPECT_EQ(store_->Stats().pinned_blocks, 1u);
  EXPECT_EQ(store_->Children(Key(1)).size(), 1u);
  EXPECT_TRUE(removed_.empty());  // it did not leave
  clock_.Advance(1000);
  EXPECT_FALSE(Has(1));
  EXPECT_TRUE(Has(2));
  EXPECT_EQ(store_->Stats().pinned_blocks, 0u);
}

TEST_F(StoreTest, ReplacingAPinnedBlockKeepsToThePinsHalf) {
  Open(4);
  ASSERT_TRUE(Put(1).ok() && Put(2).ok());
  ASSERT_TRUE(store_->Pin(Key(1), 0).ok() && store_->Pin(Key(2), 0).ok());
  StoredBlock larger;
  larger.key = Key(1);
  larger.frame.resize(kFrameBytes + 1);
  larger.quality_rank = 2;
  larger.reservation = *store_->Reserve(kEntryBytes + 1);
  EXPECT_EQ(store_->Put(std::move(larger)).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store_->Peek(Key(1))->quality_rank, 1u);
  EXPECT_TRUE(Put(1, std::nullopt, 2)->stored);  // no larger than before
}

TEST_F(StoreTest, AUsedBlockKeepsItsAncestorsHot) {
  Open(4);
  ASSERT_TRUE(Put(1).ok() && Put(2, 1).ok() && Put(3).ok() && Put(4).ok());
  ASSERT_TRUE(store_->Touch(Key(2)));
  ASSERT_TRUE(store_->Delete(Key(2)));
  // 1, put first and never used itself, is as hot as its child was.
  ASSERT_TRUE(Put(5).ok() && Put(6).ok() && Put(7).ok());
  EXPECT_TRUE(Has(1) && !Has(3) && !Has(4));
}

TEST_F(StoreTest, AHeldBlockGoesWhenItsAncestorsAreNeeded) {
  Open(3);
  ASSERT_TRUE(Put(1).ok() && Put(2, 1).ok() && Put(3, 2).ok());
  const StoredBlockPtr held = store_->Get(Key(3));
  ASSERT_TRUE(Put(4).ok());
  EXPECT_EQ(removed_, (std::vector<BlockKey>{Key(3), Key(2)}));
  EXPECT_EQ(held->frame[0], std::byte{3});
  EXPECT_EQ(store_->Stats().memory_used_bytes, 3 * kEntryBytes);
}

TEST_F(StoreTest, BlocksBehindAPinAreNotFlushedInVain) {
  Open(4);
  ASSERT_TRUE(Put(1).ok() && Put(2, 1).ok() && Put(3, 2).ok() && Put(4).ok());
  ASSERT_TRUE(store_->Pin(Key(3), 0).ok());
  // Only 4 can go, and that is not enough.
  EXPECT_EQ(store_->Reserve(2 * kEntryBytes).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Has(4));
}

TEST_F(StoreTest, ExpiredBlocksAreAbsentToEveryCall) {
  for (int call = 0; call < 7; ++call) {
    removed_.clear();
    Open(4);
    ASSERT_TRUE(Put(1).ok() && Put(2, 1).ok());
    ASSERT_TRUE(store_->SetTtl(Key(2), 1000).ok());
    clock_.Advance(1000);
    switch (call) {
      case 0:
        EXPECT_EQ(store_->Get(Key(2)), nullptr);
        break;
      case 1:
        EXPECT_FALSE(store_->Touch(Key(2)));
        break;
      case 2:
        EXPECT_TRUE(store_->Children(Key(1)).empty());
        break;
      case 3:
        EXPECT_EQ(store_->SetTtl(Key(2), 0).code(), absl::StatusCode::kNotFound);
        break;
      case 4:
        EXPECT_EQ(store_->Pin(Key(2), 0).code(), absl::StatusCode::kNotFound);
        break;
      case 5:
        EXPECT_EQ(store_->Unpin(Key(2)).code(), absl::StatusCode::kNotFound);
        break;
      default:
        EXPECT_FALSE(store_->Delete(Key(2)));
    }
    const StoreStats stats = store_->Stats();
    EXPECT_EQ(stats.expired_blocks, 1u) << call;
    EXPECT_EQ(stats.deleted_blocks, 0u) << call;
    EXPECT_EQ(stats.blocks, 1u) << call;
    EXPECT_EQ(removed_, std::vector<BlockKey>{Key(2)}) << call;
  }
}

TEST_F(StoreTest, ExpiredBlocksMakeRoomBeforeOthersAreEvicted) {
  Open(2);
  ASSERT_TRUE(Put(1).ok() && Put(2).ok());
  ASSERT_TRUE(store_->SetTtl(Key(2), 1).ok());
  clock_.Advance(1);
  ASSERT_TRUE(Put(3).ok());
  EXPECT_TRUE(Has(1) && !Has(2));
  EXPECT_EQ(store_->Stats().evicted_blocks, 0u);
}

TEST_F(StoreTest, PinsThatLapseNestWithThoseThatLast) {
  Open(4);
  ASSERT_TRUE(Put(1).ok());
  ASSERT_TRUE(store_->Pin(Key(1), 1000).ok() && store_->Pin(Key(1), 0).ok());
  // The one that lapses needs no Unpin.
  ASSERT_TRUE(store_->Unpin(Key(1)).ok());
  EXPECT_TRUE(store_->IsPinned(Key(1)));
  clock_.Advance(1000);
  EXPECT_FALSE(store_->IsPinned(Key(1)));
  ASSERT_TRUE(store_->Pin(Key(1), std::numeric_limits<int64_t>::max()).ok());
  clock_.Advance(1'000'000);
  EXPECT_TRUE(store_->IsPinned(Key(1)));
}

TEST_F(StoreTest, PinsOfABlockAreBounded) {
  Open(4);
  ASSERT_TRUE(Put(1).ok());
  for (size_t n = 0; n < limits::kMaxPinsPerBlock; ++n) {
    ASSERT_TRUE(store_->Pin(Key(1), n % 2 ? 1000 : 0).ok());
  }
  EXPECT_EQ(store_->Pin(Key(1), 0).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(store_->Unpin(Key(1)).ok());
  EXPECT_TRUE(store_->Pin(Key(1), 0).ok());
}

TEST_F(StoreTest, DeletingTakesPinnedBlocksAndLeavesChildren) {
  Open(4);
  ASSERT_TRUE(Put(1).ok() && Put(2, 1).ok());
  ASSERT_TRUE(store_->Pin(Key(1), 0).ok());
  ASSERT_TRUE(store_->Delete(Key(1)));
  EXPECT_TRUE(Has(2));
  EXPECT_EQ(store_->Children(Key(1)).size(), 1u);
  EXPECT_EQ(store_->Stats().pinned_blocks, 0u);
  EXPECT_EQ(store_->Stats().deleted_blocks, 1u);
  ASSERT_TRUE(Put(1).ok());
  EXPECT_FALSE(store_->IsPinned(Key(1)));
}

TEST_F(StoreTest, TheListenerMayCallTheStore) {
  Open(2);
  std::vector<uint64_t> blocks_left;
  store_->SetRemovalListener([&](const BlockKey& key, RemovalReason) {
    EXPECT_EQ(store_->Get(key), nullptr);
    blocks_left.push_back(store_->Stats().blocks);
  });
  ASSERT_TRUE(Put(1).ok() && Put(2).ok());
  EXPECT_EQ(Put(3).status(), absl::OkStatus());
  ASSERT_TRUE(store_->Delete(Key(2)));
  ASSERT_TRUE(store_->SetTtl(Key(3), 1).ok());
  clock_.Advance(1);
  EXPECT_FALSE(Has(3));
  EXPECT_EQ(blocks_left, (std::vector<uint64_t>{1, 1, 0}));
}

TEST_F(StoreTest, OpeningNeedsMemoryAndAClock) {
  StoreOptions options;
  options.memory_bytes = 0;
  EXPECT_EQ(TieredStore::Open(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.memory_bytes = 1;
  options.clock = nullptr;
  EXPECT_EQ(TieredStore::Open(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MemoryBudgetTest, NeverPassesTheCapacityAndTracksThePeak) {
  MemoryBudget budget(100);
  Reservation a, b;
  ASSERT_TRUE(budget.TryReserve(60, &a));
  EXPECT_FALSE(budget.TryReserve(41, &b));
  EXPECT_FALSE(budget.TryReserve(std::numeric_limits<size_t>::max(), &b));
  EXPECT_EQ(b.bytes(), 0u);
  ASSERT_TRUE(budget.TryReserve(40, &b));
  a.ShrinkTo(70);  // holds less already
  EXPECT_EQ(a.bytes(), 60u);
  a.ShrinkTo(10);
  EXPECT_EQ(budget.used(), 50u);
  b = std::move(a);  // gives back what it held
  EXPECT_EQ(budget.used(), 10u);
  { Reservation c = std::move(b); }
  EXPECT_EQ(budget.used(), 0u);
  EXPECT_EQ(budget.peak(), 100u);
}

TEST_F(StoreTest, ListGoesThroughAllInPages) {
  Open(10);
  for (int n = 0; n < 10; ++n) ASSERT_TRUE(Put(n).ok());
  std::vector<BlockKey> seen;
  std::optional<BlockKey> after;
  for (size_t before = 1; before != seen.size();) {
    before = seen.size();
    store_->List(after, 3, [&](const StoredBlockPtr& b) {
      seen.push_back(b->key);
      after = b->key;
      return true;
    });
    if (before == seen.size()) break;
  }
  EXPECT_EQ(seen.size(), 10u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
}

}  // namespace
}  // namespace latticekv
