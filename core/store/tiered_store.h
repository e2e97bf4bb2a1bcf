// The store of frames: opaque bytes under 32-byte keys in a forest of prefixes, kept in host memory
// under a hard byte cap. The disk tier joins behind this same interface.
#ifndef LATTICEKV_CORE_STORE_TIERED_STORE_H_
#define LATTICEKV_CORE_STORE_TIERED_STORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/clock.h"
#include "core/base/sha256.h"
#include "core/store/memory_budget.h"

namespace latticekv {

using BlockKey = Digest;

enum class Tier : uint8_t { kMemory = 1, kDisk = 2 };

// A stored block. Immutable, reference-counted: a reader's pointer keeps the bytes (and their share
// of the memory budget) alive after the block was evicted, replaced or deleted.
struct StoredBlock {
  BlockKey key{};
  std::optional<BlockKey> parent;  // none for the first chunk of a sequence
  uint32_t depth_tokens = 0;       // tokens of the prefix that ends with this block
  ByteVector frame;
  ByteVector metadata;        // the server's description of the block, opaque here
  uint32_t quality_rank = 0;  // higher is better; a put replaces only what ranks lower
  Reservation reservation;    // frame, metadata and index share
};
using StoredBlockPtr = std::shared_ptr<const StoredBlock>;

struct StoreStats {
  uint64_t blocks = 0;
  uint64_t stored_bytes = 0;       // reserved by the blocks in the index
  uint64_t memory_used_bytes = 0;  // budget in use, in-flight included
  uint64_t memory_peak_bytes = 0;
  uint64_t memory_capacity_bytes = 0;
  uint64_t pinned_blocks = 0;
  uint64_t puts = 0, replaced = 0, duplicates = 0;
  uint64_t hits = 0, misses = 0;
  uint64_t evicted_blocks = 0, evicted_bytes = 0, deleted_blocks = 0, expired_blocks = 0;
  uint64_t rejected_full = 0;  // reservations refused even after eviction
};

struct PutResult {
  bool stored = false;   // false: a block of at least this rank was there already
  StoredBlockPtr block;  // what the store holds now
};

struct StoreOptions {
  size_t memory_bytes = size_t{1} << 30;
  const Clock* clock = Clock::Real();
};

// Thread-safe.
class TieredStore {
 public:
  static absl::StatusOr<std::unique_ptr<TieredStore>> Open(const StoreOptions& options);
  virtual ~TieredStore() = default;

  // Reserves in-flight or storage bytes, evicting cold blocks to make room: a block before its
  // ancestors, never a pinned one, lowest rank (retention.h) first. RESOURCE_EXHAUSTED, with sizes
  // and what to do, when that is not enough.
  virtual absl::StatusOr<Reservation> Reserve(size_t bytes) = 0;

  // Makes `block` visible. Its reservation must cover EntryBytes(block), else INVALID_ARGUMENT.
  // Parents need not be present. Replaces, atomically, a block of the same key and lower rank; its
  // pins and time to live stay. RESOURCE_EXHAUSTED when it is pinned and the larger one would pass
  // the pins' half.
  virtual absl::StatusOr<PutResult> Put(StoredBlock block) = 0;

  // Null when absent. Get marks the block as used, Peek does not and counts neither hit nor miss.
  virtual StoredBlockPtr Get(const BlockKey& key) = 0;
  virtual StoredBlockPtr Peek(const BlockKey& key) const = 0;

  // Children of `parent` (nullopt: roots are not listed) that are present now.
  virtual std::vector<StoredBlockPtr> Children(const BlockKey& parent) const = 0;

  // Marks a block and its ancestors as used; false when absent.
  virtual bool Touch(const BlockKey& key) = 0;
  // Pins nest: a block is evictable again after as many Unpin. `ttl_ms` 0: until unpinned; else the
  // pin lapses by itself. NOT_FOUND when absent; RESOURCE_EXHAUSTED when pinned bytes would pass
  // half of the memory (then nothing else could be stored), or pins limits::kMaxPinsPerBlock.
  virtual absl::Status Pin(const BlockKey& key, int64_t ttl_ms) = 0;
  virtual absl::Status Unpin(const BlockKey& key) = 0;
  // The block expires (as if deleted) `ttl_ms` from now; 0: never.
  virtual absl::Status SetTtl(const BlockKey& key, int64_t ttl_ms) = 0;
  // False when absent. Deletes pinned blocks too; children stay.
  virtual bool Delete(const BlockKey& key) = 0;
  // Calls `visit` for up to `limit` blocks in key order after `after`; false from visit stops.
  virtual void List(const std::optional<BlockKey>& after, size_t limit,
                    const std::function<bool(const StoredBlockPtr&)>& visit) const = 0;
  virtual bool IsPinned(const BlockKey& key) const = 0;

  virtual StoreStats Stats() const = 0;

  // Called, with no lock of the store held, for every block that left by eviction, expiry or
  // deletion, within any call but Touch, SetTtl and Children (these may be made under locks that
  // the listener takes). Set once, before the first use.
  virtual void SetRemovalListener(std::function<void(const StoredBlockPtr&)> listener) = 0;

  // Bytes that a block counts against the cap: frame, metadata and a fixed share for the index.
  static size_t EntryBytes(size_t frame_bytes, size_t metadata_bytes);
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_TIERED_STORE_H_
