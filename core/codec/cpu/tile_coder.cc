#include "core/codec/cpu/tile_coder.h"

#include <algorithm>

#include "core/codec/side_arithmetic.h"

namespace latticekv {
namespace {

// A group that a lane decodes.
struct Lane {
  const CodedUnit* unit = nullptr;
  int16_t* q2 = nullptr;           // of the group
  const int16_t* sigma = nullptr;  // of the group's channels
  bool half = false;
  int32_t sum = 0;  // of the first seven k
};

// Walks the groups of a tile's coded vectors in order, 32 at a time.
class GroupWalk {
 public:
  explicit GroupWalk(std::span<CodedUnit> units) : units_(units) {}
  // Number of lanes filled, 0 at the end.
  int Next(Lane* lanes) {
    int count = 0;
    while (count < kLanes && unit_ < units_.size()) {
      CodedUnit& u = units_[unit_];
      const size_t dim = u.plan.unit.spec->head_dim;
      if (at_ == u.plan.coded.size() * dim) {
        ++unit_;
        at_ = 0;
        continue;
      }
      lanes[count++] = {&u, u.q2.data() + at_, u.plan.sigma.data() + at_ % dim, false, 0};
      at_ += 8;
    }
    return count;
  }

 private:
  std::span<CodedUnit> units_;
  size_t unit_ = 0, at_ = 0;
};

// Table and raw bits of coordinate `i` of a group.
struct CoordinateCode {
  int16_t table;
  int8_t low_bits;      // to send
  int8_t parity_known;  // 1: the lowest bit follows from the sum of the others
};

CoordinateCode CodeOf(const Lane& lane, int i) {
  const SigmaCode code = SigmaCodeOf(lane.sigma[i]);
  const int8_t last = i == 7;
  if (code.low_bits > 0) {
    return {static_cast<int16_t>(TableId(code.spread, 1, kAll)),
            static_cast<int8_t>(code.low_bits - last), last};
  }
  const int subset = last ? kEven + (lane.sum & 1) : kAll;
  return {static_cast<int16_t>(TableId(code.spread, lane.half, static_cast<Subset>(subset))), 0, 0};
}

// Backwards, as the coder wants it.
void EncodeSide(std::span<const int32_t> values, SideCode code, RansEncoder& coder) {
  const auto& table = Tables().encode[TableId(code.spread, code.low_bits > 0, kAll)];
  for (size_t end = values.size(); end > 0;) {
    const size_t at = (end - 1) / kLanes * kLanes;
    for (size_t i = end; i-- > at && code.low_bits > 0;) {
      coder.Bits(static_cast<int>(i - at), values[i] & ((1 << code.low_bits) - 1), code.low_bits);
    }
    for (size_t i = end; i-- > at;) {
      coder.Symbol(static_cast<int>(i - at), table[(values[i] >> code.low_bits) + kSymbolOffset]);
    }
    end = at;
  }
}

void DecodeSide(std::span<int32_t> values, SideCode code, RansDecoder& coder) {
  const auto& table = Tables().decode[TableId(code.spread, code.low_bits > 0, kAll)];
  for (size_t at = 0; at < values.size(); at += kLanes) {
    const auto round = values.subspan(at, std::min<size_t>(kLanes, values.size() - at));
    for (size_t i = 0; i < round.size(); ++i) {
      round[i] = coder.Symbol(static_cast<int>(i), table) * (1 << code.low_bits);
    }
    for (size_t i = 0; i < round.size() && code.low_bits > 0; ++i) {
      round[i] += static_cast<int32_t>(coder.Bits(static_cast<int>(i), code.low_bits));
    }
  }
}

template <typename Array>
void AddTo(const std::vector<int32_t>& values, Array& array) {
  for (size_t i = 0; i < values.size(); ++i) {
    array[i] = static_cast<typename Array::value_type>(array[i] + values[i]);
  }
}

void AddKeySteps(const std::vector<int32_t>& values, UnitPlan& plan) {
  if (values.empty()) return;
  for (uint32_t c = 0; c < plan.step.size(); ++c) {
    plan.step[c] = static_cast<int16_t>(plan.step[c] + values[KeyStepSlot(*plan.unit.spec, c)]);
  }
}

bool SideIsInRange(const std::vector<int32_t>& values) {
  return std::all_of(values.begin(), values.end(),
                     [](int32_t v) { return v >= -kMaxSideDifference && v <= kMaxSideDifference; });
}

bool DecodeUnitSide(CodedUnit& u, const HeadProfile* profile, int16_t value_unit_16,
                    RansDecoder& coder) {
  UnitPlan& plan = u.plan;
  const SideSizes sizes = SideSizesOf(plan);
  u.step_values.resize(sizes.step);
  u.mean_values.resize(sizes.mean);
  u.sigma_values.resize(sizes.sigma);
  DecodeSide(u.step_values, plan.header.step_code, coder);
  DecodeSide(u.mean_values, plan.header.mean_code, coder);
  DecodeSide(u.sigma_values, plan.header.sigma_code, coder);
  if (!SideIsInRange(u.step_values) || !SideIsInRange(u.sigma_values)) return false;
  ResolveSteps(profile, plan);
  if (plan.unit.spec->role == PlaneRole::kKey) {
    AddKeySteps(u.step_values, plan);
  } else {
    AddTo(u.step_values, plan.step);
  }
  ResolveStatistics(profile, value_unit_16, plan);
  AddTo(u.mean_values, plan.mean);
  AddTo(u.sigma_values, plan.sigma);
  return PlanIsInRange(plan);
}

// A group to encode: its points, how its channels are coded, its unit's coset probability.
struct GroupRef {
  const int16_t* q2;
  const SigmaCode* codes;
  uint32_t half_frequency;
};

std::vector<GroupRef> GroupsOf(std::span<const CodedUnit> units,
                               const std::vector<std::vector<SigmaCode>>& codes) {
  std::vector<GroupRef> out;
  for (size_t i = 0; i < units.size(); ++i) {
    const CodedUnit& u = units[i];
    const size_t dim = u.plan.unit.spec->head_dim;
    const uint32_t half = HalfCosetFrequency(u.plan.header.coset);
    for (size_t row = 0; row < u.q2.size(); row += dim) {
      for (size_t c = 0; c < dim; c += 8) out.push_back({&u.q2[row + c], &codes[i][c], half});
    }
  }
  return out;
}

void EncodeLowBits(const GroupRef& group, int i, int lane, RansEncoder& coder) {
  const int bits = PointLowBits(group.codes[i], i);
  if (bits > 0) coder.Bits(lane, (group.q2[i] >> 1 >> (i == 7)) & ((1 << bits) - 1), bits);
}

void EncodeRound(std::span<const GroupRef> groups, bool any_low_bits, RansEncoder& coder) {
  const EntropyTables& tables = Tables();
  const int count = static_cast<int>(groups.size());
  for (int i = 7; i >= 0; --i) {
    for (int l = count - 1; l >= 0 && any_low_bits; --l) EncodeLowBits(groups[l], i, l, coder);
    for (int l = count - 1; l >= 0; --l) {
      coder.Symbol(l, PointEntry(tables, groups[l].codes[i], groups[l].q2[i], i));
    }
  }
  for (int l = count - 1; l >= 0; --l) {
    const auto half = static_cast<uint16_t>(groups[l].half_frequency);
    const auto whole = static_cast<uint16_t>(kProbabilityTotal - half);
    const bool is_half = groups[l].q2[0] & 1;
    coder.Symbol(l, is_half ? EncodeEntry{half, whole, 0} : EncodeEntry{whole, 0, 0});
  }
}

void DecodeGroups(Lane* lanes, int count, RansDecoder& coder) {
  for (int l = 0; l < count; ++l) {
    lanes[l].half = coder.Coset(l, HalfCosetFrequency(lanes[l].unit->plan.header.coset));
  }
  const EntropyTables& tables = Tables();
  for (int i = 0; i < 8; ++i) {
    CoordinateCode codes[kLanes];
    int k[kLanes];
    bool any_bits = false;
    for (int l = 0; l < count; ++l) {
      codes[l] = CodeOf(lanes[l], i);
      k[l] = coder.Symbol(l, tables.decode[codes[l].table]);
      any_bits |= codes[l].low_bits > 0 || codes[l].parity_known;
    }
    for (int l = 0; l < count && any_bits; ++l) {
      if (codes[l].low_bits > 0) {
        k[l] = k[l] * (1 << codes[l].low_bits) + static_cast<int>(coder.Bits(l, codes[l].low_bits));
      }
      if (codes[l].parity_known) k[l] = 2 * k[l] + (lanes[l].sum & 1);
    }
    for (int l = 0; l < count; ++l) {
      lanes[l].sum += k[l];
      lanes[l].q2[i] = static_cast<int16_t>(2 * k[l] + lanes[l].half);
    }
  }
}

}  // namespace

SideSizes SideSizesOf(const UnitPlan& plan) {
  const UnitHeader& h = plan.header;
  const PlaneSpec& spec = *plan.unit.spec;
  if (plan.coded.empty()) return {0, 0, 0};
  const bool own_mean =
      h.mean_source == MeanSource::kOwn || h.mean_source == MeanSource::kDifference;
  const bool own_spread =
      h.spread_source == SpreadSource::kOwn || h.spread_source == SpreadSource::kDifference;
  const size_t steps = spec.role == PlaneRole::kKey ? KeyStepSlots(spec) : plan.coded.size();
  return {h.step_source == StepSource::kSent ? steps : 0, own_mean ? spec.head_dim : 0,
          own_spread ? spec.head_dim : 0};
}

bool TileHasSymbols(std::span<const CodedUnit> units) {
  return std::any_of(units.begin(), units.end(),
                     [](const CodedUnit& u) { return !u.plan.coded.empty(); });
}

void EncodeTileSymbols(std::span<const CodedUnit> units, RansEncoder& coder) {
  size_t symbols = 0;
  bool any_low_bits = false;
  std::vector<std::vector<SigmaCode>> codes(units.size());
  for (size_t i = 0; i < units.size(); ++i) {
    const CodedUnit& u = units[i];
    const size_t side = u.step_values.size() + u.mean_values.size() + u.sigma_values.size();
    symbols += 2 * side + 2 * u.q2.size() + u.q2.size() / 8;
    for (int16_t s : u.plan.sigma) {
      codes[i].push_back(SigmaCodeOf(s));
      any_low_bits |= codes[i].back().low_bits > 0;
    }
  }
  coder.Start(symbols);
  const std::vector<GroupRef> groups = GroupsOf(units, codes);
  for (size_t end = groups.size(); end > 0;) {
    const size_t at = (end - 1) / kLanes * kLanes;
    EncodeRound(std::span(groups).subspan(at, end - at), any_low_bits, coder);
    end = at;
  }
  for (size_t i = units.size(); i-- > 0;) {
    const CodedUnit& u = units[i];
    EncodeSide(u.sigma_values, u.plan.header.sigma_code, coder);
    EncodeSide(u.mean_values, u.plan.header.mean_code, coder);
    EncodeSide(u.step_values, u.plan.header.step_code, coder);
  }
}

bool DecodeTileSymbols(std::span<CodedUnit> units, std::span<const HeadProfile* const> profiles,
                       int16_t value_unit_16, RansDecoder& coder) {
  for (size_t i = 0; i < units.size(); ++i) {
    if (!DecodeUnitSide(units[i], profiles[i], value_unit_16, coder)) return false;
    units[i].q2.resize(units[i].plan.coded.size() * units[i].plan.unit.spec->head_dim);
  }
  GroupWalk walk(units);
  Lane lanes[kLanes];
  while (const int count = walk.Next(lanes)) {
    DecodeGroups(lanes, count, coder);
    if (!coder.ok()) return false;
  }
  return coder.Finished();
}

}  // namespace latticekv
