// The client's side of GPU memory: hands a cache over, and again when its lease ended. Internal to
// client/.
#ifndef LATTICEKV_CLIENT_SRC_GPU_CACHE_H_
#define LATTICEKV_CLIENT_SRC_GPU_CACHE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "client/src/region_lease.h"
#include "client/src/stub.h"
#include "core/base/mutex.h"
#include "latticekv/gpu_memory.h"

namespace latticekv {

// Thread-safe.
class LeasedGpuCache : public GpuCache {
 public:
  // `timeout_ms`: of each attempt to lease it.
  LeasedGpuCache(std::shared_ptr<Stub> stub, GpuCacheSpec spec, int64_t timeout_ms)
      : GpuCache(std::move(spec)), stub_(std::move(stub)), timeout_ms_(timeout_ms) {}

  // Id of its region at the server, which leases it now unless it has; the server's error. Waits at
  // most `max_ms`, if given.
  absl::StatusOr<uint64_t> Region(std::optional<int64_t> max_ms = std::nullopt);
  // The server says that it has no region `id`: the next use asks for another.
  void Retire(uint64_t id);
  const Stub* stub() const { return stub_.get(); }

 private:
  const std::shared_ptr<Stub> stub_;
  const int64_t timeout_ms_;
  Mutex mutex_;
  std::unique_ptr<RegionLease> lease_ LKV_GUARDED_BY(mutex_);
};

// INVALID_ARGUMENT when the specification does not fit its layout; what it says of memory is for
// the server to judge.
absl::Status CheckGpuCache(const GpuCacheSpec& spec);

// INVALID_ARGUMENT, in the name of `what`, unless the table's cache is one of `layout` and has its
// blocks.
absl::Status CheckGpuTable(const char* what, const GpuBlockTable& table,
                           const RegisteredLayout& layout);
// The blocks of the table that hold `tokens` tokens from sequence position `position` on; nothing
// when it does not hold them all.
std::optional<v1::BlockTable> PartOfTable(const GpuBlockTable& table, uint64_t position,
                                          uint64_t tokens);
// As they are, for the server to judge.
v1::BlockTable ToProto(const GpuBlockTable& table);
v1::CudaRegion ToProto(const GpuCacheSpec& spec);

// The cache behind the public class; INVALID_ARGUMENT, in the name of `what`, when it is not of a
// client that talks over `stub`.
absl::StatusOr<LeasedGpuCache*> LeasedCache(const char* what, const GpuBlockTable& table,
                                            const Stub* stub);

// The server has no such region (any more).
bool IsRegionGone(const absl::Status& status);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_GPU_CACHE_H_
