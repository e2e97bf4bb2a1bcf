#include "core/io/fault_file_system.h"

#include <errno.h>

#include <utility>

#include "core/base/status_macros.h"

namespace latticekv {

namespace {

constexpr FileOp kWritingOps[] = {FileOp::kCreate,   FileOp::kWrite,    FileOp::kSync,
                                  FileOp::kAllocate, FileOp::kTruncate, FileOp::kRename,
                                  FileOp::kRemove};

}  // namespace

absl::Status FaultFileSystem::Faults::Next(FileOp op, const std::string& path) {
  MutexLock lock(mutex);
  Plan& plan = plans[static_cast<size_t>(op)];
  ++plan.calls;
  while (plan.held) released.Wait(mutex);
  if (plan.count == 0) return absl::OkStatus();
  if (plan.skip > 0) {
    --plan.skip;
    return absl::OkStatus();
  }
  if (plan.count != UINT64_MAX) --plan.count;
  ++faults;
  return ErrnoStatus(plan.error, "injected fault at", path);
}

bool FaultFileSystem::Faults::Flips() const {
  MutexLock lock(mutex);
  return flip_one_in > 0;
}

uint64_t FaultFileSystem::Faults::Below(uint64_t n) {
  MutexLock lock(mutex);
  return random() % n;
}

class FaultFile : public File {
 public:
  FaultFile(std::unique_ptr<File> base, std::shared_ptr<FaultFileSystem::Faults> faults,
            std::string path)
      : base_(std::move(base)), faults_(std::move(faults)), path_(std::move(path)) {}

  absl::StatusOr<size_t> ReadAt(uint64_t offset, MutableByteSpan out) override {
    LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kRead, path_));
    LKV_ASSIGN_OR_RETURN(const size_t n, base_->ReadAt(offset, out));
    MutexLock lock(faults_->mutex);
    if (faults_->flip_one_in > 0 && n > 0 && faults_->random() % faults_->flip_one_in == 0) {
      out[faults_->random() % n] ^= static_cast<std::byte>(1u << (faults_->random() % 8));
      ++faults_->faults;
    }
    return n;
  }

  absl::StatusOr<uint64_t> ReadPieces(uint64_t offset, uint64_t size,
                                      const PieceSink& each) override {
    // Bits are flipped in ReadAt.
    if (faults_->Flips()) return File::ReadPieces(offset, size, each);
    LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kRead, path_));
    return base_->ReadPieces(offset, size, each);
  }

  using File::WriteAt;
  absl::Status WriteAt(uint64_t offset, std::span<const ByteSpan> pieces) override {
    const absl::Status fault = faults_->Next(FileOp::kWrite, path_);
    if (fault.ok()) return base_->WriteAt(offset, pieces);
    size_t size = 0;
    for (const ByteSpan piece : pieces) size += piece.size();
    size_t left = faults_->Below(size + 1);
    std::vector<ByteSpan> prefix;
    for (const ByteSpan piece : pieces) {
      prefix.push_back(piece.first(std::min(left, piece.size())));
      left -= prefix.back().size();
    }
    static_cast<void>(base_->WriteAt(offset, prefix));
    return fault;
  }

  absl::Status SyncData() override {
    LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kSync, path_));
    return base_->SyncData();
  }
  absl::Status Sync() override {
    LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kSync, path_));
    return base_->Sync();
  }
  absl::StatusOr<uint64_t> Size() const override { return base_->Size(); }
  absl::Status Truncate(uint64_t size) override {
    LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kTruncate, path_));
    return base_->Truncate(size);
  }
  absl::Status Allocate(uint64_t size) override {
    LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kAllocate, path_));
    return base_->Allocate(size);
  }
  absl::StatusOr<Extent> NextData(uint64_t offset) const override {
    return base_->NextData(offset);
  }
  absl::StatusOr<bool> IsLinked() const override { return base_->IsLinked(); }
  File* base() const { return base_.get(); }
  const std::string& path() const { return path_; }

 private:
  const std::unique_ptr<File> base_;
  const std::shared_ptr<FaultFileSystem::Faults> faults_;
  const std::string path_;
};

FaultFileSystem::FaultFileSystem(FileSystem* base, uint64_t seed)
    : base_(base), faults_(std::make_shared<Faults>(seed)) {}

void FaultFileSystem::Fail(FileOp op, int error, uint64_t skip, uint64_t count) {
  MutexLock lock(faults_->mutex);
  Faults::Plan& plan = faults_->plans[static_cast<size_t>(op)];
  plan.error = error;
  plan.skip = skip;
  plan.count = count;
}

void FaultFileSystem::MakeReadOnly() {
  for (const FileOp op : kWritingOps) Fail(op, EROFS);
}

void FaultFileSystem::HoldWrites() {
  MutexLock lock(faults_->mutex);
  for (const FileOp op : kWritingOps) faults_->plans[static_cast<size_t>(op)].held = true;
}

void FaultFileSystem::FlipReads(uint64_t one_in) {
  MutexLock lock(faults_->mutex);
  faults_->flip_one_in = one_in;
}

void FaultFileSystem::Heal() {
  MutexLock lock(faults_->mutex);
  for (Faults::Plan& plan : faults_->plans) {
    plan.count = 0;
    plan.held = false;
  }
  faults_->released.SignalAll();
  faults_->flip_one_in = 0;
}

uint64_t FaultFileSystem::calls(FileOp op) const {
  MutexLock lock(faults_->mutex);
  return faults_->plans[static_cast<size_t>(op)].calls;
}

uint64_t FaultFileSystem::faults() const {
  MutexLock lock(faults_->mutex);
  return faults_->faults;
}

absl::StatusOr<std::unique_ptr<File>> FaultFileSystem::Open(const std::string& path,
                                                            OpenMode mode) {
  LKV_RETURN_IF_ERROR(
      faults_->Next(mode == OpenMode::kCreate ? FileOp::kCreate : FileOp::kOpen, path));
  LKV_ASSIGN_OR_RETURN(auto file, base_->Open(path, mode));
  return std::make_unique<FaultFile>(std::move(file), faults_, path);
}

void FaultFileSystem::ReadBatch(std::span<FileRead> reads) {
  if (faults_->Flips()) return FileSystem::ReadBatch(reads);
  std::vector<FileRead> passed;
  std::vector<FileRead*> origins;
  for (FileRead& read : reads) {
    const auto* file = static_cast<FaultFile*>(read.file);
    read.got = 0;
    read.status = faults_->Next(FileOp::kRead, file->path());
    if (!read.status.ok()) continue;
    passed.push_back(read);
    passed.back().file = file->base();
    origins.push_back(&read);
  }
  base_->ReadBatch(passed);
  for (size_t i = 0; i < passed.size(); ++i) {
    origins[i]->got = passed[i].got;
    origins[i]->status = passed[i].status;
  }
}

absl::Status FaultFileSystem::CreateDirectory(const std::string& path) {
  LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kDirectory, path));
  return base_->CreateDirectory(path);
}

absl::Status FaultFileSystem::SyncDirectory(const std::string& path) {
  LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kDirectory, path));
  return base_->SyncDirectory(path);
}

absl::Status FaultFileSystem::Rename(const std::string& from, const std::string& to) {
  LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kRename, from));
  return base_->Rename(from, to);
}

absl::Status FaultFileSystem::Remove(const std::string& path) {
  LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kRemove, path));
  return base_->Remove(path);
}

absl::StatusOr<std::vector<std::string>> FaultFileSystem::List(const std::string& path) {
  LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kDirectory, path));
  return base_->List(path);
}

absl::StatusOr<std::unique_ptr<FileLock>> FaultFileSystem::Lock(const std::string& path) {
  LKV_RETURN_IF_ERROR(faults_->Next(FileOp::kLock, path));
  return base_->Lock(path);
}

absl::StatusOr<uint64_t> FaultFileSystem::FreeBytes(const std::string& path) {
  return base_->FreeBytes(path);
}

}  // namespace latticekv
