// The frame's header and layer table as bytes; docs/format/frame.md is the specification.
#ifndef LATTICEKV_CORE_CODEC_FRAME_FORMAT_H_
#define LATTICEKV_CORE_CODEC_FRAME_FORMAT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/sha256.h"
#include "core/codec/contract.h"

namespace latticekv {

inline constexpr uint32_t kFrameMagic = 0x46564B4C;  // "LKVF"
inline constexpr uint8_t kFrameMajor = 1;
inline constexpr uint8_t kFrameMinor = 1;  // of frames with optional sections; 0 without
inline constexpr size_t kFrameHeaderBytes = 128;
inline constexpr size_t kLayerEntryBytes = 12;

// Stages that a reader must know. Unknown bits are refused.
enum FrameStage : uint32_t {
  kStageExact = 1u << 0,    // all planes as byte planes + zstd
  kStageLattice = 1u << 1,  // E8 lattice, parametric tables, 32-lane rANS
  kStageRope = 1u << 2,     // keys were stored before rotary embedding
  kStageProfile = 1u << 3,  // statistics or steps of the model profile are needed
  kStageMass = 1u << 4,     // steps vary with the attention that a token received
  kStageEvicted = 1u << 5,  // some tokens' rows are left out
  kStageSeed = 1u << 6,     // Hadamard, E8 with f16 scales, zstd (docs/seed.md)
};
inline constexpr uint32_t kKnownStages = kStageExact | kStageLattice | kStageRope | kStageProfile |
                                         kStageMass | kStageEvicted | kStageSeed;

// Optional sections.
enum FrameSection : uint16_t {
  kSectionCoarse = 1,  // measured errors of the vectors with steps coarser than the preset's
  kSectionKeep = 2,    // which tokens have rows
};

enum FrameFlag : uint8_t {
  kFlagProfiled = 1u << 0,  // key_error_sum is logit noise, not relative key error
};

struct LayerEntry {
  uint32_t size_bytes = 0;
  uint32_t crc32c = 0;
  uint16_t logit_noise_q15 = 0;  // rms over the layer, units of 2^-15, saturated
  uint16_t value_error_q15 = 0;
};

struct FrameHeader {
  uint32_t stages = 0;
  uint8_t preset = 0;
  uint8_t flags = 0;
  int16_t value_unit_16 = 0;  // log2 of value step over token rms, sixteenths of an octave
  uint64_t start_position = 0;
  uint16_t tokens = 0;
  std::vector<uint8_t> keep;  // with kStageEvicted: [tokens] 1 where the token has a row
  Digest layout_fingerprint{};
  Digest profile_hash{};
  ErrorSums errors;  // with kStageMass: of vectors whose steps are no coarser than the preset's
  ErrorSums coarse;  // the rest of them
  std::vector<LayerEntry> layers;
};

// Header, layer table and checksum: what precedes the layers.
ByteVector SerializeFrameHeader(const FrameHeader& header);

// Rows stored: one for each token that was not evicted.
uint16_t StoredRows(const FrameHeader& header);

struct ParsedFrame {
  FrameHeader header;
  std::vector<uint64_t> layer_offsets;  // layers + 1 of them, from the frame's first byte
};
// Checks everything but the layers' own bytes; `frame` must be the whole frame. DATA_LOSS or
// UNIMPLEMENTED (newer version, unknown stage).
absl::StatusOr<ParsedFrame> ParseFrameHeader(ByteSpan frame);
// The same from the leading bytes of a frame of `frame_bytes`, FramePrefixBytes of them at least.
absl::StatusOr<ParsedFrame> ParseFrameHeader(ByteSpan prefix, uint64_t frame_bytes);

// No frame of `raw_bytes` in `layers` layers has more: everything stored exact, plus headers and
// tables.
size_t FrameBytesBound(size_t layers, size_t raw_bytes);

// Bytes before the first layer of a frame that will have so many layers.
size_t FramePrefixBytes(const FrameHeader& header, size_t layers);
// Bytes before the first layer, told from the frame's first kFrameHeaderBytes; not checked.
uint64_t FramePrefixBytes(ByteSpan header);

// DATA_LOSS when the checksum of a layer's bytes is not `crc32c`.
absl::Status CheckLayer(ByteSpan bytes, uint32_t layer, uint32_t crc32c);
// One layer's bytes of a parsed frame; DATA_LOSS when their checksum is not `crc32c`.
absl::StatusOr<ByteSpan> CheckedLayer(ByteSpan frame, std::span<const uint64_t> layer_offsets,
                                      uint32_t layer, uint32_t crc32c);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_FRAME_FORMAT_H_
