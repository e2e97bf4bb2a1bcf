// The one seam between the store and the operating system's files, so that tests can put an
// in-memory or a failing file system (core/io/memory_file_system.h, fault_file_system.h) in its
// place.
#ifndef LATTICEKV_CORE_IO_FILE_SYSTEM_H_
#define LATTICEKV_CORE_IO_FILE_SYSTEM_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"

namespace latticekv {

// An open file. Reads and writes name their place and may run in several threads at once. Closed by
// the destructor.
class File {
 public:
  virtual ~File() = default;

  // Fills `out` from `offset`. Fewer bytes than asked for only where the file ends.
  virtual absl::StatusOr<size_t> ReadAt(uint64_t offset, MutableByteSpan out) = 0;
  // Gives `size` bytes from `offset` to `each`, in order, in pieces that are valid during its call
  // only; an error from it ends the read and is returned. `each` must not read through this file
  // system. Fewer bytes, whose number is returned, only where the file ends.
  using PieceSink = std::function<absl::Status(ByteSpan piece)>;
  virtual absl::StatusOr<uint64_t> ReadPieces(uint64_t offset, uint64_t size,
                                              const PieceSink& each);
  // Writes all of `pieces`, one behind the other, from `offset`. After an error any part of them
  // may have been written.
  virtual absl::Status WriteAt(uint64_t offset, std::span<const ByteSpan> pieces) = 0;
  absl::Status WriteAt(uint64_t offset, ByteSpan bytes) { return WriteAt(offset, {&bytes, 1}); }
  // Data, and what of the metadata is needed to read it back, survive power loss. After an error
  // nothing is known of what was written since the last success.
  virtual absl::Status SyncData() = 0;
  // The same with all metadata.
  virtual absl::Status Sync() = 0;
  virtual absl::StatusOr<uint64_t> Size() const = 0;
  virtual absl::Status Truncate(uint64_t size) = 0;
  // Sets the size to at least `size` and takes its space from the disk now, where the file system
  // can; RESOURCE_EXHAUSTED when there is not enough.
  virtual absl::Status Allocate(uint64_t size) = 0;
  // The first bytes at or behind `offset` that may be other than zeros: none (begin == end) up to
  // the file's end. What was never written is left out where the file system knows of it.
  struct Extent {
    uint64_t begin = 0, end = 0;
  };
  virtual absl::StatusOr<Extent> NextData(uint64_t offset) const;
  // False when the file was removed from its directory: its bytes end with its last handle.
  virtual absl::StatusOr<bool> IsLinked() const = 0;
};

// One read of several: ReadAt's arguments and answer.
struct FileRead {
  File* file = nullptr;
  uint64_t offset = 0;
  MutableByteSpan out;
  size_t got = 0;
  absl::Status status;
};

// Holds a lock file; released by the destructor or the end of the process.
class FileLock {
 public:
  virtual ~FileLock() = default;
};

enum class OpenMode : uint8_t {
  kRead,       // must exist
  kReadWrite,  // must exist
  kCreate,     // must not exist; read and write
};

// Thread-safe. Errors: NOT_FOUND, ALREADY_EXISTS, RESOURCE_EXHAUSTED (no space), PERMISSION_DENIED
// (access or a read-only file system), UNAVAILABLE (the device failed), each with path and cause.
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  virtual absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, OpenMode mode) = 0;
  // Appends to a file by name: opens or creates it, writes at its end, closes it.
  absl::Status Append(const std::string& path, ByteSpan bytes);
  // Reads from several files of this file system, at the same time where it can.
  virtual void ReadBatch(std::span<FileRead> reads);
  // With missing parents; OK when it is there.
  virtual absl::Status CreateDirectory(const std::string& path) = 0;
  // Makes creations, renames and removals in a directory survive power loss.
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  // Replaces `to` if it is there, atomically.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  virtual absl::Status Remove(const std::string& path) = 0;
  // Names of the files in a directory, sorted, without those of directories.
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& path) = 0;
  // Takes the lock file, creating it where that is possible. FAILED_PRECONDITION when another
  // process, or another lock of this one, holds it.
  virtual absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) = 0;
  // Bytes that an unprivileged writer may still take on the file system of `path`.
  virtual absl::StatusOr<uint64_t> FreeBytes(const std::string& path) = 0;

  // How it reads and writes, for logs.
  virtual std::string_view name() const = 0;

  // The operating system's, through pread and pwrite. Never destroyed.
  static FileSystem* Posix();
  // The same with reads through io_uring that go past the page cache; null where this build has no
  // io_uring, or the kernel or the container refuses it. Never destroyed.
  static FileSystem* Uring();
  // Uring where there is one, else Posix; the environment variable LATTICEKV_IO=posix asks for
  // that.
  static FileSystem* Default();
};

// "DIRECTORY/NAME".
std::string JoinPath(std::string_view directory, std::string_view name);

// The Status of an errno: what was tried on which path, and the cause.
absl::Status ErrnoStatus(int error, std::string_view what, std::string_view path);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_IO_FILE_SYSTEM_H_
