// The daemon's state over a restart: layouts, profiles, namespaces and sessions through a journal.
#include "server/state_records.h"

#include <gtest/gtest.h>

#include <map>

#include "core/base/limits.h"
#include "core/io/memory_file_system.h"
#include "server/layout_registry.h"
#include "tests/support/mutation.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

Digest DigestOf(uint8_t byte) {
  Digest digest;
  digest.fill(std::byte{byte});
  return digest;
}

// The registries of one daemon and their journal.
struct Daemon {
  explicit Daemon(FileSystem* files, const Clock* clock) : sessions(clock) {
    journal = *Journal::Open(
        files, "/d",
        [this](ByteSpan record) { damaged += !ApplyRecord(record, layouts, sessions).ok(); },
        [this](const Journal::Emit& emit) {
          layouts.EmitAll(emit);
          sessions.EmitAll(emit);
        });
    layouts.RecordIn(journal.get());
    sessions.RecordIn(journal.get());
  }
  ~Daemon() { journal.reset(); }
  LayoutRegistry layouts;
  SessionRegistry sessions;
  size_t damaged = 0;
  std::unique_ptr<Journal> journal;
};

// Everything that the records say, to compare two states.
std::vector<ByteVector> AllRecords(const Daemon& daemon) {
  std::vector<ByteVector> out;
  const auto keep = [&](ByteSpan record) { out.emplace_back(record.begin(), record.end()); };
  daemon.layouts.EmitAll(keep);
  daemon.sessions.EmitAll(keep);
  return out;
}

SessionBlock BlockAt(uint32_t n, uint8_t branch) {
  SessionBlock block;
  block.content_hash = DigestOf(static_cast<uint8_t>(n * 8 + branch));
  block.key = DigestOf(static_cast<uint8_t>(n * 8 + branch + 128));
  if (n > 0) block.parent_hash = DigestOf(static_cast<uint8_t>((n - 1) * 8 + branch));
  block.start_position = n * 256;
  block.tokens = 256;
  block.raw_bytes = 4096;
  return block;
}

class StateRecordsTest : public ::testing::Test {
 protected:
  StateRecordsTest() { EXPECT_TRUE(files_.CreateDirectory("/d").ok()); }
  MemoryFileSystem files_;
  ManualClock clock_;
};

TEST_F(StateRecordsTest, LayoutsAndProfilesAreThereAgain) {
  const Layout one =
      MakeUniformLayout("one", 2, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
  const Layout two =
      MakeUniformLayout("two", 1, 1, 64, DType::kBF16, {RopeStyle::kNeox, 64, 10000.0});
  const ModelProfile first = testing::MakeSampleProfile(one, 1, true);
  const ModelProfile second = testing::MakeSampleProfile(one, 2, true);
  {
    Daemon daemon(&files_, &clock_);
    ASSERT_TRUE(daemon.layouts.Register("a", one, SerializeProfile(first), 64).ok());
    ASSERT_TRUE(daemon.layouts.Register("a", one, SerializeProfile(second), 0).ok());
    ASSERT_TRUE(daemon.layouts.Register("a", one, SerializeProfile(first), 0).ok());
    ASSERT_TRUE(daemon.layouts.Register("b", two, {}, 0).ok());
  }
  for (int restart = 0; restart < 2; ++restart) {
    const Daemon daemon(&files_, &clock_);
    EXPECT_EQ(daemon.damaged, 0u);
    const Digest fingerprint = LayoutFingerprint(one);
    const auto in_use = daemon.layouts.Find("a", fingerprint);
    ASSERT_TRUE(in_use.ok()) << in_use.status();
    EXPECT_EQ(*in_use->layout, one);
    EXPECT_EQ(in_use->chunk_tokens, 64u);
    EXPECT_EQ(in_use->profile_hash, ProfileHash(first));  // registered last
    EXPECT_EQ(*in_use->profile, first);
    EXPECT_NE(daemon.layouts.FindProfile(fingerprint, ProfileHash(second)), nullptr);
    EXPECT_FALSE(daemon.layouts.Find("b", fingerprint).ok());
    EXPECT_EQ(daemon.layouts.Find("b", LayoutFingerprint(two))->chunk_tokens, 256u);
  }
}

TEST_F(StateRecordsTest, LearntProfilesAreThereAgainUntilTheyAreGone) {
  const Layout layout =
      MakeUniformLayout("one", 2, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
  const Digest fingerprint = LayoutFingerprint(layout);
  const ModelProfile energy = testing::MakeSampleProfile(layout, 1, false);
  std::vector<ModelProfile> learnt;
  for (uint64_t seed = 2; seed < 8; ++seed) {
    learnt.push_back(testing::MakeSampleProfile(layout, seed, true));
  }
  const auto never_used = [](const Digest&, const Digest&) { return uint64_t{0}; };
  {
    Daemon daemon(&files_, &clock_);
    LayoutRegistry& layouts = daemon.layouts;
    ASSERT_TRUE(layouts.Register("a", layout, SerializeProfile(energy), 64).ok());
    const auto base = layouts.FindLearnable(fingerprint)->registered;
    ASSERT_NE(base, nullptr);
    EXPECT_FALSE(
        layouts.AddLearnt(fingerprint, nullptr, learnt[0]).ok());  // not what is registered
    for (uint32_t v = 0; v < limits::kMaxLearntProfiles; ++v) {
      const auto version = layouts.AddLearnt(fingerprint, base.get(), learnt[v]);
      ASSERT_TRUE(version.ok()) << version.status();
      EXPECT_EQ(*version, v + 1);
    }
    // No more while blocks refer to all of them.
    EXPECT_TRUE(
        absl::IsResourceExhausted(layouts.AddLearnt(fingerprint, base.get(), learnt[4]).status()));
    const auto one_unused = [&](const Digest&, const Digest& hash) {
      return uint64_t{hash != ProfileHash(learnt[1])};
    };
    {
      const auto held = layouts.FindProfile(fingerprint, ProfileHash(learnt[1]));
      EXPECT_EQ(layouts.DropUnusedLearnt(one_unused), 0u);  // a reader has it
    }
    EXPECT_EQ(layouts.DropUnusedLearnt(one_unused), 1u);
    EXPECT_EQ(*layouts.AddLearnt(fingerprint, base.get(), learnt[4]), 5u);
    // The same registration again changes nothing.
    EXPECT_EQ(layouts.Register("a", layout, SerializeProfile(energy), 0)->profile_hash,
              ProfileHash(learnt[4]));
  }
  for (int restart = 0; restart < 2; ++restart) {
    const Daemon daemon(&files_, &clock_);
    EXPECT_EQ(daemon.damaged, 0u);
    EXPECT_EQ(daemon.layouts.Find("a", fingerprint)->profile_hash, ProfileHash(learnt[4]));
    EXPECT_EQ(daemon.layouts.FindProfile(fingerprint, ProfileHash(learnt[1])), nullptr);
    EXPECT_EQ(*daemon.layouts.FindProfile(fingerprint, ProfileHash(learnt[0])), learnt[0]);
    const auto learnable = daemon.layouts.FindLearnable(fingerprint);
    ASSERT_TRUE(learnable.has_value());
    EXPECT_EQ(*learnable->registered, energy);
    EXPECT_EQ(*learnable->learnt, learnt[4]);
    std::map<uint32_t, int> versions;
    const std::vector<KnownLayout> known = daemon.layouts.List();
    for (const auto& [hash, kept] : known[0].profiles) ++versions[kept.version];
    EXPECT_EQ(versions, (std::map<uint32_t, int>{{0, 1}, {1, 1}, {3, 1}, {4, 1}, {5, 1}}));
  }
  {
    Daemon daemon(&files_, &clock_);
    EXPECT_EQ(daemon.layouts.DropUnusedLearnt(never_used), 3u);  // all but the one in use
    // A registered profile with statistics takes over, and nothing more is learnt.
    ASSERT_TRUE(daemon.layouts.Register("a", layout, SerializeProfile(learnt[5]), 0).ok());
    EXPECT_FALSE(daemon.layouts.FindLearnable(fingerprint).has_value());
    EXPECT_EQ(daemon.layouts.DropUnusedLearnt(never_used), 1u);
  }
  const Daemon daemon(&files_, &clock_);
  EXPECT_EQ(daemon.layouts.Find("a", fingerprint)->profile_hash, ProfileHash(learnt[5]));
  EXPECT_EQ(daemon.layouts.List()[0].profiles.size(), 2u);
}

TEST_F(StateRecordsTest, SessionsAreThereAgainWithChainsAndLifetimes) {
  const SessionId chat{"default", "chat"}, gone{"default", "gone"}, brief{"other", "brief"};
  {
    Daemon daemon(&files_, &clock_);
    for (uint32_t n = 0; n < 4; ++n) {
      ASSERT_TRUE(daemon.sessions.Append(chat, DigestOf(1), BlockAt(n, 0), 0).ok());
    }
    // Another continuation from block 1: blocks 2 and 3 of the old one leave.
    ASSERT_TRUE(daemon.sessions.Append(chat, DigestOf(1), BlockAt(1, 1), 0).ok());
    ASSERT_TRUE(daemon.sessions.Append(gone, DigestOf(1), BlockAt(0, 0), 0).ok());
    ASSERT_TRUE(daemon.sessions.Remove(gone).has_value());
    ASSERT_TRUE(daemon.sessions.Append(brief, DigestOf(2), BlockAt(0, 2), 60'000).ok());
    ASSERT_TRUE(daemon.sessions.SetTtl(brief, 30'000));
  }
  {
    Daemon daemon(&files_, &clock_);
    EXPECT_EQ(daemon.damaged, 0u);
    const auto session = daemon.sessions.Get(chat);
    ASSERT_TRUE(session.has_value());
    EXPECT_EQ(session->fingerprint, DigestOf(1));
    ASSERT_EQ(session->blocks.size(), 2u);
    EXPECT_EQ(session->blocks[1].key, BlockAt(1, 1).key);
    EXPECT_EQ(session->blocks[1].parent_hash, BlockAt(1, 1).parent_hash);
    EXPECT_EQ(daemon.sessions.Holders(BlockAt(0, 0).key).size(), 1u);
    EXPECT_TRUE(daemon.sessions.Holders(BlockAt(2, 0).key).empty());
    EXPECT_FALSE(daemon.sessions.Get(gone).has_value());
    EXPECT_TRUE(daemon.sessions.Get(brief).has_value());
    clock_.Advance(30'001);
    EXPECT_FALSE(daemon.sessions.Get(brief).has_value());
    EXPECT_EQ(daemon.sessions.Sweep(), 1u);
    // Blocks of `chat` are not stored any more.
    EXPECT_EQ(daemon.sessions.DropEmpty([](const BlockKey&) { return false; }), 1u);
  }
  const Daemon daemon(&files_, &clock_);
  EXPECT_EQ(daemon.sessions.size(), 0u);
}

TEST_F(StateRecordsTest, RandomChangesAreThereAgain) {
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 3);
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  testing::Random random(seed);
  for (int round = 0; round < 20; ++round) {
    std::vector<ByteVector> before;
    {
      Daemon daemon(&files_, &clock_);
      for (int step = 0; step < 200; ++step) {
        const SessionId id{"n" + std::to_string(random.Below(2)),
                           "s" + std::to_string(random.Below(4))};
        const auto branch = static_cast<uint8_t>(random.Below(3));
        switch (random.Below(8)) {
          case 0:
            daemon.sessions.Remove(id);
            break;
          case 1:
            daemon.sessions.SetTtl(id, 1 + random.Below(200));
            break;
          case 2:
            clock_.Advance(random.Below(60));
            daemon.sessions.Sweep();
            break;
          case 3:
            if (random.Below(4) == 0) daemon.journal->Flush().IgnoreError();
            break;
          default:
            ASSERT_TRUE(daemon.sessions
                            .Append(id, DigestOf(9), BlockAt(random.Below(6), branch),
                                    random.Below(3) == 0 ? 1 + random.Below(100) : 0)
                            .ok());
        }
      }
      before = AllRecords(daemon);
    }
    // `last used` is as of the last record that says it.
    const Daemon daemon(&files_, &clock_);
    EXPECT_EQ(daemon.damaged, 0u);
    std::vector<ByteVector> after = AllRecords(daemon);
    ASSERT_EQ(after.size(), before.size());
    for (size_t i = 0; i < before.size(); ++i) {
      if (before[i][0] == std::byte{5}) continue;
      EXPECT_EQ(after[i], before[i]);
    }
  }
}

TEST_F(StateRecordsTest, MalformedRecordsAreRefused) {
  const uint64_t seed = testing::FromEnvironment("LATTICEKV_SEED", 4);
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  testing::Random random(seed);
  Daemon daemon(&files_, &clock_);
  ASSERT_TRUE(daemon.sessions.Append({"default", "chat"}, DigestOf(1), BlockAt(0, 0), 1000).ok());
  ASSERT_TRUE(
      daemon.layouts
          .Register(
              "a", MakeUniformLayout("one", 1, 1, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0}),
              {}, 64)
          .ok());
  const std::vector<ByteVector> records = AllRecords(daemon);
  LayoutRegistry layouts;
  SessionRegistry sessions(&clock_);
  for (int n = 0; n < 20'000; ++n) {
    ByteVector record = records[random.Below(static_cast<uint32_t>(records.size()))];
    record.resize(random.Below(static_cast<uint32_t>(record.size())));
    EXPECT_FALSE(ApplyRecord(record, layouts, sessions).ok());
    for (int flips = 0; flips < 3 && !record.empty(); ++flips) {
      record[random.Below(static_cast<uint32_t>(record.size()))] =
          static_cast<std::byte>(random.Next());
    }
    ApplyRecord(record, layouts, sessions).IgnoreError();  // must not crash
  }
}

}  // namespace
}  // namespace latticekv
