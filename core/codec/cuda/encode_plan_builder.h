// Turns chunks into tasks for the encode kernels. Host code only. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ENCODE_PLAN_BUILDER_H_
#define LATTICEKV_CORE_CODEC_CUDA_ENCODE_PLAN_BUILDER_H_

#include <memory>
#include <optional>
#include <vector>

#include "core/codec/cuda/cuda_encoder.h"
#include "core/codec/cuda/rope_tables.h"
#include "core/codec/tile_format.h"

namespace latticekv {

// One plan after the other: Start, AddChunk for each chunk, Finish. Memory is used again. Offsets
// in tasks count from the start of their region until Finish knows where regions begin.
class EncodePlanBuilder {
 public:
  // The layout must be valid.
  EncodePlanBuilder(const Layout& layout, const CudaEncodeSettings& settings);
  // Forgets the chunks added before.
  void Start();
  absl::Status AddChunk(const CudaEncodeChunk& chunk);
  void Finish(CudaEncodePlan& plan);

 private:
  static constexpr uint64_t kNoEnergy = ~uint64_t{0};
  // What is true of a layer's units in every chunk.
  struct UnitShape {
    cuda::EncodeUnit task;
    int slice_shape = 0;
    uint32_t rope = 0;  // of keys with rotary embedding
    bool can_fuse = false;
    uint8_t fused_list = cuda::kFusedValues;
    uint64_t energy_at = kNoEnergy;  // in the tables: query energy, for the seed stages
  };
  struct LayerShape {
    std::vector<UnitRef> refs;
    std::vector<UnitShape> units;
  };
  // What the units of the chunk at hand share.
  struct ChunkState {
    const CudaEncodeChunk* chunk = nullptr;
    uint32_t rows = 0;  // to store of every plane
    uint64_t places_at = 0, asked_at = 0;
    size_t prefix_bytes = 0;  // of the frame, before its first layer
  };
  // The rows of the chunk that comes next: where they lie, which are asked for bit for bit.
  void AddRows(const CudaEncodeChunk& chunk, const EncodeOptions& options,
               const FrameHeader& header, const std::vector<cuda::TokenPlace>& places);
  void AddLayer(uint32_t layer);
  void AddUnit(const UnitRef& ref, const UnitShape& shape, const DevicePlane& plane);
  void AddSeedLayer(uint32_t layer);
  void AddGather(uint32_t layer, size_t plane);
  UnitShape MakeShape(const PlaneSpec& spec);
  // Null without a profile of this layout.
  const HeadProfile* ProfileOf(uint32_t layer, const UnitRef& ref) const;
  void AppendModel(const UnitRef& ref, const HeadProfile* profile, ByteVector& out) const;
  void PlaceScratch(CudaEncodePlan& plan, uint64_t tasks_bytes);

  const Layout& layout_;
  const CudaEncodeSettings settings_;
  const double logit_noise_;
  const bool profiled_;  // with a profile of this layout; another's is refused with the first chunk
  std::vector<LayerShape> shapes_;  // [layer]
  std::shared_ptr<const ArenaTables> tables_;
  uint64_t frequencies_at_ = 0;          // in the arena
  std::optional<FrameHeader> a_header_;  // of a chunk of the layout, once there was one
  ChunkState now_;
  std::vector<CudaEncodePlan::Chunk> chunks_;
  std::vector<cuda::EncodeUnit> units_;
  std::vector<cuda::EncodeTile> tiles_;
  std::vector<cuda::EncodeLayer> layers_;
  std::vector<cuda::SeedUnit> seed_units_;
  RopeTables ropes_;
  std::vector<cuda::GatherTask> gathers_;
  std::vector<uint32_t> lists_[cuda::kSliceShapes], fused_[cuda::kFusedLists];
  std::vector<cuda::TokenPlace> places_;
  std::vector<uint8_t> asked_;
  std::vector<uint8_t> kept_tokens_;  // which tokens rows are of: at first all, then chunks' own
  uint64_t q2_bytes_ = 0, result_bytes_ = 0, words_bytes_ = 0;
  uint64_t gathered_bytes_ = 0, output_bytes_ = 0;
  uint64_t seed_scales_bytes_ = 0, seed_points_bytes_ = 0;
  uint32_t max_dim_ = 8;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_ENCODE_PLAN_BUILDER_H_
