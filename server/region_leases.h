// Regions of memory that are leased, of whatever kind, by the id that their clients name.
#ifndef LATTICEKV_SERVER_REGION_LEASES_H_
#define LATTICEKV_SERVER_REGION_LEASES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>

#include "core/base/limits.h"
#include "core/base/mutex.h"

namespace latticekv {

// A Region has id() and bytes(). Whoever found one may use it beyond its lease: its memory goes
// with the last owner. Thread-safe.
template <typename Region>
class RegionLeases {
 public:
  // `max_bytes` bounds the sum over what is leased at a time.
  explicit RegionLeases(uint64_t max_bytes = ~uint64_t{0}) : max_bytes_(max_bytes) {}

  // False, without taking the region, beyond kMaxRegions or the bytes.
  [[nodiscard]] bool Add(std::shared_ptr<Region> region) {
    MutexLock lock(mutex_);
    if (regions_.size() >= limits::kMaxRegions || region->bytes() > max_bytes_ - bytes_) {
      return false;
    }
    bytes_ += region->bytes();
    const uint64_t id = region->id();
    regions_[id] = std::move(region);
    return true;
  }
  // Null: there is no such region (any more).
  std::shared_ptr<Region> Find(uint64_t id) const {
    MutexLock lock(mutex_);
    const auto it = regions_.find(id);
    return it == regions_.end() ? nullptr : it->second;
  }
  // One of which `matches` is true, or null.
  template <typename Matches>
  std::shared_ptr<Region> FindIf(const Matches& matches) const {
    MutexLock lock(mutex_);
    for (const auto& [id, region] : regions_) {
      if (matches(*region)) return region;
    }
    return nullptr;
  }
  void Close(uint64_t id) {
    std::shared_ptr<Region> region;  // unmapped without the lock
    MutexLock lock(mutex_);
    const auto it = regions_.find(id);
    if (it == regions_.end()) return;
    region = std::move(it->second);
    bytes_ -= region->bytes();
    regions_.erase(it);
  }
  size_t count() const {
    MutexLock lock(mutex_);
    return regions_.size();
  }
  uint64_t bytes() const {
    MutexLock lock(mutex_);
    return bytes_;
  }

 private:
  const uint64_t max_bytes_;
  mutable Mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Region>> regions_ LKV_GUARDED_BY(mutex_);
  uint64_t bytes_ LKV_GUARDED_BY(mutex_) = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_REGION_LEASES_H_
