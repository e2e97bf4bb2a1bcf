#include "core/store/tiered_store.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/mutex.h"
#include "core/store/block_index.h"

namespace latticekv {
namespace {

// What the index, the block's own object and the allocator take beside frame and metadata: 684
// bytes as measured with glibc on a block with a parent and a time to live.
constexpr size_t kIndexShareBytes = 768;

class MemoryStore : public TieredStore {
 public:
  explicit MemoryStore(const StoreOptions& options)
      : clock_(options.clock), budget_(options.memory_bytes), index_(options.memory_bytes) {}

  absl::StatusOr<Reservation> Reserve(size_t bytes) override;
  absl::StatusOr<PutResult> Put(StoredBlock block) override;
  StoredBlockPtr Get(const BlockKey& key) override;
  StoredBlockPtr Peek(const BlockKey& key) const override;
  std::vector<StoredBlockPtr> Children(const BlockKey& parent) const override;
  bool Touch(const BlockKey& key) override;
  absl::Status Pin(const BlockKey& key, int64_t ttl_ms) override;
  absl::Status Unpin(const BlockKey& key) override;
  absl::Status SetTtl(const BlockKey& key, int64_t ttl_ms) override;
  bool Delete(const BlockKey& key) override;
  void List(const std::optional<BlockKey>& after, size_t limit,
            const std::function<bool(const StoredBlockPtr&)>& visit) const override;
  bool IsPinned(const BlockKey& key) const override;
  StoreStats Stats() const override;
  void SetRemovalListener(std::function<void(const StoredBlockPtr&)> listener) override {
    listener_ = std::move(listener);
  }

 private:
  // Blocks that left the index while the lock was held, released and announced once it is not.
  using Removed = std::vector<StoredBlockPtr>;
  void Announce(const Removed& removed) const {
    if (!listener_) return;
    for (const StoredBlockPtr& block : removed) listener_(block);
  }
  // Lets time pass: pins lapse, blocks expire.
  void Advance(Removed& removed) const LKV_REQUIRES(mutex_);
  // Null when absent or expired. Unlike Advance it removes nothing, so nothing is announced: for
  // calls made with the caller's locks held.
  BlockIndex::Entry* FindLive(const BlockKey& key) LKV_REQUIRES(mutex_);
  absl::Status Full(size_t bytes) const LKV_REQUIRES(mutex_);
  absl::Status PinnedFull() const;
  // 0 for a `ttl_ms` of 0.
  int64_t Deadline(int64_t ttl_ms) const;
  static absl::Status Absent() {
    return absl::NotFoundError("the block is not stored; it was never put, deleted or evicted");
  }

  const Clock* const clock_;
  MemoryBudget budget_;  // before the index: outlives the blocks' reservations
  std::function<void(const StoredBlockPtr&)> listener_;
  mutable Mutex mutex_;
  // Mutable: reading lets expired blocks go.
  mutable BlockIndex index_ LKV_GUARDED_BY(mutex_);
  mutable StoreStats counters_ LKV_GUARDED_BY(mutex_);
};

void MemoryStore::Advance(Removed& removed) const {
  const size_t before = removed.size();
  index_.AdvanceTo(clock_->MonotonicMs(), removed);
  counters_.expired_blocks += removed.size() - before;
}

BlockIndex::Entry* MemoryStore::FindLive(const BlockKey& key) {
  BlockIndex::Entry* entry = index_.Find(key);
  return entry != nullptr && entry->ExpiredAt(clock_->MonotonicMs()) ? nullptr : entry;
}

int64_t MemoryStore::Deadline(int64_t ttl_ms) const {
  if (ttl_ms <= 0) return 0;
  const int64_t now_ms = clock_->MonotonicMs();
  return ttl_ms > std::numeric_limits<int64_t>::max() - now_ms ? 0 : now_ms + ttl_ms;
}

absl::Status MemoryStore::PinnedFull() const {
  return absl::ResourceExhaustedError(
      absl::StrCat("pinned blocks may hold half of the memory, ", budget_.capacity() / 2,
                   " bytes, and would pass it; unpin others or raise --memory_bytes"));
}

absl::Status MemoryStore::Full(size_t bytes) const {
  ++counters_.rejected_full;
  return absl::ResourceExhaustedError(
      absl::StrCat("host memory is full: ", bytes, " bytes are needed, ", budget_.used(), " of ",
                   budget_.capacity(),
                   " are in use and no more can be evicted (pinned blocks, blocks being read "
                   "and uploads stay); raise --memory_bytes, unpin blocks, or try again later"));
}

absl::StatusOr<Reservation> MemoryStore::Reserve(size_t bytes) {
  Reservation out;
  while (!budget_.TryReserve(bytes, &out)) {
    Removed removed;
    {
      MutexLock lock(mutex_);
      Advance(removed);
      if (removed.empty()) {
        const size_t used = budget_.used();
        // What is not in the index, or pinned, cannot be evicted.
        const uint64_t fixed = used - index_.stored_bytes() + index_.pinned_bytes();
        if (bytes > budget_.capacity() || fixed > budget_.capacity() - bytes) return Full(bytes);
        if (used <= budget_.capacity() - bytes) continue;  // came free meanwhile
        const std::vector<BlockKey> victims = index_.Victims(used - (budget_.capacity() - bytes));
        if (victims.empty()) return Full(bytes);
        for (const BlockKey& key : victims) {
          removed.push_back(index_.Remove(key));
          ++counters_.evicted_blocks;
          counters_.evicted_bytes += removed.back()->reservation.bytes();
        }
      }
    }
    Announce(removed);
  }
  return out;
}

absl::StatusOr<PutResult> MemoryStore::Put(StoredBlock block) {
  const size_t needed = EntryBytes(block.frame.size(), block.metadata.size());
  if (block.reservation.bytes() < needed) {
    return absl::InvalidArgumentError(absl::StrCat("a block of ", needed, " bytes was put with ",
                                                   block.reservation.bytes(), " bytes reserved"));
  }
  // The cap counts sizes, so there must be no slack behind them.
  block.frame.shrink_to_fit();
  block.metadata.shrink_to_fit();
  auto stored = std::make_shared<const StoredBlock>(std::move(block));
  Removed removed;
  StoredBlockPtr replaced;
  absl::StatusOr<PutResult> result = PutResult{};
  {
    MutexLock lock(mutex_);
    Advance(removed);
    BlockIndex::Entry* entry = index_.Find(stored->key);
    if (entry == nullptr) {
      ++counters_.puts;
      index_.Insert(stored);
      result = PutResult{true, stored};
    } else if (entry->block->quality_rank >= stored->quality_rank) {
      ++counters_.duplicates;
      index_.Use(*entry);
      result = PutResult{false, entry->block};
    } else if (entry->pinned() &&
               index_.pinned_bytes() - entry->bytes() + stored->reservation.bytes() >
                   budget_.capacity() / 2) {
      result = PinnedFull();
    } else {
      ++counters_.puts;
      ++counters_.replaced;
      replaced = index_.Replace(*entry, stored);
      index_.Use(*entry);
      result = PutResult{true, stored};
    }
  }
  Announce(removed);
  return result;
}

StoredBlockPtr MemoryStore::Get(const BlockKey& key) {
  Removed removed;
  StoredBlockPtr out;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    BlockIndex::Entry* entry = index_.Find(key);
    ++(entry ? counters_.hits : counters_.misses);
    if (entry != nullptr) {
      index_.Use(*entry);
      out = entry->block;
    }
  }
  Announce(removed);
  return out;
}

StoredBlockPtr MemoryStore::Peek(const BlockKey& key) const {
  Removed removed;
  StoredBlockPtr out;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    const BlockIndex::Entry* entry = index_.Find(key);
    if (entry != nullptr) out = entry->block;
  }
  Announce(removed);
  return out;
}

std::vector<StoredBlockPtr> MemoryStore::Children(const BlockKey& parent) const {
  MutexLock lock(mutex_);
  return index_.Children(parent, clock_->MonotonicMs());
}

bool MemoryStore::Touch(const BlockKey& key) {
  MutexLock lock(mutex_);
  BlockIndex::Entry* entry = FindLive(key);
  if (entry != nullptr) index_.Use(*entry);
  return entry != nullptr;
}

absl::Status MemoryStore::Pin(const BlockKey& key, int64_t ttl_ms) {
  Removed removed;
  absl::Status status;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    BlockIndex::Entry* entry = index_.Find(key);
    if (entry == nullptr) {
      status = Absent();
    } else if (entry->pins() >= limits::kMaxPinsPerBlock) {
      status = absl::ResourceExhaustedError(
          absl::StrCat("the block has ", entry->pins(), " pins, the most there may be; unpin it"));
    } else if (!entry->pinned() &&
               index_.pinned_bytes() + entry->bytes() > budget_.capacity() / 2) {
      status = PinnedFull();
    } else {
      index_.AddPin(*entry, Deadline(ttl_ms));
    }
  }
  Announce(removed);
  return status;
}

absl::Status MemoryStore::Unpin(const BlockKey& key) {
  Removed removed;
  absl::Status status;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    BlockIndex::Entry* entry = index_.Find(key);
    if (entry == nullptr) {
      status = Absent();
    } else if (!index_.RemovePin(*entry)) {
      status = absl::FailedPreconditionError("the block is not pinned");
    }
  }
  Announce(removed);
  return status;
}

absl::Status MemoryStore::SetTtl(const BlockKey& key, int64_t ttl_ms) {
  MutexLock lock(mutex_);
  BlockIndex::Entry* entry = FindLive(key);
  if (entry == nullptr) return Absent();
  index_.SetExpiry(*entry, Deadline(ttl_ms));
  return absl::OkStatus();
}

bool MemoryStore::Delete(const BlockKey& key) {
  Removed removed;
  bool found = false;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    found = index_.Find(key) != nullptr;
    if (found) {
      removed.push_back(index_.Remove(key));
      ++counters_.deleted_blocks;
    }
  }
  Announce(removed);
  return found;
}

void MemoryStore::List(const std::optional<BlockKey>& after, size_t limit,
                       const std::function<bool(const StoredBlockPtr&)>& visit) const {
  Removed removed;
  std::vector<StoredBlockPtr> blocks;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    blocks = index_.List(after, limit);
  }
  Announce(removed);
  for (const StoredBlockPtr& block : blocks) {
    if (!visit(block)) return;
  }
}

bool MemoryStore::IsPinned(const BlockKey& key) const {
  Removed removed;
  bool pinned = false;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    const BlockIndex::Entry* entry = index_.Find(key);
    pinned = entry != nullptr && entry->pinned();
  }
  Announce(removed);
  return pinned;
}

StoreStats MemoryStore::Stats() const {
  Removed removed;
  StoreStats out;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    out = counters_;
    out.blocks = index_.size();
    out.stored_bytes = index_.stored_bytes();
    out.pinned_blocks = index_.pinned_blocks();
  }
  Announce(removed);
  removed.clear();
  out.memory_used_bytes = budget_.used();
  out.memory_peak_bytes = budget_.peak();
  out.memory_capacity_bytes = budget_.capacity();
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TieredStore>> TieredStore::Open(const StoreOptions& options) {
  if (options.memory_bytes == 0 || options.clock == nullptr) {
    return absl::InvalidArgumentError("the store needs memory; set --memory_bytes above zero");
  }
  return std::make_unique<MemoryStore>(options);
}

size_t TieredStore::EntryBytes(size_t frame_bytes, size_t metadata_bytes) {
  return frame_bytes + metadata_bytes + kIndexShareBytes;
}

}  // namespace latticekv
