// The seam's implementations agree, and the test twins do what they say.
#include "core/io/file_system.h"

#include <errno.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

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
