#include "core/store/tiered_store.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/store/store_impl.h"

namespace latticekv {
namespace {

// What the index, the block's own object and the allocator take beside frame and metadata: 684
// bytes as measured with glibc on a block with a parent and a time to live.
constexpr size_t kIndexShareBytes = 768;

absl::Status NoDisk() {
  return absl::FailedPreconditionError(
      "the store has no disk tier, so no block becomes durable; set --disk_dir and --disk_bytes");
}

absl::Status Absent() {
  return absl::NotFoundError("the block is not stored; it was never put, deleted or evicted");
}

}  // namespace

absl::Status StoreImpl::PinnedFull(std::string_view what, uint64_t capacity) const {
  return absl::ResourceExhaustedError(absl::StrCat(
      "pinned blocks may hold half of the ", std::string(what), ", ", capacity / 2,
      " bytes, and would pass it; unpin others or raise --", std::string(what), "_bytes"));
}

absl::Status StoreImpl::Full(size_t bytes) {
  ++counters_.rejected_full;
  return absl::ResourceExhaustedError(
      absl::StrCat("host memory is full: ", bytes, " bytes are needed, ", budget_.used(), " of ",
                   budget_.capacity(),
                   " are in use and no more can be evicted (pinned blocks, blocks being read "
                   "and uploads stay); raise --memory_bytes, unpin blocks, or try again later"));
}

absl::StatusOr<Reservation> StoreImpl::Reserve(size_t bytes) {
  Reservation out;
  const int64_t deadline_ms = Clock::Real()->MonotonicMs() + limits::kWriteBackWaitMs;
  bool waiting = true;  // for blocks to be written before they go
  while (!budget_.TryReserve(bytes, &out)) {
    Removed removed;
    {
      MutexLock lock(mutex_);
      Advance(removed);
      if (removed.keys.empty()) {
        const size_t used = budget_.used();
        // What is not in the index, or pinned, cannot be evicted.
        const uint64_t fixed = used - index_.stored_bytes() + index_.pinned_bytes();
        const bool hopeless = bytes > budget_.capacity() || fixed > budget_.capacity() - bytes;
        // Writing a pinned block to disk lets it go.
        if (hopeless && (bytes > budget_.capacity() || index_.pinned_bytes() == 0 ||
                         !DiskWritable() || !waiting)) {
          return Full(bytes);
        }
        if (!hopeless && used <= budget_.capacity() - bytes) continue;  // came free meanwhile
        std::vector<BlockKey> victims;
        if (!hopeless) victims = index_.Victims(used - (budget_.capacity() - bytes));
        std::vector<BlockKey> dirty;
        if (victims.empty()) {
          dirty = index_.NotOnDisk();
        } else {
          for (const BlockKey& key : victims) {
            if (!index_.Find(key)->on_disk) dirty.push_back(key);
          }
        }
        const bool may_help = victims.empty() ? writing_ || !dirty.empty() : !dirty.empty();
        if (waiting && may_help && DiskWritable()) {
          waiting = WaitForWriteBack(std::move(dirty), deadline_ms);
          continue;
        }
        if (victims.empty()) return Full(bytes);
        EvictFromMemory(victims, removed);
      }
    }
    Announce(removed);
  }
  return out;
}

absl::StatusOr<PutResult> StoreImpl::Put(StoredBlock block, PutOptions options) {
  const size_t needed = EntryBytes(block.frame.size(), block.metadata.size());
  if (block.reservation.bytes() < needed) {
    return absl::InvalidArgumentError(absl::StrCat("a block of ", needed, " bytes was put with ",
                                                   block.reservation.bytes(), " bytes reserved"));
  }
  if (block.quality_rank > limits::kMaxQualityRank) {
    return absl::InvalidArgumentError(absl::StrCat("the quality rank is ", block.quality_rank,
                                                   "; use at most ", limits::kMaxQualityRank));
  }
  // The cap counts sizes, so there must be no slack behind them.
  block.frame.shrink_to_fit();
  block.metadata.shrink_to_fit();
  block.frame_bytes = block.frame.size();
  block.source.reset();
  const auto stored = Share(std::move(block));
  const BlockKey key = stored->key;
  const bool durable = options.durability == Durability::kDurable;
  for (;;) {
    Removed removed;
    StoredBlockPtr replaced;
    PutResult result{true, stored};
    absl::Status refused;
    std::optional<DiskRef> there;  // as good a block, on disk only
    std::optional<absl::Status> durable_now;
    {
      MutexLock lock(mutex_);
      Advance(removed);
      BlockIndex::Entry* entry = index_.Find(key);
      const Slot slot = FindOrExpire(key, removed);
      const bool pinned =
          entry ? entry->pinned()
                : slot != kNone && disk_index_.CountPins(slot, clock_->MonotonicMs()) > 0;
      const uint64_t fixed = entry && entry->fixed() ? entry->bytes() : 0;
      if (entry != nullptr && entry->block->quality_rank >= stored->quality_rank) {
        ++counters_.duplicates;
        index_.Use(*entry);
        result = {false, entry->block};
      } else if (entry == nullptr && slot != kNone &&
                 disk_index_.quality_rank(slot) >= stored->quality_rank) {
        ++counters_.duplicates;
        UseOnDisk(slot);
        there = RefOf(slot);
        result.stored = false;
      } else if (pinned && index_.pinned_bytes() - fixed + stored->reservation.bytes() >
                               budget_.capacity() / 2) {
        refused = PinnedFull("memory", budget_.capacity());
      } else {
        stored->version = ++last_sequence_;
        ++counters_.puts;
        if (entry != nullptr || slot != kNone) ++counters_.replaced;
        if (entry != nullptr) {
          replaced = index_.Replace(*entry, stored);
          index_.Use(*entry);
        } else {
          entry = &InsertInMemory(stored);
        }
        if (options.ttl_ms) {
          index_.SetExpiry(*entry, Deadline(*options.ttl_ms));
          MirrorState(*entry);
        }
      }
      if (refused.ok() && durable && !there) durable_now = QueueDurable(key, options.on_durable);
    }
    Announce(removed);
    if (!refused.ok()) return refused;
    if (there) {
      result.block = Describe(key, *there);
      if (!result.block) continue;  // it was damaged, and is gone
      if (durable) MakeDurable(key, std::move(options.on_durable));
      return result;
    }
    if (durable_now) options.on_durable(*durable_now);
    return result;
  }
}

std::optional<absl::Status> StoreImpl::QueueDurable(const BlockKey& key, DurableCallback& done) {
  if (!has_disk_) return Present(key) ? NoDisk() : Absent();
  const BlockIndex::Entry* entry = FindLive(key);
  const Slot slot = FindOnDisk(key);
  if (entry == nullptr && slot == kNone) return Absent();
  Job job;
  job.key = key;
  job.durable = true;
  if (entry == nullptr || entry->on_disk) {
    const DiskRef ref = RefOf(slot);
    if (ref.place.offset + ref.place.bytes <= ref.segment->synced_end) {
      ++counters_.durable_blocks;
      return absl::OkStatus();
    }
    job.kind = JobKind::kSync;
  } else {
    job.block = entry->block;
  }
  if (!DiskWritable()) return absl::UnavailableError(health_.reason);
  job.done = std::move(done);
  jobs_.push_back(std::move(job));
  writer_wake_.Signal();
  return std::nullopt;
}

void StoreImpl::MakeDurable(const BlockKey& key, DurableCallback done) {
  std::optional<absl::Status> now;
  {
    MutexLock lock(mutex_);
    now = QueueDurable(key, done);
  }
  if (now) done(*now);
}

bool StoreImpl::Contains(const BlockKey& key) const {
  MutexLock lock(mutex_);
  return Present(key);
}

StoredBlockPtr StoreImpl::Peek(const BlockKey& key) {
  return std::move(PeekMany({&key, 1}).front());
}

std::vector<StoredBlockPtr> StoreImpl::Children(const BlockKey& parent) {
  std::vector<StoredBlockPtr> out;
  std::vector<DiskRef> refs;
  {
    MutexLock lock(mutex_);
    const int64_t now_ms = clock_->MonotonicMs();
    out = index_.Children(parent, now_ms);
    for (const Slot slot : disk_index_.Children(parent)) {
      if (!disk_index_.ExpiredAt(slot, now_ms)) refs.push_back(RefOf(slot));
    }
  }
  for (Description& block : ReadDescriptions(refs)) {
    if (!block.ok() || (*block)->parent != parent) continue;
    const auto same = [&](const StoredBlockPtr& b) { return b->key == (*block)->key; };
    if (std::none_of(out.begin(), out.end(), same)) out.push_back(*std::move(block));
  }
  std::sort(out.begin(), out.end(),
            [](const StoredBlockPtr& a, const StoredBlockPtr& b) { return a->key < b->key; });
  return out;
}

bool StoreImpl::HasChildren(const BlockKey& parent) const {
  MutexLock lock(mutex_);
  const int64_t now_ms = clock_->MonotonicMs();
  if (!index_.Children(parent, now_ms).empty()) return true;
  for (const Slot slot : disk_index_.Children(parent)) {
    if (!disk_index_.ExpiredAt(slot, now_ms)) return true;
  }
  return false;
}

bool StoreImpl::Touch(const BlockKey& key) {
  MutexLock lock(mutex_);
  BlockIndex::Entry* entry = FindLive(key);
  const Slot slot = FindOnDisk(key);
  if (entry != nullptr) index_.Use(*entry);
  if (slot != kNone) UseOnDisk(slot);
  return entry != nullptr || slot != kNone;
}

absl::Status StoreImpl::Pin(const BlockKey& key, int64_t ttl_ms) {
  Removed removed;
  absl::Status status;
  const auto too_many = [](size_t pins) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the block has ", pins, " pins, the most there may be; unpin it"));
  };
  {
    MutexLock lock(mutex_);
    Advance(removed);
    BlockIndex::Entry* entry = index_.Find(key);
    const Slot slot = FindOrExpire(key, removed);
    if (entry == nullptr && slot == kNone) {
      status = Absent();
    } else if (entry != nullptr) {
      if (entry->pins() >= limits::kMaxPinsPerBlock) {
        status = too_many(entry->pins());
      } else if (!entry->pinned() && !entry->on_disk &&
                 index_.pinned_bytes() + entry->bytes() > budget_.capacity() / 2) {
        status = PinnedFull("memory", budget_.capacity());
      } else if (!entry->pinned() && entry->on_disk && !DiskHasRoomForPin(slot)) {
        status = PinnedFull("disk", disk_budget_.capacity());
      } else {
        index_.AddPin(*entry, Deadline(ttl_ms));
        MirrorState(*entry);
      }
    } else if (const size_t pins = disk_index_.CountPins(slot, clock_->MonotonicMs());
               pins >= limits::kMaxPinsPerBlock) {
      status = too_many(pins);
    } else if (pins == 0 && !DiskHasRoomForPin(slot)) {
      status = PinnedFull("disk", disk_budget_.capacity());
    } else {
      PinSet set = pins == 0 ? PinSet() : *disk_index_.Pins(slot);
      const int64_t deadline_ms = Deadline(ttl_ms);
      if (deadline_ms == 0) {
        ++set.lasting;
      } else {
        set.timed.push_back(deadline_ms);
      }
      disk_index_.SetPins(slot, std::move(set));
      QueueState(key);
    }
  }
  Announce(removed);
  return status;
}

absl::Status StoreImpl::Unpin(const BlockKey& key) {
  Removed removed;
  absl::Status status;
  const absl::Status not_pinned = absl::FailedPreconditionError("the block is not pinned");
  {
    MutexLock lock(mutex_);
    Advance(removed);
    BlockIndex::Entry* entry = index_.Find(key);
    const Slot slot = FindOrExpire(key, removed);
    if (entry == nullptr && slot == kNone) {
      status = Absent();
    } else if (entry != nullptr) {
      if (!index_.RemovePin(*entry)) {
        status = not_pinned;
      } else {
        MirrorState(*entry);
      }
    } else if (disk_index_.CountPins(slot, clock_->MonotonicMs()) == 0) {
      status = not_pinned;
    } else {
      PinSet set = *disk_index_.Pins(slot);
      if (set.lasting > 0) {
        --set.lasting;
      } else {
        set.timed.erase(std::max_element(set.timed.begin(), set.timed.end()));
      }
      disk_index_.SetPins(slot, std::move(set));
      QueueState(key);
    }
  }
  Announce(removed);
  return status;
}

absl::Status StoreImpl::SetTtl(const BlockKey& key, int64_t ttl_ms) {
  MutexLock lock(mutex_);
  BlockIndex::Entry* entry = FindLive(key);
  const Slot slot = FindOnDisk(key);
  if (entry == nullptr && slot == kNone) return Absent();
  if (entry != nullptr) {
    index_.SetExpiry(*entry, Deadline(ttl_ms));
    MirrorState(*entry);
  } else if (const int64_t expires_ms = Deadline(ttl_ms);
             disk_index_.expires_ms(slot) != expires_ms) {
    disk_index_.SetExpiry(slot, expires_ms);
    QueueState(key);
  }
  return absl::OkStatus();
}

bool StoreImpl::Delete(const BlockKey& key) {
  Removed removed;
  bool found = false;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    const Slot slot = FindOrExpire(key, removed);
    const bool in_memory = index_.Find(key) != nullptr;
    found = in_memory || slot != kNone;
    if (in_memory) removed.blocks.push_back(RemoveFromMemory(key));
    if (slot != kNone) RemoveFromDisk(slot, key, /*tombstone=*/true, removed);
    if (found) {
      removed.keys.emplace_back(key, RemovalReason::kDeleted);
      ++counters_.deleted_blocks;
    }
  }
  Announce(removed);
  return found;
}

void StoreImpl::List(const std::optional<BlockKey>& after, size_t limit,
                     const std::function<bool(const StoredBlockPtr&)>& visit) {
  std::optional<BlockKey> from = after;
  while (limit > 0) {
    Removed removed;
    ListPage page;
    bool more = false;
    {
      MutexLock lock(mutex_);
      Advance(removed);
      for (StoredBlockPtr& block : index_.List(from, limit)) {
        const BlockKey place = PrefixKey(block->key);
        page.emplace(place, std::make_pair(std::move(block), DiskRef()));
      }
      AddDiskPage(from, limit, page);
    }
    Announce(removed);
    while (page.size() > limit) page.erase(std::prev(page.end()));
    more = page.size() == limit;
    std::vector<DiskRef> refs;
    for (const auto& [key, found] : page) {
      if (!found.first) refs.push_back(found.second);
    }
    std::vector<Description> described = ReadDescriptions(refs);
    auto next = described.begin();
    for (auto& [key, found] : page) {
      StoredBlockPtr& block = found.first;
      // Of a damaged one the next reader knows the key, and drops it.
      if (!block && next->ok()) block = **next;
      if (found.second.segment) ++next;
      from = block ? block->key : key;
      if (!block) continue;  // damaged
      if (!visit(block)) return;
      --limit;
    }
    if (!more) return;
  }
}

bool StoreImpl::IsPinned(const BlockKey& key) {
  Removed removed;
  bool pinned = false;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    if (const BlockIndex::Entry* entry = index_.Find(key)) {
      pinned = entry->pinned();
    } else if (const Slot slot = FindOrExpire(key, removed); slot != kNone) {
      pinned = disk_index_.CountPins(slot, clock_->MonotonicMs()) > 0;
    }
  }
  Announce(removed);
  return pinned;
}

absl::StatusOr<std::unique_ptr<TieredStore>> TieredStore::Open(const StoreOptions& options) {
  if (options.memory_bytes == 0 || options.clock == nullptr) {
    return absl::InvalidArgumentError("the store needs memory; set --memory_bytes above zero");
  }
  auto store = std::make_unique<StoreImpl>(options);
  if (!options.disk_dir.empty()) LKV_RETURN_IF_ERROR(store->OpenDisk());
  return store;
}

size_t TieredStore::EntryBytes(size_t frame_bytes, size_t metadata_bytes) {
  return frame_bytes + metadata_bytes + kIndexShareBytes;
}

}  // namespace latticekv
