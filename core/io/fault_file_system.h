// A file system that fails as told, for tests.
#ifndef LATTICEKV_CORE_IO_FAULT_FILE_SYSTEM_H_
#define LATTICEKV_CORE_IO_FAULT_FILE_SYSTEM_H_

#include <array>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/base/mutex.h"
#include "core/io/file_system.h"

namespace latticekv {

enum class FileOp : uint8_t {
  kOpen,    // of files that exist
  kCreate,  // of files
  kRead,
  kWrite,  // a failing one leaves a prefix of what it was to write
  kSync,   // of data or all
  kAllocate,
  kTruncate,
  kDirectory,  // creating, syncing, listing
  kRename,
  kRemove,
  kLock,
};
inline constexpr size_t kFileOps = 11;

// Passes everything on to `base` (which must outlive it and its files) except for the faults.
class FaultFileSystem : public FileSystem {
 public:
  FaultFileSystem(FileSystem* base, uint64_t seed);

  // After `skip` more successes `op` fails `count` times with `error`, an errno.
  void Fail(FileOp op, int error, uint64_t skip = 0, uint64_t count = UINT64_MAX);
  // Every writing operation fails with EROFS.
  void MakeReadOnly();
  // Every writing operation waits until Heal, as on a disk that others keep busy.
  void HoldWrites();
  // One in `one_in` reads comes back with one bit flipped; 0: none.
  void FlipReads(uint64_t one_in);
  // No more faults; what waits goes on.
  void Heal();
  // Calls of `op` so far, failed ones included.
  uint64_t calls(FileOp op) const;
  uint64_t faults() const;

  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, OpenMode mode) override;
  void ReadBatch(std::span<FileRead> reads) override;
  absl::Status CreateDirectory(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override;
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override;
  std::string_view name() const override { return "injected faults"; }

 private:
  friend class FaultFile;
  struct Faults {
    struct Plan {
      int error = 0;
      uint64_t skip = 0, count = 0, calls = 0;
      bool held = false;
    };
    explicit Faults(uint64_t seed) : random(seed) {}
    // The error of this call, or OK.
    absl::Status Next(FileOp op, const std::string& path);
    uint64_t Below(uint64_t n);
    bool Flips() const;
    mutable Mutex mutex;
    CondVar released;
    std::array<Plan, kFileOps> plans LKV_GUARDED_BY(mutex);
    uint64_t flip_one_in LKV_GUARDED_BY(mutex) = 0;
    uint64_t faults LKV_GUARDED_BY(mutex) = 0;
    std::mt19937_64 random LKV_GUARDED_BY(mutex);
  };

  FileSystem* const base_;
  const std::shared_ptr<Faults> faults_;  // shared with open files
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_IO_FAULT_FILE_SYSTEM_H_
