// The daemon with a device that tests control: what it serves is the same on every path, and Stats
// and health say which path it was.
#include <gtest/gtest.h>

#include <thread>

#include "tests/support/fake_gpu.h"
#include "tests/support/service_fixture.h"

namespace latticekv::testing {
namespace {

class ServerGpuTest : public ServiceFixture {
 protected:
  void StartWithGpu(GpuConfig::Use use = GpuConfig::Use::kAuto) {
    script_ = std::make_shared<FakeGpuScript>();
    StartServer([&](ServerConfig& config) {
      config.codec_threads = 4;
      config.gpu.use = use;
      config.gpu.options.min_job_bytes = 0;
      config.gpu.options.ring_bytes = 8 << 20;
      config.gpu.open = [script = script_](const GpuOptions& options) {
        return MakeFakeGpu(script, options);
      };
    });
  }
  v1::CodecPaths Paths() { return client_->Stats().response.codec_paths(); }
  uint64_t Fallbacks(std::string_view reason) {
    uint64_t jobs = 0;
    for (const auto& fallback : Paths().fallbacks()) {
      if (fallback.reason() == reason) jobs = fallback.jobs();
    }
    return jobs;
  }
  static std::vector<std::string> Hashes(const std::vector<TestBlock>& blocks) {
    std::vector<std::string> out;
    for (const TestBlock& block : blocks) out.push_back(block.hash());
    return out;
  }

  std::shared_ptr<FakeGpuScript> script_;
};

TEST_F(ServerGpuTest, FramesAndPayloadsAreThoseOfTheCpu) {
  const auto blocks = MakeBlocks(Ids(1, 5 * kTestChunk));
  Put(Open(v1::PRESET_BALANCED, "s"), blocks);
  const auto cpu_frames = GetHashes(Hashes(blocks), v1::ENCODING_FRAME).payloads;
  const auto cpu_raw = GetHashes(Hashes(blocks)).payloads;
  EXPECT_EQ(Paths().gpu_state(), v1::GPU_STATE_NONE);
  EXPECT_EQ(Paths().cpu_encodes(), 5u);
  EXPECT_EQ(Paths().cpu_decodes(), 5 * layout_.layers.size());

  StartWithGpu();
  for (const auto& ack : Put(Open(v1::PRESET_BALANCED, "s"), blocks)) EXPECT_FALSE(ack.has_error());
  EXPECT_EQ(GetHashes(Hashes(blocks), v1::ENCODING_FRAME).payloads, cpu_frames);
  EXPECT_EQ(GetHashes(Hashes(blocks)).payloads, cpu_raw);
  const v1::CodecPaths paths = Paths();
  EXPECT_EQ(paths.gpu_state(), v1::GPU_STATE_ON);
  EXPECT_EQ(paths.gpu_device(), "fake");
  EXPECT_EQ(paths.gpu_encodes(), 5u);
  EXPECT_EQ(paths.gpu_decodes(), 5 * layout_.layers.size());
  EXPECT_EQ(paths.cpu_encodes(), 0u);
  EXPECT_EQ(paths.cpu_decodes(), 0u);
  EXPECT_EQ(paths.fallbacks_size(), 0);
}

TEST_F(ServerGpuTest, FramesThatClientsMadeAreCheckedByTheDevice) {
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  Put(Open(v1::PRESET_BALANCED), blocks);
  const auto frames = GetHashes(Hashes(blocks), v1::ENCODING_FRAME).payloads;
  StartWithGpu();
  v1::PutOpen open = Open();
  open.set_encoding(v1::ENCODING_FRAME);
  auto framed = blocks;
  for (size_t i = 0; i < framed.size(); ++i) {
    framed[i].payload = frames[i];
    framed[i].header.set_payload_bytes(frames[i].size());
  }
  EXPECT_FALSE(PutOne(open, framed[0]).has_error());
  EXPECT_EQ(Paths().gpu_decodes(), 1u);
  // A damaged one is refused with the CPU's error.
  framed[1].payload.back() ^= 1;
  const v1::BlockAck ack = PutOne(open, framed[1]);
  EXPECT_EQ(ack.error().reason(), v1::REASON_BAD_PAYLOAD);
  EXPECT_EQ(Fallbacks("rejected"), 1u);
}

TEST_F(ServerGpuTest, ExactBlocksAndShortMemoryAreLeftToCpus) {
  StartWithGpu();
  const auto blocks = MakeBlocks(Ids(1, 3 * kTestChunk));
  EXPECT_FALSE(PutOne(Open(v1::PRESET_EXACT), blocks[0]).has_error());
  EXPECT_EQ(Fallbacks("unsupported"), 1u);
  script_->SetCapacity(1);
  EXPECT_FALSE(PutOne(Open(v1::PRESET_HIGH), blocks[1]).has_error());
  EXPECT_EQ(Fallbacks("memory short"), 1u);
  EXPECT_EQ(Paths().cpu_encodes(), 2u);
  EXPECT_EQ(Paths().gpu_state(), v1::GPU_STATE_ON);
}

TEST_F(ServerGpuTest, ADeviceThatFailsIsTurnedOffAndTheDaemonServesOn) {
  StartWithGpu();
  script_->FailNext(1000, absl::InternalError("the fake device is broken"));
  const auto blocks = MakeBlocks(Ids(1, 4 * kTestChunk));
  for (const auto& ack : Put(Open(v1::PRESET_HIGH), blocks)) EXPECT_FALSE(ack.has_error());
  const auto got = GetHashes(Hashes(blocks));
  EXPECT_TRUE(got.status.ok()) << got.status.message;
  EXPECT_TRUE(got.failed.empty());
  const v1::CodecPaths paths = Paths();
  EXPECT_EQ(paths.gpu_state(), v1::GPU_STATE_OFF);
  EXPECT_EQ(paths.gpu_reason(), "the fake device is broken");
  EXPECT_GE(paths.gpu_errors(), 3u);
  EXPECT_EQ(paths.cpu_encodes(), 4u);
}

TEST_F(ServerGpuTest, WithoutADeviceTheDaemonServesUnlessItInsists) {
  const auto none = [](const GpuOptions&) -> absl::StatusOr<std::unique_ptr<GpuDevice>> {
    return absl::FailedPreconditionError("there is none here");
  };
  StartServer([&](ServerConfig& config) {
    config.gpu.use = GpuConfig::Use::kAuto;
    config.gpu.open = none;
  });
  EXPECT_EQ(Paths().gpu_state(), v1::GPU_STATE_NONE);
  EXPECT_EQ(Paths().gpu_reason(), "there is none here");
  EXPECT_FALSE(PutOne(Open(), MakeBlocks(Ids(1, kTestChunk))[0]).has_error());

  ServerConfig config = engine().config();
  config.listen = {"unix:" + directory_ + "/other"};
  config.gpu.use = GpuConfig::Use::kDevice;
  const auto server = Server::Start(config);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kFailedPrecondition) << server.status();

  // A device whose memory is short is no reason not to serve.
  config.gpu.open = [](const GpuOptions&) -> absl::StatusOr<std::unique_ptr<GpuDevice>> {
    return absl::ResourceExhaustedError("the engine has it all");
  };
  const auto short_of_memory = Server::Start(config);
  ASSERT_TRUE(short_of_memory.ok()) << short_of_memory.status();
  EXPECT_EQ((*short_of_memory)->engine().gpu_absence(), "the engine has it all");
}

}  // namespace
}  // namespace latticekv::testing
