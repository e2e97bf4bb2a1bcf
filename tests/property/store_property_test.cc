// Random operations against a plain model that predicts every answer, which blocks leave and in
// which order. LATTICEKV_SEED sets the seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>
#include <vector>

#include "core/store/tiered_store.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

constexpr uint32_t kKeys = 40;

BlockKey KeyOf(uint32_t n) { return Sha256Of(AsBytes(std::to_string(n))); }

// Says what a store must do, by looking at every block each time.
class Model {
 public:
  struct Block {
    std::optional<BlockKey> parent;
    uint32_t rank = 0;
    size_t bytes = 0;
    uint64_t rank_in_order = 0;  // lowest leaves first
    uint32_t shared_uses = 0;
    int64_t expires_ms = 0;
    uint32_t lasting_pins = 0;
    std::multiset<int64_t> timed_pins;
    bool held = false;  // by a reader
    bool pinned() const { return lasting_pins > 0 || !timed_pins.empty(); }
  };
  using Blocks = std::map<BlockKey, Block>;

  explicit Model(size_t capacity) : capacity_(capacity) {}

  const Block* Find(const BlockKey& key) const {
    const auto it = blocks_.find(key);
    return it == blocks_.end() ? nullptr : &it->second;
  }
  Block* Find(const BlockKey& key) { return const_cast<Block*>(std::as_const(*this).Find(key)); }
  // Time is bytes put or used; half a capacity for reuse, one for each use with two continuations.
  void Use(const BlockKey& key) {
    Block& block = blocks_.at(key);
    now_ += block.bytes;
    if (Children(key).size() >= 2) block.shared_uses = std::min(block.shared_uses + 1, 16u);
    block.rank_in_order = std::max(block.rank_in_order,
                                   now_ + capacity_ / 2 + uint64_t{block.shared_uses} * capacity_);
  }

  // The blocks that expire; pins lapse.
  std::set<BlockKey> AdvanceTo(int64_t now_ms) {
    std::set<BlockKey> expired;
    for (auto& [key, block] : blocks_) {
      block.timed_pins.erase(block.timed_pins.begin(), block.timed_pins.upper_bound(now_ms));
      if (block.expires_ms != 0 && block.expires_ms <= now_ms) expired.insert(key);
    }
    for (const BlockKey& key : expired) Remove(key);
    return expired;
  }

  void Remove(const BlockKey& key) {
    if (blocks_.at(key).held) held_after_removal_ += blocks_.at(key).bytes;
    Drop(&blocks_, key);
  }

  // The blocks that a reservation evicts, in order; nothing when it must be refused.
  std::optional<std::vector<BlockKey>> Reserve(size_t bytes) {
    if (used() + bytes <= capacity_) return std::vector<BlockKey>();
    if (bytes > capacity_) return std::nullopt;
    for (const bool with_held : {false, true}) {
      const auto victims = Plan(used() + bytes - capacity_, with_held);
      if (!victims) continue;
      for (const BlockKey& key : *victims) Remove(key);
      return victims;
    }
    return std::nullopt;
  }

  // What Put answers: stored or not, or nothing for a refusal.
  std::optional<bool> Put(const BlockKey& key, const Block& block) {
    Block* old = Find(key);
    if (old == nullptr) {
      now_ += block.bytes;
      blocks_[key] = block;
      blocks_[key].rank_in_order = now_;
      return true;
    } else if (old->rank >= block.rank) {
      Use(key);
      return false;
    } else if (old->pinned() && pinned_bytes() - old->bytes + block.bytes > capacity_ / 2) {
      return std::nullopt;
    } else {
      if (old->held) held_after_removal_ += old->bytes;
      old->rank = block.rank;
      old->bytes = block.bytes;
      old->held = false;
    }
    Use(key);
    return true;
  }

  void ReadersLetGo() {
    held_after_removal_ = 0;
    for (auto& [key, block] : blocks_) block.held = false;
  }

  size_t stored_bytes() const {
    size_t bytes = 0;
    for (const auto& [key, block] : blocks_) bytes += block.bytes;
    return bytes;
  }
  size_t used() const { return stored_bytes() + held_after_removal_; }
  size_t pinned_bytes() const {
    size_t bytes = 0;
    for (const auto& [key, block] : blocks_) bytes += block.pinned() ? block.bytes : 0;
    return bytes;
  }
  std::vector<BlockKey> Children(const BlockKey& parent) const {
    return ChildrenIn(blocks_, parent);
  }
  const Blocks& blocks() const { return blocks_; }

 private:
  static std::vector<BlockKey> ChildrenIn(const Blocks& blocks, const BlockKey& parent) {
    std::vector<BlockKey> out;
    for (const auto& [key, block] : blocks) {
      if (block.parent == parent) out.push_back(key);
    }
    return out;
  }

  // A parent ranks at least as high as the children that it had.
  static void Drop(Blocks* blocks, const BlockKey& key) {
    const Block block = blocks->at(key);
    blocks->erase(key);
    if (!block.parent || !blocks->contains(*block.parent)) return;
    Block& parent = blocks->at(*block.parent);
    parent.rank_in_order = std::max(parent.rank_in_order, block.rank_in_order);
  }

  std::optional<std::vector<BlockKey>> Plan(size_t bytes, bool with_held) const {
    Blocks left = blocks_;
    std::vector<BlockKey> out;
    for (size_t freed = 0; freed < bytes;) {
      const BlockKey* coldest = nullptr;
      for (const auto& [key, block] : left) {
        if (block.pinned() || (block.held && !with_held) || !ChildrenIn(left, key).empty())
          continue;
        if (coldest == nullptr || block.rank_in_order < left.at(*coldest).rank_in_order)
          coldest = &key;
      }
      if (coldest == nullptr) return std::nullopt;
      const BlockKey key = *coldest;
      if (!left.at(key).held) freed += left.at(key).bytes;
      out.push_back(key);
      Drop(&left, key);
    }
    // A held block goes only for the sake of an ancestor that is not.
    const std::set<BlockKey> taken(out.begin(), out.end());
    std::erase_if(out, [&](const BlockKey& key) {
      std::optional<BlockKey> at = key;
      while (at && taken.contains(*at)) {
        if (!blocks_.at(*at).held) return false;
        at = blocks_.at(*at).parent;
      }
      return true;
    });
    return out;
  }

  const size_t capacity_;
  Blocks blocks_;
  uint64_t now_ = 0;
  size_t held_after_removal_ = 0;
};

class Round {
 public:
  explicit Round(testing::Random& random) : random_(random), model_(Capacity(random)) {
    StoreOptions options;
    options.memory_bytes = capacity_;
    options.clock = &clock_;
    store_ = *TieredStore::Open(options);
    store_->SetRemovalListener(
        [this](const BlockKey& key, RemovalReason) { removed_.push_back(key); });
  }

  void Step() {
    if (random_.Below(3) == 0) clock_.Advance(random_.Below(10));
    const std::set<BlockKey> expired = model_.AdvanceTo(clock_.MonotonicMs());
    std::vector<BlockKey> expected;  // evicted or deleted, in order
    removed_.clear();
    Operate(&expected);
    Compare();  // calls that let expired blocks go
    // Expired blocks come in any order.
    std::vector<BlockKey> others;
    std::set<BlockKey> gone;
    for (const BlockKey& key : removed_) {
      if (expired.contains(key) && gone.insert(key).second) continue;
      others.push_back(key);
    }
    EXPECT_EQ(gone, expired);
    EXPECT_EQ(others, expected);
    evicted_ += expected.size();
  }

  size_t evicted() const { return evicted_; }

 private:
  size_t Capacity(testing::Random& random) { return capacity_ = 20'000 + random.Below(20'000); }

  void Operate(std::vector<BlockKey>* expected) {
    const uint32_t n = random_.Below(kKeys);
    const BlockKey key = KeyOf(n);
    Model::Block* block = model_.Find(key);
    const int64_t ttl_ms = random_.Below(3) == 0 ? 0 : 1 + random_.Below(200);
    const int64_t due_ms = ttl_ms == 0 ? 0 : clock_.MonotonicMs() + ttl_ms;
    switch (random_.Below(14)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return Put(n, expected);
      case 4:
      case 5: {
        StoredBlockPtr got = store_->Get(key);
        ASSERT_EQ(got != nullptr, block != nullptr);
        if (block == nullptr) return;
        EXPECT_EQ(got->frame, ByteVector(got->frame.size(), static_cast<std::byte>(n)));
        model_.Use(key);
        if (random_.Below(2) == 0) {
          block->held = true;
          readers_.push_back(std::move(got));
        }
        return;
      }
      case 6:
        EXPECT_EQ(store_->Touch(key), block != nullptr);
        if (block != nullptr) model_.Use(key);
        return;
      case 7:
        if (random_.Below(3) != 0) return;
        EXPECT_EQ(store_->Delete(key), block != nullptr);
        if (block != nullptr) {
          expected->push_back(key);
          model_.Remove(key);
        }
        return;
      case 8:
        return Pin(KeyOf(n / 8), ttl_ms, due_ms);
      case 9:
        return Unpin(KeyOf(n / 8));
      case 10:
        EXPECT_EQ(store_->SetTtl(key, ttl_ms).ok(), block != nullptr);
        if (block != nullptr) block->expires_ms = due_ms;
        return;
      case 11: {
        std::vector<BlockKey> children;
        for (const StoredBlockPtr& child : store_->Children(key)) children.push_back(child->key);
        EXPECT_EQ(children, model_.Children(key));
        return;
      }
      case 12:
        EXPECT_EQ(store_->IsPinned(key), block != nullptr && block->pinned());
        return;
      default:
        if (random_.Below(8) != 0) return;
        readers_.clear();
        model_.ReadersLetGo();
    }
  }

  void Put(uint32_t n, std::vector<BlockKey>* expected) {
    const size_t frame_bytes = 100 + random_.Below(1500);
    Model::Block next;
    if (n >= 4) next.parent = KeyOf(n * 2 / 3);  // chains that branch
    next.rank = random_.Below(4);
    next.bytes = TieredStore::EntryBytes(frame_bytes, 0) + random_.Below(2) * 100;
    auto reservation = store_->Reserve(next.bytes);
    const auto victims = model_.Reserve(next.bytes);
    ASSERT_EQ(reservation.ok(), victims.has_value()) << reservation.status();
    if (!victims) {
      EXPECT_EQ(reservation.status().code(), absl::StatusCode::kResourceExhausted);
      return;
    }
    *expected = *victims;
    StoredBlock block;
    block.key = KeyOf(n);
    block.parent = next.parent;
    block.frame.assign(frame_bytes, static_cast<std::byte>(n));
    block.quality_rank = next.rank;
    block.reservation = *std::move(reservation);
    const auto result = store_->Put(std::move(block));
    const std::optional<bool> stored = model_.Put(KeyOf(n), next);
    ASSERT_EQ(result.ok(), stored.has_value()) << result.status();
    if (!stored) return;
    EXPECT_EQ(result->stored, *stored);
    EXPECT_EQ(result->block->quality_rank, model_.Find(KeyOf(n))->rank);
  }

  void Pin(const BlockKey& key, int64_t ttl_ms, int64_t due_ms) {
    Model::Block* block = model_.Find(key);
    const absl::Status status = store_->Pin(key, ttl_ms);
    if (block == nullptr) {
      EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    } else if (!block->pinned() && model_.pinned_bytes() + block->bytes > capacity_ / 2) {
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    } else {
      EXPECT_TRUE(status.ok()) << status;
      if (ttl_ms == 0) {
        ++block->lasting_pins;
      } else {
        block->timed_pins.insert(due_ms);
      }
    }
  }

  void Unpin(const BlockKey& key) {
    Model::Block* block = model_.Find(key);
    const absl::Status status = store_->Unpin(key);
    if (block == nullptr) {
      EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    } else if (!block->pinned()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    } else {
      EXPECT_TRUE(status.ok()) << status;
      if (block->lasting_pins > 0) {
        --block->lasting_pins;
      } else {
        block->timed_pins.erase(std::prev(block->timed_pins.end()));
      }
    }
  }

  void Compare() {
    const StoreStats stats = store_->Stats();
    EXPECT_EQ(stats.blocks, model_.blocks().size());
    EXPECT_EQ(stats.stored_bytes, model_.stored_bytes());
    EXPECT_EQ(stats.memory_used_bytes, model_.used());
    EXPECT_LE(stats.memory_peak_bytes, capacity_);
    EXPECT_LE(model_.pinned_bytes(), capacity_ / 2);
    const auto pinned = std::count_if(model_.blocks().begin(), model_.blocks().end(),
                                      [](const auto& pair) { return pair.second.pinned(); });
    EXPECT_EQ(stats.pinned_blocks, static_cast<uint64_t>(pinned));
    auto expected = model_.blocks().begin();
    store_->List(std::nullopt, kKeys, [&](const StoredBlockPtr& block) {
      EXPECT_EQ(block->key, expected->first);
      EXPECT_EQ(block->quality_rank, expected->second.rank);
      ++expected;
      return true;
    });
    EXPECT_EQ(expected, model_.blocks().end());
  }

  testing::Random& random_;
  size_t capacity_ = 0;
  Model model_;
  ManualClock clock_;
  std::unique_ptr<TieredStore> store_;
  std::vector<StoredBlockPtr> readers_;  // released before the store
  std::vector<BlockKey> removed_;
  size_t evicted_ = 0;
};

TEST(StorePropertyTest, RandomOperationsAgreeWithTheModel) {
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 77);
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  testing::Random random(seed);
  size_t evicted = 0;
  for (int n = 0; n < 40; ++n) {
    Round round(random);
    for (int step = 0; step < 2000; ++step) {
      round.Step();
      ASSERT_FALSE(::testing::Test::HasFailure()) << "round " << n << ", step " << step;
    }
    evicted += round.evicted();
  }
  EXPECT_GT(evicted, 1000u);
}

}  // namespace
}  // namespace latticekv
