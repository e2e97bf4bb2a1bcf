// The index of blocks in memory and the order in which they are evicted. Not thread-safe: the store
// holds its lock around every call.
#ifndef LATTICEKV_CORE_STORE_BLOCK_INDEX_H_
#define LATTICEKV_CORE_STORE_BLOCK_INDEX_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/store/retention.h"
#include "core/store/tiered_store.h"

namespace latticekv {

// Blocks form a forest: a block's parent is the chunk before it. Only leaves (blocks with no child
// present) that are not pinned, or are on disk too, can be evicted, so a block always leaves before
// its ancestors and a pinned block that only memory holds keeps all of them. Among leaves the one
// of lowest rank (retention.h) goes first; a block that becomes a leaf ranks at least as high as
// the child it lost.
class BlockIndex {
 public:
  struct Entry {
    StoredBlockPtr block;
    std::optional<BlockKey> parent;  // none also where a link would close a cycle
    Retention retention;
    uint32_t children = 0;            // present
    int64_t expires_ms = 0;           // 0: never
    uint32_t lasting_pins = 0;        // until unpinned
    std::vector<int64_t> timed_pins;  // when each lapses
    int64_t due_ms = 0;               // its place among the timers; 0: none
    bool evictable = false;           // is in the eviction order
    bool on_disk = false;             // this very block is: it may leave memory, pinned or not
    size_t bytes() const { return block->reservation.bytes(); }
    size_t pins() const { return lasting_pins + timed_pins.size(); }
    bool pinned() const { return pins() > 0; }
    // May not leave memory.
    bool fixed() const { return pinned() && !on_disk; }
    bool ExpiredAt(int64_t now_ms) const { return expires_ms != 0 && expires_ms <= now_ms; }
  };

  // `capacity_bytes` of the tier: the unit of the eviction order.
  explicit BlockIndex(uint64_t capacity_bytes) : clock_(capacity_bytes) {}

  // Null when absent.
  Entry* Find(const BlockKey& key);
  const Entry* Find(const BlockKey& key) const;
  // A block whose key begins with the first 16 bytes of `key`.
  Entry* FindByPrefix(const BlockKey& key);

  // Adds a block that is absent.
  Entry& Insert(StoredBlockPtr block);
  // Puts another block in the place of one with the same key; returns the old one. Pins, expiry,
  // children and rank stay. The new one is not on disk.
  StoredBlockPtr Replace(Entry& entry, StoredBlockPtr block);
  // Removes a block and returns it.
  StoredBlockPtr Remove(const BlockKey& key);

  void Use(Entry& entry);
  void SetOnDisk(Entry& entry, bool on_disk);
  // `lapses_ms` 0: lasts until removed.
  void AddPin(Entry& entry, int64_t lapses_ms);
  // Removes the pin that would last longest, since the others lapse by themselves; false when there
  // is none.
  bool RemovePin(Entry& entry);
  void SetExpiry(Entry& entry, int64_t expires_ms);

  // Lets pins lapse; moves expired blocks out of the index to `expired`.
  void AdvanceTo(int64_t now_ms, std::vector<StoredBlockPtr>& expired);

  // Blocks to evict, in this order, so that `bytes` come free; empty when that cannot be. A block
  // that a reader holds frees nothing, so it is among them only where blocks behind it are needed.
  std::vector<BlockKey> Victims(size_t bytes) const;
  // The blocks that would be evicted first, up to `bytes` of them: to be written to disk in time.
  std::vector<BlockKey> Coldest(size_t bytes) const { return PlanEviction(bytes, false, true); }
  // All that only memory holds.
  std::vector<BlockKey> NotOnDisk() const;

  // Those that have not expired at `now_ms`.
  std::vector<StoredBlockPtr> Children(const BlockKey& parent, int64_t now_ms) const;
  // Up to `limit` blocks in key order, from the first after `after`.
  std::vector<StoredBlockPtr> List(const std::optional<BlockKey>& after, size_t limit) const;

  size_t size() const { return entries_.size(); }
  RetentionClock& clock() { return clock_; }
  uint64_t stored_bytes() const { return stored_bytes_; }
  // Of pinned blocks that are not on disk, and so may not leave memory.
  uint64_t pinned_bytes() const { return pinned_bytes_; }
  uint64_t pinned_blocks() const { return pinned_blocks_; }

 private:
  using Timer = std::pair<int64_t, BlockKey>;

  // Puts an entry in or out of the eviction order as its state demands.
  void Refresh(Entry& entry);
  // Moves an entry's timer to the next moment at which something of it is due.
  void Reschedule(Entry& entry);
  void OnUnpinned(Entry& entry);
  void CountFixed(const Entry& entry, bool fixed);
  std::vector<BlockKey> PlanEviction(size_t bytes, bool with_held, bool partial) const;
  // Takes an entry out of the eviction order, whose rank is about to change.
  void Unlist(Entry& entry);
  bool ClosesCycle(const BlockKey& key, BlockKey parent) const;

  std::map<BlockKey, Entry> entries_;
  std::unordered_map<BlockKey, std::set<BlockKey>, DigestHash>
      children_;                                   // present ones, by parent
  std::set<std::pair<uint64_t, BlockKey>> order_;  // evictable, lowest rank first
  std::set<Timer> timers_;  // one for each entry with a pin that lapses or an expiry
  RetentionClock clock_;
  uint64_t stored_bytes_ = 0, pinned_bytes_ = 0, pinned_blocks_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_BLOCK_INDEX_H_
