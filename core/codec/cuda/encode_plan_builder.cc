#include "core/codec/cuda/encode_plan_builder.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/codec/cuda/arena_layout.h"
#include "core/codec/cuda/seed_units.h"
#include "core/codec/cuda/unit_shape.h"
#include "core/codec/fixed_point.h"
#include "core/codec/layer_codec.h"
#include "core/codec/seed_codec.h"
#include "core/codec/token_eviction.h"

namespace latticekv {
namespace {

static_assert(limits::kMaxChunkTokens <= cuda::kUnitOrderBytes);

// Words that a tile's symbols can take. A symbol has at most 10 bits, with its raw bits at most 19,
// and a group one more symbol for its coset: 1.28 words an element; side values at most two.
uint64_t WordRoom(uint64_t elements, uint64_t side_values) {
  return RoundUp(elements * 4 / 3 + 2 * side_values + 128, 128);
}

uint32_t SideRoom(uint32_t dim) { return cuda::StepRoom(dim) + 2 * dim; }

uint64_t ResultBytes(uint32_t dim) {
  return RoundUp(sizeof(cuda::UnitResult) + cuda::kUnitOrderBytes + 4 * SideRoom(dim) + 2 * dim,
                 16);
}

template <typename T>
void Append(const std::vector<T>& values, size_t count, ByteVector& out) {
  const size_t at = out.size();
  out.resize(at + count * sizeof(T));
  // What a head has no numbers of stays zero, and is not looked at.
  if (values.size() == count) std::memcpy(out.data() + at, values.data(), count * sizeof(T));
}

bool HasEnergy(const HeadProfile* profile) {
  return profile != nullptr && !profile->query_energy.empty();
}

}  // namespace

EncodePlanBuilder::EncodePlanBuilder(const Layout& layout, const CudaEncodeSettings& settings)
    : layout_(layout),
      settings_(settings),
      logit_noise_(GetPreset(settings.preset).logit_noise),
      profiled_(settings.profile != nullptr &&
                settings.profile->layout_fingerprint == LayoutFingerprint(layout)) {
  ByteVector tables;
  for (uint32_t l = 0; l < layout.layers.size(); ++l) {
    LayerShape& layer = shapes_.emplace_back();
    layer.refs = LayerUnits(layout.layers[l]);
    for (const UnitRef& ref : layer.refs) {
      UnitShape& shape = layer.units.emplace_back(MakeShape(*ref.spec));
      max_dim_ = std::max<uint32_t>(max_dim_, ref.spec->head_dim);
      const HeadProfile* profile = ProfileOf(l, ref);
      if (settings.preset == PresetId::kSeed) {
        if (!shape.task.is_key || !HasEnergy(profile)) continue;
        shape.energy_at = tables.size();
        Append(profile->query_energy, ref.spec->head_dim, tables);
      } else if (settings.preset != PresetId::kExact) {
        shape.task.model_at = tables.size();
        AppendModel(ref, profile, tables);
        if (shape.task.is_key && HasEnergy(profile)) {
          shape.fused_list = cuda::kFusedKeysByEnergy;
        } else if (shape.task.is_key) {
          // Their steps come from the vectors.
          shape.fused_list = cuda::kFusedKeysBySpread;
          if (settings.stats == StatsMode::kProfile) shape.can_fuse = false;
        }
      }
    }
  }
  frequencies_at_ = Place(ropes_.frequencies, tables);
  tables_ = MakeArenaTables(std::move(tables));
}

const HeadProfile* EncodePlanBuilder::ProfileOf(uint32_t layer, const UnitRef& ref) const {
  return profiled_ ? &settings_.profile->layers[layer][ref.plane].heads[ref.head] : nullptr;
}

EncodePlanBuilder::UnitShape EncodePlanBuilder::MakeShape(const PlaneSpec& spec) {
  UnitShape out;
  auto unit = NewUnit<cuda::EncodeUnit>(spec);
  const bool paired = unit.dim % 16 == 0 && unit.pairs % 8 == 0;
  unit.slices = unit.dim / (paired ? 16u : 8u);
  const bool single = unit.slices <= 32;
  unit.row_lanes = static_cast<uint8_t>(std::min<uint32_t>(32, std::bit_ceil(unit.slices)));
  out.task = unit;
  if (unit.pairs > 0) out.rope = ropes_.Add(spec.rope);
  out.slice_shape = paired ? (single ? cuda::kPairedSingle : cuda::kPairedMulti)
                           : (single ? cuda::kPlainSingle : cuda::kPlainMulti);
  // Sums of own statistics hold eight rows a lane.
  out.can_fuse = out.slice_shape == cuda::kPairedSingle && unit.element_bytes == 2 &&
                 (settings_.stats == StatsMode::kProfile || unit.row_lanes <= 8);
  return out;
}

void EncodePlanBuilder::Start() {
  chunks_.clear();
  units_.clear();
  tiles_.clear();
  layers_.clear();
  gathers_.clear();
  for (auto& list : lists_) list.clear();
  for (auto& list : fused_) list.clear();
  places_.clear();
  asked_.clear();
  kept_tokens_.resize(limits::kMaxChunkTokens);
  std::iota(kept_tokens_.begin(), kept_tokens_.end(), uint8_t{0});
  ropes_.StartPlan();
  seed_units_.clear();
  q2_bytes_ = result_bytes_ = words_bytes_ = gathered_bytes_ = output_bytes_ = 0;
  seed_scales_bytes_ = seed_points_bytes_ = 0;
}

absl::Status EncodePlanBuilder::AddChunk(const CudaEncodeChunk& chunk) {
  EncodeOptions options;
  options.preset = settings_.preset;
  options.stats = settings_.stats;
  options.profile = settings_.profile;
  options.seed = settings_.seed;
  options.start_position = chunk.start_position;
  options.exact_tokens = chunk.exact_tokens;
  options.keep = chunk.keep;
  std::vector<std::vector<PlaneView>> shape;
  for (const auto& layer : chunk.planes) shape.emplace_back(layer.size());
  LKV_ASSIGN_OR_RETURN(FrameHeader header, StartFrameHeader(layout_, chunk.tokens, shape, options,
                                                            a_header_ ? &*a_header_ : nullptr));
  if (!a_header_) a_header_ = header;
  LKV_RETURN_IF_ERROR(
      CheckDevicePlanes(layout_, chunk.planes, 0, static_cast<uint32_t>(layout_.layers.size())));
  std::vector<cuda::TokenPlace> places;
  LKV_RETURN_IF_ERROR(AppendPlaces(chunk.table, chunk.tokens, places));
  AddRows(chunk, options, header, places);
  chunks_.push_back({std::move(header),
                     std::move(options),
                     gathered_bytes_,
                     {},
                     {},
                     seed_units_.size(),
                     seed_scales_bytes_,
                     seed_points_bytes_});
  for (const auto& layer : chunk.planes) {
    chunks_.back().sources.insert(chunks_.back().sources.end(), layer.begin(), layer.end());
  }
  chunks_.back().places = std::move(places);
  const bool exact = settings_.preset == PresetId::kExact;
  const bool seed = settings_.preset == PresetId::kSeed;
  // The host encodes seed chunks with raw vectors.
  if (seed && !chunk.exact_tokens.empty()) return absl::OkStatus();
  for (uint32_t l = 0; l < layout_.layers.size(); ++l) {
    for (size_t p = 0; p < layout_.layers[l].planes.size(); ++p) {
      if (exact || layout_.layers[l].planes[p].role == PlaneRole::kOpaque) AddGather(l, p);
    }
    if (seed) {
      AddSeedLayer(l);
    } else if (!exact) {
      AddLayer(l);
    }
  }
  return absl::OkStatus();
}

void EncodePlanBuilder::AddRows(const CudaEncodeChunk& chunk, const EncodeOptions& options,
                                const FrameHeader& header,
                                const std::vector<cuda::TokenPlace>& places) {
  // Of exact chunks the host gets every token and leaves evicted ones out itself.
  const bool all = settings_.preset == PresetId::kExact || header.keep.empty();
  const std::vector<uint8_t> keep = all ? std::vector<uint8_t>() : header.keep;
  now_ = {&chunk, all ? chunk.tokens : StoredRows(header),
          places_.size() * sizeof(cuda::TokenPlace), asked_.size(),
          FramePrefixBytes(header, layout_.layers.size())};
  ropes_.StartChunk(chunk.start_position, now_.rows, all ? 0 : kept_tokens_.size());
  const auto kept_places = KeptOnly(places, keep);
  places_.insert(places_.end(), kept_places.begin(), kept_places.end());
  const auto raw_tokens = KeptOnly(RawTokens(chunk.tokens, options), keep);
  asked_.insert(asked_.end(), raw_tokens.begin(), raw_tokens.end());
  for (size_t t = 0; t < keep.size(); ++t) {
    if (keep[t]) kept_tokens_.push_back(static_cast<uint8_t>(t));
  }
}

void EncodePlanBuilder::AddGather(uint32_t layer, size_t plane) {
  const PlaneSpec& spec = layout_.layers[layer].planes[plane];
  const DevicePlane& from = now_.chunk->planes[layer][plane];
  cuda::GatherTask task{};
  task.src = reinterpret_cast<uintptr_t>(from.data_dev);
  task.token_stride = from.token_stride;
  task.head_stride = from.head_stride;
  task.block_stride = from.block_stride;
  task.places_at = now_.places_at;
  task.out_at = gathered_bytes_;
  task.tokens = now_.rows;
  task.heads = spec.heads;
  task.vector_bytes = static_cast<uint32_t>(spec.head_dim * DTypeBytes(spec.dtype));
  gathers_.push_back(task);
  gathered_bytes_ += spec.token_bytes() * task.tokens;
}

void EncodePlanBuilder::AddLayer(uint32_t layer) {
  const uint32_t tokens = now_.rows;
  const std::vector<UnitRef>& refs = shapes_[layer].refs;
  const std::vector<uint32_t> tiles = SplitIntoTiles(refs, tokens);
  cuda::EncodeLayer task{};
  task.first_tile = static_cast<uint32_t>(tiles_.size());
  task.tiles = static_cast<uint32_t>(tiles.size());
  task.first_unit = static_cast<uint32_t>(units_.size());
  task.units = static_cast<uint32_t>(refs.size());
  if (layer == 0) task.gap_bytes = static_cast<uint32_t>(now_.prefix_bytes);
  output_bytes_ += task.gap_bytes + 2 + 6 * uint64_t{task.tiles};
  size_t next = 0;
  for (uint32_t i = 0; i < task.tiles; ++i) {
    cuda::EncodeTile tile{};
    tile.first_unit = static_cast<uint32_t>(units_.size());
    tile.units = tiles[i];
    tile.layer = static_cast<uint32_t>(layers_.size());
    tile.index = i;
    uint64_t elements = 0, side = 0, raw_bytes = 0;
    for (uint32_t u = 0; u < tile.units; ++u) {
      const UnitRef& ref = refs[next];
      AddUnit(ref, shapes_[layer].units[next++], now_.chunk->planes[layer][ref.plane]);
      elements += uint64_t{ref.spec->head_dim} * tokens;
      side += SideRoom(ref.spec->head_dim);
      raw_bytes += uint64_t{units_.back().vector_bytes} * tokens;
    }
    tile.room = static_cast<uint32_t>(WordRoom(elements, side));
    tile.words_at = words_bytes_;
    tile.states_at = words_bytes_ + 2 * uint64_t{tile.room};
    words_bytes_ += 2 * uint64_t{tile.room} + RoundUp(4 * kLanes, kArenaAlignment);
    // A vector is either raw or coded.
    output_bytes_ +=
        tile.units * (kUnitHeaderBytes + tokens) + raw_bytes + 2 * uint64_t{tile.room} + 4 * kLanes;
    tiles_.push_back(tile);
  }
  layers_.push_back(task);
}

void EncodePlanBuilder::AddSeedLayer(uint32_t layer) {
  const uint32_t tokens = now_.rows;
  for (size_t i = 0; i < shapes_[layer].refs.size(); ++i) {
    const UnitRef& ref = shapes_[layer].refs[i];
    const UnitShape& shape = shapes_[layer].units[i];
    cuda::SeedUnit& unit =
        seed_units_.emplace_back(NewSeedUnit(*ref.spec, now_.chunk->planes[layer][ref.plane],
                                             ref.head, SeedShapeOf(*ref.spec, settings_.seed)));
    unit.chunk = static_cast<uint32_t>(chunks_.size() - 1);
    unit.rows = static_cast<uint16_t>(tokens);
    unit.places_at = now_.places_at;
    if (unit.pairs > 0) unit.rope_at = ropes_.TableAt(shape.rope);
    unit.has_energy = shape.energy_at != kNoEnergy;
    if (unit.has_energy) unit.energy_at = shape.energy_at;
    unit.scales_at = seed_scales_bytes_;
    unit.points_at = seed_points_bytes_;
    seed_scales_bytes_ += sizeof(uint16_t) * tokens * (unit.dim / unit.group);
    seed_points_bytes_ += uint64_t{tokens} * unit.dim;
  }
}

void EncodePlanBuilder::AddUnit(const UnitRef& ref, const UnitShape& shape,
                                const DevicePlane& plane) {
  const auto index = static_cast<uint32_t>(units_.size());
  cuda::EncodeUnit& unit = units_.emplace_back(shape.task);
  unit.src = reinterpret_cast<uintptr_t>(plane.data_dev) + ref.head * plane.head_stride;
  unit.token_stride = plane.token_stride;
  unit.block_stride = plane.block_stride;
  unit.places_at = now_.places_at;
  unit.asked_at = now_.asked_at;
  unit.tokens = static_cast<uint16_t>(now_.rows);
  unit.wide_loads = (unit.src | unit.token_stride | unit.block_stride) % 16 == 0;
  if (unit.pairs > 0) unit.rope_at = ropes_.TableAt(shape.rope);
  unit.q2_at = q2_bytes_;
  q2_bytes_ += RoundUp(uint64_t{unit.tokens} * unit.dim * sizeof(int16_t), kArenaAlignment);
  unit.result_at = result_bytes_;
  result_bytes_ += ResultBytes(unit.dim);
  unit.fused = shape.can_fuse && unit.wide_loads;
  if (unit.fused) fused_[shape.fused_list + unit.is_bf16].push_back(index);
  lists_[shape.slice_shape].push_back(index);
}

void EncodePlanBuilder::AppendModel(const UnitRef& ref, const HeadProfile* profile,
                                    ByteVector& out) const {
  static const HeadProfile kNone;
  const HeadProfile& head = profile != nullptr ? *profile : kNone;
  const uint32_t dim = ref.spec->head_dim;
  cuda::EncodeModel model{};
  model.mean_exponent = head.mean_exponent;
  model.has_statistics = head.has_statistics();
  model.from_energy = ref.spec->role == PlaneRole::kKey && HasEnergy(profile);
  model.spread_unit = static_cast<int16_t>(2 * Sixteenths(3 * logit_noise_));
  std::vector<int16_t> steps;
  std::vector<uint64_t> weights;
  if (model.from_energy) {
    model.key_base = KeyBaseFromEnergy(logit_noise_, head);
    steps = KeyStepsFromEnergy(model.key_base, head);
    weights = LogitWeights(head, steps);
  }
  Append(std::vector<cuda::EncodeModel>{model}, 1, out);
  Append(weights, dim, out);
  Append(head.mean, dim, out);
  Append(head.log2_sigma_16, dim, out);
  Append(steps, dim, out);
  out.resize(RoundUp(out.size(), 16));
}

void EncodePlanBuilder::PlaceScratch(CudaEncodePlan& plan, uint64_t tasks_bytes) {
  cuda::EncodeLaunch& launch = plan.launch_;
  // Results first, gathered planes behind them: one copy brings both to the host.
  launch.results_at = tasks_bytes;
  plan.gathered_at_ = RoundUp(layers_.size() * sizeof(cuda::LayerResult), kArenaAlignment);
  plan.results_bytes_ = plan.gathered_at_ + gathered_bytes_;
  if (!seed_units_.empty()) {
    const auto add = [&](uint64_t bytes) {
      const uint64_t begin = RoundUp(plan.results_bytes_, kArenaAlignment);
      plan.results_bytes_ = begin + bytes;
      return begin;
    };
    plan.seed_.results_at = launch.results_at + add(seed_units_.size() * sizeof(cuda::SeedResult));
    const uint64_t scales_at = add(seed_scales_bytes_), points_at = add(seed_points_bytes_);
    for (cuda::SeedUnit& unit : seed_units_) {
      unit.scales_at += launch.results_at + scales_at;
      unit.points_at += launch.results_at + points_at;
    }
    for (CudaEncodePlan::Chunk& chunk : chunks_) {
      chunk.seed_scales_at += scales_at;
      chunk.seed_points_at += points_at;
    }
  }
  uint64_t at = RoundUp(launch.results_at + plan.results_bytes_, kArenaAlignment);
  const auto take = [&](uint64_t bytes) {
    const uint64_t begin = at;
    at = RoundUp(at + bytes, kArenaAlignment);
    return begin;
  };
  launch.counter_at = take(2 * sizeof(uint32_t));
  const uint64_t rope_at = take(ropes_.bytes), q2_at = take(q2_bytes_);
  const uint64_t result_at = take(result_bytes_), words_at = take(words_bytes_);
  launch.output_at = take(output_bytes_ + kArenaAlignment);  // read a word beyond its end
  plan.device_bytes_ = at;
  plan.pinned_bytes_ = tasks_bytes + plan.results_bytes_;
  for (cuda::EncodeUnit& unit : units_) {
    unit.rope_at += rope_at;
    unit.q2_at += q2_at;
    unit.result_at += result_at;
  }
  for (cuda::EncodeTile& tile : tiles_) {
    tile.words_at += words_at;
    tile.states_at += words_at;
  }
  for (cuda::SeedUnit& unit : seed_units_) unit.rope_at += rope_at;
  ropes_.Move(0, 0, rope_at);
  for (cuda::GatherTask& task : gathers_) task.out_at += launch.results_at + plan.gathered_at_;
  for (CudaEncodePlan::Chunk& chunk : chunks_) chunk.gathered_at += plan.gathered_at_;
}

// Regions one behind the other: the tables, what is uploaded with the plan, results, scratch.
void EncodePlanBuilder::Finish(CudaEncodePlan& plan) {
  plan.layout_ = &layout_;
  plan.settings_ = settings_;
  plan.tables_ = tables_;
  plan.launch_ = {};
  cuda::EncodeLaunch& launch = plan.launch_;
  ByteVector& tasks = plan.tasks_;
  tasks.clear();
  const uint64_t tables_bytes = tables_->bytes.size();
  for (int s = 0; s < cuda::kSliceShapes; ++s) {
    launch.unit_lists_at[s] = tables_bytes + Place(lists_[s], tasks);
    launch.unit_lists[s] = static_cast<uint32_t>(lists_[s].size());
  }
  for (int s = 0; s < cuda::kFusedLists; ++s) {
    launch.fused_lists_at[s] = tables_bytes + Place(fused_[s], tasks);
    launch.fused_lists[s] = static_cast<uint32_t>(fused_[s].size());
  }
  launch.layers_at = tables_bytes + Place(layers_, tasks);
  const uint64_t places_at = tables_bytes + Place(places_, tasks);
  const uint64_t asked_at = tables_bytes + Place(asked_, tasks);
  const uint64_t kept_at = tables_bytes + Place(kept_tokens_, tasks);
  // Copied once their offsets count from the arena's start.
  const uint64_t units_in = MakeRoom(units_, tasks), tiles_in = MakeRoom(tiles_, tasks);
  const uint64_t ropes_in = MakeRoom(ropes_.tasks, tasks);
  const uint64_t gathers_in = MakeRoom(gathers_, tasks);
  const uint64_t seeds_in = MakeRoom(seed_units_, tasks);
  tasks.resize(RoundUp(tasks.size(), kArenaAlignment));
  launch.units_at = tables_bytes + units_in;
  launch.tiles_at = tables_bytes + tiles_in;
  launch.rope_tasks_at = tables_bytes + ropes_in;
  launch.gathers_at = tables_bytes + gathers_in;
  for (cuda::EncodeUnit& unit : units_) {
    unit.places_at += places_at;
    unit.asked_at += asked_at;
  }
  for (cuda::SeedUnit& unit : seed_units_) {
    unit.places_at += places_at;
    unit.order_at = kept_at;  // rows are coded in their order
  }
  plan.seed_ = SeedLaunchOf(seed_units_, tables_bytes + seeds_in);
  ropes_.Move(frequencies_at_, kept_at, 0);
  for (cuda::GatherTask& task : gathers_) task.places_at += places_at;
  PlaceScratch(plan, tables_bytes + tasks.size());
  launch.units = static_cast<uint32_t>(units_.size());
  launch.tiles = static_cast<uint32_t>(tiles_.size());
  launch.layers = static_cast<uint32_t>(layers_.size());
  launch.rope_tasks = static_cast<uint32_t>(ropes_.tasks.size());
  launch.gathers = static_cast<uint32_t>(gathers_.size());
  launch.max_dim = max_dim_;
  launch.value_unit_16 = chunks_.front().header.value_unit_16;
  launch.stats = static_cast<uint8_t>(settings_.stats);
  CopyTo(units_, units_in, tasks);
  CopyTo(tiles_, tiles_in, tasks);
  CopyTo(ropes_.tasks, ropes_in, tasks);
  CopyTo(gathers_, gathers_in, tasks);
  CopyTo(seed_units_, seeds_in, tasks);
  plan.chunks_.swap(chunks_);
}

}  // namespace latticekv
