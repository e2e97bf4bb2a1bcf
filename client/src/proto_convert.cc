#include "client/src/proto_convert.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "proto/rope_proto.h"

namespace latticekv {
namespace {

v1::LayerLayout LayerToProto(const LayerSpec& layer) {
  v1::LayerLayout out;
  for (const PlaneSpec& plane : layer.planes) {
    v1::PlaneLayout* p = out.add_planes();
    p->set_name(plane.name);
    p->set_role(static_cast<v1::PlaneRole>(plane.role));
    p->set_heads(plane.heads);
    p->set_head_dim(plane.head_dim);
    p->set_dtype(static_cast<v1::DType>(plane.dtype));
    RopeToProto(plane.rope, p);
  }
  return out;
}

PlaneSpec PlaneFromProto(const v1::PlaneLayout& p) {
  PlaneSpec plane;
  plane.name = p.name();
  plane.role = static_cast<PlaneRole>(p.role());
  plane.heads = p.heads();
  plane.head_dim = p.head_dim();
  plane.dtype = static_cast<DType>(p.dtype());
  plane.rope = RopeFromProto(p.rope());
  return plane;
}

Tier TierFromProto(v1::Tier tier) {
  switch (tier) {
    case v1::TIER_MEMORY:
      return Tier::kMemory;
    case v1::TIER_DISK:
      return Tier::kDisk;
    default:
      return Tier::kUnspecified;
  }
}

}  // namespace

std::optional<Digest> ToDigest(const std::string& bytes) {
  Digest out;
  if (bytes.size() != out.size()) return std::nullopt;
  std::copy_n(AsBytes(bytes).begin(), out.size(), out.begin());
  return out;
}

v1::Layout ToProto(const Layout& layout) {
  v1::Layout out;
  out.set_model(layout.model);
  out.set_revision(layout.revision);
  for (size_t l = 0; l < layout.layers.size();) {
    size_t end = l + 1;
    while (end < layout.layers.size() && layout.layers[end] == layout.layers[l]) ++end;
    v1::LayerLayout* layer = out.add_layers();
    *layer = LayerToProto(layout.layers[l]);
    layer->set_repeat(static_cast<uint32_t>(end - l));
    l = end;
  }
  return out;
}

absl::StatusOr<Layout> FromProto(const v1::Layout& proto) {
  Layout layout;
  layout.model = proto.model();
  layout.revision = proto.revision();
  for (const v1::LayerLayout& l : proto.layers()) {
    LayerSpec layer;
    for (const v1::PlaneLayout& p : l.planes()) {
      layer.planes.push_back(PlaneFromProto(p));
      if (layer.planes.size() > limits::kMaxPlanesPerLayer) break;  // refused below
    }
    const uint32_t repeat = std::max(l.repeat(), 1u);
    if (repeat > limits::kMaxLayers - std::min<size_t>(layout.layers.size(), limits::kMaxLayers)) {
      return absl::DataLossError("the server's layout has more layers than kMaxLayers");
    }
    layout.layers.insert(layout.layers.end(), repeat, layer);
  }
  LKV_RETURN_IF_ERROR(ValidateLayout(layout));
  return layout;
}

v1::Preset ToProto(PresetId preset) { return static_cast<v1::Preset>(preset); }

v1::QualityBounds ToProto(const QualityBounds& bounds) {
  v1::QualityBounds out;
  out.set_max_logit_noise(bounds.max_logit_noise);
  out.set_max_value_error(bounds.max_value_error);
  out.set_require_exact(bounds.require_exact);
  return out;
}

v1::BlockSelector ToProto(const BlockSelector& selector) {
  v1::BlockSelector out;
  out.set_namespace_(selector.name_space);
  out.set_session(selector.session);
  for (const Digest& hash : selector.content_hashes) out.add_content_hashes(BytesString(hash));
  return out;
}

Quality FromProto(const v1::Quality& proto) {
  return {proto.exact(), proto.profiled(), proto.logit_noise(), proto.value_error()};
}

ErrorDetail FromProto(const v1::ErrorDetail& proto) {
  return {static_cast<ErrorReason>(proto.reason()), proto.limit(), proto.message()};
}

absl::StatusOr<BlockInfo> FromProto(const v1::BlockInfo& proto) {
  BlockInfo out;
  const std::optional<Digest> hash = ToDigest(proto.content_hash());
  if (!hash) return absl::DataLossError("the server sent a content hash that has not 32 bytes");
  if (proto.tokens() == 0 || proto.tokens() > limits::kMaxChunkTokens) {
    return absl::DataLossError(absl::StrCat("the server sent a block of ", proto.tokens(),
                                            " tokens, 1 to ", limits::kMaxChunkTokens,
                                            " are possible"));
  }
  out.content_hash = *hash;
  const ByteSpan parent = AsBytes(proto.parent_hash());
  out.parent_hash.assign(parent.begin(), parent.end());
  out.start_position = proto.start_position();
  out.tokens = proto.tokens();
  out.stored_bytes = proto.stored_bytes();
  out.raw_bytes = proto.raw_bytes();
  out.preset = static_cast<PresetId>(proto.preset());
  out.quality = FromProto(proto.quality());
  out.tier = TierFromProto(proto.tier());
  out.pinned = proto.pinned();
  out.evicted_tokens = proto.evicted_tokens();
  return out;
}

SessionSummary FromProto(const v1::SessionSummary& p) {
  SessionSummary out;
  out.name_space = p.namespace_();
  out.name = p.name();
  out.blocks = p.blocks();
  out.tokens = p.tokens();
  out.raw_bytes = p.raw_bytes();
  out.stored_bytes = p.stored_bytes();
  out.ratio = p.ratio();
  out.created_ms = p.created_ms();
  out.last_used_ms = p.last_used_ms();
  out.expires_ms = p.expires_ms();
  out.pinned = p.pinned();
  out.model = p.model();
  out.missing_blocks = p.missing_blocks();
  return out;
}

BlockSummary FromProto(const v1::BlockSummary& p) {
  BlockSummary out;
  out.key = p.key();
  out.parent = p.parent();
  out.name_space = p.namespace_();
  out.start_position = p.start_position();
  out.tokens = p.tokens();
  out.raw_bytes = p.raw_bytes();
  out.stored_bytes = p.stored_bytes();
  out.preset = static_cast<PresetId>(p.preset());
  out.quality = FromProto(p.quality());
  out.tier = TierFromProto(p.tier());
  out.pinned = p.pinned();
  out.missing = p.missing();
  out.evicted_tokens = p.evicted_tokens();
  return out;
}

absl::StatusOr<SessionDetail> FromProto(const v1::SessionDetail& p) {
  SessionDetail out;
  out.summary = FromProto(p.summary());
  for (const v1::BlockSummary& block : p.blocks()) out.blocks.push_back(FromProto(block));
  LKV_ASSIGN_OR_RETURN(out.layout, FromProto(p.layout()));
  out.fingerprint = LayoutFingerprint(out.layout);
  if (ToHex(out.fingerprint) != p.fingerprint()) {
    return absl::DataLossError("the server's layout does not match its fingerprint");
  }
  return out;
}

BlockDetail FromProto(const v1::BlockDetail& p) {
  BlockDetail out;
  out.summary = FromProto(p.summary());
  out.fingerprint = p.fingerprint();
  out.model = p.model();
  out.profile_hash = p.profile_hash();
  out.frame_crc32c = p.frame_crc32c();
  for (const v1::LayerSize& l : p.layers()) out.layer_stored_bytes.push_back(l.stored_bytes());
  out.sessions.assign(p.sessions().begin(), p.sessions().end());
  out.tokens.assign(p.token_ids().begin(), p.token_ids().end());
  return out;
}

namespace {

const char* GpuStateName(v1::GpuState state) {
  switch (state) {
    case v1::GPU_STATE_NONE:
      return "none";
    case v1::GPU_STATE_ON:
      return "on";
    case v1::GPU_STATE_OFF:
      return "off";
    default:
      return "unknown";
  }
}

void CodecPathsFromProto(const v1::CodecPaths& p, ServerStats* out) {
  out->gpu_state = GpuStateName(p.gpu_state());
  out->gpu_device = p.gpu_device();
  out->gpu_reason = p.gpu_reason();
  out->gpu_encodes = p.gpu_encodes();
  out->gpu_decodes = p.gpu_decodes();
  out->cpu_encodes = p.cpu_encodes();
  out->cpu_decodes = p.cpu_decodes();
  out->gpu_batches = p.gpu_batches();
  out->gpu_errors = p.gpu_errors();
  out->gpu_regions = p.gpu_regions();
  out->gpu_region_bytes = p.gpu_region_bytes();
  for (const v1::GpuFallbacks& fallback : p.fallbacks()) {
    out->gpu_fallbacks.emplace_back(fallback.reason(), fallback.jobs());
  }
}

const char* DiskStateName(v1::DiskState state) {
  switch (state) {
    case v1::DISK_STATE_OK:
      return "ok";
    case v1::DISK_STATE_MEMORY_ONLY:
      return "memory only";
    default:
      return "no disk";
  }
}

}  // namespace

ServerStats FromProto(const v1::StatsResponse& p) {
  ServerStats out;
  out.blocks = p.blocks();
  out.sessions = p.sessions();
  out.layouts = p.layouts();
  out.stored_bytes = p.stored_bytes();
  out.raw_bytes = p.raw_bytes();
  out.ratio = p.ratio();
  out.memory_used_bytes = p.memory_used_bytes();
  out.memory_peak_bytes = p.memory_peak_bytes();
  out.memory_capacity_bytes = p.memory_capacity_bytes();
  out.pinned_blocks = p.pinned_blocks();
  out.puts = p.puts();
  out.duplicate_puts = p.duplicate_puts();
  out.gets = p.gets();
  out.misses = p.misses();
  out.evicted_blocks = p.evicted_blocks();
  out.evicted_bytes = p.evicted_bytes();
  out.corrupt_blocks = p.corrupt_blocks();
  out.encode_bytes = p.encode_bytes();
  out.decode_bytes = p.decode_bytes();
  out.encode_gbps = p.encode_gbps();
  out.decode_gbps = p.decode_gbps();
  out.uptime_ms = p.uptime_ms();
  out.version = p.version();
  out.codec_backend = p.codec_backend();
  out.open_streams = p.open_streams();
  out.draining = p.draining();
  out.disk_state = DiskStateName(p.disk_state());
  out.disk_reason = p.disk_reason();
  out.disk_blocks = p.disk_blocks();
  out.disk_used_bytes = p.disk_used_bytes();
  out.disk_peak_bytes = p.disk_peak_bytes();
  out.disk_capacity_bytes = p.disk_capacity_bytes();
  out.disk_index_bytes = p.disk_index_bytes();
  out.segments = p.segments();
  out.evicted_to_disk = p.evicted_to_disk();
  out.promoted_blocks = p.promoted_blocks();
  out.disk_evicted_blocks = p.disk_evicted_blocks();
  out.durable_blocks = p.durable_blocks();
  out.recovered_blocks = p.recovered_blocks();
  out.lost_blocks = p.lost_blocks();
  out.damaged_records = p.damaged_records();
  out.disk_errors = p.disk_errors();
  out.journal_bytes = p.journal_bytes();
  CodecPathsFromProto(p.codec_paths(), &out);
  for (const v1::LayoutState& l : p.layout_states()) {
    LayoutState& state = out.layout_states.emplace_back();
    state.fingerprint = l.fingerprint();
    state.model = l.model();
    state.learnt_tokens = l.learnt_tokens();
    state.learning = l.learning();
    for (const v1::ProfileState& profile : l.profiles()) {
      state.profiles.push_back(
          {profile.hash(), profile.version(), profile.in_use(), profile.blocks()});
    }
  }
  return out;
}

}  // namespace latticekv
