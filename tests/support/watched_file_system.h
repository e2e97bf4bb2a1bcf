// A file system that tells of its reads before they begin, and may hold them up.
#ifndef LATTICEKV_TESTS_SUPPORT_WATCHED_FILE_SYSTEM_H_
#define LATTICEKV_TESTS_SUPPORT_WATCHED_FILE_SYSTEM_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/mutex.h"
#include "core/io/file_system.h"

namespace latticekv::testing {

// Passes everything on to `base`, which must outlive it.
class WatchedFileSystem : public FileSystem {
 public:
  explicit WatchedFileSystem(FileSystem* base) : base_(base) {}

  // `on_read` gets the size of every read before it begins, on its thread; empty: nobody does.
  void Watch(std::function<void(uint64_t bytes)> on_read) {
    MutexLock lock(mutex_);
    on_read_ = std::make_shared<const std::function<void(uint64_t)>>(std::move(on_read));
  }

  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, OpenMode mode) override {
    auto file = base_->Open(path, mode);
    if (!file.ok()) return file.status();
    return std::make_unique<WatchedFile>(*std::move(file), this);
  }
  absl::Status CreateDirectory(const std::string& path) override {
    return base_->CreateDirectory(path);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    return base_->SyncDirectory(path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return base_->Rename(from, to);
  }
  absl::Status Remove(const std::string& path) override { return base_->Remove(path); }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    return base_->List(path);
  }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override {
    return base_->Lock(path);
  }
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override {
    return base_->FreeBytes(path);
  }
  std::string_view name() const override { return "watched"; }

 private:
  class WatchedFile : public File {
   public:
    WatchedFile(std::unique_ptr<File> base, WatchedFileSystem* system)
        : base_(std::move(base)), system_(system) {}
    absl::StatusOr<size_t> ReadAt(uint64_t offset, MutableByteSpan out) override {
      system_->Tell(out.size());
      return base_->ReadAt(offset, out);
    }
    absl::StatusOr<uint64_t> ReadPieces(uint64_t offset, uint64_t size,
                                        const PieceSink& each) override {
      system_->Tell(size);
      return base_->ReadPieces(offset, size, each);
    }
    absl::Status WriteAt(uint64_t offset, std::span<const ByteSpan> pieces) override {
      return base_->WriteAt(offset, pieces);
    }
    absl::Status SyncData() override { return base_->SyncData(); }
    absl::Status Sync() override { return base_->Sync(); }
    absl::StatusOr<uint64_t> Size() const override { return base_->Size(); }
    absl::Status Truncate(uint64_t size) override { return base_->Truncate(size); }
    absl::Status Allocate(uint64_t size) override { return base_->Allocate(size); }
    absl::StatusOr<bool> IsLinked() const override { return base_->IsLinked(); }

   private:
    const std::unique_ptr<File> base_;
    WatchedFileSystem* const system_;
  };

  void Tell(uint64_t bytes) {
    std::shared_ptr<const std::function<void(uint64_t)>> on_read;
    {
      MutexLock lock(mutex_);
      on_read = on_read_;
    }
    if (on_read && *on_read) (*on_read)(bytes);
  }

  FileSystem* const base_;
  Mutex mutex_;
  std::shared_ptr<const std::function<void(uint64_t)>> on_read_ LKV_GUARDED_BY(mutex_);
};

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_WATCHED_FILE_SYSTEM_H_
