#include "server/gpu_region.h"

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/layout/chain_hash.h"
#include "server/block_metadata.h"
#include "server/error_detail.h"
#include "server/region_registry.h"

namespace latticekv {
namespace {

// Adds count * stride to *end; false when that is more than any memory.
bool Extend(uint64_t count, uint64_t stride, uint64_t* end) {
  uint64_t reach;
  return !__builtin_mul_overflow(count, stride, &reach) &&
         !__builtin_add_overflow(*end, reach, end);
}

// Whether every element of the plane in every block is within `bytes`.
bool PlaneFits(const PlaneSpec& spec, const v1::CudaPlane& plane, uint32_t blocks,
               uint32_t block_tokens, uint64_t bytes) {
  uint64_t end = plane.offset();
  return Extend(blocks - 1, plane.block_stride(), &end) &&
         Extend(block_tokens - 1, plane.token_stride(), &end) &&
         Extend(spec.heads - 1, plane.head_stride(), &end) &&
         Extend(spec.head_dim, DTypeBytes(spec.dtype), &end) && end <= bytes;
}

}  // namespace

absl::Status NoSuchGpuRegion() {
  return ErrorWith(absl::StatusCode::kFailedPrecondition, v1::REASON_REGION_GONE,
                   "the daemon has no such GPU memory (any more); hand it over again");
}

absl::StatusOr<std::shared_ptr<GpuCacheRegion>> GpuCacheRegion::Open(
    GpuExecutor& gpu, std::shared_ptr<const Layout> layout, const v1::CudaRegion& request) {
  std::shared_ptr<GpuCacheRegion> region(new GpuCacheRegion());
  region->id_ = RandomRegionId();
  LKV_ASSIGN_OR_RETURN(region->fingerprint_, DigestFromBytes(request.fingerprint(), "fingerprint"));
  if (request.blocks() == 0 || request.block_tokens() == 0) {
    return absl::InvalidArgumentError(
        "a cache has blocks and block_tokens; give 1 block of all tokens for one that is not "
        "paged");
  }
  if (request.memories_size() > request.planes_size()) {
    return absl::InvalidArgumentError("more memories than planes; give each memory once");
  }
  for (const v1::CudaMemory& memory : request.memories()) {
    LKV_ASSIGN_OR_RETURN(region->memories_.emplace_back(),
                         gpu.OpenRegion({memory.ipc_handle(), memory.device_uuid(), memory.offset(),
                                         memory.bytes()}));
    region->bytes_ += memory.bytes();
  }
  region->blocks_ = request.blocks();
  region->block_tokens_ = request.block_tokens();
  LKV_RETURN_IF_ERROR(region->AddPlanes(*layout, request));
  return region;
}

absl::Status GpuCacheRegion::AddPlanes(const Layout& layout, const v1::CudaRegion& request) {
  int next = 0;
  for (const LayerSpec& layer : layout.layers) {
    auto& planes = planes_.emplace_back();
    for (const PlaneSpec& spec : layer.planes) {
      if (next == request.planes_size()) {
        return absl::InvalidArgumentError("there are fewer planes than the layout has; give all");
      }
      const v1::CudaPlane& plane = request.planes(next);
      const auto problem = [&](const char* what) {
        return absl::InvalidArgumentError(
            absl::StrCat("plane ", next, " '", spec.name, "' ", what));
      };
      if (plane.memory() >= memories_.size()) return problem("is in a memory that was not given");
      const GpuRegion& memory = *memories_[plane.memory()];
      if (!PlaneFits(spec, plane, blocks_, block_tokens_, memory.bytes())) {
        return problem("passes the end of its memory; correct offset, strides or blocks");
      }
      std::byte* data_dev = memory.data_dev() + plane.offset();
      const uint64_t all = reinterpret_cast<uintptr_t>(data_dev) | plane.block_stride() |
                           plane.token_stride() | plane.head_stride();
      if (all % DTypeBytes(spec.dtype) != 0) return problem("is not aligned to its elements");
      planes.push_back({data_dev, plane.token_stride(), plane.head_stride(), plane.block_stride()});
      ++next;
    }
  }
  if (next == request.planes_size()) return absl::OkStatus();
  return absl::InvalidArgumentError("there are more planes than the layout has");
}

absl::StatusOr<std::shared_ptr<const GpuPlacement>> GpuCacheRegion::Place(
    const v1::BlockTable& table, uint64_t position, uint32_t tokens) const {
  const uint64_t first = position - table.first_position();
  const uint64_t first_block = first / block_tokens_;
  const uint64_t last_block = (first + tokens - 1) / block_tokens_;
  if (position < table.first_position() || first > limits::kMaxPosition || tokens == 0 ||
      last_block >= static_cast<uint64_t>(table.blocks_size())) {
    return absl::InvalidArgumentError(absl::StrCat("the block table of ", table.blocks_size(),
                                                   " blocks from position ", table.first_position(),
                                                   " on does not hold ", tokens,
                                                   " tokens from position ", position, " on"));
  }
  auto out = std::make_shared<GpuPlacement>();
  for (uint64_t b = first_block; b <= last_block; ++b) {
    const uint32_t block = table.blocks(static_cast<int>(b));
    if (block >= blocks_) {
      return absl::InvalidArgumentError(
          absl::StrCat("the block table names block ", block, "; the cache has ", blocks_));
    }
    out->blocks.push_back(block);
  }
  // Owns all of the cache's memory through this object.
  out->region = std::shared_ptr<const GpuRegion>(shared_from_this(), memories_.front().get());
  out->planes = planes_;
  out->block_tokens = block_tokens_;
  out->first_token = first % block_tokens_;
  return out;
}

}  // namespace latticekv
