// What the metadata of a safetensors cache says of its layout: planes and rotary embedding
// (docs/format/layout.md, "In a safetensors file").
#ifndef LATTICEKV_CLIENT_SRC_LAYOUT_METADATA_H_
#define LATTICEKV_CLIENT_SRC_LAYOUT_METADATA_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/src/safetensors.h"
#include "core/layout/layout.h"

namespace latticekv {

// Tensors that are planes, with their roles: what `planes` lists, otherwise k and v.
absl::StatusOr<std::vector<std::pair<std::string, PlaneRole>>> ReadPlaneNames(
    const SafetensorsMetadata& metadata);

// Sets the rotary embedding of the layout's key planes. `tokens` of the cache stand in for a
// dynamic scaling's sequence length where none is said. Appends what was assumed to `notices`.
absl::Status ReadRopeMetadata(const SafetensorsMetadata& metadata, uint32_t tokens, Layout& layout,
                              std::vector<std::string>& notices);

// INVALID_ARGUMENT when the layers differ in more than bases, dims and scaling of their keys'
// rotary embedding: tensors of one shape and the metadata cannot say it.
absl::Status CheckFitsMetadata(const Layout& layout);
// The inverse of the two readers, for layouts that fit.
void WriteRopeMetadata(const Layout& layout, SafetensorsMetadata& out);
void WritePlaneNames(const LayerSpec& layer, SafetensorsMetadata& out);

// A scaling under the names of a model's configuration; null for none.
std::string RopeScalingText(const RopeScaling& scaling);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_LAYOUT_METADATA_H_
