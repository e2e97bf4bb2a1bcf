// What the server knows of a stored block beside its frame. The store keeps it as opaque bytes.
#ifndef LATTICEKV_SERVER_BLOCK_METADATA_H_
#define LATTICEKV_SERVER_BLOCK_METADATA_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/sha256.h"
#include "core/codec/codec.h"
#include "core/store/tiered_store.h"
#include "latticekv/v1/blocks.pb.h"

namespace latticekv {

// Every caller is this tenant until the daemon knows identities.
inline constexpr std::string_view kDefaultTenant = "default";

struct BlockMetadata {
  Digest content_hash{};
  std::optional<Digest> parent_hash;  // content hash of the previous chunk
  std::string name_space;
  Digest fingerprint{};
  uint64_t start_position = 0;
  uint32_t tokens = 0;
  uint32_t evicted_tokens = 0;      // of `tokens`
  std::vector<uint32_t> token_ids;  // empty when the writer did not give them
  std::string salt;
  uint64_t raw_bytes = 0;
  PresetId preset = PresetId::kExact;
  Quality quality;
  uint32_t frame_crc32c = 0;
  Digest profile_hash{};  // all zero: the frame needs none
  // Chain hash of the same tokens with no layout in it; absent when an ancestor's is not known.
  std::optional<Digest> layout_free_hash;
};

// The size depends on the fields that a header gives alone, not on the outcome of coding.
ByteVector SerializeMetadata(const BlockMetadata& metadata);
// DATA_LOSS on malformed bytes.
absl::StatusOr<BlockMetadata> ParseMetadata(ByteSpan bytes);

// Rank of a preset in the store: exact > near > ... > tiny > seed, whose settings rank by the sum
// of their bits. A put replaces only what ranks lower.
uint32_t QualityRank(PresetId preset, const SeedOptions& seed);

v1::Preset ToProto(PresetId preset);
v1::Tier ToProto(Tier tier);
void FillQuality(const Quality& quality, v1::Quality* out);
void FillBlockInfo(const BlockMetadata& metadata, const StoredBlock& block, bool pinned,
                   v1::BlockInfo* out);

// A digest of exactly 32 bytes, or INVALID_ARGUMENT that names `field`.
absl::StatusOr<Digest> DigestFromBytes(std::string_view bytes, std::string_view field);
inline std::string DigestToBytes(const Digest& digest) { return std::string(AsText(digest)); }

// OK when `quality` is within what a reader demands; else a sentence about the bound that fails.
absl::Status CheckBounds(const Quality& quality, const v1::QualityBounds& bounds);
// The same for a block, whose evicted tokens the reader must have accepted.
absl::Status CheckAccepted(const BlockMetadata& metadata, const v1::QualityBounds& bounds,
                           bool accept_evicted);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_BLOCK_METADATA_H_
