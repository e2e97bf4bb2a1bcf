// The .lkv container: one compressed cache with its layout, metadata and token ids
// (docs/format/lkv.md).
#ifndef LATTICEKV_CLIENT_SRC_LKV_FILE_H_
#define LATTICEKV_CLIENT_SRC_LKV_FILE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/src/mapped_file.h"
#include "client/src/safetensors.h"
#include "core/base/bytes.h"
#include "core/base/limits.h"
#include "core/codec/codec.h"
#include "core/layout/layout.h"

namespace latticekv {

inline constexpr uint32_t kLkvMagic = 0x43564B4C;  // "LKVC"
inline constexpr uint8_t kLkvMajor = 1;
inline constexpr uint8_t kLkvMinor = 0;
inline constexpr size_t kLkvFixedHeaderBytes = 16;

// What precedes the frames.
struct LkvHeader {
  Layout layout;
  SafetensorsMetadata metadata;  // of the safetensors file that was compressed
  uint32_t tokens = 0;
  uint32_t chunk_tokens = limits::kMaxChunkTokens;
  std::vector<uint32_t> token_ids;  // `tokens` of them, or none
  TensorDType token_dtype = TensorDType::kI32;
  ByteVector profile;                 // canonical bytes of an embedded profile; mostly empty
  std::vector<uint32_t> frame_bytes;  // one for each chunk, in order
};

// Bytes of the header's parts in the file.
struct LkvHeaderSizes {
  uint64_t fixed = kLkvFixedHeaderBytes;
  uint64_t layout = 0, token_ids = 0, metadata = 0, profile = 0, frame_table = 0;
  uint64_t total() const { return fixed + layout + token_ids + metadata + profile + frame_table; }
};

// The header as bytes. INVALID_ARGUMENT when its fields contradict each other or pass a limit.
absl::StatusOr<ByteVector> SerializeLkvHeader(const LkvHeader& header);

struct ParsedLkv {
  LkvHeader header;
  LkvHeaderSizes sizes;
  std::vector<ByteSpan> frames;  // refer to the parsed bytes
};
// DATA_LOSS when `file` is damaged or not a .lkv file, UNIMPLEMENTED for a newer version. Frames
// are located, not decoded.
absl::StatusOr<ParsedLkv> ParseLkv(ByteSpan file);

// An open .lkv file; frames refer to its mapping.
struct LkvFile {
  MappedFile file;
  ParsedLkv content;
};
// Errors of ParseLkv with the path in front.
absl::StatusOr<LkvFile> OpenLkv(const std::string& path);

// Writes header and frames; the header's frame_bytes are set from `frames`.
absl::Status WriteLkv(const std::string& path, LkvHeader header,
                      const std::vector<ByteVector>& frames);

// A decoder for chunk `index`, checked against what the container says of it. `file` and `profile`
// must outlive it.
absl::StatusOr<FrameDecoder> OpenLkvFrame(const ParsedLkv& file, size_t index,
                                          const ModelProfile* profile,
                                          CodecBackend backend = CodecBackend::kAuto);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_LKV_FILE_H_
