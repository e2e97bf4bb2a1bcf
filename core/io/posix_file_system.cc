#include "core/io/posix_file_system.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "core/base/status_macros.h"

namespace latticekv {
namespace {

class PosixLock : public FileLock {
 public:
  explicit PosixLock(int fd) : fd_(fd) {}
  ~PosixLock() override { close(fd_); }  // which releases it

 private:
  const int fd_;
};

int OpenRetrying(const std::string& path, int flags) {
  int fd;
  do {
    fd = open(path.c_str(), flags | O_CLOEXEC, 0600);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

}  // namespace

PosixFile::~PosixFile() { close(fd_); }

absl::StatusOr<size_t> PosixFile::ReadAt(uint64_t offset, MutableByteSpan out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = pread(fd_, out.data() + done, out.size() - done, offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "cannot read", path_);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

absl::Status PosixFile::WriteAt(uint64_t offset, std::span<const ByteSpan> pieces) {
  std::vector<iovec> left;
  for (const ByteSpan piece : pieces) {
    if (piece.empty()) continue;
    left.push_back({const_cast<std::byte*>(piece.data()), piece.size()});
  }
  size_t first = 0;
  while (first < left.size()) {
    const int count = static_cast<int>(std::min<size_t>(left.size() - first, IOV_MAX));
    ssize_t n = pwritev(fd_, left.data() + first, count, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "cannot write", path_);
    if (n == 0) return ErrnoStatus(EIO, "cannot write", path_);
    offset += static_cast<uint64_t>(n);
    for (; first < left.size() && static_cast<size_t>(n) >= left[first].iov_len; ++first) {
      n -= static_cast<ssize_t>(left[first].iov_len);
    }
    if (n == 0) continue;
    left[first].iov_base = static_cast<char*>(left[first].iov_base) + n;
    left[first].iov_len -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status PosixFile::SyncData() {
  // Not tried again after an error: the kernel may have dropped the dirty pages and then says OK.
  if (fdatasync(fd_) != 0) return ErrnoStatus(errno, "cannot sync", path_);
  return absl::OkStatus();
}

absl::Status PosixFile::Sync() {
  if (fsync(fd_) != 0) return ErrnoStatus(errno, "cannot sync", path_);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> PosixFile::Size() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) return ErrnoStatus(errno, "cannot examine", path_);
  return static_cast<uint64_t>(info.st_size);
}

absl::Status PosixFile::Truncate(uint64_t size) {
  if (ftruncate(fd_, static_cast<off_t>(size)) != 0) {
    return ErrnoStatus(errno, "cannot set the size of", path_);
  }
  return absl::OkStatus();
}

absl::Status PosixFile::Allocate(uint64_t size) {
  int result;
  do {
    result = fallocate(fd_, 0, 0, static_cast<off_t>(size));
  } while (result != 0 && errno == EINTR);
  if (result == 0) return absl::OkStatus();
  if (errno != EOPNOTSUPP) return ErrnoStatus(errno, "cannot take space for", path_);
  LKV_ASSIGN_OR_RETURN(const uint64_t now, Size());
  return now < size ? Truncate(size) : absl::OkStatus();
}

absl::StatusOr<File::Extent> PosixFile::NextData(uint64_t offset) const {
  // Moves the descriptor's own place, which nothing else looks at.
  const off_t begin = lseek(fd_, static_cast<off_t>(offset), SEEK_DATA);
  if (begin < 0 && errno == ENXIO) {
    LKV_ASSIGN_OR_RETURN(const uint64_t size, Size());
    return Extent{size, size};
  }
  const off_t end = begin < 0 ? begin : lseek(fd_, begin, SEEK_HOLE);
  // One that knows no holes has data everywhere.
  if (end < 0) return File::NextData(offset);
  return Extent{static_cast<uint64_t>(begin), static_cast<uint64_t>(end)};
}

absl::StatusOr<bool> PosixFile::IsLinked() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) return ErrnoStatus(errno, "cannot examine", path_);
  return info.st_nlink > 0;
}

absl::StatusOr<int> PosixFileSystem::OpenFd(const std::string& path, OpenMode mode) {
  const int flags = mode == OpenMode::kRead        ? O_RDONLY
                    : mode == OpenMode::kReadWrite ? O_RDWR
                                                   : O_RDWR | O_CREAT | O_EXCL;
  const int fd = OpenRetrying(path, flags);
  if (fd < 0) return ErrnoStatus(errno, "cannot open", path);
  return fd;
}

absl::StatusOr<std::unique_ptr<File>> PosixFileSystem::Open(const std::string& path,
                                                            OpenMode mode) {
  LKV_ASSIGN_OR_RETURN(const int fd, OpenFd(path, mode));
  return std::make_unique<PosixFile>(fd, path);
}

absl::Status PosixFileSystem::CreateDirectory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return ErrnoStatus(error.value(), "cannot create directory", path);
  return absl::OkStatus();
}

absl::Status PosixFileSystem::SyncDirectory(const std::string& path) {
  const int fd = OpenRetrying(path, O_RDONLY | O_DIRECTORY);
  if (fd < 0) return ErrnoStatus(errno, "cannot open directory", path);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  if (result != 0) return ErrnoStatus(error, "cannot sync directory", path);
  return absl::OkStatus();
}

absl::Status PosixFileSystem::Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus(errno, "cannot rename", from);
  return absl::OkStatus();
}

absl::Status PosixFileSystem::Remove(const std::string& path) {
  if (unlink(path.c_str()) != 0) return ErrnoStatus(errno, "cannot remove", path);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> PosixFileSystem::List(const std::string& path) {
  std::vector<std::string> out;
  std::error_code error;
  std::filesystem::directory_iterator it(path, error), end;
  for (; !error && it != end; it.increment(error)) {
    if (!it->is_directory(error)) out.push_back(it->path().filename().string());
  }
  if (error) return ErrnoStatus(error.value(), "cannot list", path);
  std::sort(out.begin(), out.end());
  return out;
}

absl::StatusOr<std::unique_ptr<FileLock>> PosixFileSystem::Lock(const std::string& path) {
  int fd = OpenRetrying(path, O_RDWR | O_CREAT);
  // On a read-only file system a lock file that is there can still be locked.
  if (fd < 0 && errno == EROFS) fd = OpenRetrying(path, O_RDONLY);
  if (fd < 0) return ErrnoStatus(errno, "cannot open", path);
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return std::make_unique<PosixLock>(fd);
  const int error = errno;
  close(fd);
  if (error != EWOULDBLOCK) return ErrnoStatus(error, "cannot lock", path);
  return absl::FailedPreconditionError("another process holds " + path +
                                       "; stop it or use another directory");
}

absl::StatusOr<uint64_t> PosixFileSystem::FreeBytes(const std::string& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) return ErrnoStatus(errno, "cannot examine", path);
  return uint64_t{info.f_bavail} * info.f_frsize;
}

FileSystem* FileSystem::Posix() {
  static PosixFileSystem* const system = new PosixFileSystem;
  return system;
}

}  // namespace latticekv
