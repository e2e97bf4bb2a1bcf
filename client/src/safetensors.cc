#include "client/src/safetensors.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

using Json = nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kHeaderAlignment = 8;
constexpr const char* kMetadataKey = "__metadata__";

struct DTypeEntry {
  TensorDType dtype;
  std::string_view name;
  size_t bytes;
};
constexpr std::array<DTypeEntry, 13> kDTypes = {{
    {TensorDType::kF16, "F16", 2},
    {TensorDType::kBF16, "BF16", 2},
    {TensorDType::kF32, "F32", 4},
    {TensorDType::kF64, "F64", 8},
    {TensorDType::kI8, "I8", 1},
    {TensorDType::kI16, "I16", 2},
    {TensorDType::kI32, "I32", 4},
    {TensorDType::kI64, "I64", 8},
    {TensorDType::kU8, "U8", 1},
    {TensorDType::kU16, "U16", 2},
    {TensorDType::kU32, "U32", 4},
    {TensorDType::kU64, "U64", 8},
    {TensorDType::kBool, "BOOL", 1},
}};

const DTypeEntry& Entry(TensorDType dtype) {
  return *std::find_if(kDTypes.begin(), kDTypes.end(),
                       [&](const DTypeEntry& e) { return e.dtype == dtype; });
}

absl::Status Malformed(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("not a sound safetensors file: ", what));
}

// One entry of the header.
absl::StatusOr<SafetensorsReader::Tensor> ParseTensor(const std::string& name, const Json& entry,
                                                      ByteSpan data) {
  const auto bad = [&](const std::string& what) {
    return Malformed(absl::StrCat("tensor '", name, "': ", what));
  };
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() ||
      !entry.contains("shape") || !entry["shape"].is_array() || !entry.contains("data_offsets") ||
      !entry["data_offsets"].is_array() || entry["data_offsets"].size() != 2) {
    return bad("it needs dtype, shape and two data_offsets");
  }
  SafetensorsReader::Tensor tensor;
  tensor.name = name;
  const auto& dtype = entry["dtype"].get_ref<const std::string&>();
  const auto known = std::find_if(kDTypes.begin(), kDTypes.end(),
                                  [&](const DTypeEntry& e) { return e.name == dtype; });
  if (known == kDTypes.end()) return bad(absl::StrCat("unknown dtype '", dtype, "'"));
  tensor.dtype = known->dtype;
  uint64_t bytes = known->bytes;
  for (const Json& dim : entry["shape"]) {
    if (!dim.is_number_unsigned()) return bad("a dimension is not a natural number");
    tensor.shape.push_back(dim.get<uint64_t>());
    if (__builtin_mul_overflow(bytes, tensor.shape.back(), &bytes)) {
      return bad("its shape overflows");
    }
  }
  const Json &begin = entry["data_offsets"][0], &end = entry["data_offsets"][1];
  if (!begin.is_number_unsigned() || !end.is_number_unsigned()) {
    return bad("an offset is not a natural number");
  }
  const auto from = begin.get<uint64_t>(), to = end.get<uint64_t>();
  if (from > to || to > data.size()) {
    return bad(absl::StrCat("its data at ", from, " to ", to, " is outside of the file's ",
                            data.size(), " bytes of data"));
  }
  if (to - from != bytes) {
    return bad(absl::StrCat("its shape needs ", bytes, " bytes, its offsets give ", to - from));
  }
  tensor.data = data.subspan(from, bytes);
  return tensor;
}

absl::Status ParseMetadata(const Json& entry, SafetensorsMetadata& out) {
  if (!entry.is_object()) return Malformed("__metadata__ is not an object");
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) {
      return Malformed(absl::StrCat("metadata '", key, "' is not a string"));
    }
    out[key] = value.get<std::string>();
  }
  return absl::OkStatus();
}

// Tensors must cover the data from its first to its last byte.
absl::Status CheckCoverage(const std::vector<SafetensorsReader::Tensor>& tensors, ByteSpan data) {
  std::vector<ByteSpan> spans;
  for (const auto& tensor : tensors) {
    if (!tensor.data.empty()) spans.push_back(tensor.data);
  }
  std::sort(spans.begin(), spans.end(), [](ByteSpan a, ByteSpan b) { return a.data() < b.data(); });
  const std::byte* at = data.data();
  for (ByteSpan span : spans) {
    if (span.data() != at) return Malformed("tensors overlap or leave a gap");
    at += span.size();
  }
  if (at != data.data() + data.size()) return Malformed("there are bytes after the last tensor");
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseHeader(ByteSpan header) {
  std::set<std::string> names;
  bool duplicate = false;
  const auto on_event = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth == 1 && event == Json::parse_event_t::key) {
      duplicate |= !names.insert(parsed.get<std::string>()).second;
    }
    return true;
  };
  Json json = Json::parse(AsText(header), on_event, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) return Malformed("its header is not a JSON object");
  if (duplicate) return Malformed("a tensor is named twice");
  return json;
}

}  // namespace

size_t TensorDTypeBytes(TensorDType dtype) { return Entry(dtype).bytes; }
std::string_view TensorDTypeName(TensorDType dtype) { return Entry(dtype).name; }

uint64_t TensorBytes(const TensorInfo& info) {
  uint64_t bytes = TensorDTypeBytes(info.dtype);
  for (uint64_t dim : info.shape) bytes *= dim;
  return bytes;
}

absl::StatusOr<SafetensorsReader> SafetensorsReader::Open(const std::string& path) {
  SafetensorsReader reader;
  reader.path_ = path;
  LKV_ASSIGN_OR_RETURN(reader.file_, MappedFile::Open(path));
  const auto parse = [&]() -> absl::Status {
    ByteSpan bytes = reader.file_.bytes();
    if (bytes.size() < kLengthBytes) return Malformed("it is shorter than its header length");
    const uint64_t header_bytes = LoadLe<uint64_t>(bytes.data());
    bytes = bytes.subspan(kLengthBytes);
    if (header_bytes > limits::kMaxSafetensorsHeaderBytes) {
      return Malformed(absl::StrCat("a header of ", header_bytes, " bytes, at most ",
                                    limits::kMaxSafetensorsHeaderBytes, " are possible"));
    }
    if (header_bytes > bytes.size()) return Malformed("its header is cut off");
    LKV_ASSIGN_OR_RETURN(const Json header, ParseHeader(bytes.first(header_bytes)));
    const ByteSpan data = bytes.subspan(header_bytes);
    for (const auto& [name, entry] : header.items()) {
      if (name == kMetadataKey) {
        LKV_RETURN_IF_ERROR(ParseMetadata(entry, reader.metadata_));
        continue;
      }
      LKV_ASSIGN_OR_RETURN(Tensor tensor, ParseTensor(name, entry, data));
      reader.tensors_.push_back(std::move(tensor));
    }
    return CheckCoverage(reader.tensors_, data);
  };
  if (absl::Status status = parse(); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("'", path, "' is ", std::string(status.message())));
  }
  return reader;
}

const SafetensorsReader::Tensor* SafetensorsReader::Find(std::string_view name) const {
  for (const Tensor& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            std::vector<TensorInfo> tensors,
                                                            const SafetensorsMetadata& metadata) {
  // Wide elements first, so that each tensor is aligned to its element.
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return TensorDTypeBytes(a.dtype) > TensorDTypeBytes(b.dtype);
  });
  SafetensorsWriter writer;
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  uint64_t offset = 0;
  for (const TensorInfo& tensor : tensors) {
    const uint64_t size = TensorBytes(tensor);
    header[tensor.name] = {{"dtype", TensorDTypeName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + size}}};
    writer.ranges_[tensor.name] = {offset, size};
    offset += size;
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.resize((text.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  const uint64_t data_start = kLengthBytes + text.size();
  for (auto& [name, range] : writer.ranges_) range.first += data_start;
  LKV_ASSIGN_OR_RETURN(writer.file_, NewFile::Create(path, data_start + offset));
  std::byte* at = writer.file_.bytes().data();
  StoreLe<uint64_t>(at, text.size());
  std::copy_n(AsBytes(text).begin(), text.size(), at + kLengthBytes);
  return writer;
}

MutableByteSpan SafetensorsWriter::Data(std::string_view name) {
  const auto it = ranges_.find(name);
  if (it == ranges_.end()) return {};
  return file_.bytes().subspan(it->second.first, it->second.second);
}

}  // namespace latticekv
