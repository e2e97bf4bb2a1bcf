#include "core/store/journal.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <random>

#include "core/base/crc32c.h"
#include "core/io/fault_file_system.h"
#include "core/io/memory_file_system.h"
#include "tests/support/mutation.h"

namespace latticekv {
namespace {

constexpr char kDirectory[] = "/d";
constexpr char kPath[] = "/d/journal";

// A state of names and values, kept in a journal: "name=value" sets, "name" erases.
class State {
 public:
  absl::Status Open(FileSystem* files) {
    auto journal = Journal::Open(
        files, kDirectory, [this](ByteSpan record) { Apply(std::string(AsText(record))); },
        [this](const Journal::Emit& emit) {
          MutexLock lock(mutex_);
          for (const auto& [name, value] : values_) emit(AsBytes(name + "=" + value));
        });
    if (!journal.ok()) return journal.status();
    journal_ = *std::move(journal);
    return absl::OkStatus();
  }
  void Change(const std::string& record) {
    MutexLock lock(mutex_);
    ApplyLocked(record);
    journal_->Append(AsBytes(record));
  }
  std::map<std::string, std::string> values() const {
    MutexLock lock(mutex_);
    return values_;
  }
  Journal& journal() { return *journal_; }
  void Close() { journal_.reset(); }

 private:
  void Apply(const std::string& record) {
    MutexLock lock(mutex_);
    ApplyLocked(record);
  }
  void ApplyLocked(const std::string& record) {
    const size_t at = record.find('=');
    if (at == std::string::npos) {
      values_.erase(record);
    } else {
      values_[record.substr(0, at)] = record.substr(at + 1);
    }
  }

  mutable Mutex mutex_;
  std::map<std::string, std::string> values_;
  std::unique_ptr<Journal> journal_;
};

class JournalTest : public ::testing::Test {
 protected:
  JournalTest() { EXPECT_TRUE(files_.CreateDirectory(kDirectory).ok()); }
  std::map<std::string, std::string> Reopened(FileSystem* files) {
    State state;
    EXPECT_TRUE(state.Open(files).ok());
    EXPECT_TRUE(state.journal().Stats().health.ok());
    return state.values();
  }
  MemoryFileSystem files_;
};

TEST_F(JournalTest, WhatWasAppendedIsThereAgain) {
  State state;
  ASSERT_TRUE(state.Open(&files_).ok());
  state.Change("a=1");
  state.Change("b=2");
  state.Change("a=3");
  state.Change("b");
  state.Change("empty=");
  ASSERT_TRUE(state.journal().Flush().ok());
  state.Change("late=1");
  state.Close();  // writes what nobody waited for
  const std::map<std::string, std::string> expected = {{"a", "3"}, {"empty", ""}, {"late", "1"}};
  EXPECT_EQ(Reopened(&files_), expected);
}

TEST_F(JournalTest, FlushedRecordsSurvivePowerLoss) {
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 5);
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  State state;
  ASSERT_TRUE(state.Open(&files_).ok());
  for (int n = 0; n < 50; ++n) {
    const std::string name = "n" + std::to_string(n % 7);
    state.Change(name + "=" + std::to_string(n));
    ASSERT_TRUE(state.journal().Flush().ok());
    const auto durable = state.values();
    state.Change("lost" + std::to_string(n) + "=x");  // may or may not be there
    const auto after = files_.AfterPowerLoss(random);
    auto found = Reopened(after.get());
    for (const auto& [key, value] : durable) EXPECT_EQ(found[key], value) << key;
  }
}

TEST_F(JournalTest, DamageCostsTheRecordsThatItHits) {
  {
    State state;
    ASSERT_TRUE(state.Open(&files_).ok());
    for (int n = 0; n < 20; ++n) state.Change("name" + std::to_string(n) + "=value");
    ASSERT_TRUE(state.journal().Flush().ok());
  }
  const ByteVector sound = files_.Contents(kPath);
  for (size_t at = 0; at < sound.size(); ++at) {
    MemoryFileSystem files;
    ASSERT_TRUE(files.CreateDirectory(kDirectory).ok());
    ByteVector bytes = sound;
    bytes[at] ^= std::byte{0x10};
    { ASSERT_TRUE(files.Open(kPath, OpenMode::kCreate).ok()); }
    files.SetContents(kPath, bytes);
    State state;
    ASSERT_TRUE(state.Open(&files).ok()) << at;
    EXPECT_GE(state.values().size(), 19u) << at;
    for (const auto& [name, value] : state.values()) EXPECT_EQ(value, "value") << at;
    EXPECT_GT(state.journal().Stats().damaged_bytes, 0u) << at;
  }
}

TEST_F(JournalTest, ARecordInsideAValueIsNotTakenForOne) {
  {
    State state;
    ASSERT_TRUE(state.Open(&files_).ok());
    state.Change("planted=1");
    ASSERT_TRUE(state.journal().Flush().ok());
  }
  // Another file's bytes, with a sound record in them, as a value; then its own header is damaged.
  const ByteVector planted = files_.Contents(kPath);
  MemoryFileSystem files;
  ASSERT_TRUE(files.CreateDirectory(kDirectory).ok());
  {
    State state;
    ASSERT_TRUE(state.Open(&files).ok());
    ASSERT_TRUE(state.journal().Flush().ok());  // else it is in the new file twice
    state.Change("value=" + std::string(AsText(planted)));
    ASSERT_TRUE(state.journal().Flush().ok());
  }
  ByteVector bytes = files.Contents(kPath);
  bytes[24 + 4] ^= std::byte{1};  // the record's length
  files.SetContents(kPath, bytes);
  EXPECT_TRUE(Reopened(&files).empty());
}

TEST_F(JournalTest, AnUnknownVersionIsRefused) {
  { EXPECT_TRUE(Reopened(&files_).empty()); }
  ByteVector bytes = files_.Contents(kPath);
  bytes[8] = std::byte{2};
  files_.SetContents(kPath, bytes);
  State damaged;  // the checksum is wrong: that is damage, not another version
  EXPECT_TRUE(damaged.Open(&files_).ok());
  damaged.Close();
  bytes = files_.Contents(kPath);
  bytes[8] = std::byte{2};
  StoreLe<uint32_t>(bytes.data() + 20, Crc32c(ByteSpan(bytes).first(20)));
  files_.SetContents(kPath, bytes);
  State state;
  const absl::Status status = state.Open(&files_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

TEST_F(JournalTest, LongFilesAreWrittenAnew) {
  State state;
  ASSERT_TRUE(state.Open(&files_).ok());
  const std::string value(100'000, 'v');
  for (int n = 0; n < 200; ++n) {
    state.Change("one=" + value + std::to_string(n));
    ASSERT_TRUE(state.journal().Flush().ok());
  }
  const JournalStats stats = state.journal().Stats();
  EXPECT_GE(stats.rewrites, 3u);
  EXPECT_LT(stats.bytes, 6u << 20);
  EXPECT_EQ(stats.bytes, files_.Contents(kPath).size());
  state.Close();
  EXPECT_EQ(Reopened(&files_).at("one"), value + "199");
}

TEST_F(JournalTest, AFailedSyncIsToldAndTheDiskIsTriedAgain) {
  for (const FileOp op : {FileOp::kSync, FileOp::kWrite}) {
    FaultFileSystem failing(&files_, 1);
    State state;
    ASSERT_TRUE(state.Open(&failing).ok());
    failing.Fail(op, EIO);
    state.Change("a=1");
    EXPECT_FALSE(state.journal().Flush().ok());
    EXPECT_FALSE(state.journal().Stats().health.ok());
    state.Change("b=2");
    EXPECT_FALSE(state.journal().Flush().ok());
    failing.Heal();
    state.Change("c=3");
    EXPECT_TRUE(state.journal().Flush().ok());
    EXPECT_TRUE(state.journal().Stats().health.ok());
    state.Close();
    EXPECT_EQ(Reopened(&files_).size(), 3u);
  }
}

TEST_F(JournalTest, AnUnwritableDirectoryIsNoReasonNotToStart) {
  {
    State state;
    ASSERT_TRUE(state.Open(&files_).ok());
    state.Change("a=1");
    ASSERT_TRUE(state.journal().Flush().ok());
  }
  FaultFileSystem failing(&files_, 1);
  failing.MakeReadOnly();
  State state;
  ASSERT_TRUE(state.Open(&failing).ok());
  EXPECT_EQ(state.values().size(), 1u);
  EXPECT_FALSE(state.journal().Flush().ok());
  EXPECT_FALSE(state.journal().Stats().health.ok());
}

TEST_F(JournalTest, OpeningWaitsForNoWriteAndDurabilityDoes) {
  {
    State state;
    ASSERT_TRUE(state.Open(&files_).ok());
    state.Change("a=1");
  }
  FaultFileSystem busy(&files_, 1);
  busy.HoldWrites();
  State state;
  ASSERT_TRUE(state.Open(&busy).ok());
  EXPECT_EQ(state.values().size(), 1u);
  state.Change("b=2");
  std::atomic<int> told = 0;
  // Nothing was changed before the first, but what was read is not known to be synced.
  for (int n = 0; n < 2; ++n) {
    state.journal().WhenDurable([&](const absl::Status& status) { told += status.ok() ? 1 : 100; });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(told, 0);
  busy.Heal();
  EXPECT_TRUE(state.journal().Flush().ok());
  EXPECT_EQ(told, 2);
  state.Close();
  EXPECT_EQ(Reopened(&files_).size(), 2u);
}

TEST_F(JournalTest, ADeletedDirectoryIsNoticedAndMadeUpFor) {
  State state;
  ASSERT_TRUE(state.Open(&files_).ok());
  state.Change("a=1");
  ASSERT_TRUE(state.journal().Flush().ok());
  files_.RemoveDirectory(kDirectory);
  state.Change("b=2");
  EXPECT_FALSE(state.journal().Flush().ok());
  ASSERT_TRUE(files_.CreateDirectory(kDirectory).ok());
  EXPECT_TRUE(state.journal().Flush().ok());
  state.Close();
  EXPECT_EQ(Reopened(&files_).size(), 2u);
}

}  // namespace
}  // namespace latticekv
