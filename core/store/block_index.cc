#include "core/store/block_index.h"

#include <algorithm>

namespace latticekv {

BlockIndex::Entry* BlockIndex::Find(const BlockKey& key) {
  const auto it = entries_.find(key);
  return it == entries_.end() ? nullptr : &it->second;
}

const BlockIndex::Entry* BlockIndex::Find(const BlockKey& key) const {
  const auto it = entries_.find(key);
  return it == entries_.end() ? nullptr : &it->second;
}

BlockIndex::Entry* BlockIndex::FindByPrefix(const BlockKey& key) {
  const auto it = entries_.lower_bound(key);
  if (it == entries_.end() || !std::equal(key.begin(), key.begin() + 16, it->first.begin())) {
    return nullptr;
  }
  return &it->second;
}

bool BlockIndex::ClosesCycle(const BlockKey& key, BlockKey parent) const {
  // Only a block whose children came before it can close one; keys are hashes over their parents,
  // so this takes a broken client.
  if (parent == key) return true;
  if (!children_.contains(key)) return false;
  for (const Entry* e = Find(parent); e != nullptr && e->parent; e = Find(*e->parent)) {
    if (*e->parent == key) return true;
  }
  return false;
}

BlockIndex::Entry& BlockIndex::Insert(StoredBlockPtr block) {
  const BlockKey key = block->key;
  Entry& entry = entries_[key];
  entry.block = std::move(block);
  clock_.OnPut(entry.retention, entry.bytes());
  if (entry.block->parent && !ClosesCycle(key, *entry.block->parent)) {
    entry.parent = entry.block->parent;
    children_[*entry.parent].insert(key);
    if (Entry* parent = Find(*entry.parent)) {
      ++parent->children;
      Refresh(*parent);
    }
  }
  const auto own = children_.find(key);
  entry.children = own == children_.end() ? 0 : static_cast<uint32_t>(own->second.size());
  stored_bytes_ += entry.bytes();
  Refresh(entry);
  return entry;
}

StoredBlockPtr BlockIndex::Replace(Entry& entry, StoredBlockPtr block) {
  stored_bytes_ += block->reservation.bytes() - entry.bytes();
  SetOnDisk(entry, false);
  if (entry.fixed()) pinned_bytes_ += block->reservation.bytes() - entry.bytes();
  return std::exchange(entry.block, std::move(block));
}

StoredBlockPtr BlockIndex::Remove(const BlockKey& key) {
  const auto it = entries_.find(key);
  Entry& entry = it->second;
  Unlist(entry);
  if (entry.due_ms != 0) timers_.erase({entry.due_ms, key});
  stored_bytes_ -= entry.bytes();
  if (entry.fixed()) CountFixed(entry, false);
  if (entry.parent) {
    const auto siblings = children_.find(*entry.parent);
    siblings->second.erase(key);
    if (siblings->second.empty()) children_.erase(siblings);
    if (Entry* parent = Find(*entry.parent)) {
      --parent->children;
      Unlist(*parent);
      RetentionClock::OnChildLeft(parent->retention, entry.retention);
      Refresh(*parent);
    }
  }
  StoredBlockPtr block = std::move(entry.block);
  entries_.erase(it);
  return block;
}

void BlockIndex::Unlist(Entry& entry) {
  if (entry.evictable) order_.erase({entry.retention.rank, entry.block->key});
  entry.evictable = false;
}

void BlockIndex::Use(Entry& entry) {
  Unlist(entry);
  clock_.OnUse(entry.retention, entry.bytes(), entry.children);
  Refresh(entry);
}

void BlockIndex::Refresh(Entry& entry) {
  const bool evictable = entry.children == 0 && !entry.fixed();
  if (evictable == entry.evictable) return;
  Unlist(entry);
  if (evictable) order_.insert({entry.retention.rank, entry.block->key});
  entry.evictable = evictable;
}

void BlockIndex::AddPin(Entry& entry, int64_t lapses_ms) {
  if (!entry.pinned() && !entry.on_disk) CountFixed(entry, true);
  if (lapses_ms == 0) {
    ++entry.lasting_pins;
  } else {
    entry.timed_pins.push_back(lapses_ms);
    Reschedule(entry);
  }
  Refresh(entry);
}

bool BlockIndex::RemovePin(Entry& entry) {
  if (!entry.pinned()) return false;
  if (entry.lasting_pins > 0) {
    --entry.lasting_pins;
  } else {
    entry.timed_pins.erase(std::max_element(entry.timed_pins.begin(), entry.timed_pins.end()));
    Reschedule(entry);
  }
  if (!entry.pinned()) OnUnpinned(entry);
  return true;
}

void BlockIndex::OnUnpinned(Entry& entry) {
  if (!entry.on_disk) CountFixed(entry, false);
  Refresh(entry);
}

void BlockIndex::CountFixed(const Entry& entry, bool fixed) {
  if (fixed) {
    pinned_bytes_ += entry.bytes();
    ++pinned_blocks_;
  } else {
    pinned_bytes_ -= entry.bytes();
    --pinned_blocks_;
  }
}

void BlockIndex::SetOnDisk(Entry& entry, bool on_disk) {
  if (on_disk == entry.on_disk) return;
  if (entry.pinned()) CountFixed(entry, !on_disk);
  entry.on_disk = on_disk;
  Refresh(entry);
}

std::vector<BlockKey> BlockIndex::NotOnDisk() const {
  std::vector<BlockKey> out;
  for (const auto& [key, entry] : entries_) {
    if (!entry.on_disk) out.push_back(key);
  }
  return out;
}

void BlockIndex::SetExpiry(Entry& entry, int64_t expires_ms) {
  entry.expires_ms = expires_ms;
  Reschedule(entry);
}

void BlockIndex::Reschedule(Entry& entry) {
  int64_t due_ms = entry.expires_ms;
  for (const int64_t lapses_ms : entry.timed_pins) {
    if (due_ms == 0 || lapses_ms < due_ms) due_ms = lapses_ms;
  }
  if (due_ms == entry.due_ms) return;
  if (entry.due_ms != 0) timers_.erase({entry.due_ms, entry.block->key});
  if (due_ms != 0) timers_.insert({due_ms, entry.block->key});
  entry.due_ms = due_ms;
}

void BlockIndex::AdvanceTo(int64_t now_ms, std::vector<StoredBlockPtr>& expired) {
  while (!timers_.empty() && timers_.begin()->first <= now_ms) {
    const BlockKey key = timers_.begin()->second;
    Entry& entry = *Find(key);
    if (entry.ExpiredAt(now_ms)) {
      expired.push_back(Remove(key));
      continue;
    }
    // So a pin is due: there is one before, and it goes.
    std::erase_if(entry.timed_pins, [now_ms](int64_t lapses_ms) { return lapses_ms <= now_ms; });
    Reschedule(entry);
    if (!entry.pinned()) OnUnpinned(entry);
  }
}

std::vector<StoredBlockPtr> BlockIndex::Children(const BlockKey& parent, int64_t now_ms) const {
  std::vector<StoredBlockPtr> out;
  const auto it = children_.find(parent);
  if (it == children_.end()) return out;
  for (const BlockKey& key : it->second) {
    const Entry& entry = *Find(key);
    if (!entry.ExpiredAt(now_ms)) out.push_back(entry.block);
  }
  return out;
}

std::vector<StoredBlockPtr> BlockIndex::List(const std::optional<BlockKey>& after,
                                             size_t limit) const {
  std::vector<StoredBlockPtr> out;
  auto it = after ? entries_.upper_bound(*after) : entries_.begin();
  for (; it != entries_.end() && out.size() < limit; ++it) out.push_back(it->second.block);
  return out;
}

}  // namespace latticekv
