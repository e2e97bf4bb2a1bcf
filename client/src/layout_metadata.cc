#include "client/src/layout_metadata.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

using Json = nlohmann::json;

absl::Status Wrong(const std::string& key, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("metadata ", key, " ", what));
}

std::string Find(const SafetensorsMetadata& metadata, const std::string& key) {
  const auto it = metadata.find(key);
  return it == metadata.end() ? "" : it->second;
}

// The value of `key` for each layer: a JSON list with one item a layer, or one value for all. Null
// where it is missing.
absl::StatusOr<std::vector<Json>> PerLayer(const SafetensorsMetadata& metadata,
                                           const std::string& key, size_t layers) {
  const std::string text = Find(metadata, key);
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) json = text.empty() ? Json() : Json(text);
  if (!json.is_array()) return std::vector<Json>(layers, json);
  if (json.size() == layers) return std::vector<Json>(json.begin(), json.end());
  return Wrong(key, absl::StrCat("has ", json.size(), " items for ", layers, " layers"));
}

// Reads one number of a scaling's description; what is absent or null keeps its value.
template <typename T>
absl::Status ReadField(const Json& json, const char* name, T& out) {
  const auto it = json.find(name);
  if (it == json.end() || it->is_null()) return absl::OkStatus();
  if constexpr (std::is_same_v<T, bool>) {
    if (!it->is_boolean()) return Wrong("rope_scaling", absl::StrCat("has a bad ", name));
    out = it->get<bool>();
  } else {
    if (!it->is_number()) return Wrong("rope_scaling", absl::StrCat("has a bad ", name));
    const double value = it->get<double>();
    if constexpr (std::is_same_v<T, uint32_t>) {
      if (!(value >= 1 && value <= 4294967295.0)) {
        return Wrong("rope_scaling", absl::StrCat("has a bad ", name));
      }
    }
    out = static_cast<T>(value);
  }
  return absl::OkStatus();
}

absl::Status ReadYarn(const Json& json, RopeScaling& s) {
  s.beta_fast = 32;  // the defaults of the published configurations
  s.beta_slow = 1;
  s.truncate = true;
  LKV_RETURN_IF_ERROR(ReadField(json, "beta_fast", s.beta_fast));
  LKV_RETURN_IF_ERROR(ReadField(json, "beta_slow", s.beta_slow));
  LKV_RETURN_IF_ERROR(ReadField(json, "truncate", s.truncate));
  LKV_RETURN_IF_ERROR(ReadField(json, "attention_factor", s.attention_factor));
  LKV_RETURN_IF_ERROR(ReadField(json, "mscale", s.mscale));
  return ReadField(json, "mscale_all_dim", s.mscale_all_dim);
}

// A scaling as model configurations write it. Anything that is not known is refused, since keys
// would be taken for what they are not.
absl::StatusOr<RopeScaling> ReadScaling(const Json& json, uint32_t tokens) {
  RopeScaling s;
  if (json.is_null() || json == "none" || json == "default") return s;
  if (!json.is_object()) {
    return Wrong("rope_scaling", absl::StrCat("'", json.dump(), "' is not a JSON object"));
  }
  const char* type_key = json.contains("rope_type") ? "rope_type" : "type";
  const Json type = json.value(type_key, Json());
  if (type == "default") return s;
  LKV_RETURN_IF_ERROR(ReadField(json, "factor", s.factor));
  if (type == "linear") {
    s.kind = RopeScalingKind::kLinear;
    return s;
  }
  LKV_RETURN_IF_ERROR(ReadField(json, "original_max_position_embeddings", s.original_positions));
  if (s.original_positions == 0) {
    return Wrong("rope_scaling",
                 "needs original_max_position_embeddings (the model's max_position_embeddings "
                 "before scaling)");
  }
  if (type == "dynamic") {
    s.kind = RopeScalingKind::kDynamicNtk;
    s.sequence_positions = std::max(tokens, s.original_positions);
    LKV_RETURN_IF_ERROR(ReadField(json, "sequence_length", s.sequence_positions));
  } else if (type == "llama3") {
    s.kind = RopeScalingKind::kLlama3;
    LKV_RETURN_IF_ERROR(ReadField(json, "low_freq_factor", s.low_freq_factor));
    LKV_RETURN_IF_ERROR(ReadField(json, "high_freq_factor", s.high_freq_factor));
  } else if (type == "yarn") {
    s.kind = RopeScalingKind::kYarn;
    LKV_RETURN_IF_ERROR(ReadYarn(json, s));
  } else {
    return Wrong("rope_scaling", absl::StrCat("has type ", type.dump(),
                                              "; default, linear, dynamic, llama3 and yarn are "
                                              "known"));
  }
  return s;
}

Json ScalingJson(const RopeScaling& s) {
  if (s.kind == RopeScalingKind::kNone) return nullptr;
  Json out = {{"factor", s.factor}};
  if (s.original_positions > 0) out["original_max_position_embeddings"] = s.original_positions;
  const auto put = [&](const char* name, double value) {
    if (value != 0) out[name] = value;
  };
  switch (s.kind) {
    case RopeScalingKind::kLinear:
      out["rope_type"] = "linear";
      break;
    case RopeScalingKind::kDynamicNtk:
      out["rope_type"] = "dynamic";
      out["sequence_length"] = s.sequence_positions;
      break;
    case RopeScalingKind::kLlama3:
      out["rope_type"] = "llama3";
      put("low_freq_factor", s.low_freq_factor);
      put("high_freq_factor", s.high_freq_factor);
      break;
    default:
      out["rope_type"] = "yarn";
      put("beta_fast", s.beta_fast);
      put("beta_slow", s.beta_slow);
      out["truncate"] = s.truncate;
      put("attention_factor", s.attention_factor);
      put("mscale", s.mscale);
      put("mscale_all_dim", s.mscale_all_dim);
  }
  return out;
}

// One layer's rotary embedding from its items of the three lists.
absl::StatusOr<RopeSpec> ReadLayerRope(RopeStyle style, const Json& base, const Json& dims,
                                       const Json& scaling, uint32_t head_dim, uint32_t tokens) {
  RopeSpec rope;
  if (base.is_null() || dims == 0) return rope;  // layers without positions exist
  rope.style = style;
  if (!base.is_number()) return Wrong("rope_base", absl::StrCat(base.dump(), " is not a number"));
  rope.base = base.get<double>();
  rope.rotary_dims = head_dim;
  if (!dims.is_null()) {
    if (!dims.is_number_unsigned() || dims.get<uint64_t>() > head_dim) {
      return Wrong("rope_dims",
                   absl::StrCat(dims.dump(), " is not a number of rotary_dims up to ", head_dim));
    }
    rope.rotary_dims = dims.get<uint32_t>();
  }
  LKV_ASSIGN_OR_RETURN(rope.scaling, ReadScaling(scaling, tokens));
  return rope;
}

const PlaneSpec* KeyPlane(const LayerSpec& layer) {
  for (const PlaneSpec& plane : layer.planes) {
    if (plane.role == PlaneRole::kKey) return &plane;
  }
  return nullptr;
}

// One text for all layers where they agree, else a list.
void WritePerLayer(const char* key, const std::vector<Json>& items, SafetensorsMetadata& out) {
  const bool equal = std::all_of(items.begin(), items.end(),
                                 [&](const Json& item) { return item == items.front(); });
  if (!equal) {
    out[key] = Json(items).dump();
  } else if (!items.front().is_null()) {
    out[key] = items.front().dump();
  }
}

}  // namespace

absl::StatusOr<std::vector<std::pair<std::string, PlaneRole>>> ReadPlaneNames(
    const SafetensorsMetadata& metadata) {
  std::vector<std::pair<std::string, PlaneRole>> out;
  const std::string text = Find(metadata, "planes");
  if (text.empty()) return {{{"k", PlaneRole::kKey}, {"v", PlaneRole::kValue}}};
  const Json json = Json::parse(text, nullptr, false);
  const char* kForm = "must be a JSON object of tensor names and key, value or opaque";
  if (!json.is_object() || json.empty()) return Wrong("planes", kForm);
  for (const auto& [name, role] : json.items()) {
    if (role == "key") {
      out.emplace_back(name, PlaneRole::kKey);
    } else if (role == "value") {
      out.emplace_back(name, PlaneRole::kValue);
    } else if (role == "opaque") {
      out.emplace_back(name, PlaneRole::kOpaque);
    } else {
      return Wrong("planes", kForm);
    }
  }
  // Objects have no order, layouts have: by role, then by name.
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second, a.first) < std::pair(b.second, b.first);
  });
  return out;
}

absl::Status ReadRopeMetadata(const SafetensorsMetadata& metadata, uint32_t tokens, Layout& layout,
                              std::vector<std::string>& notices) {
  const std::string style_text = Find(metadata, "rope_layout");
  if (style_text == "none" || KeyPlane(layout.layers.front()) == nullptr) return absl::OkStatus();
  if (!style_text.empty() && style_text != "neox" && style_text != "interleaved") {
    return Wrong("rope_layout",
                 absl::StrCat("is '", style_text, "'; it must be neox, interleaved or none"));
  }
  if (Find(metadata, "rope_base").empty()) {
    return Wrong("rope_base",
                 "is missing; add it, or rope_layout=none for keys without rotary embedding");
  }
  if (style_text.empty()) notices.push_back("metadata has no rope_layout; taking neox");
  const RopeStyle style = style_text == "interleaved" ? RopeStyle::kInterleaved : RopeStyle::kNeox;
  const size_t layers = layout.layers.size();
  LKV_ASSIGN_OR_RETURN(const std::vector<Json> bases, PerLayer(metadata, "rope_base", layers));
  LKV_ASSIGN_OR_RETURN(const std::vector<Json> dims, PerLayer(metadata, "rope_dims", layers));
  LKV_ASSIGN_OR_RETURN(const std::vector<Json> scalings,
                       PerLayer(metadata, "rope_scaling", layers));
  for (size_t l = 0; l < layers; ++l) {
    for (PlaneSpec& plane : layout.layers[l].planes) {
      if (plane.role != PlaneRole::kKey) continue;
      LKV_ASSIGN_OR_RETURN(
          plane.rope, ReadLayerRope(style, bases[l], dims[l], scalings[l], plane.head_dim, tokens));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckFitsMetadata(const Layout& layout) {
  RopeStyle style = RopeStyle::kNone;
  for (const LayerSpec& layer : layout.layers) {
    LayerSpec shape = layer, first = layout.layers.front();
    const PlaneSpec* key = KeyPlane(layer);
    bool fits = true;
    for (PlaneSpec& plane : shape.planes) {
      fits &= plane.role != PlaneRole::kKey || plane.rope == key->rope;
      if (plane.rope.style != RopeStyle::kNone) {
        fits &= style == RopeStyle::kNone || plane.rope.style == style;
        style = plane.rope.style;
      }
      plane.rope = RopeSpec{};
    }
    for (PlaneSpec& plane : first.planes) plane.rope = RopeSpec{};
    if (!fits || shape != first) {
      return absl::InvalidArgumentError(
          "the layers of this layout differ in shape or rotary style; a safetensors cache holds "
          "layers that differ in rotary base, dims and scaling only");
    }
  }
  return absl::OkStatus();
}

void WriteRopeMetadata(const Layout& layout, SafetensorsMetadata& out) {
  std::vector<Json> bases, dims, scalings;
  out["rope_layout"] = "none";
  for (const LayerSpec& layer : layout.layers) {
    const PlaneSpec* key = KeyPlane(layer);
    const RopeSpec rope = key == nullptr ? RopeSpec{} : key->rope;
    const bool rotary = rope.style != RopeStyle::kNone;
    bases.push_back(rotary ? Json(rope.base) : Json());
    const bool partial = rotary && rope.rotary_dims != key->head_dim;
    dims.push_back(partial ? Json(rope.rotary_dims) : Json());
    scalings.push_back(ScalingJson(rope.scaling));
    if (rotary) {
      out["rope_layout"] = rope.style == RopeStyle::kInterleaved ? "interleaved" : "neox";
    }
  }
  WritePerLayer("rope_base", bases, out);
  WritePerLayer("rope_dims", dims, out);
  WritePerLayer("rope_scaling", scalings, out);
}

void WritePlaneNames(const LayerSpec& layer, SafetensorsMetadata& out) {
  const std::vector<PlaneSpec>& p = layer.planes;
  if (p.size() == 2 && p[0].name == "k" && p[0].role == PlaneRole::kKey && p[1].name == "v" &&
      p[1].role == PlaneRole::kValue) {
    return;
  }
  Json planes = Json::object();
  for (const PlaneSpec& plane : p) {
    planes[plane.name] = plane.role == PlaneRole::kKey     ? "key"
                         : plane.role == PlaneRole::kValue ? "value"
                                                           : "opaque";
  }
  out["planes"] = planes.dump();
}

std::string RopeScalingText(const RopeScaling& scaling) { return ScalingJson(scaling).dump(); }

}  // namespace latticekv
