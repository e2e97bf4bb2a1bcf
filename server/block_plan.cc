#include "server/block_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/frame_format.h"
#include "core/codec/token_eviction.h"
#include "core/layout/chain_hash.h"
#include "server/error_detail.h"

namespace latticekv {

size_t LargestLayerBytes(const Layout& layout, uint32_t tokens) {
  size_t largest = 0;
  for (const LayerSpec& layer : layout.layers) largest = std::max(largest, layer.token_bytes());
  return largest * tokens;
}

namespace {

// The chunk rules of docs/protocol.md.
absl::Status CheckPosition(CacheEngine& engine, const PutTarget& target, BlockPlan* plan) {
  BlockMetadata& m = plan->metadata;
  const uint32_t chunk = target.layout.chunk_tokens;
  if (m.start_position % chunk != 0 || m.start_position > limits::kMaxPosition) {
    return absl::InvalidArgumentError(absl::StrCat(
        "start_position ", m.start_position, " is not a multiple of the namespace's chunk of ",
        chunk, " tokens (or beyond kMaxPosition); cut the sequence there"));
  }
  if (m.parent_hash.has_value() != (m.start_position != 0)) {
    return absl::InvalidArgumentError(
        "the chunk at position 0 has no parent_hash and every other chunk has one");
  }
  // Only whole chains have a name without their layout.
  const bool nameable = m.evicted_tokens == 0 && !m.token_ids.empty();
  std::optional<Digest> parent_free_hash;
  if (plan->parent_key) {
    if (const auto parent = engine.Find(*plan->parent_key)) {
      const uint64_t end = parent->metadata.start_position + parent->metadata.tokens;
      if (end != m.start_position) {
        return absl::InvalidArgumentError(absl::StrCat("the parent ends at position ", end,
                                                       " and this chunk starts at ",
                                                       m.start_position, "; they must meet"));
      }
      parent_free_hash = parent->metadata.layout_free_hash;
    }
  }
  if (nameable && (!plan->parent_key || parent_free_hash)) {
    m.layout_free_hash = LayoutFreeHash(m.name_space, parent_free_hash, m.token_ids, m.salt);
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(const PutTarget& target, const v1::BlockHeader& header, BlockPlan* plan) {
  BlockMetadata* const m = &plan->metadata;
  const uint32_t chunk = target.layout.chunk_tokens;
  if (header.token_ids_size() > static_cast<int>(chunk)) {
    return absl::InvalidArgumentError(absl::StrCat("the chunk has ", header.token_ids_size(),
                                                   " tokens; the namespace's chunks have at most ",
                                                   chunk));
  }
  if (header.token_ids_size() > 0) {
    m->token_ids.assign(header.token_ids().begin(), header.token_ids().end());
    m->tokens = static_cast<uint32_t>(m->token_ids.size());
    if (ChunkHash(m->fingerprint, m->parent_hash, m->token_ids, m->salt, plan->keep) !=
        m->content_hash) {
      return absl::InvalidArgumentError(
          "content_hash is not the hash of fingerprint, parent, token ids, salt and kept tokens "
          "(docs/format/keys.md); send the right one");
    }
  } else if (!target.frames) {
    const size_t token_bytes = target.layout.layout->token_bytes();
    m->tokens = static_cast<uint32_t>(
        std::min<uint64_t>(header.payload_bytes() / token_bytes, chunk + uint64_t{1}));
    if (m->tokens == 0 || m->tokens > chunk) {
      return BadPayload(
          absl::StrCat("payload_bytes must be ", token_bytes, " times 1 to ", chunk, " tokens"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadKeep(const PutTarget& target, const v1::BlockHeader& header, BlockPlan* plan) {
  for (const char kept : header.keep()) {
    if (kept != 0 && kept != 1) {
      return absl::InvalidArgumentError("keep has a byte other than 0 and 1; send one a token");
    }
    plan->keep.push_back(static_cast<uint8_t>(kept));
  }
  // A frame without token ids says itself how many tokens it has; CheckFrame compares.
  const size_t tokens =
      header.token_ids_size() > 0
          ? static_cast<size_t>(header.token_ids_size())
          : (target.frames ? plan->keep.size()
                           : header.payload_bytes() / target.layout.layout->token_bytes());
  LKV_RETURN_IF_ERROR(CheckKeep(*target.layout.layout, static_cast<uint32_t>(tokens), plan->keep));
  const auto evicted = std::count(plan->keep.begin(), plan->keep.end(), 0);
  if (evicted == 0) plan->keep.clear();
  plan->metadata.evicted_tokens = static_cast<uint32_t>(evicted);
  return absl::OkStatus();
}

absl::Status ReadMass(CacheEngine& engine, const PutTarget& target, const v1::BlockHeader& header,
                      BlockPlan* plan) {
  if (header.attention_mass().empty()) return absl::OkStatus();
  const size_t values = target.layout.layout->layers.size() * plan->metadata.tokens;
  if (target.frames || static_cast<size_t>(header.attention_mass_size()) != values) {
    return absl::InvalidArgumentError(absl::StrCat(
        "attention_mass has ", header.attention_mass_size(),
        " values; it goes with RAW payloads, one for each of the ", values, " layers and tokens"));
  }
  const size_t levels = static_cast<size_t>(header.mass_levels_size());
  if (levels != 0 && levels != target.layout.layout->layers.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("mass_levels has ", levels, " values; it has one for each of the ",
                     target.layout.layout->layers.size(), " layers, or none"));
  }
  const size_t bytes = (values + levels) * sizeof(float);
  if (!engine.mass_budget().TryReserve(bytes, &plan->mass_reservation)) {
    return LimitError("kMaxMassBytes",
                      "too much attention mass waits for its blocks; put the block again later");
  }
  plan->attention_mass.assign(header.attention_mass().begin(), header.attention_mass().end());
  plan->mass_queries = header.mass_queries();
  plan->mass_levels.assign(header.mass_levels().begin(), header.mass_levels().end());
  plan->memory_bytes += bytes;
  return absl::OkStatus();
}

absl::Status CheckPayloadSize(CacheEngine& engine, const PutTarget& target, BlockPlan* plan) {
  const Layout& layout = *target.layout.layout;
  BlockMetadata& m = plan->metadata;
  const uint32_t max_tokens = m.tokens == 0 ? target.layout.chunk_tokens : m.tokens;
  const size_t max_raw = layout.token_bytes() * max_tokens;
  const size_t metadata_bytes = SerializeMetadata(m).size();
  const size_t catalog_bytes = BlockCatalog::EntryBytes(m.token_ids.size());
  if (target.frames) {
    const size_t bound =
        std::min(FrameBytesBound(layout.layers.size(), max_raw), limits::kMaxFrameBytes);
    if (plan->payload_bytes == 0 || plan->payload_bytes > bound) {
      return BadPayload(absl::StrCat("payload_bytes is ", plan->payload_bytes,
                                     "; a frame of this layout has 1 to ", bound, " bytes"));
    }
    plan->memory_bytes = TieredStore::EntryBytes(plan->payload_bytes, metadata_bytes) +
                         catalog_bytes + LargestLayerBytes(layout, max_tokens);
    return absl::OkStatus();
  }
  if (plan->payload_bytes != max_raw) {
    return BadPayload(absl::StrCat("payload_bytes is ", plan->payload_bytes, "; ", m.tokens,
                                   " tokens of this layout have ", max_raw, " bytes"));
  }
  m.raw_bytes = max_raw;
  plan->memory_bytes =
      max_raw + catalog_bytes +
      TieredStore::EntryBytes(FrameBytesBound(layout.layers.size(), max_raw), metadata_bytes);
  return absl::OkStatus();
}

absl::StatusOr<SeedOptions> ReadSeed(const v1::PutOpen& open) {
  SeedOptions out;
  if (!open.has_seed()) return out;
  if (open.preset() != v1::PRESET_SEED) {
    return absl::InvalidArgumentError("seed settings go with PRESET_SEED; choose it or leave them");
  }
  const v1::SeedSettings& seed = open.seed();
  if (seed.key_bits() > kMaxSeedBits || seed.value_bits() > kMaxSeedBits) {
    return absl::InvalidArgumentError(absl::StrCat("seed bits are ", seed.key_bits(), " and ",
                                                   seed.value_bits(), "; use 1 to ", kMaxSeedBits));
  }
  if (seed.key_bits() != 0) out.key_bits = static_cast<int>(seed.key_bits());
  if (seed.value_bits() != 0) out.value_bits = static_cast<int>(seed.value_bits());
  out.group_scales = seed.group_scales();
  out.token_delta = !seed.no_token_delta();
  return out;
}

}  // namespace

absl::StatusOr<PutTarget> OpenPut(CacheEngine& engine, const v1::PutOpen& open) {
  PutTarget target;
  LKV_ASSIGN_OR_RETURN(target.name_space, NamespaceOrDefault(open.namespace_()));
  LKV_RETURN_IF_ERROR(CheckName("session name", open.session()));
  LKV_ASSIGN_OR_RETURN(const Digest fingerprint,
                       DigestFromBytes(open.fingerprint(), "fingerprint"));
  LKV_ASSIGN_OR_RETURN(target.layout, engine.layouts().Find(target.name_space, fingerprint));
  target.session = open.session();
  if (!v1::Preset_IsValid(open.preset())) {
    return absl::InvalidArgumentError("unknown preset; use one of the Preset enum");
  }
  target.preset = open.preset() == v1::PRESET_UNSPECIFIED ? engine.config().default_preset
                                                          : static_cast<PresetId>(open.preset());
  LKV_ASSIGN_OR_RETURN(target.seed, ReadSeed(open));
  if (!v1::Encoding_IsValid(open.encoding())) {
    return absl::InvalidArgumentError("unknown encoding; use RAW or FRAME");
  }
  if (open.ttl_ms() < 0) return absl::InvalidArgumentError("ttl_ms is negative; use 0 for none");
  target.frames = open.encoding() == v1::ENCODING_FRAME;
  target.durable = open.wait_for() == v1::BLOCK_STATE_DURABLE;
  target.ttl_ms = open.ttl_ms();
  return target;
}

absl::StatusOr<BlockPlan> PlanBlock(CacheEngine& engine, const PutTarget& target,
                                    const v1::BlockHeader& header) {
  if (engine.draining()) {
    return ErrorWith(absl::StatusCode::kUnavailable, v1::REASON_DRAINING,
                     "the daemon is shutting down; put the block again when it is back");
  }
  if (target.durable && engine.config().disk_dir.empty()) {
    return ErrorWith(absl::StatusCode::kFailedPrecondition, v1::REASON_DISK,
                     "this daemon has no disk tier, so no block becomes durable; start it with "
                     "--disk_dir and --disk_bytes or wait for MEMORY");
  }
  BlockPlan plan;
  BlockMetadata& m = plan.metadata;
  plan.index = header.index();
  plan.payload_bytes = header.payload_bytes();
  m.name_space = target.name_space;
  m.fingerprint = target.layout.fingerprint;
  m.start_position = header.start_position();
  m.salt = header.salt();
  m.preset = target.preset;
  LKV_RETURN_IF_ERROR(CheckName("salt", m.salt));
  LKV_ASSIGN_OR_RETURN(m.content_hash, DigestFromBytes(header.content_hash(), "content_hash"));
  plan.key = engine.KeyOf(target.name_space, m.content_hash);
  if (!header.parent_hash().empty()) {
    LKV_ASSIGN_OR_RETURN(m.parent_hash, DigestFromBytes(header.parent_hash(), "parent_hash"));
    plan.parent_key = engine.KeyOf(target.name_space, *m.parent_hash);
  }
  LKV_RETURN_IF_ERROR(ReadKeep(target, header, &plan));
  LKV_RETURN_IF_ERROR(CheckTokens(target, header, &plan));
  LKV_RETURN_IF_ERROR(CheckPosition(engine, target, &plan));
  LKV_RETURN_IF_ERROR(CheckPayloadSize(engine, target, &plan));
  LKV_RETURN_IF_ERROR(ReadMass(engine, target, header, &plan));
  for (const uint32_t token : header.exact_tokens()) {
    if (token >= m.tokens || (!plan.exact_tokens.empty() && token <= plan.exact_tokens.back())) {
      return absl::InvalidArgumentError(
          "exact_tokens must increase and lie within the chunk; sort them");
    }
    plan.exact_tokens.push_back(token);
  }
  if (!target.session.empty()) {
    LKV_RETURN_IF_ERROR(engine.sessions().CheckAppend({target.name_space, target.session},
                                                      target.layout.fingerprint));
  }
  return plan;
}

}  // namespace latticekv
