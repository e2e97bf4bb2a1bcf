// Indexes over the stored blocks that the store, which knows no tokens, cannot keep: children by
// token ids, the same tokens under another layout, lifetimes, and why blocks left.
#ifndef LATTICEKV_SERVER_BLOCK_CATALOG_H_
#define LATTICEKV_SERVER_BLOCK_CATALOG_H_

#include <atomic>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/base/clock.h"
#include "core/base/mutex.h"
#include "core/store/tiered_store.h"
#include "server/block_metadata.h"
#include "server/removal_memory.h"

namespace latticekv {

// Thread-safe. Any call of the store may report removals, which come back here through the
// listener, so none but SetTtl and Contains is made with the lock held.
class BlockCatalog {
 public:
  BlockCatalog(TieredStore* store, const Clock* clock) : store_(store), clock_(clock) {}

  // After the store took a block. `ttl_ms` 0: it does not expire.
  void OnStored(const StoredBlockPtr& block, const BlockMetadata& metadata, int64_t ttl_ms);
  // A block that was found on disk at the start.
  void OnRecovered(const StoredBlockPtr& block, const BlockMetadata& metadata);
  // A block that was there already is wanted for `ttl_ms` more (0: for good). Never shortens.
  void ExtendTtl(const BlockKey& key, int64_t ttl_ms);
  // The block expires `ttl_ms` from now, whatever was before.
  void SetTtl(const BlockKey& key, int64_t ttl_ms);
  // The store's removal listener.
  void OnRemoved(const BlockKey& key, RemovalReason reason);
  // Says why a block is about to be removed, for ExplainRemoval.
  void NoteRemoval(const BlockKey& key, Removal why);

  // Children of `parent` (none: first chunks) that share leading tokens with `tokens`, longest
  // match first, at most `limit`; those with evicted tokens, or those without.
  struct Match {
    BlockKey key{};
    uint32_t common_tokens = 0;
  };
  std::vector<Match> MatchChildren(std::string_view name_space, const Digest& fingerprint,
                                   const std::optional<BlockKey>& parent, std::string_view salt,
                                   bool evicted, std::span<const uint32_t> tokens,
                                   size_t limit) const;
  // Children whose ids are a proper prefix of the block's. None for one with evicted tokens, whose
  // shorter siblings may have kept more.
  std::vector<BlockKey> ShorterSiblings(const BlockMetadata& metadata,
                                        const std::optional<BlockKey>& parent) const;

  // True when the same tokens are stored under a fingerprint other than `fingerprint`.
  bool StoredUnderOtherLayout(const Digest& layout_free_hash, const Digest& fingerprint) const;

  // A block that differs from `key` in having evicted tokens alone.
  std::optional<BlockKey> EvictedVariant(const BlockKey& key) const;

  // Stored blocks whose frames refer to a profile of a layout.
  uint64_t ProfileUses(const Digest& fingerprint, const Digest& profile_hash) const;

  // Why a block that is absent left; nothing when it is not remembered.
  std::optional<Removal> ExplainRemoval(const BlockKey& key) const;

  // Size of a stored block's frame; nothing while the blocks found at the start are still read.
  std::optional<uint64_t> FrameBytes(const BlockKey& key) const;

  // Blocks that are known here.
  size_t size() const;
  uint64_t raw_bytes() const { return raw_bytes_.load(std::memory_order_relaxed); }
  uint64_t frame_bytes() const { return frame_bytes_.load(std::memory_order_relaxed); }

  // Bytes that the catalog keeps for a block of `tokens` tokens; part of the block's reservation.
  static size_t EntryBytes(size_t tokens) { return 512 + tokens * sizeof(uint32_t); }

 private:
  struct Entry {
    uint32_t quality_rank = 0;
    Digest fingerprint{};
    uint64_t raw_bytes = 0, frame_bytes = 0;
    int64_t expires_ms = 0;  // 0: never
    std::optional<Digest> layout_free_hash;
    std::optional<Digest> group;  // in children_, with `token_ids`
    std::vector<uint32_t> token_ids;
    std::optional<BlockKey> whole_key;  // with evicted tokens: the key without
    Digest profile_hash{};              // all zero: none
  };
  // Blocks with evicted tokens may have the same ids.
  using Ids = std::multimap<std::vector<uint32_t>, BlockKey>;

  static constexpr int64_t kExpiryUnknown = -1;  // of a recovered block: the store has it

  void Add(const StoredBlockPtr& block, const BlockMetadata& metadata, int64_t expires_ms)
      LKV_REQUIRES(mutex_);
  void Remove(const BlockKey& key) LKV_REQUIRES(mutex_);

  TieredStore* const store_;
  const Clock* const clock_;
  mutable Mutex mutex_;
  std::unordered_map<BlockKey, Entry, DigestHash> entries_ LKV_GUARDED_BY(mutex_);
  std::unordered_map<Digest, Ids, DigestHash> children_ LKV_GUARDED_BY(mutex_);
  std::unordered_multimap<BlockKey, BlockKey, DigestHash> evicted_variants_ LKV_GUARDED_BY(mutex_);
  std::map<std::pair<Digest, Digest>, uint64_t> profile_uses_ LKV_GUARDED_BY(mutex_);
  std::unordered_map<Digest, std::vector<std::pair<Digest, BlockKey>>, DigestHash> layout_free_
      LKV_GUARDED_BY(mutex_);  // hash -> (fingerprint, key)
  RemovalMemory removals_ LKV_GUARDED_BY(mutex_);
  std::atomic<uint64_t> raw_bytes_{0}, frame_bytes_{0};
};

// Chain hash with no layout in it: the parent's, the chunk's ids, the salt.
Digest LayoutFreeHash(std::string_view name_space, const std::optional<Digest>& parent_hash,
                      std::span<const uint32_t> tokens, std::string_view salt);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_BLOCK_CATALOG_H_
