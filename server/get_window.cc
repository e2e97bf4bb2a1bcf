#include "server/get_window.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "server/error_detail.h"

namespace latticekv {

absl::StatusOr<std::unique_ptr<GetWindow>> GetWindow::Open(const RegionRegistry& regions,
                                                           const v1::GetWindow& request) {
  std::shared_ptr<SharedRegion> region = regions.Find(request.region_id());
  if (!region) return nullptr;
  if (request.bytes() < WindowRing::kMinBytes || request.offset() % sizeof(uint64_t) != 0 ||
      request.offset() > region->bytes() || request.bytes() > region->bytes() - request.offset()) {
    return ErrorWith(absl::StatusCode::kInvalidArgument, v1::REASON_BAD_PAYLOAD,
                     absl::StrCat("the window is not within its region of ", region->bytes(),
                                  " bytes, aligned to 8, with at least ", WindowRing::kMinBytes,
                                  "; ask without one"));
  }
  return std::unique_ptr<GetWindow>(
      new GetWindow(std::move(region), request.offset(), request.bytes()));
}

bool GetWindow::Place(v1::GetPart* part) {
  const uint64_t size = part->data().size();
  if (size > ring_.ring_bytes()) return false;
  const uint64_t place = ring_.Place(end_, size);
  const uint64_t end = WindowRing::End(place, size), done = ring_.done();
  if (done > end_ || end - done > ring_.ring_bytes()) return false;
  std::memcpy(ring_.at(place), part->data().data(), size);
  part->clear_data();
  part->set_window_position(place);
  part->set_window_bytes(size);
  end_ = end;
  return true;
}

}  // namespace latticekv
