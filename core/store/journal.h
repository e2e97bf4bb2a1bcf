// A durable log of opaque records: what a daemon must know again after a restart beside its blocks.
// docs/format/journal.md is the specification.
#ifndef LATTICEKV_CORE_STORE_JOURNAL_H_
#define LATTICEKV_CORE_STORE_JOURNAL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/mutex.h"
#include "core/io/file_system.h"

namespace latticekv {

struct JournalStats {
  uint64_t bytes = 0;              // of the file
  uint64_t recovered_records = 0;  // at the opening
  uint64_t damaged_bytes = 0;      // that the opening skipped
  uint64_t rewrites = 0;
  absl::Status health;  // not OK: changes are kept in memory only
};

// Records set or erase something by name, so that replaying one twice does no harm. The owner keeps
// the state that they add up to and can say it afresh, which bounds the file and brings it back
// after the disk failed. One thread writes; callers never wait for the disk but in Flush. After a
// failed write or fsync nothing more goes to that file: it is written anew, and until that succeeds
// whoever waits for durability is told so. Thread-safe.
class Journal {
 public:
  using Emit = std::function<void(ByteSpan record)>;
  // Says the whole state as records. Called from the journal's thread without its lock.
  using Snapshot = std::function<void(const Emit& emit)>;
  using Done = std::function<void(const absl::Status&)>;

  // Calls `replay` for every sound record of the file in order, before it returns; damaged ones
  // cost themselves only. FAILED_PRECONDITION for a file of an unknown version.
  static absl::StatusOr<std::unique_ptr<Journal>> Open(FileSystem* files,
                                                       const std::string& directory,
                                                       const Emit& replay, Snapshot snapshot);
  // Writes what was appended, as far as the disk lets it; `snapshot` may be called until then.
  ~Journal();

  // Call it under the lock of the state that the record is about, so that records of one thing are
  // in the order of its changes.
  void Append(ByteSpan record);
  // `done` is told when all that was appended before survives power loss, or that it does not.
  // Called from the journal's thread, or at once when nothing is waiting to be written.
  void WhenDurable(Done done);
  // Waits for that.
  absl::Status Flush();

  JournalStats Stats() const;

 private:
  Journal(FileSystem* files, const std::string& directory, Snapshot snapshot);

  absl::Status Recover(const Emit& replay);
  void Run();
  // One round of the thread: writes `records` or, where the file is broken or long, the whole
  // state.
  absl::Status Write(const std::vector<ByteVector>& records);
  absl::Status Rewrite(const Snapshot& snapshot);

  FileSystem* const files_;
  const std::string directory_, path_;
  const Snapshot snapshot_;

  // Of the thread.
  std::unique_ptr<File> file_;     // null: broken
  std::vector<ByteVector> found_;  // the state as it was read, until it is written
  uint64_t file_id_ = 0;
  uint64_t end_ = 0;         // where the next record goes
  uint64_t rewrite_at_ = 0;  // length at which the file is written anew

  mutable Mutex mutex_;
  CondVar wake_;
  bool stopping_ LKV_GUARDED_BY(mutex_) = false;
  std::vector<ByteVector> pending_ LKV_GUARDED_BY(mutex_);
  bool writing_ LKV_GUARDED_BY(mutex_) = true;  // the thread begins with that
  std::vector<Done> waiters_ LKV_GUARDED_BY(mutex_);
  JournalStats stats_ LKV_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CORE_STORE_JOURNAL_H_
