// Parts of a get on their way through the client's shared memory.
#ifndef LATTICEKV_SERVER_GET_WINDOW_H_
#define LATTICEKV_SERVER_GET_WINDOW_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "latticekv/v1/blocks.pb.h"
#include "proto/window_ring.h"
#include "server/region_registry.h"

namespace latticekv {

// Writes to the window and reads nothing of it but the client's count, which can only make it
// overwrite what that client has not read. Not thread-safe.
class GetWindow {
 public:
  // Null when there is no such region (any more): parts go inline then. INVALID_ARGUMENT when the
  // window is not within its region.
  static absl::StatusOr<std::unique_ptr<GetWindow>> Open(const RegionRegistry& regions,
                                                         const v1::GetWindow& request);
  // Moves the part's data into the ring; false when there is no room now.
  bool Place(v1::GetPart* part);

 private:
  GetWindow(std::shared_ptr<SharedRegion> region, uint64_t offset, uint64_t bytes)
      : region_(std::move(region)), ring_(region_->at(offset), bytes) {}
  const std::shared_ptr<SharedRegion> region_;  // mapped for as long as this lives
  const WindowRing ring_;
  uint64_t end_ = 0;  // of the parts placed
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_GET_WINDOW_H_
