// An OpenRegion stream that is held open. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_REGION_LEASE_H_
#define LATTICEKV_CLIENT_SRC_REGION_LEASE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "client/src/stub.h"

namespace latticekv {

// The lease of one region, until the object or the server ends it. Thread-safe.
class RegionLease {
 public:
  // Waits for the grant. The server's error, or UNAVAILABLE when none came within `timeout_ms`.
  // `stub` must outlive the lease.
  static absl::StatusOr<std::unique_ptr<RegionLease>> Open(Stub& stub,
                                                           const v1::OpenRegionRequest& request,
                                                           int64_t timeout_ms);
  ~RegionLease();
  RegionLease(const RegionLease&) = delete;
  RegionLease& operator=(const RegionLease&) = delete;

  const v1::RegionGrant& grant() const { return grant_; }
  // False when the server has ended it or is gone.
  bool alive() const { return alive_.load(); }

 private:
  RegionLease(std::unique_ptr<ReadStream<v1::RegionGrant>> stream, v1::RegionGrant grant);
  const std::unique_ptr<ReadStream<v1::RegionGrant>> stream_;
  const v1::RegionGrant grant_;
  std::atomic<bool> alive_{true};
  std::thread watcher_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_REGION_LEASE_H_
