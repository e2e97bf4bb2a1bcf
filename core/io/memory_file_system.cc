#include "core/io/memory_file_system.h"

#include <errno.h>

#include <algorithm>
#include <utility>

namespace latticekv {
namespace {

constexpr size_t kSectorBytes = 512;

struct Inode {
  // What was done since the last sync: bytes written at an offset, or a new size.
  struct Change {
    uint64_t offset = 0;
    ByteVector bytes;
    bool resize = false;  // to `offset`
  };
  ByteVector live, durable;
  std::vector<Change> unsynced;
  uint32_t links = 0, handles = 0;
  bool unreachable() const { return links == 0 && handles == 0; }
};
using InodePtr = std::shared_ptr<Inode>;
using Names = std::map<std::string, InodePtr>;

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

void WriteInto(ByteVector& data, uint64_t offset, ByteSpan bytes) {
  if (data.size() < offset + bytes.size()) data.resize(offset + bytes.size());
  std::copy(bytes.begin(), bytes.end(), data.begin() + static_cast<ptrdiff_t>(offset));
}

bool Coin(std::mt19937_64& random) { return (random() & 1) != 0; }

}  // namespace

struct MemoryFileSystem::State {
  explicit State(uint64_t capacity) : capacity_bytes(capacity) {}
  // RESOURCE_EXHAUSTED when a file cannot grow from `from` to `to`.
  absl::Status Grow(uint64_t from, uint64_t to, const std::string& path) LKV_REQUIRES(mutex) {
    if (to > from && to - from > capacity_bytes - std::min(capacity_bytes, used_bytes)) {
      return ErrnoStatus(ENOSPC, "cannot write", path);
    }
    used_bytes += to - from;
    return absl::OkStatus();
  }

  Mutex mutex;
  uint64_t capacity_bytes LKV_GUARDED_BY(mutex);
  uint64_t used_bytes LKV_GUARDED_BY(mutex) = 0;
  Names live LKV_GUARDED_BY(mutex), durable LKV_GUARDED_BY(mutex);
  std::set<std::string> directories LKV_GUARDED_BY(mutex), locked LKV_GUARDED_BY(mutex);
};

class MemoryFile : public File {
 public:
  using StatePtr = std::shared_ptr<MemoryFileSystem::State>;
  MemoryFile(StatePtr state, InodePtr inode, std::string path, bool writable)
      : state_(std::move(state)),
        inode_(std::move(inode)),
        path_(std::move(path)),
        writable_(writable) {}
  ~MemoryFile() override {
    MutexLock lock(state_->mutex);
    --inode_->handles;
    if (inode_->unreachable()) state_->used_bytes -= inode_->live.size();
  }

  absl::StatusOr<size_t> ReadAt(uint64_t offset, MutableByteSpan out) override {
    MutexLock lock(state_->mutex);
    const ByteVector& data = inode_->live;
    if (offset >= data.size()) return 0;
    const size_t n = std::min<size_t>(out.size(), data.size() - offset);
    std::copy_n(data.begin() + static_cast<ptrdiff_t>(offset), n, out.begin());
    return n;
  }

  using File::WriteAt;
  absl::Status WriteAt(uint64_t offset, std::span<const ByteSpan> pieces) override {
    MutexLock lock(state_->mutex);
    if (!writable_) return ErrnoStatus(EBADF, "cannot write", path_);
    ByteVector bytes;
    for (const ByteSpan piece : pieces) bytes.insert(bytes.end(), piece.begin(), piece.end());
    const uint64_t size = inode_->live.size();
    const absl::Status grown =
        state_->Grow(size, std::max<uint64_t>(size, offset + bytes.size()), path_);
    if (!grown.ok()) return grown;
    WriteInto(inode_->live, offset, bytes);
    inode_->unsynced.push_back({offset, std::move(bytes), false});
    return absl::OkStatus();
  }

  absl::Status SyncData() override {
    MutexLock lock(state_->mutex);
    for (const Inode::Change& change : inode_->unsynced) {
      if (change.resize) {
        inode_->durable.resize(change.offset);
      } else {
        WriteInto(inode_->durable, change.offset, change.bytes);
      }
    }
    inode_->unsynced.clear();
    return absl::OkStatus();
  }
  absl::Status Sync() override { return SyncData(); }

  absl::StatusOr<uint64_t> Size() const override {
    MutexLock lock(state_->mutex);
    return inode_->live.size();
  }

  absl::Status Truncate(uint64_t size) override {
    MutexLock lock(state_->mutex);
    const absl::Status grown = state_->Grow(inode_->live.size(), size, path_);
    if (!grown.ok()) return grown;
    inode_->live.resize(size);
    inode_->unsynced.push_back({size, {}, true});
    return absl::OkStatus();
  }

  absl::Status Allocate(uint64_t size) override {
    const auto now = Size();
    return *now < size ? Truncate(size) : absl::OkStatus();
  }

  absl::StatusOr<bool> IsLinked() const override {
    MutexLock lock(state_->mutex);
    return inode_->links > 0;
  }

 private:
  const StatePtr state_;
  const InodePtr inode_;
  const std::string path_;
  const bool writable_;
};

class MemoryLock : public FileLock {
 public:
  MemoryLock(MemoryFile::StatePtr state, std::string path)
      : state_(std::move(state)), path_(std::move(path)) {}
  ~MemoryLock() override {
    MutexLock lock(state_->mutex);
    state_->locked.erase(path_);
  }

 private:
  const MemoryFile::StatePtr state_;
  const std::string path_;
};

MemoryFileSystem::MemoryFileSystem(uint64_t capacity_bytes)
    : state_(std::make_shared<State>(capacity_bytes)) {}

absl::StatusOr<std::unique_ptr<File>> MemoryFileSystem::Open(const std::string& path,
                                                             OpenMode mode) {
  MutexLock lock(state_->mutex);
  const auto it = state_->live.find(path);
  InodePtr inode;
  if (mode == OpenMode::kCreate) {
    if (it != state_->live.end()) return ErrnoStatus(EEXIST, "cannot open", path);
    if (!state_->directories.contains(DirectoryOf(path))) {
      return ErrnoStatus(ENOENT, "cannot open", path);
    }
    inode = std::make_shared<Inode>();
    inode->links = 1;
    state_->live[path] = inode;
  } else {
    if (it == state_->live.end()) return ErrnoStatus(ENOENT, "cannot open", path);
    inode = it->second;
  }
  ++inode->handles;
  return std::make_unique<MemoryFile>(state_, std::move(inode), path, mode != OpenMode::kRead);
}

absl::Status MemoryFileSystem::CreateDirectory(const std::string& path) {
  MutexLock lock(state_->mutex);
  state_->directories.insert(path);
  return absl::OkStatus();
}

absl::Status MemoryFileSystem::SyncDirectory(const std::string& path) {
  MutexLock lock(state_->mutex);
  if (!state_->directories.contains(path)) return ErrnoStatus(ENOENT, "cannot sync", path);
  std::erase_if(state_->durable, [&](const auto& name) { return DirectoryOf(name.first) == path; });
  for (const auto& [name, inode] : state_->live) {
    if (DirectoryOf(name) == path) state_->durable[name] = inode;
  }
  return absl::OkStatus();
}

absl::Status MemoryFileSystem::Rename(const std::string& from, const std::string& to) {
  MutexLock lock(state_->mutex);
  const auto it = state_->live.find(from);
  if (it == state_->live.end()) return ErrnoStatus(ENOENT, "cannot rename", from);
  InodePtr inode = it->second;
  state_->live.erase(it);
  InodePtr& there = state_->live[to];
  if (there) {
    --there->links;
    if (there->unreachable()) state_->used_bytes -= there->live.size();
  }
  there = std::move(inode);
  return absl::OkStatus();
}

absl::Status MemoryFileSystem::Remove(const std::string& path) {
  MutexLock lock(state_->mutex);
  const auto it = state_->live.find(path);
  if (it == state_->live.end()) return ErrnoStatus(ENOENT, "cannot remove", path);
  Inode& inode = *it->second;
  --inode.links;
  if (inode.unreachable()) state_->used_bytes -= inode.live.size();
  state_->live.erase(it);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> MemoryFileSystem::List(const std::string& path) {
  MutexLock lock(state_->mutex);
  if (!state_->directories.contains(path)) return ErrnoStatus(ENOENT, "cannot list", path);
  std::vector<std::string> out;
  for (const auto& [name, inode] : state_->live) {
    if (DirectoryOf(name) == path) out.push_back(name.substr(path.size() + 1));
  }
  return out;
}

absl::StatusOr<std::unique_ptr<FileLock>> MemoryFileSystem::Lock(const std::string& path) {
  MutexLock lock(state_->mutex);
  if (!state_->directories.contains(DirectoryOf(path))) {
    return ErrnoStatus(ENOENT, "cannot open", path);
  }
  if (!state_->locked.insert(path).second) {
    return absl::FailedPreconditionError("another process holds " + path +
                                         "; stop it or use another directory");
  }
  return std::make_unique<MemoryLock>(state_, path);
}

absl::StatusOr<uint64_t> MemoryFileSystem::FreeBytes(const std::string& path) {
  MutexLock lock(state_->mutex);
  return state_->capacity_bytes - std::min(state_->capacity_bytes, state_->used_bytes);
}

std::unique_ptr<MemoryFileSystem> MemoryFileSystem::AfterPowerLoss(std::mt19937_64& random) const {
  MutexLock lock(state_->mutex);
  auto out = std::make_unique<MemoryFileSystem>(state_->capacity_bytes);
  State& next = *out->state_;
  MutexLock next_lock(next.mutex);
  next.directories = state_->directories;
  Names names = state_->durable;
  for (const auto& [name, inode] : state_->live) {
    const auto it = names.find(name);
    if ((it == names.end() || it->second != inode) && Coin(random)) names[name] = inode;
  }
  std::erase_if(
      names, [&](const auto& name) { return !state_->live.contains(name.first) && Coin(random); });
  for (const auto& [name, inode] : names) {
    auto copy = std::make_shared<Inode>();
    ByteVector& data = copy->live;
    data = inode->durable;
    const uint64_t fate = random() % 4;  // all of the changes, none, or some
    for (const Inode::Change& change : inode->unsynced) {
      if (fate == 0 || (fate > 1 && Coin(random))) continue;
      if (change.resize) {
        data.resize(change.offset);
        continue;
      }
      const bool torn = fate > 1 && Coin(random);
      for (size_t at = 0; at < change.bytes.size(); at += kSectorBytes) {
        if (torn && Coin(random)) continue;
        const size_t n = std::min(kSectorBytes, change.bytes.size() - at);
        WriteInto(data, change.offset + at, ByteSpan(change.bytes).subspan(at, n));
      }
    }
    copy->durable = data;
    copy->links = 1;
    next.used_bytes += data.size();
    next.live[name] = copy;
    next.durable[name] = copy;
  }
  return out;
}

uint64_t MemoryFileSystem::used_bytes() const {
  MutexLock lock(state_->mutex);
  return state_->used_bytes;
}

void MemoryFileSystem::set_capacity_bytes(uint64_t bytes) {
  MutexLock lock(state_->mutex);
  state_->capacity_bytes = bytes;
}

ByteVector MemoryFileSystem::Contents(const std::string& path) const {
  MutexLock lock(state_->mutex);
  const auto it = state_->live.find(path);
  return it == state_->live.end() ? ByteVector() : it->second->live;
}

void MemoryFileSystem::SetContents(const std::string& path, ByteVector bytes) {
  MutexLock lock(state_->mutex);
  InodePtr& inode = state_->live[path];
  if (!inode) {
    inode = std::make_shared<Inode>();
    inode->links = 1;
  }
  state_->used_bytes += bytes.size() - inode->live.size();
  inode->live = std::move(bytes);
  inode->durable = inode->live;
  inode->unsynced.clear();
}

void MemoryFileSystem::RemoveDirectory(const std::string& path) {
  const auto files = List(path);
  if (files.ok()) {
    for (const std::string& name : *files) static_cast<void>(Remove(JoinPath(path, name)));
  }
  MutexLock lock(state_->mutex);
  state_->directories.erase(path);
  std::erase_if(state_->durable, [&](const auto& name) { return DirectoryOf(name.first) == path; });
}

}  // namespace latticekv
