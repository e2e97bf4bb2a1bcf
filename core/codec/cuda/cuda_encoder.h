// Encodes chunks on a CUDA device, byte for byte as EncodeFrame does, from device or pinned memory
// into frames in host memory, many chunks and all their layers at once.
//
//   LKV_ASSIGN_OR_RETURN(CudaEncodePlan plan, CudaEncodePlan::Make(layout, settings, chunks));
//   (for many batches from a CudaEncodePlanner, which keeps tables and memory)
//   ... arena with plan.device_bytes() and plan.pinned_bytes() ...
//   LKV_RETURN_IF_ERROR(plan.EncodeAsync(arena, stream));
//   ... the stream has come so far ...
//   LKV_ASSIGN_OR_RETURN(CudaEncodedBatch batch, plan.Collect(arena));
//   ... pinned memory of batch.frame_bytes(i) ...
//   LKV_RETURN_IF_ERROR(batch.DownloadAsync(arena, i, memory, stream));
//
// Only compressed bytes cross the bus. What has no lattice stage (opaque planes, the preset exact)
// is gathered by the device and coded by Collect on the host. So is, whole, a chunk whose frame
// misses its preset's contract, which hard input alone does: its sources must be there until
// Collect. Of seed frames Collect does zstd, and whole chunks with vectors to be stored raw. Of
// these and of exact frames the host has most of the work; where many threads should share in it,
// CollectForHost gives it to them chunk by chunk.
#ifndef LATTICEKV_CORE_CODEC_CUDA_CUDA_ENCODER_H_
#define LATTICEKV_CORE_CODEC_CUDA_CUDA_ENCODER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/codec.h"
#include "core/codec/cuda/cuda_memory.h"
#include "core/codec/cuda/encode_tasks.h"
#include "core/codec/cuda/host_chunk.h"
#include "core/codec/cuda/seed_tasks.h"
#include "core/codec/frame_format.h"

namespace latticekv {

// What the chunks of a batch share; as in EncodeOptions.
struct CudaEncodeSettings {
  PresetId preset = kDefaultPreset;
  StatsMode stats = StatsMode::kAuto;
  const ModelProfile* profile = nullptr;
  SeedOptions seed = {};
};

// As in EncodeOptions what has its name.
struct CudaEncodeChunk {
  uint32_t tokens = 0;
  uint64_t start_position = 0;
  std::vector<uint32_t> exact_tokens;
  std::vector<std::vector<DevicePlane>> planes;  // [layer][plane], read only
  BlockTable table;
  std::vector<uint8_t> keep = {};
};

// Encoded chunks, their lattice parts still in the arena. Const methods are thread-safe.
class CudaEncodedBatch {
 public:
  size_t frames() const { return frames_.size(); }
  size_t frame_bytes(size_t frame) const { return frames_[frame].size_bytes; }
  // The frame missed the contract on the device, or has raw vectors in seed layers.
  bool encoded_by_host(size_t frame) const { return frames_[frame].by_host; }

  // Writes what the host made of a frame into `out`, which has frame_bytes(frame), and enqueues the
  // copies of the rest. `out` should be pinned; it is whole once the stream has come so far. Until
  // then the arena may not be used again.
  absl::Status DownloadAsync(const CudaArena& arena, size_t frame, MutableByteSpan out,
                             cudaStream_t stream) const;

 private:
  friend class CudaEncodePlan;
  struct HostPart {
    size_t at;  // in the frame
    ByteVector bytes;
  };
  struct DevicePart {
    size_t at;
    uint64_t arena_at;
    size_t size_bytes;
  };
  struct Frame {
    size_t size_bytes = 0;
    bool by_host = false;
    std::vector<HostPart> host;
    std::vector<DevicePart> device;
  };
  std::vector<Frame> frames_;
};

// A checked batch; empty until a planner has filled it. Allocates host memory when made and in
// Collect, and never synchronises but in Encode. An arena serves one run at a time. Const methods
// are thread-safe.
class CudaEncodePlan {
 public:
  CudaEncodePlan() = default;
  // Errors of EncodeFrame, of the first chunk that has one, with its number. `layout` and the
  // profile must outlive the plan; sources are taken as they are.
  static absl::StatusOr<CudaEncodePlan> Make(const Layout& layout,
                                             const CudaEncodeSettings& settings,
                                             std::span<const CudaEncodeChunk> chunks);

  size_t device_bytes() const { return device_bytes_; }
  size_t pinned_bytes() const { return pinned_bytes_; }

  // Enqueues the upload of tasks, kernels, and the download of sizes. At most `max_multiprocessors`
  // are used by the entropy coder, 0: all there are.
  absl::Status EncodeAsync(const CudaArena& arena, cudaStream_t stream,
                           uint32_t max_multiprocessors = 0) const;
  // The two parts of EncodeAsync: copies the tasks; runs the kernels on them.
  absl::Status UploadAsync(const CudaArena& arena, cudaStream_t stream) const;
  absl::Status LaunchAsync(const CudaArena& arena, cudaStream_t stream,
                           uint32_t max_multiprocessors = 0) const;
  // Once the stream is through.
  absl::StatusOr<CudaEncodedBatch> Collect(const CudaArena& arena) const;
  // The same of one chunk, with the host's work still to be done: of presets that are CodedByHost.
  absl::StatusOr<CudaHostChunk> CollectForHost(const CudaArena& arena, size_t chunk) const;
  static bool CodedByHost(PresetId preset) {
    return preset == PresetId::kExact || preset == PresetId::kSeed;
  }
  // All of it, with waiting.
  absl::StatusOr<std::vector<ByteVector>> Encode(const CudaArena& arena, cudaStream_t stream) const;

 private:
  friend class EncodePlanBuilder;
  absl::StatusOr<CudaEncodedBatch::Frame> CollectFrame(const CudaArena& arena, size_t chunk) const;
  absl::StatusOr<CudaEncodedBatch::Frame> EncodeByHost(const CudaHostChunk& chunk) const;
  // As it was before it was encoded.
  absl::StatusOr<CudaHostChunk> WholeChunk(size_t chunk) const;

  // What Collect needs of a chunk.
  struct Chunk {
    FrameHeader header;
    EncodeOptions options;
    uint64_t gathered_at = 0;  // of the pinned copy: planes that the host codes, one behind another
    std::vector<DevicePlane> sources;      // of all layers
    std::vector<cuda::TokenPlace> places;  // [tokens], evicted ones too
    // Of seed chunks: the first unit, and where scales and points are from launch_.results_at on.
    size_t seed_unit = 0;
    uint64_t seed_scales_at = 0, seed_points_at = 0;
  };
  const Layout* layout_ = nullptr;
  CudaEncodeSettings settings_;
  absl::Status CheckRun(const CudaArena& arena) const;
  // In the arena's pinned memory: what comes back from launch_.results_at on.
  size_t results_at() const { return tables_->bytes.size() + tasks_.size(); }

  std::shared_ptr<const ArenaTables> tables_;
  ByteVector tasks_;  // behind the tables in the arena
  std::vector<Chunk> chunks_;
  cuda::EncodeLaunch launch_{};
  cuda::SeedLaunch seed_{};
  uint64_t results_bytes_ = 0;  // in the arena from launch_.results_at on, gathered planes included
  uint64_t gathered_at_ = 0;    // within them
  size_t device_bytes_ = 0, pinned_bytes_ = 0;
};

class EncodePlanBuilder;

// Makes plans for one layout and settings. What they have in common - model data, frequencies, the
// shape of every unit - is worked out once, and memory is used again. Not thread-safe; a thread
// or a stream has its own.
class CudaEncodePlanner {
 public:
  // `layout` and the profile must outlive the planner and its plans.
  static absl::StatusOr<CudaEncodePlanner> Make(const Layout& layout,
                                                const CudaEncodeSettings& settings);
  CudaEncodePlanner(CudaEncodePlanner&&) noexcept;
  CudaEncodePlanner& operator=(CudaEncodePlanner&&) noexcept;
  ~CudaEncodePlanner();

  // Replaces what `plan` was, as CudaEncodePlan::Make; after an error it is what it was.
  absl::Status Plan(std::span<const CudaEncodeChunk> chunks, CudaEncodePlan& plan);

 private:
  explicit CudaEncodePlanner(std::unique_ptr<EncodePlanBuilder> builder);
  std::unique_ptr<EncodePlanBuilder> builder_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_CUDA_ENCODER_H_
