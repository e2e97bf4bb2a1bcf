// The codec's interface: a chunk of up to 256 consecutive tokens of one sequence, all layers,
// becomes one frame (docs/format/frame.md), and a frame becomes a chunk again, whole or layer by
// layer.
#ifndef LATTICEKV_CORE_CODEC_CODEC_H_
#define LATTICEKV_CORE_CODEC_CODEC_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/limits.h"
#include "core/base/sha256.h"
#include "core/codec/presets.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"

namespace latticekv {

class ChunkRope;
struct CpuKernels;

// One plane of one layer of a chunk in memory: element (token, head, d) of the plane's dtype lies
// at data + token * token_stride + head * head_stride + d * DTypeBytes(dtype). Strides in bytes.
template <typename Byte>
struct BasicPlaneView {
  Byte* data = nullptr;
  size_t token_stride = 0;
  size_t head_stride = 0;
};
using PlaneView = BasicPlaneView<const std::byte>;
using MutablePlaneView = BasicPlaneView<std::byte>;

// The view of contiguous [tokens, heads, head_dim] data.
template <typename Byte>
BasicPlaneView<Byte> ContiguousPlane(const PlaneSpec& plane, Byte* data) {
  return {data, plane.token_bytes(), plane.head_dim * DTypeBytes(plane.dtype)};
}

// Views of a whole chunk as the service moves it: for each layer, for each plane, contiguous
// [tokens, heads, head_dim]. `raw` has layout.token_bytes() * tokens bytes. Result is
// [layer][plane].
std::vector<std::vector<PlaneView>> RawChunkViews(const Layout& layout, uint32_t tokens,
                                                  ByteSpan raw);

// Where channel means and spreads come from. kAuto takes what is smaller, tile by tile.
enum class StatsMode : uint8_t { kOwn = 0, kProfile = 1, kAuto = 2 };

// Which instructions do the work: all give the same bytes. kAuto: the best that the processor has,
// or what the environment variable LATTICEKV_CPU_LEVEL (scalar, avx2, avx512) names.
enum class CodecBackend : uint8_t { kAuto = 0, kScalar = 1, kAvx2 = 2, kAvx512 = 3 };

std::string_view CodecBackendName(CodecBackend backend);
absl::StatusOr<CodecBackend> ParseCodecBackend(std::string_view name);
// What `backend` comes to on this machine. FAILED_PRECONDITION when the processor or the build
// lacks it, INVALID_ARGUMENT when LATTICEKV_CPU_LEVEL is no level; encoding and decoding give the
// same errors.
absl::StatusOr<CodecBackend> ResolveCodecBackend(CodecBackend backend);

// The attention that tokens received, for steps that are finer where readers look more often
// (DESIGN 1.7). Element [layer * layer_stride + token] is the sum of the probabilities that queries
// gave to the token, over query heads and queries; finite, not negative.
struct AttentionMass {
  const float* data = nullptr;  // null: unknown, all tokens are coded alike
  size_t layer_stride = 0;
  // Queries that could see the chunk's first token; one fewer saw each token behind it.
  uint64_t queries = 0;
  // [layers] log2 of the attention per query that leaves a token's step what the preset says:
  // MassLevels() (core/codec/attention_mass.h) of the whole text, so that chunks that readers look
  // at less have coarser steps. Null: each layer's mean over the chunk.
  const float* levels = nullptr;
};

using limits::kMaxSeedBits;

// Settings of the preset `seed` (docs/seed.md).
struct SeedOptions {
  int key_bits = 3;  // 1 .. kMaxSeedBits
  int value_bits = 2;
  bool group_scales = false;  // a scale for 8 coordinates instead of one for the vector
  bool token_delta = true;
  bool operator==(const SeedOptions&) const = default;
};

// Threads that can share in the work on one frame.
class LayerRunner {
 public:
  virtual ~LayerRunner() = default;
  // Calls `work` once with each of 0 .. count - 1, in any order and from any threads, and returns
  // when all calls have.
  virtual void Run(size_t count, const std::function<void(size_t)>& work) const = 0;
};

struct EncodeOptions {
  PresetId preset = kDefaultPreset;
  StatsMode stats = StatsMode::kAuto;
  // Null: no query energy (noise is then relative to the keys' spread, reported as unprofiled) and
  // own statistics. StatsMode::kProfile without statistics in the profile is FAILED_PRECONDITION.
  const ModelProfile* profile = nullptr;
  // Position of the chunk's first token. Tokens at positions below kSinkTokens are stored exact.
  uint64_t start_position = 0;
  // Further tokens of the chunk (0-based, increasing) to store exact.
  std::vector<uint32_t> exact_tokens;
  CodecBackend backend = CodecBackend::kAuto;
  // Has no effect on exact frames.
  AttentionMass mass;
  SeedOptions seed;  // of PresetId::kSeed
  // [tokens], 0 for tokens to evict: they are not stored and decode to zeros. Empty: none. At least
  // one is kept. INVALID_ARGUMENT for layouts with opaque planes, whose rows are not attended to
  // token by token.
  std::vector<uint8_t> keep;
  // Encodes layers side by side; null: the calling thread does all. The frame is the same.
  const LayerRunner* runner = nullptr;
};

inline constexpr uint32_t kSinkTokens = 4;

// What a frame says of itself. Errors are over the vectors that were not stored exact.
struct Quality {
  bool exact = false;
  // False: no query energy was known; logit_noise then holds the keys' rms relative error.
  bool profiled = false;
  double logit_noise = 0;  // rms, nats
  double value_error = 0;  // rms, relative
  // With attention mass: the numbers above are of the vectors whose steps are no coarser than the
  // preset's, and these of the rest, whose tokens little attention went to.
  bool mass_scaled = false;
  double coarse_logit_noise = 0;
  double coarse_value_error = 0;
  // Share of the coded vectors that are of the rest.
  double coarse_share = 0;
};

struct FrameInfo {
  PresetId preset = PresetId::kExact;
  uint32_t tokens = 0;
  uint32_t evicted_tokens = 0;
  std::vector<uint8_t> keep;  // [tokens] 0 where evicted; empty: none is
  uint32_t layers = 0;
  uint64_t start_position = 0;
  Digest layout_fingerprint{};
  Digest profile_hash{};  // all zero: no profile is needed to decode
  bool needs_profile = false;
  Quality quality;
  uint64_t frame_bytes = 0;
  std::vector<uint32_t> layer_bytes;
};

// Encodes one chunk. `planes` is [layer][plane] in the layout's order, `tokens` in 1..256.
// INVALID_ARGUMENT when the chunk does not fit the layout. Thread-safe.
absl::StatusOr<ByteVector> EncodeFrame(const Layout& layout, uint32_t tokens,
                                       const std::vector<std::vector<PlaneView>>& planes,
                                       const EncodeOptions& options);

// Reads header and tables of a frame, not its layers: works without layout or profile.
// DATA_LOSS: damaged or not a frame; UNIMPLEMENTED: a stage or version this build does not know.
absl::StatusOr<FrameInfo> ReadFrameInfo(ByteSpan frame);
// The same from the leading bytes of a frame of `frame_bytes`, FramePrefixBytes of them at least.
absl::StatusOr<FrameInfo> ReadFrameInfo(ByteSpan prefix, uint64_t frame_bytes);

// A frame that was checked against its layout, ready to decode layer by layer. Refers to `frame`,
// `layout` and `profile`, which must outlive it. Const methods are thread-safe.
class FrameDecoder {
 public:
  // Errors of ReadFrameInfo, and FAILED_PRECONDITION when the frame belongs to another layout or
  // needs a profile that was not given (names its hash).
  static absl::StatusOr<FrameDecoder> Open(ByteSpan frame, const Layout& layout,
                                           const ModelProfile* profile,
                                           CodecBackend backend = CodecBackend::kAuto);

  // The same from the leading bytes of a frame of `frame_bytes` (FramePrefixBytes of them at
  // least), for layers that are read one by one; refers to nothing of `prefix` later.
  static absl::StatusOr<FrameDecoder> OpenPrefix(ByteSpan prefix, uint64_t frame_bytes,
                                                 const Layout& layout, const ModelProfile* profile,
                                                 CodecBackend backend = CodecBackend::kAuto);

  const FrameInfo& info() const { return info_; }
  // Where a layer's bytes begin in the frame; info().layer_bytes has their number.
  uint64_t layer_offset(uint32_t layer) const { return layer_offsets_[layer]; }
  // Decodes one layer into `planes` ([plane] in the layout's order), every element of it.
  // DATA_LOSS when the layer's bytes are damaged; what was written by then is unspecified.
  absl::Status DecodeLayer(uint32_t layer, const std::vector<MutablePlaneView>& planes) const;
  // The same from the layer's own bytes, which the caller read.
  absl::Status DecodeLayerBytes(uint32_t layer, ByteSpan bytes,
                                const std::vector<MutablePlaneView>& planes) const;

 private:
  FrameDecoder() = default;
  ByteSpan frame_;
  const Layout* layout_ = nullptr;
  const ModelProfile* profile_ = nullptr;
  FrameInfo info_;
  std::vector<uint64_t> layer_offsets_;  // layers + 1 of them
  std::vector<uint32_t> layer_crcs_;
  std::shared_ptr<const ChunkRope> rope_;  // lattice frames
  int16_t value_unit_16_ = 0;
  const CpuKernels* kernels_ = nullptr;
  bool mass_ = false;
};

// Decodes a whole frame into `raw`, laid out as RawChunkViews; sizes must agree.
absl::Status DecodeFrame(const FrameDecoder& decoder, const Layout& layout, MutableByteSpan raw);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CODEC_H_
