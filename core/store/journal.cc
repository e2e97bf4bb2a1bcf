#include "core/store/journal.h"

#include <algorithm>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/crc32c.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr std::string_view kName = "journal";
constexpr std::string_view kNewName = "journal.new";
constexpr char kMagic[8] = {'L', 'K', 'V', 'J', 'R', 'N', 'L', '\0'};
constexpr uint32_t kVersion = 1;
constexpr size_t kFileHeaderBytes = 24;
constexpr uint32_t kRecordMagic = 0x524A4B4C;  // "LKJR"
constexpr size_t kRecordHeaderBytes = 24;
constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kWriteBytes = 1 << 20;
// Short files are not worth writing anew.
constexpr uint64_t kMinRewriteBytes = 4 << 20;
// Records nobody waits for may be this late on the disk.
constexpr int64_t kLazyMs = 200;
constexpr int64_t kRetryMs = 1'000;

void PutRecord(uint64_t file_id, ByteSpan record, ByteVector* out) {
  std::byte header[kRecordHeaderBytes];
  StoreLe<uint32_t>(header, kRecordMagic);
  StoreLe<uint32_t>(header + 4, static_cast<uint32_t>(record.size()));
  StoreLe<uint64_t>(header + 8, file_id);
  StoreLe<uint32_t>(header + 16, Crc32c(record));
  StoreLe<uint32_t>(header + 20, Crc32c({header, 20}));
  out->insert(out->end(), header, header + kRecordHeaderBytes);
  out->insert(out->end(), record.begin(), record.end());
}

ByteVector FileHeader(uint64_t file_id) {
  ByteWriter out;
  out.PutBytes(AsBytes({kMagic, sizeof(kMagic)}));
  out.Put<uint32_t>(kVersion);
  out.Put<uint64_t>(file_id);
  out.Put<uint32_t>(Crc32c(out.bytes()));
  return out.Take();
}

uint64_t NewFileId() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// Walks over a file with a window of it in memory.
class Window {
 public:
  explicit Window(File* file) : file_(file) {}
  // The bytes from the current place, at least `size` of them unless the file ends before.
  absl::StatusOr<ByteSpan> Look(size_t size) {
    if (bytes_.size() - at_ < size && !ended_) {
      bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<ptrdiff_t>(at_));
      at_ = 0;
      const size_t have = bytes_.size();
      bytes_.resize(std::max(size, have + kReadBytes));
      LKV_ASSIGN_OR_RETURN(const size_t got,
                           file_->ReadAt(offset_, MutableByteSpan(bytes_).subspan(have)));
      ended_ = got < bytes_.size() - have;
      bytes_.resize(have + got);
      offset_ += got;
    }
    return ByteSpan(bytes_).subspan(at_);
  }
  void Skip(size_t size) { at_ += size; }

 private:
  File* const file_;
  ByteVector bytes_;
  size_t at_ = 0;        // in bytes_
  uint64_t offset_ = 0;  // of the end of bytes_ in the file
  bool ended_ = false;
};

bool IsRecordHeader(ByteSpan bytes) {
  return bytes.size() >= kRecordHeaderBytes && LoadLe<uint32_t>(bytes.data()) == kRecordMagic &&
         LoadLe<uint32_t>(bytes.data() + 20) == Crc32c(bytes.first(20)) &&
         LoadLe<uint32_t>(bytes.data() + 4) <= limits::kMaxJournalRecordBytes;
}

}  // namespace

Journal::Journal(FileSystem* files, const std::string& directory, Snapshot snapshot)
    : files_(files),
      directory_(directory),
      path_(JoinPath(directory, kName)),
      snapshot_(std::move(snapshot)) {}

absl::StatusOr<std::unique_ptr<Journal>> Journal::Open(FileSystem* files,
                                                       const std::string& directory,
                                                       const Emit& replay, Snapshot snapshot) {
  std::unique_ptr<Journal> journal(new Journal(files, directory, std::move(snapshot)));
  LKV_RETURN_IF_ERROR(journal->Recover(replay));
  // As it is before anybody changes it: a record of a change that the fresh file had already could
  // be about something that has ended since.
  journal->snapshot_(
      [&](ByteSpan record) { journal->found_.emplace_back(record.begin(), record.end()); });
  journal->thread_ = std::thread([j = journal.get()] { j->Run(); });
  return journal;
}

Journal::~Journal() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.SignalAll();
  if (thread_.joinable()) thread_.join();
}

absl::Status Journal::Recover(const Emit& replay) {
  auto file = files_->Open(path_, OpenMode::kRead);
  if (absl::IsNotFound(file.status())) return absl::OkStatus();
  if (!file.ok()) return file.status();
  Window window(file->get());
  LKV_ASSIGN_OR_RETURN(ByteSpan bytes, window.Look(kFileHeaderBytes));
  const bool sound = bytes.size() >= kFileHeaderBytes &&
                     LoadLe<uint32_t>(bytes.data() + 20) == Crc32c(bytes.first(20)) &&
                     AsText(bytes.first(8)) == std::string_view(kMagic, sizeof(kMagic));
  if (sound && LoadLe<uint32_t>(bytes.data() + 8) != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, " has version ", LoadLe<uint32_t>(bytes.data() + 8),
                     " and this daemon reads version ", kVersion,
                     "; start the daemon that wrote it, or move the file away"));
  }
  JournalStats stats;
  std::optional<uint64_t> file_id;
  if (sound) {
    file_id = LoadLe<uint64_t>(bytes.data() + 12);
    window.Skip(kFileHeaderBytes);
  }
  while (true) {
    LKV_ASSIGN_OR_RETURN(bytes, window.Look(kRecordHeaderBytes));
    if (bytes.empty()) break;
    // The id keeps apart from the file's own records what a client may have put into a value.
    if (!IsRecordHeader(bytes) || (file_id && *file_id != LoadLe<uint64_t>(bytes.data() + 8))) {
      ++stats.damaged_bytes;
      window.Skip(1);
      continue;
    }
    const size_t size = LoadLe<uint32_t>(bytes.data() + 4);
    LKV_ASSIGN_OR_RETURN(bytes, window.Look(kRecordHeaderBytes + size));
    const uint32_t crc = LoadLe<uint32_t>(bytes.data() + 16);
    if (bytes.size() < kRecordHeaderBytes + size ||
        Crc32c(bytes.subspan(kRecordHeaderBytes, size)) != crc) {
      // The length may be right and the payload wrong, or the file ends in it: look for the next.
      stats.damaged_bytes += kRecordHeaderBytes;
      window.Skip(kRecordHeaderBytes);
      continue;
    }
    file_id = LoadLe<uint64_t>(bytes.data() + 8);
    replay(bytes.subspan(kRecordHeaderBytes, size));
    ++stats.recovered_records;
    window.Skip(kRecordHeaderBytes + size);
  }
  MutexLock lock(mutex_);
  stats_ = stats;
  return absl::OkStatus();
}

absl::Status Journal::Rewrite(const Snapshot& snapshot) {
  file_.reset();
  const std::string new_path = JoinPath(directory_, kNewName);
  const absl::Status removed = files_->Remove(new_path);
  if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  LKV_ASSIGN_OR_RETURN(std::unique_ptr<File> file, files_->Open(new_path, OpenMode::kCreate));
  const uint64_t file_id = NewFileId();
  ByteVector buffer = FileHeader(file_id);
  uint64_t end = 0;
  absl::Status status;
  const auto write = [&] {
    if (status.ok()) status = file->WriteAt(end, ByteSpan(buffer));
    end += buffer.size();
    buffer.clear();
  };
  snapshot([&](ByteSpan record) {
    PutRecord(file_id, record, &buffer);
    if (buffer.size() >= kWriteBytes) write();
  });
  write();
  if (status.ok()) status = file->Sync();
  if (status.ok()) status = files_->Rename(new_path, path_);
  if (status.ok()) status = files_->SyncDirectory(directory_);
  LKV_RETURN_IF_ERROR(status);
  file_ = std::move(file);
  end_ = end;
  rewrite_at_ = std::max(kMinRewriteBytes, 2 * end);
  file_id_ = file_id;
  MutexLock lock(mutex_);
  stats_.bytes = end;
  ++stats_.rewrites;
  return absl::OkStatus();
}

absl::Status Journal::Write(const std::vector<ByteVector>& records) {
  if (file_) {
    // A file that was removed takes writes and keeps nothing.
    const auto linked = file_->IsLinked();
    if (!linked.ok() || !*linked) file_.reset();
  }
  // The records are part of the state by now.
  if (!file_ || end_ > rewrite_at_) return Rewrite(snapshot_);
  ByteVector bytes;
  for (const ByteVector& record : records) PutRecord(file_id_, record, &bytes);
  absl::Status status = file_->WriteAt(end_, ByteSpan(bytes));
  if (status.ok()) status = file_->SyncData();
  if (!status.ok()) {
    file_.reset();
    return status;
  }
  end_ += bytes.size();
  MutexLock lock(mutex_);
  stats_.bytes = end_;
  return absl::OkStatus();
}

void Journal::Run() {
  // A fresh file, without what was damaged: what was read may not have been synced, and whoever
  // waits for durability waits for this. Nobody else does.
  absl::Status fresh = Rewrite([this](const Emit& emit) {
    for (const ByteVector& record : std::exchange(found_, {})) emit(record);
  });
  bool broken = !fresh.ok();
  {
    MutexLock lock(mutex_);
    writing_ = false;
    stats_.health = std::move(fresh);
  }
  while (true) {
    std::vector<ByteVector> records;
    std::vector<Done> waiters;
    bool stopping;
    {
      MutexLock lock(mutex_);
      // Whoever waits is served at once, others when the batch has become a little older.
      if (broken) {
        if (!stopping_ && waiters_.empty()) wake_.WaitFor(mutex_, kRetryMs);
      } else {
        while (!stopping_ && waiters_.empty() && pending_.empty()) wake_.Wait(mutex_);
        if (!stopping_ && waiters_.empty()) wake_.WaitFor(mutex_, kLazyMs);
      }
      records.swap(pending_);
      waiters.swap(waiters_);
      stopping = stopping_;
      writing_ = true;
    }
    absl::Status status;
    if (broken || !records.empty()) status = Write(records);
    broken = !status.ok();
    {
      MutexLock lock(mutex_);
      writing_ = false;
      stats_.health = status;
    }
    for (const Done& done : waiters) done(status);
    if (stopping) return;
  }
}

void Journal::Append(ByteSpan record) {
  MutexLock lock(mutex_);
  // While the disk is away the state itself is what will be written.
  if (!stats_.health.ok() && !writing_) return;
  const bool first = pending_.empty();
  pending_.emplace_back(record.begin(), record.end());
  if (first) wake_.Signal();
}

void Journal::WhenDurable(Done done) {
  {
    MutexLock lock(mutex_);
    if (!pending_.empty() || writing_ || !stats_.health.ok()) {
      waiters_.push_back(std::move(done));
      wake_.Signal();
      return;
    }
  }
  done(absl::OkStatus());
}

absl::Status Journal::Flush() {
  Mutex mutex;
  CondVar over;
  bool finished = false;
  absl::Status result;
  WhenDurable([&](const absl::Status& status) {
    MutexLock lock(mutex);
    result = status;
    finished = true;
    over.SignalAll();
  });
  MutexLock lock(mutex);
  while (!finished) over.Wait(mutex);
  return result;
}

JournalStats Journal::Stats() const {
  MutexLock lock(mutex_);
  return stats_;
}

}  // namespace latticekv
