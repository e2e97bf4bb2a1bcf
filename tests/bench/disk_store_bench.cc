// Measures the disk tier of the store by itself; `disk_store_bench` prints how to call it.
// docs/results/recovery.md and disk.md have what it printed.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <semaphore>
#include <string>
#include <thread>

#include "core/base/crc32c.h"
#include "core/io/file_system.h"
#include "core/store/segment_format.h"
#include "core/store/tiered_store.h"

namespace latticekv {
namespace {

constexpr uint64_t kSegmentBytes = 256 << 20;
constexpr size_t kMemoryBytes = 256 << 20;
constexpr uint64_t kChain = 16;  // blocks of a prompt
constexpr uint64_t kAligned = 4096;

[[noreturn]] void Die(const std::string& why) {
  fprintf(stderr, "disk_store_bench: %s\n", why.c_str());
  exit(1);
}
void Check(const absl::Status& status) {
  if (!status.ok()) Die(status.ToString());
}

struct Usage {
  double wall = 0, cpu = 0;
  static Usage Now() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    const auto seconds = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
    };
    return {static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9,
            seconds(usage.ru_utime) + seconds(usage.ru_stime)};
  }
  Usage Since(const Usage& start) const { return {wall - start.wall, cpu - start.cpu}; }
};

BlockKey KeyOf(uint64_t n) { return Sha256Of(AsBytes(std::to_string(n))); }

// Every byte differs from block to block, and nothing compresses.
void FillFrame(uint64_t n, MutableByteSpan out) {
  uint64_t x = n * 0x9E3779B97F4A7C15u + 1;
  for (size_t i = 0; i + 8 <= out.size(); i += 8) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    StoreLe<uint64_t>(&out[i], x);
  }
}

std::unique_ptr<TieredStore> OpenStore(const std::string& dir, uint64_t bytes, FileSystem* fs) {
  StoreOptions options;
  options.memory_bytes = kMemoryBytes;
  options.disk_dir = dir;
  options.disk_bytes = bytes + bytes / 8 + 8 * kSegmentBytes;
  options.segment_bytes = kSegmentBytes;
  options.file_system = fs;
  auto store = TieredStore::Open(options);
  Check(store.status());
  return *std::move(store);
}

// Puts blocks [from, to) through the store.
void PutBlocks(TieredStore& store, uint64_t from, uint64_t to, uint32_t frame_bytes) {
  for (uint64_t n = from; n < to; ++n) {
    StoredBlock block;
    block.key = KeyOf(n);
    if (n % kChain != 0) block.parent = KeyOf(n - 1);
    block.frame.resize(frame_bytes);
    FillFrame(n, block.frame);
    block.metadata.resize(1400);  // as with 256 token ids
    auto reservation = store.Reserve(TieredStore::EntryBytes(frame_bytes, 1400));
    Check(reservation.status());
    block.reservation = *std::move(reservation);
    Check(store.Put(std::move(block)).status());
  }
  Check(store.Flush());
}

// The same with durable puts, at most `kDurableAhead` of them not acknowledged yet.
constexpr int kDurableAhead = 16;
void PutDurably(TieredStore& store, uint64_t blocks, uint32_t frame_bytes) {
  std::counting_semaphore<kDurableAhead> room(kDurableAhead);
  for (uint64_t n = 0; n < blocks; ++n) {
    room.acquire();
    StoredBlock block;
    block.key = KeyOf(n);
    block.frame.resize(frame_bytes);
    FillFrame(n, block.frame);
    auto reservation = store.Reserve(TieredStore::EntryBytes(frame_bytes, 0));
    Check(reservation.status());
    block.reservation = *std::move(reservation);
    PutOptions options;
    options.durability = Durability::kDurable;
    options.on_durable = [&](const absl::Status& status) {
      Check(status);
      room.release();
    };
    Check(store.Put(std::move(block), std::move(options)).status());
  }
  for (int n = 0; n < kDurableAhead; ++n) room.acquire();
}

// Nothing of the directory stays in the page cache.
void DropCaches(const std::string& dir) {
  const auto names = FileSystem::Posix()->List(dir);
  Check(names.status());
  for (const std::string& name : *names) {
    const int fd = open(JoinPath(dir, name).c_str(), O_RDONLY);
    if (fd < 0 || fsync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) {
      Die("cannot drop the cache of " + name);
    }
    close(fd);
  }
}

// --- Opening.

void MeasureOpen(const std::string& dir, uint64_t bytes, const char* what) {
  DropCaches(dir);
  const Usage start = Usage::Now();
  const auto store = OpenStore(dir, bytes, FileSystem::Default());
  const Usage used = Usage::Now().Since(start);
  const StoreStats stats = store->Stats();
  printf(
      "%s: %llu blocks in %llu segments, %.2f GiB, wall %.3f s, CPU %.3f s, index %.1f bytes a "
      "block, damaged %llu\n",
      what, static_cast<unsigned long long>(stats.recovered_blocks),
      static_cast<unsigned long long>(stats.segments),
      static_cast<double>(stats.disk_used_bytes) / (1 << 30), used.wall, used.cpu,
      static_cast<double>(stats.disk_index_bytes) / static_cast<double>(stats.disk_blocks),
      static_cast<unsigned long long>(stats.corrupt_dropped));
  fflush(stdout);
}

// Segments as a crash leaves them: without index, in their full length.
void LoseIndex(const std::string& dir, uint64_t wanted) {
  FileSystem& fs = *FileSystem::Posix();
  const auto names = fs.List(dir);
  Check(names.status());
  for (auto name = names->rbegin(); name != names->rend() && wanted > 0; ++name) {
    if (!ParseSegmentFileName(*name)) continue;
    auto file = fs.Open(JoinPath(dir, *name), OpenMode::kReadWrite);
    Check(file.status());
    const uint64_t size = *(*file)->Size();
    if (size < kSegmentBytes / 2) continue;  // one that was just begun
    ByteVector bytes(kTrailerBytes);
    Check((*file)->ReadAt(size - kTrailerBytes, bytes).status());
    const auto trailer = DecodeTrailer(bytes, *ParseSegmentFileName(*name), size);
    if (!trailer.ok()) continue;
    Check((*file)->Truncate(trailer->footer_offset));
    Check((*file)->Allocate(kSegmentBytes));
    Check((*file)->Sync());
    --wanted;
  }
}

void Recovery(const std::string& dir, uint64_t bytes, uint32_t record_bytes) {
  if (!FileSystem::Posix()->List(dir).ok()) {
    const Usage start = Usage::Now();
    const uint64_t blocks = bytes / record_bytes;
    PutBlocks(*OpenStore(dir, bytes, FileSystem::Default()), 0, blocks, record_bytes);
    const Usage used = Usage::Now().Since(start);
    printf("written: %llu blocks of %u KiB, wall %.1f s, CPU %.1f s\n",
           static_cast<unsigned long long>(blocks), record_bytes >> 10, used.wall, used.cpu);
  }
  for (int n = 0; n < 3; ++n) MeasureOpen(dir, bytes, "by indexes alone");
  LoseIndex(dir, 1);
  MeasureOpen(dir, bytes, "one segment by scan, as after a crash");
  MeasureOpen(dir, bytes, "again, its index written by the start before");
  LoseIndex(dir, 8);
  MeasureOpen(dir, bytes, "eight segments by scan, as after seven failed writes and a crash");
  LoseIndex(dir, UINT64_MAX);
  MeasureOpen(dir, bytes, "every segment by scan");
}

// --- Reading.

struct Place {
  std::string path;
  uint64_t offset;
  uint64_t bytes;
};

// Where the records lie, in the order in which they were put.
std::vector<Place> FindPlaces(const std::string& dir, uint32_t record_bytes) {
  std::vector<Place> out;
  const auto names = FileSystem::Posix()->List(dir);
  Check(names.status());
  for (const std::string& name : *names) {
    if (!ParseSegmentFileName(name)) continue;
    const std::string path = JoinPath(dir, name);
    const int fd = open(path.c_str(), O_RDONLY);
    const uint64_t size = static_cast<uint64_t>(lseek(fd, 0, SEEK_END));
    close(fd);
    for (uint64_t at = 0; at + record_bytes <= size; at += record_bytes) {
      out.push_back({path, at, record_bytes});
    }
  }
  return out;
}

// Every place once, `threads` reads at a time, past the page cache.
Usage ReadRaw(const std::vector<Place>& places, int threads) {
  std::atomic<size_t> next{0};
  const Usage start = Usage::Now();
  std::vector<std::thread> readers;
  for (int t = 0; t < threads; ++t) {
    readers.emplace_back([&] {
      std::string open_path;
      int fd = -1;
      std::byte* buffer = nullptr;
      for (size_t i = next++; i < places.size(); i = next++) {
        const Place& place = places[i];
        if (buffer == nullptr) {
          buffer = static_cast<std::byte*>(aligned_alloc(kAligned, place.bytes));
        }
        if (place.path != open_path) {
          if (fd >= 0) close(fd);
          fd = open(place.path.c_str(), O_RDONLY | O_DIRECT);
          open_path = place.path;
        }
        if (pread(fd, buffer, place.bytes, static_cast<off_t>(place.offset)) !=
            static_cast<ssize_t>(place.bytes)) {
          Die("a raw read failed");
        }
      }
      if (fd >= 0) close(fd);
      free(buffer);
    });
  }
  for (std::thread& reader : readers) reader.join();
  return Usage::Now().Since(start);
}

// Every block once, through the store, by so many threads.
Usage ReadStore(const std::string& dir, uint64_t bytes, uint64_t blocks, int threads,
                FileSystem* fs) {
  DropCaches(dir);
  const auto store = OpenStore(dir, bytes, fs);
  std::atomic<uint64_t> next{0};
  const Usage start = Usage::Now();
  std::vector<std::thread> readers;
  for (int t = 0; t < threads; ++t) {
    readers.emplace_back([&] {
      for (uint64_t n = next++; n < blocks; n = next++) {
        const StoredBlockPtr block = store->Get(KeyOf(n));
        std::byte want[8];
        FillFrame(n, want);
        if (!block || block->frame.size() < 8 || memcmp(block->frame.data(), want, 8) != 0) {
          Die("block " + std::to_string(n) + " is missing or another");
        }
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  return Usage::Now().Since(start);
}

void Reads(const std::string& dir, uint64_t bytes, uint32_t record_bytes, int rounds) {
  const uint64_t blocks = bytes / record_bytes;
  PutBlocks(*OpenStore(dir, bytes, FileSystem::Default()), 0, blocks, record_bytes);
  DropCaches(dir);
  const std::vector<Place> places = FindPlaces(dir, record_bytes);
  const auto print = [&](int round, const char* what, const Usage& used, size_t records) {
    const double gb = static_cast<double>(records) * record_bytes * 1e-9;
    printf("%d | %s | %.0f | %.3f\n", round, what, gb * 1e3 / used.wall, used.cpu / gb);
    fflush(stdout);
  };
  printf("round | what | MB/s | CPU s/GB\n");
  for (int round = 1; round <= rounds; ++round) {
    for (const int threads : {1, 4, 8}) {
      const std::string name = "raw O_DIRECT, " + std::to_string(threads) + " at a time";
      print(round, name.c_str(), ReadRaw(places, threads), places.size());
    }
    for (FileSystem* fs : {FileSystem::Uring(), FileSystem::Posix()}) {
      if (fs == nullptr) continue;
      for (const int threads : {1, 4, 8}) {
        const std::string name =
            "store, " + std::string(fs->name()) + ", " + std::to_string(threads) + " at a time";
        print(round, name.c_str(), ReadStore(dir, bytes, blocks, threads, fs), blocks);
      }
    }
  }
}

void Writes(const std::string& dir, uint64_t bytes, uint32_t record_bytes, int rounds) {
  printf("round | what | MB/s | CPU s/GB, with making the bytes\n");
  for (int round = 1; round <= rounds; ++round) {
    for (FileSystem* fs : {FileSystem::Uring(), FileSystem::Posix()}) {
      if (fs == nullptr) continue;
      const std::string own =
          JoinPath(dir, std::to_string(round) + (fs->name()[0] == 'i' ? "u" : "p"));
      const auto store = OpenStore(own, bytes, fs);
      const Usage start = Usage::Now();
      PutDurably(*store, bytes / record_bytes, record_bytes);
      const Usage used = Usage::Now().Since(start);
      const double gb = static_cast<double>(bytes) * 1e-9;
      printf("%d | durable puts, %s | %.0f | %.3f\n", round, std::string(fs->name()).c_str(),
             gb * 1e3 / used.wall, used.cpu / gb);
      fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) {
  using namespace latticekv;
  const std::string what = argc > 2 ? argv[1] : "";
  if (what != "recovery" && what != "read" && what != "write") {
    fprintf(
        stderr,
        "usage: disk_store_bench recovery|read|write DIRECTORY [GIB [RECORD_KIB [ROUNDS]]]\n"
        "  recovery: makes a store of that size (10) and measures how long it takes to open\n"
        "  read: the same (2), and reads every block back beside raw reads of the disk\n"
        "DIRECTORY is made; remove it afterwards. recovery takes a store that it made before.\n");
    return 2;
  }
  const std::string dir = argv[2];
  const uint64_t gib = argc > 3 ? strtoull(argv[3], nullptr, 10) : what == "recovery" ? 10 : 2;
  const uint32_t record_bytes =
      (argc > 4 ? static_cast<uint32_t>(strtoul(argv[4], nullptr, 10)) : 1024u) << 10;
  const int rounds = argc > 5 ? atoi(argv[5]) : 3;
  if (what == "read") {
    Reads(dir, gib << 30, record_bytes, rounds);
  } else if (what == "write") {
    Writes(dir, gib << 30, record_bytes, rounds);
  } else {
    Recovery(dir, gib << 30, record_bytes);
  }
  return 0;
}
