#include "core/io/uring_file_system.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "core/base/status_macros.h"

namespace latticekv {
namespace {

// Of offsets, sizes and buffers: enough for every disk there is.
constexpr uint64_t kAlignment = 4096;
// A read costs the disk more the more pieces it comes in, above all a virtual one, so pieces are as
// large as the buffer allows with the next one under way.
constexpr size_t kMaxPieceBytes = 1280 << 10;
constexpr size_t kBufferBytes = 4 << 20;
constexpr size_t kMaxUnderWay = 32;  // reads in a ring
// More than there are threads that read blocks, so that descriptions do not wait for them; buffers
// take 48 MiB at most.
constexpr int kMaxRings = 12;
constexpr size_t kHugePage = 2 << 20;

struct AlignedRead {
  int fd = -1;
  uint64_t offset = 0;
  size_t bytes = 0;
};

uint64_t AlignDown(uint64_t n) { return n / kAlignment * kAlignment; }
uint64_t AlignUp(uint64_t n) { return AlignDown(n + kAlignment - 1); }

// The size of the pieces of a read from `begin`, which is aligned, to `end`: as few as can be, of
// one size.
size_t PieceBytes(uint64_t begin, uint64_t end) {
  const uint64_t count = std::max<uint64_t>((end - begin + kMaxPieceBytes - 1) / kMaxPieceBytes, 1);
  return std::max<size_t>(AlignUp((end - begin + count - 1) / count), kAlignment);
}

}  // namespace

// A ring and the buffers that its reads go into. One thread at a time.
class UringRing {
 public:
  static std::unique_ptr<UringRing> Make() {
    auto out = std::unique_ptr<UringRing>(new UringRing);
    void* const mapped = mmap(nullptr, kBufferBytes + kHugePage, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    out->mapped_ = mapped;
    // On huge pages, where there are any, a read is few stretches of memory for the disk.
    const auto at = reinterpret_cast<uintptr_t>(mapped);
    out->buffer_ =
        static_cast<std::byte*>(mapped) + ((at + kHugePage - 1) / kHugePage * kHugePage - at);
    static_cast<void>(madvise(out->buffer_, kBufferBytes, MADV_HUGEPAGE));
    out->made_ = io_uring_queue_init(kMaxUnderWay, &out->ring_, 0) == 0;
    if (!out->made_) return nullptr;
    return out;
  }
  ~UringRing() {
    if (made_) io_uring_queue_exit(&ring_);
    if (mapped_ != nullptr) munmap(mapped_, kBufferBytes + kHugePage);
  }

  // Does `count` reads of at most `piece_bytes`, several at a time, and gives their bytes to `done`
  // in order: fewer than asked for where the file ends or the read failed. False from `done` ends
  // it.
  template <typename ReadOf, typename Done>
  void Read(size_t count, size_t piece_bytes, const ReadOf& read_of, const Done& done) {
    piece_bytes_ = piece_bytes;
    slot_count_ = std::min(kBufferBytes / piece_bytes, kMaxUnderWay);
    size_t issued = 0;
    for (size_t next = 0; next < count;) {
      for (; issued < count && issued < next + slot_count_; ++issued) {
        Queue(issued, read_of(issued));
      }
      while (!SlotOf(next).ready) Submit();
      const Slot& slot = SlotOf(next);
      const ByteSpan bytes(BufferOf(next), static_cast<size_t>(std::max(slot.result, 0)));
      const bool go_on = done(next, bytes);
      ++next;
      if (go_on) continue;
      // What is under way still writes into the buffers.
      for (; next < issued; ++next) {
        while (!SlotOf(next).ready) Submit();
      }
      return;
    }
  }
  bool broken() const { return broken_; }

 private:
  struct Slot {
    bool ready = false;
    int result = 0;
  };
  UringRing() = default;

  Slot& SlotOf(size_t n) { return slots_[n % slot_count_]; }
  std::byte* BufferOf(size_t n) const { return buffer_ + n % slot_count_ * piece_bytes_; }

  void Queue(size_t n, const AlignedRead& read) {
    Slot& slot = SlotOf(n);
    slot = {broken_, -EIO};
    if (broken_) return;
    io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);  // there are as many as slots
    io_uring_prep_read(sqe, read.fd, BufferOf(n), static_cast<unsigned>(read.bytes), read.offset);
    io_uring_sqe_set_data64(sqe, n % slot_count_);
    ++queued_;
  }

  // Hands queued reads to the kernel and waits until one is over.
  void Submit() {
    const int n = broken_ ? -EIO : io_uring_submit_and_wait(&ring_, 1);
    if (n >= 0) {
      queued_ -= n;
      under_way_ += n;
    } else if (n != -EINTR) {
      broken_ = true;
    }
    Collect();
    if (!broken_) return;
    // Those under way come to an end; those that the kernel did not take never began.
    while (under_way_ > 0) {
      io_uring_cqe* cqe;
      if (io_uring_wait_cqe(&ring_, &cqe) == 0) Collect();
    }
    for (Slot& slot : slots_) slot.ready = true;
    queued_ = 0;
  }

  void Collect() {
    io_uring_cqe* cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      slots_[io_uring_cqe_get_data64(cqe)] = {true, cqe->res};
      ++seen;
    }
    io_uring_cq_advance(&ring_, seen);
    under_way_ -= static_cast<int>(seen);
  }

  io_uring ring_;
  bool made_ = false, broken_ = false;
  void* mapped_ = nullptr;
  std::byte* buffer_ = nullptr;
  size_t piece_bytes_ = 0, slot_count_ = 1;  // of the reads under way
  std::array<Slot, kMaxUnderWay> slots_;
  int queued_ = 0, under_way_ = 0;
};

class UringFile : public PosixFile {
 public:
  // Owns both descriptors; `direct_fd` -1: no O_DIRECT here.
  UringFile(int fd, int direct_fd, std::string path, UringFileSystem* system)
      : PosixFile(fd, std::move(path)), direct_fd_(direct_fd), system_(system) {}
  ~UringFile() override {
    if (direct_fd_ >= 0) close(direct_fd_);
  }

  absl::StatusOr<size_t> ReadAt(uint64_t offset, MutableByteSpan out) override {
    FileRead read{this, offset, out, 0, {}};
    system_->ReadBatch({&read, 1});
    LKV_RETURN_IF_ERROR(read.status);
    return read.got;
  }

  absl::StatusOr<uint64_t> ReadPieces(uint64_t offset, uint64_t size,
                                      const PieceSink& each) override {
    std::unique_ptr<UringRing> ring = direct_fd_ >= 0 ? system_->Take() : nullptr;
    if (!ring) return PosixFile::ReadPieces(offset, size, each);
    const uint64_t begin = AlignDown(offset), end = offset + size;
    const size_t piece_bytes = PieceBytes(begin, end);
    const size_t count = (end - begin + piece_bytes - 1) / piece_bytes;
    absl::Status status;
    uint64_t done = 0;
    ByteVector again;
    ring->Read(
        count, piece_bytes,
        [&](size_t n) {
          const uint64_t at = begin + n * piece_bytes;
          return AlignedRead{direct_fd_, at, std::min<size_t>(piece_bytes, AlignUp(end - at))};
        },
        [&](size_t n, ByteSpan bytes) {
          const uint64_t at = begin + n * piece_bytes;
          const size_t skip = n == 0 ? offset - begin : 0;
          const size_t wanted = std::min<uint64_t>(piece_bytes, end - at) - skip;
          ByteSpan piece = bytes.subspan(std::min(skip, bytes.size()));
          if (piece.size() < wanted) {
            again.resize(wanted);
            const auto got = PosixFile::ReadAt(at + skip, again);
            if (!got.ok()) {
              status = got.status();
              return false;
            }
            piece = ByteSpan(again).first(*got);
          }
          piece = piece.first(std::min(piece.size(), wanted));
          if (!piece.empty()) status = each(piece);
          done += piece.size();
          return status.ok() && piece.size() == wanted;
        });
    system_->GiveBack(std::move(ring));
    LKV_RETURN_IF_ERROR(status);
    return done;
  }

  int direct_fd() const { return direct_fd_; }
  // Settles a read whose bytes from `read->got` on could not be had through the ring: the rest, the
  // end of the file, or the error.
  void Finish(FileRead* read) {
    const auto got = PosixFile::ReadAt(read->offset + read->got, read->out.subspan(read->got));
    read->status = got.status();
    if (got.ok()) read->got += *got;
  }

 private:
  const int direct_fd_;
  UringFileSystem* const system_;
};

UringFileSystem::UringFileSystem() = default;
UringFileSystem::~UringFileSystem() = default;

std::unique_ptr<UringFileSystem> UringFileSystem::Create() {
  std::unique_ptr<UringFileSystem> out(new UringFileSystem);
  std::unique_ptr<UringRing> ring = out->Take();
  if (!ring) return nullptr;
  out->GiveBack(std::move(ring));
  return out;
}

std::unique_ptr<UringRing> UringFileSystem::Take() {
  {
    MutexLock lock(mutex_);
    while (idle_.empty() && rings_ == kMaxRings) given_back_.Wait(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<UringRing> out = std::move(idle_.back());
      idle_.pop_back();
      return out;
    }
    ++rings_;
  }
  std::unique_ptr<UringRing> made = UringRing::Make();
  if (made) return made;
  MutexLock lock(mutex_);
  --rings_;
  given_back_.Signal();
  return nullptr;
}

void UringFileSystem::GiveBack(std::unique_ptr<UringRing> ring) {
  MutexLock lock(mutex_);
  if (ring->broken()) {
    --rings_;
  } else {
    idle_.push_back(std::move(ring));
  }
  given_back_.Signal();
}

absl::StatusOr<std::unique_ptr<File>> UringFileSystem::Open(const std::string& path,
                                                            OpenMode mode) {
  LKV_ASSIGN_OR_RETURN(const int fd, OpenFd(path, mode));
  int direct_fd = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  struct stat a, b;
  // Between the two calls another file may have got the name.
  if (direct_fd >= 0 && (fstat(fd, &a) != 0 || fstat(direct_fd, &b) != 0 || a.st_ino != b.st_ino ||
                         a.st_dev != b.st_dev)) {
    close(direct_fd);
    direct_fd = -1;
  }
  return std::make_unique<UringFile>(fd, direct_fd, path, this);
}

void UringFileSystem::ReadBatch(std::span<FileRead> reads) {
  // The parts of all reads, in order.
  struct Part {
    size_t read;
    uint64_t at;  // aligned
    size_t bytes;
  };
  std::vector<Part> parts;
  size_t largest = kAlignment;
  bool direct = false;
  for (size_t i = 0; i < reads.size(); ++i) {
    FileRead& read = reads[i];
    read.got = 0;
    read.status = absl::OkStatus();
    if (read.out.empty() || static_cast<UringFile*>(read.file)->direct_fd() < 0) continue;
    direct = true;
    const uint64_t end = read.offset + read.out.size();
    const uint64_t begin = AlignDown(read.offset);
    const size_t piece_bytes = PieceBytes(begin, end);
    for (uint64_t at = begin; at < end; at += piece_bytes) {
      parts.push_back({i, at, std::min<size_t>(piece_bytes, AlignUp(end - at))});
      largest = std::max(largest, parts.back().bytes);
    }
  }
  std::unique_ptr<UringRing> ring = direct ? Take() : nullptr;
  if (ring) {
    ring->Read(
        parts.size(), largest,
        [&](size_t n) {
          const int fd = static_cast<UringFile*>(reads[parts[n].read].file)->direct_fd();
          return AlignedRead{fd, parts[n].at, parts[n].bytes};
        },
        [&](size_t n, ByteSpan bytes) {
          FileRead& read = reads[parts[n].read];
          const uint64_t wanted_at = read.offset + read.got;
          // After a part that came short the rest is settled below.
          if (parts[n].at > wanted_at || wanted_at - parts[n].at >= bytes.size()) return true;
          const ByteSpan useful = bytes.subspan(wanted_at - parts[n].at);
          const size_t size = std::min(useful.size(), read.out.size() - read.got);
          std::memcpy(read.out.data() + read.got, useful.data(), size);
          read.got += size;
          return true;
        });
    GiveBack(std::move(ring));
  }
  for (FileRead& read : reads) {
    if (read.got < read.out.size()) static_cast<UringFile*>(read.file)->Finish(&read);
  }
}

FileSystem* FileSystem::Uring() {
  static UringFileSystem* const system = UringFileSystem::Create().release();
  return system;
}

}  // namespace latticekv
