// Reads through io_uring with O_DIRECT, everything else as PosixFileSystem.
// docs/adr/0003-disk-io.md says why.
#ifndef LATTICEKV_CORE_IO_URING_FILE_SYSTEM_H_
#define LATTICEKV_CORE_IO_URING_FILE_SYSTEM_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/mutex.h"
#include "core/io/posix_file_system.h"

namespace latticekv {

class UringRing;

// Files on a file system that knows no O_DIRECT, and reads that it refuses, go through pread.
class UringFileSystem : public PosixFileSystem {
 public:
  // Null when the kernel or the container refuses io_uring.
  static std::unique_ptr<UringFileSystem> Create();
  ~UringFileSystem();

  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, OpenMode mode) override;
  void ReadBatch(std::span<FileRead> reads) override;
  std::string_view name() const override { return "io_uring with O_DIRECT, and pwrite"; }

 private:
  friend class UringFile;
  UringFileSystem();
  // A ring of which this thread is the only user; waits when all are in use. Null when no ring can
  // be had.
  std::unique_ptr<UringRing> Take();
  void GiveBack(std::unique_ptr<UringRing> ring);

  Mutex mutex_;
  CondVar given_back_;
  std::vector<std::unique_ptr<UringRing>> idle_ LKV_GUARDED_BY(mutex_);
  int rings_ LKV_GUARDED_BY(mutex_) = 0;  // those in use included
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_IO_URING_FILE_SYSTEM_H_
