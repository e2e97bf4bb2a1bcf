// A file system in memory, for tests. It knows which bytes and names were synced, and can show what
// a power loss might leave.
#ifndef LATTICEKV_CORE_IO_MEMORY_FILE_SYSTEM_H_
#define LATTICEKV_CORE_IO_MEMORY_FILE_SYSTEM_H_

#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "core/base/mutex.h"
#include "core/io/file_system.h"

namespace latticekv {

class MemoryFileSystem : public FileSystem {
 public:
  // All files together may take `capacity_bytes`.
  explicit MemoryFileSystem(uint64_t capacity_bytes = uint64_t{1} << 40);

  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, OpenMode mode) override;
  absl::Status CreateDirectory(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override;
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override;
  std::string_view name() const override { return "memory"; }

  // What a power loss at this moment might leave: everything that was synced; of every later write
  // all, nothing, or some of its 512-byte sectors, in any combination; of names created, renamed
  // and removed since their directory was synced some. Open files and locks stay with this one.
  std::unique_ptr<MemoryFileSystem> AfterPowerLoss(std::mt19937_64& random) const;

  // Bytes of all files now, those removed but open included.
  uint64_t used_bytes() const;
  void set_capacity_bytes(uint64_t bytes);
  // The bytes of a file, to look at and to damage.
  ByteVector Contents(const std::string& path) const;
  void SetContents(const std::string& path, ByteVector bytes);
  // Removes a directory and all in it, as `rm -r` does; open files stay readable.
  void RemoveDirectory(const std::string& path);

 private:
  friend class MemoryFile;
  friend class MemoryLock;
  struct State;
  const std::shared_ptr<State> state_;  // shared with open files
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_IO_MEMORY_FILE_SYSTEM_H_
