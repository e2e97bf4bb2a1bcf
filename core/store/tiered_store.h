// The store of frames: opaque bytes under 32-byte keys in a forest of prefixes, kept in host memory
// under a hard byte cap and, with a directory for them, in segments on disk under another.
#ifndef LATTICEKV_CORE_STORE_TIERED_STORE_H_
#define LATTICEKV_CORE_STORE_TIERED_STORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/clock.h"
#include "core/base/limits.h"
#include "core/base/sha256.h"
#include "core/io/file_system.h"
#include "core/store/memory_budget.h"

namespace latticekv {

using BlockKey = Digest;

enum class Tier : uint8_t { kMemory = 1, kDisk = 2 };

// The frame of a block on disk. Stays readable for as long as it is held, whatever happens to the
// block. Thread-safe.
class FrameSource {
 public:
  virtual ~FrameSource() = default;
  // Fills `out` from `offset` of the frame. These bytes are not checked here: a frame has checks of
  // its own for its header and for every layer. DATA_LOSS past the end, UNAVAILABLE when the disk
  // fails.
  virtual absl::Status Read(uint64_t offset, MutableByteSpan out) const = 0;
  // The frame's first bytes, as far as they came along with its description; given once.
  virtual ByteVector TakeHead() const { return {}; }
};

// A stored block. Immutable, reference-counted: a reader's pointer keeps the bytes (and their share
// of the memory budget) alive after the block was evicted, replaced or deleted.
struct StoredBlock {
  BlockKey key{};
  std::optional<BlockKey> parent;  // none for the first chunk of a sequence
  uint32_t depth_tokens = 0;       // tokens of the prefix that ends with this block
  ByteVector frame;                // empty when the block was found on disk: see ReadFrame
  ByteVector metadata;             // the server's description of the block, opaque here
  uint32_t quality_rank = 0;       // higher is better; a put replaces only what ranks lower
  Reservation reservation;         // frame, metadata and index share

  // The store sets these.
  uint64_t version = 0;    // tells the puts of one key apart, across restarts too
  size_t frame_bytes = 0;  // wherever the frame lies
  std::shared_ptr<const FrameSource> source;  // set when only the description is in memory

  Tier tier() const { return source ? Tier::kDisk : Tier::kMemory; }
  // A part of the frame from either tier, so that one layer costs one layer.
  absl::Status ReadFrame(uint64_t offset, MutableByteSpan out) const;
};
using StoredBlockPtr = std::shared_ptr<const StoredBlock>;

struct StoreStats {
  uint64_t blocks = 0;             // in either tier
  uint64_t stored_bytes = 0;       // of memory, reserved by the blocks in the index
  uint64_t memory_used_bytes = 0;  // budget in use, in-flight included
  uint64_t memory_peak_bytes = 0;
  uint64_t memory_capacity_bytes = 0;
  uint64_t pinned_blocks = 0;
  uint64_t puts = 0, replaced = 0, duplicates = 0;
  uint64_t hits = 0, misses = 0;
  uint64_t evicted_blocks = 0, evicted_bytes = 0;  // that left memory and are on no disk
  uint64_t deleted_blocks = 0, expired_blocks = 0;
  uint64_t rejected_full = 0;  // reservations refused even after eviction

  // The disk tier; all zero without one.
  uint64_t disk_blocks = 0;  // on disk, those in memory too included
  uint64_t disk_used_bytes = 0, disk_peak_bytes = 0, disk_capacity_bytes = 0;
  uint64_t disk_index_bytes = 0;
  uint64_t segments = 0, sealed_segments = 0;
  uint64_t evicted_to_disk = 0;  // left memory, stay on disk
  uint64_t promoted_blocks = 0;  // read back into memory
  uint64_t disk_read_bytes = 0;  // to serve and describe blocks
  uint64_t written_blocks = 0, written_bytes = 0;
  uint64_t durable_blocks = 0;  // acknowledged as durable
  uint64_t syncs = 0;
  uint64_t recovered_blocks = 0;  // found by Open
  uint64_t scanned_segments = 0;  // of those that Open found, without an index
  int64_t recovery_ms = 0;        // that Open took to find them
  // What a start writes to disk comes after Open: over, and how long it took.
  bool settled = false;
  int64_t settle_ms = 0;
  uint64_t lost_blocks = 0;          // were on disk, and the disk or its directory went away
  uint64_t corrupt_dropped = 0;      // records found damaged, dropped and served as a miss
  uint64_t disk_evicted_blocks = 0;  // dropped to keep the disk's cap
  uint64_t reclaimed_segments = 0, reclaimed_bytes = 0, copied_bytes = 0;
  uint64_t disk_errors = 0;  // failed writes and syncs
};

struct StoreHealth {
  enum class State : uint8_t {
    kOk = 0,
    kNoDisk = 1,      // none is configured
    kMemoryOnly = 2,  // the disk takes no writes; what it holds is served as far as it can be read
  };
  State state = State::kOk;
  std::string reason;  // a sentence, unless the state is kOk
};

enum class Durability : uint8_t {
  kMemory = 0,
  kDurable = 1,  // survives kill -9 and power loss once acknowledged
};

// Called once, with no lock of the store held, maybe on a thread of the store and maybe before the
// call that it was given to returns. It may ask the store, but not wait in it (Reserve, Put, Get,
// Flush). OK: the block is on disk and synced. UNAVAILABLE,
// RESOURCE_EXHAUSTED: it is in memory only, and why. NOT_FOUND: it was deleted meanwhile.
using DurableCallback = std::function<void(const absl::Status&)>;

struct PutOptions {
  Durability durability = Durability::kMemory;
  DurableCallback on_durable;     // with kDurable, unless Put returns an error
  std::optional<int64_t> ttl_ms;  // as SetTtl, if the block is stored
};

struct PutResult {
  bool stored = false;   // false: a block of at least this rank was there already
  StoredBlockPtr block;  // what the store holds now
};

enum class RemovalReason : uint8_t { kEvicted = 1, kExpired, kDeleted, kCorrupt, kLost };
using RemovalListener = std::function<void(const BlockKey&, RemovalReason)>;

struct ScrubOptions {
  uint64_t bytes_per_second = 0;  // 0: as fast as the disk gives
};
struct ScrubReport {
  uint64_t records = 0, bytes = 0, segments = 0;
  uint64_t corrupt = 0;     // damaged records and segment headers or indexes
  uint64_t unreadable = 0;  // where the disk gave an error
};

struct StoreOptions {
  size_t memory_bytes = size_t{1} << 30;
  const Clock* clock = Clock::Real();
  std::string disk_dir;  // empty: no disk tier
  uint64_t disk_bytes = 0;
  FileSystem* file_system = FileSystem::Default();
  // 0: 256 MiB, less for a small `disk_bytes`. A block larger than this gets a segment of its own.
  uint64_t segment_bytes = 0;
  // How often a failed disk is tried again.
  int64_t disk_retry_ms = limits::kDiskRetryMs;
};

// Thread-safe. The destructor flushes; every StoredBlockPtr must be gone by then.
class TieredStore {
 public:
  // With a disk directory: takes its lock, recovers what is there. FAILED_PRECONDITION when another
  // daemon holds the directory or a segment has an unknown format version.
  static absl::StatusOr<std::unique_ptr<TieredStore>> Open(const StoreOptions& options);
  virtual ~TieredStore() = default;

  // Reserves in-flight or storage bytes, evicting cold blocks to make room: a block before its
  // ancestors, lowest rank (retention.h) first, never one that is pinned and not on disk. What is
  // not on disk yet is written there first; this may wait for it, for at most
  // limits::kWriteBackWaitMs, and then lets the coldest go. RESOURCE_EXHAUSTED, with sizes and what
  // to do, when that is not enough.
  virtual absl::StatusOr<Reservation> Reserve(size_t bytes) = 0;

  // Makes `block` visible. Its reservation must cover EntryBytes(block), else INVALID_ARGUMENT.
  // Parents need not be present. Replaces, atomically, a block of the same key and lower rank; its
  // pins and time to live stay. RESOURCE_EXHAUSTED when it is pinned and the larger one would pass
  // the pins' half. With kDurable the block is visible at once and acknowledged after its sync; a
  // block that was there already is made durable all the same.
  virtual absl::StatusOr<PutResult> Put(StoredBlock block, PutOptions options) = 0;
  absl::StatusOr<PutResult> Put(StoredBlock block) { return Put(std::move(block), PutOptions()); }
  // Makes a block that is present durable.
  virtual void MakeDurable(const BlockKey& key, DurableCallback done) = 0;

  // True when the block is present in either tier. Cheap, removes and announces nothing.
  virtual bool Contains(const BlockKey& key) const = 0;
  // Null when absent. Peek gives the description, and the frame if that is in memory; it reads a
  // few KiB from disk otherwise. It neither marks the block as used nor counts.
  virtual StoredBlockPtr Peek(const BlockKey& key) = 0;
  // Peek of each key; what lies on disk is read at the same time.
  virtual std::vector<StoredBlockPtr> PeekMany(std::span<const BlockKey> keys) = 0;
  // Marks the block as used and brings its frame into memory. When there is no room for it there,
  // the answer is as Peek's, and ReadFrame reads from disk. One that another thread reads already
  // is waited for.
  virtual StoredBlockPtr Get(const BlockKey& key) = 0;

  // Children of `parent` that are present now, as Peek gives them.
  virtual std::vector<StoredBlockPtr> Children(const BlockKey& parent) = 0;
  virtual bool HasChildren(const BlockKey& parent) const = 0;

  // Marks a block and its ancestors as used; false when absent.
  virtual bool Touch(const BlockKey& key) = 0;
  // Pins nest: a block leaves the store again by eviction only after as many Unpin. `ttl_ms` 0:
  // until unpinned; else the pin lapses by itself. NOT_FOUND when absent; RESOURCE_EXHAUSTED when
  // pinned bytes would pass half of the memory (of the disk, for blocks that are there only), or
  // pins limits::kMaxPinsPerBlock. Pins and times to live of blocks on disk survive a restart.
  virtual absl::Status Pin(const BlockKey& key, int64_t ttl_ms) = 0;
  virtual absl::Status Unpin(const BlockKey& key) = 0;
  // The block expires (as if deleted) `ttl_ms` from now; 0: never.
  virtual absl::Status SetTtl(const BlockKey& key, int64_t ttl_ms) = 0;
  // False when absent. Deletes pinned blocks too; children stay.
  virtual bool Delete(const BlockKey& key) = 0;
  // Drops the block if it is still the one that the reader found damaged; true when it was.
  virtual bool DropCorrupt(const StoredBlockPtr& block) = 0;
  // Calls `visit` for up to `limit` blocks in key order after `after`, as Peek gives them; false
  // from visit stops. Fewer only at the end.
  virtual void List(const std::optional<BlockKey>& after, size_t limit,
                    const std::function<bool(const StoredBlockPtr&)>& visit) = 0;
  virtual bool IsPinned(const BlockKey& key) = 0;
  // Calls `visit` for up to `count` blocks on disk, as Peek gives them, in no order. Give it 0
  // first, then what it returned, until that is 0. Blocks put meanwhile may be left out.
  virtual uint32_t VisitDisk(uint32_t cursor, uint32_t count,
                             const std::function<void(const StoredBlockPtr&)>& visit) = 0;

  virtual StoreStats Stats() = 0;
  virtual StoreHealth Health() const = 0;

  // Writes what only memory holds to disk and syncs it. FAILED_PRECONDITION without a disk.
  virtual absl::Status Flush() = 0;
  // Reads every record on disk and checks it; drops what is damaged. `progress`, called now and
  // then, stops it by false. FAILED_PRECONDITION without a disk.
  virtual absl::StatusOr<ScrubReport> Scrub(
      const ScrubOptions& options, const std::function<bool(const ScrubReport&)>& progress) = 0;

  // Called, with no lock of the store held, for every block that left the store (not for one that
  // left memory and stays on disk), within any call but Touch, SetTtl, Contains and Children (these
  // may be made under locks that the listener takes), and on the store's own threads. By the time
  // it is called the key may be present again. Set once, before the first use.
  virtual void SetRemovalListener(RemovalListener listener) = 0;

  // Bytes that a block counts against the cap: frame, metadata and a fixed share for the index.
  static size_t EntryBytes(size_t frame_bytes, size_t metadata_bytes);
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_TIERED_STORE_H_
