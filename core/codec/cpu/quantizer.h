// Quantising one unit under given steps and statistics. Internal to core/codec/cpu.
#ifndef LATTICEKV_CORE_CODEC_CPU_QUANTIZER_H_
#define LATTICEKV_CORE_CODEC_CPU_QUANTIZER_H_

#include <cstdint>
#include <vector>

#include "core/codec/cpu/unit_encoder.h"

namespace latticekv {

// Steps of a unit's tokens and channels, before sources are chosen.
struct StepPlan {
  std::vector<int16_t> key;  // [head_dim] step index per channel, keys
  int16_t key_base = 0;      // sixteenths: what a profile's relative steps add to; else the index
  bool key_from_energy = false;
  std::vector<int16_t> value;  // [tokens] step index per vector, values
  // With attention mass: [tokens] what is added to the keys' steps and to the values' base.
  std::vector<int16_t> offset;
  int16_t value_base = 0;
};
// The key offsets of a layer with attention mass: mass^-1/4, one for each token.
std::vector<int16_t> KeyOffsets(const LatticeChoices& choices);
StepPlan PlanSteps(const LatticeContext& context, const LatticeChoices& choices,
                   const UnitRef& unit, const HeadProfile* profile, UnitData& data);

// Memory of lattice points, kept from unit to unit, as long as it is not more than this encoder's
// tiles need. Not thread-safe.
class PointBuffers {
 public:
  static constexpr size_t kMostKeptBytes = size_t{4} << 20;
  // Of `size` numbers, unspecified.
  std::vector<int16_t> Take(size_t size) {
    std::vector<int16_t> out;
    if (!free_.empty()) {
      out = std::move(free_.back());
      free_.pop_back();
      kept_bytes_ -= BytesOf(out);
    }
    out.resize(size);
    return out;
  }
  void Give(std::vector<int16_t> buffer) {
    if (buffer.capacity() == 0 || kept_bytes_ + BytesOf(buffer) > kMostKeptBytes) return;
    kept_bytes_ += BytesOf(buffer);
    free_.push_back(std::move(buffer));
  }

 private:
  static size_t BytesOf(const std::vector<int16_t>& buffer) {
    return sizeof(int16_t) * buffer.capacity();
  }
  size_t kept_bytes_ = 0;
  std::vector<std::vector<int16_t>> free_;
};

// Quantises `data` and codes it with the statistics that `stats` allows and that take least.
CodedUnit ChooseCoding(const LatticeContext& context, StatsMode stats, const UnitRef& unit,
                       const HeadProfile* profile, const UnitData& data, const StepPlan& steps,
                       PointBuffers& buffers);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_CPU_QUANTIZER_H_
