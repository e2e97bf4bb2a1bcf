#include "server/block_reader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/base/thread_time.h"
#include "core/codec/frame_format.h"
#include "server/error_detail.h"

namespace latticekv {
namespace {

// Header, table and optional sections of most frames.
constexpr size_t kFramePrefixReadBytes = 4096;
// Of the memory, for blocks that one request brings in from disk; it reads the rest layer by layer.
constexpr size_t kPromotedShare = 4;

v1::ErrorDetail Miss(v1::Reason reason, std::string message) {
  v1::ErrorDetail miss;
  miss.set_reason(reason);
  miss.set_message(std::move(message));
  return miss;
}

absl::StatusOr<std::vector<Digest>> HashesOf(CacheEngine& engine, std::string_view name_space,
                                             const v1::GetBlocksRequest& request) {
  std::vector<Digest> hashes;
  if (!request.session().empty()) {
    if (request.content_hashes_size() > 0) {
      return absl::InvalidArgumentError("give content_hashes or a session, not both");
    }
    const SessionId id{std::string(name_space), request.session()};
    const auto session = engine.sessions().Get(id);
    if (!session) {
      return ErrorWith(
          absl::StatusCode::kNotFound, v1::REASON_NOT_STORED,
          absl::StrCat("there is no session '", request.session(), "' in namespace '",
                       std::string(name_space), "'; ListSessions shows what there is"));
    }
    engine.sessions().MarkUsed(id);
    for (const SessionBlock& block : session->blocks) hashes.push_back(block.content_hash);
    return hashes;
  }
  if (request.content_hashes_size() > static_cast<int>(limits::kMaxBlocksPerRequest)) {
    return LimitError("kMaxBlocksPerRequest",
                      absl::StrCat("the request names ", request.content_hashes_size(),
                                   " blocks; ask for at most ", limits::kMaxBlocksPerRequest));
  }
  for (const std::string& bytes : request.content_hashes()) {
    LKV_ASSIGN_OR_RETURN(const Digest hash, DigestFromBytes(bytes, "content_hashes"));
    hashes.push_back(hash);
  }
  return hashes;
}

// The leading bytes of a frame on disk, up to its first layer.
absl::StatusOr<ByteVector> ReadFramePrefix(const StoredBlock& block) {
  ByteVector prefix = block.source->TakeHead();
  if (prefix.size() < kFrameHeaderBytes) {
    prefix.resize(std::min<size_t>(block.frame_bytes, kFramePrefixReadBytes));
    LKV_RETURN_IF_ERROR(block.ReadFrame(0, prefix));
  }
  if (prefix.size() < kFrameHeaderBytes) return prefix;
  const uint64_t wanted = FramePrefixBytes(prefix);
  if (wanted <= prefix.size() || wanted > block.frame_bytes) return prefix;
  prefix.resize(wanted);
  LKV_RETURN_IF_ERROR(block.ReadFrame(0, prefix));
  return prefix;
}

absl::StatusOr<FrameDecoder> OpenDecoder(const ReadBlock& block) {
  if (!block.on_disk()) {
    return FrameDecoder::Open(block.block->frame, *block.layout, block.profile.get());
  }
  LKV_ASSIGN_OR_RETURN(const ByteVector prefix, ReadFramePrefix(*block.block));
  return FrameDecoder::OpenPrefix(prefix, block.block->frame_bytes, *block.layout,
                                  block.profile.get());
}

// Sets layout, profile and decoder, or the reason why the block cannot be served.
void OpenBlock(CacheEngine& engine, ReadBlock* out) {
  const auto lose = [&](v1::ErrorDetail miss) {
    out->miss = std::move(miss);
    out->block.reset();
  };
  out->layout = engine.layouts().FindLayout(out->metadata.fingerprint);
  if (!out->layout) {
    return lose(Miss(v1::REASON_UNKNOWN_LAYOUT, "its layout is not registered; register it again"));
  }
  const Digest& profile_hash = out->metadata.profile_hash;
  if (profile_hash != Digest{}) {
    out->profile = engine.layouts().FindProfile(out->metadata.fingerprint, profile_hash);
    if (!out->profile) {
      return lose(Miss(
          v1::REASON_PROFILE_MISSING,
          absl::StrCat("it needs profile ", ToHex(profile_hash), "; register it with the layout")));
    }
  }
  auto decoder = OpenDecoder(*out);
  if (absl::IsUnavailable(decoder.status())) {
    return lose(Miss(v1::REASON_DISK, std::string(decoder.status().message())));
  }
  if (!decoder.ok() || decoder->info().tokens != out->metadata.tokens) {
    engine.DropCorrupt(out->block, std::string(decoder.status().message()));
    return lose(Miss(v1::REASON_CORRUPT, "the stored bytes were damaged and were dropped"));
  }
  out->decoder.emplace(*std::move(decoder));
  uint64_t offset = 0;
  for (const LayerSpec& layer : out->layout->layers) {
    out->layer_offsets.push_back(offset);
    for (const PlaneSpec& plane : layer.planes) {
      offset += plane.token_bytes() * out->metadata.tokens;
    }
  }
  out->layer_offsets.push_back(offset);
}

void Resolve(CacheEngine& engine, std::string_view name_space,
             const std::optional<Digest>& fingerprint, const v1::GetBlocksRequest& request,
             StoredBlockPtr stored, ReadBlock* out) {
  const BlockKey key = engine.KeyOf(name_space, out->content_hash);
  auto found = engine.Describe(std::move(stored));
  if (!found) {
    out->miss = engine.ExplainAbsence(key);
    return;
  }
  if (fingerprint && found->metadata.fingerprint != *fingerprint) {
    out->miss = Miss(v1::REASON_OTHER_LAYOUT, "stored under another layout than the one asked for");
    return;
  }
  const absl::Status accepted =
      CheckAccepted(found->metadata, request.bounds(), request.accept_evicted());
  if (!accepted.ok()) {
    out->miss = DetailOf(accepted);
    return;
  }
  // What was found is held, and stays right when it is replaced or evicted now.
  out->block = found->block;
  out->metadata = std::move(found->metadata);
  out->pinned = engine.store().IsPinned(key);
  if (out->on_disk()) {
    engine.store().Touch(key);
  } else {
    engine.store().Get(key);
  }
  OpenBlock(engine, out);
}

// Blocks of a session are acknowledged in any order, and one may have failed: what does not follow
// the block before it is no part of a prefix (yet).
void EndAtHole(const ReadPlan& plan, ReadBlock* block) {
  if (plan.blocks.empty()) return;
  const ReadBlock& before = *plan.blocks.back();
  if (before.block &&
      before.metadata.start_position + before.metadata.tokens == block->metadata.start_position) {
    return;
  }
  block->block.reset();
  block->decoder.reset();
  block->miss = Miss(v1::REASON_NOT_STORED,
                     absl::StrCat("the chunk before position ", block->metadata.start_position,
                                  " is not stored; put it again"));
}

// Of reads into GPU memory.
absl::Status FindTarget(CacheEngine& engine, const v1::GetBlocksRequest& request, ReadPlan* plan) {
  if (plan->frames || request.first_layer() != 0 || request.layer_count() != 0) {
    return absl::InvalidArgumentError("a target takes whole blocks; ask for RAW and all layers");
  }
  plan->target = engine.gpu_regions().Find(request.target().region_id());
  if (plan->target) return absl::OkStatus();
  return NoSuchGpuRegion();
}

absl::Status PlanPlace(const ReadPlan& plan, const v1::GetBlocksRequest& request,
                       ReadBlock* block) {
  const BlockMetadata& m = block->metadata;
  if (m.fingerprint == plan.target->fingerprint()) {
    LKV_ASSIGN_OR_RETURN(block->placement,
                         plan.target->Place(request.target().table(), m.start_position, m.tokens));
    return absl::OkStatus();
  }
  block->block.reset();
  block->decoder.reset();
  block->miss =
      Miss(v1::REASON_OTHER_LAYOUT, "stored under another layout than that of the GPU memory");
  return absl::OkStatus();
}

// Chooses what comes into memory whole: as much as one request may, and all of them together.
void ChoosePromoted(CacheEngine& engine, ReadPlan* plan) {
  const size_t most = engine.config().memory_bytes / kPromotedShare;
  size_t bytes = 0, count = 0;
  for (const auto& block : plan->blocks) {
    if (!block->on_disk()) continue;
    if (++count > limits::kMaxReadAheadBlocks || block->block->frame_bytes > most - bytes) break;
    bytes += block->block->frame_bytes;
    block->promote = true;
  }
  if (engine.promotions().TryReserve(bytes, &plan->promoted)) return;
  for (const auto& block : plan->blocks) block->promote = false;
}

}  // namespace

absl::StatusOr<ReadPlan> PlanRead(CacheEngine& engine, const v1::GetBlocksRequest& request) {
  ReadPlan plan;
  LKV_ASSIGN_OR_RETURN(const std::string name_space, NamespaceOrDefault(request.namespace_()));
  std::optional<Digest> fingerprint;
  bool layout_known = true;
  if (!request.fingerprint().empty()) {
    LKV_ASSIGN_OR_RETURN(fingerprint, DigestFromBytes(request.fingerprint(), "fingerprint"));
    layout_known = engine.layouts().Find(name_space, *fingerprint).ok();
  }
  if (!v1::Encoding_IsValid(request.encoding())) {
    return absl::InvalidArgumentError("unknown encoding; use RAW or FRAME");
  }
  plan.frames = request.encoding() == v1::ENCODING_FRAME;
  if (plan.frames && (request.first_layer() != 0 || request.layer_count() != 0)) {
    return absl::InvalidArgumentError("layers can be chosen with RAW only; frames come whole");
  }
  if (request.has_target()) LKV_RETURN_IF_ERROR(FindTarget(engine, request, &plan));
  LKV_ASSIGN_OR_RETURN(const auto hashes, HashesOf(engine, name_space, request));
  plan.first_layer = request.first_layer();
  plan.end_layer = plan.first_layer;
  std::vector<StoredBlockPtr> stored(hashes.size());
  if (layout_known) {
    std::vector<BlockKey> keys;
    for (const Digest& hash : hashes) keys.push_back(engine.KeyOf(name_space, hash));
    stored = engine.store().PeekMany(keys);
  }
  for (size_t i = 0; i < hashes.size(); ++i) {
    auto block = std::make_unique<ReadBlock>();
    block->index = static_cast<uint32_t>(i);
    block->content_hash = hashes[i];
    if (layout_known) {
      Resolve(engine, name_space, fingerprint, request, std::move(stored[i]), block.get());
    } else {
      block->miss =
          Miss(v1::REASON_UNKNOWN_LAYOUT, absl::StrCat("layout ", ToHex(*fingerprint),
                                                       " is not registered in "
                                                       "namespace '",
                                                       name_space, "'; register it first"));
    }
    if (block->block && !request.session().empty()) EndAtHole(plan, block.get());
    if (block->block && plan.target) LKV_RETURN_IF_ERROR(PlanPlace(plan, request, block.get()));
    if (block->block) {
      const auto layers = static_cast<uint32_t>(block->layout->layers.size());
      if (plan.first_layer >= layers) {
        return absl::InvalidArgumentError(absl::StrCat("first_layer is ", plan.first_layer,
                                                       " and the layout has ", layers, " layers"));
      }
      const uint32_t end =
          request.layer_count() == 0
              ? layers
              : std::min<uint64_t>(layers, uint64_t{plan.first_layer} + request.layer_count());
      plan.end_layer = std::max(plan.end_layer, end);
      block->payload_bytes =
          plan.frames ? block->block->frame_bytes
                      : block->layer_offsets[end] - block->layer_offsets[plan.first_layer];
      ++engine.metrics().gets;
    } else {
      ++engine.metrics().misses;
    }
    plan.blocks.push_back(std::move(block));
  }
  const bool all_layers = request.first_layer() == 0 && request.layer_count() == 0;
  if (all_layers) ChoosePromoted(engine, &plan);
  return plan;
}

absl::StatusOr<FrameInfo> StoredFrameInfo(const StoredBlock& block) {
  if (block.tier() == Tier::kMemory) return ReadFrameInfo(block.frame);
  LKV_ASSIGN_OR_RETURN(const ByteVector prefix, ReadFramePrefix(block));
  return ReadFrameInfo(prefix, block.frame_bytes);
}

StoredBlockPtr LoadBlock(TieredStore& store, const ReadBlock& block) {
  StoredBlockPtr read = store.Get(block.block->key);
  const bool same = read && read->version == block.block->version && read->tier() == Tier::kMemory;
  return same ? read : nullptr;
}

absl::StatusOr<StoredBytes> ReadStored(CacheEngine& engine, const ReadBlock& block,
                                       std::optional<uint32_t> layer) {
  StoredBytes out;
  out.read.resize(layer ? block.decoder->info().layer_bytes[*layer] : block.block->frame_bytes);
  const absl::Status read =
      block.block->ReadFrame(layer ? block.decoder->layer_offset(*layer) : 0, out.read);
  if (read.ok()) return out;
  if (absl::IsDataLoss(read)) engine.DropCorrupt(block.block, std::string(read.message()));
  return read;
}

void FillBlockOpen(const ReadBlock& block, v1::BlockOpen* out) {
  out->set_index(block.index);
  if (!block.block) {
    out->mutable_block()->set_content_hash(DigestToBytes(block.content_hash));
    *out->mutable_miss() = block.miss;
    return;
  }
  FillBlockInfo(block.metadata, *block.block, block.pinned, out->mutable_block());
  out->mutable_token_ids()->Add(block.metadata.token_ids.begin(), block.metadata.token_ids.end());
  out->set_payload_bytes(block.payload_bytes);
  const std::vector<uint8_t>& keep = block.decoder->info().keep;
  out->mutable_keep()->assign(keep.begin(), keep.end());
}

size_t LayerBytes(const ReadBlock& block, uint32_t layer) {
  if (layer + 1 >= block.layer_offsets.size()) return 0;
  return block.layer_offsets[layer + 1] - block.layer_offsets[layer];
}

size_t LayerMemoryBytes(const ReadBlock& block, uint32_t layer) {
  const size_t bytes = LayerBytes(block, layer);
  if (bytes == 0 || !block.on_disk()) return bytes;
  return bytes + block.decoder->info().layer_bytes[layer];
}

namespace {

// Whether a GPU did it; it takes whole frames, so those in memory.
bool DecodeOnGpu(CacheEngine& engine, const ReadBlock& block, const StoredBlockPtr& in_memory,
                 uint32_t layer, std::span<const MutableByteSpan> out) {
  if (engine.gpu() == nullptr || !in_memory) return false;
  return engine.gpu()->Decode({block.layout, block.profile, in_memory->frame, in_memory,
                               block.decoder->info().preset, block.metadata.tokens, layer, 1, out});
}

// `out` has the layer's planes, contiguous.
absl::Status DecodeInto(CacheEngine& engine, const ReadBlock& block, uint32_t layer,
                        const StoredBytes& stored, std::span<const MutableByteSpan> out) {
  const BusyTimer timer(engine.metrics().decode_busy_ns);
  if (DecodeOnGpu(engine, block, stored.in_memory, layer, out)) return absl::OkStatus();
  ++engine.metrics().cpu_decodes;
  std::vector<MutablePlaneView> views;
  for (size_t p = 0; p < out.size(); ++p) {
    views.push_back(ContiguousPlane(block.layout->layers[layer].planes[p], out[p].data()));
  }
  if (!block.on_disk()) return block.decoder->DecodeLayer(layer, views);
  const ByteSpan bytes = stored.in_memory ? ByteSpan(stored.in_memory->frame)
                                                .subspan(block.decoder->layer_offset(layer),
                                                         block.decoder->info().layer_bytes[layer])
                                          : ByteSpan(stored.read);
  return block.decoder->DecodeLayerBytes(layer, bytes, views);
}

}  // namespace

absl::Status DecodeLayer(CacheEngine& engine, const ReadBlock& block, uint32_t layer,
                         const StoredBytes& stored, std::span<const MutableByteSpan> out) {
  const absl::Status decoded = DecodeInto(engine, block, layer, stored, out);
  if (decoded.ok()) {
    engine.metrics().decode_bytes += LayerBytes(block, layer);
  } else {
    engine.DropCorrupt(block.block, std::string(decoded.message()));
  }
  return decoded;
}

absl::StatusOr<std::vector<v1::GetPart>> ReadLayer(CacheEngine& engine, const ReadBlock& block,
                                                   uint32_t layer, const StoredBytes& stored) {
  const uint32_t tokens = block.metadata.tokens;
  const auto& planes = block.layout->layers[layer].planes;
  std::vector<std::string> buffers(planes.size());
  std::vector<MutableByteSpan> out;
  for (size_t p = 0; p < planes.size(); ++p) {
    buffers[p].resize(planes[p].token_bytes() * tokens);
    out.push_back({reinterpret_cast<std::byte*>(buffers[p].data()), buffers[p].size()});
  }
  LKV_RETURN_IF_ERROR(DecodeLayer(engine, block, layer, stored, out));
  std::vector<v1::GetPart> parts;
  uint64_t offset = block.layer_offsets[layer];
  for (size_t p = 0; p < planes.size(); ++p) {
    const size_t step = limits::kMaxPartBytes / planes[p].token_bytes() * planes[p].token_bytes();
    const size_t size = buffers[p].size();
    for (size_t at = 0; at < size; at += step) {
      v1::GetPart& part = parts.emplace_back();
      part.set_index(block.index);
      part.set_layer(layer);
      part.set_plane(static_cast<uint32_t>(p));
      part.set_offset(offset + at);
      if (size <= step) {
        part.set_data(std::move(buffers[p]));
      } else {
        part.set_data(buffers[p].data() + at, std::min(step, size - at));
      }
      part.set_crc32c(Crc32c(AsBytes(part.data())));
    }
    offset += size;
  }
  return parts;
}

absl::Status PlaceBlock(CacheEngine& engine, const ReadBlock& block, const StoredBytes& stored) {
  GpuDecodeRequest request;
  request.layout = block.layout;
  request.profile = block.profile;
  request.frame = stored.frame();
  request.frame_owner = stored.in_memory;
  request.preset = block.decoder->info().preset;
  request.tokens = block.metadata.tokens;
  request.layers = static_cast<uint32_t>(block.layout->layers.size());
  request.placement = block.placement;
  const absl::Status placed = engine.gpu()->DecodeTo(request);
  if (placed.ok()) {
    engine.metrics().decode_bytes += block.metadata.raw_bytes;
    return placed;
  }
  if (absl::IsDataLoss(placed)) {
    // What the device refused is for a CPU to judge.
    ByteVector raw(block.metadata.raw_bytes);
    auto decoder = FrameDecoder::Open(stored.frame(), *block.layout, block.profile.get());
    const absl::Status sound =
        decoder.ok() ? DecodeFrame(*decoder, *block.layout, raw) : decoder.status();
    if (!sound.ok()) {
      engine.DropCorrupt(block.block, std::string(sound.message()));
      return sound;
    }
  }
  return WithReason(absl::FailedPreconditionError(placed.message()), v1::REASON_GPU);
}

absl::Status CheckStoredFrame(CacheEngine& engine, const ReadBlock& block,
                              const StoredBytes& stored) {
  if (Crc32c(stored.frame()) == block.metadata.frame_crc32c) return absl::OkStatus();
  engine.DropCorrupt(stored.in_memory ? stored.in_memory : block.block, "frame checksum");
  return absl::DataLossError("the stored frame's checksum is wrong");
}

v1::GetPart FramePart(uint32_t index, ByteSpan frame, uint64_t offset) {
  const size_t size = std::min<size_t>(limits::kMaxPartBytes, frame.size() - offset);
  v1::GetPart part;
  part.set_index(index);
  part.set_offset(offset);
  part.set_data(frame.data() + offset, size);
  part.set_crc32c(Crc32c(AsBytes(part.data())));
  return part;
}

absl::Status VerifyBlock(CacheEngine& engine, const StoredBlockPtr& stored) {
  auto metadata = ParseMetadata(stored->metadata);
  if (!metadata.ok()) {
    engine.DropCorrupt(stored, std::string(metadata.status().message()));
    return metadata.status();
  }
  ReadBlock block;
  block.block = stored;
  block.metadata = *std::move(metadata);
  const StoredBytes in_memory{stored, {}};
  LKV_RETURN_IF_ERROR(CheckStoredFrame(engine, block, in_memory));
  OpenBlock(engine, &block);
  if (!block.block) {
    return block.miss.reason() == v1::REASON_CORRUPT
               ? absl::DataLossError(block.miss.message())
               : absl::FailedPreconditionError(block.miss.message());
  }
  for (uint32_t layer = 0; layer < block.layout->layers.size(); ++layer) {
    LKV_RETURN_IF_ERROR(ReadLayer(engine, block, layer, in_memory).status());
  }
  return absl::OkStatus();
}

}  // namespace latticekv
