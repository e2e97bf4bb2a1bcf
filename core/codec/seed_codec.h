// The seed stages (preset `seed`): the published pipeline that this codec grew from, kept to
// compare with (docs/seed.md). Keys without rotary embedding, Hadamard rotation, E8 points under
// f16 scales, differences between tokens, zstd. docs/format/frame.md, "Seed layers". Internal to
// core/codec.
#ifndef LATTICEKV_CORE_CODEC_SEED_CODEC_H_
#define LATTICEKV_CORE_CODEC_SEED_CODEC_H_

#include <cstdint>
#include <span>
#include <vector>

#include "core/codec/layer_codec.h"

namespace latticekv {

// Flags of a plane.
inline constexpr uint8_t kSeedGroupScales = 1;
inline constexpr uint8_t kSeedTokenDelta = 2;

// How one key or value plane is coded.
struct SeedShape {
  int bits = 0;
  bool group_scales = false;
  bool token_delta = false;

  int bound() const { return 1 << bits; }  // of points, which are doubled
  // Coordinates that share a scale.
  uint32_t Group(uint32_t head_dim) const { return group_scales ? 8 : head_dim; }
};
SeedShape SeedShapeOf(const PlaneSpec& spec, const SeedOptions& options);

// A key or value plane as frames have it. Rows are the vectors that are not raw, head by head.
struct SeedPlane {
  SeedShape shape;
  std::vector<std::vector<uint8_t>> raw;  // [head][token] 1: stored bit for bit
  std::vector<uint16_t> scales;           // [row][group], f16
  std::vector<int8_t> points;             // [row][channel]; differences if the shape says so

  uint32_t Rows(size_t head) const;
};

// Appends a plane; raw vectors are taken from `view`.
void AppendSeedPlane(const PlaneSpec& spec, const SeedPlane& plane, const PlaneView& view,
                     ByteWriter& out);
// Reads exactly what AppendSeedPlane appends; `raw_vectors` are then in `in`'s bytes. What points
// are within is not checked. DATA_LOSS.
absl::StatusOr<SeedPlane> ReadSeedPlane(const PlaneSpec& spec, uint32_t tokens, ByteReader& in,
                                        ByteSpan& raw_vectors);

// The key and value planes of a layer, read, and where in the layer's bytes the rest is.
struct SeedLayer {
  struct Plane {
    SeedPlane coded;
    size_t raw_at = 0, raw_bytes = 0;  // its raw vectors
  };
  std::vector<Plane> planes;
  size_t opaque_at = 0;  // the other planes, as ReadExactPlane reads them
};
// `rows`: of every head.
absl::StatusOr<SeedLayer> ReadSeedLayer(const LayerSpec& layer, uint32_t rows, ByteSpan bytes);

// Some layers of a frame of this layout, so read: most of what decoding them takes on a CPU. Their
// checksums are not looked at. Errors of FrameDecoder.
struct SeedLayers {
  std::vector<SeedLayer> layers;
};
absl::StatusOr<SeedLayers> ReadSeedLayers(const Layout& layout, ByteSpan frame,
                                          uint32_t first_layer, uint32_t layers);

EncodedLayer EncodeSeedLayer(const LatticeContext& context, const LatticeChoices& choices,
                             const SeedOptions& options, const std::vector<PlaneView>& planes);
absl::Status DecodeSeedLayer(const LatticeContext& context, ByteSpan bytes,
                             const std::vector<MutablePlaneView>& planes);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_SEED_CODEC_H_
