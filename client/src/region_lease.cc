#include "client/src/region_lease.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/stream_watchdog.h"

namespace latticekv {

absl::StatusOr<std::unique_ptr<RegionLease>> RegionLease::Open(Stub& stub,
                                                               const v1::OpenRegionRequest& request,
                                                               int64_t timeout_ms) {
  auto stream = stub.OpenRegion(request);
  if (!stream) return absl::UnimplementedError("this connection leases no regions");
  v1::RegionGrant grant;
  bool granted, timed_out;
  {
    const StreamWatchdog watchdog(timeout_ms, [&] { stream->Cancel(); });
    granted = stream->Read(grant);
    timed_out = watchdog.fired();
  }
  if (granted) {
    return std::unique_ptr<RegionLease>(new RegionLease(std::move(stream), std::move(grant)));
  }
  absl::Status end = stream->Finish();
  if (timed_out) {
    return absl::UnavailableError(
        absl::StrCat("the server granted no region within ", timeout_ms, " ms"));
  }
  if (end.ok()) return absl::UnavailableError("the server ended a lease without a grant");
  return end;
}

RegionLease::RegionLease(std::unique_ptr<ReadStream<v1::RegionGrant>> stream, v1::RegionGrant grant)
    : stream_(std::move(stream)), grant_(std::move(grant)), watcher_([this] {
        v1::RegionGrant ignored;
        while (stream_->Read(ignored)) {
        }
        alive_.store(false);
        const absl::Status end = stream_->Finish();
        static_cast<void>(end.ok());
      }) {}

RegionLease::~RegionLease() {
  stream_->Cancel();
  watcher_.join();
}

}  // namespace latticekv
