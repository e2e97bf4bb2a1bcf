#include "server/get_window.h"

#include "absl/strings/str_cat.h"
#include "server/error_detail.h"

namespace latticekv {

absl::StatusOr<std::unique_ptr<GetWindow>> GetWindow::Open(const RegionRegistry& regions,
                                                           const v1::GetWindow& request) {
  std::shared_ptr<SharedRegion> region = regions.Find(request.region_id());
  if (!region) return nullptr;
  if (request.bytes() < WindowRing::kMinBytes || request.offset() % sizeof(uint64_t) != 0 ||
      request.offset() > region->bytes() || request.bytes() > region->bytes() - request.offset()) {
    return BadPayload(absl::StrCat("the window is not within its region of ", region->bytes(),
                                   " bytes, aligned to 8, with at least ", WindowRing::kMinBytes,
                                   "; ask without one"));
  }
  return std::unique_ptr<GetWindow>(
      new GetWindow(std::move(region), request.offset(), request.bytes()));
}

std::optional<std::vector<uint64_t>> GetWindow::Take(std::span<const uint64_t> sizes) {
  std::vector<uint64_t> places;
  uint64_t end = end_;
  const uint64_t done = ring_.done();
  for (const uint64_t size : sizes) {
    if (size > ring_.ring_bytes()) return std::nullopt;
    places.push_back(ring_.Place(end, size));
    end = WindowRing::End(places.back(), size);
    if (done > end || end - done > ring_.ring_bytes()) return std::nullopt;
  }
  end_ = end;
  return places;
}

}  // namespace latticekv
