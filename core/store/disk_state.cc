// What the store knows of a block in memory and of its record on disk, kept in agreement.
#include <algorithm>
#include <limits>

#include "core/base/limits.h"
#include "core/store/store_impl.h"

namespace latticekv {
void StoreImpl::Announce(Removed& removed) {
  if (!removed.keys.empty()) {
    std::shared_ptr<const RemovalListener> listener;
    {
      MutexLock lock(mutex_);
      listener = listener_;
    }
    if (listener) {
      for (const auto& [key, reason] : removed.keys) (*listener)(key, reason);
    }
  }
  removed = Removed();
}

int64_t StoreImpl::Deadline(int64_t ttl_ms) const {
  if (ttl_ms <= 0) return 0;
  const int64_t now_ms = clock_->MonotonicMs();
  return ttl_ms > std::numeric_limits<int64_t>::max() - now_ms ? 0 : now_ms + ttl_ms;
}

int64_t StoreImpl::WallOf(int64_t monotonic_ms) const {
  if (monotonic_ms == 0) return 0;
  const int64_t offset_ms = clock_->WallMs() - clock_->MonotonicMs();
  if (offset_ms > 0 && monotonic_ms > std::numeric_limits<int64_t>::max() - offset_ms) return 0;
  return monotonic_ms + offset_ms;
}

int64_t StoreImpl::MonotonicOf(int64_t wall_ms) const {
  if (wall_ms == 0) return 0;
  // One that lies before the start of the monotonic clock has passed.
  return std::max<int64_t>(1, wall_ms - (clock_->WallMs() - clock_->MonotonicMs()));
}

void StoreImpl::Advance(Removed& removed) {
  std::vector<StoredBlockPtr> expired;
  index_.AdvanceTo(clock_->MonotonicMs(), expired);
  counters_.expired_blocks += expired.size();
  for (StoredBlockPtr& block : expired) {
    const BlockKey key = block->key;
    if (const Slot slot = disk_index_.Find(key); slot != kNone) {
      --in_both_;
      RemoveFromDisk(slot, key, disk_index_.has_older(slot), removed);
    }
    removed.keys.emplace_back(key, RemovalReason::kExpired);
    removed.blocks.push_back(std::move(block));
  }
}

BlockIndex::Entry* StoreImpl::FindLive(const BlockKey& key) const {
  auto* entry = const_cast<BlockIndex&>(index_).Find(key);
  return entry != nullptr && entry->ExpiredAt(clock_->MonotonicMs()) ? nullptr : entry;
}

StoreImpl::Slot StoreImpl::FindOnDisk(const BlockKey& key) const {
  const Slot slot = disk_index_.Find(key);
  if (slot == kNone || disk_index_.ExpiredAt(slot, clock_->MonotonicMs())) return kNone;
  return slot;
}

StoreImpl::Slot StoreImpl::FindOrExpire(const BlockKey& key, Removed& removed) {
  const Slot slot = disk_index_.Find(key);
  if (slot == kNone || !disk_index_.ExpiredAt(slot, clock_->MonotonicMs())) return slot;
  // One in memory would have expired there, and taken its record along.
  if (index_.Find(key) != nullptr) return slot;
  RemoveFromDisk(slot, key, disk_index_.has_older(slot), removed);
  removed.keys.emplace_back(key, RemovalReason::kExpired);
  ++counters_.expired_blocks;
  return kNone;
}

bool StoreImpl::Present(const BlockKey& key) const {
  return FindLive(key) != nullptr || FindOnDisk(key) != kNone;
}

BlockIndex::Entry& StoreImpl::InsertInMemory(StoredBlockPtr block) {
  const BlockKey key = block->key;
  BlockIndex::Entry& entry = index_.Insert(std::move(block));
  const Slot slot = disk_index_.Find(key);
  if (slot == kNone) return entry;
  ++in_both_;
  index_.SetExpiry(entry, disk_index_.expires_ms(slot));
  if (const PinSet* pins = disk_index_.Pins(slot)) {
    for (uint32_t n = 0; n < pins->lasting; ++n) index_.AddPin(entry, 0);
    for (const int64_t lapses_ms : pins->timed) index_.AddPin(entry, lapses_ms);
  }
  return entry;
}

StoredBlockPtr StoreImpl::RemoveFromMemory(const BlockKey& key) {
  const BlockIndex::Entry& entry = *index_.Find(key);
  if (const Slot slot = disk_index_.Find(key); slot != kNone) {
    --in_both_;
    disk_index_.set_last_used(slot, DiskRank(entry));
  }
  return index_.Remove(key);
}

void StoreImpl::RemoveFromDisk(Slot slot, const BlockKey& key, bool tombstone, Removed& removed) {
  if (BlockIndex::Entry* entry = index_.Find(key)) {
    --in_both_;
    index_.SetOnDisk(*entry, false);
  }
  disk_index_.Remove(slot);
  if (tombstone) QueueTombstone(key);
}

void StoreImpl::QueueNote(JobKind kind, const BlockKey& key) {
  Job job;
  job.kind = kind;
  job.key = key;
  job.sequence = ++last_sequence_;
  notes_.push_back(std::move(job));
  writer_wake_.Signal();
}

void StoreImpl::QueueTombstone(const BlockKey& key) {
  // Its sequence ends what was put before now, and nothing that is put before it is written.
  QueueNote(JobKind::kTombstone, key);
}

void StoreImpl::EvictFromMemory(const std::vector<BlockKey>& victims, Removed& removed) {
  for (const BlockKey& key : victims) {
    const bool stays = FindOnDisk(key) != kNone;
    StoredBlockPtr block = RemoveFromMemory(key);
    if (stays) {
      ++counters_.evicted_to_disk;
    } else {
      ++counters_.evicted_blocks;
      counters_.evicted_bytes += block->reservation.bytes();
      removed.keys.emplace_back(key, RemovalReason::kEvicted);
    }
    removed.blocks.push_back(std::move(block));
  }
}

void StoreImpl::MirrorState(const BlockIndex::Entry& entry) {
  const BlockKey& key = entry.block->key;
  const Slot slot = disk_index_.Find(key);
  if (slot == kNone) return;
  const PinSet* old = disk_index_.Pins(slot);
  PinSet pins{entry.lasting_pins, entry.timed_pins};
  const bool same_pins =
      old == nullptr ? pins.size() == 0 : old->lasting == pins.lasting && old->timed == pins.timed;
  if (same_pins && disk_index_.expires_ms(slot) == entry.expires_ms) return;
  disk_index_.SetExpiry(slot, entry.expires_ms);
  disk_index_.SetPins(slot, std::move(pins));
  QueueState(key);
}

void StoreImpl::QueueState(const BlockKey& key) {
  if (!states_.insert(key).second) return;
  // By its sequence: should the block be gone by then, its record must not come back with the state
  // of before.
  QueueNote(JobKind::kState, key);
}

void StoreImpl::UseOnDisk(Slot slot) {
  const auto rank = static_cast<uint32_t>(index_.clock().RankOfUse() >> DiskIndex::kRankShift);
  disk_index_.set_last_used(slot, std::max(rank, disk_index_.last_used(slot)));
}

StoreImpl::DiskRef StoreImpl::RefOf(Slot slot) const {
  const DiskPlace place = disk_index_.PlaceOf(slot);
  return {segments_[place.segment], place};
}

bool StoreImpl::DiskHasRoomForPin(Slot slot) const {
  return disk_index_.pinned_bytes() + disk_index_.PlaceOf(slot).bytes <=
         disk_budget_.capacity() / 2;
}

void StoreImpl::DropDamaged(const BlockKey& key, const DiskPlace& place, Removed& removed) {
  const Slot slot = disk_index_.Find(key);
  if (slot == kNone || disk_index_.PlaceOf(slot) != place) return;
  ++counters_.corrupt_dropped;
  const bool in_memory = index_.Find(key) != nullptr;
  RemoveFromDisk(slot, key, /*tombstone=*/!in_memory, removed);
  if (!in_memory) removed.keys.emplace_back(key, RemovalReason::kCorrupt);
}

bool StoreImpl::DropCorrupt(const StoredBlockPtr& block) {
  Removed removed;
  bool dropped = false;
  const BlockKey key = block->key;
  const auto* source = dynamic_cast<const SegmentFrame*>(block->source.get());
  // Of a block that has left memory since, the record tells whether it is the same.
  const StoredBlockPtr now = source == nullptr ? Peek(key) : nullptr;
  if (now) source = dynamic_cast<const SegmentFrame*>(now->source.get());
  {
    MutexLock lock(mutex_);
    const BlockIndex::Entry* entry = index_.Find(key);
    Slot slot = disk_index_.Find(key);
    if (entry != nullptr && entry->block->version == block->version) {
      const bool same_record = entry->on_disk;
      removed.blocks.push_back(RemoveFromMemory(key));
      if (slot != kNone && same_record) RemoveFromDisk(slot, key, /*tombstone=*/true, removed);
      dropped = true;
    } else if (entry == nullptr && slot != kNone && source != nullptr &&
               (!now || now->version == block->version)) {
      const DiskRef ref = RefOf(slot);
      if (ref.segment.get() == &source->segment() && ref.place.offset == source->record_offset()) {
        RemoveFromDisk(slot, key, /*tombstone=*/true, removed);
        dropped = true;
      }
    }
    if (dropped) {
      ++counters_.corrupt_dropped;
      if (!Present(key)) removed.keys.emplace_back(key, RemovalReason::kCorrupt);
    }
  }
  Announce(removed);
  return dropped;
}

void StoreImpl::AddDiskPage(const std::optional<BlockKey>& after, size_t limit,
                            ListPage& page) const {
  const int64_t now_ms = clock_->MonotonicMs();
  std::map<BlockKey, Slot> first;
  std::optional<BlockKey> from;
  if (after) from = PrefixKey(*after);
  disk_index_.Visit(0, UINT32_MAX, [&](Slot slot) {
    BlockKey key{};
    disk_index_.KeyPrefix(slot, &key);
    if ((from && key <= *from) || disk_index_.ExpiredAt(slot, now_ms)) return;
    if (first.size() == limit && std::prev(first.end())->first < key) return;
    first.emplace(key, slot);
    if (first.size() > limit) first.erase(std::prev(first.end()));
  });
  for (const auto& [key, slot] : first) page.try_emplace(key, nullptr, RefOf(slot));
}

StoreStats StoreImpl::Stats() {
  Removed removed;
  StoreStats out;
  {
    MutexLock lock(mutex_);
    Advance(removed);
    out = counters_;
    out.blocks = index_.size() + disk_index_.size() - in_both_;
    out.stored_bytes = index_.stored_bytes();
    disk_index_.DropLapsedPins(clock_->MonotonicMs());
    out.pinned_blocks = index_.pinned_blocks() + disk_index_.pinned_blocks();
    out.disk_blocks = disk_index_.size();
    out.disk_index_bytes = disk_index_.memory_bytes();
    for (const SegmentPtr& segment : segments_) {
      if (!segment) continue;
      ++out.segments;
      if (segment->sealed) ++out.sealed_segments;
    }
  }
  Announce(removed);
  out.memory_used_bytes = budget_.used();
  out.memory_peak_bytes = budget_.peak();
  out.memory_capacity_bytes = budget_.capacity();
  out.disk_read_bytes = read_bytes_.load();
  out.disk_used_bytes = disk_budget_.used();
  out.disk_peak_bytes = disk_budget_.peak();
  out.disk_capacity_bytes = has_disk_ ? disk_budget_.capacity() : 0;
  return out;
}

StoreHealth StoreImpl::Health() const {
  if (!has_disk_) {
    return {StoreHealth::State::kNoDisk, "no disk tier is configured: blocks end with the process"};
  }
  MutexLock lock(mutex_);
  return health_;
}

}  // namespace latticekv
