#include "core/codec/cuda/plan_builder.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/cuda/arena_layout.h"
#include "core/codec/entropy_tables.h"
#include "core/codec/layer_codec.h"

namespace latticekv {
namespace {

constexpr uint64_t kNoProfile = ~uint64_t{0};
// Behind every frame: the kernel reads whole words around a stream's end.
constexpr uint64_t kFramePadding = 16;
// Blocks of the decode kernel that staging memory is kept for.
constexpr uint64_t kMaxStagedBlocks = 256;

absl::Status Damaged(const char* what) {
  return absl::DataLossError(absl::StrCat("frame: ", what));
}

}  // namespace

PlanBuilder::PlanBuilder(const Layout& layout, const ModelProfile* profile)
    : layout_(layout), profile_(profile), fingerprint_(LayoutFingerprint(layout)) {
  // The first list is for units without raw vectors.
  orders_.resize(limits::kMaxChunkTokens);
  std::iota(orders_.begin(), orders_.end(), uint8_t{0});
}

void PlanBuilder::Reserve(size_t chunks) {
  size_t units = 0;
  for (const LayerSpec& layer : layout_.layers) {
    for (const PlaneSpec& plane : layer.planes) units += plane.heads;
  }
  units_.reserve(chunks * units);
  raw_in_.reserve(chunks * units);
  tiles_.reserve(chunks * units);
  places_.reserve(chunks * limits::kMaxChunkTokens);
}

absl::Status PlanBuilder::AddChunk(const CudaDecodeChunk& chunk) {
  LKV_ASSIGN_OR_RETURN(const ParsedFrame parsed, ParseFrameHeader(chunk.frame));
  const FrameHeader& header = parsed.header;
  LKV_RETURN_IF_ERROR(CheckFrameFits(header, fingerprint_, layout_.layers.size(), profile_));
  if (header.stages & (kStageMass | kStageEvicted)) {
    return absl::UnimplementedError(
        "the CUDA decoder knows no frames with attention mass or evicted tokens; decode this one "
        "on the CPU");
  }
  const auto layers = static_cast<uint32_t>(header.layers.size());
  const uint32_t first = chunk.first_layer;
  if (first >= layers || chunk.layers > layers - first) {
    return absl::InvalidArgumentError(absl::StrCat("layers ", first, " and the ", chunk.layers,
                                                   " from there on are not within ", layers,
                                                   "; ask for layers of the frame"));
  }
  const uint32_t end = chunk.layers == 0 ? layers : first + chunk.layers;
  LKV_RETURN_IF_ERROR(CheckDevicePlanes(layout_, chunk.planes, first, end));
  if (header.stages & kStageSeed) {
    return absl::UnimplementedError("the device does not decode the seed stages; use a CPU");
  }
  const bool needs_profile = header.stages & kStageProfile;
  // What is uploaded begins at a multiple of the alignment, so that bytes keep theirs.
  const uint64_t upload_at =
      chunk.layers == 0 ? 0 : parsed.layer_offsets[first] / kArenaAlignment * kArenaAlignment;
  const ByteSpan upload = chunk.frame.subspan(upload_at, parsed.layer_offsets[end] - upload_at);
  now_ = {&chunk, header, needs_profile ? profile_ : nullptr, frames_bytes_ - upload_at, 0};
  ropes_.StartChunk();
  now_.places_at = places_.size() * sizeof(cuda::TokenPlace);
  LKV_RETURN_IF_ERROR(AppendPlaces(chunk.table, header.tokens, places_));
  for (uint32_t l = first; l < end; ++l) {
    LKV_ASSIGN_OR_RETURN(const ByteSpan bytes, CheckedLayer(chunk.frame, parsed.layer_offsets, l,
                                                            header.layers[l].crc32c));
    LKV_RETURN_IF_ERROR(AddLayer(l, bytes));
  }
  if (header.stages & kStageLattice) {
    frames_.push_back({upload, frames_bytes_});
    frames_bytes_ += RoundUp(upload.size() + kFramePadding, kArenaAlignment);
  }
  ++chunks_;
  return absl::OkStatus();
}

absl::Status PlanBuilder::AddLayer(uint32_t layer, ByteSpan bytes) {
  ByteReader in(bytes);
  const std::vector<PlaneSpec>& planes = layout_.layers[layer].planes;
  const bool exact = now_.header.stages & kStageExact;
  if (!exact) {
    const std::vector<UnitRef> refs = LayerUnits(layout_.layers[layer]);
    LKV_ASSIGN_OR_RETURN(const std::vector<TileSpan> tiles, ReadTiles(refs, in));
    for (const TileSpan& tile : tiles) LKV_RETURN_IF_ERROR(AddTile(layer, tile));
  }
  for (size_t p = 0; p < planes.size(); ++p) {
    if (!exact && planes[p].role != PlaneRole::kOpaque) continue;
    LKV_RETURN_IF_ERROR(AddExactPlane(layer, p, in));
  }
  if (in.remaining() != 0) return Damaged("trailing bytes in a layer");
  return absl::OkStatus();
}

absl::Status PlanBuilder::AddTile(uint32_t layer, const TileSpan& span) {
  ByteReader in(span.bytes);
  const uint32_t tokens = now_.header.tokens;
  const uint64_t begin =
      now_.frame_at + static_cast<uint64_t>(span.bytes.data() - now_.chunk->frame.data());
  cuda::TileTask tile = NewTile(static_cast<uint32_t>(span.units.size()));
  for (const UnitRef& ref : span.units) {
    const HeadProfile* head =
        now_.profile ? &now_.profile->layers[layer][ref.plane].heads[ref.head] : nullptr;
    LKV_ASSIGN_OR_RETURN(const UnitHeader header, ReadUnitHeader(tokens, ref, head, in));
    AddUnit(layer, ref, header, tile.groups);
  }
  for (uint32_t u = tile.first_unit; u < units_.size(); ++u) {
    units_[u].raw_at = begin + (span.bytes.size() - in.remaining());
    in.GetBytes(size_t{units_[u].raw_count} * units_[u].vector_bytes);
    if (!in.ok()) return Damaged("truncated raw vectors");
  }
  const size_t coded = in.remaining();
  LKV_RETURN_IF_ERROR(CheckCodedSize(tile.groups > 0, coded));
  if (tile.groups > 0) {
    tile.states_at = begin + (span.bytes.size() - coded);
    tile.words = static_cast<uint32_t>((coded - 4 * kLanes) / 2);
  }
  tiles_.push_back(tile);
  return absl::OkStatus();
}

absl::Status PlanBuilder::AddExactPlane(uint32_t layer, size_t plane, ByteReader& in) {
  const PlaneSpec& spec = layout_.layers[layer].planes[plane];
  const uint32_t tokens = now_.header.tokens;
  const size_t vector_bytes = spec.head_dim * DTypeBytes(spec.dtype);
  const size_t at = RoundUp(exact_.size(), 16);
  exact_.resize(at + spec.token_bytes() * tokens);
  // Heads one behind the other, so that each is a run of raw vectors.
  LKV_RETURN_IF_ERROR(ReadExactPlane(
      spec, tokens, in,
      MutablePlaneView{exact_.data() + at, vector_bytes, size_t{tokens} * vector_bytes}));
  for (uint32_t h = 0; h < spec.heads; ++h) {
    tiles_.push_back(NewTile(1));
    cuda::UnitTask unit = NewUnit(layer, {plane, h, &spec});
    unit.raw_count = static_cast<uint16_t>(tokens);
    unit.raw_at = at + size_t{h} * tokens * vector_bytes;
    units_.push_back(unit);
    raw_in_.push_back(RawIn::kExact);
  }
  return absl::OkStatus();
}

cuda::TileTask PlanBuilder::NewTile(uint32_t units) const {
  cuda::TileTask tile{};
  tile.places_at = now_.places_at;
  tile.first_unit = static_cast<uint32_t>(units_.size());
  tile.units = units;
  tile.chunk = chunks_;
  tile.tokens = now_.header.tokens;
  tile.value_unit_16 = now_.header.value_unit_16;
  return tile;
}

cuda::UnitTask PlanBuilder::NewUnit(uint32_t layer, const UnitRef& ref) const {
  const DevicePlane& plane = now_.chunk->planes[layer][ref.plane];
  const PlaneSpec& spec = *ref.spec;
  cuda::UnitTask unit{};
  unit.dst = reinterpret_cast<uintptr_t>(plane.data_dev) + ref.head * plane.head_stride;
  unit.token_stride = plane.token_stride;
  unit.block_stride = plane.block_stride;
  unit.profile_at = kNoProfile;
  unit.dim = static_cast<uint16_t>(spec.head_dim);
  unit.element_bytes = static_cast<uint8_t>(DTypeBytes(spec.dtype));
  unit.vector_bytes = unit.dim * unit.element_bytes;
  unit.is_bf16 = spec.dtype == DType::kBF16;
  unit.is_key = spec.role == PlaneRole::kKey;
  unit.wide_stores = (unit.dst | unit.token_stride | unit.block_stride) % 16 == 0;
  return unit;
}

void PlanBuilder::AddUnit(uint32_t layer, const UnitRef& ref, const UnitHeader& header,
                          uint32_t& groups) {
  const uint32_t tokens = now_.header.tokens;
  const RopeSpec& rope = ref.spec->rope;
  cuda::UnitTask unit = NewUnit(layer, ref);
  const size_t raw = header.all_raw ? tokens : header.raw_tokens.size();
  unit.raw_count = static_cast<uint16_t>(raw);
  unit.coded_count = static_cast<uint16_t>(header.all_zero ? 0 : tokens - raw);
  unit.all_zero = header.all_zero;
  unit.order_at = OrderList(header, tokens);
  const uint32_t row_groups = unit.dim / 8u;
  unit.group_begin = groups;
  groups += unit.coded_count * row_groups;
  unit.group_end = groups;
  unit.pairs = static_cast<uint16_t>(rope.rotary_dims / 2);
  if (unit.pairs > 0 && unit.coded_count > 0) {
    unit.rope_at = ropes_.TableAt(rope, now_.header.start_position, tokens);
    unit.interleaved = rope.style == RopeStyle::kInterleaved;
    // Rows within a round and pairs of whole groups: partners meet in one instruction.
    const bool meets = kLanes % row_groups == 0 && unit.group_begin % row_groups == 0;
    unit.rope_mode = !meets || unit.pairs % 8 != 0 ? cuda::kStaged
                     : unit.interleaved            ? cuda::kInterleaved
                                                   : cuda::kNeoxPair;
    staged_ |= unit.rope_mode == cuda::kStaged;
  }
  unit.step_base = header.step_base;
  unit.half_frequency = static_cast<uint16_t>(HalfCosetFrequency(header.coset));
  unit.sigma_base = header.sigma_base;
  unit.mean_source = static_cast<uint8_t>(header.mean_source);
  unit.spread_source = static_cast<uint8_t>(header.spread_source);
  unit.step_source = static_cast<uint8_t>(header.step_source);
  unit.mean_spread = header.mean_code.spread;
  unit.mean_bits = header.mean_code.low_bits;
  unit.sigma_spread = header.sigma_code.spread;
  unit.sigma_bits = header.sigma_code.low_bits;
  unit.step_spread = header.step_code.spread;
  unit.step_bits = header.step_code.low_bits;
  if (unit.coded_count > 0) {
    if (unit.mean_source >= 2 || unit.spread_source >= 2 || unit.step_source == 2) {
      unit.profile_at = ProfileAt(layer, ref);
    }
    unit.resolved_at = resolved_bytes_;
    resolved_bytes_ += RoundUp(
        sizeof(cuda::RowRecord) * unit.coded_count + (unit.is_key ? 10u : 6u) * uint64_t{unit.dim},
        16);
  }
  units_.push_back(unit);
  raw_in_.push_back(RawIn::kFrames);
}

uint64_t PlanBuilder::OrderList(const UnitHeader& header, uint32_t tokens) {
  if (header.raw_tokens.empty()) return 0;
  const uint64_t at = orders_.size();
  orders_.resize(at + tokens);
  uint8_t* raw_out = orders_.data() + at;
  uint8_t* coded_out = raw_out + header.raw_tokens.size();
  auto raw = header.raw_tokens.begin();
  for (uint32_t t = 0; t < tokens; ++t) {
    if (raw != header.raw_tokens.end() && *raw == t) {
      *raw_out++ = *raw++;
    } else {
      *coded_out++ = static_cast<uint8_t>(t);
    }
  }
  return at;
}

uint64_t PlanBuilder::ProfileAt(uint32_t layer, const UnitRef& ref) {
  const HeadProfile& head = now_.profile->layers[layer][ref.plane].heads[ref.head];
  const auto [it, fresh] = profile_at_.try_emplace(&head, profiles_.size());
  if (!fresh) return it->second;
  const size_t dim = ref.spec->head_dim;
  const cuda::ProfileHead start{head.mean_exponent};
  const size_t at = profiles_.size();
  profiles_.resize(at + RoundUp(sizeof(start) + 8 * dim, 16));
  std::byte* out = profiles_.data() + at;
  std::memcpy(out, &start, sizeof(start));
  out += sizeof(start);
  // A profile without one kind of numbers leaves zeros, which no unit refers to.
  if (head.mean.size() == dim) std::memcpy(out, head.mean.data(), 4 * dim);
  if (head.log2_sigma_16.size() == dim) {
    std::memcpy(out + 4 * dim, head.log2_sigma_16.data(), 2 * dim);
  }
  if (head.step_16.size() == dim) std::memcpy(out + 6 * dim, head.step_16.data(), 2 * dim);
  return it->second;
}

CudaDecodePlan PlanBuilder::Finish() {
  CudaDecodePlan plan;
  cuda::DecodeLaunch& launch = plan.launch_;
  ByteVector& tasks = plan.tasks_;
  tasks.reserve(units_.size() * sizeof(cuda::UnitTask) + tiles_.size() * sizeof(cuda::TileTask) +
                places_.size() * sizeof(cuda::TokenPlace) + orders_.size() + profiles_.size() +
                exact_.size() + ropes_.tasks.size() * sizeof(cuda::RopeTask) +
                ropes_.frequencies.size() * sizeof(uint64_t) + 16 * kArenaAlignment);
  // Copied once their offsets count from the arena's start.
  launch.units_at = MakeRoom(units_, tasks);
  launch.tiles_at = MakeRoom(tiles_, tasks);
  launch.rope_tasks_at = MakeRoom(ropes_.tasks, tasks);
  const uint64_t frequencies_at = Place(ropes_.frequencies, tasks);
  const uint64_t places_at = Place(places_, tasks);
  const uint64_t orders_at = Place(orders_, tasks);
  const uint64_t profiles_at = Place(profiles_, tasks);
  const uint64_t exact_at = Place(exact_, tasks);
  tasks.resize(RoundUp(tasks.size(), kArenaAlignment));
  const uint64_t frames_at = tasks.size();
  const uint64_t rope_at = frames_at + frames_bytes_;
  const uint64_t resolved_at = rope_at + ropes_.bytes;
  launch.staging_at = RoundUp(resolved_at + resolved_bytes_, kArenaAlignment);
  launch.blocks = static_cast<uint32_t>(std::min<uint64_t>(kMaxStagedBlocks, tiles_.size()));
  const uint64_t staging_bytes =
      staged_ ? sizeof(float) * cuda::kStagedFloats * cuda::kWarpsPerBlock * launch.blocks : 0;
  launch.counter_at = launch.staging_at + staging_bytes;
  launch.tiles = static_cast<uint32_t>(tiles_.size());
  launch.rope_tasks = static_cast<uint32_t>(ropes_.tasks.size());
  plan.chunks_ = chunks_;
  const uint64_t counter_bytes = 4 * (1 + uint64_t{chunks_});
  plan.device_bytes_ = launch.counter_at + counter_bytes;
  plan.pinned_bytes_ = tasks.size() + counter_bytes;

  for (size_t i = 0; i < units_.size(); ++i) {
    cuda::UnitTask& unit = units_[i];
    unit.raw_at += raw_in_[i] == RawIn::kExact ? exact_at : frames_at;
    unit.order_at += orders_at;
    unit.resolved_at += resolved_at;
    unit.rope_at += rope_at;
    unit.profile_at = unit.profile_at == kNoProfile ? 0 : unit.profile_at + profiles_at;
  }
  for (cuda::TileTask& tile : tiles_) {
    tile.states_at += frames_at;
    tile.places_at += places_at;
  }
  ropes_.Move(frequencies_at, rope_at);
  CopyTo(units_, launch.units_at, tasks);
  CopyTo(tiles_, launch.tiles_at, tasks);
  CopyTo(ropes_.tasks, launch.rope_tasks_at, tasks);
  for (const CudaDecodePlan::FrameCopy& copy : frames_) {
    plan.frames_.push_back({copy.frame, static_cast<size_t>(copy.at + frames_at)});
  }
  return plan;
}

}  // namespace latticekv
