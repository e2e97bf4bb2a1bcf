// Decodes frames on a CUDA device, byte for byte as FrameDecoder does, from host memory into device
// memory, many chunks and all their layers at once.
//
// The host checks a whole frame before a kernel sees any of it: header, checksums, tables, unit
// headers, sizes. What only decoding can tell (a damaged symbol stream) is bounded in the
// kernel and reported for each chunk afterwards. Of seed frames the host undoes zstd, which is most
// of the work: other threads can do it before (ReadSeedLayers).
//
//   LKV_ASSIGN_OR_RETURN(CudaDecodePlan plan, CudaDecodePlan::Make(layout, profile, chunks));
//
// or, for many batches, a planner that is kept, and with it tables and memory:
//
//   LKV_ASSIGN_OR_RETURN(CudaDecodePlanner planner, CudaDecodePlanner::Make(layout, profile));
//   LKV_RETURN_IF_ERROR(planner.Plan(chunks, plan));
//
// and, so that the bus has work while the host checks, Plan in two parts:
//
//   LKV_RETURN_IF_ERROR(planner.Begin(chunks, plan));
//   LKV_RETURN_IF_ERROR(plan.UploadFramesAsync(arena, stream));
//   LKV_RETURN_IF_ERROR(planner.Finish(plan));
//   LKV_RETURN_IF_ERROR(plan.UploadTasksAsync(arena, stream));
//   LKV_RETURN_IF_ERROR(plan.LaunchAsync(arena, stream));
//
//   ... arena with plan.device_bytes() and plan.pinned_bytes() ...
//   LKV_RETURN_IF_ERROR(plan.DecodeAsync(arena, stream));
//   ... the stream has come so far (cudaStreamSynchronize, an event) ...
//   LKV_RETURN_IF_ERROR(plan.Result(arena));
#ifndef LATTICEKV_CORE_CODEC_CUDA_CUDA_DECODER_H_
#define LATTICEKV_CORE_CODEC_CUDA_CUDA_DECODER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/cuda/cuda_memory.h"
#include "core/codec/cuda/seed_tasks.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"

namespace latticekv {

struct SeedLayers;

struct CudaDecodeChunk {
  // In host memory until the upload is done; copied asynchronously where it is pinned.
  ByteSpan frame;
  std::vector<std::vector<DevicePlane>> planes;  // [layer][plane], destinations
  BlockTable table;
  // Which layers to decode; 0 layers: all from the first on. Only their bytes are uploaded, and the
  // planes of others may be empty.
  uint32_t first_layer = 0;
  uint32_t layers = 0;
  // Of a seed frame: these layers of it, if they were read already, for as long as `frame`.
  const SeedLayers* seed = nullptr;
};

// A checked batch; empty until a planner has filled it. Allocates host memory when made and nothing
// afterwards; never synchronises but in Decode. An arena serves one run at a time. Const methods
// are thread-safe.
class CudaDecodePlan {
 public:
  CudaDecodePlan() = default;
  // Errors of FrameDecoder, of the first chunk that has one, with its number; INVALID_ARGUMENT when
  // destinations do not fit the layout. `layout`, `profile` (may be null) and frames must outlive
  // the plan; destinations are taken as they are.
  static absl::StatusOr<CudaDecodePlan> Make(const Layout& layout, const ModelProfile* profile,
                                             std::span<const CudaDecodeChunk> chunks);

  size_t device_bytes() const { return device_bytes_; }
  size_t pinned_bytes() const { return pinned_bytes_; }

  // Enqueues upload and kernels. At most `max_multiprocessors` are used, 0: all there are.
  absl::Status DecodeAsync(const CudaArena& arena, cudaStream_t stream,
                           uint32_t max_multiprocessors = 0) const;
  // The parts of DecodeAsync: copy frames and tasks; run the kernels on them.
  absl::Status UploadFramesAsync(const CudaArena& arena, cudaStream_t stream) const;
  absl::Status UploadTasksAsync(const CudaArena& arena, cudaStream_t stream) const;
  absl::Status LaunchAsync(const CudaArena& arena, cudaStream_t stream,
                           uint32_t max_multiprocessors = 0) const;
  // Once the stream is through: DATA_LOSS when a chunk's symbols were damaged (what its
  // destinations hold is then unspecified), naming the first.
  absl::Status Result(const CudaArena& arena) const;
  // The same of one chunk.
  absl::Status ChunkResult(const CudaArena& arena, size_t chunk) const;
  // DecodeAsync, waits, Result.
  absl::Status Decode(const CudaArena& arena, cudaStream_t stream) const;

 private:
  friend class PlanBuilder;

  struct FrameCopy {
    ByteSpan frame;
    size_t at;
  };
  absl::Status CheckRun(const CudaArena& arena) const;
  // In the arena's pinned memory: counters that the kernels leave.
  size_t results_at() const { return tables_->bytes.size() + tasks_.size(); }

  // In the arena: tables, frames, tasks, scratch.
  std::shared_ptr<const ArenaTables> tables_;
  ByteVector tasks_;
  std::vector<FrameCopy> frames_;
  cuda::DecodeLaunch launch_{};
  cuda::SeedLaunch seed_{};
  size_t chunks_ = 0;
  size_t tasks_at_ = 0;  // where the frames end
  size_t device_bytes_ = 0, pinned_bytes_ = 0;
  bool checked_ = false;  // else only the frames' places are known
};

class PlanBuilder;

// Makes plans for one layout and profile. What they have in common - model data, frequencies, the
// shape of every unit - is worked out once, and memory is used again. Not thread-safe; a thread
// or a stream has its own.
class CudaDecodePlanner {
 public:
  // `layout` and `profile` (may be null) must outlive the planner and its plans.
  static absl::StatusOr<CudaDecodePlanner> Make(const Layout& layout, const ModelProfile* profile);
  CudaDecodePlanner(CudaDecodePlanner&&) noexcept;
  CudaDecodePlanner& operator=(CudaDecodePlanner&&) noexcept;
  ~CudaDecodePlanner();

  // Replaces what `plan` was, as CudaDecodePlan::Make; after an error it may not be run.
  absl::Status Plan(std::span<const CudaDecodeChunk> chunks, CudaDecodePlan& plan);
  // The two parts of Plan. Begin reads the frames' headers and finds their places in the arena;
  // until Finish has checked the rest, nothing but UploadFramesAsync may be called of the plan.
  // The chunks must stay as they are in between. When Finish fails after an upload, wait for the
  // stream before the frames' memory is used otherwise.
  absl::Status Begin(std::span<const CudaDecodeChunk> chunks, CudaDecodePlan& plan);
  absl::Status Finish(CudaDecodePlan& plan);

 private:
  explicit CudaDecodePlanner(std::unique_ptr<PlanBuilder> builder);
  std::unique_ptr<PlanBuilder> builder_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_CUDA_DECODER_H_
