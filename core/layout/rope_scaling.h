// Canonical bytes and bounds of RopeScaling. Internal to core/layout.
#ifndef LATTICEKV_CORE_LAYOUT_ROPE_SCALING_H_
#define LATTICEKV_CORE_LAYOUT_ROPE_SCALING_H_

#include <string>

#include "core/base/bytes.h"
#include "core/layout/layout.h"

namespace latticekv {

// The kind and the fields it uses (docs/format/layout.md).
void SerializeRopeScaling(const RopeScaling& scaling, ByteWriter& out);
// Unknown kinds come back as they are and RopeScalingProblem refuses them.
RopeScaling ParseRopeScaling(ByteReader& in);

// What is wrong with rope.scaling; empty when nothing is.
std::string RopeScalingProblem(const RopeSpec& rope);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_LAYOUT_ROPE_SCALING_H_
