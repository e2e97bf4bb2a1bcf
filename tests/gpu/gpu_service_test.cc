// A real daemon on a real device gives the frames and payloads of one that uses its CPUs, and says
// that the device did it. Skipped where there is no device.
#include <gtest/gtest.h>

#include <thread>

#include "tests/gpu/device_batch.h"
#include "tests/gpu/gpu_daemon.h"

namespace latticekv::testing {
namespace {

class GpuServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  }
};

std::vector<Layout> ServedLayouts() {
  const RopeStyle neox = RopeStyle::kNeox, woven = RopeStyle::kInterleaved;
  return {MakeUniformLayout("llama", 4, 8, 128, DType::kBF16, {neox, 128, 500000.0, {}}),
          MakeUniformLayout("small heads", 6, 4, 64, DType::kF16, {neox, 64, 10000.0, {}}),
          MakeUniformLayout("wide", 2, 2, 256, DType::kF32, {woven, 64, 10000.0, {}})};
}

// What a block is put with.
struct PutSetting {
  v1::Preset preset;
  SeedOptions seed = {};

  v1::PutOpen Open(const GpuDaemonClient& client) const {
    v1::PutOpen open = client.Open(preset);
    if (preset != v1::PRESET_SEED) return open;
    open.mutable_seed()->set_key_bits(static_cast<uint32_t>(seed.key_bits));
    open.mutable_seed()->set_value_bits(static_cast<uint32_t>(seed.value_bits));
    open.mutable_seed()->set_group_scales(seed.group_scales);
    open.mutable_seed()->set_no_token_delta(!seed.token_delta);
    return open;
  }
};

const std::vector<PutSetting>& LatticeSettings() {
  static const std::vector<PutSetting> settings = {
      {v1::PRESET_BALANCED}, {v1::PRESET_TINY}, {v1::PRESET_NEAR}};
  return settings;
}

// Puts and gets the same blocks at both, with the settings in turn, the last without some tokens;
// compares every byte.
void CompareDaemons(GpuDaemon& cpu, GpuDaemon& gpu, const Layout& layout, uint32_t threads,
                    uint32_t blocks, const std::vector<PutSetting>& settings = LatticeSettings()) {
  constexpr uint32_t kTokens = 256;
  std::vector<std::thread> workers;
  for (uint32_t w = 0; w < threads; ++w) {
    workers.emplace_back([&, w] {
      GpuDaemonClient slow(cpu.address(), layout, kTokens);
      GpuDaemonClient fast(gpu.address(), layout, kTokens);
      for (uint32_t n = 0; n < blocks; ++n) {
        const SampleChunk chunk = MakeSampleChunk(layout, kTokens, 100 * w + n);
        const std::string salt = "worker " + std::to_string(w);
        v1::BlockHeader header = slow.Header(salt, n, chunk.raw.size());
        if (n + 1 == blocks) slow.EvictEveryThird(&header);
        const PutSetting& setting = settings[(w + n) % settings.size()];
        const v1::BlockAck expected = slow.Put(setting.Open(slow), header, chunk.raw);
        const v1::BlockAck ack = fast.Put(setting.Open(fast), header, chunk.raw);
        EXPECT_EQ(ack.stored_bytes(), expected.stored_bytes());
        const std::string& hash = header.content_hash();
        const std::string frame = fast.Get(hash, v1::ENCODING_FRAME);
        EXPECT_FALSE(frame.empty());
        EXPECT_EQ(frame, slow.Get(hash, v1::ENCODING_FRAME)) << "frames differ";
        const std::string raw = fast.Get(hash, v1::ENCODING_RAW);
        EXPECT_EQ(raw.size(), chunk.raw.size());
        EXPECT_EQ(raw, slow.Get(hash, v1::ENCODING_RAW)) << "payloads differ";
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
}

TEST_F(GpuServiceTest, FramesAndPayloadsAreThoseOfTheCpu) {
  for (const char* budget : {"--gpu_sm_percent=100", "--gpu_sm_percent=25"}) {
    SCOPED_TRACE(budget);
    GpuDaemon cpu({"--gpu=off"}), gpu({"--gpu=0", budget});
    uint64_t blocks = 0, layers = 0;
    for (const Layout& layout : ServedLayouts()) {
      CompareDaemons(cpu, gpu, layout, 1, 3);
      blocks += 3;
      layers += 3 * layout.layers.size();
    }
    const v1::CodecPaths paths = GpuDaemonClient(gpu.address(), ServedLayouts()[0], 256).Paths();
    printf("%s\n", paths.gpu_device().c_str());
    EXPECT_EQ(paths.gpu_state(), v1::GPU_STATE_ON) << paths.gpu_reason();
    EXPECT_EQ(paths.gpu_encodes(), blocks);
    EXPECT_EQ(paths.gpu_decodes(), layers);
    EXPECT_EQ(paths.cpu_encodes() + paths.cpu_decodes(), 0u);
    const v1::CodecPaths others = GpuDaemonClient(cpu.address(), ServedLayouts()[0], 256).Paths();
    EXPECT_EQ(others.gpu_encodes() + others.gpu_decodes(), 0u);
    EXPECT_EQ(others.cpu_encodes(), blocks);
  }
}

TEST_F(GpuServiceTest, ManyWorkersShareItsBatches) {
  GpuDaemon cpu({"--gpu=off"}), gpu({"--gpu=0"});
  const Layout layout = ServedLayouts()[0];
  CompareDaemons(cpu, gpu, layout, 8, 4);
  const v1::CodecPaths paths = GpuDaemonClient(gpu.address(), layout, 256).Paths();
  EXPECT_EQ(paths.gpu_state(), v1::GPU_STATE_ON) << paths.gpu_reason();
  EXPECT_EQ(paths.gpu_encodes(), 32u);
  EXPECT_EQ(paths.gpu_decodes(), 32 * layout.layers.size());
  EXPECT_EQ(paths.gpu_errors(), 0u);
  printf("%llu jobs in %llu batches\n",
         static_cast<unsigned long long>(paths.gpu_encodes() + paths.gpu_decodes()),
         static_cast<unsigned long long>(paths.gpu_batches()));
}

// The seed stages with several settings at once, and lattice stages between them.
TEST_F(GpuServiceTest, SeedBlocksAreThoseOfTheCpu) {
  GpuDaemon cpu({"--gpu=off"}), gpu({"--gpu=0"});
  const std::vector<PutSetting> settings = {{v1::PRESET_SEED},
                                            {v1::PRESET_SEED, {5, 1, true, true}},
                                            {v1::PRESET_SEED, {2, 6, false, false}},
                                            {v1::PRESET_BALANCED}};
  uint64_t layers = 0;
  for (const Layout& layout : ServedLayouts()) {
    CompareDaemons(cpu, gpu, layout, 4, 4, settings);
    layers += layout.layers.size();
  }
  const v1::CodecPaths paths = GpuDaemonClient(gpu.address(), ServedLayouts()[0], 256).Paths();
  EXPECT_EQ(paths.gpu_state(), v1::GPU_STATE_ON) << paths.gpu_reason();
  EXPECT_EQ(paths.gpu_encodes(), ServedLayouts().size() * 16);
  EXPECT_EQ(paths.gpu_decodes(), 16 * layers);
  EXPECT_EQ(paths.cpu_encodes() + paths.cpu_decodes(), 0u);
  EXPECT_EQ(paths.gpu_errors(), 0u);
}

// Too little memory on the device for such chunks: CPUs do them, and Stats say why.
TEST_F(GpuServiceTest, ChunksTooLargeForTheDevicesMemoryGoToCpus) {
  GpuDaemon gpu({"--gpu=0", "--gpu_memory_bytes=67108864"});
  const Layout layout =
      MakeUniformLayout("deep", 16, 8, 128, DType::kF16, {RopeStyle::kNeox, 128, 10000.0, {}});
  GpuDaemonClient client(gpu.address(), layout, 256);
  const SampleChunk chunk = MakeSampleChunk(layout, 256, 1);
  client.Put(v1::PRESET_BALANCED, client.Header("", 0, chunk.raw.size()), chunk.raw);
  const v1::CodecPaths paths = client.Paths();
  EXPECT_EQ(paths.cpu_encodes(), 1u);
  ASSERT_EQ(paths.fallbacks_size(), 1);
  EXPECT_EQ(paths.fallbacks(0).reason(), "memory short");
  EXPECT_EQ(paths.gpu_state(), v1::GPU_STATE_ON);
}

}  // namespace
}  // namespace latticekv::testing
