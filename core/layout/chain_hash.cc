#include "core/layout/chain_hash.h"

#include <algorithm>

namespace latticekv {
namespace {

enum Tag : uint32_t {
  kVersion = 1,
  kFingerprint = 2,
  kParent = 3,
  kTokens = 4,
  kSalt = 5,
  kTenant = 6,
  kNamespace = 7,
  kContent = 8,
  kKeep = 9,
};

void AddVersion(Sha256& sha) {
  std::array<std::byte, 4> version;
  StoreLe<uint32_t>(version.data(), kKeyFormatVersion);
  sha.Field(kVersion, version);
}

}  // namespace

Digest ChunkHash(const Digest& fingerprint, const std::optional<Digest>& parent,
                 std::span<const uint32_t> tokens, std::string_view salt,
                 std::span<const uint8_t> keep) {
  Sha256 sha;
  AddVersion(sha);
  sha.Field(kFingerprint, fingerprint);
  sha.Field(kParent, parent ? ByteSpan(*parent) : ByteSpan());
  ByteWriter ids;
  ids.Put<uint32_t>(static_cast<uint32_t>(tokens.size()));
  ids.PutBytes(std::as_bytes(tokens));
  sha.Field(kTokens, ids.bytes());
  sha.Field(kSalt, AsBytes(salt));
  if (std::find(keep.begin(), keep.end(), 0) != keep.end()) {
    sha.Field(kKeep, Sha256Of(std::as_bytes(keep)));
  }
  return sha.Finish();
}

std::vector<Digest> ChainHashes(const Digest& fingerprint, std::span<const uint32_t> tokens,
                                uint32_t chunk_tokens, std::string_view salt,
                                std::span<const uint8_t> keep) {
  std::vector<Digest> out;
  std::optional<Digest> parent;
  for (size_t at = 0; at < tokens.size(); at += chunk_tokens) {
    const size_t count = std::min<size_t>(chunk_tokens, tokens.size() - at);
    const auto kept = keep.empty() ? keep : keep.subspan(at, count);
    parent = ChunkHash(fingerprint, parent, tokens.subspan(at, count), salt, kept);
    out.push_back(*parent);
  }
  return out;
}

Digest TenantKey(std::string_view tenant, std::string_view name_space, const Digest& content_hash) {
  Sha256 sha;
  AddVersion(sha);
  return sha.Field(kTenant, AsBytes(tenant))
      .Field(kNamespace, AsBytes(name_space))
      .Field(kContent, content_hash)
      .Finish();
}

}  // namespace latticekv
