#include "client/src/cache_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

using Tensor = SafetensorsReader::Tensor;

absl::StatusOr<DType> PlaneDType(const Tensor& tensor) {
  switch (tensor.dtype) {
    case TensorDType::kF16:
      return DType::kF16;
    case TensorDType::kBF16:
      return DType::kBF16;
    case TensorDType::kF32:
      return DType::kF32;
    default:
      return absl::InvalidArgumentError(absl::StrCat("tensor '", tensor.name, "' is ",
                                                     std::string(TensorDTypeName(tensor.dtype)),
                                                     "; keys and values must be F16, BF16 or F32"));
  }
}

TensorDType ToTensorDType(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return TensorDType::kBF16;
    case DType::kF32:
      return TensorDType::kF32;
    default:
      return TensorDType::kF16;
  }
}

std::string Shape(const Tensor& tensor) {
  return absl::StrCat("[", absl::StrJoin(tensor.shape, ", "), "]");
}

absl::StatusOr<RopeSpec> ReadRope(const SafetensorsMetadata& metadata, uint32_t head_dim,
                                  std::vector<std::string>& notices) {
  const auto find = [&](const char* key) -> std::string {
    const auto it = metadata.find(key);
    return it == metadata.end() ? "" : it->second;
  };
  RopeSpec rope;
  const std::string style = find("rope_layout");
  if (style == "none") return rope;
  if (style == "interleaved") {
    rope.style = RopeStyle::kInterleaved;
  } else if (style == "neox" || style.empty()) {
    rope.style = RopeStyle::kNeox;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("metadata rope_layout is '", style,
                                                   "'; it must be neox, interleaved or none"));
  }
  const std::string base = find("rope_base");
  if (base.empty()) {
    return absl::InvalidArgumentError(
        "metadata rope_base is missing; add it, or rope_layout=none for keys without rotary "
        "embedding");
  }
  if (!absl::SimpleAtod(base, &rope.base)) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata rope_base '", base, "' is not a number"));
  }
  if (style.empty()) notices.push_back("metadata has no rope_layout; taking neox");
  const std::string scaling = find("rope_scaling");
  if (!scaling.empty() && scaling != "none" && scaling != "default") {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata rope_scaling '", scaling,
                     "' is not supported by this version; only unscaled rotary embedding is"));
  }
  rope.rotary_dims = head_dim;
  if (const std::string dims = find("rope_dims"); !dims.empty()) {
    if (!absl::SimpleAtoi(dims, &rope.rotary_dims)) {
      return absl::InvalidArgumentError(
          absl::StrCat("metadata rope_dims '", dims, "' is not a number"));
    }
    if (rope.rotary_dims == 0) return RopeSpec{};
  }
  return rope;
}

absl::StatusOr<const Tensor*> FindPlaneTensor(const SafetensorsReader& reader, const char* name) {
  const Tensor* tensor = reader.Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("there is no tensor '", name, "'"));
  }
  if (tensor->shape.size() != 4) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor '", name, "' has shape ", Shape(*tensor),
                     ", must be [layers, tokens, kv_heads, head_dim]"));
  }
  for (uint64_t dim : tensor->shape) {
    if (dim == 0 || dim > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", name, "' has an impossible shape ", Shape(*tensor)));
    }
  }
  return tensor;
}

template <typename T>
absl::Status ReadIds(const Tensor& tensor, std::vector<uint32_t>& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const T id = LoadLe<T>(tensor.data.data() + i * sizeof(T));
    if (id < 0 || static_cast<uint64_t>(id) > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token_ids[", i, "] is ", id, "; ids are 32-bit and not negative"));
    }
    out[i] = static_cast<uint32_t>(id);
  }
  return absl::OkStatus();
}

absl::Status ReadTokenIds(CacheFile& cache) {
  const Tensor* tensor = cache.reader.Find("token_ids");
  if (tensor == nullptr) return absl::OkStatus();
  if (tensor->dtype != TensorDType::kI32 && tensor->dtype != TensorDType::kI64) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token_ids are ", std::string(TensorDTypeName(tensor->dtype)), ", must be I32 or I64"));
  }
  if (tensor->shape.size() != 1 || tensor->shape[0] < cache.tokens) {
    return absl::InvalidArgumentError(absl::StrCat("token_ids have shape ", Shape(*tensor),
                                                   ", need one id for each of the ", cache.tokens,
                                                   " tokens"));
  }
  cache.token_dtype = tensor->dtype;
  cache.token_ids.resize(cache.tokens);
  return tensor->dtype == TensorDType::kI32 ? ReadIds<int32_t>(*tensor, cache.token_ids)
                                            : ReadIds<int64_t>(*tensor, cache.token_ids);
}

absl::Status ReadCache(CacheFile& cache) {
  const SafetensorsReader& reader = cache.reader;
  LKV_ASSIGN_OR_RETURN(const Tensor* k, FindPlaneTensor(reader, "k"));
  LKV_ASSIGN_OR_RETURN(const Tensor* v, FindPlaneTensor(reader, "v"));
  if (k->shape[0] != v->shape[0] || k->shape[1] != v->shape[1]) {
    return absl::InvalidArgumentError(absl::StrCat("k has shape ", Shape(*k), " and v ", Shape(*v),
                                                   "; layers and tokens must be the same"));
  }
  LayerSpec layer;
  for (const Tensor* tensor : {k, v}) {
    PlaneSpec plane;
    plane.name = tensor->name;
    plane.role = tensor == k ? PlaneRole::kKey : PlaneRole::kValue;
    plane.heads = static_cast<uint32_t>(tensor->shape[2]);
    plane.head_dim = static_cast<uint32_t>(tensor->shape[3]);
    LKV_ASSIGN_OR_RETURN(plane.dtype, PlaneDType(*tensor));
    if (tensor == k) {
      LKV_ASSIGN_OR_RETURN(plane.rope, ReadRope(reader.metadata(), plane.head_dim, cache.notices));
    }
    layer.planes.push_back(plane);
  }
  if (k->shape[0] > limits::kMaxLayers) {
    return absl::InvalidArgumentError(absl::StrCat("k has ", k->shape[0], " layers, at most ",
                                                   limits::kMaxLayers, " are possible"));
  }
  cache.tokens = static_cast<uint32_t>(k->shape[1]);
  cache.layout.layers.assign(k->shape[0], layer);
  const auto text = [&](const char* key) {
    const auto it = reader.metadata().find(key);
    return it == reader.metadata().end() ? std::string() : it->second;
  };
  cache.layout.model = text("model");
  cache.layout.revision = text("revision");
  LKV_RETURN_IF_ERROR(ValidateLayout(cache.layout));
  return ReadTokenIds(cache);
}

std::string DoubleText(double value) {
  std::array<char, 32> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  return std::string(buffer.data(), end);
}

}  // namespace

std::vector<std::vector<PlaneView>> CacheFile::Views(uint64_t first_token) const {
  std::vector<std::vector<PlaneView>> out(layout.layers.size());
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    for (const PlaneSpec& plane : layout.layers[l].planes) {
      const Tensor* tensor = reader.Find(plane.name);
      out[l].push_back(ContiguousPlane(
          plane, tensor->data.data() + (l * tokens + first_token) * plane.token_bytes()));
    }
  }
  return out;
}

uint64_t CacheFile::elements() const {
  uint64_t per_token = 0;
  for (const LayerSpec& layer : layout.layers) {
    for (const PlaneSpec& plane : layer.planes) per_token += uint64_t{plane.heads} * plane.head_dim;
  }
  return per_token * tokens;
}

absl::StatusOr<CacheFile> LoadCache(const std::string& path) {
  LKV_ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(path));
  CacheFile cache{std::move(reader)};
  if (absl::Status status = ReadCache(cache); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("'", path, "': ", std::string(status.message())));
  }
  return cache;
}

SafetensorsMetadata LayoutMetadata(const Layout& layout) {
  SafetensorsMetadata out;
  out["kv_layout"] = "layers,tokens,kv_heads,head_dim";
  if (!layout.model.empty()) out["model"] = layout.model;
  if (!layout.revision.empty()) out["revision"] = layout.revision;
  out["rope_layout"] = "none";
  for (const PlaneSpec& plane : layout.layers.front().planes) {
    if (plane.rope.style == RopeStyle::kNone) continue;
    out["rope_layout"] = plane.rope.style == RopeStyle::kInterleaved ? "interleaved" : "neox";
    out["rope_base"] = DoubleText(plane.rope.base);
    if (plane.rope.rotary_dims != plane.head_dim) {
      out["rope_dims"] = absl::StrCat(plane.rope.rotary_dims);
    }
  }
  return out;
}

absl::StatusOr<CacheWriter> CacheWriter::Create(const std::string& path, const Layout& layout,
                                                uint32_t tokens,
                                                const std::vector<uint32_t>& token_ids,
                                                TensorDType token_dtype,
                                                const SafetensorsMetadata& metadata) {
  for (const LayerSpec& layer : layout.layers) {
    if (layer != layout.layers.front()) {
      return absl::InvalidArgumentError(
          "the layers of this layout differ; a safetensors cache holds equal layers only");
    }
  }
  std::vector<TensorInfo> tensors;
  for (const PlaneSpec& plane : layout.layers.front().planes) {
    tensors.push_back({plane.name,
                       ToTensorDType(plane.dtype),
                       {layout.layers.size(), tokens, plane.heads, plane.head_dim}});
  }
  if (!token_ids.empty()) tensors.push_back({"token_ids", token_dtype, {token_ids.size()}});
  LKV_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                       SafetensorsWriter::Create(path, std::move(tensors), metadata));
  std::byte* at = writer.Data("token_ids").data();
  for (uint32_t id : token_ids) {
    if (token_dtype == TensorDType::kI64) {
      StoreLe<int64_t>(at, id);
      at += sizeof(int64_t);
    } else {
      StoreLe<uint32_t>(at, id);
      at += sizeof(uint32_t);
    }
  }
  return CacheWriter(std::move(writer), layout, tokens);
}

MutablePlaneView CacheWriter::View(uint32_t layer, uint32_t plane, uint64_t first_token) {
  const PlaneSpec& spec = layout_.layers[layer].planes[plane];
  std::byte* data = writer_.Data(spec.name).data();
  return ContiguousPlane(spec,
                         data + (uint64_t{layer} * tokens_ + first_token) * spec.token_bytes());
}

}  // namespace latticekv
