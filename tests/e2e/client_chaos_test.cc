// Real daemons and real client processes: clients that vanish in the middle, a daemon that is
// killed under its workers. `client_chaos_test --vanish ADDRESS CLIENTS` is such a client process,
// and with --vanish-encoding one that dies while the daemon reads its shared memory. The daemon is
// killed LATTICEKV_CHAOS_KILLS times (3).
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/src/get_window.h"
#include "client/src/proto_convert.h"
#include "client/src/region_client.h"
#include "client/src/stub.h"
#include "core/layout/chain_hash.h"
#include "latticekv/client.h"
#include "tests/support/daemon_process.h"

namespace latticekv {
namespace {

using testing::DaemonProcess;
using testing::Eventually;
using testing::Sleep;

constexpr uint32_t kChunk = 16;
constexpr int kVanishing = 1000, kPerProcess = 100;

Layout TestLayout() {
  return MakeUniformLayout("chaos", 2, 1, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
}

// The tokens and planes of one worker's put.
struct Sequence {
  Sequence(uint32_t worker, uint32_t number) : tokens(2 * kChunk, 5) {
    tokens[0] = worker;
    tokens[1] = number;
    const Layout layout = TestLayout();
    data.resize(layout.token_bytes() * tokens.size(),
                static_cast<std::byte>(0x20 + (31 * worker + number) % 32));
    std::byte* at = data.data();
    for (const LayerSpec& layer : layout.layers) {
      auto& views = planes.emplace_back();
      for (const PlaneSpec& plane : layer.planes) {
        views.push_back(ContiguousPlane(plane, static_cast<const std::byte*>(at)));
        at += plane.token_bytes() * tokens.size();
      }
    }
  }
  std::vector<uint32_t> tokens;
  ByteVector data;
  std::vector<std::vector<PlaneView>> planes;
};

// A client process: `clients` channels, each with regions of shared memory, an upload of which half
// has come and a get of which one message was read; then it is killed.
int Vanish(const std::string& address, int clients) {
  std::vector<std::shared_ptr<Stub>> stubs;
  std::vector<std::unique_ptr<RegionClient>> regions;
  std::vector<std::unique_ptr<PutStream>> streams;
  std::vector<std::unique_ptr<ReadStream<v1::GetBlocksResponse>>> gets;
  std::vector<std::unique_ptr<GetWindow>> windows;
  const Layout layout = TestLayout();
  for (int i = 0; i < clients; ++i) {
    auto stub = MakeGrpcStub(address, {});
    if (!stub.ok()) return 1;
    stubs.push_back(*stub);
    regions.push_back(std::make_unique<RegionClient>(*stubs.back(), 1 << 20));
    const auto region = regions.back()->Region();
    if (region != nullptr) std::memset(region->at(0), 1, region->bytes());
    const Sequence sequence(static_cast<uint32_t>(getpid()), static_cast<uint32_t>(i));
    v1::PutBlocksRequest message;
    message.mutable_open()->set_fingerprint(BytesString(LayoutFingerprint(layout)));
    auto stream = stubs.back()->PutBlocks();
    if (!stream->Write(message)) return 1;
    v1::BlockHeader& header = *message.mutable_header();
    const auto hashes = ChainHashes(LayoutFingerprint(layout), sequence.tokens, kChunk, "");
    header.set_content_hash(BytesString(hashes[0]));
    header.mutable_token_ids()->Add(sequence.tokens.begin(), sequence.tokens.begin() + kChunk);
    header.set_payload_bytes(layout.token_bytes() * kChunk);
    v1::PutBlocksResponse answer;
    if (!stream->Write(message) || !stream->Read(answer) || !answer.has_credit()) return 1;
    const auto half = std::make_shared<std::string>(layout.token_bytes() * kChunk / 2, 'x');
    if (!stream->WritePart(0, 0, 0x1234, half)) return 1;  // half of them with a wrong checksum too
    streams.push_back(std::move(stream));

    v1::GetBlocksRequest get;
    get.set_fingerprint(BytesString(LayoutFingerprint(layout)));
    get.add_content_hashes(
        BytesString(ChainHashes(LayoutFingerprint(layout), Sequence(0, 0).tokens, kChunk, "")[0]));
    regions.push_back(std::make_unique<RegionClient>(*stubs.back(), 1 << 20));
    windows.push_back(GetWindow::Open(regions.back().get(), layout.token_bytes() * kChunk));
    if (windows.back()) windows.back()->Describe(get.mutable_window());
    gets.push_back(stubs.back()->GetBlocks(get));
    v1::GetBlocksResponse first;
    if (!gets.back()->Read(first) || first.open().has_miss()) return 1;
  }
  kill(getpid(), SIGKILL);
  return 1;
}

// A client process that is killed as soon as it has named payloads in its shared memory.
int VanishEncoding(const std::string& address, int clients) {
  const Layout layout = TestLayout();
  std::vector<std::shared_ptr<Stub>> stubs;
  std::vector<std::unique_ptr<RegionClient>> regions;
  std::vector<std::unique_ptr<PutStream>> streams;
  for (int i = 0; i < clients; ++i) {
    auto stub = MakeGrpcStub(address, {});
    if (!stub.ok()) return 1;
    stubs.push_back(*stub);
    regions.push_back(std::make_unique<RegionClient>(*stubs.back(), 1 << 20));
    std::shared_ptr<ClientRegion> region;
    if (!Eventually([&] { return (region = regions.back()->Region()) != nullptr; })) return 1;
    const Sequence sequence(static_cast<uint32_t>(getpid()), static_cast<uint32_t>(i));
    std::memcpy(region->at(0), sequence.data.data(), sequence.data.size());
    streams.push_back(stubs.back()->PutBlocks());
    v1::PutBlocksRequest message;
    message.mutable_open()->set_fingerprint(BytesString(LayoutFingerprint(layout)));
    if (!streams.back()->Write(message)) return 1;
    const auto hashes = ChainHashes(LayoutFingerprint(layout), sequence.tokens, kChunk, "");
    v1::BlockHeader& header = *message.mutable_header();
    header.set_content_hash(BytesString(hashes[0]));
    header.mutable_token_ids()->Add(sequence.tokens.begin(), sequence.tokens.begin() + kChunk);
    header.set_payload_bytes(layout.token_bytes() * kChunk);
    v1::PutBlocksResponse answer;
    if (!streams.back()->Write(message) || !streams.back()->Read(answer)) return 1;
    if (!answer.has_credit()) return 1;
    message.mutable_region_part()->set_region_id(region->id());
    if (!streams.back()->Write(message)) return 1;
  }
  kill(getpid(), SIGKILL);
  return 1;
}

TEST(ClientChaosTest, ClientsThatVanishWhileTheirMemoryIsReadLeakNothing) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.Start());
  auto client = Connect(daemon.address());
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE(client->RegisterLayout({.layout = TestLayout(), .chunk_tokens = kChunk}).ok());
  for (int i = 0; i < 5; ++i) {
    auto process = ChildProcess::Start("/proc/self/exe",
                                       {"--vanish-encoding", daemon.address(), "20"}, "/dev/null");
    ASSERT_TRUE(process.ok());
    const int status = (*process)->Wait();
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }
  EXPECT_TRUE(Eventually([&] {
    const auto stats = client->Stats();
    return stats.ok() && stats->open_streams == 0 && daemon.Regions() == 0;
  })) << daemon.Regions();
  // What was stored of it is sound.
  const auto verified = client->Verify();
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_EQ(verified->blocks_corrupt, 0u);
}

TEST(ClientChaosTest, AThousandClientsThatVanishLeakNothing) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.Start());
  auto client = Connect(daemon.address());
  ASSERT_TRUE(client.ok());
  auto layout = client->RegisterLayout({.layout = TestLayout(), .chunk_tokens = kChunk});
  ASSERT_TRUE(layout.ok()) << layout.status();
  const auto put = [&](uint32_t number) {
    const Sequence sequence(0, number);
    PutRequest request;
    request.layout = *layout;
    request.tokens = sequence.tokens;
    request.planes = sequence.planes;
    auto result = client->PutPrefix(request);
    return result.ok() && result->status().ok();
  };
  const auto vanish = [&](int clients) {
    auto process = ChildProcess::Start(
        "/proc/self/exe", {"--vanish", daemon.address(), absl::StrCat(clients)}, "/dev/null");
    ASSERT_TRUE(process.ok());
    const int status = (*process)->Wait();
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  };
  ASSERT_TRUE(put(0));
  // Once before, so that what the daemon keeps for good (threads, arenas) is there already.
  vanish(kPerProcess);
  const auto quiet = [&] {
    const auto stats = client->Stats();
    return stats.ok() && stats->open_streams == 0 && daemon.Regions() == 1;
  };
  ASSERT_TRUE(Eventually(quiet)) << daemon.Regions();
  const size_t memory = client->Stats()->memory_used_bytes;
  const size_t descriptors = daemon.Descriptors(), resident = daemon.ResidentBytes();

  for (int done = 0; done < kVanishing; done += kPerProcess) vanish(kPerProcess);
  ASSERT_TRUE(Eventually(quiet)) << daemon.Regions();
  EXPECT_TRUE(Eventually([&] { return daemon.Descriptors() <= descriptors; }))
      << daemon.Descriptors() << " descriptors, " << descriptors << " before";
  EXPECT_TRUE(Eventually([&] { return client->Stats()->memory_used_bytes == memory; }))
      << client->Stats()->memory_used_bytes << " bytes, " << memory << " before";
  EXPECT_LT(daemon.ResidentBytes(), resident + (16u << 20));
  std::printf(
      "%d clients vanished: %zu descriptors (%zu before), %.1f MiB resident (%.1f before)\n",
      kVanishing, daemon.Descriptors(), descriptors,
      static_cast<double>(daemon.ResidentBytes()) / (1 << 20),
      static_cast<double>(resident) / (1 << 20));
  EXPECT_TRUE(put(1));  // and it works
}

// Waits as long as nothing but a connection that is back can have ended the wait in time.
class LongBackoff : public BackoffPolicy {
 public:
  std::unique_ptr<BackoffPolicy> Clone() const override { return std::make_unique<LongBackoff>(); }
  int64_t NextDelayMs() override { return 120'000; }
};

TEST(ClientChaosTest, ARetryGoesOnAsSoonAsTheDaemonIsBack) {
  for (const uint32_t connections : {1u, 3u}) {
    DaemonProcess daemon;
    ASSERT_TRUE(daemon.Start());
    ClientOptions options;
    options.connections = connections;
    options.retry_policy = std::make_shared<LimitedTimeRetryPolicy>(300'000);
    options.backoff_policy = std::make_shared<LongBackoff>();
    auto client = Connect(daemon.address(), options);
    ASSERT_TRUE(client.ok());
    auto layout = client->RegisterLayout({.layout = TestLayout(), .chunk_tokens = kChunk});
    ASSERT_TRUE(layout.ok()) << layout.status();
    daemon.Kill();
    const Sequence sequence(7, 7);
    PutRequest request;
    request.layout = *layout;
    request.tokens = sequence.tokens;
    request.planes = sequence.planes;
    const auto start = std::chrono::steady_clock::now();
    auto putting = client->AsyncPutPrefix(request);
    Sleep(1'000);  // it has failed once by then, and waits
    EXPECT_TRUE(daemon.Start());
    const auto put = putting.get();
    const auto took = std::chrono::steady_clock::now() - start;
    ASSERT_TRUE(put.ok()) << put.status();
    EXPECT_TRUE(put->status().ok()) << put->status();
    EXPECT_LT(took, std::chrono::seconds(60));
  }
}

uint32_t Kills() {
  const char* text = std::getenv("LATTICEKV_CHAOS_KILLS");
  return text == nullptr ? 3 : static_cast<uint32_t>(std::max(1, std::atoi(text)));
}

// Whether the sequence is stored, and what is read is what was put.
void ExpectWhole(Client& client, const RegisteredLayout& layout, const Sequence& sequence) {
  auto found = client.Lookup({.layout = layout, .tokens = sequence.tokens});
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->usable_tokens, sequence.tokens.size()) << found->miss;
  GetRequest get;
  get.layout = layout;
  for (const LookupBlock& block : found->blocks) {
    get.content_hashes.push_back(block.block.content_hash);
  }
  const auto prefix = client.GetPrefix(get);
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  ASSERT_TRUE(prefix->miss.ok()) << prefix->miss;
  const ByteVector expected(
      sequence.data.begin(),
      sequence.data.begin() + static_cast<std::ptrdiff_t>(prefix->planes[0][0].size()));
  for (const auto& planes : prefix->planes) {
    for (const ByteVector& plane : planes) EXPECT_TRUE(plane == expected);
  }
}

// 16 workers put and look up while the daemon is killed and started again under them.
void KillAndRestart(DaemonProcess& daemon, const std::vector<std::string>& flags, bool durable) {
  constexpr uint32_t kWorkers = 16;
  const uint32_t kills = Kills(), puts = 10 * kills;
  std::atomic<uint32_t> finished{0}, done{0};
  std::array<uint32_t, kWorkers> acknowledged{};  // of each worker: its first puts, in order
  std::vector<std::thread> workers;
  for (uint32_t w = 0; w < kWorkers; ++w) {
    workers.emplace_back([&, w] {
      ClientOptions options;
      options.shared_memory_bytes = 1 << 20;
      options.retry_policy = std::make_shared<LimitedTimeRetryPolicy>(60'000);
      auto client = Connect(daemon.address(), options);
      ASSERT_TRUE(client.ok());
      auto layout = client->RegisterLayout({.layout = TestLayout(), .chunk_tokens = kChunk});
      ASSERT_TRUE(layout.ok()) << layout.status();
      for (uint32_t i = 0; i < puts; ++i) {
        const Sequence sequence(w, i);
        PutRequest request;
        request.layout = *layout;
        request.tokens = sequence.tokens;
        request.planes = sequence.planes;
        request.durable = durable;
        request.preset = PresetId::kExact;
        auto put = client->PutPrefix(request);
        ASSERT_TRUE(put.ok()) << put.status();
        ASSERT_TRUE(put->status().ok()) << put->status();
        acknowledged[w] = i + 1;
        ASSERT_TRUE(client->Lookup({.layout = *layout, .tokens = sequence.tokens}).ok());
        ++done;
        Sleep(10);
      }
      ++finished;
    });
  }
  for (uint32_t i = 1; i <= kills; ++i) {
    const uint32_t enough = kWorkers * puts * i / (kills + 1);
    while (done < enough && !::testing::Test::HasFailure()) Sleep(1);
    daemon.Kill();
    Sleep(50);
    EXPECT_TRUE(daemon.Start(flags));
  }
  for (std::thread& worker : workers) worker.join();
  EXPECT_EQ(finished, kWorkers);
  if (!durable) return;
  // Nothing that was acknowledged as durable is lost, not even to one more kill.
  daemon.Kill();
  ASSERT_TRUE(daemon.Start(flags));
  auto client = Connect(daemon.address());
  auto layout = client->RegisterLayout({.layout = TestLayout(), .chunk_tokens = kChunk});
  ASSERT_TRUE(layout.ok()) << layout.status();
  uint32_t checked = 0;
  for (uint32_t w = 0; w < kWorkers; ++w) {
    for (uint32_t i = 0; i < acknowledged[w]; ++i, ++checked) {
      SCOPED_TRACE(absl::StrCat("worker ", w, " put ", i));
      ExpectWhole(*client, *layout, Sequence(w, i));
    }
  }
  std::printf("%u kills, %u workers: %u finished; %u puts acknowledged as durable and read back\n",
              kills + 1, kWorkers, finished.load(), checked);
}

TEST(ClientChaosTest, EveryWorkerFinishesWhenTheDaemonIsKilledUnderThem) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.Start());
  KillAndRestart(daemon, {}, false);
}

TEST(ClientChaosTest, NoDurableBlockIsLostWhenTheDaemonIsKilled) {
  DaemonProcess daemon;
  const std::vector<std::string> flags = {"--disk_dir=" + daemon.disk(), "--disk_bytes=268435456"};
  std::filesystem::create_directory(daemon.disk());
  if (!daemon.Start(flags)) GTEST_SKIP() << "this daemon has no disk tier";
  KillAndRestart(daemon, flags, true);
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "--vanish") == 0) {
    return latticekv::Vanish(argv[2], std::atoi(argv[3]));
  }
  if (argc == 4 && std::strcmp(argv[1], "--vanish-encoding") == 0) {
    return latticekv::VanishEncoding(argv[2], std::atoi(argv[3]));
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
