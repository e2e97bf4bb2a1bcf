#include "server/layout_proto.h"

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "proto/rope_proto.h"
#include "server/error_detail.h"

namespace latticekv {
namespace {

absl::StatusOr<PlaneSpec> PlaneFromProto(const v1::PlaneLayout& proto) {
  if (proto.dtype() < v1::DTYPE_F16 || proto.dtype() > v1::DTYPE_F32) {
    return absl::InvalidArgumentError(
        absl::StrCat("plane '", proto.name(), "' has no known dtype; use F16, BF16 or F32"));
  }
  if (proto.role() < v1::PLANE_ROLE_KEY || proto.role() > v1::PLANE_ROLE_OPAQUE) {
    return absl::InvalidArgumentError(
        absl::StrCat("plane '", proto.name(), "' has no known role; use KEY, VALUE or OPAQUE"));
  }
  if (proto.rope().style() < v1::ROPE_STYLE_NONE ||
      proto.rope().style() > v1::ROPE_STYLE_INTERLEAVED) {
    return absl::InvalidArgumentError(absl::StrCat(
        "plane '", proto.name(), "' has an unknown rotary style; use NONE, NEOX or INTERLEAVED"));
  }
  PlaneSpec plane;
  plane.name = proto.name();
  plane.role = static_cast<PlaneRole>(proto.role());
  plane.heads = proto.heads();
  plane.head_dim = proto.head_dim();
  plane.dtype = static_cast<DType>(proto.dtype());
  plane.rope = RopeFromProto(proto.rope());
  return plane;
}

void PlaneToProto(const PlaneSpec& plane, v1::PlaneLayout* out) {
  out->set_name(plane.name);
  out->set_role(static_cast<v1::PlaneRole>(plane.role));
  out->set_heads(plane.heads);
  out->set_head_dim(plane.head_dim);
  out->set_dtype(static_cast<v1::DType>(plane.dtype));
  RopeToProto(plane.rope, out);
}

}  // namespace

absl::StatusOr<Layout> LayoutFromProto(const v1::Layout& proto) {
  Layout layout;
  layout.model = proto.model();
  layout.revision = proto.revision();
  for (const v1::LayerLayout& layer : proto.layers()) {
    LayerSpec spec;
    for (const v1::PlaneLayout& plane : layer.planes()) {
      LKV_ASSIGN_OR_RETURN(PlaneSpec parsed, PlaneFromProto(plane));
      spec.planes.push_back(std::move(parsed));
      if (spec.planes.size() > limits::kMaxPlanesPerLayer) {
        return LimitError(
            "kMaxPlanesPerLayer",
            absl::StrCat("a layer may have at most ", limits::kMaxPlanesPerLayer, " planes"));
      }
    }
    const uint32_t repeat = layer.repeat() == 0 ? 1 : layer.repeat();
    if (repeat > limits::kMaxLayers - layout.layers.size()) {
      return LimitError("kMaxLayers",
                        absl::StrCat("a layout may have at most ", limits::kMaxLayers, " layers"));
    }
    layout.layers.insert(layout.layers.end(), repeat, spec);
  }
  LKV_RETURN_IF_ERROR(ValidateLayout(layout));
  return layout;
}

void LayoutToProto(const Layout& layout, v1::Layout* out) {
  out->set_model(layout.model);
  out->set_revision(layout.revision);
  for (size_t at = 0; at < layout.layers.size();) {
    size_t end = at + 1;
    while (end < layout.layers.size() && layout.layers[end] == layout.layers[at]) ++end;
    v1::LayerLayout* layer = out->add_layers();
    layer->set_repeat(static_cast<uint32_t>(end - at));
    for (const PlaneSpec& plane : layout.layers[at].planes)
      PlaneToProto(plane, layer->add_planes());
    at = end;
  }
}

}  // namespace latticekv
