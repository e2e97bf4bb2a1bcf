// The choice of what to evict.
#include <algorithm>
#include <unordered_set>

#include "core/store/block_index.h"

namespace latticekv {

std::vector<BlockKey> BlockIndex::Victims(size_t bytes) const {
  std::vector<BlockKey> plan = PlanEviction(bytes, /*with_held=*/false, /*partial=*/false);
  return plan.empty() ? PlanEviction(bytes, /*with_held=*/true, /*partial=*/false) : plan;
}

// Plans before it evicts, so that a reservation that cannot be met does not flush the store.
std::vector<BlockKey> BlockIndex::PlanEviction(size_t bytes, bool with_held, bool partial) const {
  // Children that the plan leaves, of parents of which it takes some.
  std::unordered_map<BlockKey, uint32_t, DigestHash> children;
  std::set<std::pair<uint64_t, BlockKey>> promoted;  // that the plan makes leaves
  struct Victim {
    BlockKey key;
    const Entry* entry;
    bool held;
  };
  std::vector<Victim> plan;
  auto leaf = order_.begin();
  for (size_t freed = 0; freed < bytes;) {
    if (leaf == order_.end() && promoted.empty()) {
      if (partial) break;
      return {};
    }
    std::pair<uint64_t, BlockKey> coldest;
    if (promoted.empty() || (leaf != order_.end() && *leaf < *promoted.begin())) {
      coldest = *leaf++;
    } else {
      coldest = *promoted.begin();
      promoted.erase(promoted.begin());
    }
    const auto& [rank, key] = coldest;
    const Entry* entry = Find(key);
    // The index itself holds one; nobody can take another while the store's lock is held.
    const bool held = entry->block.use_count() > 1;
    if (held && !with_held) continue;
    plan.push_back({key, entry, held});
    if (!held) freed += entry->bytes();
    const Entry* parent = entry->parent ? Find(*entry->parent) : nullptr;
    if (parent == nullptr) continue;
    const auto left = children.try_emplace(*entry->parent, parent->children).first;
    // That the parent ranks no lower than this child makes no difference to the order: this child
    // ranks lowest of all that are left, so a parent lower yet is next either way.
    if (--left->second == 0 && !parent->fixed()) {
      promoted.insert({parent->retention.rank, *entry->parent});
    }
  }
  // Of the held blocks only those that stand before a block which frees something.
  std::unordered_set<BlockKey, DigestHash> needed;
  std::vector<BlockKey> out;
  for (auto it = plan.rbegin(); it != plan.rend(); ++it) {
    const auto& [key, entry, held] = *it;
    if (held && !(entry->parent && needed.contains(*entry->parent))) continue;
    needed.insert(key);
    out.push_back(key);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace latticekv
