#include "core/codec/presets.h"

#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace latticekv {
namespace {

constexpr std::array<Preset, 7> kPresets = {{
    {PresetId::kExact, "exact", 0, 0},
    {PresetId::kNear, "near", .05, .06},
    {PresetId::kFine, "fine", .10, .12},
    {PresetId::kHigh, "high", .19, .22},
    {PresetId::kBalanced, "balanced", .28, .32},
    {PresetId::kSmall, "small", .38, .45},
    {PresetId::kTiny, "tiny", .53, .62},
}};
constexpr Preset kSeedPreset = {PresetId::kSeed, "seed", 0, 0};

}  // namespace

std::span<const Preset> AllPresets() { return kPresets; }

const Preset& GetPreset(PresetId id) {
  for (const Preset& p : kPresets) {
    if (p.id == id) return p;
  }
  if (id == PresetId::kSeed) return kSeedPreset;
  return kPresets[3];
}

std::string_view PresetName(PresetId id) { return GetPreset(id).name; }

absl::StatusOr<PresetId> ParsePreset(std::string_view name) {
  if (name == kSeedPreset.name) return PresetId::kSeed;
  std::string names;
  for (const Preset& p : kPresets) {
    if (p.name == name) return p.id;
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(p.name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown preset '", std::string(name), "'; use one of: ", names, ", seed"));
}

}  // namespace latticekv
