#include "server/block_catalog.h"

#include <algorithm>

#include "core/base/limits.h"
#include "core/layout/chain_hash.h"

namespace latticekv {
namespace {

// Set of siblings: the children of one block (or the first chunks) with one salt. Those with
// evicted tokens are a set of their own.
Digest SiblingGroup(std::string_view name_space, const Digest& fingerprint,
                    const std::optional<BlockKey>& parent, std::string_view salt, bool evicted) {
  Sha256 sha;
  return sha.Field(1, AsBytes(name_space))
      .Field(2, fingerprint)
      .Field(3, parent ? ByteSpan(*parent) : ByteSpan())
      .Field(4, AsBytes(salt))
      .Field(5, AsBytes(evicted ? "evicted" : ""))
      .Finish();
}

uint32_t CommonPrefix(std::span<const uint32_t> a, std::span<const uint32_t> b) {
  const size_t n = std::min(a.size(), b.size());
  return static_cast<uint32_t>(std::mismatch(a.begin(), a.begin() + n, b.begin()).first -
                               a.begin());
}

Removal RemovalOf(RemovalReason reason) {
  switch (reason) {
    case RemovalReason::kExpired:
      return Removal::kExpired;
    case RemovalReason::kCorrupt:
      return Removal::kCorrupt;
    case RemovalReason::kLost:
      return Removal::kLost;
    case RemovalReason::kDeleted:
    case RemovalReason::kEvicted:
      return Removal::kEvicted;
  }
  return Removal::kEvicted;
}

}  // namespace

Digest LayoutFreeHash(std::string_view name_space, const std::optional<Digest>& parent_hash,
                      std::span<const uint32_t> tokens, std::string_view salt) {
  // The namespace takes the fingerprint's place, so that namespaces stay apart.
  return ChunkHash(Sha256Of(AsBytes(name_space)), parent_hash, tokens, salt);
}

void BlockCatalog::Add(const StoredBlockPtr& block, const BlockMetadata& m, int64_t expires_ms) {
  const BlockKey& key = block->key;
  Entry entry;
  entry.quality_rank = block->quality_rank;
  entry.fingerprint = m.fingerprint;
  entry.raw_bytes = m.raw_bytes;
  entry.frame_bytes = block->frame_bytes;
  entry.layout_free_hash = m.layout_free_hash;
  entry.expires_ms = expires_ms;
  if (!m.token_ids.empty()) {
    const bool evicted = m.evicted_tokens > 0;
    entry.group = SiblingGroup(m.name_space, m.fingerprint, block->parent, m.salt, evicted);
    entry.token_ids = m.token_ids;
    children_[*entry.group].emplace(m.token_ids, key);
    if (evicted) {
      entry.whole_key = TenantKey(kDefaultTenant, m.name_space,
                                  ChunkHash(m.fingerprint, m.parent_hash, m.token_ids, m.salt));
      evicted_variants_.emplace(*entry.whole_key, key);
    }
  }
  entry.profile_hash = m.profile_hash;
  if (m.profile_hash != Digest{}) ++profile_uses_[{m.fingerprint, m.profile_hash}];
  if (m.layout_free_hash) {
    layout_free_[*m.layout_free_hash].emplace_back(m.fingerprint, key);
  }
  raw_bytes_ += m.raw_bytes;
  frame_bytes_ += block->frame_bytes;
  removals_.Forget(key);
  entries_.emplace(key, std::move(entry));
}

void BlockCatalog::OnStored(const StoredBlockPtr& block, const BlockMetadata& m, int64_t ttl_ms) {
  const BlockKey& key = block->key;
  {
    MutexLock lock(mutex_);
    // Two puts of one key may come here in the other order than they went into the store.
    const auto there = entries_.find(key);
    if (there != entries_.end() && there->second.quality_rank > block->quality_rank) return;
    Remove(key);
    Add(block, m, ttl_ms > 0 ? clock_->WallMs() + ttl_ms : 0);
    static_cast<void>(store_->SetTtl(key, std::max<int64_t>(ttl_ms, 0)));
  }
  // Its removal may have been reported before it was known here.
  OnRemoved(key, RemovalReason::kEvicted);
}

void BlockCatalog::OnRecovered(const StoredBlockPtr& block, const BlockMetadata& m) {
  {
    MutexLock lock(mutex_);
    if (entries_.contains(block->key)) return;  // put again meanwhile
    Add(block, m, kExpiryUnknown);
  }
  OnRemoved(block->key, RemovalReason::kEvicted);
}

void BlockCatalog::ExtendTtl(const BlockKey& key, int64_t ttl_ms) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(key);
  if (it == entries_.end() || it->second.expires_ms == 0) return;
  // The store knows how long it lives, maybe for longer than this.
  if (it->second.expires_ms == kExpiryUnknown && ttl_ms > 0) return;
  const int64_t expires_ms = ttl_ms > 0 ? clock_->WallMs() + ttl_ms : 0;
  if (expires_ms != 0 && expires_ms <= it->second.expires_ms) return;
  it->second.expires_ms = expires_ms;
  static_cast<void>(store_->SetTtl(key, std::max<int64_t>(ttl_ms, 0)));
}

void BlockCatalog::SetTtl(const BlockKey& key, int64_t ttl_ms) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  it->second.expires_ms = ttl_ms > 0 ? clock_->WallMs() + ttl_ms : 0;
  static_cast<void>(store_->SetTtl(key, std::max<int64_t>(ttl_ms, 0)));
}

std::optional<uint64_t> BlockCatalog::FrameBytes(const BlockKey& key) const {
  MutexLock lock(mutex_);
  const auto it = entries_.find(key);
  if (it == entries_.end()) return std::nullopt;
  return it->second.frame_bytes;
}

size_t BlockCatalog::size() const {
  MutexLock lock(mutex_);
  return entries_.size();
}

void BlockCatalog::Remove(const BlockKey& key) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  const Entry& entry = it->second;
  raw_bytes_ -= entry.raw_bytes;
  frame_bytes_ -= entry.frame_bytes;
  if (entry.group) {
    const auto group = children_.find(*entry.group);
    if (group != children_.end()) {
      const auto [begin, end] = group->second.equal_range(entry.token_ids);
      const auto ids =
          std::find_if(begin, end, [&](const auto& pair) { return pair.second == key; });
      if (ids != end) group->second.erase(ids);
      if (group->second.empty()) children_.erase(group);
    }
  }
  if (entry.whole_key) {
    const auto [begin, end] = evicted_variants_.equal_range(*entry.whole_key);
    const auto it = std::find_if(begin, end, [&](const auto& pair) { return pair.second == key; });
    if (it != end) evicted_variants_.erase(it);
  }
  if (entry.profile_hash != Digest{}) {
    const auto uses = profile_uses_.find({entry.fingerprint, entry.profile_hash});
    if (uses != profile_uses_.end() && --uses->second == 0) profile_uses_.erase(uses);
  }
  if (entry.layout_free_hash) {
    const auto list = layout_free_.find(*entry.layout_free_hash);
    if (list != layout_free_.end()) {
      std::erase_if(list->second, [&](const auto& pair) { return pair.second == key; });
      if (list->second.empty()) layout_free_.erase(list);
    }
  }
  entries_.erase(it);
}

void BlockCatalog::OnRemoved(const BlockKey& key, RemovalReason reason) {
  MutexLock lock(mutex_);
  // Another may have taken its place since; the store is asked under the lock, so that OnStored of
  // one put after this answer comes after the removal.
  if (!entries_.contains(key) || store_->Contains(key)) return;
  if (!removals_.Find(key)) removals_.Remember(key, RemovalOf(reason));
  Remove(key);
}

void BlockCatalog::NoteRemoval(const BlockKey& key, Removal why) {
  MutexLock lock(mutex_);
  removals_.Remember(key, why);
}

std::vector<BlockCatalog::Match> BlockCatalog::MatchChildren(
    std::string_view name_space, const Digest& fingerprint, const std::optional<BlockKey>& parent,
    std::string_view salt, bool evicted, std::span<const uint32_t> tokens, size_t limit) const {
  const Digest group_key = SiblingGroup(name_space, fingerprint, parent, salt, evicted);
  const std::vector<uint32_t> wanted(tokens.begin(), tokens.end());
  std::vector<Match> out;
  MutexLock lock(mutex_);
  const auto group = children_.find(group_key);
  if (group == children_.end()) return out;
  const Ids& ids = group->second;
  // In order of ids the common prefix only shrinks with the distance from where `wanted` belongs:
  // merge the two directions.
  auto up = ids.lower_bound(wanted);
  auto down = up;
  const auto common = [&](Ids::const_iterator it) { return CommonPrefix(it->first, wanted); };
  while (out.size() < limit) {
    const uint32_t above = up == ids.end() ? 0 : common(up);
    const uint32_t below = down == ids.begin() ? 0 : common(std::prev(down));
    if (above == 0 && below == 0) break;
    if (above >= below) {
      out.push_back({up->second, above});
      ++up;
    } else {
      --down;
      out.push_back({down->second, below});
    }
  }
  return out;
}

std::vector<BlockKey> BlockCatalog::ShorterSiblings(const BlockMetadata& m,
                                                    const std::optional<BlockKey>& parent) const {
  std::vector<BlockKey> out;
  if (m.evicted_tokens > 0) return out;
  const Digest group_key = SiblingGroup(m.name_space, m.fingerprint, parent, m.salt, false);
  std::vector<uint32_t> prefix = m.token_ids;
  MutexLock lock(mutex_);
  const auto group = children_.find(group_key);
  if (group == children_.end() || group->second.size() < 2) return out;
  while (prefix.size() > 1) {
    prefix.pop_back();
    const auto it = group->second.find(prefix);
    if (it != group->second.end()) out.push_back(it->second);
  }
  return out;
}

bool BlockCatalog::StoredUnderOtherLayout(const Digest& layout_free_hash,
                                          const Digest& fingerprint) const {
  MutexLock lock(mutex_);
  const auto it = layout_free_.find(layout_free_hash);
  return it != layout_free_.end() &&
         std::any_of(it->second.begin(), it->second.end(),
                     [&](const auto& pair) { return pair.first != fingerprint; });
}

std::optional<BlockKey> BlockCatalog::EvictedVariant(const BlockKey& key) const {
  MutexLock lock(mutex_);
  const auto it = evicted_variants_.find(key);
  if (it == evicted_variants_.end()) return std::nullopt;
  return it->second;
}

uint64_t BlockCatalog::ProfileUses(const Digest& fingerprint, const Digest& profile_hash) const {
  MutexLock lock(mutex_);
  const auto it = profile_uses_.find({fingerprint, profile_hash});
  return it == profile_uses_.end() ? 0 : it->second;
}

std::optional<Removal> BlockCatalog::ExplainRemoval(const BlockKey& key) const {
  MutexLock lock(mutex_);
  return removals_.Find(key);
}

}  // namespace latticekv
