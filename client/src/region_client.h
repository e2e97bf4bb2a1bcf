// The client's side of shared memory: leases a region when the server is on this host. Internal to
// client/.
#ifndef LATTICEKV_CLIENT_SRC_REGION_CLIENT_H_
#define LATTICEKV_CLIENT_SRC_REGION_CLIENT_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "client/src/region_lease.h"
#include "client/src/stub.h"
#include "core/base/bytes.h"
#include "core/base/mutex.h"

namespace latticekv {

// A mapped region and what of it is in use. Thread-safe.
class ClientRegion {
 public:
  // Takes the descriptor over.
  static absl::StatusOr<std::shared_ptr<ClientRegion>> Map(uint64_t id, int descriptor,
                                                           size_t bytes);
  ~ClientRegion();
  ClientRegion(const ClientRegion&) = delete;
  ClientRegion& operator=(const ClientRegion&) = delete;

  uint64_t id() const { return id_; }
  size_t bytes() const { return bytes_; }
  std::byte* at(uint64_t offset) const { return base_ + offset; }
  // First fit; nothing when there is no room.
  std::optional<uint64_t> Allocate(size_t bytes);
  void Free(uint64_t offset);

 private:
  ClientRegion(uint64_t id, std::byte* base, size_t bytes) : id_(id), base_(base), bytes_(bytes) {}
  const uint64_t id_;
  std::byte* const base_;
  const size_t bytes_;
  Mutex mutex_;
  std::map<uint64_t, size_t> used_ LKV_GUARDED_BY(mutex_);  // offset -> bytes
};

// Room for one payload; gives it back on destruction. Movable.
class RegionSlot {
 public:
  RegionSlot() = default;
  RegionSlot(std::shared_ptr<ClientRegion> region, uint64_t offset)
      : region_(std::move(region)), offset_(offset) {}
  RegionSlot(RegionSlot&& other) noexcept = default;
  RegionSlot& operator=(RegionSlot&& other) noexcept {
    std::swap(region_, other.region_);
    std::swap(offset_, other.offset_);
    return *this;
  }
  ~RegionSlot() {
    if (region_) region_->Free(offset_);
  }
  explicit operator bool() const { return region_ != nullptr; }
  uint64_t region_id() const { return region_->id(); }
  uint64_t offset() const { return offset_; }
  std::byte* data() const { return region_->at(offset_); }

 private:
  std::shared_ptr<ClientRegion> region_;
  uint64_t offset_ = 0;
};

// Leases a region on the first use and again after the server went away. Thread-safe.
class RegionClient {
 public:
  // `stub` must outlive it.
  RegionClient(Stub& stub, size_t bytes) : stub_(stub), bytes_(bytes) {}
  ~RegionClient();
  RegionClient(const RegionClient&) = delete;
  RegionClient& operator=(const RegionClient&) = delete;

  // The leased region, or null: the server is on another host, leases none, or is gone.
  std::shared_ptr<ClientRegion> Region();
  // Gives the lease of `region` up, if it is still the one: the next use leases another.
  void Retire(const std::shared_ptr<ClientRegion>& region);

 private:
  using SteadyClock = std::chrono::steady_clock;
  // Asks for a lease, which stays in lease_, and maps it.
  absl::StatusOr<std::shared_ptr<ClientRegion>> Lease() LKV_REQUIRES(mutex_);
  void CloseLocked() LKV_REQUIRES(mutex_);

  Stub& stub_;
  const size_t bytes_;
  Mutex mutex_;
  std::shared_ptr<ClientRegion> region_ LKV_GUARDED_BY(mutex_);
  std::unique_ptr<RegionLease> lease_ LKV_GUARDED_BY(mutex_);
  SteadyClock::time_point next_try_ LKV_GUARDED_BY(mutex_){};
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_REGION_CLIENT_H_
