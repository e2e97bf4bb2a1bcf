// Files as memory: input mapped read-only, output that appears whole or not at all.
#ifndef LATTICEKV_CLIENT_SRC_MAPPED_FILE_H_
#define LATTICEKV_CLIENT_SRC_MAPPED_FILE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"

namespace latticekv {

// A file mapped read-only. Movable; bytes() stays valid across moves.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  ByteSpan bytes() const { return bytes_; }

 private:
  ByteSpan bytes_;
};

// A file of a known size under a temporary name beside `path`, mapped for writing. Commit renames
// it to `path`; without Commit it is removed. Space is reserved, so that a full disk is an error of
// Create and not a crash.
class NewFile {
 public:
  static absl::StatusOr<NewFile> Create(const std::string& path, size_t size);
  NewFile() = default;
  NewFile(NewFile&& other) noexcept;
  NewFile& operator=(NewFile&& other) noexcept;
  ~NewFile();
  MutableByteSpan bytes() const { return bytes_; }
  absl::Status Commit();

 private:
  void Discard();
  std::string path_;
  std::string temporary_path_;
  int fd_ = -1;
  MutableByteSpan bytes_;
};

// Writes `parts` one after another as the file `path`, which appears whole or not at all.
absl::Status WriteFileAtomically(const std::string& path, const std::vector<ByteSpan>& parts);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_MAPPED_FILE_H_
