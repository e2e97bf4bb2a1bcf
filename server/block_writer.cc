#include "server/block_writer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/frame_format.h"
#include "core/layout/chain_hash.h"
#include "server/error_detail.h"
#include "spdlog/spdlog.h"

namespace latticekv {
namespace {

size_t LargestLayerBytes(const Layout& layout, uint32_t tokens) {
  size_t largest = 0;
  for (const LayerSpec& layer : layout.layers) {
    size_t bytes = 0;
    for (const PlaneSpec& plane : layer.planes) bytes += plane.token_bytes();
    largest = std::max(largest, bytes);
  }
  return largest * tokens;
}

absl::Status BadPayload(std::string_view message) {
  return ErrorWith(absl::StatusCode::kInvalidArgument, v1::REASON_BAD_PAYLOAD, message);
}

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
  if (!m.token_ids.empty() && (!plan->parent_key || parent_free_hash)) {
    m.layout_free_hash = LayoutFreeHash(m.name_space, parent_free_hash, m.token_ids, m.salt);
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(const PutTarget& target, const v1::BlockHeader& header, BlockMetadata* m) {
  const uint32_t chunk = target.layout.chunk_tokens;
  if (header.token_ids_size() > static_cast<int>(chunk)) {
    return absl::InvalidArgumentError(absl::StrCat("the chunk has ", header.token_ids_size(),
                                                   " tokens; the namespace's chunks have at most ",
                                                   chunk));
  }
  if (header.token_ids_size() > 0) {
    m->token_ids.assign(header.token_ids().begin(), header.token_ids().end());
    m->tokens = static_cast<uint32_t>(m->token_ids.size());
    if (ChunkHash(m->fingerprint, m->parent_hash, m->token_ids, m->salt) != m->content_hash) {
      return absl::InvalidArgumentError(
          "content_hash is not the hash of fingerprint, parent, token ids and salt "
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

void FillAck(const BlockPlan& plan, const StoredBlock& block, const BlockMetadata& m,
             v1::BlockAck* ack) {
  ack->set_index(plan.index);
  ack->set_content_hash(DigestToBytes(m.content_hash));
  ack->set_stored_bytes(block.frame_bytes);
  ack->set_raw_bytes(m.raw_bytes);
  FillQuality(m.quality, ack->mutable_quality());
  ack->set_state(v1::BLOCK_STATE_MEMORY);
}

absl::Status JoinSession(CacheEngine& engine, const PutTarget& target, const BlockPlan& plan,
                         const BlockMetadata& m) {
  if (target.session.empty()) return absl::OkStatus();
  const SessionBlock block{plan.key,         m.content_hash, m.parent_hash,
                           m.start_position, m.tokens,       m.raw_bytes};
  return engine.sessions().Append({target.name_space, target.session}, target.layout.fingerprint,
                                  block, target.ttl_ms);
}

// A longer chunk makes shorter ones with the same leading tokens superfluous.
void DropSuperseded(CacheEngine& engine, const StoredBlock& block, const BlockMetadata& m) {
  if (m.token_ids.empty()) return;
  for (const BlockKey& key : engine.catalog().ShorterSiblings(m, block.parent)) {
    const StoredBlockPtr shorter = engine.store().Peek(key);
    if (!shorter || shorter->quality_rank > block.quality_rank) continue;
    if (engine.store().IsPinned(key) || !engine.sessions().Holders(key).empty()) continue;
    if (engine.store().HasChildren(key)) continue;
    engine.Remove(key, v1::REASON_NOT_STORED,
                  "superseded by a longer block that starts with the same tokens; look it up by "
                  "token ids");
  }
}

// The frame of a payload that never leaves the GPU but as a frame.
absl::StatusOr<ByteVector> EncodeOnGpu(CacheEngine& engine, const PutTarget& target,
                                       const BlockPlan& plan, const EncodeOptions& options) {
  auto frame = engine.gpu()->EncodeFrom({target.layout.layout,
                                         target.layout.profile,
                                         plan.metadata.tokens,
                                         options,
                                         {},
                                         plan.placement});
  if (!frame.ok()) return WithReason(frame.status(), v1::REASON_GPU);
  engine.metrics().encode_bytes += target.layout.layout->token_bytes() * plan.metadata.tokens;
  return frame;
}

// The frame of a raw payload.
absl::StatusOr<ByteVector> Encode(CacheEngine& engine, const PutTarget& target,
                                  const BlockPlan& plan, ByteSpan payload) {
  EncodeOptions options;
  options.preset = target.preset;
  options.profile = target.layout.profile.get();
  options.start_position = plan.metadata.start_position;
  options.exact_tokens = plan.exact_tokens;
  const Layout& layout = *target.layout.layout;
  const BusyTimer timer(engine.metrics().encode_busy_ns);
  if (plan.placement) return EncodeOnGpu(engine, target, plan, options);
  ByteVector frame;
  std::optional<ByteVector> by_gpu;
  if (engine.gpu() != nullptr) {
    by_gpu = engine.gpu()->Encode(
        {target.layout.layout, target.layout.profile, plan.metadata.tokens, options, payload});
  }
  if (by_gpu) {
    frame = *std::move(by_gpu);
  } else {
    ++engine.metrics().cpu_encodes;
    LKV_ASSIGN_OR_RETURN(
        frame, EncodeFrame(layout, plan.metadata.tokens,
                           RawChunkViews(layout, plan.metadata.tokens, payload), options));
  }
  engine.metrics().encode_bytes += payload.size();
  if (frame.capacity() > frame.size() + frame.size() / 16) frame.shrink_to_fit();
  return frame;
}

// Decodes every layer of a frame that a client made, to know that it can be served.
absl::Status CheckFrame(CacheEngine& engine, const PutTarget& target, const BlockPlan& plan,
                        ByteSpan frame) {
  const Layout& layout = *target.layout.layout;
  LKV_ASSIGN_OR_RETURN(const FrameInfo info, ReadFrameInfo(frame));
  std::shared_ptr<const ModelProfile> profile;
  if (info.needs_profile) {
    profile = engine.layouts().FindProfile(target.layout.fingerprint, info.profile_hash);
    if (!profile) {
      return ErrorWith(absl::StatusCode::kFailedPrecondition, v1::REASON_PROFILE_MISSING,
                       absl::StrCat("the frame needs profile ", ToHex(info.profile_hash),
                                    ", which is not registered; register it first"));
    }
  }
  if (info.start_position != plan.metadata.start_position ||
      info.tokens > target.layout.chunk_tokens ||
      (plan.metadata.tokens != 0 && info.tokens != plan.metadata.tokens)) {
    return BadPayload(absl::StrCat("the frame holds ", info.tokens, " tokens from position ",
                                   info.start_position, " and the header announced others"));
  }
  if (info.evicted_tokens > 0) {
    return BadPayload(
        "this daemon serves every token of a block; put a frame without evicted ones");
  }
  LKV_ASSIGN_OR_RETURN(const FrameDecoder decoder,
                       FrameDecoder::Open(frame, layout, profile.get()));
  const BusyTimer timer(engine.metrics().decode_busy_ns);
  engine.metrics().decode_bytes += layout.token_bytes() * info.tokens;
  const auto layers = static_cast<uint32_t>(layout.layers.size());
  if (engine.gpu() != nullptr && engine.gpu()->Decode({target.layout.layout,
                                                       profile,
                                                       frame,
                                                       nullptr,
                                                       info.preset,
                                                       info.tokens,
                                                       0,
                                                       layers,
                                                       {}})) {
    return absl::OkStatus();
  }
  ++engine.metrics().cpu_decodes;
  ByteVector scratch(LargestLayerBytes(layout, info.tokens));
  for (uint32_t layer = 0; layer < layers; ++layer) {
    std::vector<MutablePlaneView> planes;
    std::byte* at = scratch.data();
    for (const PlaneSpec& plane : layout.layers[layer].planes) {
      planes.push_back(ContiguousPlane(plane, at));
      at += plane.token_bytes() * info.tokens;
    }
    LKV_RETURN_IF_ERROR(decoder.DecodeLayer(layer, planes));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::BlockAck> Store(CacheEngine& engine, const PutTarget& target,
                                   const BlockPlan& plan, ByteVector payload, UploadTicket& ticket,
                                   const std::atomic<bool>& cancelled) {
  BlockMetadata m = plan.metadata;
  ByteVector frame;
  if (target.frames) {
    LKV_RETURN_IF_ERROR(
        WithReason(CheckFrame(engine, target, plan, payload), v1::REASON_BAD_PAYLOAD));
    frame = std::move(payload);
  } else {
    auto encoded = Encode(engine, target, plan, payload);
    if (!encoded.ok()) return WithReason(encoded.status(), v1::REASON_BAD_PAYLOAD);
    frame = *std::move(encoded);
    payload = {};
  }
  LKV_ASSIGN_OR_RETURN(const FrameInfo info, ReadFrameInfo(frame));
  m.tokens = info.tokens;
  m.raw_bytes = target.layout.layout->token_bytes() * info.tokens;
  m.preset = info.preset;
  m.quality = info.quality;
  // With attention mass a reader's bounds must hold for the coarse vectors too.
  m.quality.logit_noise = std::max(info.quality.logit_noise, info.quality.coarse_logit_noise);
  m.quality.value_error = std::max(info.quality.value_error, info.quality.coarse_value_error);
  m.frame_crc32c = Crc32c(frame);
  if (info.needs_profile) m.profile_hash = info.profile_hash;

  StoredBlock block;
  block.key = plan.key;
  block.parent = plan.parent_key;
  block.depth_tokens = static_cast<uint32_t>(
      std::min<uint64_t>(m.start_position + m.tokens, std::numeric_limits<uint32_t>::max()));
  block.frame = std::move(frame);
  block.metadata = SerializeMetadata(m);
  block.quality_rank = QualityRank(m.preset);
  block.reservation = ticket.TakeReservation();
  const size_t bytes = TieredStore::EntryBytes(block.frame.size(), block.metadata.size()) +
                       BlockCatalog::EntryBytes(m.token_ids.size());
  if (block.reservation.bytes() < bytes) {
    block.reservation.Release();
    auto reservation = engine.store().Reserve(bytes);
    if (!reservation.ok()) return WithReason(reservation.status(), v1::REASON_MEMORY_FULL);
    block.reservation = *std::move(reservation);
  }
  block.reservation.ShrinkTo(bytes);
  if (cancelled.load()) return absl::CancelledError("the stream was cancelled");

  // A durable block's acknowledgement comes from FinishDurable, which is told of this write.
  PutOptions options;
  if (target.durable) {
    options.durability = Durability::kDurable;
    options.on_durable = [](const absl::Status&) {};
  }
  LKV_ASSIGN_OR_RETURN(const PutResult put,
                       engine.store().Put(std::move(block), std::move(options)));
  v1::BlockAck ack;
  if (put.stored) {
    engine.catalog().OnStored(put.block, m, target.ttl_ms);
  } else {
    LKV_ASSIGN_OR_RETURN(m, ParseMetadata(put.block->metadata));
    engine.catalog().ExtendTtl(plan.key, target.ttl_ms);
    ack.set_have_it(true);
  }
  LKV_RETURN_IF_ERROR(JoinSession(engine, target, plan, m));
  DropSuperseded(engine, *put.block, m);
  FillAck(plan, *put.block, m, &ack);
  return ack;
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
  LKV_RETURN_IF_ERROR(CheckTokens(target, header, &m));
  LKV_RETURN_IF_ERROR(CheckPosition(engine, target, &plan));
  LKV_RETURN_IF_ERROR(CheckPayloadSize(engine, target, &plan));
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

std::optional<v1::BlockAck> AckIfStored(CacheEngine& engine, const PutTarget& target,
                                        const BlockPlan& plan) {
  const auto found = engine.Find(plan.key);
  if (!found || found->block->quality_rank < QualityRank(target.preset)) return std::nullopt;
  ++engine.metrics().have_it;
  engine.store().Touch(plan.key);
  engine.catalog().ExtendTtl(plan.key, target.ttl_ms);
  if (auto joined = JoinSession(engine, target, plan, found->metadata); !joined.ok()) {
    return ErrorAck(plan.index, AsText(plan.metadata.content_hash), joined);
  }
  v1::BlockAck ack;
  FillAck(plan, *found->block, found->metadata, &ack);
  ack.set_have_it(true);
  return ack;
}

v1::BlockAck StoreBlock(CacheEngine& engine, const PutTarget& target, const BlockPlan& plan,
                        ByteVector payload, UploadTicket ticket,
                        const std::atomic<bool>& cancelled) {
  auto ack = Store(engine, target, plan, std::move(payload), ticket, cancelled);
  if (ack.ok()) return *std::move(ack);
  if (!absl::IsCancelled(ack.status())) {
    spdlog::warn("block {} was not stored: {}", ToHex(plan.metadata.content_hash),
                 std::string(ack.status().message()));
  }
  return ErrorAck(plan.index, AsText(plan.metadata.content_hash), ack.status());
}

void FinishDurable(CacheEngine& engine, const BlockPlan& plan, v1::BlockAck ack, AckDone done) {
  if (ack.has_error()) {
    done(std::move(ack));
    return;
  }
  const auto finish = [ack = std::move(ack), done = std::move(done)](const absl::Status& status) {
    v1::BlockAck out = ack;
    if (status.ok()) {
      out.set_state(v1::BLOCK_STATE_DURABLE);
    } else {
      *out.mutable_error() = DetailOf(WithReason(
          absl::Status(status.code(), absl::StrCat("the block is in memory and not durable: ",
                                                   std::string(status.message()))),
          v1::REASON_DISK));
    }
    done(std::move(out));
  };
  // The session's and the layout's records were appended before this.
  engine.store().MakeDurable(plan.key, [&engine, finish](const absl::Status& status) {
    if (status.ok()) {
      engine.WhenStateDurable(finish);
    } else {
      finish(status);
    }
  });
}

v1::BlockAck ErrorAck(uint32_t index, std::string_view content_hash, const absl::Status& error) {
  v1::BlockAck ack;
  ack.set_index(index);
  ack.set_content_hash(std::string(content_hash));
  *ack.mutable_error() = DetailOf(error);
  return ack;
}

}  // namespace latticekv
