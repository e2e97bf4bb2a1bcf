// pread and pwrite behind the seam. The io_uring file derives from this one.
#ifndef LATTICEKV_CORE_IO_POSIX_FILE_SYSTEM_H_
#define LATTICEKV_CORE_IO_POSIX_FILE_SYSTEM_H_

#include "core/io/file_system.h"

namespace latticekv {

class PosixFile : public File {
 public:
  // Owns `fd`.
  PosixFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixFile() override;

  absl::StatusOr<size_t> ReadAt(uint64_t offset, MutableByteSpan out) override;
  using File::WriteAt;
  absl::Status WriteAt(uint64_t offset, std::span<const ByteSpan> pieces) override;
  absl::Status SyncData() override;
  absl::Status Sync() override;
  absl::StatusOr<uint64_t> Size() const override;
  absl::Status Truncate(uint64_t size) override;
  absl::Status Allocate(uint64_t size) override;
  absl::StatusOr<Extent> NextData(uint64_t offset) const override;
  absl::StatusOr<bool> IsLinked() const override;

 protected:
  int fd() const { return fd_; }

 private:
  const int fd_;
  const std::string path_;
};

class PosixFileSystem : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, OpenMode mode) override;
  absl::Status CreateDirectory(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override;
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override;
  std::string_view name() const override { return "pread and pwrite"; }

 protected:
  static absl::StatusOr<int> OpenFd(const std::string& path, OpenMode mode);
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_IO_POSIX_FILE_SYSTEM_H_
