#include "core/store/tiered_store.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <utility>

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
  absl::StatusOr<PutResult> Put(StoredBlock block, PutOptions options) override;
  void MakeDurable(const BlockKey& key, DurableCallback done) override;
  bool Contains(const BlockKey& key) const override;
  StoredBlockPtr Get(const BlockKey& key) override;
  StoredBlockPtr Peek(const BlockKey& key) override;
  void ReadAhead(std::span<const BlockKey> keys) override {}
  std::vector<StoredBlockPtr> Children(const BlockKey& parent) override;
  bool HasChildren(const BlockKey& parent) const override;
  bool Touch(const BlockKey& key) override;
  absl::Status Pin(const BlockKey& key, int64_t ttl_ms) override;
  absl::Status Unpin(const BlockKey& key) override;
  absl::Status SetTtl(const BlockKey& key, int64_t ttl_ms) override;
  bool Delete(const BlockKey& key) override;
  bool DropCorrupt(const StoredBlockPtr& block) override;
  void List(const std::optional<BlockKey>& after, size_t limit,
            const std::function<bool(const StoredBlockPtr&)>& visit) override;
  bool IsPinned(const BlockKey& key) override;
  StoreStats Stats() override;
  StoreHealth Health() const override;
  absl::Status Flush() override { return NoDisk(); }
  absl::StatusOr<ScrubReport> Scrub(
      const ScrubOptions& options,
      const std::function<bool(const ScrubReport&)>& progress) override {
    return NoDisk();
  }
  void SetRemovalListener(RemovalListener listener) override { listener_ = std::move(listener); }

 private:
  // Blocks that left the index while the lock was held, released and announced once it is not.
  class Removed {
   public:
    void Add(StoredBlockPtr block, RemovalReason reason) {
      blocks_.emplace_back(std::move(block), reason);
    }
    bool empty() const { return blocks_.empty(); }

   private:
    friend class MemoryStore;
    std::vector<std::pair<StoredBlockPtr, RemovalReason>> blocks_;
  };
  void Announce(const Removed& removed) const {
    if (!listener_) return;
    for (const auto& [block, reason] : removed.blocks_) listener_(block->key, reason);
  }
  // Lets time pass: pins lapse, blocks expire.
  void Advance(Removed& removed) const LKV_REQUIRES(mutex_);
  // Null when absent or expired. Unlike Advance it removes nothing, so nothing is announced: for
  // calls made with the caller's locks held.
  BlockIndex::Entry* FindLive(const BlockKey& key) const LKV_REQUIRES(mutex_);
  absl::Status Full(size_t bytes) const LKV_REQUIRES(mutex_);
  absl::Status PinnedFull() const;
  // 0 for a `ttl_ms` of 0.
  int64_t Deadline(int64_t ttl_ms) const;
  static absl::Status NoDisk() {
    return absl::FailedPreconditionError(
        "the store has no disk tier, so no block becomes durable; set --disk_dir and --disk_bytes");
  }
  static absl::Status Absent() {
    return absl::NotFoundError("the block is not stored; it was never put, deleted or evicted");
  }

  const Clock* const clock_;
  MemoryBudget budget_;  // before the index: outlives the blocks' reservations
  RemovalListener listener_;
  mutable Mutex mutex_;
  // Mutable: reading lets expired blocks go.
  mutable BlockIndex index_ LKV_GUARDED_BY(mutex_);
  std::atomic<uint64_t> last_version_{0};
  mutable StoreStats counters_ LKV_GUARDED_BY(mutex_);
};

void MemoryStore::Advance(Removed& removed) const {
  std::vector<StoredBlockPtr> expired;
  index_.AdvanceTo(clock_->MonotonicMs(), expired);
  counters_.expired_blocks += expired.size();
  for (StoredBlockPtr& block : expired) removed.Add(std::move(block), RemovalReason::kExpired);
}

BlockIndex::Entry* MemoryStore::FindLive(const BlockKey& key) const {
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
          StoredBlockPtr block = index_.Remove(key);
          ++counters_.evicted_blocks;
          counters_.evicted_bytes += block->reservation.bytes();
          removed.Add(std::move(block), RemovalReason::kEvicted);
        }
      }
    }
    Announce(removed);
  }
  return out;
}

absl::StatusOr<PutResult> MemoryStore::Put(StoredBlock block, PutOptions options) {
  const size_t needed = EntryBytes(block.frame.size(), block.metadata.size());
  if (block.reservation.bytes() < needed) {
    return absl::InvalidArgumentError(absl::StrCat("a block of ", needed, " bytes was put with ",
                                                   block.reservation.bytes(), " bytes reserved"));
  }
  // The cap counts sizes, so there must be no slack behind them.
  block.frame.shrink_to_fit();
  block.metadata.shrink_to_fit();
  block.frame_bytes = block.frame.size();
  block.source.reset();
  block.version = ++last_version_;
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
      entry = &index_.Insert(stored);
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
    if (result.ok() && result->stored && options.ttl_ms) {
      index_.SetExpiry(*entry, Deadline(*options.ttl_ms));
    }
  }
  Announce(removed);
  if (result.ok() && options.durability == Durability::kDurable) options.on_durable(NoDisk());
  return result;
}

void MemoryStore::MakeDurable(const BlockKey& key, DurableCallback done) {
  done(Contains(key) ? NoDisk() : Absent());
}

bool MemoryStore::Contains(const BlockKey& key) const {
  MutexLock lock(mutex_);
  return FindLive(key) != nullptr;
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

StoredBlockPtr MemoryStore::Peek(const BlockKey& key) {
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

std::vector<StoredBlockPtr> MemoryStore::Children(const BlockKey& parent) {
  MutexLock lock(mutex_);
  return index_.Children(parent, clock_->MonotonicMs());
}

bool MemoryStore::HasChildren(const BlockKey& parent) const {
  MutexLock lock(mutex_);
  return !index_.Children(parent, clock_->MonotonicMs()).empty();
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
      removed.Add(index_.Remove(key), RemovalReason::kDeleted);
      ++counters_.deleted_blocks;
    }
  }
  Announce(removed);
  return found;
}

bool MemoryStore::DropCorrupt(const StoredBlockPtr& block) {
  Removed removed;
  bool same = false;
  {
    MutexLock lock(mutex_);
    BlockIndex::Entry* entry = index_.Find(block->key);
    same = entry != nullptr && entry->block->version == block->version;
    if (same) {
      removed.Add(index_.Remove(block->key), RemovalReason::kCorrupt);
      ++counters_.corrupt_dropped;
    }
  }
  Announce(removed);
  return same;
}

void MemoryStore::List(const std::optional<BlockKey>& after, size_t limit,
                       const std::function<bool(const StoredBlockPtr&)>& visit) {
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

bool MemoryStore::IsPinned(const BlockKey& key) {
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

StoreStats MemoryStore::Stats() {
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
  removed = Removed();
  out.memory_used_bytes = budget_.used();
  out.memory_peak_bytes = budget_.peak();
  out.memory_capacity_bytes = budget_.capacity();
  return out;
}

StoreHealth MemoryStore::Health() const {
  return {StoreHealth::State::kNoDisk, "no disk tier is configured: blocks end with the process"};
}

}  // namespace

absl::Status StoredBlock::ReadFrame(uint64_t offset, MutableByteSpan out) const {
  if (offset > frame_bytes || out.size() > frame_bytes - offset) {
    return absl::DataLossError(absl::StrCat("the frame has ", frame_bytes, " bytes, and bytes ",
                                            offset, " to ", offset + out.size(),
                                            " were asked for; the block is damaged"));
  }
  if (source) return source->Read(offset, out);
  std::copy_n(frame.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
  return absl::OkStatus();
}

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
