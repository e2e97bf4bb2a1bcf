// The seed stages (preset `seed`): the published pipeline that this codec grew from, kept to
// compare with (docs/seed.md). Keys without rotary embedding, Hadamard rotation, E8 points under
// f16 scales, differences between tokens, zstd. docs/format/frame.md, "Seed layers". Internal to
// core/codec.
#ifndef LATTICEKV_CORE_CODEC_SEED_CODEC_H_
#define LATTICEKV_CORE_CODEC_SEED_CODEC_H_

#include <cstdint>
#include <vector>

#include "core/codec/layer_codec.h"

namespace latticekv {

// Flags of a plane.
inline constexpr uint8_t kSeedGroupScales = 1;
inline constexpr uint8_t kSeedTokenDelta = 2;

EncodedLayer EncodeSeedLayer(const LatticeContext& context, const LatticeChoices& choices,
                             const SeedOptions& options, const std::vector<PlaneView>& planes);
absl::Status DecodeSeedLayer(const LatticeContext& context, ByteSpan bytes,
                             const std::vector<MutablePlaneView>& planes);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_SEED_CODEC_H_
