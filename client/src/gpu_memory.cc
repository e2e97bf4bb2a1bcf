#include "latticekv/gpu_memory.h"

namespace latticekv {

GpuCacheSpec PagedGpuCache(RegisteredLayout layout, std::vector<GpuMemory> memories,
                           uint32_t blocks, uint32_t block_tokens, GpuCacheOrder order) {
  GpuCacheSpec out;
  uint64_t offset = 0;
  for (uint32_t l = 0; layout.layout != nullptr && l < layout.layout->layers.size(); ++l) {
    const bool own_memory = memories.size() > 1;
    if (own_memory) offset = 0;
    std::vector<GpuPlane>& planes = out.planes.emplace_back();
    for (const PlaneSpec& spec : layout.layout->layers[l].planes) {
      const uint64_t vector_bytes = spec.head_dim * DTypeBytes(spec.dtype);
      GpuPlane& plane = planes.emplace_back();
      plane.memory = own_memory ? l : 0;
      plane.offset = offset;
      plane.block_stride = spec.token_bytes() * block_tokens;
      plane.token_stride = order == GpuCacheOrder::kNhd ? spec.token_bytes() : vector_bytes;
      plane.head_stride = order == GpuCacheOrder::kNhd ? vector_bytes : vector_bytes * block_tokens;
      offset += plane.block_stride * blocks;
    }
  }
  out.layout = std::move(layout);
  out.memories = std::move(memories);
  out.blocks = blocks;
  out.block_tokens = block_tokens;
  return out;
}

absl::Status PlacedBlocks::status() const {
  for (const PlacedBlock& block : blocks) {
    if (!block.status.ok()) return block.status;
  }
  return absl::OkStatus();
}

uint64_t PlacedBlocks::placed_tokens() const {
  uint64_t tokens = 0;
  for (const PlacedBlock& block : blocks) {
    if (!block.status.ok()) break;
    tokens += block.block.tokens;
  }
  return tokens;
}

}  // namespace latticekv
