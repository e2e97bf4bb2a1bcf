#include "server/admin_views.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/codec.h"
#include "server/block_reader.h"
#include "server/error_detail.h"
#include "server/layout_proto.h"

namespace latticekv {
namespace {

constexpr uint32_t kDefaultPageSize = 100;

uint32_t PageSize(uint32_t asked) {
  return asked == 0 ? kDefaultPageSize : std::min(asked, limits::kMaxListPageSize);
}

double Ratio(uint64_t raw_bytes, uint64_t stored_bytes) {
  return stored_bytes == 0 ? 0 : static_cast<double>(raw_bytes) / static_cast<double>(stored_bytes);
}

absl::Status BadPageToken() {
  return absl::InvalidArgumentError("page_token is not one that the last page gave; start without");
}

// A session's id as an opaque token: hex of namespace, NUL, name.
std::string SessionToken(const SessionId& id) {
  std::string text = id.name_space;
  text.push_back('\0');
  text += id.name;
  return ToHex(AsBytes(text));
}

absl::StatusOr<SessionId> SessionFromToken(std::string_view token) {
  const auto bytes = FromHex(token);
  if (!bytes.ok()) return BadPageToken();
  const std::string_view text = AsText(*bytes);
  const size_t nul = text.find('\0');
  if (nul == std::string_view::npos) return BadPageToken();
  return SessionId{std::string(text.substr(0, nul)), std::string(text.substr(nul + 1))};
}

absl::StatusOr<Digest> DigestFromHex(std::string_view hex, std::string_view field) {
  const auto bytes = FromHex(hex);
  if (!bytes.ok() || bytes->size() != sizeof(Digest)) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(field), " must be 64 hexadecimal digits"));
  }
  return DigestFromBytes(AsText(*bytes), field);
}

void FillBlockSummary(CacheEngine& engine, const FoundBlock& found, v1::BlockSummary* out) {
  const BlockMetadata& m = found.metadata;
  out->set_key(ToHex(m.content_hash));
  if (m.parent_hash) out->set_parent(ToHex(*m.parent_hash));
  out->set_namespace_(m.name_space);
  out->set_start_position(m.start_position);
  out->set_tokens(m.tokens);
  out->set_raw_bytes(m.raw_bytes);
  out->set_stored_bytes(found.block->frame_bytes);
  out->set_preset(ToProto(m.preset));
  FillQuality(m.quality, out->mutable_quality());
  out->set_tier(ToProto(found.block->tier()));
  out->set_pinned(engine.store().IsPinned(found.block->key));
  out->set_evicted_tokens(m.evicted_tokens);
}

void FillMissingSummary(const SessionId& id, const SessionBlock& block, v1::BlockSummary* out) {
  out->set_key(ToHex(block.content_hash));
  if (block.parent_hash) out->set_parent(ToHex(*block.parent_hash));
  out->set_namespace_(id.name_space);
  out->set_start_position(block.start_position);
  out->set_tokens(block.tokens);
  out->set_raw_bytes(block.raw_bytes);
  out->set_missing(true);
}

// Counts what is stored now: blocks, tokens and raw bytes of missing ones are left out.
void FillSessionSummary(CacheEngine& engine, const Session& session, v1::SessionSummary* out) {
  out->set_namespace_(session.id.name_space);
  out->set_name(session.id.name);
  out->set_created_ms(session.created_ms);
  out->set_last_used_ms(session.last_used_ms);
  out->set_expires_ms(session.expires_ms);
  uint64_t tokens = 0, raw_bytes = 0, stored_bytes = 0;
  uint32_t blocks = 0, missing = 0;
  bool pinned = true;
  for (const SessionBlock& block : session.blocks) {
    // Not from the block itself: that would read the disk for each of a session's blocks.
    if (!engine.store().Contains(block.key)) {
      ++missing;
      continue;
    }
    ++blocks;
    tokens += block.tokens;
    raw_bytes += block.raw_bytes;
    if (const auto frame_bytes = engine.catalog().FrameBytes(block.key)) {
      stored_bytes += *frame_bytes;
    } else if (const StoredBlockPtr stored = engine.store().Peek(block.key)) {
      stored_bytes += stored->frame_bytes;
    }
    pinned = pinned && engine.store().IsPinned(block.key);
  }
  out->set_blocks(blocks);
  out->set_missing_blocks(missing);
  out->set_tokens(tokens);
  out->set_raw_bytes(raw_bytes);
  out->set_stored_bytes(stored_bytes);
  out->set_ratio(Ratio(raw_bytes, stored_bytes));
  out->set_pinned(pinned && blocks > 0);
  if (const auto layout = engine.layouts().FindLayout(session.fingerprint)) {
    out->set_model(layout->model);
  }
}

}  // namespace

std::string CodecInUse() {
  // The engine did not start without one.
  const auto backend = ResolveCodecBackend(CodecBackend::kAuto);
  return std::string(CodecBackendName(backend.value_or(CodecBackend::kScalar)));
}
std::string_view ServerVersion() { return LATTICEKV_VERSION; }

absl::StatusOr<v1::ListSessionsResponse> ListSessions(CacheEngine& engine,
                                                      const v1::ListSessionsRequest& request) {
  LKV_RETURN_IF_ERROR(CheckName("namespace", request.namespace_()));
  std::optional<SessionId> after;
  if (!request.page_token().empty()) {
    LKV_ASSIGN_OR_RETURN(after, SessionFromToken(request.page_token()));
  }
  const uint32_t page_size = PageSize(request.page_size());
  std::vector<Session> sessions =
      engine.sessions().List(request.namespace_(), after, page_size + 1);
  v1::ListSessionsResponse response;
  if (sessions.size() > page_size) {
    sessions.pop_back();
    response.set_next_page_token(SessionToken(sessions.back().id));
  }
  for (const Session& session : sessions) {
    FillSessionSummary(engine, session, response.add_sessions());
  }
  return response;
}

absl::StatusOr<v1::SessionDetail> GetSession(CacheEngine& engine,
                                             const v1::GetSessionRequest& request) {
  LKV_ASSIGN_OR_RETURN(const std::string name_space, NamespaceOrDefault(request.namespace_()));
  const auto session = engine.sessions().Get({name_space, request.name()});
  if (!session) {
    return ErrorWith(absl::StatusCode::kNotFound, v1::REASON_NOT_STORED,
                     absl::StrCat("there is no session '", request.name(), "' in namespace '",
                                  name_space, "'; ListSessions shows what there is"));
  }
  v1::SessionDetail detail;
  FillSessionSummary(engine, *session, detail.mutable_summary());
  for (const SessionBlock& block : session->blocks) {
    if (const auto found = engine.Find(block.key)) {
      FillBlockSummary(engine, *found, detail.add_blocks());
    } else {
      FillMissingSummary(session->id, block, detail.add_blocks());
    }
  }
  detail.set_fingerprint(ToHex(session->fingerprint));
  if (const auto layout = engine.layouts().FindLayout(session->fingerprint)) {
    LayoutToProto(*layout, detail.mutable_layout());
  }
  return detail;
}

absl::StatusOr<v1::ListBlocksResponse> ListBlocks(CacheEngine& engine,
                                                  const v1::ListBlocksRequest& request) {
  LKV_RETURN_IF_ERROR(CheckName("namespace", request.namespace_()));
  std::optional<BlockKey> after;
  if (!request.page_token().empty()) {
    LKV_ASSIGN_OR_RETURN(after, DigestFromHex(request.page_token(), "page_token"));
  }
  const size_t page_size = PageSize(request.page_size());
  v1::ListBlocksResponse response;
  // Blocks of other namespaces lie between; walk on until the page is full or the store ends.
  bool more = true;
  while (more && response.blocks_size() < static_cast<int>(page_size)) {
    std::vector<StoredBlockPtr> batch;
    engine.store().List(after, page_size, [&](const StoredBlockPtr& block) {
      batch.push_back(block);
      return true;
    });
    more = batch.size() == page_size;
    for (const StoredBlockPtr& block : batch) {
      if (response.blocks_size() == static_cast<int>(page_size)) {
        more = true;
        break;
      }
      after = block->key;
      auto metadata = ParseMetadata(block->metadata);
      if (!metadata.ok()) continue;
      if (!request.namespace_().empty() && metadata->name_space != request.namespace_()) continue;
      FillBlockSummary(engine, {block, *std::move(metadata)}, response.add_blocks());
    }
  }
  if (more && after) response.set_next_page_token(ToHex(*after));
  return response;
}

absl::StatusOr<v1::BlockDetail> GetBlock(CacheEngine& engine, const v1::GetBlockRequest& request) {
  LKV_ASSIGN_OR_RETURN(const std::string name_space, NamespaceOrDefault(request.namespace_()));
  LKV_ASSIGN_OR_RETURN(const Digest hash, DigestFromHex(request.key(), "key"));
  const BlockKey key = engine.KeyOf(name_space, hash);
  const auto found = engine.Find(key);
  if (!found) {
    const v1::ErrorDetail why = engine.ExplainAbsence(key);
    return ErrorWith(absl::StatusCode::kNotFound, why.reason(), why.message());
  }
  const BlockMetadata& m = found->metadata;
  v1::BlockDetail detail;
  FillBlockSummary(engine, *found, detail.mutable_summary());
  detail.set_fingerprint(ToHex(m.fingerprint));
  if (const auto layout = engine.layouts().FindLayout(m.fingerprint)) {
    detail.set_model(layout->model);
  }
  if (m.profile_hash != Digest{}) detail.set_profile_hash(ToHex(m.profile_hash));
  detail.set_frame_crc32c(absl::StrFormat("%08x", m.frame_crc32c));
  const auto info = StoredFrameInfo(*found->block);
  if (info.ok()) {
    for (uint32_t layer = 0; layer < info->layer_bytes.size(); ++layer) {
      v1::LayerSize* size = detail.add_layers();
      size->set_layer(layer);
      size->set_stored_bytes(info->layer_bytes[layer]);
    }
  }
  for (const SessionId& id : engine.sessions().Holders(key)) detail.add_sessions(id.name);
  detail.mutable_token_ids()->Add(m.token_ids.begin(), m.token_ids.end());
  return detail;
}

absl::StatusOr<v1::ExplainMissResponse> ExplainMiss(CacheEngine& engine,
                                                    const v1::ExplainMissRequest& request) {
  LKV_ASSIGN_OR_RETURN(const std::string name_space, NamespaceOrDefault(request.namespace_()));
  LKV_ASSIGN_OR_RETURN(const Digest hash, DigestFromHex(request.key(), "key"));
  const BlockKey key = engine.KeyOf(name_space, hash);
  v1::ExplainMissResponse response;
  v1::ErrorDetail why;
  if (const auto found = engine.Find(key)) {
    const absl::Status accepted = CheckAccepted(found->metadata, {}, /*accept_evicted=*/false);
    if (accepted.ok()) {
      response.set_message("the block is stored now");
      return response;
    }
    why = DetailOf(accepted);
  } else {
    why = engine.ExplainAbsence(key);
  }
  response.set_reason(why.reason());
  response.set_message(why.message());
  return response;
}

namespace {

v1::DiskState ToProto(StoreHealth::State state) {
  switch (state) {
    case StoreHealth::State::kOk:
      return v1::DISK_STATE_OK;
    case StoreHealth::State::kNoDisk:
      return v1::DISK_STATE_NO_DISK;
    case StoreHealth::State::kMemoryOnly:
      return v1::DISK_STATE_MEMORY_ONLY;
  }
  return v1::DISK_STATE_UNSPECIFIED;
}

void FillDiskStats(CacheEngine& engine, const StoreStats& store, v1::StatsResponse* out) {
  const StoreHealth health = engine.DiskHealth();
  out->set_disk_state(ToProto(health.state));
  out->set_disk_reason(health.reason);
  if (health.state == StoreHealth::State::kNoDisk) return;
  // What is only on disk has no place in the memory's account.
  out->set_ratio(Ratio(out->raw_bytes(), engine.catalog().frame_bytes()));
  out->set_disk_blocks(store.disk_blocks);
  out->set_disk_used_bytes(store.disk_used_bytes);
  out->set_disk_peak_bytes(store.disk_peak_bytes);
  out->set_disk_capacity_bytes(store.disk_capacity_bytes);
  out->set_disk_index_bytes(store.disk_index_bytes);
  out->set_segments(store.segments);
  out->set_evicted_to_disk(store.evicted_to_disk);
  out->set_promoted_blocks(store.promoted_blocks);
  out->set_disk_evicted_blocks(store.disk_evicted_blocks);
  out->set_durable_blocks(store.durable_blocks);
  out->set_recovered_blocks(store.recovered_blocks);
  out->set_lost_blocks(store.lost_blocks);
  out->set_damaged_records(store.corrupt_dropped);
  out->set_disk_errors(store.disk_errors);
  out->set_journal_bytes(engine.journal_stats().bytes);
}

void FillCodecPaths(CacheEngine& engine, v1::CodecPaths* out) {
  out->set_cpu_encodes(engine.metrics().cpu_encodes.load());
  out->set_cpu_decodes(engine.metrics().cpu_decodes.load());
  if (engine.gpu() == nullptr) {
    out->set_gpu_state(v1::GPU_STATE_NONE);
    out->set_gpu_reason(engine.gpu_absence());
    return;
  }
  const GpuStats gpu = engine.gpu()->stats();
  out->set_gpu_state(gpu.on ? v1::GPU_STATE_ON : v1::GPU_STATE_OFF);
  out->set_gpu_device(gpu.device);
  out->set_gpu_reason(gpu.off_reason);
  out->set_gpu_encodes(gpu.encodes);
  out->set_gpu_decodes(gpu.decodes);
  out->set_gpu_batches(gpu.batches);
  out->set_gpu_errors(gpu.errors);
  out->set_gpu_regions(engine.gpu_regions().count());
  out->set_gpu_region_bytes(engine.gpu_regions().bytes());
  for (size_t i = 0; i < kGpuFallbacks; ++i) {
    if (gpu.fallbacks[i] == 0) continue;
    v1::GpuFallbacks* fallback = out->add_fallbacks();
    fallback->set_reason(std::string(GpuFallbackName(static_cast<GpuFallback>(i))));
    fallback->set_jobs(gpu.fallbacks[i]);
  }
}

}  // namespace

namespace {

void FillLayoutState(CacheEngine& engine, const KnownLayout& known, v1::LayoutState* out) {
  out->set_fingerprint(ToHex(known.fingerprint));
  out->set_model(known.layout->model);
  out->set_learnt_tokens(engine.learning().LearntTokens(known.fingerprint));
  out->set_learning(engine.config().learn_profiles &&
                    engine.layouts().FindLearnable(known.fingerprint).has_value());
  for (const auto& [hash, kept] : known.profiles) {
    v1::ProfileState* profile = out->add_profiles();
    profile->set_hash(ToHex(hash));
    profile->set_version(kept.version);
    profile->set_in_use(hash == known.current_profile);
    profile->set_blocks(engine.catalog().ProfileUses(known.fingerprint, hash));
  }
}

}  // namespace

v1::StatsResponse Stats(CacheEngine& engine) {
  const StoreStats store = engine.store().Stats();
  const Metrics& metrics = engine.metrics();
  v1::StatsResponse out;
  out.set_blocks(store.blocks);
  out.set_sessions(engine.sessions().size());
  out.set_layouts(engine.layouts().size());
  out.set_stored_bytes(store.stored_bytes);
  out.set_raw_bytes(engine.catalog().raw_bytes());
  out.set_ratio(Ratio(out.raw_bytes(), out.stored_bytes()));
  out.set_memory_used_bytes(store.memory_used_bytes);
  out.set_memory_peak_bytes(store.memory_peak_bytes);
  out.set_memory_capacity_bytes(store.memory_capacity_bytes);
  out.set_pinned_blocks(store.pinned_blocks);
  out.set_puts(store.puts);
  out.set_duplicate_puts(store.duplicates + metrics.have_it.load());
  out.set_gets(metrics.gets.load());
  out.set_misses(metrics.misses.load());
  out.set_evicted_blocks(store.evicted_blocks);
  out.set_evicted_bytes(store.evicted_bytes);
  out.set_corrupt_blocks(metrics.corrupt_blocks.load());
  out.set_encode_bytes(metrics.encode_bytes.load());
  out.set_decode_bytes(metrics.decode_bytes.load());
  // Bytes a nanosecond are 10^9 bytes a second.
  const GpuStats gpu = engine.gpu() != nullptr ? engine.gpu()->stats() : GpuStats{};
  out.set_encode_gbps(
      Ratio(metrics.encode_bytes.load(), metrics.encode_busy_ns.load() + gpu.encode_cpu_ns));
  out.set_decode_gbps(
      Ratio(metrics.decode_bytes.load(), metrics.decode_busy_ns.load() + gpu.decode_cpu_ns));
  out.set_uptime_ms(engine.clock().MonotonicMs() - engine.start_ms());
  out.set_version(std::string(ServerVersion()));
  out.set_codec_backend(CodecInUse());
  out.set_open_streams(static_cast<uint64_t>(std::max<int64_t>(0, metrics.open_streams.load())));
  out.set_draining(engine.draining());
  FillDiskStats(engine, store, &out);
  FillCodecPaths(engine, out.mutable_codec_paths());
  for (const KnownLayout& known : engine.layouts().List()) {
    FillLayoutState(engine, known, out.add_layout_states());
  }
  return out;
}

}  // namespace latticekv
