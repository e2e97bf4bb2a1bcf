// Turns chunks into tasks for the encode kernels. Host code only. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_ENCODE_PLAN_BUILDER_H_
#define LATTICEKV_CORE_CODEC_CUDA_ENCODE_PLAN_BUILDER_H_

#include <map>
#include <utility>
#include <vector>

#include "core/codec/cuda/cuda_encoder.h"
#include "core/codec/cuda/rope_tables.h"
#include "core/codec/tile_format.h"

namespace latticekv {

// Offsets in tasks count from the start of their region until Finish knows where regions begin.
class EncodePlanBuilder {
 public:
  EncodePlanBuilder(const Layout& layout, const CudaEncodeSettings& settings);
  absl::Status AddChunk(const CudaEncodeChunk& chunk);
  CudaEncodePlan Finish();

 private:
  // What the units of the chunk at hand share.
  struct ChunkState {
    const CudaEncodeChunk* chunk = nullptr;
    uint64_t places_at = 0, asked_at = 0;
  };
  void AddLayer(uint32_t layer);
  void AddUnit(uint32_t layer, const UnitRef& ref);
  void AddGather(uint32_t layer, size_t plane);
  uint64_t ModelAt(uint32_t layer, const UnitRef& ref);
  void PlaceScratch(CudaEncodePlan& plan, uint64_t tasks_bytes);

  const Layout& layout_;
  const CudaEncodeSettings settings_;
  const double logit_noise_;
  ChunkState now_;
  std::vector<CudaEncodePlan::Chunk> chunks_;
  std::vector<cuda::EncodeUnit> units_;
  std::vector<cuda::EncodeTile> tiles_;
  std::vector<cuda::EncodeLayer> layers_;
  RopeTables ropes_;
  std::vector<cuda::GatherTask> gathers_;
  std::vector<uint32_t> lists_[cuda::kSliceShapes], fused_[cuda::kFusedLists];
  std::vector<cuda::TokenPlace> places_;
  std::vector<uint8_t> asked_;
  ByteVector models_;
  std::map<std::pair<uint32_t, std::pair<size_t, uint32_t>>, uint64_t> model_at_;
  uint64_t q2_bytes_ = 0, result_bytes_ = 0, words_bytes_ = 0;
  uint64_t gathered_bytes_ = 0, output_bytes_ = 0;
  uint32_t max_dim_ = 8;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_ENCODE_PLAN_BUILDER_H_
