// Workers of their own processes hand GPU memory to a real daemon over CUDA IPC: blocks come out of
// it and go into it, and a worker that is killed in the middle leaves nothing behind. Skipped where
// there is no device.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <functional>

#include "client/src/gpu_cache.h"
#include "tests/gpu/gpu_daemon.h"
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

SampleChunk Chunk(uint32_t number) { return MakeSampleChunk(WorkerLayout(), kTokens, 40 + number); }

int Fail(int code, const absl::Status& why) {
  fprintf(stderr, "worker: %s\n", std::string(why.message()).c_str());
  return code;
}

// Contiguous tokens of one block, by the host.
absl::StatusOr<ByteVector> GetByHost(Client& client, const RegisteredLayout& layout,
                                     const Digest& hash) {
  GetRequest request;
  request.layout = layout;
  request.content_hashes = {hash};
  const auto prefix = client.GetPrefix(request);
  if (!prefix.ok() || !prefix->miss.ok()) return prefix.ok() ? prefix->miss : prefix.status();
  ByteVector out;
  for (const auto& planes : prefix->planes) {
    for (const ByteVector& plane : planes) out.insert(out.end(), plane.begin(), plane.end());
  }
  return out;
}

// Gets what was put into a cache in the other order, at other places; 0 when it is all there and
// nothing else was written.
int GetAndCompare(Client& client, const RegisteredLayout& layout, const PutResult& put, bool hnd) {
  WorkerCache other(layout, kCacheBlocks, hnd ? GpuCacheOrder::kNhd : GpuCacheOrder::kHnd);
  const auto into = client.OpenGpuCache(other.spec());
  if (!into.ok()) return Fail(6, into.status());
  GetRequest get;
  get.layout = layout;
  for (const BlockResult& block : put.blocks) get.content_hashes.push_back(block.content_hash);
  get.target = {*into, ShuffledTable(kCacheBlocks, kTableBlocks, 2)};
  const auto placed = client.GetToGpu(get);
  if (!placed.ok() || !placed->status().ok()) {
    return Fail(6, placed.ok() ? placed->status() : placed.status());
  }
  ByteVector expected = other.Empty();
  for (const BlockResult& block : put.blocks) {
    const auto raw = GetByHost(client, layout, block.content_hash);
    if (!raw.ok()) return Fail(7, raw.status());
    other.Lay(*raw, get.target.blocks, block.start_position, &expected);
  }
  if (other.Download() != expected) return Fail(7, absl::DataLossError("other bytes were placed"));
  return 0;
}

// The worker's process. Announces each block that is put on stdout. `once`: puts, gets into another
// cache, compares; `forever`: puts until it is killed.
int RunWorker(const std::string& address, const std::string& what) {
  auto client = Connect(address);
  if (!client.ok()) return Fail(2, client.status());
  const auto layout = client->RegisterLayout(
      {.name_space = WorkerLayout().model, .layout = WorkerLayout(), .chunk_tokens = kTokens});
  if (!layout.ok()) return Fail(2, layout.status());
  const bool hnd = what.find("hnd") != std::string::npos;
  WorkerCache cache(*layout, kCacheBlocks, hnd ? GpuCacheOrder::kHnd : GpuCacheOrder::kNhd);
  const std::vector<uint32_t> table = ShuffledTable(kCacheBlocks, kTableBlocks, 1);
  ByteVector host = cache.Empty();
  for (uint32_t n = 0; n < kChunks; ++n) {
    cache.Lay(Chunk(n).raw, table, uint64_t{n} * kTokens, &host);
  }
  cache.Upload(host);
  const auto handed_over = client->OpenGpuCache(cache.spec());
  if (!handed_over.ok()) return Fail(3, handed_over.status());

  std::vector<uint32_t> ids(kChunks * kTokens);
  for (uint32_t t = 0; t < ids.size(); ++t) ids[t] = t;
  PutRequest request;
  request.layout = *layout;
  request.tokens = ids;
  request.gpu = {*handed_over, table};
  request.preset = what.find("seed") != std::string::npos ? PresetId::kSeed : PresetId::kBalanced;
  request.salt = what;
  request.on_block = [](const BlockResult& block) {
    if (!block.status.ok()) return;
    printf("put\n");
    fflush(stdout);
  };
  for (uint32_t round = 0; what == "forever"; ++round) {
    request.salt = std::to_string(getpid() * 1000 + round);
    const auto put = client->PutPrefix(request);
    if (!put.ok() || !put->status().ok()) return Fail(4, put.ok() ? put->status() : put.status());
  }
  const auto put = client->PutPrefix(request);
  if (!put.ok() || !put->status().ok()) return Fail(5, put.ok() ? put->status() : put.status());

  if (const int code = GetAndCompare(*client, *layout, *put, hnd)) return code;
  if (cache.Download() == host) return 0;
  return Fail(8, absl::DataLossError("what was put was written to"));
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
  for (const PresetId preset : {PresetId::kBalanced, PresetId::kSeed}) {
    const std::string suffix = preset == PresetId::kSeed ? " seed" : "";
    const std::string workers[] = {"once nhd" + suffix, "once hnd" + suffix};
    for (const std::string& what : workers) {
      EXPECT_EQ(Worker(daemon.address(), what).Wait(), 0) << what;
    }
    for (uint32_t n = 0; n < kChunks; ++n) {
      // The frames that a CPU makes of the same chunks.
      const SampleChunk chunk = Chunk(n);
      EncodeOptions options;
      options.preset = preset;
      options.start_position = uint64_t{n} * kTokens;
      const auto frame = EncodeFrame(layout, kTokens, chunk.views(), options);
      ASSERT_TRUE(frame.ok()) << frame.status();
      for (const std::string& what : workers) {
        EXPECT_EQ(client.Get(client.Header(what, n, 1).content_hash(), v1::ENCODING_FRAME),
                  std::string(AsText(*frame)))
            << what;
      }
    }
  }
  EXPECT_TRUE(Eventually([&] { return client.Paths().gpu_regions() == 0; }));
  const v1::CodecPaths paths = client.Paths();
  EXPECT_EQ(paths.gpu_encodes(), 4 * kChunks);
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
  const Layout layout = WorkerLayout();
  const RegisteredLayout registered = {std::make_shared<const Layout>(layout),
                                       LayoutFingerprint(layout), layout.model, kTokens};
  const WorkerCache cache(registered, kCacheBlocks, GpuCacheOrder::kNhd);
  const auto refused = [&](const std::function<void(v1::CudaMemory*)>& change) {
    v1::OpenRegionRequest request;
    *request.mutable_cuda() = ToProto(cache.spec());
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
