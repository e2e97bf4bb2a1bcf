// Reading and writing of safetensors files: an 8-byte header length, a JSON header, tensor data.
// https://github.com/huggingface/safetensors
#ifndef LATTICEKV_CLIENT_SRC_SAFETENSORS_H_
#define LATTICEKV_CLIENT_SRC_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/src/mapped_file.h"
#include "core/base/bytes.h"

namespace latticekv {

enum class TensorDType {
  kF16,
  kBF16,
  kF32,
  kF64,
  kI8,
  kI16,
  kI32,
  kI64,
  kU8,
  kU16,
  kU32,
  kU64,
  kBool
};

size_t TensorDTypeBytes(TensorDType dtype);
std::string_view TensorDTypeName(TensorDType dtype);  // "F16", "I64", "BOOL"

struct TensorInfo {
  std::string name;
  TensorDType dtype = TensorDType::kF32;
  std::vector<uint64_t> shape;
};

// Bytes of a tensor; its shape must be known not to overflow.
uint64_t TensorBytes(const TensorInfo& info);

using SafetensorsMetadata = std::map<std::string, std::string>;

// Tensors of an open file. Views refer to its memory mapping, which lives as long as the object.
class SafetensorsReader {
 public:
  struct Tensor : TensorInfo {
    ByteSpan data;
  };

  // INVALID_ARGUMENT, naming the file and what is wrong with it, unless the file is sound: header
  // at most kMaxSafetensorsHeaderBytes, known dtypes, offsets that match the shapes and cover the
  // file without gaps or overlaps.
  static absl::StatusOr<SafetensorsReader> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const SafetensorsMetadata& metadata() const { return metadata_; }
  // Null when there is none of that name.
  const Tensor* Find(std::string_view name) const;

 private:
  SafetensorsReader() = default;
  std::string path_;
  MappedFile file_;
  std::vector<Tensor> tensors_;
  SafetensorsMetadata metadata_;
};

// Writes a file whose tensors are filled in place. Until Commit nothing stands at `path`.
class SafetensorsWriter {
 public:
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path,
                                                  std::vector<TensorInfo> tensors,
                                                  const SafetensorsMetadata& metadata);
  // Memory of the tensor `name`, zeros at first; `name` must be one of those given to Create.
  MutableByteSpan Data(std::string_view name);
  absl::Status Commit() { return file_.Commit(); }

 private:
  SafetensorsWriter() = default;
  NewFile file_;
  std::map<std::string, std::pair<uint64_t, uint64_t>, std::less<>> ranges_;  // offset, size
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_SAFETENSORS_H_
