#include "core/codec/cpu/quantizer.h"

#include <algorithm>
#include <cstdlib>

#include "core/codec/cpu/e8.h"
#include "core/codec/fixed_point.h"

namespace latticekv {
namespace {

// Working state of one candidate; arrays are [tokens][head_dim] or per channel.
struct Work {
  uint32_t tokens, dim;
  std::vector<float> scaled;        // in steps
  std::vector<int16_t> q2;          // twice the lattice points
  std::vector<uint8_t> raw;
  std::vector<int32_t> mean;        // quarter steps
  std::vector<int16_t> sigma;
};

void ScaleToSteps(const UnitData& data, const StepPlan& steps, bool key, Work& w) {
  w.scaled.resize(size_t{w.tokens} * w.dim);
  std::vector<float> inverse;
  for (int16_t s : steps.key) inverse.push_back(StepFloat(-s));
  for (uint32_t t = 0; t < w.tokens; ++t) {
    const float* x = &data.canonical[size_t{t} * w.dim];
    float* y = &w.scaled[size_t{t} * w.dim];
    if (key) {
      for (uint32_t c = 0; c < w.dim; ++c) y[c] = x[c] * inverse[c];
    } else {
      const float row = StepFloat(-steps.value[t]);
      for (uint32_t c = 0; c < w.dim; ++c) y[c] = x[c] * row;
    }
  }
}

// Per-channel means of the vectors that are not raw, in quarter steps.
std::vector<int32_t> OwnMeans(const Work& w) {
  std::vector<int64_t> sum(w.dim, 0);
  int64_t n = 0;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    ++n;
    const float* y = &w.scaled[size_t{t} * w.dim];
    for (uint32_t c = 0; c < w.dim; ++c) sum[c] += RoundClamped(y[c] * 16.0f);
  }
  std::vector<int32_t> mean(w.dim, 0);
  for (uint32_t c = 0; c < w.dim && n > 0; ++c) {
    // Floor division, so that every machine rounds halves the same way.
    const int64_t numerator = sum[c] + 2 * n, denominator = 4 * n;
    int64_t quotient = numerator / denominator;
    if (numerator % denominator < 0) --quotient;
    mean[c] = static_cast<int32_t>(std::clamp<int64_t>(quotient, -700'000, 700'000));
  }
  return mean;
}

// Lattice points of all vectors that are not raw. Vectors too far away for integers become raw.
void QuantizeRows(Work& w) {
  std::vector<float> offset(w.dim);
  for (uint32_t c = 0; c < w.dim; ++c) offset[c] = static_cast<float>(w.mean[c]) * 0.25f;
  std::vector<int32_t> z(w.dim);
  w.q2.resize(size_t{w.tokens} * w.dim);
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const float* y = &w.scaled[size_t{t} * w.dim];
    float largest = 0;
    for (uint32_t c = 0; c < w.dim; ++c) {
      const float v = (y[c] - offset[c]) * 256.0f;
      largest = std::max(largest, v < 0 ? -v : v);
      z[c] = RoundClamped(v);
    }
    if (!(largest < kRoundLimit)) {
      w.raw[t] = 1;
      continue;
    }
    int16_t* q2 = &w.q2[size_t{t} * w.dim];
    for (uint32_t c = 0; c < w.dim; c += 8) {
      const int half = NearestE8(&z[c], q2 + c);
      for (uint32_t i = c; i < c + 8; ++i) q2[i] = static_cast<int16_t>(2 * q2[i] + half);
    }
  }
}

uint32_t CodedCount(const Work& w) {
  return static_cast<uint32_t>(std::count(w.raw.begin(), w.raw.end(), 0));
}

// Sigma index of squares summing to `sum` (of doubled points) over n vectors.
int16_t SigmaFromSum(uint64_t sum, uint64_t n) {
  if (sum == 0 || n == 0) return 0;
  const int s = ((Log2Sixteenths(sum) - Log2Sixteenths(4 * n) + 8) >> 4) + 7;
  return static_cast<int16_t>(std::clamp(s, 0, kMaxSigmaIndex));
}

std::vector<uint64_t> ChannelSquares(const Work& w) {
  std::vector<uint64_t> sum(w.dim, 0);
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const int16_t* q2 = &w.q2[size_t{t} * w.dim];
    for (uint32_t c = 0; c < w.dim; ++c) sum[c] += static_cast<uint64_t>(int32_t{q2[c]} * q2[c]);
  }
  return sum;
}

void OwnSigmas(Work& w, bool pooled) {
  const std::vector<uint64_t> sum = ChannelSquares(w);
  const uint64_t n = CodedCount(w);
  w.sigma.resize(w.dim);
  uint64_t total = 0;
  for (uint64_t s : sum) total += s;
  for (uint32_t c = 0; c < w.dim; ++c) {
    w.sigma[c] = pooled ? SigmaFromSum(total, n * w.dim) : SigmaFromSum(sum[c], n);
  }
}

// Marks vectors with a point that its channel's table cannot hold. Returns how many are new.
uint32_t MarkOutliers(Work& w) {
  std::vector<int16_t> low(w.dim), high_whole(w.dim), high_half(w.dim);
  for (uint32_t c = 0; c < w.dim; ++c) {
    const SigmaCode code = SigmaCodeOf(w.sigma[c]);
    const int limit = SpreadLimit(code.spread);
    low[c] = static_cast<int16_t>(-limit * (1 << code.low_bits) * 2);
    high_half[c] = static_cast<int16_t>((limit << code.low_bits) * 2 - 1);
    high_whole[c] = static_cast<int16_t>(code.low_bits ? high_half[c] - 1 : 2 * limit);
  }
  uint32_t marked = 0;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const int16_t* q2 = &w.q2[size_t{t} * w.dim];
    bool out = false;
    for (uint32_t c = 0; c < w.dim; ++c) {
      out |= q2[c] < low[c] || q2[c] > ((q2[c] & 1) ? high_half[c] : high_whole[c]);
    }
    w.raw[t] = out;
    marked += out;
  }
  return marked;
}

// Doubled-point cost of all coded vectors under the tables, in 1/256 bit, cosets left out.
uint64_t PointCost(const Work& w) {
  const EntropyTables& tables = Tables();
  uint64_t cost = 0;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const int16_t* q2 = &w.q2[size_t{t} * w.dim];
    for (uint32_t c = 0; c < w.dim; ++c) {
      const SigmaCode code = SigmaCodeOf(w.sigma[c]);
      const int k = q2[c] >> 1;
      const int half = code.low_bits > 0 || (q2[c] & 1);
      const bool last = c % 8 == 7;
      // The last of a group is known to even or odd: its table is the subset's.
      const Subset subset = !last || code.low_bits ? kAll : (k & 1) ? kOdd : kEven;
      const auto& table = tables.encode[TableId(code.spread, half, subset)];
      cost += kCost256[table[(k >> code.low_bits) + kSymbolOffset].frequency];
      cost += 256u * (code.low_bits - (last && code.low_bits > 0));
    }
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
  h.raw_tokens.clear();
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) h.raw_tokens.push_back(static_cast<uint8_t>(t));
  }
  // A count of 256 does not fit the header's byte, and then nothing is coded anyway.
  if (h.raw_tokens.size() == w.tokens) {
    h.all_raw = true;
    h.raw_tokens.clear();
  }
  ResolveRows(w.tokens, unit.plan);
  unit.q2.clear();
  for (uint16_t t : unit.plan.coded) {
    const auto row = w.q2.begin() + size_t{t} * w.dim;
    unit.q2.insert(unit.q2.end(), row, row + w.dim);
  }
}

int16_t MiddleOf(std::vector<int32_t> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return static_cast<int16_t>(values[values.size() / 2]);
}

// Sets step source, base, and what is sent.
uint64_t FillSteps(const StepPlan& steps, const HeadProfile* profile, StepSource key_source,
                   CodedUnit& unit) {
  UnitPlan& plan = unit.plan;
  UnitHeader& h = plan.header;
  const PlaneSpec& spec = *plan.unit.spec;
  std::vector<int32_t> values;
  if (spec.role == PlaneRole::kKey) {
    h.step_source = steps.key_from_energy ? key_source : StepSource::kUniform;
    h.step_base = steps.key_base;
    if (h.step_source == StepSource::kSent) {
      values.resize(KeyStepSlots(spec));
      for (uint32_t c = 0; c < spec.head_dim; ++c) values[KeyStepSlot(spec, c)] = steps.key[c];
    }
  } else {
    h.step_source = StepSource::kSent;
    for (uint16_t t : plan.coded) values.push_back(steps.value[t]);
  }
  if (h.step_source == StepSource::kSent) h.step_base = MiddleOf(values);
  for (int32_t& v : values) v -= h.step_base;
  uint64_t cost = 0;
  h.step_code = ChooseSideCode(values, &cost);
  unit.step_values = std::move(values);
  ResolveSteps(profile, plan);
  if (spec.role == PlaneRole::kKey) {
    plan.step = steps.key;
  } else {
    for (size_t i = 0; i < plan.coded.size(); ++i) plan.step[i] = steps.value[plan.coded[i]];
  }
  return cost;
}

// Sets what is sent of means and sigmas for the header's sources. plan.mean and plan.sigma become
// final.
uint64_t FillStatistics(const Work& w, const HeadProfile* profile, int16_t value_unit_16,
                        CodedUnit& unit) {
  UnitPlan& plan = unit.plan;
  UnitHeader& h = plan.header;
  const bool sends_sigma =
      h.spread_source == SpreadSource::kOwn || h.spread_source == SpreadSource::kDifference;
  h.sigma_base = 0;
  ResolveStatistics(profile, value_unit_16, plan);
  if (sends_sigma) {
    std::vector<int32_t> difference(w.dim);
    for (uint32_t c = 0; c < w.dim; ++c) difference[c] = w.sigma[c] - plan.sigma[c];
    h.sigma_base = static_cast<int8_t>(MiddleOf(difference));
  } else if (h.spread_source == SpreadSource::kPooled) {
    h.sigma_base = static_cast<int8_t>(w.sigma[0]);
  }
  ResolveStatistics(profile, value_unit_16, plan);
  unit.mean_values.clear();
  unit.sigma_values.clear();
  const SideSizes sizes = SideSizesOf(plan);
  for (size_t c = 0; c < sizes.mean; ++c) unit.mean_values.push_back(w.mean[c] - plan.mean[c]);
  for (size_t c = 0; c < sizes.sigma; ++c) unit.sigma_values.push_back(w.sigma[c] - plan.sigma[c]);
  uint64_t cost = 0;
  h.mean_code = ChooseSideCode(unit.mean_values, &cost);
  h.sigma_code = ChooseSideCode(unit.sigma_values, &cost);
  plan.mean = w.mean;
  plan.sigma = w.sigma;
  return cost;
}

uint64_t SideCost(const std::vector<int32_t>& values, SideCode code) {
  const auto& table = Tables().encode[TableId(code.spread, code.low_bits > 0, kAll)];
  uint64_t cost = uint64_t{256} * code.low_bits * values.size();
  for (int32_t v : values) cost += kCost256[table[(v >> code.low_bits) + kSymbolOffset].frequency];
  return cost;
}

// Smallest table spread whose symbols hold low .. high.
int SmallestSpread(int low, int high, bool half) {
  for (int s = 0; s < kEntropyTables; ++s) {
    const int limit = SpreadLimit(s);
    if (low >= -limit && high <= limit - half) return s;
  }
  return kEntropyTables;
}

}  // namespace

SideCode ChooseSideCode(const std::vector<int32_t>& values, uint64_t* cost) {
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  SideCode best;
  uint64_t best_cost = ~uint64_t{0};
  int tried = 0;
  for (uint8_t bits = 0; bits < 16 && tried < 4; ++bits) {
    const int first = SmallestSpread(*low >> bits, *high >> bits, bits > 0);
    for (int s = first; s < std::min(first + 5, kEntropyTables); ++s) {
      const SideCode code{static_cast<uint8_t>(s), bits};
      const uint64_t c = SideCost(values, code);
      if (c < best_cost) {
        best_cost = c;
        best = code;
      }
    }
    tried += first < kEntropyTables;
  }
  // Values that no code holds (a profile far off): never the cheapest candidate.
  *cost += tried > 0 ? best_cost : uint64_t{1} << 50;
  return best;
}

Candidate Quantize(const LatticeContext& context, const UnitRef& unit, const HeadProfile* profile,
                   const UnitData& data, const StepPlan& steps, const StatisticsChoice& choice,
                   bool need_cost) {
  const bool key = unit.spec->role == PlaneRole::kKey;
  Work w{context.tokens, unit.spec->head_dim, {}, {}, data.raw, {}, {}};
  ScaleToSteps(data, steps, key, w);
  Candidate out;
  UnitHeader& h = out.unit.plan.header;
  out.unit.plan.unit = unit;
  h.mean_source = choice.mean;
  h.spread_source = choice.spread;

  // The profile's statistics, for candidates that use them as they are.
  UnitPlan probe = out.unit.plan;
  probe.step = steps.key;
  ResolveStatistics(profile, context.value_unit_16, probe);
  const bool own_mean = choice.mean == MeanSource::kOwn || choice.mean == MeanSource::kDifference;
  const bool own_spread = choice.spread != SpreadSource::kProfile;
  w.mean = own_mean ? OwnMeans(w) : probe.mean;
  QuantizeRows(w);
  for (int pass = 0; pass < 2; ++pass) {
    if (own_spread) {
      OwnSigmas(w, choice.spread == SpreadSource::kPooled);
    } else {
      w.sigma = probe.sigma;
    }
    if (MarkOutliers(w) == 0 || pass == 1) break;
    // Outliers are left out of means and spreads: take both again, once.
    if (own_mean) {
      std::vector<int32_t> mean = OwnMeans(w);
      if (mean == w.mean) continue;
      w.mean = std::move(mean);
      QuantizeRows(w);
    }
  }

  FillRows(w, out.unit);
  const uint64_t raw_vectors = w.tokens - out.unit.plan.coded.size();
  out.cost = FillSteps(steps, profile, choice.key_step, out.unit);
  if (out.unit.plan.coded.empty()) {
    h.mean_source = MeanSource::kZero;
    h.spread_source = SpreadSource::kPooled;
    h.step_source = StepSource::kUniform;
    h.step_base = 0;
    out.unit.step_values.clear();
  }
  out.cost += FillStatistics(w, profile, context.value_unit_16, out.unit);
  uint64_t halves = 0;
  for (size_t i = 0; i < out.unit.q2.size(); i += 8) halves += out.unit.q2[i] & 1;
  out.cost += ChooseCoset(halves, out.unit.q2.size() / 8, h.coset);
  out.cost += raw_vectors * 256 * 8 * (w.dim * DTypeBytes(unit.spec->dtype) + 1);
  if (need_cost) out.cost += PointCost(w);
  return out;
}

}  // namespace latticekv
