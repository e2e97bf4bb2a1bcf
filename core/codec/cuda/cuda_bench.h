// The benchmark of core/codec/gpu, with CUDA. Internal to core/codec/cuda.
#ifndef LATTICEKV_CORE_CODEC_CUDA_CUDA_BENCH_H_
#define LATTICEKV_CORE_CODEC_CUDA_CUDA_BENCH_H_

#include <string>
#include <utility>
#include <vector>

#include "core/codec/cuda/bench_lanes.h"
#include "core/codec/cuda/cuda_decoder.h"
#include "core/codec/cuda/cuda_encoder.h"
#include "core/codec/cuda/owned_memory.h"
#include "core/codec/gpu/gpu_bench.h"

namespace latticekv {

class CudaBench final : public GpuBench {
 public:
  explicit CudaBench(std::string description) : description_(std::move(description)) {}
  std::string Description() const override { return description_; }
  GpuBenchPaces DefaultPaces() const override;
  absl::StatusOr<GpuCopySpeeds> Copies() override;
  absl::StatusOr<GpuCodecTimes> Codec(const GpuBenchCase& what, uint64_t tokens) override;
  absl::StatusOr<GpuRoundTrips> RoundTrips(const GpuBenchCase& what, uint64_t tokens,
                                           const GpuBenchPaces& paces, int runs) override;
  absl::StatusOr<std::vector<double>> Restores(const GpuBenchCase& what, uint64_t tokens,
                                               const GpuBenchPace& pace, int runs) override;

 private:
  const std::string description_;
};

// A case with what the CPU's codec makes of its chunks.
struct BenchData {
  GpuBenchCase what;
  std::vector<ByteVector> frames, decoded;  // [chunk of the case]
  size_t chunk_bytes = 0;                   // raw
  size_t frame_room = 0;                    // the largest frame

  size_t Of(size_t i) const { return i % what.chunks.size(); }
  const Layout& layout() const { return *what.layout; }
  CudaEncodeSettings settings() const { return {what.preset, what.stats, what.profile}; }
};
absl::StatusOr<BenchData> MakeBenchData(const GpuBenchCase& what);

// `count` raw chunks one behind the other on the device.
absl::StatusOr<DeviceMemory> UploadChunks(const BenchData& data, size_t count);
// Chunk `i`, encoded from and decoded to there.
CudaEncodeChunk BenchEncodeChunk(const BenchData& data, size_t i, std::byte* raw_dev);
CudaDecodeChunk BenchDecodeChunk(const BenchData& data, ByteSpan frame, std::byte* raw_dev);

// INTERNAL unless chunk `i`'s frame, or what was decoded of it, is the CPU codec's.
absl::Status CheckFrame(const BenchData& data, size_t i, ByteSpan frame);
absl::Status CheckDecoded(const BenchData& data, size_t i, ByteSpan raw);
// The same of `count` chunks in device memory.
absl::Status CheckDecodedDev(const BenchData& data, size_t count, const std::byte* raw_dev);

// Encodes with waiting; the frames lie in `out` one behind the other.
absl::StatusOr<std::vector<ByteSpan>> EncodeTo(const CudaEncodePlan& plan, const CudaArena& arena,
                                               MutableByteSpan out, uint32_t multiprocessors,
                                               cudaStream_t stream, GpuLaneTimes& times);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_CUDA_BENCH_H_
