// Regions of shared memory that clients on this host put their payloads into.
#ifndef LATTICEKV_SERVER_REGION_REGISTRY_H_
#define LATTICEKV_SERVER_REGION_REGISTRY_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "server/region_leases.h"

namespace latticekv {

// A name that nobody guesses.
uint64_t RandomRegionId();

// One mapped region. The client may write to it at any time, so nothing in it is looked at twice:
// whoever relies on what it saw copies first. Its size is sealed: no client can cut it under a
// reader.
class SharedRegion {
 public:
  static absl::StatusOr<std::shared_ptr<SharedRegion>> Create(size_t bytes);
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  uint64_t id() const { return id_; }
  const std::string& token() const { return token_; }
  size_t bytes() const { return bytes_; }
  int descriptor() const { return descriptor_; }
  // For what is only written; nothing that a client could have changed is read.
  std::byte* at(uint64_t offset) const { return base_ + offset; }
  // `size` bytes from `offset` on; nothing when they are not all within the region.
  std::optional<ByteSpan> Find(uint64_t offset, uint64_t size) const {
    if (offset > bytes_ || size > bytes_ - offset) return std::nullopt;
    return ByteSpan(base_ + offset, size);
  }

 private:
  SharedRegion() = default;
  uint64_t id_ = 0;
  std::string token_;  // what a client shows to be given the descriptor
  int descriptor_ = -1;
  std::byte* base_ = nullptr;
  size_t bytes_ = 0;
};

// The regions there are, and the socket that gives their descriptors away. Thread-safe.
class RegionRegistry {
 public:
  // `capacity_bytes` 0: no region is ever leased.
  explicit RegionRegistry(size_t capacity_bytes);
  ~RegionRegistry();
  RegionRegistry(const RegionRegistry&) = delete;
  RegionRegistry& operator=(const RegionRegistry&) = delete;

  // UNIMPLEMENTED when shared memory is off, RESOURCE_EXHAUSTED beyond the limits.
  absl::StatusOr<std::shared_ptr<SharedRegion>> Open(uint64_t bytes);
  // Null: there is no such region (any more).
  std::shared_ptr<SharedRegion> Find(uint64_t id) const { return leases_.Find(id); }
  // The memory goes when the last reader is done with it.
  void Close(uint64_t id) { leases_.Close(id); }
  const std::string& socket_name() const { return socket_name_; }

 private:
  // Serves one client after the other; each has kHandOverTimeoutMs.
  void ServeDescriptors();
  void HandOver(int socket);

  RegionLeases<SharedRegion> leases_;
  std::string socket_name_;
  int listener_ = -1;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_REGION_REGISTRY_H_
