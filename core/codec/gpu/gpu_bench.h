// Measures the GPU codec: what `latticekv bench codec --backend cuda` prints. Plain C++;
// core/codec/cuda has the real one.
#ifndef LATTICEKV_CORE_CODEC_GPU_GPU_BENCH_H_
#define LATTICEKV_CORE_CODEC_GPU_GPU_BENCH_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/codec.h"

namespace latticekv {

// What is measured. Everything must outlive the measurement.
struct GpuBenchCase {
  const Layout* layout = nullptr;
  const ModelProfile* profile = nullptr;
  PresetId preset = kDefaultPreset;
  StatsMode stats = StatsMode::kProfile;
  // Raw chunks of limits::kMaxChunkTokens tokens; chunk i begins at token i * kMaxChunkTokens. Used
  // in turn, as often as it takes.
  std::span<const ByteVector> chunks;
};

// GB/s of plain copies: bytes read and written on the device, bytes over the bus each way.
struct GpuCopySpeeds {
  double device = 0, up = 0, down = 0;
};

// Median milliseconds for a batch: kernels by events; all by the clock, with transfers and the
// host's work but the making of the plan, on one stream, one batch after the other.
struct GpuCodecTimes {
  uint64_t raw_bytes = 0, frame_bytes = 0;
  double encode_kernels_ms = 0, encode_ms = 0;
  double decode_kernels_ms = 0, decode_ms = 0;
};

// How work of one direction is spread over host threads and the device.
struct GpuBenchPace {
  size_t lanes = 1;              // host threads, each with a stream
  size_t batch_chunks = 1;       // planned, checked and enqueued together
  uint32_t multiprocessors = 0;  // that a batch's persistent kernels take, 0: all
};
struct GpuBenchPaces {
  GpuBenchPace offload, restore;
};

// Where the lanes' time went in a pass, mean milliseconds a lane.
struct GpuLaneTimes {
  double plan = 0, enqueue = 0, wait_kernels = 0, collect = 0, wait_copies = 0;
};

// One pass from raw chunks in device memory to frames in page-locked host memory and back, by the
// clock, plans, checks and all.
struct GpuRoundTrip {
  double offload_ms = 0, restore_ms = 0;
  GpuLaneTimes offload_times, restore_times;
  double ms() const { return offload_ms + restore_ms; }
};
struct GpuRoundTrips {
  uint64_t raw_bytes = 0;
  // Plain copies of the raw bytes to page-locked memory and back, the fastest of several.
  double raw_down_ms = 0, raw_up_ms = 0;
  std::vector<GpuRoundTrip> passes;
  // How many times faster than the copies a pass was.
  double Factor(const GpuRoundTrip& pass) const { return (raw_down_ms + raw_up_ms) / pass.ms(); }
};

class GpuBench {
 public:
  virtual ~GpuBench() = default;
  virtual std::string Description() const = 0;
  // What suits the cores beside the device.
  virtual GpuBenchPaces DefaultPaces() const = 0;
  virtual absl::StatusOr<GpuCopySpeeds> Copies() = 0;
  // `tokens` at once. Frames and decoded bytes are compared with the CPU codec's before anything is
  // measured.
  virtual absl::StatusOr<GpuCodecTimes> Codec(const GpuBenchCase& what, uint64_t tokens) = 0;
  // The copies, then `runs` passes one after the other. A pass before is checked as above, and one
  // after that warms up.
  virtual absl::StatusOr<GpuRoundTrips> RoundTrips(const GpuBenchCase& what, uint64_t tokens,
                                                   const GpuBenchPaces& paces, int runs) = 0;
  // Milliseconds of passes from frames in page-locked memory to a paged cache in device memory,
  // blocks of 16 tokens in random order, checked.
  virtual absl::StatusOr<std::vector<double>> Restores(const GpuBenchCase& what, uint64_t tokens,
                                                       const GpuBenchPace& pace, int runs) = 0;
};

// FAILED_PRECONDITION: there is no device, or this build knows no CUDA.
absl::StatusOr<std::unique_ptr<GpuBench>> OpenCudaBench();

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_GPU_GPU_BENCH_H_
