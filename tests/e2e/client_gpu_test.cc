// GPU memory between the client library and a daemon of its own process, whose device is a fake:
// blocks by way of tables, workers that stop or die in the middle, a daemon that starts anew.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "latticekv/client.h"
#include "latticekv/error_detail.h"
#include "tests/support/daemon_process.h"
#include "tests/support/fake_gpu.h"
#include "tests/support/paged_tokens.h"
#include "tests/support/sample_chunk.h"

namespace latticekv {
namespace {

constexpr uint32_t kChunk = 16, kTokens = 40;  // two chunks and a tail
constexpr uint32_t kBlocks = 12, kBlockTokens = 5;
constexpr std::byte kEmpty{0x5A};
constexpr char kWorkerFlag[] = "--worker";

Layout TestLayout() {
  return MakeUniformLayout("gpu test", 3, 2, 64, DType::kF16, {RopeStyle::kNeox, 64, 10000.0});
}

std::vector<uint32_t> Ids(uint32_t first) {
  std::vector<uint32_t> out(kTokens);
  for (uint32_t t = 0; t < kTokens; ++t) out[t] = first + t;
  return out;
}

// A program that talks over one socket, its stdin and stdout.
class PipedProgram {
 public:
  PipedProgram(const std::string& path, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), path);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) abort();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    if (posix_spawn(&pid_, path.c_str(), &actions, nullptr, argv.data(), environ) != 0) abort();
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    socket_ = ends[0];
  }
  // Ends it as if it had crashed.
  ~PipedProgram() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(socket_);
  }
  // The next line; empty when it says no more.
  std::string ReadLine() {
    std::string out;
    char c = 0;
    while (read(socket_, &c, 1) == 1 && c != '\n') out += c;
    return out;
  }
  // Its answer to a command.
  size_t Ask(const std::string& command) {
    const std::string line = command + "\n";
    EXPECT_EQ(write(socket_, line.data(), line.size()), static_cast<ssize_t>(line.size()));
    return std::stoul(ReadLine());
  }

 private:
  pid_t pid_ = -1;
  int socket_ = -1;
};

// A worker's paged cache in memory that the fake device takes for its own.
class Cache {
 public:
  Cache(const RegisteredLayout& layout, GpuCacheOrder order)
      : memory_(layout.layout->token_bytes() * kBlocks * kBlockTokens) {
    std::fill(memory_.bytes().begin(), memory_.bytes().end(), kEmpty);
    GpuMemory memory;
    std::memcpy(memory.ipc_handle.data(), memory_.handle().data(), kCudaIpcHandleBytes);
    memory.bytes = memory_.bytes().size();
    spec_ = PagedGpuCache(layout, {memory}, kBlocks, kBlockTokens, order);
  }
  const GpuCacheSpec& spec() const { return spec_; }
  std::vector<std::byte> image() const { return {memory_.bytes().begin(), memory_.bytes().end()}; }
  // The tokens of a sequence, contiguous.
  void Lay(ByteSpan raw, const std::vector<uint32_t>& table) {
    testing::LayTokens(spec_, table, 0, raw, memory_.bytes().data());
  }

 private:
  testing::FakeGpuMemory memory_;
  GpuCacheSpec spec_;
};

const std::vector<uint32_t> kTable = {7, 2, 11, 0, 5, 9, 1, 4};
const std::vector<uint32_t> kOtherTable = {3, 4, 8, 10, 6, 1, 0, 11};

// A client of a daemon, its layout, and a sequence in its cache.
struct Worker {
  explicit Worker(const std::string& address, ClientOptions options = {})
      : client(*Connect(address, std::move(options))),
        layout(*client.RegisterLayout({.layout = TestLayout(), .chunk_tokens = kChunk})),
        sample(testing::MakeSampleChunk(TestLayout(), kTokens, 1)),
        cache(layout, GpuCacheOrder::kNhd),
        ids(Ids(1000)) {
    cache.Lay(sample.raw, kTable);
    auto opened = client.OpenGpuCache(cache.spec());
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (opened.ok()) gpu = *opened;
  }
  PutRequest Put() {
    PutRequest request;
    request.layout = layout;
    request.tokens = ids;
    request.gpu = {gpu, kTable};
    request.preset = PresetId::kBalanced;
    return request;
  }
  GetRequest Get(const PutResult& put) {
    GetRequest request;
    request.layout = layout;
    for (const BlockResult& block : put.blocks) {
      request.content_hashes.push_back(block.content_hash);
    }
    return request;
  }
  // What is stored, by the host, as one sequence of contiguous planes.
  ByteVector Stored(const PutResult& put) {
    const auto prefix = client.GetPrefix(Get(put));
    EXPECT_TRUE(prefix.ok() && prefix->miss.ok()) << prefix.status();
    ByteVector out;
    for (const auto& layer : prefix->planes) {
      for (const ByteVector& plane : layer) out.insert(out.end(), plane.begin(), plane.end());
    }
    return out;
  }

  Client client;
  RegisteredLayout layout;
  testing::SampleChunk sample;
  Cache cache;
  std::shared_ptr<GpuCache> gpu;
  std::vector<uint32_t> ids;
};

// Puts new sequences until it is killed; a line for each block.
int RunWorker(const std::string& address) {
  Worker worker(address);
  PutRequest request = worker.Put();
  request.on_block = [](const BlockResult&) {
    std::puts("put");
    std::fflush(stdout);
  };
  for (uint32_t round = 0;; ++round) {
    request.salt = std::to_string(round);
    const auto put = worker.client.PutPrefix(request);
    if (!put.ok() || !put->status().ok()) return 1;
  }
}

class ClientGpuTest : public ::testing::Test {
 protected:
  void SetUp() override { StartDaemon(); }
  void StartDaemon() {
    daemon_.reset();
    daemon_ = std::make_unique<PipedProgram>(testing::Program("fake_gpu_daemon"),
                                             std::vector<std::string>{address()});
    tcp_address_ = daemon_->ReadLine();
    ASSERT_FALSE(tcp_address_.empty());
  }
  std::string address() const { return "unix:" + folder_->File("d.sock"); }

  std::unique_ptr<ScratchFolder> folder_ = *ScratchFolder::Make();
  std::unique_ptr<PipedProgram> daemon_;
  std::string tcp_address_;
};

TEST_F(ClientGpuTest, BlocksComeOutOfItAndGoIntoIt) {
  Worker worker(address());
  const auto image = worker.cache.image();
  const auto put = worker.client.PutPrefix(worker.Put());
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  EXPECT_EQ(put->blocks.size(), 3u);
  EXPECT_EQ(put->sent_bytes, 0u);
  EXPECT_TRUE(worker.cache.image() == image) << "what is put is only read";

  // The same bytes as of tensors that came by the host.
  PutRequest by_host = worker.Put();
  by_host.gpu = {};
  by_host.salt = "host";
  by_host.planes = worker.sample.views();
  const auto from_host = worker.client.PutPrefix(by_host);
  ASSERT_TRUE(from_host.ok() && from_host->status().ok()) << from_host.status();
  const ByteVector stored = worker.Stored(*put);
  EXPECT_TRUE(stored == worker.Stored(*from_host));

  // Into another cache, in another order and at other places; nothing else is written.
  Cache other(worker.layout, GpuCacheOrder::kHnd), expected(worker.layout, GpuCacheOrder::kHnd);
  const auto into = worker.client.OpenGpuCache(other.spec());
  ASSERT_TRUE(into.ok()) << into.status();
  GetRequest get = worker.Get(*put);
  get.target = {*into, kOtherTable};
  const auto placed = worker.client.GetToGpu(get);
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_TRUE(placed->status().ok()) << placed->status();
  EXPECT_EQ(placed->placed_tokens(), kTokens);
  expected.Lay(stored, kOtherTable);
  EXPECT_TRUE(other.image() == expected.image());

  const auto again = worker.client.PutPrefix(worker.Put());
  ASSERT_TRUE(again.ok()) << again.status();
  for (const BlockResult& block : again->blocks) EXPECT_TRUE(block.have_it);
  EXPECT_EQ(daemon_->Ask("regions"), 2u);
}

TEST_F(ClientGpuTest, TheLeaseEndsWithTheObject) {
  Worker worker(address());
  EXPECT_EQ(daemon_->Ask("regions"), 1u);
  worker.gpu.reset();
  EXPECT_TRUE(testing::Eventually([&] { return daemon_->Ask("regions") == 0; }));
}

TEST_F(ClientGpuTest, WhatTheGpuFailsAtGoesByTheHost) {
  Worker worker(address(), {.max_inflight_blocks = 1});
  daemon_->Ask("fail 1");
  const auto put = worker.client.PutPrefix(worker.Put());
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_EQ(GetErrorDetail(put->blocks[0].status)->reason, ErrorReason::kGpu);
  EXPECT_TRUE(put->blocks[1].status.ok()) << put->blocks[1].status;
  EXPECT_TRUE(put->blocks[2].status.ok()) << put->blocks[2].status;
  PutRequest by_host = worker.Put();
  by_host.gpu = {};
  by_host.planes = worker.sample.views();
  const auto rest = worker.client.PutPrefix(by_host);
  ASSERT_TRUE(rest.ok() && rest->status().ok()) << rest.status();
  EXPECT_FALSE(rest->blocks[0].have_it);
  EXPECT_TRUE(rest->blocks[1].have_it);

  GetRequest get = worker.Get(*put);
  get.content_hashes.resize(1);
  get.target = {worker.gpu, kOtherTable};
  daemon_->Ask("fail 1");
  const auto failed = worker.client.GetToGpu(get);
  ASSERT_TRUE(failed.ok()) << failed.status();
  EXPECT_EQ(GetErrorDetail(failed->blocks[0].status)->reason, ErrorReason::kGpu);
  get.target = {};
  EXPECT_TRUE(worker.client.GetPrefix(get)->miss.ok());
}

TEST_F(ClientGpuTest, OverTcpItIsRefused) {
  Worker worker(address());
  auto client = Connect(tcp_address_);
  ASSERT_TRUE(client.ok());
  const absl::Status status = client->OpenGpuCache(worker.cache.spec()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("unix socket"), std::string::npos) << status;
}

// What the daemon was told to read it reads, and acknowledges, before the call returns: after that
// the worker may use the memory for something else.
TEST_F(ClientGpuTest, APutThatIsCancelledWaitsForWhatIsBeingRead) {
  Worker worker(address(), {.max_inflight_blocks = 1});
  std::vector<uint64_t> told;
  PutRequest request = worker.Put();
  request.on_block = [&](const BlockResult& block) {
    EXPECT_TRUE(block.status.ok()) << block.status;
    told.push_back(block.start_position);
  };
  request.cancel = CancelToken::Make();
  const size_t begun = daemon_->Ask("begun");
  daemon_->Ask("close");
  auto put = worker.client.AsyncPutPrefix(request);
  daemon_->Ask("wait " + std::to_string(begun + 1));
  request.cancel.Cancel();
  EXPECT_EQ(put.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  daemon_->Ask("open");
  EXPECT_EQ(put.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(told, std::vector<uint64_t>{0});
}

TEST_F(ClientGpuTest, AGetThatIsCancelledWaitsForWhatIsBeingWritten) {
  Worker worker(address());
  const auto put = worker.client.PutPrefix(worker.Put());
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  Cache other(worker.layout, GpuCacheOrder::kHnd);
  GetRequest get = worker.Get(*put);
  get.target = {*worker.client.OpenGpuCache(other.spec()), kOtherTable};
  get.cancel = CancelToken::Make();
  const size_t begun = daemon_->Ask("begun");
  const auto image = other.image();
  daemon_->Ask("close");
  auto got = std::async(std::launch::async, [&] { return worker.client.GetToGpu(get); });
  daemon_->Ask("wait " + std::to_string(begun + 1));
  get.cancel.Cancel();
  EXPECT_EQ(got.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  EXPECT_TRUE(other.image() == image);
  daemon_->Ask("open");
  const auto placed = got.get();
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_TRUE(placed->status().ok()) << placed->status();
}

TEST_F(ClientGpuTest, ADaemonThatStartsAnewIsHandedItAgain) {
  Worker worker(address());
  const auto put = worker.client.PutPrefix(worker.Put());
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
  StartDaemon();
  // It knows neither layout nor cache nor blocks.
  GetRequest get = worker.Get(*put);
  get.target = {worker.gpu, kOtherTable};
  const auto missed = worker.client.GetToGpu(get);
  ASSERT_TRUE(missed.ok()) << missed.status();
  EXPECT_EQ(GetErrorDetail(missed->status())->reason, ErrorReason::kNotStored);
  EXPECT_EQ(daemon_->Ask("regions"), 1u);
  StartDaemon();
  const auto again = worker.client.PutPrefix(worker.Put());
  ASSERT_TRUE(again.ok() && again->status().ok()) << again.status();
  EXPECT_EQ(daemon_->Ask("regions"), 1u);
  const auto placed = worker.client.GetToGpu(get);
  ASSERT_TRUE(placed.ok() && placed->status().ok()) << placed.status();
}

TEST_F(ClientGpuTest, AWorkerThatIsKilledLeavesNothing) {
  Worker observer(address());
  for (int round = 0; round < 3; ++round) {
    PipedProgram worker(testing::Program("client_gpu_test"), {kWorkerFlag, address()});
    for (int blocks = 0; blocks < 1 + 4 * round; ++blocks) ASSERT_EQ(worker.ReadLine(), "put");
    EXPECT_EQ(daemon_->Ask("regions"), 2u);
  }
  EXPECT_TRUE(testing::Eventually([&] { return daemon_->Ask("regions") == 1; }));
  const auto put = observer.client.PutPrefix(observer.Put());
  ASSERT_TRUE(put.ok() && put->status().ok()) << put.status();
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == latticekv::kWorkerFlag) {
    return latticekv::RunWorker(argv[2]);
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
