// A unit on its way to lattice points under one choice of means and spreads. Internal to
// core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_UNIT_WORK_H_
#define LATTICEKV_CORE_CODEC_CPU_UNIT_WORK_H_

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/codec/cpu/kernels.h"
#include "core/codec/cpu/quantizer.h"

namespace latticekv {

// The unit's vectors on their way to steps; the same for all candidates.
class UnitScale {
 public:
  UnitScale(const UnitRef& unit, const UnitData& data, const StepPlan& steps);
  ScaledRow Row(uint32_t t) const {
    const float* x = &data_.canonical[size_t{t} * dim_];
    if (!inverse_.empty()) return {x, inverse_.data(), 0, dim_};
    return {x, nullptr, 256.0f * StepFloat(-(varies() ? steps_.value_base : steps_.value[t])),
            dim_};
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

// Something for each shift of sigma indices, made when it is first asked for.
template <typename T>
class ByShift {
 public:
  template <typename Make>
  T& Get(int shift, Make make) {
    std::optional<T>& at = all_[static_cast<size_t>(shift + kMaxSigmaShift)];
    if (!at) at.emplace(make());
    return *at;
  }
  // Calls f(shift, T&) for those that were made, from the lowest shift on.
  template <typename F>
  void ForEach(F f) {
    for (int s = -kMaxSigmaShift; s <= kMaxSigmaShift; ++s) {
      if (auto& at = all_[static_cast<size_t>(s + kMaxSigmaShift)]; at) f(s, *at);
    }
  }

 private:
  std::array<std::optional<T>, 2 * kMaxSigmaShift + 1> all_;
};

// Working state of one candidate.
struct Work {
  const CpuKernels& kernels;
  uint32_t tokens, dim;
  const UnitScale& scale;
  // Twice the lattice points: [tokens][head_dim] while quantising, in the end those of the coded
  // vectors alone.
  std::vector<int16_t> q2;
  std::vector<uint8_t> raw;
  std::vector<int32_t> mean;  // quarter steps
  std::vector<int16_t> sigma;
  uint64_t halves = 0;  // groups of coded vectors in the half coset
};

// Lattice points and outliers under the profile's means and spreads. `raw` [tokens]: vectors that
// are raw beforehand. Where `sum` is not null it becomes what QuantizeWithoutStatistics takes.
Work QuantizeWithStatistics(const LatticeContext& context, const UnitRef& unit,
                            const HeadProfile* profile, const std::vector<uint8_t>& raw,
                            const UnitScale& scale, const StepPlan& steps, PointBuffers& buffers,
                            std::vector<int32_t>* sum);
// Under the unit's own. `sum`: by channel, in sixteenths of steps, of the vectors that are not raw
// beforehand; null: not known yet.
Work QuantizeWithoutStatistics(const LatticeContext& context, const UnitRef& unit,
                               const std::vector<uint8_t>& raw, const UnitScale& scale,
                               PointBuffers& buffers, const std::vector<int32_t>* sum);

// What both do for all vectors at once: false where the backend or the vectors are not fit for it,
// and then rows must be taken one by one; w.raw is as it was. `w` has its profile's means and
// sigmas; `sum` [channels] as above.
bool QuantizeUnitWithProfile(Work& w, std::vector<int32_t>* sum);
bool QuantizeUnitWithOwn(Work& w, const std::vector<int32_t>* sum);

// Means in quarter steps from sums in sixteenths over n vectors.
std::vector<int32_t> MeansOf(const std::vector<int32_t>& sum, int64_t n);
// Sigma index of squares summing to `sum` (of doubled points) over n vectors.
int16_t SigmaFromSum(uint64_t sum, uint64_t n);
// What the tables hold of vectors with one shift.
struct ShiftLimits {
  std::vector<int16_t> low, high;
  ShiftLimits(const Work& w, int shift);
  PointLimits view() const { return {low.data(), high.data()}; }
};

// Cost of all coded points under the tables, in 1/256 bit, cosets left out.
uint64_t PointCost(const Work& w);

uint32_t CodedCount(const std::vector<uint8_t>& raw);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_UNIT_WORK_H_
