#include "core/layout/layout.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "core/layout/rope_scaling.h"

namespace latticekv {
namespace {

constexpr uint32_t kLayoutMagic = 0x4C564B4C;  // "LKVL"
// Version 2 adds the scaling of rotary embeddings. Layouts that scale none are written as version
// 1, which keeps their fingerprints.
constexpr uint8_t kLayoutVersion = 1;
constexpr uint8_t kScaledLayoutVersion = 2;

bool IsScaled(const Layout& layout) {
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) {
      if (plane.rope.scaling.kind != RopeScalingKind::kNone) return true;
    }
  }
  return false;
}

void SerializePlane(const PlaneSpec& plane, bool scaled, ByteWriter& out) {
  out.PutString(plane.name);
  out.Put(static_cast<uint8_t>(plane.role));
  out.Put(static_cast<uint8_t>(plane.dtype));
  out.Put(plane.heads);
  out.Put(plane.head_dim);
  out.Put(static_cast<uint8_t>(plane.rope.style));
  const bool rotary = plane.rope.style != RopeStyle::kNone;
  out.Put<uint32_t>(rotary ? plane.rope.rotary_dims : 0);
  out.Put<double>(rotary ? plane.rope.base : 0.0);
  if (scaled && rotary) SerializeRopeScaling(plane.rope.scaling, out);
}

PlaneSpec ParsePlane(bool scaled, ByteReader& in) {
  PlaneSpec plane;
  plane.name = in.GetString(limits::kMaxNameBytes);
  plane.role = static_cast<PlaneRole>(in.Get<uint8_t>());
  plane.dtype = static_cast<DType>(in.Get<uint8_t>());
  plane.heads = in.Get<uint32_t>();
  plane.head_dim = in.Get<uint32_t>();
  plane.rope.style = static_cast<RopeStyle>(in.Get<uint8_t>());
  plane.rope.rotary_dims = in.Get<uint32_t>();
  plane.rope.base = in.Get<double>();
  if (plane.rope.style == RopeStyle::kNone) {
    plane.rope.base = RopeSpec{}.base;
  } else if (scaled) {
    plane.rope.scaling = ParseRopeScaling(in);
  }
  return plane;
}

absl::Status PlaneError(size_t layer, const PlaneSpec& plane, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat("layout: layer ", layer, " plane '", plane.name, "': ", what));
}

absl::Status ValidateRope(size_t layer, const PlaneSpec& plane) {
  const RopeSpec& rope = plane.rope;
  if (rope.style == RopeStyle::kNone) {
    if (rope.rotary_dims != 0) return PlaneError(layer, plane, "rotary_dims without a rope style");
    if (rope.scaling != RopeScaling{}) return PlaneError(layer, plane, "scaling without rope");
    return absl::OkStatus();
  }
  if (rope.style != RopeStyle::kNeox && rope.style != RopeStyle::kInterleaved) {
    return PlaneError(layer, plane, "unknown rope style");
  }
  if (plane.role != PlaneRole::kKey) {
    return PlaneError(layer, plane, "only key planes have a rotary embedding");
  }
  if (rope.rotary_dims == 0 || rope.rotary_dims % 2 != 0 || rope.rotary_dims > plane.head_dim) {
    return PlaneError(layer, plane, "rotary_dims must be even and at most head_dim");
  }
  if (!std::isfinite(rope.base) || rope.base < 1.0 || rope.base > 1e12) {
    return PlaneError(layer, plane, "rope base must be between 1 and 1e12");
  }
  const std::string what = RopeScalingProblem(rope);
  return what.empty() ? absl::OkStatus() : PlaneError(layer, plane, what);
}

absl::Status ValidatePlane(size_t layer, const PlaneSpec& plane) {
  if (plane.name.empty() || plane.name.size() > limits::kMaxNameBytes) {
    return PlaneError(layer, plane, "a name needs 1 to kMaxNameBytes bytes");
  }
  if (plane.role != PlaneRole::kKey && plane.role != PlaneRole::kValue &&
      plane.role != PlaneRole::kOpaque) {
    return PlaneError(layer, plane, "role must be key, value or opaque");
  }
  if (plane.dtype != DType::kF16 && plane.dtype != DType::kBF16 && plane.dtype != DType::kF32) {
    return PlaneError(layer, plane, "dtype must be f16, bf16 or f32");
  }
  if (plane.heads == 0 || plane.heads > limits::kMaxHeads) {
    return PlaneError(layer, plane, absl::StrCat("heads must be 1 to ", limits::kMaxHeads));
  }
  if (plane.head_dim == 0 || plane.head_dim > limits::kMaxHeadDim) {
    return PlaneError(layer, plane, absl::StrCat("head_dim must be 1 to ", limits::kMaxHeadDim));
  }
  if (plane.role != PlaneRole::kOpaque && plane.head_dim % 8 != 0) {
    return PlaneError(layer, plane,
                      absl::StrCat("head_dim ", plane.head_dim,
                                   " is not divisible by 8; declare the plane opaque"));
  }
  return ValidateRope(layer, plane);
}

}  // namespace

size_t DTypeBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kF32:
      return "f32";
  }
  return "unknown";
}

absl::StatusOr<DType> ParseDType(std::string_view name) {
  for (DType d : {DType::kF16, DType::kBF16, DType::kF32}) {
    if (DTypeName(d) == name) return d;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown dtype '", std::string(name), "'; use f16, bf16 or f32"));
}

size_t LayerSpec::token_bytes() const {
  size_t bytes = 0;
  for (const PlaneSpec& plane : planes) bytes += plane.token_bytes();
  return bytes;
}

size_t Layout::token_bytes() const {
  size_t bytes = 0;
  for (const LayerSpec& layer : layers) bytes += layer.token_bytes();
  return bytes;
}

absl::Status ValidateLayout(const Layout& layout) {
  if (layout.model.size() > limits::kMaxNameBytes ||
      layout.revision.size() > limits::kMaxNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat("layout: model and revision may have at most ",
                                                   limits::kMaxNameBytes, " bytes"));
  }
  if (layout.layers.empty() || layout.layers.size() > limits::kMaxLayers) {
    return absl::InvalidArgumentError(absl::StrCat("layout: has ", layout.layers.size(),
                                                   " layers, may have 1 to ", limits::kMaxLayers));
  }
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    const LayerSpec& layer = layout.layers[l];
    if (layer.planes.empty() || layer.planes.size() > limits::kMaxPlanesPerLayer) {
      return absl::InvalidArgumentError(absl::StrCat("layout: layer ", l, " has ",
                                                     layer.planes.size(), " planes, may have 1 to ",
                                                     limits::kMaxPlanesPerLayer));
    }
    for (const PlaneSpec& plane : layer.planes) LKV_RETURN_IF_ERROR(ValidatePlane(l, plane));
  }
  const size_t chunk_bytes = layout.token_bytes() * limits::kMaxChunkTokens;
  if (chunk_bytes > limits::kMaxFrameBytes - limits::kMaxFrameBytes / 64) {
    return absl::InvalidArgumentError(absl::StrCat("layout: a chunk of ", limits::kMaxChunkTokens,
                                                   " tokens has ", chunk_bytes,
                                                   " bytes, more than a frame may have"));
  }
  return absl::OkStatus();
}

ByteVector SerializeLayout(const Layout& layout) {
  ByteWriter out;
  out.Put(kLayoutMagic);
  const bool scaled = IsScaled(layout);
  out.Put(scaled ? kScaledLayoutVersion : kLayoutVersion);
  out.PutString(layout.model);
  out.PutString(layout.revision);
  out.Put<uint32_t>(static_cast<uint32_t>(layout.layers.size()));
  // Runs of equal layers, as long as they go, so that equal layouts have one serialisation.
  for (size_t l = 0; l < layout.layers.size();) {
    size_t end = l + 1;
    while (end < layout.layers.size() && layout.layers[end] == layout.layers[l]) ++end;
    out.Put<uint32_t>(static_cast<uint32_t>(end - l));
    out.Put<uint8_t>(static_cast<uint8_t>(layout.layers[l].planes.size()));
    for (const PlaneSpec& plane : layout.layers[l].planes) {
      SerializePlane(plane, scaled, out);
    }
    l = end;
  }
  return out.Take();
}

absl::StatusOr<Layout> ParseLayout(ByteSpan bytes) {
  if (bytes.size() > limits::kMaxLayoutBytes) return absl::DataLossError("layout: too many bytes");
  ByteReader in(bytes);
  if (in.Get<uint32_t>() != kLayoutMagic) return absl::DataLossError("layout: bad magic");
  const int version = in.Get<uint8_t>();
  const bool scaled = version == kScaledLayoutVersion;
  if (in.ok() && version != kLayoutVersion && !scaled) {
    return absl::UnimplementedError(absl::StrCat("layout: unknown version ", version));
  }
  Layout layout;
  layout.model = in.GetString(limits::kMaxNameBytes);
  layout.revision = in.GetString(limits::kMaxNameBytes);
  const uint32_t layers = in.Get<uint32_t>();
  if (!in.ok() || layers == 0 || layers > limits::kMaxLayers) {
    return absl::DataLossError("layout: damaged header");
  }
  while (layout.layers.size() < layers) {
    const uint32_t run = in.Get<uint32_t>();
    const uint32_t planes = in.Get<uint8_t>();
    if (!in.ok() || run == 0 || run > layers - layout.layers.size() || planes == 0 ||
        planes > limits::kMaxPlanesPerLayer) {
      return absl::DataLossError("layout: damaged layer table");
    }
    LayerSpec layer;
    for (uint32_t p = 0; p < planes; ++p) layer.planes.push_back(ParsePlane(scaled, in));
    if (!in.ok()) return absl::DataLossError("layout: truncated");
    layout.layers.insert(layout.layers.end(), run, layer);
  }
  if (in.remaining() != 0) return absl::DataLossError("layout: trailing bytes");
  LKV_RETURN_IF_ERROR(ValidateLayout(layout));
  const ByteVector canonical = SerializeLayout(layout);
  if (!std::equal(canonical.begin(), canonical.end(), bytes.begin(), bytes.end())) {
    return absl::DataLossError("layout: not in canonical form");
  }
  return layout;
}

Digest LayoutFingerprint(const Layout& layout) { return Sha256Of(SerializeLayout(layout)); }

std::vector<uint32_t> CanonicalChannels(const PlaneSpec& plane) {
  std::vector<uint32_t> out(plane.head_dim);
  const uint32_t pairs = plane.rope.rotary_dims / 2;
  for (uint32_t c = 0; c < plane.head_dim; ++c) {
    out[c] = c;
    if (plane.rope.style == RopeStyle::kInterleaved && c < 2 * pairs) {
      out[c] = c < pairs ? 2 * c : 2 * (c - pairs) + 1;
    }
  }
  return out;
}

Layout MakeUniformLayout(std::string model, uint32_t layers, uint32_t kv_heads, uint32_t head_dim,
                         DType dtype, RopeSpec rope) {
  Layout layout;
  layout.model = std::move(model);
  LayerSpec layer;
  layer.planes.push_back({"k", PlaneRole::kKey, kv_heads, head_dim, dtype, rope});
  layer.planes.push_back({"v", PlaneRole::kValue, kv_heads, head_dim, dtype, RopeSpec{}});
  layout.layers.assign(layers, layer);
  return layout;
}

}  // namespace latticekv
