#include "client/src/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

absl::Status FileError(int error, const char* what, const std::string& path) {
  const std::string message = absl::StrCat("cannot ", what, " '", path, "': ", strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InvalidArgumentError(message);
  }
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "open", path);
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is not a regular file"));
  }
  MappedFile file;
  if (const auto size = static_cast<size_t>(info.st_size); size > 0) {
    void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      const int error = errno;
      close(fd);
      return FileError(error, "map", path);
    }
    file.bytes_ = {static_cast<const std::byte*>(data), size};
  }
  close(fd);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

absl::StatusOr<NewFile> NewFile::Create(const std::string& path, size_t size) {
  NewFile file;
  file.path_ = path;
  std::string name = absl::StrCat(path, ".XXXXXX");
  file.fd_ = mkostemp(name.data(), O_CLOEXEC);
  if (file.fd_ < 0) return FileError(errno, "create", path);
  file.temporary_path_ = name;
  // mkostemp makes private files; the result should be as any other program's.
  const mode_t mask = umask(0);
  umask(mask);
  fchmod(file.fd_, 0666 & ~mask);
  if (size == 0) return file;
  if (const int error = posix_fallocate(file.fd_, 0, static_cast<off_t>(size)); error != 0) {
    return FileError(error, "reserve space for", path);
  }
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd_, 0);
  if (data == MAP_FAILED) return FileError(errno, "map", path);
  file.bytes_ = {static_cast<std::byte*>(data), size};
  return file;
}

NewFile::NewFile(NewFile&& other) noexcept { *this = std::move(other); }

NewFile& NewFile::operator=(NewFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_path_, other.temporary_path_);
  std::swap(fd_, other.fd_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

NewFile::~NewFile() { Discard(); }

absl::Status NewFile::Commit() {
  if (!bytes_.empty() && munmap(bytes_.data(), bytes_.size()) != 0) {
    return FileError(errno, "write", path_);
  }
  bytes_ = {};
  if (close(std::exchange(fd_, -1)) != 0) return FileError(errno, "write", path_);
  if (rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    return FileError(errno, "write", path_);
  }
  temporary_path_.clear();
  return absl::OkStatus();
}

void NewFile::Discard() {
  if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  if (fd_ >= 0) close(fd_);
  if (!temporary_path_.empty()) unlink(temporary_path_.c_str());
}

absl::Status WriteFileAtomically(const std::string& path, const std::vector<ByteSpan>& parts) {
  size_t size = 0;
  for (ByteSpan part : parts) size += part.size();
  LKV_ASSIGN_OR_RETURN(NewFile file, NewFile::Create(path, size));
  std::byte* at = file.bytes().data();
  for (ByteSpan part : parts) {
    if (part.empty()) continue;
    std::memcpy(at, part.data(), part.size());
    at += part.size();
  }
  return file.Commit();
}

}  // namespace latticekv
