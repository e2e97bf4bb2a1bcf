#include "core/codec/tile_format.h"

#include <algorithm>
#include <bit>

#include "core/codec/entropy_tables.h"
#include "core/codec/fixed_point.h"

namespace latticekv {
namespace {

uint8_t PackSideCode(const SideCode& code) {
  return static_cast<uint8_t>(code.spread | code.low_bits << 4);
}

bool UnpackSideCode(uint8_t byte, SideCode& code) {
  code = {static_cast<uint8_t>(byte & 15), static_cast<uint8_t>(byte >> 4)};
  return code.spread < kEntropyTables;
}

bool SourcesAreValid(const UnitHeader& h, const UnitRef& unit, const HeadProfile* profile) {
  const bool needs_statistics =
      h.mean_source >= MeanSource::kProfile || h.spread_source >= SpreadSource::kProfile;
  if (needs_statistics && (profile == nullptr || !profile->has_statistics())) return false;
  if (h.step_source != StepSource::kProfile) return true;
  return unit.spec->role == PlaneRole::kKey && profile != nullptr && !profile->step_16.empty();
}

}  // namespace

std::vector<UnitRef> LayerUnits(const LayerSpec& layer) {
  std::vector<UnitRef> out;
  for (size_t p = 0; p < layer.planes.size(); ++p) {
    if (layer.planes[p].role == PlaneRole::kOpaque) continue;
    for (uint32_t h = 0; h < layer.planes[p].heads; ++h) out.push_back({p, h, &layer.planes[p]});
  }
  return out;
}

std::vector<uint32_t> SplitIntoTiles(const std::vector<UnitRef>& units, uint32_t tokens) {
  size_t elements = 0;
  for (const UnitRef& u : units) elements += size_t{u.spec->head_dim} * tokens;
  const size_t tiles =
      std::clamp<size_t>(elements / kTileElements, 1, std::max<size_t>(1, units.size()));
  std::vector<uint32_t> out;
  for (size_t i = 0; i < tiles && !units.empty(); ++i) {
    out.push_back(static_cast<uint32_t>(units.size() * (i + 1) / tiles - units.size() * i / tiles));
  }
  return out;
}

absl::StatusOr<std::vector<TileSpan>> ReadTiles(std::span<const UnitRef> units, ByteReader& in) {
  const uint32_t tiles = in.Get<uint16_t>();
  std::vector<std::pair<uint32_t, uint32_t>> table;  // units, bytes
  for (uint32_t i = 0; i < tiles && in.ok(); ++i) {
    const uint32_t count = in.Get<uint16_t>();
    table.emplace_back(count, in.Get<uint32_t>());
  }
  std::vector<TileSpan> out;
  for (const auto& [count, size] : table) {
    const ByteSpan bytes = in.GetBytes(size);
    if (!in.ok() || count == 0 || count > units.size()) break;
    out.push_back({units.first(count), bytes});
    units = units.subspan(count);
  }
  if (!in.ok() || out.size() != tiles || !units.empty()) {
    return absl::DataLossError("frame: damaged tile table");
  }
  return out;
}

absl::Status CheckCodedSize(bool has_symbols, size_t size_bytes) {
  if (!has_symbols) {
    return size_bytes == 0 ? absl::OkStatus()
                           : absl::DataLossError("frame: trailing bytes in a tile");
  }
  if (size_bytes >= 4 * kLanes && size_bytes % 2 == 0) return absl::OkStatus();
  return absl::DataLossError("frame: tile too short for its coder states");
}

void AppendUnitHeader(const UnitHeader& h, ByteWriter& out) {
  const int modes = static_cast<int>(h.mean_source) | static_cast<int>(h.spread_source) << 2 |
                    static_cast<int>(h.step_source) << 4 | h.all_raw << 6 | h.all_zero << 7;
  out.Put(static_cast<uint8_t>(modes));
  out.Put(static_cast<uint8_t>(h.raw_tokens.size()));
  out.Put(h.coset);
  out.Put(h.step_base);
  out.Put(h.sigma_base);
  out.Put(PackSideCode(h.mean_code));
  out.Put(PackSideCode(h.sigma_code));
  out.Put(PackSideCode(h.step_code));
  for (uint8_t t : h.raw_tokens) out.Put(t);
}

absl::StatusOr<UnitHeader> ReadUnitHeader(uint32_t tokens, const UnitRef& unit,
                                          const HeadProfile* profile, ByteReader& in) {
  UnitHeader h;
  const int modes = in.Get<uint8_t>();
  h.mean_source = static_cast<MeanSource>(modes & 3);
  h.spread_source = static_cast<SpreadSource>(modes >> 2 & 3);
  h.step_source = static_cast<StepSource>(modes >> 4 & 3);
  h.all_raw = modes >> 6 & 1;
  h.all_zero = modes >> 7 & 1;
  const size_t raw_count = in.Get<uint8_t>();
  h.coset = in.Get<uint8_t>();
  h.step_base = in.Get<int16_t>();
  h.sigma_base = in.Get<int8_t>();
  bool good = UnpackSideCode(in.Get<uint8_t>(), h.mean_code);
  good &= UnpackSideCode(in.Get<uint8_t>(), h.sigma_code);
  good &= UnpackSideCode(in.Get<uint8_t>(), h.step_code);
  good &= (modes >> 4 & 3) != 3 && h.coset < 32 && h.step_base >= -4 * kMaxStepIndex &&
          h.step_base <= 4 * kMaxStepIndex;
  good &= !(h.all_raw && h.all_zero) && !((h.all_raw || h.all_zero) && raw_count != 0);
  good &= raw_count <= tokens && SourcesAreValid(h, unit, profile);
  if (good) h.raw_tokens.reserve(raw_count);
  for (size_t i = 0; i < raw_count && good; ++i) {
    const uint8_t t = in.Get<uint8_t>();
    good &= t < tokens && (i == 0 || t > h.raw_tokens.back());
    h.raw_tokens.push_back(t);
  }
  if (!in.ok() || !good) return absl::DataLossError("frame: damaged unit header");
  return h;
}

uint32_t KeyStepSlots(const PlaneSpec& plane) {
  return plane.head_dim - plane.rope.rotary_dims / 2;
}

uint32_t KeyStepSlot(const PlaneSpec& plane, uint32_t channel) {
  const uint32_t pairs = plane.rope.rotary_dims / 2;
  return channel < pairs ? channel : channel - pairs;
}

void ResolveRows(uint32_t tokens, UnitPlan& plan) {
  const UnitHeader& h = plan.header;
  plan.raw.assign(tokens, h.all_raw);
  for (uint8_t t : h.raw_tokens) plan.raw[t] = 1;
  plan.coded.clear();
  for (uint32_t t = 0; t < tokens && !h.all_zero; ++t) {
    if (!plan.raw[t]) plan.coded.push_back(static_cast<uint16_t>(t));
  }
}

void ResolveSteps(const HeadProfile* profile, UnitPlan& plan) {
  const PlaneSpec& spec = *plan.unit.spec;
  const UnitHeader& h = plan.header;
  plan.step.assign(spec.role == PlaneRole::kKey ? spec.head_dim : plan.coded.size(), h.step_base);
  if (h.step_source != StepSource::kProfile) return;
  for (uint32_t c = 0; c < spec.head_dim; ++c) {
    plan.step[c] = ProfileStep(h.step_base, profile->step_16[c]);
  }
}

void ResolveStatistics(const HeadProfile* profile, int16_t value_unit_16, UnitPlan& plan) {
  const PlaneSpec& spec = *plan.unit.spec;
  const UnitHeader& h = plan.header;
  const bool key = spec.role == PlaneRole::kKey;
  const bool mean = h.mean_source >= MeanSource::kProfile;
  const bool spread = h.spread_source >= SpreadSource::kProfile;
  plan.mean.assign(spec.head_dim, 0);
  plan.sigma.assign(spec.head_dim, 0);
  for (uint32_t c = 0; c < spec.head_dim; ++c) {
    // Values are measured over the token's rms, in units that do not depend on the token.
    const int step_16 = key ? 4 * plan.step[c] : value_unit_16;
    if (mean) plan.mean[c] = MeanInQuarterSteps(profile->mean[c], profile->mean_exponent, step_16);
    int sigma = h.spread_source == SpreadSource::kProfile ? 0 : h.sigma_base;
    if (spread) sigma += SigmaIndexOf(profile->log2_sigma_16[c], step_16);
    plan.sigma[c] = static_cast<int16_t>(sigma);
  }
}

void ShiftSigmas(UnitPlan& plan) {
  if (plan.offset.empty()) return;
  const auto [finest, coarsest] = std::minmax_element(plan.offset.begin(), plan.offset.end());
  plan.lowest_shift = SigmaShift(*coarsest);
  plan.shifted_sigma.clear();
  for (int shift = plan.lowest_shift; shift <= SigmaShift(*finest); ++shift) {
    for (int16_t s : plan.sigma) {
      plan.shifted_sigma.push_back(static_cast<int16_t>(ClampValue(s + shift, 0, kMaxSigmaIndex)));
    }
  }
}

bool PlanIsInRange(const UnitPlan& plan) {
  bool good = true;
  for (int16_t o : plan.offset) good &= o >= -kMaxStepOffset && o <= kMaxStepOffset;
  for (int16_t s : plan.step) good &= s >= -kMaxStepIndex && s <= kMaxStepIndex;
  for (int32_t m : plan.mean) good &= m >= -2 * kMaxMeanQuarters && m <= 2 * kMaxMeanQuarters;
  for (int16_t s : plan.sigma) good &= s >= 0 && s <= kMaxSigmaIndex;
  return good;
}

void AppendTokenOffsets(std::span<const int16_t> offsets, ByteWriter& out) {
  const auto [low, high] = std::minmax_element(offsets.begin(), offsets.end());
  const int width = std::bit_width(static_cast<unsigned>(*high - *low));
  out.Put(static_cast<int8_t>(*low));
  out.Put(static_cast<uint8_t>(width));
  ByteVector packed((offsets.size() * width + 7) / 8);
  for (size_t i = 0; i < offsets.size() * width; ++i) {
    const int bit = (offsets[i / width] - *low) >> (i % width) & 1;
    packed[i / 8] |= static_cast<std::byte>(bit << (i % 8));
  }
  out.PutBytes(packed);
}

absl::StatusOr<std::vector<int16_t>> ReadTokenOffsets(uint32_t tokens, ByteReader& in) {
  const int low = in.Get<int8_t>();
  const size_t width = in.Get<uint8_t>();
  bool good = in.ok() && width <= 6;
  const size_t bits = good ? tokens * width : 0;
  const ByteSpan packed = in.GetBytes((bits + 7) / 8);
  std::vector<int16_t> out(tokens, static_cast<int16_t>(low));
  for (size_t i = 0; i < packed.size() * 8; ++i) {
    const int bit = std::to_integer<int>(packed[i / 8] >> (i % 8)) & 1;
    if (i >= bits) {
      good &= bit == 0;
    } else {
      out[i / width] = static_cast<int16_t>(out[i / width] + (bit << (i % width)));
    }
  }
  for (int16_t o : out) good &= o >= -kMaxStepOffset && o <= kMaxStepOffset;
  if (!in.ok() || !good) return absl::DataLossError("frame: damaged step offsets of a layer");
  return out;
}

}  // namespace latticekv
