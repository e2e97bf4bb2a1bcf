// KV caches in GPU memory that workers on this host handed over, and where chunks lie in them.
#ifndef LATTICEKV_SERVER_GPU_REGION_H_
#define LATTICEKV_SERVER_GPU_REGION_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/sha256.h"
#include "core/codec/gpu/gpu_executor.h"
#include "core/layout/layout.h"
#include "latticekv/v1/cache_service.pb.h"
#include "server/region_leases.h"

namespace latticekv {

// A worker's cache, mapped for as long as the object lives: until its lease has ended and the jobs
// that began with it are done.
class GpuCacheRegion : public std::enable_shared_from_this<GpuCacheRegion> {
 public:
  // INVALID_ARGUMENT unless every plane's blocks lie within the memory that was handed over;
  // errors of GpuExecutor::OpenRegion.
  static absl::StatusOr<std::shared_ptr<GpuCacheRegion>> Open(GpuExecutor& gpu,
                                                              std::shared_ptr<const Layout> layout,
                                                              const v1::CudaRegion& request);

  uint64_t id() const { return id_; }
  const Digest& fingerprint() const { return fingerprint_; }
  uint64_t bytes() const { return bytes_; }
  // The place of `tokens` tokens from sequence position `position` on. INVALID_ARGUMENT when the
  // table does not reach so far or names a block that is not in the cache.
  absl::StatusOr<std::shared_ptr<const GpuPlacement>> Place(const v1::BlockTable& table,
                                                            uint64_t position,
                                                            uint32_t tokens) const;

 private:
  GpuCacheRegion() = default;
  absl::Status AddPlanes(const Layout& layout, const v1::CudaRegion& request);

  uint64_t id_ = 0;
  Digest fingerprint_{};
  uint64_t bytes_ = 0;
  uint32_t blocks_ = 0, block_tokens_ = 0;
  std::vector<std::shared_ptr<const GpuRegion>> memories_;
  std::vector<std::vector<DevicePlane>> planes_;  // [layer][plane]
};

using GpuRegionLeases = RegionLeases<GpuCacheRegion>;

// FAILED_PRECONDITION with REASON_REGION_GONE.
absl::Status NoSuchGpuRegion();

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_GPU_REGION_H_
