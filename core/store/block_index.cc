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

bool BlockIndex::ClosesCycle(const BlockKey& key, BlockKey parent) const {
  // Only a block whose children came before it can close one; keys are hashes over their parents, so
  // this takes a broken client.
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
  entry.last_used = ++uses_;
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
  if (!entry.pins.empty()) pinned_bytes_ += block->reservation.bytes() - entry.bytes();
  return std::exchange(entry.block, std::move(block));
}

StoredBlockPtr BlockIndex::Remove(const BlockKey& key) {
  const auto it = entries_.find(key);
  Entry& entry = it->second;
  if (entry.evictable) order_.erase({entry.last_used, key});
  if (entry.expires_ms != 0) timers_.erase({entry.expires_ms, key});
  for (int64_t pin : entry.pins) {
    if (pin != 0) timers_.erase({pin, key});
  }
  stored_bytes_ -= entry.bytes();
  if (!entry.pins.empty()) {
    pinned_bytes_ -= entry.bytes();
    --pinned_blocks_;
  }
  if (entry.parent) {
    const auto siblings = children_.find(*entry.parent);
    siblings->second.erase(key);
    if (siblings->second.empty()) children_.erase(siblings);
    if (Entry* parent = Find(*entry.parent)) {
      --parent->children;
      SetRecency(*parent, std::max(parent->last_used, entry.last_used));
    }
  }
  StoredBlockPtr block = std::move(entry.block);
  entries_.erase(it);
  return block;
}

void BlockIndex::SetRecency(Entry& entry, uint64_t last_used) {
  if (entry.evictable) order_.erase({entry.last_used, entry.block->key});
  entry.evictable = false;
  entry.last_used = last_used;
  Refresh(entry);
}

void BlockIndex::Use(Entry& entry) { SetRecency(entry, ++uses_); }

void BlockIndex::Refresh(Entry& entry) {
  const bool evictable = entry.children == 0 && entry.pins.empty();
  if (evictable == entry.evictable) return;
  if (evictable) {
    order_.insert({entry.last_used, entry.block->key});
  } else {
    order_.erase({entry.last_used, entry.block->key});
  }
  entry.evictable = evictable;
}

void BlockIndex::AddPin(Entry& entry, int64_t expires_ms) {
  if (entry.pins.empty()) {
    pinned_bytes_ += entry.bytes();
    ++pinned_blocks_;
  }
  entry.pins.push_back(expires_ms);
  if (expires_ms != 0) timers_.insert({expires_ms, entry.block->key});
  Refresh(entry);
}

bool BlockIndex::RemovePin(Entry& entry) {
  if (entry.pins.empty()) return false;
  // The pin that would last longest: 0 lasts for ever.
  const auto longest = std::max_element(
      entry.pins.begin(), entry.pins.end(),
      [](int64_t a, int64_t b) { return a != 0 && (b == 0 || a < b); });
  entry.pins.erase(longest);
  if (entry.pins.empty()) {
    pinned_bytes_ -= entry.bytes();
    --pinned_blocks_;
  }
  Refresh(entry);
  return true;
}

void BlockIndex::SetExpiry(Entry& entry, int64_t expires_ms) {
  entry.expires_ms = expires_ms;
  if (expires_ms != 0) timers_.insert({expires_ms, entry.block->key});
}

void BlockIndex::AdvanceTo(int64_t now_ms, std::vector<StoredBlockPtr>& expired) {
  // A timer says only that something may be due: pins and expiries may have changed since it was set.
  while (!timers_.empty() && timers_.begin()->first <= now_ms) {
    const BlockKey key = timers_.begin()->second;
    timers_.erase(timers_.begin());
    Entry* entry = Find(key);
    if (entry == nullptr) continue;
    if (entry->expires_ms != 0 && entry->expires_ms <= now_ms) {
      expired.push_back(Remove(key));
      continue;
    }
    const bool pinned = !entry->pins.empty();
    std::erase_if(entry->pins, [now_ms](int64_t pin) { return pin != 0 && pin <= now_ms; });
    if (pinned && entry->pins.empty()) {
      pinned_bytes_ -= entry->bytes();
      --pinned_blocks_;
    }
    Refresh(*entry);
  }
}

std::optional<BlockKey> BlockIndex::Coldest() const {
  for (const auto& [last_used, key] : order_) {
    if (Find(key)->block.use_count() == 1) return key;
  }
  return std::nullopt;
}

std::vector<StoredBlockPtr> BlockIndex::Children(const BlockKey& parent) const {
  std::vector<StoredBlockPtr> out;
  const auto it = children_.find(parent);
  if (it == children_.end()) return out;
  for (const BlockKey& key : it->second) out.push_back(Find(key)->block);
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
