// Parts of a get on their way through the client's shared memory.
#ifndef LATTICEKV_SERVER_GET_WINDOW_H_
#define LATTICEKV_SERVER_GET_WINDOW_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "latticekv/v1/blocks.pb.h"
#include "proto/window_ring.h"
#include "server/region_registry.h"

namespace latticekv {

// Writes to the window and reads nothing of it but the client's count, which can only make it
// overwrite what that client has not read. Not thread-safe, but for `at`.
class GetWindow {
 public:
  // Null when there is no such region (any more): parts go inline then. INVALID_ARGUMENT when the
  // window is not within its region.
  static absl::StatusOr<std::unique_ptr<GetWindow>> Open(const RegionRegistry& regions,
                                                         const v1::GetWindow& request);
  // Room for parts of these sizes, in order: their positions in the ring, or nothing when there is
  // no room for all of them now. What is not used is passed over when the client is done with a
  // later part.
  std::optional<std::vector<uint64_t>> Take(std::span<const uint64_t> sizes);
  std::byte* at(uint64_t position) const { return ring_.at(position); }

 private:
  GetWindow(std::shared_ptr<SharedRegion> region, uint64_t offset, uint64_t bytes)
      : region_(std::move(region)), ring_(region_->at(offset), bytes) {}
  const std::shared_ptr<SharedRegion> region_;  // mapped for as long as this lives
  const WindowRing ring_;
  uint64_t end_ = 0;  // of what was taken
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_GET_WINDOW_H_
