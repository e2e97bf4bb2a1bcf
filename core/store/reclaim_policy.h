// What reclaim gives up and what it keeps when the disk tier is full. Segments go whole: what is
// worth it is copied to the newest one. The mechanics are in reclaim.cc.
#ifndef LATTICEKV_CORE_STORE_RECLAIM_POLICY_H_
#define LATTICEKV_CORE_STORE_RECLAIM_POLICY_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

namespace latticekv {

struct SegmentUse {
  uint64_t file_bytes = 0;
  uint64_t live_bytes = 0;    // records that blocks of the index lie in
  uint64_t pinned_bytes = 0;  // of these
  // Sum over live records of bytes times rank in the eviction order (retention.h).
  double rank_bytes = 0;
  double mean_rank() const {
    return live_bytes == 0 ? 0 : rank_bytes / static_cast<double>(live_bytes);
  }
};

// The segment to give up: the emptiest while one is at least half dead, since that costs least;
// else the coldest. One that is mostly pinned frees nothing and is never taken.
inline std::optional<size_t> ChooseSegmentToReclaim(std::span<const SegmentUse> segments) {
  std::optional<size_t> best;
  const auto half_dead = [](const SegmentUse& s) { return s.live_bytes * 2 <= s.file_bytes; };
  for (size_t i = 0; i < segments.size(); ++i) {
    const SegmentUse& s = segments[i];
    if (s.pinned_bytes * 2 > s.file_bytes) continue;
    if (!best) {
      best = i;
      continue;
    }
    const SegmentUse& b = segments[*best];
    const bool better = half_dead(s) && half_dead(b)
                            ? s.live_bytes * static_cast<double>(b.file_bytes) <
                                  b.live_bytes * static_cast<double>(s.file_bytes)
                        : half_dead(s) != half_dead(b) ? half_dead(s)
                                                       : s.mean_rank() < b.mean_rank();
    if (better) best = i;
  }
  return best;
}

struct RecordUse {
  uint64_t bytes = 0;
  uint32_t rank = 0;
  bool pinned = false;
  bool has_children = false;  // on disk: they are of no use without it
};

// Which records of the chosen segment are copied: pinned ones; then, up to half of the file, those
// that carry others and those that rank no lower than the whole tier's mean, best first. Of a
// segment that is half dead all are.
inline std::vector<bool> ChooseRecordsToKeep(std::span<const RecordUse> records,
                                             uint64_t file_bytes, uint32_t mean_rank) {
  uint64_t live = 0;
  for (const RecordUse& r : records) live += r.bytes;
  std::vector<size_t> order(records.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const RecordUse &x = records[a], &y = records[b];
    if (x.pinned != y.pinned) return x.pinned;
    if (x.has_children != y.has_children) return x.has_children;
    return x.rank > y.rank;
  });
  std::vector<bool> keep(records.size());
  uint64_t kept = 0;
  for (const size_t i : order) {
    const RecordUse& r = records[i];
    const bool worth = live * 2 <= file_bytes || r.has_children || r.rank >= mean_rank;
    if (!r.pinned && (!worth || (kept + r.bytes) * 2 > file_bytes)) continue;
    keep[i] = true;
    kept += r.bytes;
  }
  return keep;
}

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_RECLAIM_POLICY_H_
