// The daemon with a device that tests control: what it serves is the same on every path, and Stats
// and health say which path it was.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
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
    const v1::CodecPaths paths = Paths();
    for (const auto& fallback : paths.fallbacks()) {
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

TEST_F(ServerGpuTest, SeedBlocksAreTheDevicesWithTheirSettings) {
  const auto blocks = MakeBlocks(Ids(1, 3 * kTestChunk));
  std::vector<v1::PutOpen> opens(3, Open(v1::PRESET_SEED));
  opens[1].mutable_seed()->set_key_bits(5);
  opens[2].mutable_seed()->set_value_bits(1);
  opens[2].mutable_seed()->set_group_scales(true);
  const auto put_all = [&] {
    for (size_t i = 0; i < 3; ++i) EXPECT_FALSE(PutOne(opens[i], blocks[i]).has_error());
  };
  put_all();
  const auto cpu_frames = GetHashes(Hashes(blocks), v1::ENCODING_FRAME).payloads;
  const auto cpu_raw = GetHashes(Hashes(blocks)).payloads;
  StartWithGpu();
  put_all();
  EXPECT_EQ(GetHashes(Hashes(blocks), v1::ENCODING_FRAME).payloads, cpu_frames);
  EXPECT_EQ(GetHashes(Hashes(blocks)).payloads, cpu_raw);
  const v1::CodecPaths paths = Paths();
  EXPECT_EQ(paths.gpu_encodes(), 3u);
  EXPECT_EQ(paths.gpu_decodes(), 3 * layout_.layers.size());
  EXPECT_EQ(paths.cpu_encodes() + paths.cpu_decodes(), 0u);
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

// A paged cache in memory that the fake device takes for its own: 12 blocks of 5 tokens, heads
// outside of tokens, 7 bytes of nothing between planes.
class FakeCache {
 public:
  static constexpr uint32_t kBlocks = 12, kBlockTokens = 5;
  static constexpr std::byte kEmpty{0x5A};

  explicit FakeCache(const Layout& layout) : layout_(layout) {
    for (const LayerSpec& layer : layout.layers) {
      for (const PlaneSpec& spec : layer.planes) {
        offsets_.push_back(bytes_);
        bytes_ += spec.token_bytes() * kBlocks * kBlockTokens + 14;
      }
    }
    memory_.emplace(bytes_);
    std::fill(memory_->bytes().begin(), memory_->bytes().end(), kEmpty);
  }
  v1::CudaRegion Region(const std::string& fingerprint) {
    v1::CudaRegion region;
    region.set_fingerprint(fingerprint);
    v1::CudaMemory* memory = region.add_memories();
    memory->set_ipc_handle(memory_->handle());
    memory->set_bytes(bytes_);
    region.set_blocks(kBlocks);
    region.set_block_tokens(kBlockTokens);
    for (size_t i = 0; i < offsets_.size(); ++i) {
      const PlaneSpec& spec = layout_.layers[i / 2].planes[i % 2];
      const uint64_t vector = spec.head_dim * DTypeBytes(spec.dtype);
      v1::CudaPlane* plane = region.add_planes();
      plane->set_offset(offsets_[i]);
      plane->set_token_stride(vector);
      plane->set_head_stride(vector * kBlockTokens);
      plane->set_block_stride(spec.token_bytes() * kBlockTokens);
    }
    return region;
  }
  // Moves a contiguous payload of tokens from `position` on in (or out, with a null `in`).
  std::string Move(const std::string* in, const v1::BlockTable& table, uint64_t position,
                   uint32_t tokens) {
    std::string out = in ? *in : std::string(layout_.token_bytes() * tokens, 0);
    size_t at = 0;
    for (size_t i = 0; i < offsets_.size(); ++i) {
      const PlaneSpec& spec = layout_.layers[i / 2].planes[i % 2];
      const size_t vector = spec.head_dim * DTypeBytes(spec.dtype);
      for (uint32_t t = 0; t < tokens; ++t) {
        const uint64_t token = position + t - table.first_position();
        for (uint32_t h = 0; h < spec.heads; ++h, at += vector) {
          std::byte* place = memory_->bytes().data() + offsets_[i] +
                             table.blocks(static_cast<int>(token / kBlockTokens)) *
                                 spec.token_bytes() * kBlockTokens +
                             token % kBlockTokens * vector + h * vector * kBlockTokens;
          if (in) {
            std::memcpy(place, out.data() + at, vector);
          } else {
            std::memcpy(out.data() + at, place, vector);
          }
        }
      }
    }
    return out;
  }
  size_t untouched() const {
    return std::count(memory_->bytes().begin(), memory_->bytes().end(), kEmpty);
  }

 private:
  const Layout layout_;
  size_t bytes_ = 0;
  std::vector<size_t> offsets_;
  std::optional<FakeGpuMemory> memory_;
};

class ServerGpuMemoryTest : public ServerGpuTest {
 protected:
  void SetUp() override {
    ServerGpuTest::SetUp();
    StartWithGpu();
    cache_ = std::make_unique<FakeCache>(layout_);
  }
  // Hands the cache over; 0 when it is refused.
  uint64_t HandOver(v1::CudaRegion region, std::unique_ptr<RegionCall>* lease,
                    absl::StatusCode* code = nullptr) {
    v1::OpenRegionRequest request;
    *request.mutable_cuda() = std::move(region);
    *lease = client_->OpenRegion(request);
    v1::RegionGrant grant;
    if ((*lease)->Read(&grant)) return grant.region_id();
    const CallStatus status = (*lease)->Finish();
    if (code != nullptr) *code = status.code;
    return 0;
  }
  v1::BlockAck PutFrom(uint64_t region, const v1::BlockTable& table, const TestBlock& block,
                       v1::Preset preset = v1::PRESET_BALANCED) {
    const auto call = client_->PutBlocks();
    call->WriteOpen(Open(preset));
    call->WriteHeader(block.header);
    v1::PutBlocksResponse response;
    EXPECT_TRUE(call->Read(&response));
    v1::PutBlocksRequest request;
    request.mutable_region_part()->set_index(block.header.index());
    request.mutable_region_part()->set_region_id(region);
    *request.mutable_region_part()->mutable_table() = table;
    call->Write(request);
    EXPECT_TRUE(call->Read(&response));
    call->WritesDone();
    call->Finish();
    return response.ack();
  }
  static v1::BlockTable Table(const std::vector<uint32_t>& blocks, uint64_t first_position = 0) {
    v1::BlockTable table;
    table.mutable_blocks()->Add(blocks.begin(), blocks.end());
    table.set_first_position(first_position);
    return table;
  }

  std::unique_ptr<FakeCache> cache_;
};

TEST_F(ServerGpuMemoryTest, BlocksComeOutOfItAndGoIntoIt) {
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  std::unique_ptr<RegionCall> lease;
  const uint64_t region = HandOver(cache_->Region(fingerprint_), &lease);
  ASSERT_NE(region, 0u);
  EXPECT_EQ(Paths().gpu_regions(), 1u);
  const v1::BlockTable table = Table({7, 2, 11, 0, 5, 9, 1});
  const v1::Preset presets[] = {v1::PRESET_BALANCED, v1::PRESET_SEED};
  for (size_t i = 0; i < 2; ++i) {
    const TestBlock& block = blocks[i];
    cache_->Move(&block.payload, table, block.header.start_position(), kTestChunk);
    const v1::BlockAck ack = PutFrom(region, table, block, presets[i]);
    EXPECT_FALSE(ack.has_error()) << ack.error().message();
  }
  EXPECT_EQ(Paths().gpu_encodes(), 2u);
  EXPECT_EQ(Paths().cpu_encodes(), 0u);
  const auto frames = GetHashes(Hashes(blocks), v1::ENCODING_FRAME).payloads;
  const auto raw = GetHashes(Hashes(blocks)).payloads;

  FakeCache other(layout_);
  std::unique_ptr<RegionCall> other_lease;
  const uint64_t into = HandOver(other.Region(fingerprint_), &other_lease);
  const size_t all = other.untouched();
  v1::GetBlocksRequest request;
  request.set_fingerprint(fingerprint_);
  for (const TestBlock& block : blocks) request.add_content_hashes(block.hash());
  request.mutable_target()->set_region_id(into);
  *request.mutable_target()->mutable_table() = Table({3, 4, 8, 10, 6, 1, 0}, 0);
  const auto call = client_->GetBlocks(request);
  v1::GetBlocksResponse response;
  std::vector<uint32_t> placed;
  while (call->Read(&response)) {
    EXPECT_FALSE(response.has_part() || response.has_failed());
    if (response.has_placed()) placed.push_back(response.placed().index());
  }
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_EQ(placed, (std::vector<uint32_t>{0, 1}));
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(other.Move(nullptr, request.target().table(), i * kTestChunk, kTestChunk), raw[i]);
  }
  EXPECT_LE(other.untouched(), all - raw[0].size());
  EXPECT_GE(other.untouched(), all - 2 * raw[0].size());  // nothing but the blocks' places

  // The same frames as of payloads that came over the wire.
  StartServer();
  for (size_t i = 0; i < 2; ++i) PutOne(Open(presets[i]), blocks[i]);
  EXPECT_EQ(GetHashes(Hashes(blocks), v1::ENCODING_FRAME).payloads, frames);
}

TEST_F(ServerGpuMemoryTest, ItIsGivenUpWithItsLeaseAndNotUnderAJob) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  std::unique_ptr<RegionCall> lease;
  const uint64_t region = HandOver(cache_->Region(fingerprint_), &lease);
  const v1::BlockTable table = Table({0, 1, 2, 3});
  cache_->Move(&blocks[0].payload, table, 0, kTestChunk);
  script_->Close();
  const size_t begun = script_->batch_sizes().size();
  std::thread put([&] { EXPECT_FALSE(PutFrom(region, table, blocks[0]).has_error()); });
  script_->WaitForBatches(begun + 1);
  lease.reset();
  WaitUntil([&] { return Paths().gpu_regions() == 0; });
  EXPECT_EQ(script_->regions(), 1) << "the job that is under way still reads it";
  script_->Open();
  put.join();
  WaitUntil([&] { return script_->regions() == 0; });
  EXPECT_EQ(PutFrom(region, table, MakeBlocks(Ids(500, kTestChunk))[0]).error().reason(),
            v1::REASON_REGION_GONE);
}

TEST_F(ServerGpuMemoryTest, AClientThatGoesInTheMiddleOfAPutLeavesNothing) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  const size_t used = memory_used();
  std::unique_ptr<RegionCall> lease;
  const uint64_t region = HandOver(cache_->Region(fingerprint_), &lease);
  script_->Close();
  const size_t begun = script_->batch_sizes().size();
  {
    const auto call = client_->PutBlocks();
    call->WriteOpen(Open(v1::PRESET_BALANCED));
    call->WriteHeader(blocks[0].header);
    v1::PutBlocksResponse response;
    EXPECT_TRUE(call->Read(&response));
    v1::PutBlocksRequest request;
    request.mutable_region_part()->set_region_id(region);
    *request.mutable_region_part()->mutable_table() = Table({0, 1, 2, 3});
    call->Write(request);
    script_->WaitForBatches(begun + 1);
    call->Cancel();
    lease.reset();
  }
  // A cancellation that comes after the job has ended would find a block that is rightly stored.
  WaitUntil([&] { return client_->Stats().response.open_streams() == 0; });
  script_->Open();
  WaitUntil([&] { return script_->regions() == 0; });
  WaitUntil([&] { return memory_used() == used; });
  EXPECT_EQ(GetHashes(Hashes(blocks)).opens[0].miss().reason(), v1::REASON_NOT_STORED);
}

TEST_F(ServerGpuMemoryTest, AGetThatIsBrokenOffEndsAfterItsLastWrite) {
  const auto blocks = MakeBlocks(Ids(1, kTestChunk));
  PutOne(Open(v1::PRESET_BALANCED), blocks[0]);
  std::unique_ptr<RegionCall> lease;
  const uint64_t region = HandOver(cache_->Region(fingerprint_), &lease);
  v1::GetBlocksRequest request;
  request.set_fingerprint(fingerprint_);
  request.add_content_hashes(blocks[0].hash());
  request.mutable_target()->set_region_id(region);
  *request.mutable_target()->mutable_table() = Table({0, 1, 2, 3});
  script_->Close();
  const size_t begun = script_->batch_sizes().size();
  const size_t empty = cache_->untouched();
  const auto call = client_->GetBlocks(request);
  script_->WaitForBatches(begun + 1);
  call->Cancel();
  for (int i = 0; i < 20; ++i) {  // as often as the daemon can say so before the job has ended
    EXPECT_EQ(client_->Stats().response.open_streams(), 1);
    EXPECT_EQ(cache_->untouched(), empty);
  }
  script_->Open();
  WaitUntil([&] { return client_->Stats().response.open_streams() == 0; });
  EXPECT_LT(cache_->untouched(), empty);
}

TEST_F(ServerGpuMemoryTest, WhatPassesItsEndsIsRefused) {
  std::unique_ptr<RegionCall> lease;
  const auto refused = [&](const std::function<void(v1::CudaRegion&)>& change) {
    v1::CudaRegion region = cache_->Region(fingerprint_);
    change(region);
    absl::StatusCode code = absl::StatusCode::kOk;
    EXPECT_EQ(HandOver(std::move(region), &lease, &code), 0u);
    return code;
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.set_blocks(r.blocks() + 1); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.set_blocks(0); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.set_block_tokens(0); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.mutable_planes()->RemoveLast(); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.add_planes(); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.mutable_planes(0)->set_memory(1); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.mutable_planes(0)->set_offset(1); }), kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.mutable_planes(5)->set_block_stride(~0ull); }),
            kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.mutable_planes(5)->set_head_stride(1ull << 63); }),
            kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.mutable_memories(0)->set_ipc_handle("x"); }),
            kInvalid);
  EXPECT_EQ(refused([](v1::CudaRegion& r) { r.set_fingerprint(std::string(32, 'f')); }),
            absl::StatusCode::kFailedPrecondition);
  WaitUntil([&] { return script_->regions() == 0; });

  const uint64_t region = HandOver(cache_->Region(fingerprint_), &lease);
  const auto blocks = MakeBlocks(Ids(1, 2 * kTestChunk));
  for (const v1::BlockTable& table : {Table({0, 1, 2, 12}), Table({0, 1, 2}), Table({}),
                                      Table({0, 1, 2, 3}, 1), Table({0, 1, 2, 3}, ~0ull)}) {
    EXPECT_EQ(PutFrom(region, table, blocks[0]).error().reason(), v1::REASON_BAD_PAYLOAD);
    v1::GetBlocksRequest get;
    get.set_fingerprint(fingerprint_);
    get.mutable_target()->set_region_id(region);
    *get.mutable_target()->mutable_table() = table;
    PutOne(Open(), blocks[1]);
    get.add_content_hashes(blocks[1].hash());
    EXPECT_EQ(Get(get).status.code, kInvalid);
  }
  v1::GetBlocksRequest get;
  get.set_fingerprint(fingerprint_);
  get.mutable_target()->set_region_id(region + 1);
  EXPECT_EQ(Get(get).status.detail.reason(), v1::REASON_REGION_GONE);
}

TEST_F(ServerGpuMemoryTest, OnlyOverUnixSockets) {
  StartServer([gpu = engine().config().gpu](ServerConfig& config) {
    config.listen.push_back("127.0.0.1:0");
    config.gpu = gpu;
  });
  client_ = ServiceClient::Connect(server_->addresses()[1]);
  std::unique_ptr<RegionCall> lease;
  absl::StatusCode code = absl::StatusCode::kOk;
  EXPECT_EQ(HandOver(cache_->Region(fingerprint_), &lease, &code), 0u);
  EXPECT_EQ(code, absl::StatusCode::kFailedPrecondition);
}

TEST_F(ServerGpuTest, ADeviceThatFailsIsTurnedOffAndTheDaemonServesOn) {
  StartWithGpu();
  EXPECT_TRUE(client_->Health("latticekv.v1.Gpu").response);
  script_->FailNext(1000, absl::InternalError("the fake device is broken"));
  const auto blocks = MakeBlocks(Ids(1, 4 * kTestChunk));
  for (const auto& ack : Put(Open(v1::PRESET_HIGH), blocks)) EXPECT_FALSE(ack.has_error());
  const auto got = GetHashes(Hashes(blocks));
  EXPECT_TRUE(got.status.ok()) << got.status.message;
  EXPECT_TRUE(got.failed.empty());
  const v1::CodecPaths paths = Paths();
  EXPECT_EQ(paths.gpu_state(), v1::GPU_STATE_OFF);
  EXPECT_EQ(paths.gpu_reason(), "the fake device is broken");
  EXPECT_FALSE(client_->Health("latticekv.v1.Gpu").response);
  EXPECT_TRUE(client_->Health("latticekv.v1.KvCache").response);
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
