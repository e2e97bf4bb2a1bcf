// What is left of a chunk for CPUs when the device has done its part: zstd, or everything.
#ifndef LATTICEKV_CORE_CODEC_CUDA_HOST_CHUNK_H_
#define LATTICEKV_CORE_CODEC_CUDA_HOST_CHUNK_H_

#include <optional>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/codec.h"
#include "core/codec/frame_format.h"

namespace latticekv {

// Refers to a layout and to the profile of its options, and owns the rest. Thread-safe.
class CudaHostChunk {
 public:
  // Where the device's results for a chunk of seed layers begin; each in order of layers and
  // planes. Rows are of the tokens that were not evicted.
  struct SeedResults {
    const std::byte* units;   // cuda::SeedResult [head]
    const std::byte* scales;  // u16 [head][row][group]
    const std::byte* points;  // i8 [head][row][channel]
    const std::byte* opaque;  // contiguous planes
  };

  // A chunk that CPUs encode from its first byte on.
  static CudaHostChunk Whole(const Layout& layout, uint32_t tokens, const EncodeOptions& options,
                             ByteVector raw);
  // Copies the results. `header` has no layers yet. Nothing: there are vectors to be stored raw.
  static std::optional<CudaHostChunk> Seed(const Layout& layout, const FrameHeader& header,
                                           const EncodeOptions& options,
                                           const SeedResults& results);

  bool whole() const { return whole_; }
  // EncodeFrame's frame. `runner`: as in EncodeOptions.
  absl::StatusOr<ByteVector> Encode(const LayerRunner* runner) const;

 private:
  CudaHostChunk(const Layout& layout, const EncodeOptions& options)
      : layout_(&layout), options_(options) {}

  const Layout* layout_;
  EncodeOptions options_;
  FrameHeader header_;
  bool whole_ = false;
  ByteVector bytes_;  // the raw payload; or the results in the order above
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CUDA_HOST_CHUNK_H_
