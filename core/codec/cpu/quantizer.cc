#include "core/codec/cpu/quantizer.h"

#include <algorithm>

#include "core/codec/cpu/channel_squares.h"
#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/unit_work.h"
#include "core/codec/fixed_point.h"
#include "core/codec/stage_timer.h"

namespace latticekv {
namespace {

// Sums by channel, in sixteenths of steps, of the vectors that are not raw: at most 256 * 2^21.
std::vector<int32_t> SumRows(const Work& w) {
  std::vector<int32_t> sum(w.dim, 0);
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (!w.raw[t]) w.kernels.add_sixteenths(w.scale.Row(t), sum.data());
  }
  return sum;
}

// A row and the means to subtract, both in 1/256 of the row's own steps.
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
// Adds what SumRows would to `sum`, if there is one, while the vectors are at hand.
void QuantizeRows(Work& w, std::vector<int32_t>* sum = nullptr) {
  std::vector<float> mean(w.dim);
  for (uint32_t c = 0; c < w.dim; ++c) mean[c] = static_cast<float>(w.mean[c]) * 64.0f;
  ShiftedRow shifted(w.dim);
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    ScaledRow row = w.scale.Row(t);
    if (sum != nullptr) w.kernels.add_sixteenths(row, sum->data());
    const float* subtract = mean.data();
    if (w.scale.varies()) {
      row = shifted.Make(row, mean, w.scale.offset()[t]);
      subtract = shifted.mean();
    }
    w.raw[t] = w.kernels.quantize_row(row, subtract, &w.q2[size_t{t} * w.dim]) != 0;
  }
}

void OwnSigmas(Work& w) {
  ByShift<ChannelSquares> by_shift;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    ChannelSquares& squares = by_shift.Get(w.scale.Shift(t), [&] { return ChannelSquares(w.dim); });
    w.kernels.add_squares(&w.q2[size_t{t} * w.dim], w.dim, squares.row());
  }
  // As the points would be under steps without their tokens' offsets, in units of
  // 2^-kMaxSigmaShift: 256 squares of 2^28, shifted either way, stay below 2^60.
  std::vector<uint64_t> sums(w.dim, 0);
  const int unit = w.scale.varies() ? kMaxSigmaShift : 0;
  by_shift.ForEach([&](int shift, ChannelSquares& squares) {
    const std::vector<uint64_t>& of_shift = squares.sums();
    for (uint32_t c = 0; c < w.dim; ++c) sums[c] += of_shift[c] << (unit - shift);
  });
  const uint64_t n = uint64_t{CodedCount(w.raw)} << unit;
  w.sigma.clear();
  for (uint64_t sum : sums) w.sigma.push_back(SigmaFromSum(sum, n));
}

// How a channel's points are coded in vectors with one shift of their sigma indices.
SigmaCode ShiftedCode(const Work& w, uint32_t channel, int shift) {
  return SigmaCodeOf(ClampValue(w.sigma[channel] + shift, 0, kMaxSigmaIndex));
}

// Marks vectors with a point that its channel's table cannot hold. Returns how many are new.
uint32_t MarkOutliers(Work& w) {
  ByShift<ShiftLimits> by_shift;
  uint32_t marked = 0;
  w.halves = 0;
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const int shift = w.scale.Shift(t);
    const PointLimits limits = by_shift.Get(shift, [&] { return ShiftLimits(w, shift); }).view();
    uint32_t halves = 0;
    w.raw[t] = w.kernels.check_row(&w.q2[size_t{t} * w.dim], limits, w.dim, &halves) != 0;
    marked += w.raw[t];
    if (!w.raw[t]) w.halves += halves;
  }
  return marked;
}

// Leaves the coded vectors' points alone.
void DropRawRows(Work& w) {
  int16_t* to = w.q2.data();
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const int16_t* from = &w.q2[size_t{t} * w.dim];
    if (to != from) std::copy_n(from, w.dim, to);
    to += w.dim;
  }
  w.q2.resize(static_cast<size_t>(to - w.q2.data()));
}

void QuantizeWithProfile(const LatticeContext& context, const UnitRef& unit,
                         const HeadProfile* profile, const StepPlan& steps, Work& w,
                         std::vector<int32_t>* sum) {
  UnitPlan plan;
  plan.unit = unit;
  plan.header.mean_source = MeanSource::kProfile;
  plan.header.spread_source = SpreadSource::kProfile;
  plan.step = steps.key;
  ResolveStatistics(profile, context.value_unit_16, plan);
  w.mean = std::move(plan.mean);
  w.sigma = std::move(plan.sigma);
  if (QuantizeUnitWithProfile(w, sum)) return;
  if (sum != nullptr) sum->assign(w.dim, 0);
  QuantizeRows(w, sum);
  MarkOutliers(w);
  DropRawRows(w);
}

void QuantizeWithOwn(Work& w, const std::vector<int32_t>* sum) {
  if (QuantizeUnitWithOwn(w, sum)) return;
  w.mean = MeansOf(sum != nullptr ? *sum : SumRows(w), CodedCount(w.raw));
  QuantizeRows(w);
  OwnSigmas(w);
  if (MarkOutliers(w) > 0) {
    // Outliers are left out of means and spreads: take both again, once.
    std::vector<int32_t> mean = MeansOf(SumRows(w), CodedCount(w.raw));
    if (mean != w.mean) {
      w.mean = std::move(mean);
      QuantizeRows(w);
    }
    OwnSigmas(w);
    MarkOutliers(w);
  }
  DropRawRows(w);
}

Work StartWork(const LatticeContext& context, const UnitRef& unit, const std::vector<uint8_t>& raw,
               const UnitScale& scale, PointBuffers& buffers) {
  const uint32_t dim = unit.spec->head_dim;
  Work w{context.kernels, context.tokens, dim, scale, {}, raw, {}, {}};
  w.q2 = buffers.Take(size_t{context.tokens} * dim);
  return w;
}

}  // namespace

UnitScale::UnitScale(const UnitRef& unit, const UnitData& data, const StepPlan& steps)
    : data_(data), steps_(steps), dim_(unit.spec->head_dim) {
  for (int16_t s : steps.key) inverse_.push_back(256.0f * StepFloat(-s));
}

std::vector<int32_t> MeansOf(const std::vector<int32_t>& sum, int64_t n) {
  std::vector<int32_t> mean(sum.size(), 0);
  for (size_t c = 0; c < sum.size() && n > 0; ++c) {
    // Floor division, so that every machine rounds halves the same way.
    const int64_t numerator = int64_t{sum[c]} + 2 * n, denominator = 4 * n;
    int64_t quotient = numerator / denominator;
    if (numerator % denominator < 0) --quotient;
    mean[c] = static_cast<int32_t>(std::clamp<int64_t>(quotient, -700'000, 700'000));
  }
  return mean;
}

int16_t SigmaFromSum(uint64_t sum, uint64_t n) {
  if (sum == 0 || n == 0) return 0;
  const int s = ((Log2Sixteenths(sum) - Log2Sixteenths(4 * n) + 8) >> 4) + 7;
  return static_cast<int16_t>(std::clamp(s, 0, kMaxSigmaIndex));
}

ShiftLimits::ShiftLimits(const Work& w, int shift) : low(w.dim), high(w.dim) {
  for (uint32_t c = 0; c < w.dim; ++c) {
    const SigmaCode code = ShiftedCode(w, c, shift);
    // Without low bits a whole number may be one half further up than a half one, the largest of
    // which is odd.
    const int end = SpreadLimit(code.spread) * 2 << code.low_bits;
    low[c] = static_cast<int16_t>(-end);
    high[c] = static_cast<int16_t>(code.low_bits ? end - 1 : end);
  }
}

uint32_t CodedCount(const std::vector<uint8_t>& raw) {
  return static_cast<uint32_t>(std::count(raw.begin(), raw.end(), 0));
}

Work QuantizeWithStatistics(const LatticeContext& context, const UnitRef& unit,
                            const HeadProfile* profile, const std::vector<uint8_t>& raw,
                            const UnitScale& scale, const StepPlan& steps, PointBuffers& buffers,
                            std::vector<int32_t>* sum) {
  const ScopedStage timer(CodecStage::kQuantize);
  Work w = StartWork(context, unit, raw, scale, buffers);
  if (sum != nullptr) sum->assign(w.dim, 0);
  QuantizeWithProfile(context, unit, profile, steps, w, sum);
  return w;
}

Work QuantizeWithoutStatistics(const LatticeContext& context, const UnitRef& unit,
                               const std::vector<uint8_t>& raw, const UnitScale& scale,
                               PointBuffers& buffers, const std::vector<int32_t>* sum) {
  const ScopedStage timer(CodecStage::kQuantize);
  Work w = StartWork(context, unit, raw, scale, buffers);
  QuantizeWithOwn(w, sum);
  return w;
}

uint64_t PointCost(const Work& w) {
  const ScopedStage timer(CodecStage::kCost);
  struct RowCodes {
    std::vector<EncodeCode> codes;
    uint64_t bits = 0;  // raw ones of a row
  };
  const auto make = [&w](int shift) {
    RowCodes row;
    for (uint32_t c = 0; c < w.dim; ++c) {
      const SigmaCode code = ShiftedCode(w, c, shift);
      row.codes.push_back(EncodeCodeOf(PointCodeOf(code), c % 8));
      row.bits += static_cast<uint64_t>(PointLowBits(code, static_cast<int>(c % 8)));
    }
    return row;
  };
  const auto rows = static_cast<uint32_t>(w.q2.size() / w.dim);
  if (!w.scale.varies()) {
    const RowCodes row = make(0);
    return 256 * row.bits * rows + w.kernels.point_cost(w.q2.data(), rows, w.dim, row.codes.data());
  }
  ByShift<RowCodes> by_shift;
  uint64_t cost = 0;
  const int16_t* q2 = w.q2.data();
  for (uint32_t t = 0; t < w.tokens; ++t) {
    if (w.raw[t]) continue;
    const int shift = w.scale.Shift(t);
    const RowCodes& row = by_shift.Get(shift, [&] { return make(shift); });
    cost += 256 * row.bits + w.kernels.point_cost(q2, 1, w.dim, row.codes.data());
    q2 += w.dim;
  }
  return cost;
}

}  // namespace latticekv
