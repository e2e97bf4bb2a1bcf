// How a quantised unit is coded: sources of steps, means and spreads, codes of what is sent.
#include <algorithm>
#include <array>

#include "core/codec/cpu/quantizer.h"
#include "core/codec/cpu/unit_work.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// Picks the coset index for `halves` of `groups`; returns the cost in 1/256 bit.
uint64_t ChooseCoset(uint64_t halves, uint64_t groups, uint8_t& index) {
  if (groups == 0) {
    index = 0;
    return 0;
  }
  const uint64_t nearest = (halves * 32 + groups / 2) / groups;
  index = static_cast<uint8_t>(std::min<uint64_t>(nearest, 31));
  const uint32_t half = HalfCosetFrequency(index);
  return halves * kCost256[half] + (groups - halves) * kCost256[kProbabilityTotal - half];
}

void FillRows(const Work& w, CodedUnit& unit) {
  UnitHeader& h = unit.plan.header;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) h.raw_tokens.push_back(static_cast<uint8_t>(t));
  }
  // A count of 256 does not fit the header's byte, and then nothing is coded anyway.
  if (h.raw_tokens.size() == w.tokens) {
    h.all_raw = true;
    h.raw_tokens.clear();
  }
  ResolveRows(w.tokens, unit.plan);
  for (uint16_t t : unit.plan.coded) {
    if (w.scale.varies()) unit.plan.offset.push_back(w.scale.offset()[t]);
  }
}

int16_t MiddleOf(std::vector<int32_t> values) {
  if (values.empty()) return 0;
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  if (const int32_t least = *low; *high - least < 64) {
    std::array<uint32_t, 64> count{};
    for (int32_t v : values) ++count[static_cast<size_t>(v - least)];
    size_t below = 0, at = 0;
    while ((below += count[at]) <= values.size() / 2) ++at;
    return static_cast<int16_t>(least + static_cast<int32_t>(at));
  }
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return static_cast<int16_t>(values[values.size() / 2]);
}

// How often each symbol occurs when `values` are coded without their `bits` low bits, which the
// tables of spread index kEntropyTables - 1 must hold.
struct SymbolCounts {
  std::array<int16_t, kSymbolRoom> count{};  // at most 1024: a value a channel, or a token

  SymbolCounts(const std::vector<int32_t>& values, int bits) {
    for (int32_t v : values) ++count[static_cast<size_t>((v >> bits) + kSymbolOffset)];
  }
  uint64_t Cost(const std::array<int16_t, kSymbolRoom>& costs) const {
    int32_t cost = 0;  // at most 1024 * 2560
    for (size_t s = 0; s < kSymbolRoom; ++s) cost += int32_t{count[s]} * costs[s];
    return static_cast<uint64_t>(cost);
  }
};

// Smallest table spread whose symbols hold low .. high.
int SmallestSpread(int low, int high, bool half) {
  for (int s = 0; s < kEntropyTables; ++s) {
    const int limit = SpreadLimit(s);
    if (low >= -limit && high <= limit - half) return s;
  }
  return kEntropyTables;
}

// Cheapest way to code `values` as side information; adds its cost in 1/256 bit to `*cost`.
SideCode ChooseSideCode(const std::vector<int32_t>& values, uint64_t* cost) {
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  SideCode best;
  uint64_t best_cost = ~uint64_t{0};
  int tried = 0;
  for (uint8_t bits = 0; bits < 16 && tried < 4; ++bits) {
    const int first = SmallestSpread(*low >> bits, *high >> bits, bits > 0);
    if (first == kEntropyTables) continue;
    // The low bits alone cost more from here on.
    if (uint64_t{256} * bits * values.size() >= best_cost) break;
    const SymbolCounts counts(values, bits);
    for (int s = first; s < std::min(first + 5, kEntropyTables); ++s) {
      const SideCode code{static_cast<uint8_t>(s), bits};
      const uint64_t c = counts.Cost(Tables().symbol_costs[TableId(s, bits > 0, kAll)]) +
                         uint64_t{256} * bits * values.size();
      if (c < best_cost) {
        best_cost = c;
        best = code;
      }
    }
    ++tried;
  }
  // Values that no code holds (a profile far off): never the cheapest candidate.
  *cost += tried > 0 ? best_cost : uint64_t{1} << 50;
  return best;
}

// Sets step source, base, what is sent, and the final steps.
uint64_t FillSteps(const StepPlan& steps, StepSource key_source, CodedUnit& unit) {
  UnitPlan& plan = unit.plan;
  UnitHeader& h = plan.header;
  const PlaneSpec& spec = *plan.unit.spec;
  std::vector<int32_t> values;
  if (spec.role == PlaneRole::kKey) {
    plan.step = steps.key;
    h.step_source = steps.key_from_energy ? key_source : StepSource::kUniform;
    h.step_base = steps.key_base;
    if (h.step_source == StepSource::kSent) {
      values.resize(KeyStepSlots(spec));
      for (uint32_t c = 0; c < spec.head_dim; ++c) values[KeyStepSlot(spec, c)] = steps.key[c];
    }
  } else {
    h.step_source = StepSource::kSent;
    for (uint16_t t : plan.coded) plan.step.push_back(steps.value[t]);
    values.assign(plan.step.begin(), plan.step.end());
  }
  if (h.step_source == StepSource::kSent) {
    const bool offsets = spec.role == PlaneRole::kValue && !steps.offset.empty();
    h.step_base = offsets ? steps.value_base : MiddleOf(values);
  }
  for (int32_t& v : values) v -= h.step_base;
  uint64_t cost = 0;
  h.step_code = ChooseSideCode(values, &cost);
  unit.step_values = std::move(values);
  return cost;
}

// Sets what is sent of means and sigmas for the header's sources, and the final ones. `of_profile`:
// has the profile's, or null.
uint64_t FillStatistics(const Work& w, const HeadProfile* profile, const Work* of_profile,
                        int16_t value_unit_16, CodedUnit& unit) {
  UnitPlan& plan = unit.plan;
  UnitHeader& h = plan.header;
  // The base is still 0.
  if (h.mean_source == MeanSource::kDifference) {
    plan.mean = of_profile->mean;
    plan.sigma = of_profile->sigma;
  } else if (h.mean_source != MeanSource::kProfile) {
    ResolveStatistics(profile, value_unit_16, plan);
  }
  const SideSizes sizes = SideSizesOf(plan);
  for (size_t c = 0; c < sizes.mean; ++c) unit.mean_values.push_back(w.mean[c] - plan.mean[c]);
  for (size_t c = 0; c < sizes.sigma; ++c) unit.sigma_values.push_back(w.sigma[c] - plan.sigma[c]);
  h.sigma_base = static_cast<int8_t>(MiddleOf(unit.sigma_values));
  for (int32_t& v : unit.sigma_values) v -= h.sigma_base;
  uint64_t cost = 0;
  h.mean_code = ChooseSideCode(unit.mean_values, &cost);
  h.sigma_code = ChooseSideCode(unit.sigma_values, &cost);
  plan.mean = w.mean;
  plan.sigma = w.sigma;
  ShiftSigmas(plan);
  return cost;
}

// How `w` is coded when its statistics come from `sources`; `cost` leaves the points themselves
// out.
struct Candidate {
  CodedUnit unit;
  uint64_t cost = 0;
  uint64_t step_cost = 0;  // of what is sent of steps
};
struct Sources {
  MeanSource mean;
  SpreadSource spread;
  StepSource key_step;
};
constexpr Sources kOwnSources{MeanSource::kOwn, SpreadSource::kOwn, StepSource::kSent};
constexpr Sources kDifferenceSources{MeanSource::kDifference, SpreadSource::kDifference,
                                     StepSource::kProfile};
constexpr Sources kProfileSources{MeanSource::kProfile, SpreadSource::kProfile,
                                  StepSource::kProfile};

// `like`: a candidate made from the same `w`, or null. `of_profile`: has the profile's means and
// sigmas, for sources that need them.
Candidate MakeCandidate(const LatticeContext& context, const UnitRef& unit,
                        const HeadProfile* profile, const StepPlan& steps, const Work& w,
                        const Sources& sources, const Work* of_profile, const Candidate* like) {
  const ScopedStage timer(CodecStage::kQuantize);
  Candidate out;
  UnitHeader& h = out.unit.plan.header;
  out.unit.plan.unit = unit;
  // Values send their steps whatever their statistics are.
  const bool same_steps = like != nullptr && unit.spec->role == PlaneRole::kValue;
  if (same_steps) {
    out = *like;
    out.unit.mean_values.clear();
    out.unit.sigma_values.clear();
    h.sigma_base = 0;
    out.cost = like->step_cost;
  } else {
    FillRows(w, out.unit);
    out.cost = out.step_cost = FillSteps(steps, sources.key_step, out.unit);
  }
  h.mean_source = sources.mean;
  h.spread_source = sources.spread;
  const uint64_t raw_vectors = w.tokens - out.unit.plan.coded.size();
  if (out.unit.plan.coded.empty()) {
    h.mean_source = MeanSource::kZero;
    h.spread_source = SpreadSource::kPooled;
    h.step_source = StepSource::kUniform;
    h.step_base = 0;
    out.unit.step_values.clear();
  }
  out.cost += FillStatistics(w, profile, of_profile, context.value_unit_16, out.unit);
  out.cost += ChooseCoset(w.halves, out.unit.plan.coded.size() * (w.dim / 8), h.coset);
  out.cost += raw_vectors * 256 * 8 * (w.dim * DTypeBytes(unit.spec->dtype) + 1);
  return out;
}

}  // namespace

CodedUnit ChooseCoding(const LatticeContext& context, StatsMode stats, const UnitRef& unit,
                       const HeadProfile* profile, const UnitData& data, const StepPlan& steps,
                       PointBuffers& buffers) {
  const UnitScale scale(unit, data, steps);
  std::vector<int32_t> sum;
  const auto quantize_with_own = [&] {
    return QuantizeWithoutStatistics(context, unit, data.raw, scale, buffers,
                                     sum.empty() ? nullptr : &sum);
  };
  const auto make = [&](const Work& w, const Sources& sources, const Work* of_profile = nullptr,
                        const Candidate* like = nullptr) {
    return MakeCandidate(context, unit, profile, steps, w, sources, of_profile, like);
  };
  const auto finish = [](Candidate& candidate, Work& w) {
    candidate.unit.q2 = std::move(w.q2);
    return std::move(candidate.unit);
  };
  if (stats == StatsMode::kOwn || profile == nullptr || !profile->has_statistics()) {
    Work own = quantize_with_own();
    Candidate sent = make(own, kOwnSources);
    return finish(sent, own);
  }
  Work from_profile = QuantizeWithStatistics(context, unit, profile, data.raw, scale, steps,
                                             buffers, stats == StatsMode::kAuto ? &sum : nullptr);
  Candidate best = make(from_profile, kProfileSources);
  if (stats == StatsMode::kProfile) {
    // A profile that does not fit at all must not make vectors raw (DECISIONS 7).
    const uint32_t coded_before = CodedCount(data.raw), coded_now = CodedCount(from_profile.raw);
    if (coded_before - coded_now <= context.tokens / 16) return finish(best, from_profile);
  }
  Work own = quantize_with_own();
  Candidate sent = make(own, kOwnSources);
  Candidate difference = make(own, kDifferenceSources, &from_profile, &sent);
  Candidate& cheaper = difference.cost < sent.cost ? difference : sent;
  if (cheaper.cost + PointCost(own) < best.cost + PointCost(from_profile)) {
    buffers.Give(std::move(from_profile.q2));
    return finish(cheaper, own);
  }
  buffers.Give(std::move(own.q2));
  return finish(best, from_profile);
}

}  // namespace latticekv
