#include "core/codec/cuda/cuda_decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/codec/cuda/decode_kernel.h"
#include "core/codec/cuda/plan_builder.h"
#include "core/codec/cuda/seed_kernel.h"

namespace latticekv {

absl::StatusOr<CudaDecodePlanner> CudaDecodePlanner::Make(const Layout& layout,
                                                          const ModelProfile* profile) {
  LKV_RETURN_IF_ERROR(ValidateLayout(layout));
  return CudaDecodePlanner(std::make_unique<PlanBuilder>(layout, profile));
}

CudaDecodePlanner::CudaDecodePlanner(std::unique_ptr<PlanBuilder> builder)
    : builder_(std::move(builder)) {}
CudaDecodePlanner::CudaDecodePlanner(CudaDecodePlanner&&) noexcept = default;
CudaDecodePlanner& CudaDecodePlanner::operator=(CudaDecodePlanner&&) noexcept = default;
CudaDecodePlanner::~CudaDecodePlanner() = default;

absl::Status CudaDecodePlanner::Begin(std::span<const CudaDecodeChunk> chunks,
                                      CudaDecodePlan& plan) {
  if (chunks.empty()) return absl::InvalidArgumentError("a batch needs at least one chunk");
  return builder_->Begin(chunks, plan);
}

absl::Status CudaDecodePlanner::Finish(CudaDecodePlan& plan) { return builder_->Finish(plan); }

absl::Status CudaDecodePlanner::Plan(std::span<const CudaDecodeChunk> chunks,
                                     CudaDecodePlan& plan) {
  LKV_RETURN_IF_ERROR(Begin(chunks, plan));
  return Finish(plan);
}

absl::StatusOr<CudaDecodePlan> CudaDecodePlan::Make(const Layout& layout,
                                                    const ModelProfile* profile,
                                                    std::span<const CudaDecodeChunk> chunks) {
  LKV_ASSIGN_OR_RETURN(CudaDecodePlanner planner, CudaDecodePlanner::Make(layout, profile));
  CudaDecodePlan plan;
  LKV_RETURN_IF_ERROR(planner.Plan(chunks, plan));
  return plan;
}

absl::Status CudaDecodePlan::CheckRun(const CudaArena& arena) const {
  if (!checked_) return absl::InvalidArgumentError("the plan was not made; have a planner do it");
  return CheckArena(arena, device_bytes_, pinned_bytes_);
}

absl::Status CudaDecodePlan::UploadTasksAsync(const CudaArena& arena, cudaStream_t stream) const {
  LKV_RETURN_IF_ERROR(CheckRun(arena));
  return UploadTasks(arena, *tables_, tasks_, tasks_at_, stream);
}

absl::Status CudaDecodePlan::UploadFramesAsync(const CudaArena& arena, cudaStream_t stream) const {
  LKV_RETURN_IF_ERROR(CheckArena(arena, tasks_at_, 0));
  for (const FrameCopy& copy : frames_) {
    LKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(arena.device_dev + copy.at, copy.frame.data(), copy.frame.size(),
                                   cudaMemcpyHostToDevice, stream),
                   "upload of a frame"));
  }
  return absl::OkStatus();
}

absl::Status CudaDecodePlan::LaunchAsync(const CudaArena& arena, cudaStream_t stream,
                                         uint32_t max_multiprocessors) const {
  LKV_RETURN_IF_ERROR(CheckRun(arena));
  LKV_ASSIGN_OR_RETURN(uint32_t blocks, Multiprocessors());
  if (max_multiprocessors > 0) blocks = std::min(blocks, max_multiprocessors);
  cuda::DecodeLaunch launch = launch_;
  launch.arena_dev = reinterpret_cast<unsigned char*>(arena.device_dev);
  launch.blocks = std::min(launch.blocks, blocks);
  const size_t counter_bytes = sizeof(uint32_t) * (1 + chunks_);
  std::byte* counters = arena.device_dev + launch.counter_at;
  LKV_RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(counters, 0, counter_bytes, stream), "clearing counters"));
  LKV_RETURN_IF_ERROR(CudaStatus(cuda::LaunchDecode(launch, stream), "launch of the decoder"));
  cuda::SeedLaunch seed = seed_;
  seed.arena_dev = launch.arena_dev;
  seed.blocks = max_multiprocessors > 0 ? blocks : blocks * cuda::kSeedBlocks;
  LKV_RETURN_IF_ERROR(
      CudaStatus(cuda::LaunchSeedDecode(seed, stream), "launch of the seed decoder"));
  return CudaStatus(cudaMemcpyAsync(arena.pinned + results_at(), counters, counter_bytes,
                                    cudaMemcpyDeviceToHost, stream),
                    "download of results");
}

absl::Status CudaDecodePlan::DecodeAsync(const CudaArena& arena, cudaStream_t stream,
                                         uint32_t max_multiprocessors) const {
  LKV_RETURN_IF_ERROR(UploadFramesAsync(arena, stream));
  LKV_RETURN_IF_ERROR(UploadTasksAsync(arena, stream));
  return LaunchAsync(arena, stream, max_multiprocessors);
}

absl::Status CudaDecodePlan::ChunkResult(const CudaArena& arena, size_t chunk) const {
  LKV_RETURN_IF_ERROR(CheckRun(arena));
  if (chunk >= chunks_) {
    return absl::InvalidArgumentError(absl::StrCat("the batch has no chunk ", chunk));
  }
  if (LoadLe<uint32_t>(arena.pinned + results_at() + 4 * (1 + chunk)) == 0) {
    return absl::OkStatus();
  }
  return absl::DataLossError(
      absl::StrCat("chunk ", chunk, " of the batch: frame: damaged symbols in a tile"));
}

absl::Status CudaDecodePlan::Result(const CudaArena& arena) const {
  for (size_t i = 0; i < chunks_; ++i) LKV_RETURN_IF_ERROR(ChunkResult(arena, i));
  return absl::OkStatus();
}

absl::Status CudaDecodePlan::Decode(const CudaArena& arena, cudaStream_t stream) const {
  LKV_RETURN_IF_ERROR(DecodeAsync(arena, stream));
  LKV_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(stream), "the decoder did not run to its end"));
  return Result(arena);
}

}  // namespace latticekv
