#include "core/codec/cpu/tile_coder.h"

#include <algorithm>
#include <array>

#include "core/codec/side_arithmetic.h"

namespace latticekv {
namespace {

// A group of a tile: its points, how its channels are coded, its unit's coset probability.
template <typename Point>
struct Group {
  Point* q2;
  const PointCode* codes;  // of its eight channels
  uint32_t half_frequency;
};

// The codes of a unit's channels, as runs of rounds want them.
struct UnitCodes {
  std::vector<PointCode> channels;  // of the plan's sigma_rows()
  std::vector<uint32_t> windows;    // RoundRun::codes; none where they change from row to row
  uint32_t stride = 0;
  bool any_low_bits = false;
};

UnitCodes MakeUnitCodes(const UnitPlan& plan, bool backwards) {
  UnitCodes out;
  for (int16_t s : plan.sigma_rows()) {
    out.channels.push_back(PointCodeOf(SigmaCodeOf(s)));
    out.any_low_bits |= out.channels.back() >> kPointLowBitsShift != 0;
  }
  // A unit of zeros or of raw vectors alone has no channels to code.
  if (!plan.offset.empty() || out.channels.empty()) return out;
  const uint32_t groups = plan.unit.spec->head_dim / 8;
  out.stride = groups + kLanes - 1;
  for (uint32_t i = 0; i < 8; ++i) {
    for (uint32_t p = 0; p < out.stride; ++p) {
      const uint32_t group = backwards ? kLanes * groups + kLanes - 1 - p : p;
      const PointCode code = out.channels[group % groups * 8 + i];
      out.windows.push_back(backwards ? EncodeCodeOf(code, i) : code);
    }
  }
  return out;
}

const PointCode* CodesOfGroup(const UnitCodes& codes, const UnitPlan& plan, size_t group) {
  const size_t in_row = plan.sigma.size() / 8;
  return &codes.channels[plan.SigmaAt(group / in_row) + group % in_row * 8];
}

// A stretch of a tile's groups: whole rounds of one unit, or one round of groups of several units
// or of less than 32.
template <typename Point>
struct Stretch {
  uint32_t rounds = 0;  // of one unit; 0: `groups` are the round
  size_t unit = 0;
  size_t first = 0;  // group of the unit
  std::vector<Group<Point>> groups;
};

// `Unit` is CodedUnit or const CodedUnit.
template <typename Point, typename Unit>
std::vector<Stretch<Point>> StretchesOf(std::span<Unit> units,
                                        const std::vector<UnitCodes>& codes) {
  std::vector<Stretch<Point>> out;
  std::vector<Group<Point>> mixed;
  const auto close = [&] {
    if (!mixed.empty()) out.push_back({0, 0, 0, std::move(mixed)});
    mixed.clear();
  };
  for (size_t u = 0; u < units.size(); ++u) {
    const uint32_t half = HalfCosetFrequency(units[u].plan.header.coset);
    const size_t groups = units[u].q2.size() / 8;
    size_t g = 0;
    const auto mix = [&](size_t end) {
      for (; g < groups && mixed.size() < end; ++g) {
        mixed.push_back({&units[u].q2[8 * g], CodesOfGroup(codes[u], units[u].plan, g), half});
      }
      if (mixed.size() == kLanes) close();
    };
    if (!mixed.empty()) mix(kLanes);
    if (const size_t rounds = (groups - g) / kLanes; rounds > 0) {
      out.push_back({static_cast<uint32_t>(rounds), u, g, {}});
      g += rounds * kLanes;
    }
    mix(kLanes);
  }
  close();
  return out;
}

// Calls `run_rounds(run, first group)` for the rounds of a stretch of one unit, in order or
// backwards: once, or for each round where the codes change from row to row.
template <typename Point, typename RunRounds>
void ForRuns(const Stretch<Point>& stretch, const UnitCodes& codes, const UnitPlan& plan,
             uint32_t* state, bool backwards, RunRounds run_rounds) {
  const uint32_t half = HalfCosetFrequency(plan.header.coset);
  if (plan.offset.empty()) {
    const auto groups = static_cast<uint32_t>(plan.sigma.size() / 8);
    run_rounds(RoundRun{codes.windows.data(), codes.stride, groups,
                        static_cast<uint32_t>(stretch.first % groups), stretch.rounds,
                        codes.any_low_bits, half, state},
               stretch.first);
    return;
  }
  std::array<uint32_t, 8 * kLanes> window;
  for (uint32_t r = 0; r < stretch.rounds; ++r) {
    const size_t round = backwards ? stretch.rounds - 1 - r : r;
    const size_t first = stretch.first + round * kLanes;
    for (size_t l = 0; l < kLanes; ++l) {
      const PointCode* group = CodesOfGroup(codes, plan, first + l);
      const size_t place = backwards ? kLanes - 1 - l : l;
      for (uint32_t i = 0; i < 8; ++i) {
        window[i * kLanes + place] = backwards ? EncodeCodeOf(group[i], i) : group[i];
      }
    }
    run_rounds(RoundRun{window.data(), kLanes, kLanes, 0, 1, codes.any_low_bits, half, state},
               first);
  }
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
    if (!plan.offset.empty()) AddTo(u.step_values, plan.offset);
  }
  ResolveStatistics(profile, value_unit_16, plan);
  AddTo(u.mean_values, plan.mean);
  AddTo(u.sigma_values, plan.sigma);
  if (!PlanIsInRange(plan)) return false;
  ShiftSigmas(plan);
  return true;
}

void EncodeRound(std::span<const Group<const int16_t>> groups, RansEncoder& coder) {
  const EntropyTables& tables = Tables();
  const int count = static_cast<int>(groups.size());
  for (int i = 7; i >= 0; --i) {
    for (int l = count - 1; l >= 0; --l) {
      const int low = static_cast<int>(groups[l].codes[i] >> kPointLowBitsShift);
      const int bits = low > 0 ? low - (i == 7) : 0;
      if (bits > 0) coder.Bits(l, (groups[l].q2[i] >> 1 >> (i == 7)) & ((1 << bits) - 1), bits);
    }
    for (int l = count - 1; l >= 0; --l) {
      const PointCode code = groups[l].codes[i];
      const int k = groups[l].q2[i] >> 1, low = static_cast<int>(code >> kPointLowBitsShift);
      const int coset = low > 0 ? 0 : 3 * (groups[l].q2[i] & 1);
      const int parity = i == 7 && low == 0 ? kEven + (k & 1) : 0;
      coder.Symbol(l, tables.encode[(code & 255) + coset + parity][(k >> low) + kSymbolOffset]);
    }
  }
  for (int l = count - 1; l >= 0; --l) {
    const auto half = static_cast<uint16_t>(groups[l].half_frequency);
    const auto whole = static_cast<uint16_t>(kProbabilityTotal - half);
    const bool is_half = groups[l].q2[0] & 1;
    coder.Symbol(l, is_half ? EncodeEntry{half, whole, 0} : EncodeEntry{whole, 0, 0});
  }
}

void DecodeRound(std::span<const Group<int16_t>> groups, RansDecoder& coder) {
  const EntropyTables& tables = Tables();
  const int count = static_cast<int>(groups.size());
  int half[kLanes], k[kLanes], sum[kLanes] = {};
  for (int l = 0; l < count; ++l) half[l] = coder.Coset(l, groups[l].half_frequency);
  for (int i = 0; i < 8; ++i) {
    for (int l = 0; l < count; ++l) {
      const PointCode code = groups[l].codes[i];
      const bool plain = code >> kPointLowBitsShift == 0;
      const int parity = i == 7 ? kEven + (sum[l] & 1) : 0;
      k[l] = coder.Symbol(l, tables.decode[(code & 255) + (plain ? 3 * half[l] + parity : 0)]);
    }
    for (int l = 0; l < count; ++l) {
      const int low = static_cast<int>(groups[l].codes[i] >> kPointLowBitsShift);
      if (low == 0) continue;
      const int bits = low - (i == 7);
      if (bits > 0) k[l] = k[l] * (1 << bits) + static_cast<int>(coder.Bits(l, bits));
      if (i == 7) k[l] = 2 * k[l] + (sum[l] & 1);
    }
    for (int l = 0; l < count; ++l) {
      sum[l] += k[l];
      groups[l].q2[i] = static_cast<int16_t>(2 * k[l] + half[l]);
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

void EncodeTileSymbols(const CpuKernels& kernels, std::span<const CodedUnit> units,
                       RansEncoder& coder) {
  size_t symbols = 0;
  std::vector<UnitCodes> codes;
  for (const CodedUnit& u : units) {
    const size_t side = u.step_values.size() + u.mean_values.size() + u.sigma_values.size();
    symbols += 2 * side + 2 * u.q2.size() + u.q2.size() / 8;
    codes.push_back(MakeUnitCodes(u.plan, true));
  }
  coder.Start(symbols);
  const auto stretches = StretchesOf<const int16_t>(units, codes);
  for (size_t i = stretches.size(); i-- > 0;) {
    const Stretch<const int16_t>& stretch = stretches[i];
    if (stretch.rounds == 0) {
      EncodeRound(stretch.groups, coder);
      continue;
    }
    const CodedUnit& u = units[stretch.unit];
    ForRuns(stretch, codes[stretch.unit], u.plan, coder.state(), true,
            [&](const RoundRun& rounds, size_t first) {
              EncodeRun run{rounds, &u.q2[8 * first], coder.out()};
              kernels.encode_rounds(run);
              coder.out() = run.out;
            });
  }
  for (size_t i = units.size(); i-- > 0;) {
    const CodedUnit& u = units[i];
    EncodeSide(u.sigma_values, u.plan.header.sigma_code, coder);
    EncodeSide(u.mean_values, u.plan.header.mean_code, coder);
    EncodeSide(u.step_values, u.plan.header.step_code, coder);
  }
}

bool DecodeTileSymbols(const CpuKernels& kernels, std::span<CodedUnit> units,
                       std::span<const HeadProfile* const> profiles, int16_t value_unit_16,
                       RansDecoder& coder) {
  std::vector<UnitCodes> codes;
  for (size_t i = 0; i < units.size(); ++i) {
    if (!DecodeUnitSide(units[i], profiles[i], value_unit_16, coder)) return false;
    units[i].q2.resize(units[i].plan.coded.size() * units[i].plan.unit.spec->head_dim);
    codes.push_back(MakeUnitCodes(units[i].plan, false));
  }
  for (const Stretch<int16_t>& stretch : StretchesOf<int16_t>(units, codes)) {
    if (stretch.rounds == 0) {
      DecodeRound(stretch.groups, coder);
    } else {
      CodedUnit& u = units[stretch.unit];
      ForRuns(stretch, codes[stretch.unit], u.plan, coder.state(), false,
              [&](const RoundRun& rounds, size_t first) {
                if (!coder.ok()) return;
                DecodeRun run{rounds, &u.q2[8 * first], coder.next(), coder.end()};
                kernels.decode_rounds(run);
                coder.Advance(run.next);
              });
    }
    if (!coder.ok()) return false;
  }
  return coder.Finished();
}

}  // namespace latticekv
