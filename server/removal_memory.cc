#include "server/removal_memory.h"

#include <algorithm>

#include "core/base/bytes.h"

namespace latticekv {

RemovalText TextOf(Removal why) {
  switch (why) {
    case Removal::kExpired:
      return {v1::REASON_EXPIRED, "its time to live ended; put it again"};
    case Removal::kCorrupt:
      return {v1::REASON_CORRUPT, "the stored bytes were damaged and were dropped; put it again"};
    case Removal::kLost:
      return {v1::REASON_NOT_STORED, "its disk or directory went away; put it again"};
    case Removal::kDeleted:
      return {v1::REASON_NOT_STORED, "deleted on request; put it again"};
    case Removal::kSuperseded:
      return {v1::REASON_NOT_STORED,
              "superseded by a longer block that starts with the same tokens; look it up by token "
              "ids"};
    case Removal::kEvicted:
      return {v1::REASON_NOT_STORED,
              "evicted to make room; give the daemon more --memory_bytes or pin it"};
    case Removal::kNone:
      break;
  }
  return {v1::REASON_NOT_STORED, "not stored; put it first"};
}

size_t RemovalMemory::SetOf(const BlockKey& key) const {
  // Keys are hashes; the set is told by bytes that the entry does not keep.
  return LoadLe<uint64_t>(key.data() + 16) % sets_.size();
}

const RemovalMemory::Entry* RemovalMemory::EntryOf(const BlockKey& key) const {
  for (const Entry& entry : sets_[SetOf(key)]) {
    if (entry.why != Removal::kNone &&
        std::equal(entry.key.begin(), entry.key.end(), key.begin())) {
      return &entry;
    }
  }
  return nullptr;
}

void RemovalMemory::Remember(const BlockKey& key, Removal why) {
  ++now_;
  Entry* entry = EntryOf(key);
  if (entry == nullptr) {
    // A free one, or the oldest.
    const auto age = [this](const Entry& e) {
      return e.why == Removal::kNone ? UINT32_MAX : now_ - e.when;
    };
    Set& set = sets_[SetOf(key)];
    entry = std::max_element(set.begin(), set.end(),
                             [&](const Entry& a, const Entry& b) { return age(a) < age(b); });
    std::copy_n(key.begin(), entry->key.size(), entry->key.begin());
  }
  entry->when = now_;
  entry->why = why;
}

void RemovalMemory::Forget(const BlockKey& key) {
  if (Entry* entry = EntryOf(key)) entry->why = Removal::kNone;
}

std::optional<Removal> RemovalMemory::Find(const BlockKey& key) const {
  const Entry* entry = EntryOf(key);
  if (entry == nullptr) return std::nullopt;
  return entry->why;
}

}  // namespace latticekv
