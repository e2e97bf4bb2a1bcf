// Turns checked frames into tasks for the decode kernels. Host code only. Internal to
// core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_
#define LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_

#include <map>
#include <vector>

#include "core/codec/cuda/cuda_decoder.h"
#include "core/codec/cuda/rope_tables.h"
#include "core/codec/frame_format.h"
#include "core/codec/tile_format.h"

namespace latticekv {

// Offsets in tasks count from the start of their region until Finish knows where regions begin.
class PlanBuilder {
 public:
  PlanBuilder(const Layout& layout, const ModelProfile* profile);
  // Makes room for that many.
  void Reserve(size_t chunks);
  absl::Status AddChunk(const CudaDecodeChunk& chunk);
  CudaDecodePlan Finish();

 private:
  // Where a unit's raw vectors lie.
  enum class RawIn : uint8_t { kFrames, kExact };
  // What the units of the chunk at hand share.
  struct ChunkState {
    const CudaDecodeChunk* chunk = nullptr;
    FrameHeader header;
    const ModelProfile* profile = nullptr;
    uint64_t frame_at = 0;   // of the frame's first byte in the frames' region, uploaded or not
    uint64_t places_at = 0;  // in the tasks' region of places
  };

  absl::Status AddLayer(uint32_t layer, ByteSpan bytes);
  absl::Status AddTile(uint32_t layer, const TileSpan& span);
  absl::Status AddExactPlane(uint32_t layer, size_t plane, ByteReader& in);
  cuda::TileTask NewTile(uint32_t units) const;
  cuda::UnitTask NewUnit(uint32_t layer, const UnitRef& ref) const;
  void AddUnit(uint32_t layer, const UnitRef& ref, const UnitHeader& header, uint32_t& groups);
  uint64_t OrderList(const UnitHeader& header, uint32_t tokens);
  uint64_t ProfileAt(uint32_t layer, const UnitRef& ref);

  const Layout& layout_;
  const ModelProfile* profile_;
  const Digest fingerprint_;
  ChunkState now_;
  uint32_t chunks_ = 0;
  bool staged_ = false;

  std::vector<cuda::UnitTask> units_;
  std::vector<RawIn> raw_in_;  // of units_
  std::vector<cuda::TileTask> tiles_;
  RopeTables ropes_;
  std::vector<cuda::TokenPlace> places_;
  std::vector<uint8_t> orders_;
  ByteVector profiles_, exact_;
  std::map<const HeadProfile*, uint64_t> profile_at_;
  std::vector<CudaDecodePlan::FrameCopy> frames_;
  uint64_t frames_bytes_ = 0, resolved_bytes_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_
