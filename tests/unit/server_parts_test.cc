// The server's building blocks without a network: configuration, metadata, admission, sessions.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>

#include "core/base/limits.h"
#include "proto/descriptor_socket.h"
#include "server/block_metadata.h"
#include "server/codec_pool.h"
#include "server/config.h"
#include "server/error_detail.h"
#include "server/read_pool.h"
#include "server/region_leases.h"
#include "server/session_registry.h"
#include "server/upload_admission.h"

namespace latticekv {
namespace {

Digest DigestOf(uint8_t byte) {
  Digest digest;
  digest.fill(std::byte{byte});
  return digest;
}

TEST(ListenAddressTest, Forms) {
  EXPECT_EQ(ParseListenAddress("unix:/run/x.sock")->path, "/run/x.sock");
  EXPECT_EQ(ParseListenAddress("127.0.0.1:0")->port, 0);
  EXPECT_EQ(ParseListenAddress("[::1]:7447")->host, "::1");
  EXPECT_EQ(FormatListenAddress(*ParseListenAddress("[::1]:7447")), "[::1]:7447");
  for (const char* bad : {"", "unix:", "host", ":80", "h:99999", "h:x", "::1:80", "h:-1"}) {
    EXPECT_FALSE(ParseListenAddress(bad).ok()) << bad;
  }
  EXPECT_FALSE(ParseListenAddress("unix:" + std::string(200, 'p')).ok());
}

TEST(ConfigTest, OtherHostsNeedInsecureSaidAloud) {
  ServerConfig config;
  for (const char* loopback : {"127.0.0.1:0", "localhost:0", "[::1]:0", "unix:/x", "127.9.9.9:1"}) {
    config.listen = {loopback};
    EXPECT_TRUE(ValidateConfig(config).ok()) << loopback;
  }
  for (const char* open : {"0.0.0.0:0", "[::]:0", "10.0.0.1:80", "example:80"}) {
    config.listen = {open};
    config.insecure = false;
    EXPECT_EQ(ValidateConfig(config).code(), absl::StatusCode::kInvalidArgument) << open;
    config.insecure = true;
    EXPECT_TRUE(ValidateConfig(config).ok()) << open;
  }
  config.memory_bytes = 10;
  EXPECT_FALSE(ValidateConfig(config).ok());
}

TEST(StaleSocketTest, OnlyADeadSocketIsRemoved) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("lkv_sock_" + std::to_string(getpid()))).string();
  EXPECT_TRUE(RemoveStaleSocket(path).ok());
  std::ofstream(path) << "a file";
  EXPECT_FALSE(RemoveStaleSocket(path).ok());
  std::filesystem::remove(path);
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  EXPECT_EQ(RemoveStaleSocket(path).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(std::filesystem::exists(path));
  close(fd);
  EXPECT_TRUE(RemoveStaleSocket(path).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(MetadataTest, RoundTripAndDamage) {
  BlockMetadata m;
  m.content_hash = DigestOf(1);
  m.parent_hash = DigestOf(2);
  m.name_space = "ns";
  m.fingerprint = DigestOf(3);
  m.start_position = 512;
  m.tokens = 3;
  m.token_ids = {7, 8, 9};
  m.salt = "lora";
  m.raw_bytes = 1234;
  m.preset = PresetId::kFine;
  m.quality = {false, true, 0.1, 0.2};
  m.frame_crc32c = 99;
  m.profile_hash = DigestOf(4);
  m.layout_free_hash = DigestOf(5);
  const ByteVector bytes = SerializeMetadata(m);
  const auto parsed = ParseMetadata(bytes);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(SerializeMetadata(*parsed), bytes);
  EXPECT_EQ(parsed->token_ids, m.token_ids);
  EXPECT_EQ(parsed->quality.value_error, 0.2);
  EXPECT_EQ(parsed->parent_hash, m.parent_hash);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(ParseMetadata(ByteSpan(bytes).first(size)).ok()) << size;
  }
}

TEST(MetadataTest, RanksFollowThePresets) {
  uint32_t last = limits::kMaxQualityRank;
  for (const Preset& preset : AllPresets()) {
    EXPECT_LT(QualityRank(preset.id, {}), last);
    last = QualityRank(preset.id, {});
  }
  // The seed's settings are below them all, more bits above fewer.
  EXPECT_LT(QualityRank(PresetId::kSeed, {kMaxSeedBits, kMaxSeedBits}), last);
  EXPECT_LT(QualityRank(PresetId::kSeed, {3, 2}), QualityRank(PresetId::kSeed, {3, 3}));
  EXPECT_GT(QualityRank(PresetId::kSeed, {1, 1}), 0u);
}

TEST(MetadataTest, DescriptionsOfTheFirstVersionAreRead) {
  BlockMetadata m;
  m.tokens = 16;
  m.evicted_tokens = 3;
  m.layout_free_hash = Digest{};
  ByteVector bytes = SerializeMetadata(m);
  EXPECT_EQ(ParseMetadata(bytes)->evicted_tokens, 3u);
  StoreLe<uint32_t>(bytes.data(), 1);
  bytes.resize(bytes.size() - 4);
  const auto first = ParseMetadata(bytes);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->tokens, 16u);
  EXPECT_EQ(first->evicted_tokens, 0u);
  StoreLe<uint32_t>(bytes.data(), 3);
  EXPECT_FALSE(ParseMetadata(bytes).ok());
}

TEST(ErrorDetailTest, ReasonsTravelInTheStatus) {
  const absl::Status error = LimitError("kMaxThings", "too many; use fewer");
  EXPECT_EQ(DetailOf(error).limit(), "kMaxThings");
  EXPECT_EQ(DetailOf(error).reason(), v1::REASON_LIMIT);
  EXPECT_EQ(DetailOf(WithReason(error, v1::REASON_CORRUPT)).reason(), v1::REASON_LIMIT);
  const absl::Status plain = absl::NotFoundError("gone");
  EXPECT_EQ(DetailOf(plain).message(), "gone");
  EXPECT_EQ(DetailOf(WithReason(plain, v1::REASON_CORRUPT)).reason(), v1::REASON_CORRUPT);
}

TEST(UploadAdmissionTest, FirstComeFirstServedUpToHalf) {
  auto store = *TieredStore::Open({.memory_bytes = 1000});
  ManualClock clock;
  UploadAdmission admission(store.get(), 1000, 100, &clock);
  std::vector<int> granted;
  std::vector<UploadTicket> tickets;
  const auto request = [&](int name, size_t bytes) {
    return admission.Request(bytes,
                             [&granted, &tickets, name](absl::StatusOr<UploadTicket> ticket) {
                               granted.push_back(ticket.ok() ? name : -name);
                               if (ticket.ok()) tickets.push_back(*std::move(ticket));
                             });
  };
  request(1, 300);
  request(2, 300);  // waits: 600 is more than half
  request(3, 100);  // would fit, but comes after 2
  EXPECT_EQ(granted, (std::vector<int>{1}));
  request(4, 501);
  EXPECT_EQ(granted, (std::vector<int>{1, -4}));
  const uint64_t five = request(5, 100);
  admission.Cancel(five);
  std::vector<UploadTicket> first = std::move(tickets);
  tickets.clear();
  first.clear();
  EXPECT_EQ(granted, (std::vector<int>{1, -4, 2, 3}));
  tickets.clear();
  EXPECT_EQ(admission.in_flight_bytes(), 0u);
  EXPECT_EQ(store->Stats().memory_used_bytes, 0u);
}

TEST(UploadAdmissionTest, GivesUpWhenMemoryDoesNotComeBack) {
  auto store = *TieredStore::Open({.memory_bytes = 1000});
  ManualClock clock;
  UploadAdmission admission(store.get(), 1000, 100, &clock);
  auto held = store->Reserve(900);  // a reader's, not an upload's
  ASSERT_TRUE(held.ok());
  std::optional<absl::Status> result;
  admission.Request(300, [&](absl::StatusOr<UploadTicket> t) { result = t.status(); });
  EXPECT_FALSE(result.has_value());
  clock.Advance(101);
  admission.Poke();
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(DetailOf(*result).reason(), v1::REASON_MEMORY_FULL);
}

TEST(CodecPoolTest, BoundedQueue) {
  std::atomic<bool> release{false};
  std::atomic<int> ran{0};
  CodecPool pool(1, 2);
  std::atomic<bool> started{false};
  ASSERT_TRUE(pool.Submit(CodecPool::Kind::kEncode, [&] {
    started = true;
    while (!release) std::this_thread::yield();
    ++ran;
  }));
  while (!started) std::this_thread::yield();
  EXPECT_TRUE(pool.Submit(CodecPool::Kind::kEncode, [&] { ++ran; }));
  EXPECT_TRUE(pool.Submit(CodecPool::Kind::kDecode, [&] { ++ran; }));
  EXPECT_FALSE(pool.Submit(CodecPool::Kind::kDecode, [&] { ++ran; }));
  release = true;
  while (ran < 3) std::this_thread::yield();
}

TEST(CodecPoolTest, EncodesAndDecodesAlternate) {
  using Kind = CodecPool::Kind;
  std::atomic<bool> release{false}, started{false};
  std::atomic<int> ran{0};
  std::vector<int> order;  // of the pool's one thread
  CodecPool pool(1, 8);
  const auto job = [&](int n) {
    return [&, n] {
      order.push_back(n);
      ++ran;
    };
  };
  ASSERT_TRUE(pool.Submit(Kind::kEncode, [&] {
    started = true;
    while (!release) std::this_thread::yield();
  }));
  while (!started) std::this_thread::yield();
  for (const int n : {1, 3, 5}) EXPECT_TRUE(pool.Submit(Kind::kEncode, job(n)));
  for (const int n : {0, 2}) EXPECT_TRUE(pool.Submit(Kind::kDecode, job(n)));
  release = true;
  while (ran < 5) std::this_thread::yield();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 5}));
}

TEST(CodecPoolTest, IdleThreadsShareWork) {
  CodecPool pool(2, 8);
  std::atomic<int> begun{0};
  std::array<std::atomic<int>, 7> calls{};
  // Three calls wait for each other: the caller's thread and the pool's two must make them.
  pool.Share(calls.size(), [&](size_t i) {
    ++begun;
    while (begun < 3) std::this_thread::yield();
    ++calls[i];
  });
  for (const auto& n : calls) EXPECT_EQ(n, 1);
}

TEST(CodecPoolTest, WorkIsDoneByWhoSharesItWhereNoThreadIsIdle) {
  CodecPool pool(1, 8);
  std::atomic<int> calls{0}, elsewhere{0};
  std::atomic<bool> done{false};
  ASSERT_TRUE(pool.Submit(CodecPool::Kind::kEncode, [&] {
    const auto self = std::this_thread::get_id();
    pool.Share(5, [&](size_t) {
      ++calls;
      if (std::this_thread::get_id() != self) ++elsewhere;
    });
    pool.Share(0, [&](size_t) { ++calls; });
    done = true;
  }));
  while (!done) std::this_thread::yield();
  EXPECT_EQ(calls, 5);
  EXPECT_EQ(elsewhere, 0);
}

TEST(CodecPoolTest, ManyShareAtOnce) {
  CodecPool pool(3, 64);
  std::atomic<int> calls{0}, jobs{0};
  for (int j = 0; j < 40; ++j) {
    ASSERT_TRUE(pool.Submit(CodecPool::Kind::kEncode, [&] {
      int mine = 0;  // written by several threads, and read when all are through
      Mutex mutex;
      pool.Share(20, [&](size_t) {
        ++calls;
        MutexLock lock(mutex);
        ++mine;
      });
      EXPECT_EQ(mine, 20);
      ++jobs;
    }));
  }
  while (jobs < 40) std::this_thread::yield();
  EXPECT_EQ(calls, 800);
}

TEST(ReadPoolTest, JobsRunByTurnAndTheQueueIsBounded) {
  std::atomic<bool> release{false}, started{false};
  std::atomic<int> ran{0};
  std::vector<int> order;  // of the pool's one thread
  ReadPool pool(1, 4);
  const auto job = [&](int n) {
    return [&, n] {
      order.push_back(n);
      ++ran;
    };
  };
  ASSERT_TRUE(pool.Submit(0, [&] {
    started = true;
    while (!release) std::this_thread::yield();
  }));
  while (!started) std::this_thread::yield();
  // 32 MB that came first, 32 MB that came 5 ms later in two parts, and 1 MB at last.
  EXPECT_TRUE(pool.Submit(ReadPool::TurnOf(1000, 32'000'000), job(1)));
  EXPECT_TRUE(pool.Submit(ReadPool::TurnOf(1005, 32'000'000), job(2)));
  EXPECT_TRUE(pool.Submit(ReadPool::TurnOf(1005, 32'000'000), job(3)));
  EXPECT_TRUE(pool.Submit(ReadPool::TurnOf(1010, 1'000'000), job(0)));
  EXPECT_FALSE(pool.Submit(0, job(4)));
  release = true;
  while (ran < 4) std::this_thread::yield();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
}

TEST(ReadPoolTest, WaitingJobsAreDroppedAtTheEnd) {
  std::atomic<bool> release{false}, started{false};
  auto pool = std::make_unique<ReadPool>(
      1, SIZE_MAX);  // never full: what Submit refuses below, it refuses as the pool ends
  const auto held = std::make_shared<int>(7);
  ASSERT_TRUE(pool->Submit(0, [&] {
    started = true;
    while (!release) std::this_thread::yield();
  }));
  while (!started) std::this_thread::yield();
  ASSERT_TRUE(pool->Submit(1, [held] { FAIL() << *held; }));
  ReadPool* const ending = pool.release();
  std::thread ends([&] { delete ending; });
  while (ending->Submit(2, [] {})) std::this_thread::yield();
  release = true;
  ends.join();
  EXPECT_EQ(held.use_count(), 1);
}

struct LeasedRegion {
  uint64_t id_ = 0, bytes_ = 0;
  uint64_t id() const { return id_; }
  uint64_t bytes() const { return bytes_; }
};

TEST(RegionLeasesTest, TheSumOfBytesIsBoundedAndAClosedLeaseGivesItsShareBack) {
  RegionLeases<LeasedRegion> leases(100);
  const auto first = std::make_shared<LeasedRegion>(LeasedRegion{7, 60});
  EXPECT_TRUE(leases.Add(first));
  EXPECT_FALSE(leases.Add(std::make_shared<LeasedRegion>(LeasedRegion{8, 41})));
  EXPECT_TRUE(leases.Add(std::make_shared<LeasedRegion>(LeasedRegion{9, 40})));
  EXPECT_EQ(leases.count(), 2u);
  EXPECT_EQ(leases.bytes(), 100u);
  EXPECT_EQ(leases.Find(7), first);
  EXPECT_EQ(leases.Find(8), nullptr);
  EXPECT_EQ(leases.FindIf([](const LeasedRegion& r) { return r.bytes() == 40; })->id(), 9u);
  leases.Close(7);
  leases.Close(7);
  EXPECT_EQ(leases.Find(7), nullptr);
  EXPECT_EQ(first.use_count(), 1);
  EXPECT_EQ(leases.bytes(), 40u);
  EXPECT_TRUE(leases.Add(std::make_shared<LeasedRegion>(LeasedRegion{8, 60})));
}

TEST(RegionLeasesTest, NoMoreThanTheLimit) {
  RegionLeases<LeasedRegion> leases;
  for (uint64_t id = 0; id < limits::kMaxRegions; ++id) {
    ASSERT_TRUE(leases.Add(std::make_shared<LeasedRegion>(LeasedRegion{id, 1})));
  }
  EXPECT_FALSE(leases.Add(std::make_shared<LeasedRegion>(LeasedRegion{limits::kMaxRegions, 1})));
}

TEST(DescriptorSocketTest, OneMessageBringsADescriptor) {
  int sockets[2], pipe_ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets), 0);
  ASSERT_EQ(pipe(pipe_ends), 0);
  ASSERT_TRUE(SendDescriptor(sockets[0], pipe_ends[1]));
  const auto received = ReceiveDescriptor(sockets[1]);
  ASSERT_TRUE(received.has_value());
  EXPECT_NE(*received, pipe_ends[1]);
  EXPECT_EQ(fcntl(*received, F_GETFD), FD_CLOEXEC);
  ASSERT_EQ(write(*received, "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(read(pipe_ends[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'x');
  // A message without one, and the end.
  ASSERT_EQ(send(sockets[0], "x", 1, 0), 1);
  EXPECT_FALSE(ReceiveDescriptor(sockets[1]).has_value());
  close(sockets[0]);
  EXPECT_FALSE(ReceiveDescriptor(sockets[1]).has_value());
  for (const int end : {sockets[1], pipe_ends[0], pipe_ends[1], *received}) close(end);
}

TEST(DescriptorSocketTest, AbstractNamesHaveALength) {
  const size_t room = sizeof(sockaddr_un::sun_path) - 1;
  EXPECT_FALSE(AbstractAddress::Of("").has_value());
  EXPECT_FALSE(AbstractAddress::Of(std::string(room + 1, 'a')).has_value());
  const auto longest = AbstractAddress::Of(std::string(room, 'a'));
  ASSERT_TRUE(longest.has_value());
  EXPECT_EQ(longest->size, sizeof(sockaddr_un));
  EXPECT_EQ(longest->address.sun_path[0], 0);
}

SessionBlock BlockAt(uint64_t start, uint8_t hash, std::optional<uint8_t> parent) {
  SessionBlock block;
  block.key = block.content_hash = DigestOf(hash);
  if (parent) block.parent_hash = DigestOf(*parent);
  block.start_position = start;
  return block;
}

TEST(SessionRegistryTest, ChainsStayChains) {
  ManualClock clock;
  SessionRegistry sessions(&clock);
  const SessionId id{"n", "s"};
  const Digest layout = DigestOf(9);
  // Acknowledgements come in any order.
  ASSERT_TRUE(sessions.Append(id, layout, BlockAt(32, 3, 2), 0).ok());
  ASSERT_TRUE(sessions.Append(id, layout, BlockAt(0, 1, {}), 0).ok());
  ASSERT_TRUE(sessions.Append(id, layout, BlockAt(16, 2, 1), 0).ok());
  ASSERT_TRUE(sessions.Append(id, layout, BlockAt(16, 2, 1), 0).ok());
  EXPECT_EQ(sessions.Get(id)->blocks.size(), 3u);
  EXPECT_EQ(sessions.Get(id)->blocks[2].content_hash, DigestOf(3));
  ASSERT_TRUE(sessions.Append(id, layout, BlockAt(16, 7, 1), 0).ok());
  EXPECT_EQ(sessions.Get(id)->blocks.size(), 2u);  // 3 continued 2
  EXPECT_TRUE(sessions.Holders(DigestOf(3)).empty());
  EXPECT_EQ(sessions.Holders(DigestOf(7)).size(), 1u);
  EXPECT_FALSE(sessions.Append(id, DigestOf(8), BlockAt(32, 5, 7), 0).ok());
}

TEST(SessionRegistryTest, LifetimesAndSharing) {
  ManualClock clock;
  SessionRegistry sessions(&clock);
  const Digest layout = DigestOf(9);
  ASSERT_TRUE(sessions.Append({"n", "a"}, layout, BlockAt(0, 1, {}), 100).ok());
  ASSERT_TRUE(sessions.Append({"n", "b"}, layout, BlockAt(0, 1, {}), 0).ok());
  EXPECT_EQ(sessions.List("", std::nullopt, 10).size(), 2u);
  EXPECT_EQ(sessions.List("m", std::nullopt, 10).size(), 0u);
  EXPECT_EQ(sessions.List("n", SessionId{"n", "a"}, 10).size(), 1u);
  clock.Advance(101);
  EXPECT_FALSE(sessions.Get({"n", "a"}).has_value());
  EXPECT_EQ(sessions.Sweep(), 1u);
  EXPECT_EQ(sessions.size(), 1u);
  const auto exclusive = sessions.Remove({"n", "b"});
  ASSERT_TRUE(exclusive.has_value());
  EXPECT_EQ(exclusive->size(), 1u);
  EXPECT_FALSE(sessions.Remove({"n", "b"}).has_value());
}

}  // namespace
}  // namespace latticekv
