#include "server/region_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "server/error_detail.h"
#include "server/grpc_status.h"

namespace latticekv {
namespace {

absl::StatusOr<std::shared_ptr<GpuCacheRegion>> OpenGpuRegion(CacheEngine& engine,
                                                              const v1::CudaRegion& request) {
  if (engine.gpu() == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("this daemon uses no GPU (", engine.gpu_absence(), "); go by the host"));
  }
  LKV_ASSIGN_OR_RETURN(const std::string name_space, NamespaceOrDefault(request.namespace_()));
  LKV_ASSIGN_OR_RETURN(const Digest fingerprint,
                       DigestFromBytes(request.fingerprint(), "fingerprint"));
  LKV_ASSIGN_OR_RETURN(const LayoutInUse layout, engine.layouts().Find(name_space, fingerprint));
  return GpuCacheRegion::Open(*engine.gpu(), layout.layout, request);
}

}  // namespace

RegionStream* RegionStream::Start(CacheEngine& engine, RegionRegistry& regions,
                                  const v1::OpenRegionRequest& request, bool over_unix_socket) {
  std::shared_ptr<RegionStream> stream(new RegionStream(engine, regions));
  stream->self_ = stream;
  if (request.has_cuda()) {
    if (!over_unix_socket) {
      stream->End(absl::FailedPreconditionError(
          "GPU memory is handed over on a unix socket only; connect to the daemon's"));
      return stream.get();
    }
    engine.monitor().Watch(stream);
    const bool taken = engine.codec_pool().Submit(
        CodecPool::Kind::kDecode, [stream, cuda = request.cuda()] { stream->MapGpuMemory(cuda); });
    if (!taken) {
      stream->End(LimitError("kMaxCodecQueueJobs",
                             "the codec threads are too far behind; hand the memory over later"));
    }
    return stream.get();
  }
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

void RegionStream::MapGpuMemory(const v1::CudaRegion& request) {
  absl::StatusOr<std::shared_ptr<GpuCacheRegion>> region = OpenGpuRegion(engine_, request);
  if (!region.ok()) {
    End(region.status());
    return;
  }
  const uint64_t id = (*region)->id();
  if (!engine_.gpu_regions().Add(*region)) {
    End(LimitError("kMaxRegions",
                   absl::StrCat(limits::kMaxRegions, " caches are handed over; close one first")));
    return;
  }
  {
    MutexLock lock(mutex_);
    if (!finished_) {
      gpu_region_ = id;
      grant_.set_region_id(id);
      grant_.set_bytes((*region)->bytes());
      StartWrite(&grant_);
      return;
    }
  }
  engine_.gpu_regions().Close(id);  // the client left meanwhile
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
  std::optional<uint64_t> gpu_region;
  {
    MutexLock lock(mutex_);
    gpu_region = gpu_region_;
  }
  if (gpu_region) engine_.gpu_regions().Close(*gpu_region);
  const std::shared_ptr<RegionStream> self = std::move(self_);
}

}  // namespace latticekv
