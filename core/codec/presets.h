// Named rates of the codec. The contract is in the reader's units: logit_noise is the rms error of
// an attention logit in nats, value_error the rms relative error of a value vector.
#ifndef LATTICEKV_CORE_CODEC_PRESETS_H_
#define LATTICEKV_CORE_CODEC_PRESETS_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace latticekv {

enum class PresetId : uint8_t {
  kExact = 1,
  kNear = 2,
  kFine = 3,
  kHigh = 4,
  kBalanced = 5,
  kSmall = 6,
  kTiny = 7,
  kSeed = 8,  // the published stages that this codec grew from (docs/seed.md); has no contract
};

// What a frame's measured errors may be over what its preset names: steps are quarter octaves, and
// small chunks are few draws of the lattice's error. Where they are more (vectors that are all
// alike share one draw), encoders choose finer steps; without attention mass, and of keys with
// query energy.
inline constexpr double kContractSlack = 1.05;

struct Preset {
  PresetId id;
  std::string_view name;
  double logit_noise;  // nats; 0 for exact
  double value_error;  // relative; 0 for exact
};

inline constexpr PresetId kDefaultPreset = PresetId::kHigh;

// Those with a contract, from best to smallest.
std::span<const Preset> AllPresets();
const Preset& GetPreset(PresetId id);
// kSeed too. INVALID_ARGUMENT listing the names that exist.
absl::StatusOr<PresetId> ParsePreset(std::string_view name);
std::string_view PresetName(PresetId id);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_PRESETS_H_
