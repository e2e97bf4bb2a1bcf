// Quantising all vectors of a unit at once, where the backend has kernels for it: what quantizer.cc
// does row by row, with the same results.
#include <algorithm>

#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/unit_work.h"

namespace latticekv {
namespace {

// Channels whose points are checked together.
constexpr uint32_t kCheckedChannels = 32;

class UnitQuantizer {
 public:
  explicit UnitQuantizer(Work& w) : w_(w), low_(w.dim), high_(w.dim), squares_(w.dim) {
    FindRows();
  }
  size_t count() const { return rows_.size(); }

  // By channel, in sixteenths of steps. As all that returns a bool: false, and rows must be taken
  // one by one.
  bool Sum(std::vector<int32_t>& sum) {
    sum.assign(w_.dim, 0);
    return w_.kernels.sum_unit(Run(nullptr), sum.data());
  }
  // Points under w.mean, and what is found on the way; `sum` may be null.
  bool Quantize(std::vector<int32_t>* sum, bool squares) {
    std::vector<float> offset(w_.dim);
    for (uint32_t c = 0; c < w_.dim; ++c) offset[c] = static_cast<float>(w_.mean[c]) * 64.0f;
    UnitSums sums{sum ? sum->data() : nullptr, squares ? squares_.data() : nullptr, low_.data(),
                  high_.data(), 0};
    if (!w_.kernels.quantize_unit(Run(offset.data()), sums)) return false;
    w_.halves = sums.halves;
    return true;
  }
  void OwnSigmas() {
    w_.sigma.clear();
    for (uint32_t sum : squares_) w_.sigma.push_back(SigmaFromSum(sum, count()));
  }
  // Makes vectors raw that have a point that its channel's table cannot hold. Returns how many.
  uint32_t MarkOutliers() {
    const ShiftLimits limits(w_, 0);
    uint32_t marked = 0;
    for (uint32_t c = 0; c < w_.dim; c += kCheckedChannels) {
      const uint32_t end = std::min(c + kCheckedChannels, w_.dim);
      bool out = false;
      for (uint32_t i = c; i < end; ++i) {
        out |= low_[i] < limits.low[i] || high_[i] > limits.high[i];
      }
      if (out) marked += MarkIn(c, end, limits);
    }
    return marked;
  }
  // Takes marked vectors out of a sum over all.
  void Subtract(std::vector<int32_t>& sum) const {
    std::vector<int32_t> of_marked(w_.dim, 0);
    for (uint16_t t : rows_) {
      if (w_.raw[t]) w_.kernels.add_sixteenths(w_.scale.Row(t), of_marked.data());
    }
    for (uint32_t c = 0; c < w_.dim; ++c) sum[c] -= of_marked[c];
  }
  // Leaves marked vectors out from here on, their points and squares as well.
  void DropMarked() {
    int16_t* to = w_.q2.data();
    for (size_t r = 0; r < count(); ++r) {
      const int16_t* from = &w_.q2[r * w_.dim];
      if (w_.raw[rows_[r]]) {
        for (uint32_t c = 0; c < w_.dim; ++c) {
          squares_[c] -= static_cast<uint32_t>(int32_t{from[c]} * from[c]);
        }
        continue;
      }
      if (to != from) std::copy_n(from, w_.dim, to);
      to += w_.dim;
    }
    FindRows();
  }
  void Finish() {
    DropMarked();
    w_.q2.resize(count() * w_.dim);
  }

 private:
  void FindRows() {
    rows_.clear();
    row_inverse_.clear();
    inverse_ = nullptr;
    for (uint32_t t = 0; t < w_.tokens; ++t) {
      if (w_.raw[t]) continue;
      const ScaledRow row = w_.scale.Row(t);
      rows_.push_back(static_cast<uint16_t>(t));
      row_inverse_.push_back(row.row_inverse);
      inverse_ = row.inverse;
    }
  }
  UnitRun Run(const float* offset) {
    return {w_.scale.Row(0).x,
            rows_.data(),
            static_cast<uint32_t>(count()),
            w_.dim,
            inverse_,
            row_inverse_.data(),
            offset,
            w_.q2.data()};
  }
  uint32_t MarkIn(uint32_t begin, uint32_t end, const ShiftLimits& limits) {
    const PointLimits of_channels{&limits.low[begin], &limits.high[begin]};
    uint32_t marked = 0, halves = 0;
    for (size_t r = 0; r < count(); ++r) {
      uint8_t& raw = w_.raw[rows_[r]];
      const int16_t* q2 = &w_.q2[r * w_.dim];
      if (raw || !w_.kernels.check_row(q2 + begin, of_channels, end - begin, &halves)) continue;
      raw = 1;
      ++marked;
      for (uint32_t c = 0; c < w_.dim; c += 8) w_.halves -= static_cast<uint64_t>(q2[c] & 1);
    }
    return marked;
  }

  Work& w_;
  std::vector<uint16_t> rows_;  // tokens whose vectors are quantised
  const float* inverse_ = nullptr;
  std::vector<float> row_inverse_;
  std::vector<int16_t> low_, high_;
  std::vector<uint32_t> squares_;
};

bool QuantizesUnits(const Work& w) {
  return w.kernels.quantize_unit != nullptr && !w.scale.varies();
}

bool QuantizeOwn(Work& w, const std::vector<int32_t>* given_sum) {
  UnitQuantizer all(w);
  std::vector<int32_t> sum;
  if (given_sum != nullptr) {
    sum = *given_sum;
  } else if (!all.Sum(sum)) {
    return false;
  }
  w.mean = MeansOf(sum, static_cast<int64_t>(all.count()));
  if (!all.Quantize(nullptr, true)) return false;
  all.OwnSigmas();
  if (all.MarkOutliers() > 0) {
    // Outliers are left out of means and spreads: take both again, once.
    all.Subtract(sum);
    all.DropMarked();
    std::vector<int32_t> mean = MeansOf(sum, static_cast<int64_t>(all.count()));
    if (mean != w.mean) {
      w.mean = std::move(mean);
      if (!all.Quantize(nullptr, true)) return false;
    }
    all.OwnSigmas();
    all.MarkOutliers();
  }
  all.Finish();
  return true;
}

}  // namespace

bool QuantizeUnitWithProfile(Work& w, std::vector<int32_t>* sum) {
  if (!QuantizesUnits(w)) return false;
  UnitQuantizer all(w);
  if (!all.Quantize(sum, false)) return false;
  all.MarkOutliers();
  all.Finish();
  return true;
}

bool QuantizeUnitWithOwn(Work& w, const std::vector<int32_t>* sum) {
  if (!QuantizesUnits(w)) return false;
  const std::vector<uint8_t> raw = w.raw;
  if (QuantizeOwn(w, sum)) return true;
  w.raw = raw;
  return false;
}

}  // namespace latticekv
