// What the executor needs of a GPU: page-locked memory and lanes that run batches of encodes and
// decodes. Plain C++; core/codec/cuda has the real one, tests have others.
#ifndef LATTICEKV_CORE_CODEC_GPU_GPU_DEVICE_H_
#define LATTICEKV_CORE_CODEC_GPU_GPU_DEVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/limits.h"
#include "core/codec/codec.h"
#include "core/codec/gpu/device_planes.h"

namespace latticekv {

struct SeedLayers;

struct GpuOptions {
  int device = 0;
  // Working memory on the device, divided among the lanes.
  size_t memory_bytes = size_t{1536} << 20;
  // Share of the multiprocessors that kernels may take, 1..100.
  int sm_percent = 100;

  // Named limits, shortened by tests.
  int streams = limits::kGpuStreams;
  size_t ring_bytes = limits::kGpuRingBytes;
  size_t batch_bytes = limits::kGpuBatchBytes;
  int64_t batch_delay_ms = limits::kGpuBatchDelayMs;
  int64_t queue_wait_ms = limits::kGpuQueueWaitMs;
  int64_t timeout_ms = limits::kGpuTimeoutMs;
  int max_errors = limits::kGpuMaxErrors;
  size_t min_job_bytes = limits::kGpuMinJobBytes;
};

// Memory of another process of this host, as the driver hands it over.
struct GpuMemoryHandle {
  std::string ipc_handle;   // 64 bytes
  std::string device_uuid;  // 16 bytes
  uint64_t offset = 0;      // of the memory in the allocation that the handle is of
  uint64_t bytes = 0;
};

// Such memory, mapped until the object ends. The other process may end before.
class GpuRegion {
 public:
  virtual ~GpuRegion() = default;
  virtual std::byte* data_dev() const = 0;
  virtual size_t bytes() const = 0;
};

// Where a chunk lies in a region, instead of page-locked memory. Addresses are within the region:
// whoever makes one checks that.
struct GpuPlacement {
  std::shared_ptr<const GpuRegion> region;
  std::vector<std::vector<DevicePlane>> planes;  // [layer][plane]
  std::vector<uint32_t> blocks;                  // as BlockTable's
  uint32_t block_tokens = 0;
  uint64_t first_token = 0;

  BlockTable table() const { return {blocks, block_tokens, first_token}; }
};

// A chunk to encode. `status` and what follows is set by the lane when the batch went well.
struct GpuEncodeJob {
  uint32_t tokens = 0;
  uint64_t start_position = 0;
  std::vector<uint32_t> exact_tokens;
  std::vector<uint8_t> keep;  // as EncodeOptions::keep
  // The raw payload (as RawChunkViews has it) in its first raw_bytes; then the frame in its first
  // frame_bytes.
  MutableByteSpan pinned;
  std::shared_ptr<const GpuPlacement> placement;  // of the raw payload, if it is not in `pinned`
  size_t raw_bytes = 0;
  absl::Status status;
  size_t frame_bytes = 0;
  // What is left for CPUs of a chunk that zstd codes: makes the frame, instead of `pinned` holding
  // one. For a thread that is no lane's, which would be kept from the device's work. Refers to the
  // batch's layout and profile.
  std::function<absl::StatusOr<ByteVector>(const LayerRunner*)> finish;
};

// Layers of a frame to decode.
struct GpuDecodeJob {
  ByteSpan frame;
  uint32_t tokens = 0;
  uint32_t first_layer = 0;
  uint32_t layers = 0;
  std::shared_ptr<const SeedLayers> seed;  // of seed frames: these layers, read
  // Page-locked memory for raw bytes, [layer][plane] contiguous; empty: only find out whether the
  // frame decodes.
  MutableByteSpan pinned;
  std::shared_ptr<const GpuPlacement> placement;  // of the raw bytes, instead of `pinned`
  size_t raw_bytes = 0;                           // of the layers
  absl::Status status;                            // DATA_LOSS: damaged symbols
};

// What the chunks of a batch share.
struct GpuEncodeBatch {
  std::shared_ptr<const Layout> layout;
  std::shared_ptr<const ModelProfile> profile;  // may be null
  PresetId preset = kDefaultPreset;
  StatsMode stats = StatsMode::kAuto;
  SeedOptions seed;
  std::vector<GpuEncodeJob*> jobs;
};
struct GpuDecodeBatch {
  std::shared_ptr<const Layout> layout;
  std::shared_ptr<const ModelProfile> profile;  // may be null
  std::vector<GpuDecodeJob*> jobs;
};

// One stream of a device with working memory of its own. Used by one thread; different lanes run at
// the same time. When a call returns, the device is done with the batch's memory - or, after
// DEADLINE_EXCEEDED, may never be, and then the lane keeps refusing work.
class GpuLane {
 public:
  virtual ~GpuLane() = default;
  // OK: each job's status says how it went. RESOURCE_EXHAUSTED: the batch does not fit the lane's
  // memory. UNIMPLEMENTED, INVALID_ARGUMENT, FAILED_PRECONDITION, DATA_LOSS: refused before
  // anything ran, because of one of its jobs. Anything else: the device failed.
  virtual absl::Status Encode(const GpuEncodeBatch& batch) = 0;
  virtual absl::Status Decode(const GpuDecodeBatch& batch) = 0;
};

// Outlives its lanes. Thread-safe.
class GpuDevice {
 public:
  virtual ~GpuDevice() = default;
  // For people: name and what of it is used.
  virtual std::string Description() const = 0;
  // options.ring_bytes of page-locked memory, aligned to 256 bytes.
  virtual MutableByteSpan ring() = 0;
  virtual absl::StatusOr<std::unique_ptr<GpuLane>> MakeLane() = 0;
  // INVALID_ARGUMENT: there is no such memory; FAILED_PRECONDITION: it is on another device.
  virtual absl::StatusOr<std::shared_ptr<const GpuRegion>> OpenRegion(
      const GpuMemoryHandle& handle) = 0;
};

// The CUDA device that `options` name. FAILED_PRECONDITION: there is none, or this build knows no
// CUDA; RESOURCE_EXHAUSTED: its memory is short.
absl::StatusOr<std::unique_ptr<GpuDevice>> OpenCudaDevice(const GpuOptions& options);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_GPU_GPU_DEVICE_H_
