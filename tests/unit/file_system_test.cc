// The seam's implementations agree, and the test twins do what they say.
#include "core/io/file_system.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <random>
#include <thread>

#include "core/io/fault_file_system.h"
#include "core/io/memory_file_system.h"
#include "tests/support/temp_dir.h"

namespace latticekv {
namespace {

ByteVector Bytes(const std::string& text) {
  const ByteSpan span = AsBytes(text);
  return {span.begin(), span.end()};
}

std::string ReadAll(File& file) {
  std::string out(*file.Size(), '\0');
  const auto n = file.ReadAt(0, {reinterpret_cast<std::byte*>(out.data()), out.size()});
  EXPECT_TRUE(n.ok()) << n.status();
  out.resize(n.ok() ? *n : 0);
  return out;
}

// Runs against one implementation in one fresh directory.
void ExerciseFileSystem(FileSystem& fs, const std::string& dir) {
  ASSERT_TRUE(fs.CreateDirectory(dir).ok());
  ASSERT_TRUE(fs.CreateDirectory(dir).ok());
  const std::string a = JoinPath(dir, "a"), b = JoinPath(dir, "b");
  EXPECT_EQ(fs.Open(a, OpenMode::kRead).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(fs.Open(JoinPath(dir, "none/a"), OpenMode::kCreate).status().code(),
            absl::StatusCode::kNotFound);
  {
    auto file = fs.Open(a, OpenMode::kCreate);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(fs.Open(a, OpenMode::kCreate).status().code(), absl::StatusCode::kAlreadyExists);
    const ByteVector hello = Bytes("hello "), world = Bytes("world");
    const ByteSpan pieces[] = {hello, {}, world};
    EXPECT_TRUE((*file)->WriteAt(0, pieces).ok());
    EXPECT_TRUE((*file)->WriteAt(6, AsBytes("W")).ok());
    EXPECT_EQ(ReadAll(**file), "hello World");
    ByteVector tail(100);
    EXPECT_EQ(*(*file)->ReadAt(9, tail), 2u);
    EXPECT_EQ(*(*file)->ReadAt(50, tail), 0u);
    EXPECT_TRUE((*file)->Allocate(64).ok());
    EXPECT_EQ(*(*file)->Size(), 64u);
    EXPECT_TRUE((*file)->Allocate(10).ok());
    EXPECT_EQ(*(*file)->Size(), 64u);
    EXPECT_TRUE((*file)->Truncate(5).ok());
    EXPECT_TRUE((*file)->SyncData().ok());
    EXPECT_TRUE((*file)->Sync().ok());
    EXPECT_TRUE(*(*file)->IsLinked());
  }
  {
    // Data is told of wherever it is; what lies between may be.
    const std::string sparse = JoinPath(dir, "sparse");
    auto file = fs.Open(sparse, OpenMode::kCreate);
    ASSERT_TRUE((*file)->Allocate(1 << 20).ok());
    const uint64_t places[] = {100'000, 100'010, 700'000, (1 << 20) - 3};
    for (const uint64_t at : places) EXPECT_TRUE((*file)->WriteAt(at, AsBytes("abc")).ok());
    uint64_t at = 0;
    std::vector<uint64_t> seen;
    while (true) {
      const auto data = (*file)->NextData(at);
      ASSERT_TRUE(data.ok()) << data.status();
      if (data->begin == data->end) break;
      ASSERT_LE(at, data->begin);
      ASSERT_LT(data->begin, data->end);
      for (const uint64_t place : places) {
        if (place >= data->begin && place + 3 <= data->end) seen.push_back(place);
      }
      at = data->end;
    }
    EXPECT_EQ(seen, (std::vector<uint64_t>(std::begin(places), std::end(places))));
    EXPECT_EQ((*file)->NextData(1 << 20)->begin, 1u << 20);
    EXPECT_TRUE(fs.Remove(sparse).ok());
  }
  EXPECT_TRUE(fs.Append(a, AsBytes("!")).ok());
  EXPECT_TRUE(fs.Append(b, AsBytes("new")).ok());
  EXPECT_EQ(*fs.List(dir), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(fs.Rename(a, b).ok());
  EXPECT_EQ(*fs.List(dir), std::vector<std::string>{"b"});
  EXPECT_TRUE(fs.SyncDirectory(dir).ok());
  auto file = fs.Open(b, OpenMode::kRead);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(ReadAll(**file), "hello!");
  EXPECT_FALSE((*file)->WriteAt(0, AsBytes("x")).ok());
  EXPECT_TRUE(fs.Remove(b).ok());
  EXPECT_EQ(fs.Remove(b).code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(*(*file)->IsLinked());
  EXPECT_EQ(ReadAll(**file), "hello!");
  EXPECT_GT(*fs.FreeBytes(dir), 0u);
  const std::string lock = JoinPath(dir, "LOCK");
  {
    auto held = fs.Lock(lock);
    ASSERT_TRUE(held.ok()) << held.status();
    EXPECT_EQ(fs.Lock(lock).status().code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_TRUE(fs.Lock(lock).ok());
}

TEST(FileSystemTest, Posix) {
  const testing::TempDir dir;
  ExerciseFileSystem(*FileSystem::Posix(), dir.File("deep/er"));
}

TEST(FileSystemTest, Default) {
  const testing::TempDir dir;
  ExerciseFileSystem(*FileSystem::Default(), dir.File("x"));
}

TEST(FileSystemTest, Uring) {
  if (FileSystem::Uring() == nullptr) GTEST_SKIP() << "there is no io_uring here";
  const testing::TempDir dir;
  ExerciseFileSystem(*FileSystem::Uring(), dir.File("x"));
  // A file system in memory, which may know no O_DIRECT.
  const std::string shm = "/dev/shm/latticekv." + std::to_string(getpid());
  ExerciseFileSystem(*FileSystem::Uring(), shm);
  std::filesystem::remove_all(shm);
}

// Random writes, and then random reads of every kind by many threads, agree.
void ReadEverywhere(FileSystem& fs, const std::string& path) {
  std::mt19937_64 random(11);
  ByteVector bytes(3'000'003);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  const auto file = *fs.Open(path, OpenMode::kCreate);
  ASSERT_TRUE(file->WriteAt(0, bytes).ok());
  // Over each other, at any place, of any size, some past the end, in up to four pieces.
  for (int n = 0; n < 60; ++n) {
    const uint64_t offset = random() % bytes.size();
    ByteVector fresh(random() % (n % 2 == 0 ? 1'000'000 : 20'000));
    for (std::byte& b : fresh) b = static_cast<std::byte>(random());
    std::vector<ByteSpan> pieces;
    for (ByteSpan left(fresh); !left.empty();) {
      const size_t size = pieces.size() == 3 ? left.size() : 1 + random() % left.size();
      pieces.push_back(left.first(size));
      left = left.subspan(size);
    }
    ASSERT_TRUE(file->WriteAt(offset, pieces).ok());
    bytes.resize(std::max<size_t>(bytes.size(), offset + fresh.size()));
    std::copy(fresh.begin(), fresh.end(), bytes.begin() + static_cast<ptrdiff_t>(offset));
  }
  EXPECT_EQ(*file->Size(), bytes.size());
  const auto part = [&](uint64_t offset, uint64_t size) {
    const uint64_t from = std::min<uint64_t>(offset, bytes.size());
    const uint64_t to = std::min<uint64_t>(offset + size, bytes.size());
    return ByteVector(bytes.begin() + static_cast<ptrdiff_t>(from),
                      bytes.begin() + static_cast<ptrdiff_t>(to));
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 12; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 mine(static_cast<uint64_t>(t));
      for (int n = 0; n < 40; ++n) {
        const uint64_t offset = mine() % (bytes.size() + 10'000);
        const uint64_t size = mine() % (n % 3 == 0 ? 2'500'000 : 9'000);
        ByteVector got(size);
        const auto read = file->ReadAt(offset, got);
        ASSERT_TRUE(read.ok());
        got.resize(*read);
        ASSERT_EQ(got, part(offset, size));
        got.clear();
        const auto pieces = file->ReadPieces(offset, size, [&](ByteSpan piece) {
          got.insert(got.end(), piece.begin(), piece.end());
          return absl::OkStatus();
        });
        ASSERT_TRUE(pieces.ok());
        ASSERT_EQ(*pieces, got.size());
        ASSERT_EQ(got, part(offset, size));
        // One that ends early, and leaves the next read alone.
        EXPECT_EQ(file->ReadPieces(0, bytes.size(),
                                   [](ByteSpan) { return absl::CancelledError("enough"); })
                      .status()
                      .code(),
                  absl::StatusCode::kCancelled);
        std::vector<ByteVector> parts;
        std::vector<FileRead> reads;
        for (int i = 0; i < 20; ++i) {
          parts.emplace_back(mine() % 20'000);
          reads.push_back({file.get(), mine() % bytes.size(), {}, 0, {}});
        }
        for (int i = 0; i < 20; ++i) reads[i].out = parts[i];
        fs.ReadBatch(reads);
        for (int i = 0; i < 20; ++i) {
          ASSERT_TRUE(reads[i].status.ok());
          parts[i].resize(reads[i].got);
          ASSERT_EQ(parts[i], part(reads[i].offset, reads[i].out.size()));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(FileSystemTest, ReadsOfEveryKindAgree) {
  const testing::TempDir dir;
  ReadEverywhere(*FileSystem::Posix(), dir.File("a"));
  if (FileSystem::Uring() == nullptr) GTEST_SKIP() << "there is no io_uring here";
  ReadEverywhere(*FileSystem::Uring(), dir.File("b"));
}

TEST(FileSystemTest, TheEnvironmentChoosesPosix) {
  setenv("LATTICEKV_IO", "posix", 1);
  EXPECT_EQ(FileSystem::Default(), FileSystem::Posix());
  unsetenv("LATTICEKV_IO");
  if (FileSystem::Uring() != nullptr) {
    EXPECT_EQ(FileSystem::Default(), FileSystem::Uring());
  }
}

TEST(FileSystemTest, Memory) {
  MemoryFileSystem fs;
  ExerciseFileSystem(fs, "/d");
  EXPECT_EQ(fs.used_bytes(), 0u);
}

TEST(FileSystemTest, FaultsOff) {
  const testing::TempDir dir;
  FaultFileSystem fs(FileSystem::Posix(), 1);
  ExerciseFileSystem(fs, dir.File("x"));
  EXPECT_EQ(fs.faults(), 0u);
}

TEST(MemoryFileSystemTest, CapacityIsHardAndRemovedFilesCountWhileTheyAreOpen) {
  MemoryFileSystem fs(100);
  ASSERT_TRUE(fs.CreateDirectory("/d").ok());
  auto file = *fs.Open("/d/a", OpenMode::kCreate);
  EXPECT_TRUE(file->WriteAt(0, ByteVector(60)).ok());
  EXPECT_EQ(file->WriteAt(60, ByteVector(41)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(fs.Remove("/d/a").ok());
  EXPECT_EQ(fs.used_bytes(), 60u);
  file.reset();
  EXPECT_EQ(fs.used_bytes(), 0u);
}

TEST(MemoryFileSystemTest, PowerLossKeepsWhatWasSyncedAndAnyPartOfTheRest) {
  MemoryFileSystem fs;
  ASSERT_TRUE(fs.CreateDirectory("/d").ok());
  auto file = *fs.Open("/d/a", OpenMode::kCreate);
  ASSERT_TRUE(file->WriteAt(0, ByteVector(2048, std::byte{1})).ok());
  ASSERT_TRUE(file->SyncData().ok());
  ASSERT_TRUE(fs.SyncDirectory("/d").ok());
  ASSERT_TRUE(file->WriteAt(2048, ByteVector(2048, std::byte{2})).ok());
  auto later = *fs.Open("/d/b", OpenMode::kCreate);
  ASSERT_TRUE(later->WriteAt(0, ByteVector(10)).ok());
  ASSERT_TRUE(later->SyncData().ok());  // but not its name
  std::mt19937_64 random(3);
  std::map<std::string, int> seen;
  for (int n = 0; n < 200; ++n) {
    const auto after = fs.AfterPowerLoss(random);
    const ByteVector a = after->Contents("/d/a");
    ASSERT_GE(a.size(), 2048u);
    for (size_t i = 0; i < 2048; ++i) ASSERT_EQ(a[i], std::byte{1});
    const size_t kept = std::count(a.begin() + 2048, a.end(), std::byte{2});
    ++seen[kept == 0 ? "none" : kept == 2048 ? "all" : "torn"];
    ++seen[after->Contents("/d/b").size() == 10 ? "name" : "no name"];
  }
  EXPECT_EQ(seen.size(), 5u);
}

TEST(FaultFileSystemTest, FailsWhenToldAndLeavesShortWrites) {
  MemoryFileSystem memory;
  FaultFileSystem fs(&memory, 5);
  ASSERT_TRUE(fs.CreateDirectory("/d").ok());
  auto file = *fs.Open("/d/a", OpenMode::kCreate);
  fs.Fail(FileOp::kWrite, ENOSPC, 1, 1);
  EXPECT_TRUE(file->WriteAt(0, ByteVector(1000)).ok());
  EXPECT_EQ(file->WriteAt(1000, ByteVector(1000)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GE(*file->Size(), 1000u);
  EXPECT_LE(*file->Size(), 2000u);
  EXPECT_TRUE(file->WriteAt(0, ByteVector(10)).ok());
  fs.Fail(FileOp::kSync, EIO);
  EXPECT_EQ(file->SyncData().code(), absl::StatusCode::kUnavailable);
  fs.MakeReadOnly();
  EXPECT_EQ(fs.Open("/d/b", OpenMode::kCreate).status().code(),
            absl::StatusCode::kPermissionDenied);
  fs.Heal();
  EXPECT_TRUE(file->SyncData().ok());
  fs.FlipReads(1);
  ByteVector got(100);
  EXPECT_EQ(*file->ReadAt(0, got), 100u);
  EXPECT_NE(got, ByteVector(100));
  EXPECT_EQ(fs.faults(), 4u);
}

}  // namespace
}  // namespace latticekv
