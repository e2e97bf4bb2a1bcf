// Layouts on the wire and in core.
#ifndef LATTICEKV_SERVER_LAYOUT_PROTO_H_
#define LATTICEKV_SERVER_LAYOUT_PROTO_H_

#include "absl/status/statusor.h"
#include "core/layout/layout.h"
#include "latticekv/v1/layout.pb.h"

namespace latticekv {

// Expands repeated layers and validates. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<Layout> LayoutFromProto(const v1::Layout& proto);
// Equal consecutive layers are folded into one with `repeat`.
void LayoutToProto(const Layout& layout, v1::Layout* out);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_LAYOUT_PROTO_H_
