#include "client/src/gpu_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/proto_convert.h"
#include "core/base/status_macros.h"
#include "latticekv/error_detail.h"

namespace latticekv {
namespace {

absl::Status Invalid(const char* what, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", std::string(why)));
}

}  // namespace

absl::StatusOr<uint64_t> LeasedGpuCache::Region(std::optional<int64_t> max_ms) {
  MutexLock lock(mutex_);
  if (lease_ && lease_->alive()) return lease_->grant().region_id();
  lease_.reset();
  v1::OpenRegionRequest request;
  *request.mutable_cuda() = ToProto(spec());
  const int64_t wait_ms = std::clamp<int64_t>(max_ms.value_or(timeout_ms_), 1, timeout_ms_);
  LKV_ASSIGN_OR_RETURN(lease_, RegionLease::Open(*stub_, request, wait_ms));
  return lease_->grant().region_id();
}

void LeasedGpuCache::Retire(uint64_t id) {
  MutexLock lock(mutex_);
  if (lease_ && lease_->grant().region_id() == id) lease_.reset();
}

absl::Status CheckGpuCache(const GpuCacheSpec& spec) {
  constexpr char kWhat[] = "GPU cache";
  if (spec.layout.layout == nullptr) return Invalid(kWhat, "register the layout first");
  const std::vector<LayerSpec>& layers = spec.layout.layout->layers;
  if (spec.planes.size() != layers.size()) {
    return Invalid(kWhat, absl::StrCat("planes of ", spec.planes.size(), " layers for a layout of ",
                                       layers.size()));
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    if (spec.planes[l].size() != layers[l].planes.size()) {
      return Invalid(kWhat, absl::StrCat("layer ", l, " has ", spec.planes[l].size(),
                                         " planes, the layout has ", layers[l].planes.size()));
    }
  }
  if (spec.blocks == 0 || spec.block_tokens == 0) {
    return Invalid(kWhat, "it has no blocks; one that is not paged is 1 block of all its tokens");
  }
  return absl::OkStatus();
}

absl::Status CheckGpuTable(const char* what, const GpuBlockTable& table,
                           const RegisteredLayout& layout) {
  const GpuCacheSpec& spec = table.cache->spec();
  LKV_RETURN_IF_ERROR(CheckGpuCache(spec));
  if (spec.layout.fingerprint != layout.fingerprint ||
      spec.layout.name_space != layout.name_space) {
    return Invalid(what, "the GPU cache was opened with another layout or namespace");
  }
  for (const uint32_t block : table.blocks) {
    if (block >= spec.blocks) {
      return Invalid(what, absl::StrCat("the block table names block ", block,
                                        "; the GPU cache has ", spec.blocks));
    }
  }
  return absl::OkStatus();
}

std::optional<v1::BlockTable> PartOfTable(const GpuBlockTable& table, uint64_t position,
                                          uint64_t tokens) {
  const uint64_t block_tokens = table.cache->spec().block_tokens;
  if (position < table.first_position) return std::nullopt;
  const uint64_t first_token = position - table.first_position;
  const uint64_t first = first_token / block_tokens;
  const uint64_t last = (first_token + tokens - 1) / block_tokens;
  if (last >= table.blocks.size()) return std::nullopt;
  v1::BlockTable out;
  out.mutable_blocks()->Add(table.blocks.begin() + static_cast<std::ptrdiff_t>(first),
                            table.blocks.begin() + static_cast<std::ptrdiff_t>(last) + 1);
  out.set_first_position(table.first_position + first * block_tokens);
  return out;
}

v1::CudaRegion ToProto(const GpuCacheSpec& spec) {
  v1::CudaRegion out;
  out.set_namespace_(spec.layout.name_space);
  out.set_fingerprint(BytesString(spec.layout.fingerprint));
  for (const GpuMemory& memory : spec.memories) {
    v1::CudaMemory* m = out.add_memories();
    m->set_ipc_handle(BytesString(memory.ipc_handle));
    m->set_device_uuid(BytesString(memory.device_uuid));
    m->set_offset(memory.offset);
    m->set_bytes(memory.bytes);
  }
  for (const auto& layer : spec.planes) {
    for (const GpuPlane& plane : layer) {
      v1::CudaPlane* p = out.add_planes();
      p->set_memory(plane.memory);
      p->set_offset(plane.offset);
      p->set_block_stride(plane.block_stride);
      p->set_token_stride(plane.token_stride);
      p->set_head_stride(plane.head_stride);
    }
  }
  out.set_block_tokens(spec.block_tokens);
  out.set_blocks(spec.blocks);
  return out;
}

v1::BlockTable ToProto(const GpuBlockTable& table) {
  v1::BlockTable out;
  out.mutable_blocks()->Add(table.blocks.begin(), table.blocks.end());
  out.set_first_position(table.first_position);
  return out;
}

absl::StatusOr<LeasedGpuCache*> LeasedCache(const char* what, const GpuBlockTable& table,
                                            const Stub* stub) {
  auto* const cache = dynamic_cast<LeasedGpuCache*>(table.cache.get());
  if (cache != nullptr && cache->stub() == stub) return cache;
  return Invalid(what, "the GPU cache was opened by another client; open it with this one");
}

bool IsRegionGone(const absl::Status& status) {
  const auto detail = GetErrorDetail(status);
  return detail && detail->reason == ErrorReason::kRegionGone;
}

}  // namespace latticekv
