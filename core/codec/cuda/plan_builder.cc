#include "core/codec/cuda/plan_builder.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/cuda/arena_layout.h"
#include "core/codec/cuda/seed_units.h"
#include "core/codec/cuda/unit_shape.h"
#include "core/codec/entropy_tables.h"
#include "core/codec/layer_codec.h"
#include "core/codec/seed_codec.h"

namespace latticekv {
namespace {

// Behind every frame: the kernel reads whole words around a stream's end.
constexpr uint64_t kFramePadding = 16;
// Blocks of the decode kernel that staging memory is kept for.
constexpr uint64_t kMaxStagedBlocks = 256;

absl::Status Damaged(const char* what) {
  return absl::DataLossError(absl::StrCat("frame: ", what));
}

absl::Status OfChunk(size_t chunk, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("chunk ", chunk, " of the batch: ", status.message()));
}

void SetPlace(const DevicePlane& plane, uint32_t head, cuda::UnitTask& unit) {
  unit.dst = reinterpret_cast<uintptr_t>(plane.data_dev) + head * plane.head_stride;
  unit.token_stride = plane.token_stride;
  unit.block_stride = plane.block_stride;
  unit.wide_stores = (unit.dst | unit.token_stride | unit.block_stride) % 16 == 0;
}

void AppendProfile(const HeadProfile& head, size_t dim, ByteVector& out) {
  const cuda::ProfileHead start{head.mean_exponent};
  const size_t at = out.size();
  out.resize(at + RoundUp(sizeof(start) + 8 * dim, 16));
  std::byte* p = out.data() + at;
  std::memcpy(p, &start, sizeof(start));
  p += sizeof(start);
  // A profile without one kind of numbers leaves zeros, which no unit refers to.
  if (head.mean.size() == dim) std::memcpy(p, head.mean.data(), 4 * dim);
  if (head.log2_sigma_16.size() == dim) {
    std::memcpy(p + 4 * dim, head.log2_sigma_16.data(), 2 * dim);
  }
  if (head.step_16.size() == dim) std::memcpy(p + 6 * dim, head.step_16.data(), 2 * dim);
}

}  // namespace

PlanBuilder::PlanBuilder(const Layout& layout, const ModelProfile* profile)
    : layout_(layout), profile_(profile), fingerprint_(LayoutFingerprint(layout)) {
  ByteVector tables;
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    LayerShape& layer = shapes_.emplace_back();
    layer.refs = LayerUnits(layout.layers[l]);
    for (const UnitRef& ref : layer.refs) {
      UnitShape& shape = layer.units.emplace_back();
      shape.task = NewUnit<cuda::UnitTask>(*ref.spec);
      if (shape.task.pairs > 0) shape.rope = ropes_.Add(ref.spec->rope);
      // A frame that needs a profile names it; none of this layout names another layout's.
      if (profile == nullptr || profile->layout_fingerprint != fingerprint_) continue;
      shape.head = &profile->layers[l][ref.plane].heads[ref.head];
      shape.profile_at = tables.size();
      AppendProfile(*shape.head, ref.spec->head_dim, tables);
    }
  }
  frequencies_at_ = Place(ropes_.frequencies, tables);
  tables_ = MakeArenaTables(std::move(tables));
}

absl::Status PlanBuilder::Begin(std::span<const CudaDecodeChunk> chunks, CudaDecodePlan& plan) {
  plan.checked_ = false;
  plan.tasks_at_ = ~size_t{0};  // no arena is so large, should this fail
  plan.tables_ = tables_;
  plan.frames_.clear();
  chunks_.clear();
  frames_end_ = tables_->bytes.size();
  for (size_t i = 0; i < chunks.size(); ++i) {
    LKV_RETURN_IF_ERROR(OfChunk(i, Open(chunks[i], plan)));
  }
  plan.tasks_at_ = frames_end_;
  return absl::OkStatus();
}

absl::Status PlanBuilder::Open(const CudaDecodeChunk& chunk, CudaDecodePlan& plan) {
  LKV_ASSIGN_OR_RETURN(ParsedFrame parsed, ParseFrameHeader(chunk.frame));
  const FrameHeader& header = parsed.header;
  LKV_RETURN_IF_ERROR(CheckFrameFits(header, fingerprint_, layout_.layers.size(), profile_));
  const auto layers = static_cast<uint32_t>(header.layers.size());
  const uint32_t first = chunk.first_layer;
  if (first >= layers || chunk.layers > layers - first) {
    return absl::InvalidArgumentError(absl::StrCat("layers ", first, " and the ", chunk.layers,
                                                   " from there on are not within ", layers,
                                                   "; ask for layers of the frame"));
  }
  const uint32_t end = chunk.layers == 0 ? layers : first + chunk.layers;
  LKV_RETURN_IF_ERROR(CheckDevicePlanes(layout_, chunk.planes, first, end));
  // What is uploaded begins at a multiple of the alignment, so that bytes keep theirs.
  const uint64_t upload_at =
      chunk.layers == 0 ? 0 : parsed.layer_offsets[first] / kArenaAlignment * kArenaAlignment;
  const ByteSpan upload = chunk.frame.subspan(upload_at, parsed.layer_offsets[end] - upload_at);
  const uint64_t frame_at = frames_end_ - upload_at;
  if (header.stages & kStageLattice) {
    plan.frames_.push_back({upload, frames_end_});
    frames_end_ += RoundUp(upload.size() + kFramePadding, kArenaAlignment);
  }
  const uint32_t rows = StoredRows(header);
  chunks_.push_back({&chunk, std::move(parsed.header), std::move(parsed.layer_offsets), first, end,
                     frame_at, rows});
  return absl::OkStatus();
}

void PlanBuilder::StartTasks() {
  size_t units = 0;
  for (const LayerShape& layer : shapes_) units += layer.units.size();
  units_.clear();
  raw_in_.clear();
  tiles_.clear();
  places_.clear();
  copies_.clear();
  offsets_.clear();
  seed_units_.clear();
  seed_scales_.clear();
  seed_points_.clear();
  units_.reserve(chunks_.size() * units);
  raw_in_.reserve(chunks_.size() * units);
  tiles_.reserve(chunks_.size() * units);
  places_.reserve(chunks_.size() * limits::kMaxChunkTokens);
  ropes_.StartPlan();
  // The first list is for units without raw vectors and for chunks without evicted tokens.
  orders_.resize(limits::kMaxChunkTokens);
  std::iota(orders_.begin(), orders_.end(), uint8_t{0});
  staged_ = false;
  resolved_bytes_ = 0;
}

absl::Status PlanBuilder::AddChunk(ChunkState& chunk) {
  now_ = &chunk;
  const std::vector<uint8_t>& keep = chunk.header.keep;
  ropes_.StartChunk(chunk.header.start_position, chunk.rows, keep.empty() ? 0 : KeptList(keep));
  LKV_RETURN_IF_ERROR(AddPlaces(chunk));
  for (uint32_t l = chunk.first_layer; l < chunk.end_layer; ++l) {
    LKV_ASSIGN_OR_RETURN(const ByteSpan bytes, CheckedLayer(chunk.chunk->frame, chunk.layer_offsets,
                                                            l, chunk.header.layers[l].crc32c));
    LKV_RETURN_IF_ERROR(AddLayer(l, bytes));
  }
  return absl::OkStatus();
}

absl::Status PlanBuilder::AddPlaces(ChunkState& chunk) {
  const std::vector<uint8_t>& keep = chunk.header.keep;
  const size_t first = places_.size();
  LKV_RETURN_IF_ERROR(AppendPlaces(chunk.chunk->table, chunk.header.tokens, places_));
  if (!keep.empty()) {
    const std::vector<cuda::TokenPlace> all(places_.begin() + static_cast<std::ptrdiff_t>(first),
                                            places_.end());
    size_t row = first, evicted = first + chunk.rows;
    for (size_t t = 0; t < all.size(); ++t) places_[keep[t] ? row++ : evicted++] = all[t];
  }
  chunk.places_at = first * sizeof(cuda::TokenPlace);
  chunk.evicted_places_at = (first + chunk.rows) * sizeof(cuda::TokenPlace);
  return absl::OkStatus();
}

absl::Status PlanBuilder::AddLayer(uint32_t layer, ByteSpan bytes) {
  ByteReader in(bytes);
  const std::vector<PlaneSpec>& planes = layout_.layers[layer].planes;
  const bool exact = now_->header.stages & kStageExact;
  if (now_->header.stages & kStageSeed) {
    SeedLayer own;
    const SeedLayers* before = now_->chunk->seed;
    if (before == nullptr) {
      LKV_ASSIGN_OR_RETURN(own, ReadSeedLayer(layout_.layers[layer], now_->rows, bytes));
    } else if (before->layers.size() != now_->end_layer - now_->first_layer) {
      return absl::InvalidArgumentError("other seed layers were read than are decoded");
    }
    const SeedLayer& read = before ? before->layers[layer - now_->first_layer] : own;
    LKV_RETURN_IF_ERROR(AddSeedLayer(layer, read, bytes));
    in.GetBytes(read.opaque_at);
  } else if (!exact) {
    if (now_->header.stages & kStageMass) LKV_RETURN_IF_ERROR(ReadOffsets(in));
    LKV_ASSIGN_OR_RETURN(const std::vector<TileSpan> tiles, ReadTiles(shapes_[layer].refs, in));
    size_t unit = 0;
    for (const TileSpan& tile : tiles) {
      LKV_RETURN_IF_ERROR(AddTile(layer, unit, tile));
      unit += tile.units.size();
    }
  }
  for (size_t p = 0; p < planes.size(); ++p) {
    if (!exact && planes[p].role != PlaneRole::kOpaque) continue;
    LKV_RETURN_IF_ERROR(AddExactPlane(layer, p, in));
  }
  if (in.remaining() != 0) return Damaged("trailing bytes in a layer");
  if (!now_->header.keep.empty()) AddZeros(layer);
  return absl::OkStatus();
}

absl::Status PlanBuilder::ReadOffsets(ByteReader& in) {
  LKV_ASSIGN_OR_RETURN(const std::vector<int16_t> offsets, ReadTokenOffsets(now_->rows, in));
  now_->offsets_at = offsets_.size();
  for (const int16_t offset : offsets) offsets_.push_back(static_cast<int8_t>(offset));
  return absl::OkStatus();
}

absl::Status PlanBuilder::AddTile(uint32_t layer, size_t first_unit, const TileSpan& span) {
  ByteReader in(span.bytes);
  const uint64_t begin =
      now_->frame_at + static_cast<uint64_t>(span.bytes.data() - now_->chunk->frame.data());
  cuda::TileTask tile = NewTile(static_cast<uint32_t>(span.units.size()));
  tile.mass = (now_->header.stages & kStageMass) != 0;
  tile.offsets_at = now_->offsets_at;
  const bool profiled = now_->header.stages & kStageProfile;
  const UnitShape* shape = &shapes_[layer].units[first_unit];
  for (const UnitRef& ref : span.units) {
    LKV_ASSIGN_OR_RETURN(const UnitHeader header,
                         ReadUnitHeader(now_->rows, ref, profiled ? shape->head : nullptr, in));
    AddUnit(layer, ref, *shape++, header, tile.groups);
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
  const uint32_t tokens = now_->rows;
  const size_t vector_bytes = spec.head_dim * DTypeBytes(spec.dtype);
  const size_t at = RoundUp(copies_.size(), 16);
  copies_.resize(at + spec.token_bytes() * tokens);
  // Heads one behind the other, so that each is a run of raw vectors.
  LKV_RETURN_IF_ERROR(ReadExactPlane(
      spec, tokens, in,
      MutablePlaneView{copies_.data() + at, vector_bytes, size_t{tokens} * vector_bytes}));
  for (uint32_t h = 0; h < spec.heads; ++h) {
    AddCopies(spec, now_->chunk->planes[layer][plane], h, tokens, 0,
              at + size_t{h} * tokens * vector_bytes);
  }
  return absl::OkStatus();
}

void PlanBuilder::AddCopies(const PlaneSpec& spec, const DevicePlane& to, uint32_t head,
                            uint32_t vectors, uint64_t order_at, uint64_t bytes_at) {
  cuda::UnitTask& unit = AddPlainTile(spec, to, head);
  unit.raw_count = static_cast<uint16_t>(vectors);
  unit.order_at = order_at;
  unit.raw_at = bytes_at;
}

void PlanBuilder::AddZeros(uint32_t layer) {
  const std::vector<PlaneSpec>& planes = layout_.layers[layer].planes;
  for (size_t p = 0; p < planes.size(); ++p) {
    for (uint32_t h = 0; h < planes[p].heads; ++h) {
      AddPlainTile(planes[p], now_->chunk->planes[layer][p], h).all_zero = true;
      tiles_.back().places_at = now_->evicted_places_at;
      tiles_.back().tokens = now_->header.tokens - now_->rows;
    }
  }
}

cuda::UnitTask& PlanBuilder::AddPlainTile(const PlaneSpec& spec, const DevicePlane& to,
                                          uint32_t head) {
  tiles_.push_back(NewTile(1));
  cuda::UnitTask& unit = units_.emplace_back(NewUnit<cuda::UnitTask>(spec));
  raw_in_.push_back(RawIn::kCopies);
  unit.pairs = 0;  // of vectors that are coded
  unit.interleaved = 0;
  SetPlace(to, head, unit);
  return unit;
}

absl::Status PlanBuilder::AddSeedLayer(uint32_t layer, const SeedLayer& read, ByteSpan bytes) {
  const std::vector<PlaneSpec>& planes = layout_.layers[layer].planes;
  const UnitShape* shapes = shapes_[layer].units.data();
  auto next = read.planes.begin();
  for (size_t p = 0; p < planes.size(); ++p) {
    if (planes[p].role == PlaneRole::kOpaque) continue;
    LKV_RETURN_IF_ERROR(AddSeedPlane(layer, p, shapes, *next++, bytes));
    shapes += planes[p].heads;
  }
  return absl::OkStatus();
}

absl::Status PlanBuilder::AddSeedPlane(uint32_t layer, size_t plane, const UnitShape* shapes,
                                       const SeedLayer::Plane& read, ByteSpan bytes) {
  const PlaneSpec& spec = layout_.layers[layer].planes[plane];
  const DevicePlane& to = now_->chunk->planes[layer][plane];
  const uint32_t tokens = now_->rows, dim = spec.head_dim;
  const size_t vector_bytes = dim * DTypeBytes(spec.dtype);
  const SeedPlane& coded = read.coded;
  const ByteSpan raw_vectors = bytes.subspan(read.raw_at, read.raw_bytes);
  size_t copies_at = RoundUp(copies_.size(), 16);
  copies_.resize(copies_at + raw_vectors.size());
  std::copy(raw_vectors.begin(), raw_vectors.end(), copies_.data() + copies_at);
  size_t row = 0;
  for (uint32_t h = 0; h < spec.heads; ++h) {
    const uint32_t rows = coded.Rows(h), raw = tokens - rows;
    std::vector<uint8_t> raw_tokens;
    for (uint32_t t = 0; t < tokens && rows > 0; ++t) {
      if (coded.raw[h][t]) raw_tokens.push_back(static_cast<uint8_t>(t));
    }
    const uint64_t order_at = OrderList(raw_tokens, tokens);
    if (raw > 0) {
      AddCopies(spec, to, h, raw, order_at, copies_at);
      copies_at += raw * vector_bytes;
    }
    if (rows == 0) continue;
    const uint32_t group = coded.shape.Group(dim);
    cuda::SeedUnit unit = NewSeedUnit(spec, to, h, coded.shape);
    unit.chunk = static_cast<uint32_t>(now_ - chunks_.data());
    unit.rows = static_cast<uint16_t>(rows);
    unit.places_at = now_->places_at;
    unit.order_at = order_at + raw;
    if (unit.pairs > 0) unit.rope_at = ropes_.TableAt(shapes[h].rope);
    unit.scales_at = (seed_scales_.size() + row * (dim / group)) * sizeof(uint16_t);
    unit.points_at = seed_points_.size() + row * dim;
    seed_units_.push_back(unit);
    row += rows;
  }
  seed_scales_.insert(seed_scales_.end(), coded.scales.begin(), coded.scales.end());
  seed_points_.insert(seed_points_.end(), coded.points.begin(), coded.points.end());
  return absl::OkStatus();
}

cuda::TileTask PlanBuilder::NewTile(uint32_t units) const {
  cuda::TileTask tile{};
  tile.places_at = now_->places_at;
  tile.first_unit = static_cast<uint32_t>(units_.size());
  tile.units = units;
  tile.chunk = static_cast<uint32_t>(now_ - chunks_.data());
  tile.tokens = now_->rows;
  tile.value_unit_16 = now_->header.value_unit_16;
  return tile;
}

void PlanBuilder::AddUnit(uint32_t layer, const UnitRef& ref, const UnitShape& shape,
                          const UnitHeader& header, uint32_t& groups) {
  const uint32_t tokens = now_->rows;
  cuda::UnitTask& unit = units_.emplace_back(shape.task);
  raw_in_.push_back(RawIn::kFrames);
  SetPlace(now_->chunk->planes[layer][ref.plane], ref.head, unit);
  const size_t raw = header.all_raw ? tokens : header.raw_tokens.size();
  unit.raw_count = static_cast<uint16_t>(raw);
  unit.coded_count = static_cast<uint16_t>(header.all_zero ? 0 : tokens - raw);
  unit.all_zero = header.all_zero;
  unit.order_at = OrderList(header.raw_tokens, tokens);
  const uint32_t row_groups = unit.dim / 8u;
  unit.group_begin = groups;
  groups += unit.coded_count * row_groups;
  unit.group_end = groups;
  if (unit.pairs > 0 && unit.coded_count > 0) {
    unit.rope_at = ropes_.TableAt(shape.rope);
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
      unit.profile_at = shape.profile_at;
    }
    unit.resolved_at = resolved_bytes_;
    resolved_bytes_ += RoundUp(
        sizeof(cuda::RowRecord) * unit.coded_count + (unit.is_key ? 10u : 6u) * uint64_t{unit.dim},
        16);
  }
}

uint64_t PlanBuilder::OrderList(std::span<const uint8_t> raw_tokens, uint32_t tokens) {
  if (raw_tokens.empty()) return 0;
  const uint64_t at = orders_.size();
  orders_.resize(at + tokens);
  uint8_t* out = std::copy(raw_tokens.begin(), raw_tokens.end(), orders_.data() + at);
  uint32_t next = 0;
  for (const uint32_t raw : raw_tokens) {
    out = std::copy_n(orders_.data() + next, raw - next, out);
    next = raw + 1;
  }
  std::copy_n(orders_.data() + next, tokens - next, out);
  return at;
}

uint64_t PlanBuilder::KeptList(const std::vector<uint8_t>& keep) {
  const uint64_t at = orders_.size();
  for (size_t t = 0; t < keep.size(); ++t) {
    if (keep[t]) orders_.push_back(static_cast<uint8_t>(t));
  }
  return at;
}

// Behind the frames: what is uploaded with the plan, scratch.
void PlanBuilder::PlaceTasks(CudaDecodePlan& plan) {
  ByteVector& tasks = plan.tasks_;
  cuda::DecodeLaunch& launch = plan.launch_;
  tasks.clear();
  tasks.reserve(units_.size() * sizeof(cuda::UnitTask) + tiles_.size() * sizeof(cuda::TileTask) +
                places_.size() * sizeof(cuda::TokenPlace) + orders_.size() + offsets_.size() +
                copies_.size() + seed_units_.size() * sizeof(cuda::SeedUnit) +
                2 * seed_scales_.size() + seed_points_.size() +
                ropes_.tasks.size() * sizeof(cuda::RopeTask) + 16 * kArenaAlignment);
  const uint64_t places_at = frames_end_ + Place(places_, tasks);
  const uint64_t orders_at = frames_end_ + Place(orders_, tasks);
  const uint64_t offsets_at = frames_end_ + Place(offsets_, tasks);
  const uint64_t copies_at = frames_end_ + Place(copies_, tasks);
  const uint64_t scales_at = frames_end_ + Place(seed_scales_, tasks);
  const uint64_t points_at = frames_end_ + Place(seed_points_, tasks);
  // Copied once their offsets count from the arena's start.
  const uint64_t units_in = MakeRoom(units_, tasks);
  const uint64_t tiles_in = MakeRoom(tiles_, tasks);
  const uint64_t ropes_in = MakeRoom(ropes_.tasks, tasks);
  const uint64_t seeds_in = MakeRoom(seed_units_, tasks);
  tasks.resize(RoundUp(tasks.size(), kArenaAlignment));
  const uint64_t rope_at = frames_end_ + tasks.size();
  const uint64_t resolved_at = rope_at + ropes_.bytes;
  launch.units_at = frames_end_ + units_in;
  launch.tiles_at = frames_end_ + tiles_in;
  launch.rope_tasks_at = frames_end_ + ropes_in;
  launch.staging_at = RoundUp(resolved_at + resolved_bytes_, kArenaAlignment);
  for (size_t i = 0; i < units_.size(); ++i) {
    cuda::UnitTask& unit = units_[i];
    if (raw_in_[i] == RawIn::kCopies) unit.raw_at += copies_at;
    unit.order_at += orders_at;
    unit.resolved_at += resolved_at;
    unit.rope_at += rope_at;
  }
  for (cuda::TileTask& tile : tiles_) {
    tile.places_at += places_at;
    tile.offsets_at += offsets_at;
    launch.mass |= tile.mass;
  }
  for (cuda::SeedUnit& unit : seed_units_) {
    unit.places_at += places_at;
    unit.order_at += orders_at;
    unit.rope_at += rope_at;
    unit.scales_at += scales_at;
    unit.points_at += points_at;
  }
  ropes_.Move(frequencies_at_, orders_at, rope_at);
  plan.seed_ = SeedLaunchOf(seed_units_, frames_end_ + seeds_in);
  CopyTo(seed_units_, seeds_in, tasks);
  CopyTo(units_, units_in, tasks);
  CopyTo(tiles_, tiles_in, tasks);
  CopyTo(ropes_.tasks, ropes_in, tasks);
}

absl::Status PlanBuilder::Finish(CudaDecodePlan& plan) {
  StartTasks();
  for (size_t i = 0; i < chunks_.size(); ++i) {
    LKV_RETURN_IF_ERROR(OfChunk(i, AddChunk(chunks_[i])));
  }
  plan.launch_ = {};
  PlaceTasks(plan);
  cuda::DecodeLaunch& launch = plan.launch_;
  launch.blocks = static_cast<uint32_t>(std::min<uint64_t>(kMaxStagedBlocks, tiles_.size()));
  const uint64_t staging_bytes =
      staged_ ? sizeof(float) * cuda::kStagedFloats * cuda::kWarpsPerBlock * launch.blocks : 0;
  launch.counter_at = launch.staging_at + staging_bytes;
  plan.seed_.results_at = launch.counter_at + sizeof(uint32_t);
  launch.tiles = static_cast<uint32_t>(tiles_.size());
  launch.rope_tasks = static_cast<uint32_t>(ropes_.tasks.size());
  plan.chunks_ = chunks_.size();
  const uint64_t counter_bytes = 4 * (1 + uint64_t{chunks_.size()});
  plan.device_bytes_ = launch.counter_at + counter_bytes;
  plan.pinned_bytes_ = plan.results_at() + counter_bytes;
  plan.checked_ = true;
  return absl::OkStatus();
}

}  // namespace latticekv
