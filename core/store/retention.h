// How long a block is worth keeping: the order in which leaves are evicted.
#ifndef LATTICEKV_CORE_STORE_RETENTION_H_
#define LATTICEKV_CORE_STORE_RETENTION_H_

#include <algorithm>
#include <cstdint>

namespace latticekv {

// What the policy keeps for a block. Lowest rank leaves first.
struct Retention {
  uint64_t rank = 0;
  uint8_t shared_uses = 0;  // while at least two blocks continued it
  bool used = false;        // since it was put
};

// Time is counted in bytes of blocks put or used, so that it runs as fast as the tier turns over. A
// block ranks by the moment of its last use, as in LRU, plus a credit in tier capacities:
//   half of one once it was used again, so that scans, which never are, leave before it;
//   one for each use while two or more blocks continued it, up to kMaxSharedUses. That is what
//   tells a prompt shared by many from one conversation's history, which is used as often but by
//   one user, and is dead when that one leaves.
// Together with leaves-first this keeps all of a shared prefix: its last block holds the rest.
// docs/results/eviction.md has the hit rates. Not thread-safe.
class RetentionClock {
 public:
  static constexpr uint8_t kMaxSharedUses = 16;

  explicit RetentionClock(uint64_t capacity_bytes) : capacity_(capacity_bytes) {}

  void OnPut(Retention& block, uint64_t bytes) {
    now_ += bytes;
    block = {now_};
  }
  // `children`: blocks present that continue this one.
  void OnUse(Retention& block, uint64_t bytes, uint32_t children) {
    now_ += bytes;
    block.used = true;
    if (children >= 2 && block.shared_uses < kMaxSharedUses) ++block.shared_uses;
    const uint64_t rank = now_ + capacity_ / 2 + block.shared_uses * capacity_;
    block.rank = std::max(block.rank, rank);
  }
  // Goes on from a moment before a restart.
  void Restore(uint64_t now) { now_ = std::max(now_, now); }
  // The rank of a block on disk that is used there.
  uint64_t RankOfUse() const { return now_ + capacity_ / 2; }
  // A block is worth at least as much as what it carried.
  static void OnChildLeft(Retention& parent, const Retention& child) {
    parent.rank = std::max(parent.rank, child.rank);
  }

 private:
  const uint64_t capacity_;
  uint64_t now_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_RETENTION_H_
