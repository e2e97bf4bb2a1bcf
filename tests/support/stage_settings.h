// Encoding under a given combination of stages, for the tests that want every one of them.
#ifndef LATTICEKV_TESTS_SUPPORT_STAGE_SETTINGS_H_
#define LATTICEKV_TESTS_SUPPORT_STAGE_SETTINGS_H_

#include <cstdint>
#include <vector>

#include "core/codec/codec.h"
#include "core/codec/frame_format.h"

namespace latticekv::testing {

// The combinations of stages that ParseFrameHeader accepts.
inline std::vector<uint32_t> AllowedStages() {
  std::vector<uint32_t> out;
  for (uint32_t stages = 1; stages <= kKnownStages; ++stages) {
    FrameHeader header;
    header.stages = stages;
    header.preset = stages & kStageExact ? 1 : stages & kStageSeed ? 8 : 2;
    header.tokens = 2;
    if (stages & kStageEvicted) header.keep = {1, 0};
    header.layers.resize(1);
    if (ParseFrameHeader(SerializeFrameHeader(header)).ok()) out.push_back(stages);
  }
  return out;
}

// Options that encode `tokens` tokens with just these stages, where the layout has rotary embedding
// as kStageRope says. `mass` [tokens] and `profile` must outlive them.
inline EncodeOptions OptionsForStages(uint32_t stages, uint32_t tokens, const ModelProfile& profile,
                                      const std::vector<float>& mass) {
  EncodeOptions options;
  options.preset = stages & kStageExact  ? PresetId::kExact
                   : stages & kStageSeed ? PresetId::kSeed
                                         : PresetId::kBalanced;
  options.stats = StatsMode::kOwn;
  if (stages & kStageProfile) {
    options.stats = StatsMode::kProfile;
    options.profile = &profile;
  }
  if (stages & kStageMass) options.mass = {mass.data(), 0, tokens + 100};
  if (stages & kStageEvicted) {
    for (uint32_t t = 0; t < tokens; ++t) options.keep.push_back(t % 3 != 1);
  }
  options.start_position = 512;
  options.exact_tokens = {2};
  return options;
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_STAGE_SETTINGS_H_
