// Turns checked frames into tasks for the decode kernels. Host code only. Internal to
// core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_
#define LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_

#include <memory>
#include <vector>

#include "core/codec/cuda/cuda_decoder.h"
#include "core/codec/cuda/rope_tables.h"
#include "core/codec/frame_format.h"
#include "core/codec/tile_format.h"

namespace latticekv {

// One plan after the other: Start, AddChunk for each chunk, Finish. Memory is used again. Offsets
// in tasks count from the start of their region until Finish knows where regions begin.
class PlanBuilder {
 public:
  // The layout must be valid.
  PlanBuilder(const Layout& layout, const ModelProfile* profile);
  // Makes room for that many chunks and forgets those added before.
  void Start(size_t chunks);
  absl::Status AddChunk(const CudaDecodeChunk& chunk);
  void Finish(CudaDecodePlan& plan);

 private:
  // Where a unit's raw vectors lie.
  enum class RawIn : uint8_t { kFrames, kExact };
  // What is true of a layer's units in every chunk.
  struct UnitShape {
    cuda::UnitTask task;
    uint32_t rope = 0;                  // of keys with rotary embedding
    const HeadProfile* head = nullptr;  // of the profile
    uint64_t profile_at = 0;            // in the arena
  };
  struct LayerShape {
    std::vector<UnitRef> refs;
    std::vector<UnitShape> units;
  };
  // What the units of the chunk at hand share.
  struct ChunkState {
    const CudaDecodeChunk* chunk = nullptr;
    FrameHeader header;
    uint64_t frame_at = 0;   // of the frame's first byte in the frames' region, uploaded or not
    uint64_t places_at = 0;  // in the tasks' region of places
  };

  absl::Status AddLayer(uint32_t layer, ByteSpan bytes);
  absl::Status AddTile(uint32_t layer, size_t first_unit, const TileSpan& span);
  absl::Status AddExactPlane(uint32_t layer, size_t plane, ByteReader& in);
  cuda::TileTask NewTile(uint32_t units) const;
  void AddUnit(uint32_t layer, const UnitRef& ref, const UnitShape& shape, const UnitHeader& header,
               uint32_t& groups);
  uint64_t OrderList(const UnitHeader& header, uint32_t tokens);
  void PlaceTasks(CudaDecodePlan& plan);

  const Layout& layout_;
  const ModelProfile* profile_;
  const Digest fingerprint_;
  std::vector<LayerShape> shapes_;  // [layer]
  std::shared_ptr<const ArenaTables> tables_;
  uint64_t frequencies_at_ = 0;  // in the arena
  ChunkState now_;
  uint32_t chunks_ = 0;
  bool staged_ = false;

  std::vector<cuda::UnitTask> units_;
  std::vector<RawIn> raw_in_;  // of units_
  std::vector<cuda::TileTask> tiles_;
  RopeTables ropes_;
  std::vector<cuda::TokenPlace> places_;
  std::vector<uint8_t> orders_;
  ByteVector exact_;
  std::vector<CudaDecodePlan::FrameCopy> frames_;
  uint64_t frames_bytes_ = 0, resolved_bytes_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_
