#include "server/block_writer.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/base/thread_time.h"
#include "core/codec/shared_planes.h"
#include "server/block_plan.h"
#include "server/error_detail.h"
#include "spdlog/spdlog.h"

namespace latticekv {
namespace {

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
    engine.Remove(key, Removal::kSuperseded);
  }
}

// The frame of a payload that never leaves the GPU but as a frame.
absl::StatusOr<ByteVector> EncodeOnGpu(CacheEngine& engine, const PutTarget& target,
                                       const BlockPlan& plan,
                                       const std::shared_ptr<const ModelProfile>& profile,
                                       const EncodeOptions& options) {
  auto frame = engine.gpu()->EncodeFrom(
      {target.layout.layout, profile, plan.metadata.tokens, options, {}, plan.placement});
  if (!frame.ok()) return WithReason(frame.status(), v1::REASON_GPU);
  engine.metrics().encode_bytes += target.layout.layout->token_bytes() * plan.metadata.tokens;
  return frame;
}

// Codec threads that have nothing to do encode layers of a chunk that another encodes, so that one
// writer by itself is not held to one core a chunk.
class IdleCodecThreads : public LayerRunner {
 public:
  explicit IdleCodecThreads(CacheEngine& engine) : engine_(engine) {}

  void Run(size_t count, const std::function<void(size_t)>& work) const override {
    const std::thread::id caller = std::this_thread::get_id();
    engine_.codec_pool().Share(count, [&](size_t i) {
      if (std::this_thread::get_id() == caller) {  // whose time is taken already
        work(i);
        return;
      }
      const BusyTimer timer(engine_.metrics().encode_busy_ns);
      work(i);
    });
  }

 private:
  CacheEngine& engine_;
};

// The frame of a raw payload.
absl::StatusOr<ByteVector> Encode(CacheEngine& engine, const PutTarget& target,
                                  const BlockPlan& plan,
                                  const std::shared_ptr<const ModelProfile>& profile,
                                  const Payload& payload) {
  const ByteSpan raw = payload.bytes();
  EncodeOptions options;
  options.preset = target.preset;
  options.profile = profile.get();
  options.start_position = plan.metadata.start_position;
  options.exact_tokens = plan.exact_tokens;
  options.seed = target.seed;
  options.keep = plan.keep;
  if (!plan.attention_mass.empty()) {
    options.mass = {plan.attention_mass.data(), plan.metadata.tokens, plan.mass_queries,
                    plan.mass_levels.empty() ? nullptr : plan.mass_levels.data()};
  }
  const Layout& layout = *target.layout.layout;
  const IdleCodecThreads threads(engine);
  options.runner = &threads;
  const BusyTimer timer(engine.metrics().encode_busy_ns);
  if (plan.placement) return EncodeOnGpu(engine, target, plan, profile, options);
  ByteVector frame;
  std::optional<ByteVector> by_gpu;
  if (engine.gpu() != nullptr) {
    // Which reads it once, into memory of its own.
    by_gpu = engine.gpu()->Encode(
        {target.layout.layout, profile, plan.metadata.tokens, options, raw, nullptr});
  }
  if (by_gpu) {
    frame = *std::move(by_gpu);
  } else {
    ++engine.metrics().cpu_encodes;
    const uint32_t tokens = plan.metadata.tokens;
    LKV_ASSIGN_OR_RETURN(
        frame, payload.region
                   ? EncodeSharedFrame(layout, tokens, raw, options)
                   : EncodeFrame(layout, tokens, RawChunkViews(layout, tokens, raw), options));
  }
  engine.metrics().encode_bytes += raw.size();
  if (frame.capacity() > frame.size() + frame.size() / 16) frame.shrink_to_fit();
  return frame;
}

// Gives the payload of a block that was encoded to whom it teaches, with its part of `reservation`;
// leaves it where nobody wants it.
void Teach(CacheEngine& engine, const PutTarget& target, const BlockPlan& plan, Payload& payload,
           Reservation& reservation) {
  const uint32_t tokens = plan.metadata.tokens;
  const ByteSpan raw = payload.bytes();
  if (!engine.learning().Wants(target.layout.fingerprint, tokens, raw.size())) return;
  ProfileLearning::Chunk chunk;
  chunk.fingerprint = target.layout.fingerprint;
  chunk.layout = target.layout.layout;
  chunk.tokens = tokens;
  chunk.start_position = plan.metadata.start_position;
  chunk.preset = target.preset;
  chunk.keep = plan.keep;
  chunk.memory = reservation.Split(raw.size());
  if (payload.region) {
    chunk.payload.assign(raw.begin(), raw.end());
  } else {
    chunk.payload = std::move(payload.own);
  }
  engine.learning().Learn(std::move(chunk));
}

// Decodes every layer of a frame that a client made, to know that it can be served. Sets the
// profile it needs, if any, to be held until the block is stored.
absl::Status CheckFrame(CacheEngine& engine, const PutTarget& target, const BlockPlan& plan,
                        ByteSpan frame, std::shared_ptr<const ModelProfile>& profile) {
  const Layout& layout = *target.layout.layout;
  LKV_ASSIGN_OR_RETURN(const FrameInfo info, ReadFrameInfo(frame));
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
  // The tokens' name must not find a block that lacks some of them.
  if (info.keep != plan.keep) {
    return BadPayload(
        "the frame keeps other tokens than its header said; send its own mask in keep");
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
                                   const BlockPlan& plan, Payload payload, UploadTicket& ticket,
                                   const std::atomic<bool>& cancelled) {
  BlockMetadata m = plan.metadata;
  ByteVector frame;
  // Held until the block is stored, and so counted: until then it is not dropped.
  std::shared_ptr<const ModelProfile> profile;
  if (target.frames) {
    LKV_RETURN_IF_ERROR(
        WithReason(CheckFrame(engine, target, plan, payload.own, profile), v1::REASON_BAD_PAYLOAD));
    frame = std::exchange(payload.own, {});
  } else {
    // A new version may have been learnt since the stream began.
    profile = engine.layouts().CurrentProfile(target.layout.fingerprint);
    auto encoded = Encode(engine, target, plan, profile, payload);
    if (!encoded.ok()) return WithReason(encoded.status(), v1::REASON_BAD_PAYLOAD);
    frame = *std::move(encoded);
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
  block.quality_rank = QualityRank(m.preset, target.seed);
  block.reservation = ticket.TakeReservation();
  const size_t bytes = TieredStore::EntryBytes(block.frame.size(), block.metadata.size()) +
                       BlockCatalog::EntryBytes(m.token_ids.size());
  if (block.reservation.bytes() < bytes) {
    block.reservation.Release();
    auto reservation = engine.store().Reserve(bytes);
    if (!reservation.ok()) return WithReason(reservation.status(), v1::REASON_MEMORY_FULL);
    block.reservation = *std::move(reservation);
  }
  const size_t raw_bytes = payload.bytes().size();
  if (block.reservation.bytes() >= bytes + raw_bytes && raw_bytes > 0) {
    Reservation rest = block.reservation.Split(block.reservation.bytes() - bytes);
    Teach(engine, target, plan, payload, rest);
  }
  engine.staging().Give(std::exchange(payload.own, {}));
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

std::optional<v1::BlockAck> AckIfStored(CacheEngine& engine, const PutTarget& target,
                                        const BlockPlan& plan) {
  const auto found = engine.Find(plan.key);
  if (!found || found->block->quality_rank < QualityRank(target.preset, target.seed))
    return std::nullopt;
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
                        Payload payload, UploadTicket ticket, const std::atomic<bool>& cancelled) {
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
