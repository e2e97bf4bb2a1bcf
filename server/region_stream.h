// One OpenRegion stream: the lease of a region of shared memory.
#ifndef LATTICEKV_SERVER_REGION_STREAM_H_
#define LATTICEKV_SERVER_REGION_STREAM_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>

#include "core/base/mutex.h"
#include "latticekv/v1/cache_service.pb.h"
#include "server/engine.h"
#include "server/region_registry.h"
#include "server/stream_monitor.h"

namespace latticekv {

// Grants a region, or takes one of GPU memory, and keeps it until the client goes, however it goes.
// Owns itself until gRPC is done with it.
class RegionStream final : public grpc::ServerWriteReactor<v1::RegionGrant>,
                           public MonitoredStream,
                           public std::enable_shared_from_this<RegionStream> {
 public:
  static RegionStream* Start(CacheEngine& engine, RegionRegistry& regions,
                             const v1::OpenRegionRequest& request, bool over_unix_socket);

  void OnWriteDone(bool ok) override {}
  void OnCancel() override;
  void OnDone() override;
  // Ends the lease while the daemon drains, so that it does not wait for it.
  void OnTick() override;

 private:
  RegionStream(CacheEngine& engine, RegionRegistry& regions) : engine_(engine), regions_(regions) {}
  void End(const absl::Status& status);
  // Maps the client's GPU memory, on the codec threads: the driver may take its time.
  void MapGpuMemory(const v1::CudaRegion& request);

  CacheEngine& engine_;
  RegionRegistry& regions_;
  std::shared_ptr<RegionStream> self_;  // until OnDone
  std::shared_ptr<SharedRegion> region_;
  v1::RegionGrant grant_;
  Mutex mutex_;
  bool finished_ LKV_GUARDED_BY(mutex_) = false;
  std::optional<uint64_t> gpu_region_ LKV_GUARDED_BY(mutex_);
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_REGION_STREAM_H_
