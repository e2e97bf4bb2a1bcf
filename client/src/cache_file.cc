#include "client/src/cache_file.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/src/layout_metadata.h"
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

absl::StatusOr<const Tensor*> FindPlaneTensor(const SafetensorsReader& reader,
                                              const std::string& name) {
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

// One plane's spec, the rotary embedding apart.
absl::StatusOr<PlaneSpec> PlaneOfTensor(const Tensor& tensor, PlaneRole role) {
  PlaneSpec plane;
  plane.name = tensor.name;
  plane.role = role;
  plane.heads = static_cast<uint32_t>(tensor.shape[2]);
  plane.head_dim = static_cast<uint32_t>(tensor.shape[3]);
  LKV_ASSIGN_OR_RETURN(plane.dtype, PlaneDType(tensor));
  return plane;
}

absl::Status ReadAttentionMass(CacheFile& cache) {
  const Tensor* tensor = cache.reader.Find("attention_mass");
  if (tensor == nullptr) return absl::OkStatus();
  const size_t layers = cache.layout.layers.size();
  if (tensor->dtype != TensorDType::kF32 || tensor->shape.size() != 2 ||
      tensor->shape[0] != layers || tensor->shape[1] < cache.tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention_mass is ", std::string(TensorDTypeName(tensor->dtype)), " ",
                     Shape(*tensor), ", must be F32 [", layers, ", ", cache.tokens, "]"));
  }
  cache.attention_mass.resize(layers * cache.tokens);
  for (size_t l = 0; l < layers; ++l) {
    std::memcpy(&cache.attention_mass[l * cache.tokens],
                tensor->data.data() + l * tensor->shape[1] * sizeof(float),
                cache.tokens * sizeof(float));
  }
  return absl::OkStatus();
}

absl::Status ReadCache(CacheFile& cache) {
  const SafetensorsReader& reader = cache.reader;
  LKV_ASSIGN_OR_RETURN(const auto names, ReadPlaneNames(reader.metadata()));
  LayerSpec layer;
  const Tensor* first = nullptr;
  for (const auto& [name, role] : names) {
    LKV_ASSIGN_OR_RETURN(const Tensor* tensor, FindPlaneTensor(reader, name));
    if (first == nullptr) first = tensor;
    if (tensor->shape[0] != first->shape[0] || tensor->shape[1] != first->shape[1]) {
      return absl::InvalidArgumentError(absl::StrCat(first->name, " has shape ", Shape(*first),
                                                     " and ", tensor->name, " ", Shape(*tensor),
                                                     "; layers and tokens must be the same"));
    }
    LKV_ASSIGN_OR_RETURN(PlaneSpec plane, PlaneOfTensor(*tensor, role));
    layer.planes.push_back(std::move(plane));
  }
  if (first->shape[0] > limits::kMaxLayers) {
    return absl::InvalidArgumentError(absl::StrCat(first->name, " has ", first->shape[0],
                                                   " layers, at most ", limits::kMaxLayers,
                                                   " are possible"));
  }
  cache.tokens = static_cast<uint32_t>(first->shape[1]);
  cache.layout.layers.assign(first->shape[0], layer);
  LKV_RETURN_IF_ERROR(
      ReadRopeMetadata(reader.metadata(), cache.tokens, cache.layout, cache.notices));
  const auto text = [&](const char* key) {
    const auto it = reader.metadata().find(key);
    return it == reader.metadata().end() ? std::string() : it->second;
  };
  cache.layout.model = text("model");
  cache.layout.revision = text("revision");
  LKV_RETURN_IF_ERROR(ValidateLayout(cache.layout));
  LKV_RETURN_IF_ERROR(ReadAttentionMass(cache));
  return ReadTokenIds(cache);
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

absl::StatusOr<AttentionMass> CacheFile::Mass(uint64_t first_token) const {
  if (attention_mass.empty()) {
    return absl::InvalidArgumentError(
        "the cache has no tensor attention_mass [layers, tokens]; write it, or go without it");
  }
  // The cache is a whole prefill: every token was seen by itself and those behind it.
  return AttentionMass{attention_mass.data() + first_token, tokens, tokens - first_token};
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
  WriteRopeMetadata(layout, out);
  WritePlaneNames(layout.layers.front(), out);
  return out;
}

absl::StatusOr<CacheWriter> CacheWriter::Create(const std::string& path, const Layout& layout,
                                                uint32_t tokens,
                                                const std::vector<uint32_t>& token_ids,
                                                TensorDType token_dtype,
                                                const SafetensorsMetadata& metadata,
                                                const std::vector<uint8_t>& keep) {
  LKV_RETURN_IF_ERROR(CheckFitsMetadata(layout));
  std::vector<TensorInfo> tensors;
  for (const PlaneSpec& plane : layout.layers.front().planes) {
    tensors.push_back({plane.name,
                       ToTensorDType(plane.dtype),
                       {layout.layers.size(), tokens, plane.heads, plane.head_dim}});
  }
  if (!token_ids.empty()) tensors.push_back({"token_ids", token_dtype, {token_ids.size()}});
  if (!keep.empty()) tensors.push_back({"keep", TensorDType::kU8, {keep.size()}});
  LKV_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                       SafetensorsWriter::Create(path, std::move(tensors), metadata));
  if (!keep.empty()) std::memcpy(writer.Data("keep").data(), keep.data(), keep.size());
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
