// Token ids in few bytes: plain, or as zstd of the ids or of their differences.
#ifndef LATTICEKV_CLIENT_SRC_TOKEN_CODEC_H_
#define LATTICEKV_CLIENT_SRC_TOKEN_CODEC_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"

namespace latticekv {

enum class TokenCoding : uint8_t {
  kNone = 0,         // no ids
  kPlain = 1,        // u32 little-endian each
  kZstdPlanes = 2,   // zstd of all first bytes, then all second bytes, third, fourth
  kZstdVarints = 3,  // zstd of LEB128 varints
  kZstdDeltas = 4,   // zstd of LEB128 varints of zigzag differences to the id before
};

struct CodedTokens {
  TokenCoding coding = TokenCoding::kNone;
  ByteVector bytes;
};

// The smallest of the codings.
CodedTokens EncodeTokens(std::span<const uint32_t> tokens);

// Exactly `count` ids. DATA_LOSS when the bytes do not hold them.
absl::StatusOr<std::vector<uint32_t>> DecodeTokens(TokenCoding coding, ByteSpan bytes,
                                                   uint32_t count);

// zstd frame of `bytes`.
ByteVector ZstdCompress(ByteSpan bytes);
// DATA_LOSS unless `bytes` expand to at most `max_size` bytes.
absl::StatusOr<ByteVector> ZstdDecompress(ByteSpan bytes, size_t max_size);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_TOKEN_CODEC_H_
