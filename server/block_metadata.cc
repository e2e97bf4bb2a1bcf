#include "server/block_metadata.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "server/error_detail.h"

namespace latticekv {
namespace {

// Version 1 had no evicted tokens and no room for their number.
constexpr uint32_t kMetadataVersion = 2;
// Between two presets, for the settings of the preset seed below them all.
constexpr uint32_t kRanksPerPreset = 16;
static_assert(2 * kMaxSeedBits - 1 < kRanksPerPreset);

void PutDigest(ByteWriter& out, const std::optional<Digest>& digest) {
  out.Put<uint8_t>(digest.has_value());
  out.PutBytes(digest.value_or(Digest{}));
}

Digest GetDigest(ByteReader& in) {
  Digest digest{};
  const ByteSpan bytes = in.GetBytes(digest.size());
  std::copy(bytes.begin(), bytes.end(), digest.begin());
  return digest;
}

std::optional<Digest> GetOptionalDigest(ByteReader& in) {
  const bool present = in.Get<uint8_t>() != 0;
  const Digest digest = GetDigest(in);
  return present ? std::optional<Digest>(digest) : std::nullopt;
}

}  // namespace

ByteVector SerializeMetadata(const BlockMetadata& m) {
  ByteWriter out;
  out.Put<uint32_t>(kMetadataVersion);
  out.PutBytes(m.content_hash);
  PutDigest(out, m.parent_hash);
  out.PutString(m.name_space);
  out.PutBytes(m.fingerprint);
  out.Put<uint64_t>(m.start_position);
  out.Put<uint32_t>(m.tokens);
  out.Put<uint32_t>(static_cast<uint32_t>(m.token_ids.size()));
  out.PutBytes(std::as_bytes(std::span(m.token_ids)));
  out.PutString(m.salt);
  out.Put<uint64_t>(m.raw_bytes);
  out.Put<uint8_t>(static_cast<uint8_t>(m.preset));
  out.Put<uint8_t>(m.quality.exact);
  out.Put<uint8_t>(m.quality.profiled);
  out.Put<double>(m.quality.logit_noise);
  out.Put<double>(m.quality.value_error);
  out.Put<uint32_t>(m.frame_crc32c);
  out.PutBytes(m.profile_hash);
  PutDigest(out, m.layout_free_hash);
  out.Put<uint32_t>(m.evicted_tokens);
  return out.Take();
}

absl::StatusOr<BlockMetadata> ParseMetadata(ByteSpan bytes) {
  ByteReader in(bytes);
  BlockMetadata m;
  const uint32_t version = in.Get<uint32_t>();
  m.content_hash = GetDigest(in);
  m.parent_hash = GetOptionalDigest(in);
  m.name_space = in.GetString(limits::kMaxNameBytes);
  m.fingerprint = GetDigest(in);
  m.start_position = in.Get<uint64_t>();
  m.tokens = in.Get<uint32_t>();
  const uint32_t ids = in.Get<uint32_t>();
  if (ids > limits::kMaxChunkTokens) return absl::DataLossError("block metadata is damaged");
  m.token_ids.resize(ids);
  const ByteSpan id_bytes = in.GetBytes(size_t{ids} * sizeof(uint32_t));
  if (!id_bytes.empty()) std::memcpy(m.token_ids.data(), id_bytes.data(), id_bytes.size());
  m.salt = in.GetString(limits::kMaxNameBytes);
  m.raw_bytes = in.Get<uint64_t>();
  m.preset = static_cast<PresetId>(in.Get<uint8_t>());
  m.quality.exact = in.Get<uint8_t>() != 0;
  m.quality.profiled = in.Get<uint8_t>() != 0;
  m.quality.logit_noise = in.Get<double>();
  m.quality.value_error = in.Get<double>();
  m.frame_crc32c = in.Get<uint32_t>();
  m.profile_hash = GetDigest(in);
  m.layout_free_hash = GetOptionalDigest(in);
  if (version > 1) m.evicted_tokens = in.Get<uint32_t>();
  if (!in.ok() || version == 0 || version > kMetadataVersion) {
    return absl::DataLossError("block metadata is damaged or of another version");
  }
  return m;
}

uint32_t QualityRank(PresetId preset, const SeedOptions& seed) {
  if (preset == PresetId::kSeed) return static_cast<uint32_t>(seed.key_bits + seed.value_bits - 1);
  const uint32_t step = static_cast<uint32_t>(PresetId::kTiny) + 1 - static_cast<uint32_t>(preset);
  return kRanksPerPreset * step;
}

v1::Preset ToProto(PresetId preset) { return static_cast<v1::Preset>(preset); }

v1::Tier ToProto(Tier tier) { return tier == Tier::kDisk ? v1::TIER_DISK : v1::TIER_MEMORY; }

void FillQuality(const Quality& quality, v1::Quality* out) {
  out->set_exact(quality.exact);
  out->set_profiled(quality.profiled);
  out->set_logit_noise(quality.logit_noise);
  out->set_value_error(quality.value_error);
}

void FillBlockInfo(const BlockMetadata& m, const StoredBlock& block, bool pinned,
                   v1::BlockInfo* out) {
  out->set_content_hash(DigestToBytes(m.content_hash));
  if (m.parent_hash) out->set_parent_hash(DigestToBytes(*m.parent_hash));
  out->set_start_position(m.start_position);
  out->set_tokens(m.tokens);
  out->set_stored_bytes(block.frame_bytes);
  out->set_raw_bytes(m.raw_bytes);
  out->set_preset(ToProto(m.preset));
  FillQuality(m.quality, out->mutable_quality());
  out->set_tier(ToProto(block.tier()));
  out->set_pinned(pinned);
  out->set_evicted_tokens(m.evicted_tokens);
}

absl::StatusOr<Digest> DigestFromBytes(std::string_view bytes, std::string_view field) {
  Digest digest;
  if (bytes.size() != digest.size()) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(field), " has ", bytes.size(),
                                                   " bytes; it must be a SHA-256 of 32 bytes"));
  }
  std::memcpy(digest.data(), bytes.data(), digest.size());
  return digest;
}

absl::Status CheckBounds(const Quality& quality, const v1::QualityBounds& bounds) {
  const auto below = [](const std::string& why) {
    return ErrorWith(absl::StatusCode::kFailedPrecondition, v1::REASON_QUALITY_BELOW_BOUND,
                     absl::StrCat("stored, but ", why, "; put it again with a better preset"));
  };
  if (quality.exact) return absl::OkStatus();
  if (bounds.require_exact()) return below("not bit for bit");
  if (bounds.max_logit_noise() > 0) {
    if (!quality.profiled) return below("without a profile, so its logit noise is not known");
    if (quality.logit_noise > bounds.max_logit_noise()) {
      return below(absl::StrCat("with logit noise ", quality.logit_noise, ", above the bound ",
                                bounds.max_logit_noise()));
    }
  }
  if (bounds.max_value_error() > 0 && quality.value_error > bounds.max_value_error()) {
    return below(absl::StrCat("with value error ", quality.value_error, ", above the bound ",
                              bounds.max_value_error()));
  }
  return absl::OkStatus();
}

absl::Status CheckAccepted(const BlockMetadata& metadata, const v1::QualityBounds& bounds,
                           bool accept_evicted) {
  if (metadata.evicted_tokens > 0 && !accept_evicted) {
    return ErrorWith(
        absl::StatusCode::kFailedPrecondition, v1::REASON_EVICTED_TOKENS,
        absl::StrCat("stored with ", metadata.evicted_tokens, " of ", metadata.tokens,
                     " tokens evicted; accept evicted tokens (accept_evicted) to read it"));
  }
  return CheckBounds(metadata.quality, bounds);
}

}  // namespace latticekv
