// The index of blocks on disk, in at most 64 bytes of memory for a block. Not thread-safe: the
// store holds its lock around every call.
#ifndef LATTICEKV_CORE_STORE_DISK_INDEX_H_
#define LATTICEKV_CORE_STORE_DISK_INDEX_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/base/sha256.h"
#include "core/store/memory_budget.h"

namespace latticekv {

// Where a record lies: segment (a number of the store's own, not its id), offset, size.
struct DiskPlace {
  uint32_t segment = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  bool operator==(const DiskPlace&) const = default;
};

// Pins of a block: lasting ones, and the monotonic times at which others lapse.
struct PinSet {
  uint32_t lasting = 0;
  std::vector<int64_t> timed;
  size_t size() const { return lasting + timed.size(); }
};

// Keys are kept by their first 16 bytes: they are SHA-256 digests, so others never begin alike by
// chance, and the whole key stands in the record for every reader to compare. Entries form the
// same forest of prefixes as in memory; an absent parent of present blocks keeps an entry without a
// place, a ghost, that holds its children together.
class DiskIndex {
 public:
  using Slot = uint32_t;
  static constexpr Slot kNone = UINT32_MAX;
  static constexpr uint32_t kMaxSegments = 1u << 16;
  static constexpr uint64_t kMaxOffset = uint64_t{1} << 29;       // exclusive
  static constexpr uint64_t kMaxRecordBytes = uint64_t{1} << 31;  // exclusive

  // Ranks of the eviction order (retention.h) in units of 64 KiB: 32 bits are 256 TiB of blocks
  // put.
  static constexpr int kRankShift = 16;

  // The index's memory counts against `budget`.
  explicit DiskIndex(MemoryBudget* budget) : budget_(budget) {}

  // kNone when absent.
  Slot Find(const Digest& key) const;
  // Takes memory for `blocks` more; false when the budget does not give it.
  bool Prepare(size_t blocks);
  // Adds a block that is absent; kNone when there is no memory for it.
  Slot Insert(const Digest& key, const std::optional<Digest>& parent, const DiskPlace& place,
              uint32_t quality_rank);
  // Children, pins and expiry of another block of the key stay.
  void Move(Slot slot, const DiskPlace& place, uint32_t quality_rank);
  void Remove(Slot slot);
  void Clear();

  DiskPlace PlaceOf(Slot slot) const;
  uint32_t quality_rank(Slot slot) const { return At(slot).quality_rank; }
  uint32_t last_used(Slot slot) const { return At(slot).last_used; }
  void set_last_used(Slot slot, uint32_t use) { At(slot).last_used = use; }
  int64_t expires_ms(Slot slot) const { return static_cast<int64_t>(At(slot).expires_ms); }
  void SetExpiry(Slot slot, int64_t expires_ms);  // 0: never
  bool ExpiredAt(Slot slot, int64_t now_ms) const {
    return expires_ms(slot) != 0 && expires_ms(slot) <= now_ms;
  }
  // An older record of the key may still be on disk.
  bool has_older(Slot slot) const { return (At(slot).flags & kHasOlder) != 0; }
  void set_has_older(Slot slot) { At(slot).flags |= kHasOlder; }

  // Null when there are none.
  const PinSet* Pins(Slot slot) const;
  void SetPins(Slot slot, PinSet pins);
  // Without the lapsed ones.
  size_t CountPins(Slot slot, int64_t now_ms);

  void DropLapsedPins(int64_t now_ms);

  bool has_children(Slot slot) const { return At(slot).first_child != kNone; }
  std::vector<Slot> Children(const Digest& parent) const;
  // The first 16 bytes of a present block's key are there in `out` too.
  void KeyPrefix(Slot slot, Digest* out) const;

  // Calls `visit` for present blocks among `count` slots from `from`; returns the slot to go on
  // from, 0 at the end. `visit` must not change the index.
  Slot Visit(Slot from, uint32_t count, const std::function<void(Slot)>& visit) const;

  size_t size() const { return present_; }
  uint64_t record_bytes() const { return record_bytes_; }
  uint64_t pinned_bytes() const { return pinned_bytes_; }
  size_t pinned_blocks() const { return pins_.size(); }
  // Memory of entries and table; pins apart.
  size_t memory_bytes() const { return reservation_bytes_; }

 private:
  static constexpr uint8_t kPresent = 1, kHasOlder = 2, kPinned = 4;
  static constexpr uint32_t kChunkSlots = 256;
  struct Entry {
    std::array<uint64_t, 2> prefix;
    uint64_t segment : 16, offset : 23, bytes : 25;  // the last two in units of 64 bytes
    uint64_t expires_ms : 48, quality_rank : 8, flags : 8;
    Slot parent, first_child, next_sibling;
    uint32_t last_used;
  };
  static_assert(sizeof(Entry) == 48);
  using Prefix = std::array<uint64_t, 2>;

  static Prefix PrefixOf(const Digest& key);
  Entry& At(Slot slot) { return chunks_[slot / kChunkSlots][slot % kChunkSlots]; }
  const Entry& At(Slot slot) const { return chunks_[slot / kChunkSlots][slot % kChunkSlots]; }
  bool present(Slot slot) const { return (At(slot).flags & kPresent) != 0; }
  size_t Home(const Prefix& prefix) const;
  // Present or ghost.
  Slot Lookup(const Prefix& prefix) const;
  // A ghost; kNone when there is no memory.
  Slot Add(const Prefix& prefix);
  void Free(Slot slot);
  bool GrowTable(size_t more);
  bool GrowChunks(size_t more);
  void Unlink(Slot slot);
  // Frees ghosts that hold no children, from `slot` up.
  void Prune(Slot slot);

  MemoryBudget* const budget_;
  std::vector<std::unique_ptr<Entry[]>> chunks_;
  std::vector<Slot> table_;  // open addressing, linear probing
  Slot free_ = kNone;        // linked by `parent`
  uint32_t slots_ = 0;       // ever used
  size_t used_ = 0;          // present and ghosts
  size_t present_ = 0;
  uint64_t record_bytes_ = 0, pinned_bytes_ = 0;
  std::unordered_map<Slot, PinSet> pins_;
  std::vector<Reservation> reservations_;
  Reservation table_reservation_;
  size_t reservation_bytes_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_DISK_INDEX_H_
