// Workers of their own processes hand GPU memory to a real daemon over CUDA IPC: blocks come out of
// it and go into it, and a worker that is killed in the middle leaves nothing behind. Skipped where
// there is no device.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/gpu/worker_cache.h"

namespace latticekv::testing {
namespace {

constexpr uint32_t kTokens = 256, kCacheBlocks = 512, kChunks = 4;
constexpr uint32_t kTableBlocks = kChunks * kTokens / WorkerCache::kBlockTokens;
// A worker's argument: its daemon, and what it does.
constexpr char kWorkerFlag[] = "--worker";

Layout WorkerLayout() {
  return MakeUniformLayout("worker", 8, 8, 128, DType::kBF16,
                           {RopeStyle::kNeox, 128, 500000.0, {}});
}

std::string Payload(const Layout& layout, uint32_t chunk) {
  return std::string(AsText(MakeSampleChunk(layout, kTokens, 40 + chunk).raw));
}

// Puts the chunks out of the cache; announces each acknowledgement on stdout.
bool PutChunks(GpuDaemonClient& client, uint64_t region, const v1::BlockTable& table,
               const std::string& salt) {
  const auto call = client.stub().PutBlocks();
  call->WriteOpen(client.Open(v1::PRESET_BALANCED));
  for (uint32_t n = 0; n < kChunks; ++n) {
    call->WriteHeader(client.Header(salt, n, WorkerLayout().token_bytes() * kTokens));
    v1::PutBlocksResponse response;
    if (!call->Read(&response) || !response.has_credit()) return false;
    v1::PutBlocksRequest request;
    request.mutable_region_part()->set_index(n);
    request.mutable_region_part()->set_region_id(region);
    *request.mutable_region_part()->mutable_table() = table;
    if (!call->Write(request) || !call->Read(&response)) return false;
    if (response.ack().has_error()) {
      fprintf(stderr, "worker: %s\n", response.ack().error().message().c_str());
      return false;
    }
    printf("put\n");
    fflush(stdout);
  }
  call->WritesDone();
  return call->Finish().ok();
}

// Gets the chunks into the cache; false unless all are placed.
bool GetChunks(GpuDaemonClient& client, uint64_t region, const v1::BlockTable& table,
               const std::string& salt) {
  v1::GetBlocksRequest request;
  request.set_namespace_(WorkerLayout().model);
  request.set_fingerprint(client.Open(v1::PRESET_HIGH).fingerprint());
  for (uint32_t n = 0; n < kChunks; ++n) {
    request.add_content_hashes(client.Header(salt, n, 1).content_hash());
  }
  request.mutable_target()->set_region_id(region);
  *request.mutable_target()->mutable_table() = table;
  const auto call = client.stub().GetBlocks(request);
  v1::GetBlocksResponse response;
  uint32_t placed = 0;
  while (call->Read(&response)) {
    placed += response.has_placed();
    if (response.has_failed()) {
      fprintf(stderr, "worker: %s\n", response.failed().miss().message().c_str());
    }
  }
  return call->Finish().ok() && placed == kChunks;
}

// The worker's process. `once`: puts, gets into another cache, compares; `forever`: puts until it
// is killed.
int RunWorker(const std::string& address, const std::string& what) {
  const Layout layout = WorkerLayout();
  GpuDaemonClient client(address, layout, kTokens);
  const bool hnd = what != "forever" && what.find("hnd") != std::string::npos;
  WorkerCache cache(layout, kCacheBlocks, hnd);
  const v1::BlockTable table = ShuffledTable(kCacheBlocks, kTableBlocks, 1);
  ByteVector host = cache.Empty();
  for (uint32_t n = 0; n < kChunks; ++n) {
    cache.Lay(Payload(layout, n), table, uint64_t{n} * kTokens, &host);
  }
  cache.Upload(host);
  std::unique_ptr<RegionCall> lease;
  const std::string fingerprint = client.Open(v1::PRESET_HIGH).fingerprint();
  const uint64_t region = HandOver(client, cache.Region(layout.model, fingerprint), &lease);
  if (region == 0) return 3;
  if (what == "forever") {
    for (uint32_t round = 0;; ++round) {
      if (!PutChunks(client, region, table, std::to_string(getpid() * 1000 + round))) return 4;
    }
  }
  if (!PutChunks(client, region, table, what)) return 5;
  // Back into a cache in the other order, at other places.
  WorkerCache other(layout, kCacheBlocks, !hnd);
  std::unique_ptr<RegionCall> other_lease;
  const uint64_t into = HandOver(client, other.Region(layout.model, fingerprint), &other_lease);
  const v1::BlockTable places = ShuffledTable(kCacheBlocks, kTableBlocks, 2);
  if (into == 0 || !GetChunks(client, into, places, what)) return 6;
  ByteVector expected = other.Empty();
  for (uint32_t n = 0; n < kChunks; ++n) {
    const std::string raw = client.Get(client.Header(what, n, 1).content_hash(), v1::ENCODING_RAW);
    other.Lay(raw, places, uint64_t{n} * kTokens, &expected);
  }
  if (other.Download() != expected) return 7;
  return cache.Download() == host ? 0 : 8;  // what was put was only read
}

class Worker {
 public:
  Worker(const std::string& address, const std::string& what) {
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
    std::vector<std::string> args = {self, kWorkerFlag, address, what};
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) abort();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    if (posix_spawn(&pid_, self.c_str(), &actions, nullptr, argv.data(), environ) != 0) abort();
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    out_ = ends[0];
  }
  ~Worker() { close(out_); }
  // False when it says no more.
  bool ReadLine() {
    char c = 0;
    do {
      if (read(out_, &c, 1) != 1) return false;
    } while (c != '\n');
    return true;
  }
  int Wait() {
    while (ReadLine()) {
    }
    int status = -1;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  void Kill() { kill(pid_, SIGKILL); }

 private:
  pid_t pid_ = -1;
  int out_ = -1;
};

class GpuIpcTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  }
  static size_t Descriptors(const GpuDaemon& daemon) {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator("/proc/" + std::to_string(daemon.pid()) + "/fd")) {
      ++count;
    }
    return count;
  }
  static size_t FreeDeviceBytes() {
    size_t free_bytes = 0, all = 0;
    EXPECT_EQ(cudaMemGetInfo(&free_bytes, &all), cudaSuccess);
    return free_bytes;
  }
  template <typename Condition>
  static bool Eventually(const Condition& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return true;
  }
};

TEST_F(GpuIpcTest, BlocksGoFromAndToWorkersMemoryInBothOrders) {
  GpuDaemon daemon({"--gpu=0"});
  const Layout layout = WorkerLayout();
  GpuDaemonClient client(daemon.address(), layout, kTokens);
  for (const char* what : {"once nhd", "once hnd"}) {
    SCOPED_TRACE(what);
    EXPECT_EQ(Worker(daemon.address(), what).Wait(), 0);
    for (uint32_t n = 0; n < kChunks; ++n) {
      // The frames that a CPU makes of the same chunks.
      const SampleChunk chunk = MakeSampleChunk(layout, kTokens, 40 + n);
      EncodeOptions options;
      options.preset = PresetId::kBalanced;
      options.start_position = uint64_t{n} * kTokens;
      const auto frame = EncodeFrame(layout, kTokens, chunk.views(), options);
      ASSERT_TRUE(frame.ok()) << frame.status();
      EXPECT_EQ(client.Get(client.Header(what, n, 1).content_hash(), v1::ENCODING_FRAME),
                std::string(AsText(*frame)));
    }
  }
  EXPECT_TRUE(Eventually([&] { return client.Paths().gpu_regions() == 0; }));
  const v1::CodecPaths paths = client.Paths();
  EXPECT_EQ(paths.gpu_encodes(), 2 * kChunks);
  EXPECT_EQ(paths.cpu_encodes() + paths.cpu_decodes(), 0u);
}

TEST_F(GpuIpcTest, AWorkerKilledInTheMiddleOfAPutLeavesNothing) {
  GpuDaemon daemon({"--gpu=0"});
  GpuDaemonClient client(daemon.address(), WorkerLayout(), kTokens);
  EXPECT_EQ(Worker(daemon.address(), "once warm-up").Wait(), 0);
  EXPECT_TRUE(Eventually([&] { return client.Paths().gpu_regions() == 0; }));
  const size_t descriptors = Descriptors(daemon), free_bytes = FreeDeviceBytes();
  for (int round = 0; round < 8; ++round) {
    Worker worker(daemon.address(), "forever");
    for (int acks = 0; acks < 1 + 3 * round; ++acks) ASSERT_TRUE(worker.ReadLine());
    EXPECT_EQ(client.Paths().gpu_regions(), 1u);
    std::this_thread::sleep_for(std::chrono::microseconds(700 * round));
    worker.Kill();
    EXPECT_EQ(worker.Wait(), -SIGKILL);
    EXPECT_TRUE(Eventually([&] { return client.Paths().gpu_regions() == 0; }));
  }
  // Its cache of 268 MB would show, and so would a stream or a mapping of each round.
  EXPECT_TRUE(Eventually([&] { return FreeDeviceBytes() + (32 << 20) >= free_bytes; }))
      << free_bytes - FreeDeviceBytes() << " bytes of the device are missing";
  EXPECT_TRUE(Eventually([&] { return Descriptors(daemon) <= descriptors + 4; }))
      << descriptors << " descriptors became " << Descriptors(daemon);
  EXPECT_TRUE(Eventually([&] { return client.stub().Stats().response.open_streams() == 0; }));
  const v1::CodecPaths paths = client.Paths();
  EXPECT_EQ(paths.gpu_state(), v1::GPU_STATE_ON) << paths.gpu_reason();
  EXPECT_EQ(paths.gpu_errors(), 0u);
  EXPECT_EQ(Worker(daemon.address(), "once after").Wait(), 0);
}

TEST_F(GpuIpcTest, HandlesThatAreNoneAreRefused) {
  GpuDaemon daemon({"--gpu=0"});
  GpuDaemonClient client(daemon.address(), WorkerLayout(), kTokens);
  WorkerCache cache(WorkerLayout(), kCacheBlocks, false);
  const std::string fingerprint = client.Open(v1::PRESET_HIGH).fingerprint();
  const auto refused = [&](const std::function<void(v1::CudaMemory*)>& change) {
    v1::OpenRegionRequest request;
    *request.mutable_cuda() = cache.Region(WorkerLayout().model, fingerprint);
    change(request.mutable_cuda()->mutable_memories(0));
    const auto lease = client.stub().OpenRegion(request);
    v1::RegionGrant grant;
    EXPECT_FALSE(lease->Read(&grant));
    return lease->Finish().code;
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(refused([](v1::CudaMemory* m) { m->set_ipc_handle(std::string(64, 'x')); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaMemory* m) { m->set_ipc_handle("short"); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaMemory* m) { m->set_device_uuid(std::string(16, 'u')); }),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused([](v1::CudaMemory* m) { m->set_bytes(m->bytes() + (64 << 20)); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaMemory* m) { m->set_offset(~uint64_t{0}); }), kInvalid);
  EXPECT_EQ(client.Paths().gpu_regions(), 0u);
}

}  // namespace
}  // namespace latticekv::testing

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == latticekv::testing::kWorkerFlag) {
    return latticekv::testing::RunWorker(argv[2], argv[3]);
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
