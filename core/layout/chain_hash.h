// The content chain hash: the name of a chunk by what it says and all that came before it.
#ifndef LATTICEKV_CORE_LAYOUT_CHAIN_HASH_H_
#define LATTICEKV_CORE_LAYOUT_CHAIN_HASH_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/base/sha256.h"

namespace latticekv {

// Tagged fields of every key hash; part of docs/format/keys.md.
inline constexpr uint32_t kKeyFormatVersion = 1;

// Hash of one chunk: format version, layout fingerprint, parent's hash (absent for the first
// chunk), count and u32 little-endian token ids, salt (LoRA adapter, multimodal hash; may be
// empty), and where `keep` (1 or 0 for each token, or empty) evicts tokens the mask's hash.
Digest ChunkHash(const Digest& fingerprint, const std::optional<Digest>& parent,
                 std::span<const uint32_t> tokens, std::string_view salt,
                 std::span<const uint8_t> keep = {});

// Hashes of consecutive chunks of `chunk_tokens` tokens; the last may be shorter. `keep` is empty
// or has an entry for each token.
std::vector<Digest> ChainHashes(const Digest& fingerprint, std::span<const uint32_t> tokens,
                                uint32_t chunk_tokens, std::string_view salt,
                                std::span<const uint8_t> keep = {});

// The server's key: nobody reaches another tenant's or namespace's block by its content hash.
Digest TenantKey(std::string_view tenant, std::string_view name_space, const Digest& content_hash);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_LAYOUT_CHAIN_HASH_H_
