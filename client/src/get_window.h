// The client's side of the ring in shared memory that a get's parts come through. Internal to
// client/.
#ifndef LATTICEKV_CLIENT_SRC_GET_WINDOW_H_
#define LATTICEKV_CLIENT_SRC_GET_WINDOW_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "client/src/region_client.h"
#include "core/base/bytes.h"
#include "latticekv/v1/blocks.pb.h"
#include "proto/window_ring.h"

namespace latticekv {

// Room for one get at a time. Not thread-safe.
class GetWindow {
 public:
  // For a reply of about `payload_bytes`; null when there is no shared memory or no room in it.
  // `regions` may be null, and must outlive the window.
  static std::unique_ptr<GetWindow> Open(RegionClient* regions, uint64_t payload_bytes) {
    const auto region = regions == nullptr ? nullptr : regions->Region();
    if (region == nullptr) return nullptr;
    // A client's gets share its region, so that none takes more than half of it.
    uint64_t bytes = std::min<uint64_t>(payload_bytes, region->bytes() / 2);
    for (bytes = std::max(bytes, kLeastBytes); bytes >= kLeastBytes; bytes /= 2) {
      if (const auto offset = region->Allocate(bytes)) {
        return std::unique_ptr<GetWindow>(
            new GetWindow(*regions, region, RegionSlot(region, *offset), bytes));
      }
    }
    return nullptr;
  }
  // Unless Finish was called the server may still write here: the region is given up.
  ~GetWindow() {
    if (!finished_) regions_.Retire(region_);
  }
  void Finish() { finished_ = true; }

  void Describe(v1::GetWindow* out) const {
    out->set_region_id(slot_.region_id());
    out->set_offset(slot_.offset());
    out->set_bytes(bytes_);
  }
  // The part's bytes; nothing when it cannot lie there.
  std::optional<ByteSpan> Data(const v1::GetPart& part) const {
    if (!ring_.Valid(part.window_position(), part.window_bytes())) return std::nullopt;
    return ByteSpan(ring_.at(part.window_position()), part.window_bytes());
  }
  // The part was used, and so were those before it.
  void Release(const v1::GetPart& part) {
    ring_.SetDone(WindowRing::End(part.window_position(), part.window_bytes()));
  }

 private:
  static constexpr uint64_t kLeastBytes = 4096;
  GetWindow(RegionClient& regions, std::shared_ptr<ClientRegion> region, RegionSlot slot,
            uint64_t bytes)
      : regions_(regions),
        region_(std::move(region)),
        slot_(std::move(slot)),
        bytes_(bytes),
        ring_(slot_.data(), bytes) {
    ring_.SetDone(0);
  }

  RegionClient& regions_;
  const std::shared_ptr<ClientRegion> region_;
  const RegionSlot slot_;
  const uint64_t bytes_;
  const WindowRing ring_;
  bool finished_ = false;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_GET_WINDOW_H_
