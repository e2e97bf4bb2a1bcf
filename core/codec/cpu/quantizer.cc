#include "core/codec/cpu/quantizer.h"

#include <algorithm>
#include <array>
#include <map>

#include "core/codec/cpu/channel_squares.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/fixed_point.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// The unit's vectors on their way to steps; the same for all candidates.
class UnitScale {
 public:
  UnitScale(const UnitRef& unit, const UnitData& data, const StepPlan& steps)
      : data_(data), steps_(steps), dim_(unit.spec->head_dim) {
    for (int16_t s : steps.key) inverse_.push_back(StepFloat(-s));
  }
  ScaledRow Row(uint32_t t) const {
    const float* x = &data_.canonical[size_t{t} * dim_];
    if (!inverse_.empty()) return {x, inverse_.data(), 0, dim_};
    return {x, nullptr, StepFloat(-(varies() ? steps_.value_base : steps_.value[t])), dim_};
  }
  // Empty, or [tokens] quarter octaves by which a token's steps are coarser than Row's.
  const std::vector<int16_t>& offset() const { return steps_.offset; }
  bool varies() const { return !steps_.offset.empty(); }
  int Shift(uint32_t t) const { return varies() ? SigmaShift(steps_.offset[t]) : 0; }

 private:
  const UnitData& data_;
  const StepPlan& steps_;
  const uint32_t dim_;
  std::vector<float> inverse_;  // keys
};

// Working state of one candidate; arrays are [tokens][head_dim] or per channel.
struct Work {
  const CpuKernels& kernels;
  uint32_t tokens, dim;
  const UnitScale& scale;
  std::vector<int16_t> q2;  // twice the lattice points
  std::vector<uint8_t> raw;
  std::vector<int32_t> mean;  // quarter steps
  std::vector<int16_t> sigma;
  uint64_t halves = 0;  // groups of coded vectors in the half coset

  const int16_t* points(uint32_t t) const { return &q2[size_t{t} * dim]; }
};

// Per-channel means of the vectors that are not raw, in quarter steps.
std::vector<int32_t> OwnMeans(const Work& w) {
  std::vector<int32_t> sum(w.dim, 0);  // at most 256 * 2^21
  int64_t n = 0;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    ++n;
    w.kernels.add_sixteenths(w.scale.Row(t), sum.data());
  }
  std::vector<int32_t> mean(w.dim, 0);
  for (uint32_t c = 0; c < w.dim && n > 0; ++c) {
    // Floor division, so that every machine rounds halves the same way.
    const int64_t numerator = int64_t{sum[c]} + 2 * n, denominator = 4 * n;
    int64_t quotient = numerator / denominator;
    if (numerator % denominator < 0) --quotient;
    mean[c] = static_cast<int32_t>(std::clamp<int64_t>(quotient, -700'000, 700'000));
  }
  return mean;
}

// A row and the means to subtract, both in the row's own steps.
class ShiftedRow {
 public:
  explicit ShiftedRow(uint32_t dim) : mean_(dim), inverse_(dim) {}
  ScaledRow Make(ScaledRow row, const std::vector<float>& mean, int offset) {
    const float factor = StepFloat(-offset);
    for (uint32_t c = 0; c < row.dim; ++c) mean_[c] = mean[c] * factor;
    row.row_inverse *= factor;
    if (row.inverse == nullptr) return row;
    for (uint32_t c = 0; c < row.dim; ++c) inverse_[c] = row.inverse[c] * factor;
    row.inverse = inverse_.data();
    return row;
  }
  const float* mean() const { return mean_.data(); }

 private:
  std::vector<float> mean_, inverse_;
};

// Lattice points of all vectors that are not raw. Vectors too far away for integers become raw.
void QuantizeRows(Work& w) {
  std::vector<float> mean(w.dim);
  for (uint32_t c = 0; c < w.dim; ++c) mean[c] = static_cast<float>(w.mean[c]) * 0.25f;
  w.q2.resize(size_t{w.tokens} * w.dim);
  ShiftedRow shifted(w.dim);
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    ScaledRow row = w.scale.Row(t);
    const float* subtract = mean.data();
    if (w.scale.varies()) {
      row = shifted.Make(row, mean, w.scale.offset()[t]);
      subtract = shifted.mean();
    }
    w.raw[t] = w.kernels.quantize_row(row, subtract, &w.q2[size_t{t} * w.dim]) != 0;
  }
}

uint32_t CodedCount(const std::vector<uint8_t>& raw) {
  return static_cast<uint32_t>(std::count(raw.begin(), raw.end(), 0));
}

// Sigma index of squares summing to `sum` (of doubled points) over n vectors.
int16_t SigmaFromSum(uint64_t sum, uint64_t n) {
  if (sum == 0 || n == 0) return 0;
  const int s = ((Log2Sixteenths(sum) - Log2Sixteenths(4 * n) + 8) >> 4) + 7;
  return static_cast<int16_t>(std::clamp(s, 0, kMaxSigmaIndex));
}

void OwnSigmas(Work& w) {
  std::map<int, ChannelSquares> by_shift;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    ChannelSquares& squares = by_shift.try_emplace(w.scale.Shift(t), w.dim).first->second;
    w.kernels.add_squares(w.points(t), w.dim, squares.row());
  }
  // As the points would be under steps without their tokens' offsets, in units of
  // 2^-kMaxSigmaShift: 256 squares of 2^28, shifted either way, stay below 2^60.
  std::vector<uint64_t> sums(w.dim, 0);
  const int unit = w.scale.varies() ? kMaxSigmaShift : 0;
  for (auto& [shift, squares] : by_shift) {
    for (uint32_t c = 0; c < w.dim; ++c) sums[c] += squares.sums()[c] << (unit - shift);
  }
  const uint64_t n = uint64_t{CodedCount(w.raw)} << unit;
  w.sigma.clear();
  for (uint64_t sum : sums) w.sigma.push_back(SigmaFromSum(sum, n));
}

// How a channel's points are coded in vectors with one shift of their sigma indices.
SigmaCode ShiftedCode(const Work& w, uint32_t channel, int shift) {
  return SigmaCodeOf(ClampValue(w.sigma[channel] + shift, 0, kMaxSigmaIndex));
}

// What the tables hold of vectors with one shift.
struct ShiftLimits {
  std::vector<int16_t> low, high_whole, high_half;

  ShiftLimits(const Work& w, int shift) : low(w.dim), high_whole(w.dim), high_half(w.dim) {
    for (uint32_t c = 0; c < w.dim; ++c) {
      const SigmaCode code = ShiftedCode(w, c, shift);
      const int limit = SpreadLimit(code.spread);
      low[c] = static_cast<int16_t>(-limit * (1 << code.low_bits) * 2);
      high_half[c] = static_cast<int16_t>((limit << code.low_bits) * 2 - 1);
      high_whole[c] = static_cast<int16_t>(code.low_bits ? high_half[c] - 1 : 2 * limit);
    }
  }
  PointLimits view() const { return {low.data(), high_whole.data(), high_half.data()}; }
};

// Marks vectors with a point that its channel's table cannot hold. Returns how many are new.
uint32_t MarkOutliers(Work& w) {
  std::map<int, ShiftLimits> by_shift;
  uint32_t marked = 0;
  w.halves = 0;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const int16_t* q2 = w.points(t);
    const int shift = w.scale.Shift(t);
    const PointLimits limits = by_shift.try_emplace(shift, w, shift).first->second.view();
    w.raw[t] = w.kernels.is_outlier(q2, limits, w.dim) != 0;
    marked += w.raw[t];
    if (w.raw[t]) continue;
    uint32_t halves = 0;
    for (uint32_t c = 0; c < w.dim; c += 8) halves += static_cast<uint32_t>(q2[c] & 1);
    w.halves += halves;
  }
  return marked;
}

// Doubled-point cost of all coded vectors under the tables, in 1/256 bit, cosets left out.
uint64_t PointCost(const Work& w) {
  const ScopedStage timer(CodecStage::kCost);
  struct RowCodes {
    std::vector<PointCode> codes;
    uint64_t bits = 0;  // raw ones of a row
  };
  std::map<int, RowCodes> by_shift;
  uint64_t cost = 0;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const int shift = w.scale.Shift(t);
    RowCodes& row = by_shift[shift];
    for (uint32_t c = 0; row.codes.size() < w.dim; ++c) {
      const SigmaCode code = ShiftedCode(w, c, shift);
      row.codes.push_back(PointCodeOf(code));
      row.bits += static_cast<uint64_t>(PointLowBits(code, static_cast<int>(c % 8)));
    }
    cost += 256 * row.bits + w.kernels.point_cost(w.points(t), row.codes.data(), w.dim);
  }
  return cost;
}

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

// The coded vectors' points, the raw ones' left out.
std::vector<int16_t> TakePoints(Work&& w, const UnitPlan& plan) {
  int16_t* to = w.q2.data();
  for (uint16_t t : plan.coded) {
    if (to != w.points(t)) std::copy_n(w.points(t), w.dim, to);
    to += w.dim;
  }
  w.q2.resize(plan.coded.size() * w.dim);
  return std::move(w.q2);
}

int16_t MiddleOf(std::vector<int32_t> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return static_cast<int16_t>(values[values.size() / 2]);
}

// How often each symbol occurs when `values` are coded without their `bits` low bits, which the
// tables of spread index kEntropyTables - 1 must hold.
struct SymbolCounts {
  std::array<uint32_t, 2 * kSymbolOffset + 1> count{};
  int low, high;

  SymbolCounts(const std::vector<int32_t>& values, int bits, int lowest, int highest)
      : low((lowest >> bits) + kSymbolOffset), high((highest >> bits) + kSymbolOffset) {
    for (int32_t v : values) ++count[static_cast<size_t>((v >> bits) + kSymbolOffset)];
  }
  uint64_t Cost(const std::array<EncodeEntry, 2 * kSymbolOffset + 1>& table) const {
    uint64_t cost = 0;
    for (int s = low; s <= high; ++s) {
      cost += uint64_t{count[static_cast<size_t>(s)]} * table[static_cast<size_t>(s)].cost;
    }
    return cost;
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
    const SymbolCounts counts(values, bits, *low, *high);
    for (int s = first; s < std::min(first + 5, kEntropyTables); ++s) {
      const SideCode code{static_cast<uint8_t>(s), bits};
      const uint64_t c = counts.Cost(Tables().encode[TableId(s, bits > 0, kAll)]) +
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

// Sets what is sent of means and sigmas for the header's sources, and the final ones.
uint64_t FillStatistics(const Work& w, const HeadProfile* profile, int16_t value_unit_16,
                        CodedUnit& unit) {
  UnitPlan& plan = unit.plan;
  UnitHeader& h = plan.header;
  ResolveStatistics(profile, value_unit_16, plan);  // the base is still 0
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

// Means, lattice points, spreads and outliers of one way to take statistics.
Work QuantizeWork(const LatticeContext& context, const UnitRef& unit, const HeadProfile* profile,
                  const std::vector<uint8_t>& raw, const UnitScale& scale, const StepPlan& steps,
                  bool from_profile) {
  const ScopedStage timer(CodecStage::kQuantize);
  Work w{context.kernels, context.tokens, unit.spec->head_dim, scale, {}, raw, {}, {}};
  if (from_profile) {
    UnitPlan plan;
    plan.unit = unit;
    plan.header.mean_source = MeanSource::kProfile;
    plan.header.spread_source = SpreadSource::kProfile;
    plan.step = steps.key;
    ResolveStatistics(profile, context.value_unit_16, plan);
    w.mean = plan.mean;
    w.sigma = plan.sigma;
    QuantizeRows(w);
    MarkOutliers(w);
    return w;
  }
  w.mean = OwnMeans(w);
  QuantizeRows(w);
  OwnSigmas(w);
  if (MarkOutliers(w) == 0) return w;
  // Outliers are left out of means and spreads: take both again, once.
  std::vector<int32_t> mean = OwnMeans(w);
  if (mean != w.mean) {
    w.mean = std::move(mean);
    QuantizeRows(w);
  }
  OwnSigmas(w);
  MarkOutliers(w);
  return w;
}

// How `w` is coded when its statistics come from `sources`; `cost` leaves the points themselves
// out.
struct Candidate {
  CodedUnit unit;
  uint64_t cost = 0;
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

Candidate MakeCandidate(const LatticeContext& context, const UnitRef& unit,
                        const HeadProfile* profile, const StepPlan& steps, const Work& w,
                        const Sources& sources) {
  const ScopedStage timer(CodecStage::kQuantize);
  Candidate out;
  UnitHeader& h = out.unit.plan.header;
  out.unit.plan.unit = unit;
  h.mean_source = sources.mean;
  h.spread_source = sources.spread;
  FillRows(w, out.unit);
  const uint64_t raw_vectors = w.tokens - out.unit.plan.coded.size();
  out.cost = FillSteps(steps, sources.key_step, out.unit);
  if (out.unit.plan.coded.empty()) {
    h.mean_source = MeanSource::kZero;
    h.spread_source = SpreadSource::kPooled;
    h.step_source = StepSource::kUniform;
    h.step_base = 0;
    out.unit.step_values.clear();
  }
  out.cost += FillStatistics(w, profile, context.value_unit_16, out.unit);
  out.cost += ChooseCoset(w.halves, out.unit.plan.coded.size() * (w.dim / 8), h.coset);
  out.cost += raw_vectors * 256 * 8 * (w.dim * DTypeBytes(unit.spec->dtype) + 1);
  return out;
}

}  // namespace

CodedUnit ChooseCoding(const LatticeContext& context, StatsMode stats, const UnitRef& unit,
                       const HeadProfile* profile, const UnitData& data, const StepPlan& steps) {
  const UnitScale scale(unit, data, steps);
  const auto quantize = [&](bool from_profile) {
    return QuantizeWork(context, unit, profile, data.raw, scale, steps, from_profile);
  };
  const auto make = [&](const Work& w, const Sources& sources) {
    return MakeCandidate(context, unit, profile, steps, w, sources);
  };
  const auto finish = [](Candidate&& candidate, Work&& w) {
    candidate.unit.q2 = TakePoints(std::move(w), candidate.unit.plan);
    return std::move(candidate.unit);
  };
  if (stats == StatsMode::kOwn || profile == nullptr || !profile->has_statistics()) {
    Work own = quantize(false);
    return finish(make(own, kOwnSources), std::move(own));
  }
  Work from_profile = quantize(true);
  Candidate best = make(from_profile, kProfileSources);
  if (stats == StatsMode::kProfile) {
    // A profile that does not fit at all must not make vectors raw (DECISIONS 7).
    const uint32_t coded_before = CodedCount(data.raw), coded_now = CodedCount(from_profile.raw);
    if (coded_before - coded_now <= context.tokens / 16) {
      return finish(std::move(best), std::move(from_profile));
    }
  }
  Work own = quantize(false);
  Candidate sent = make(own, kOwnSources), difference = make(own, kDifferenceSources);
  Candidate& cheaper = difference.cost < sent.cost ? difference : sent;
  if (cheaper.cost + PointCost(own) < best.cost + PointCost(from_profile)) {
    return finish(std::move(cheaper), std::move(own));
  }
  return finish(std::move(best), std::move(from_profile));
}

}  // namespace latticekv
