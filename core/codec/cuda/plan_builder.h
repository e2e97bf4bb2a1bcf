// Turns checked frames into tasks for the decode kernels. Host code only. Internal to
// core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_
#define LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_

#include <memory>
#include <span>
#include <vector>

#include "core/codec/cuda/cuda_decoder.h"
#include "core/codec/cuda/rope_tables.h"
#include "core/codec/cuda/seed_tasks.h"
#include "core/codec/frame_format.h"
#include "core/codec/seed_codec.h"
#include "core/codec/tile_format.h"

namespace latticekv {

// One plan after the other: Begin, Finish. Memory is used again. Offsets into regions of the arena
// behind the frames count from the region's start until Finish knows where that is.
class PlanBuilder {
 public:
  // The layout must be valid.
  PlanBuilder(const Layout& layout, const ModelProfile* profile);
  // Reads headers and gives `plan` the frames' places. The chunks must outlive Finish.
  absl::Status Begin(std::span<const CudaDecodeChunk> chunks, CudaDecodePlan& plan);
  // Checks the rest and completes the plan.
  absl::Status Finish(CudaDecodePlan& plan);

 private:
  // Where a unit's raw vectors lie.
  enum class RawIn : uint8_t { kFrames, kCopies };
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
  struct ChunkState {
    const CudaDecodeChunk* chunk = nullptr;
    FrameHeader header;
    std::vector<uint64_t> layer_offsets;
    uint32_t first_layer = 0, end_layer = 0;
    uint64_t frame_at = 0;  // of the frame's first byte in the arena, uploaded or not
    uint32_t rows = 0;      // stored of every plane: of the tokens that were not evicted
    // In the region of places: of the rows' tokens, and of those without rows.
    uint64_t places_at = 0, evicted_places_at = 0;
    uint64_t offsets_at = 0;  // of the layer at hand, in the region of step offsets
  };

  absl::Status Open(const CudaDecodeChunk& chunk, CudaDecodePlan& plan);
  void StartTasks();
  absl::Status AddChunk(ChunkState& chunk);
  absl::Status AddPlaces(ChunkState& chunk);
  absl::Status AddLayer(uint32_t layer, ByteSpan bytes);
  // Of a layer with attention mass.
  absl::Status ReadOffsets(ByteReader& in);
  absl::Status AddTile(uint32_t layer, size_t first_unit, const TileSpan& span);
  absl::Status AddExactPlane(uint32_t layer, size_t plane, ByteReader& in);
  absl::Status AddSeedLayer(uint32_t layer, const SeedLayer& read, ByteSpan bytes);
  // `shapes`: of the plane's heads; `bytes`: the layer's.
  absl::Status AddSeedPlane(uint32_t layer, size_t plane, const UnitShape* shapes,
                            const SeedLayer::Plane& read, ByteSpan bytes);
  // What a layer holds of evicted tokens: zeros.
  void AddZeros(uint32_t layer);
  // Vectors of a head that are copied, `bytes_at` in the region of those.
  void AddCopies(const PlaneSpec& spec, const DevicePlane& to, uint32_t head, uint32_t vectors,
                 uint64_t order_at, uint64_t bytes_at);
  // A tile of one unit, of the head's vectors as they are.
  cuda::UnitTask& AddPlainTile(const PlaneSpec& spec, const DevicePlane& to, uint32_t head);
  cuda::TileTask NewTile(uint32_t units) const;
  void AddUnit(uint32_t layer, const UnitRef& ref, const UnitShape& shape, const UnitHeader& header,
               uint32_t& groups);
  // Where a list of a chunk's tokens is: the raw ones first. `raw_tokens` increase; none when all
  // are raw.
  uint64_t OrderList(std::span<const uint8_t> raw_tokens, uint32_t tokens);
  // Where a list of the tokens that `keep` keeps is.
  uint64_t KeptList(const std::vector<uint8_t>& keep);
  void PlaceTasks(CudaDecodePlan& plan);

  const Layout& layout_;
  const ModelProfile* profile_;
  const Digest fingerprint_;
  std::vector<LayerShape> shapes_;  // [layer]
  std::shared_ptr<const ArenaTables> tables_;
  uint64_t frequencies_at_ = 0;  // in the arena
  std::vector<ChunkState> chunks_;
  ChunkState* now_ = nullptr;  // the one at hand
  uint64_t frames_end_ = 0;    // in the arena
  bool staged_ = false;

  std::vector<cuda::UnitTask> units_;
  std::vector<RawIn> raw_in_;  // of units_
  std::vector<cuda::TileTask> tiles_;
  RopeTables ropes_;
  std::vector<cuda::TokenPlace> places_;
  std::vector<uint8_t> orders_;
  std::vector<int8_t> offsets_;
  ByteVector copies_;  // what is unpacked already
  std::vector<cuda::SeedUnit> seed_units_;
  std::vector<uint16_t> seed_scales_;
  std::vector<int8_t> seed_points_;
  uint64_t resolved_bytes_ = 0;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_PLAN_BUILDER_H_
