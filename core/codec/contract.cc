#include "core/codec/contract.h"

#include "core/codec/frame_format.h"
#include "core/codec/presets.h"

namespace latticekv {
namespace {

uint64_t MostMeanSquare(double target_rms) {
  const double most = kContractSlack * target_rms;
  return static_cast<uint64_t>(most * most * (1 << kErrorFractionBits));
}

}  // namespace

ErrorBounds ContractOf(const FrameHeader& header) {
  ErrorBounds out;
  if (!(header.stages & kStageLattice) || header.stages & kStageMass) return out;
  const Preset& preset = GetPreset(static_cast<PresetId>(header.preset));
  if (header.flags & kFlagProfiled) out.key = MostMeanSquare(preset.logit_noise);
  out.value = MostMeanSquare(preset.value_error);
  return out;
}

}  // namespace latticekv
