#include "client/src/token_codec.h"

#include <zstd.h>

#include <utility>

#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr int kZstdLevel = 19;
constexpr size_t kMaxVarintBytes = 5;

void PutVarint(uint32_t value, ByteVector& out) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<std::byte>(value | 0x80));
  out.push_back(static_cast<std::byte>(value));
}

// False at the end of the bytes or when the number does not fit 32 bits.
bool GetVarint(ByteSpan& in, uint32_t& out) {
  uint64_t value = 0;
  for (size_t i = 0; i < kMaxVarintBytes && i < in.size(); ++i) {
    const auto byte = static_cast<uint8_t>(in[i]);
    value |= uint64_t{byte & 0x7Fu} << (7 * i);
    if (byte & 0x80) continue;
    in = in.subspan(i + 1);
    out = static_cast<uint32_t>(value);
    return value <= UINT32_MAX;
  }
  return false;
}

// Differences wrap around, so that any two ids have one.
uint32_t ZigZag(uint32_t delta) { return delta << 1 ^ (delta >> 31 ? ~uint32_t{0} : 0); }
uint32_t UnZigZag(uint32_t code) { return code >> 1 ^ (code & 1 ? ~uint32_t{0} : 0); }

absl::Status Damaged() { return absl::DataLossError("the token ids are damaged"); }

}  // namespace

ByteVector ZstdCompress(ByteSpan bytes) {
  ByteVector out(ZSTD_compressBound(bytes.size()));
  const size_t size = ZSTD_compress(out.data(), out.size(), bytes.data(), bytes.size(), kZstdLevel);
  out.resize(ZSTD_isError(size) ? 0 : size);
  return out;
}

absl::StatusOr<ByteVector> ZstdDecompress(ByteSpan bytes, size_t max_size) {
  const unsigned long long size = ZSTD_getFrameContentSize(bytes.data(), bytes.size());
  if (size == ZSTD_CONTENTSIZE_ERROR || size == ZSTD_CONTENTSIZE_UNKNOWN || size > max_size) {
    return absl::DataLossError("a zstd part is damaged");
  }
  ByteVector out(size);
  const size_t got = ZSTD_decompress(out.data(), out.size(), bytes.data(), bytes.size());
  if (ZSTD_isError(got) || got != size) return absl::DataLossError("a zstd part is damaged");
  return out;
}

CodedTokens EncodeTokens(std::span<const uint32_t> tokens) {
  CodedTokens best;
  if (tokens.empty()) return best;
  const ByteSpan plain = std::as_bytes(tokens);
  best = {TokenCoding::kPlain, {plain.begin(), plain.end()}};
  ByteVector planes, varints, deltas;
  for (size_t byte = 0; byte < sizeof(uint32_t); ++byte) {
    for (size_t i = 0; i < tokens.size(); ++i) planes.push_back(plain[i * sizeof(uint32_t) + byte]);
  }
  uint32_t before = 0;
  for (uint32_t id : tokens) {
    PutVarint(id, varints);
    PutVarint(ZigZag(id - std::exchange(before, id)), deltas);
  }
  const std::pair<TokenCoding, const ByteVector*> candidates[] = {
      {TokenCoding::kZstdPlanes, &planes},
      {TokenCoding::kZstdVarints, &varints},
      {TokenCoding::kZstdDeltas, &deltas}};
  for (const auto& [coding, bytes] : candidates) {
    ByteVector packed = ZstdCompress(*bytes);
    if (!packed.empty() && packed.size() < best.bytes.size()) best = {coding, std::move(packed)};
  }
  return best;
}

absl::StatusOr<std::vector<uint32_t>> DecodeTokens(TokenCoding coding, ByteSpan bytes,
                                                   uint32_t count) {
  const size_t plain_bytes = size_t{count} * sizeof(uint32_t);
  ByteVector unpacked;
  if (coding == TokenCoding::kZstdPlanes || coding == TokenCoding::kZstdVarints ||
      coding == TokenCoding::kZstdDeltas) {
    LKV_ASSIGN_OR_RETURN(unpacked, ZstdDecompress(bytes, size_t{count} * kMaxVarintBytes));
    bytes = unpacked;
  }
  std::vector<uint32_t> out;
  switch (coding) {
    case TokenCoding::kNone:
      return bytes.empty() ? absl::StatusOr<std::vector<uint32_t>>(out) : Damaged();
    case TokenCoding::kPlain:
    case TokenCoding::kZstdPlanes:
      if (bytes.size() != plain_bytes) return Damaged();
      for (size_t i = 0; i < count; ++i) {
        if (coding == TokenCoding::kPlain) {
          out.push_back(LoadLe<uint32_t>(bytes.data() + i * sizeof(uint32_t)));
          continue;
        }
        uint32_t id = 0;
        for (size_t b = 0; b < sizeof(uint32_t); ++b) {
          id |= static_cast<uint32_t>(bytes[b * count + i]) << (8 * b);
        }
        out.push_back(id);
      }
      return out;
    case TokenCoding::kZstdVarints:
    case TokenCoding::kZstdDeltas:
      for (size_t i = 0; i < count; ++i) {
        uint32_t code = 0;
        if (!GetVarint(bytes, code)) return Damaged();
        if (coding == TokenCoding::kZstdDeltas) code = UnZigZag(code) + (i ? out.back() : 0);
        out.push_back(code);
      }
      return bytes.empty() ? absl::StatusOr<std::vector<uint32_t>>(out) : Damaged();
  }
  return absl::UnimplementedError("the token ids are in a coding that this version does not know");
}

}  // namespace latticekv
