#include "core/codec/layer_codec.h"
namespace latticekv {
EncodedLayer EncodeLatticeLayer(const LatticeContext&, const LatticeChoices&, const std::vector<PlaneView>&) { return {}; }
absl::Status DecodeLatticeLayer(const LatticeContext&, ByteSpan, const std::vector<MutablePlaneView>&) { return absl::DataLossError("empty"); }
}
