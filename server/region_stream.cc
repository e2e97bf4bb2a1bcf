#include "server/region_stream.h"

#include <utility>

#include "server/error_detail.h"
#include "server/grpc_status.h"

namespace latticekv {

RegionStream* RegionStream::Start(CacheEngine& engine, RegionRegistry& regions,
                                  const v1::OpenRegionRequest& request) {
  std::shared_ptr<RegionStream> stream(new RegionStream(engine, regions));
  stream->self_ = stream;
  auto region = regions.Open(request.bytes());
  if (!region.ok()) {
    stream->End(region.status());
    return stream.get();
  }
  stream->region_ = *std::move(region);
  stream->grant_.set_region_id(stream->region_->id());
  stream->grant_.set_bytes(stream->region_->bytes());
  stream->grant_.set_socket_name(regions.socket_name());
  stream->grant_.set_token(stream->region_->token());
  engine.monitor().Watch(stream);
  stream->StartWrite(&stream->grant_);
  return stream.get();
}

void RegionStream::End(const absl::Status& status) {
  MutexLock lock(mutex_);
  if (finished_) return;
  finished_ = true;
  Finish(ToGrpcStatus(status));
}

void RegionStream::OnCancel() { End(absl::CancelledError("the lease was given up")); }

void RegionStream::OnTick() {
  if (!engine_.draining()) return;
  End(ErrorWith(absl::StatusCode::kUnavailable, v1::REASON_DRAINING,
                "the daemon is shutting down; connect again when it is back"));
}

void RegionStream::OnDone() {
  if (region_) regions_.Close(region_->id());
  const std::shared_ptr<RegionStream> self = std::move(self_);
}

}  // namespace latticekv
